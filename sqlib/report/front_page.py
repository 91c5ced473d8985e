"""The index of a study: the question, the answer with its numbers, and the way to every page."""

import base64
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import write_atomically
from sqlib.measures import MEASURES, Measure
from sqlib.networks.architectures import NETWORK_LAYERS
from sqlib.report.html import as_html, check_size, link_files, mark_wide_figures, parse, render_page
from sqlib.report.runs_table import mean_sd, paired, with_spread
from sqlib.report.tables import table_html
from sqlib.report.words import logged_errors, training_title
from sqlib.study.claims import change_in_words, read_claims, signed
from sqlib.study.parameters import Run, Study
from sqlib.study.results import collect, read_result

if TYPE_CHECKING:
    import pandas

_VERDICT_MARKS = {"supported": "■", "contradicted": "✕", "inconclusive": "○"}  # as in the figures of the claims page
_ANSWERED = {"accuracy": "test_accuracy", "gini": "gini", "gap": "faithfulness_gap"}


class _Group(NamedTuple):
    """One data set and network of a study: its title, and the rows of its runs (`sqlib.study.results.collect`)."""

    title: str
    dataset: str
    network: str
    rows: "pandas.DataFrame"


def write_index(study: Study, reports_folder: Path, pages: Sequence[tuple[str, str, str]] = ()) -> Path:
    """Writes `<reports_folder>/index.html` from the results and pages that are there, and returns its path.

    The question, the answer with its numbers, one figure, the headline tables, every page, the runs that are missing,
    and where it all comes from. Works for a study of which nothing is finished yet. pages: (title, file, what it answers) of
    those to list, where they are there, the ones that answer the question first.
    """
    reports = Path(reports_folder)
    results = collect(study, reports)
    groups = [
        _Group(
            _group_title(study, dataset, network), dataset, network,
            results[(results["dataset"] == dataset) & (results["network"] == network)],
        )
        for dataset in study.datasets
        for network in study.networks
    ]  # fmt: skip
    pages = [page for page in pages if (reports / page[1]).exists()]
    verdicts, counted = _verdicts(study, reports)
    count = len(study.setups)
    page = render_page(
        "index.html.j2",
        title=study.title,
        heading=study.title,
        description=f"Study {study.name}: accuracy and saliency of quantised networks.",
        crumbs=[],
        facts=_index_facts(study, [run for run in study.runs() if _finished(run, reports)], reports),
        parameters={},
        previous=None,
        next=pages[0][:2] if pages else None,
        study=study,
        finished=len(results),
        total=len(study.runs()),
        small=study.training.images < 55_000,
        datasets=_listed([dataset_title(dataset) for dataset in study.datasets]),
        setups=f"{_COUNTS[count] if count < len(_COUNTS) else count} choice{'s' * (count > 1)} of",
        trainings=_listed([training_title(training) for training in study.trainings]) + " training",
        answers=[found for group in groups if (found := answer(study, group.network, group.title, group.rows))],
        # What happens to the maps of the same images, and what each bit costs in numbers.
        hero=_picture(reports, [f"compare_{dataset}_maps" for dataset in study.datasets]),
        costs=_picture(reports, ["answer"]),
        tables=[_headline(study, group) for group in groups if len(group.rows)],
        verdicts=verdicts,
        counted=counted,
        pages=pages,
        grids=[_run_grid(study, group, reports) for group in groups],
        missing=_missing(study, reports),
        absent=sum(not _finished(run, reports) for run in study.runs()),
        command=f"make reproduce STUDY={study.name}",
        has_heading=True,
    )
    index = reports / "index.html"
    tree = parse(page)
    mark_wide_figures(tree)
    link_files(tree, reports)
    write_atomically(index, as_html(tree).encode())
    check_size(index)
    return index


def _finished(run: Run, reports: Path) -> bool:
    return (run.folder(reports) / "result.json").exists()


_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _listed(words: list[str]) -> str:
    """'a, b and c'."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def _group_title(study: Study, dataset: str, network: str) -> str:
    return dataset_title(dataset) + (f", {network}" if len(study.networks) > 1 else "")


def answer(study: Study, network: str, title: str, rows) -> dict[str, object] | None:
    """What the fewest bits do to accuracy, clarity and faithfulness against float, standard training: paired over seeds.

    `least_faithful` and `least_gap`: the quantised setup whose maps know least beyond chance, not always the one with the
    fewest bits.
    """
    floats = [setup for setup in study.setups if setup.is_float]
    quantised = [setup for setup in study.setups if not setup.is_float]
    if not floats or not quantised or not len(rows):
        return None
    reference, layers = floats[0], NETWORK_LAYERS[network]
    lowest = min(quantised, key=lambda setup: sum(sum(setup.bits(layer, layers)) for layer in layers))
    standard = rows[rows["training"] == "standard"].set_index(["setup", "seed"])
    seeds = [seed for seed in study.seeds if {(reference.name, seed), (lowest.name, seed)} <= set(standard.index)]
    if not seeds:
        return None
    guided = set(rows.loc[(rows["setup"] == lowest.name) & (rows["training"] == "saliency_guided"), "seed"])
    parts: dict[str, str] = {}
    for key, name in _ANSWERED.items():
        measure = MEASURES[name]
        for when, setup in (("before", reference), ("after", lowest)):
            mean = standard.loc[[(setup.name, seed) for seed in seeds], name].mean()
            parts[f"{key}_{when}"] = f"{mean * measure.factor:.{measure.decimals}f}"
        parts[f"{key}_change"] = _change(paired(rows, name, lowest.name, "standard", reference.name), measure)
        if guided & {seed for setup, seed in standard.index if setup == lowest.name}:
            further = paired(rows, name, lowest.name, "saliency_guided", lowest.name, "standard")
            parts[f"guided_{key}"] = _change(further, measure)
    gaps = standard["faithfulness_gap"].groupby("setup").mean().dropna()
    if known := {setup.name: gaps[setup.name] for setup in quantised if setup.name in gaps}:
        parts["least_faithful"] = min(known, key=lambda name: (known[name], name != lowest.name))
        least, decimals = known[parts["least_faithful"]], MEASURES["faithfulness_gap"].decimals
        parts["least_gap"] = f"{least:.{decimals}f}".replace("-", "−")
    return {
        "title": title,
        "before": reference.name,
        "after": lowest.name,
        "after_title": lowest.title,
        "seeds": f"over {len(seeds)} seeds" if len(seeds) > 1 else "from one seed, so no spread can be given",
        "several": len(seeds) > 1,
        **parts,
    }


def _change(differences, measure: Measure) -> str:
    """Paired differences as their mean with its sign, and ± their standard deviation where there are several."""
    if not len(differences):
        return "an unknown amount"
    mean, sd = mean_sd(differences * measure.factor)
    return signed(mean, measure.decimals) + (f" ± {sd:.{measure.decimals}f}" if len(differences) > 1 else "")


def headline_frame(study: Study, dataset: str, network: str, rows) -> "pandas.DataFrame":
    """The main table of one data set: a line for each setup and training, mean ± standard deviation over seeds."""
    import pandas

    rows = rows[(rows["dataset"] == dataset) & (rows["network"] == network)]
    lines = []
    for setup, training in itertools.product([setup.name for setup in study.setups], study.trainings):
        runs = rows[(rows["setup"] == setup) & (rows["training"] == training)]
        if len(runs):
            line = {"setup": setup, "training": training_title(training)}
            for row in MEASURES.values():
                if row.headline:
                    line[row.label] = with_spread(runs[row.name].dropna().to_numpy(dtype=float), row)
            lines.append({**line, "runs": len(runs)})
    return pandas.DataFrame(lines).set_index(["setup", "training"])


def _headline(study: Study, group: _Group) -> Markup:
    frame = headline_frame(study, group.dataset, group.network, group.rows)
    caption = f"{group.title}: accuracy and saliency on the test images"
    caption += "; mean ± standard deviation over seeds." * (len(study.seeds) > 1)
    name = f"headline_{group.dataset}_{group.network}"
    return Markup(table_html(frame, name, caption, dict.fromkeys(frame.columns[:-1], "{}")))


def _link(address: str, text: str, label: str) -> Markup:
    # The label starts with the text that is seen, so that a voice user can say it.
    return Markup('<a href="{}" aria-label="{}">{}</a>').format(address, label, text)


def _run_grid(study: Study, group: _Group, reports: Path) -> Markup:
    """The table of a data set's runs: one line a combination, a link for each seed's page and for its saliency page."""
    import pandas

    accuracies = group.rows.set_index(["setup", "training", "seed"])["test_accuracy"]
    lines = []
    for setup, training in itertools.product([setup.name for setup in study.setups], study.trainings):
        what = f"{group.title} {setup} {training_title(training)}"
        line = {"setup": setup, "training": training_title(training)}
        maps = None
        for seed in study.seeds:
            run = study.make_run(group.dataset, group.network, setup, training, seed)
            accuracy = accuracies.get((setup, training, seed))
            text = "not finished" if accuracy is None else f"{accuracy * 100:.2f}\u00a0%"
            folder = run.folder(Path(""))
            if (reports / folder / "train.html").exists():
                label = f"{text}, training of {what} seed {seed}"
                text = _link((folder / "train.html").as_posix(), text, label)
            line[f"seed {seed}"] = text if _finished(run, reports) or isinstance(text, Markup) else "–"
            if maps is None and (reports / folder / "saliency.html").exists():
                text = f"maps of seed {seed}"
                maps = _link((folder / "saliency.html").as_posix(), text, f"{text}, saliency of {what}")
        lines.append(line | ({} if maps is None else {"saliency maps": maps}))
    frame = pandas.DataFrame(lines).set_index(["setup", "training"])
    caption = f"{group.title}: the page of each run, by its test accuracy."
    return Markup(table_html(frame, f"runs_{group.dataset}_{group.network}", caption))


def _verdicts(study: Study, reports: Path):
    """(the table of the verdicts on each claim, data set by data set, as the claims page left them; how many there are of
    each): None and nothing without that page."""
    import pandas

    recorded = reports / "results/claims.json"
    if not (recorded.exists() and (reports / "claims.html").exists()):
        return None, {}
    try:
        rows = read_claims(recorded)
    except SqlibError:
        return None, {}  # the job that makes it says what is wrong
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        effect = change_in_words(row) or "no difference known"
        column = _group_title(study, row["dataset"], row.get("network", study.networks[0]))
        mark = Markup('<span class="verdict"><span aria-hidden="true">{} </span>{}</span> {}')
        claim = re.sub(r"^The abstract says that (.)", lambda found: found[1].upper(), row["claim"])
        lines.setdefault(claim, {})[column] = mark.format(_VERDICT_MARKS[row["verdict"]], row["verdict"], effect)
    if not lines:
        return None, {}
    counted = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in _VERDICT_MARKS} | {
        "tests": len(rows)
    }
    caption = (
        "Each claim of the paper's abstract, the verdict on it, and the difference that was found with its interval."
    )
    note = (
        "■ supported, ✕ contradicted, ○ inconclusive: neither an effect of the size that matters nor its absence is shown. "
        "The intervals stand each for itself; the verdicts are corrected for the number of tests, and so may be "
        "inconclusive where an interval excludes 0."
    )
    frame = pandas.DataFrame.from_dict(lines, orient="index").rename_axis("claim").fillna("–")
    return Markup(table_html(frame, "verdicts", caption, note=note)), counted


def _picture(reports: Path, names: list[str]) -> dict[str, object] | None:
    """The first of these figures that there is, as `sqlib.report.cells.figure` left it: its words are inside the PNG."""
    from PIL import Image

    for path in (reports / "figures" / f"{name}.png" for name in names):
        if path.exists():
            with Image.open(path) as image:
                image.load()
                words, size = image.text, image.size
            return {
                "data": base64.b64encode(path.read_bytes()).decode(),
                "alt": words.get("Description", "Saliency maps of the same images under every setup"),
                "caption": words.get("Title", ""),
                # 8 inches at 150 dots each, as every figure is saved, shown at the size that it has on its own page.
                "width": round(size[0] * 96 / 150),
                "height": round(size[1] * 96 / 150),
                "name": path.stem,
            }
    return None


def _missing(study: Study, reports: Path) -> Markup | None:
    """The table of runs without a result and of other jobs that failed: cell, error, and the files to look at; or None."""
    import pandas

    lines = []

    def add(name: str, **files: Path) -> None:
        cell, error = _last_error(files["notebook"], files["log"])
        there = {word: path.relative_to(reports).as_posix() for word, path in files.items() if path.exists()}
        links = [_link(address, word, f"{word} of {name}") for word, address in there.items()]
        see = Markup(", ").join(links) or "–"
        lines.append({"run or job": name, "cell": cell, "error": error, "see": see})

    for run in study.runs():
        if not _finished(run, reports):
            folder, log = run.folder(reports), reports / "logs" / run.id / "train.log"
            add(run.id, log=log, notebook=folder / "notebook.ipynb", page=folder / "train.html")
    for log in sorted((reports / "logs").rglob("*.log")):
        name = log.relative_to(reports / "logs").with_suffix("")
        if name.name not in ("train", "reproduce", "index") and logged_errors(log):
            own = reports / ("runs" if name.name == "saliency" else "notebooks") / name
            add(name.as_posix(), log=log, notebook=own.with_suffix(".ipynb"))
    if not lines:
        return None
    frame = pandas.DataFrame(lines).set_index("run or job")
    return Markup(table_html(frame, "failed", "Runs without a result and jobs that failed, with their last error."))


def _last_error(executed: Path, log: Path) -> tuple[str, str]:
    """(the cell that failed, the first line of its error) of a job that left no result, as its notebook or its log says."""
    import nbformat

    try:
        cells = nbformat.read(executed, as_version=4).cells if executed.exists() else []
    except Exception:
        cells = []
    for number, cell in reversed(list(enumerate(cells, 1))):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                code = [line.strip() for line in cell.source.splitlines() if line.strip() and line.strip()[0] != "#"]
                error = next((line.strip() for line in str(output.evalue).splitlines() if line.strip()), "")
                return f"{number}: {code[0][:60]}" if code else str(number), f"{output.ename}: {error}"[:300]
    if errors := logged_errors(log):
        return "–", errors[-1][:300]
    return "–", "stopped before its end" if executed.exists() or log.exists() else "not run yet"


def _index_facts(study: Study, runs: Sequence[Run], reports: Path) -> dict[str, str]:
    """Where the results of these runs come from."""

    def distinct(values) -> str:
        return ", ".join(sorted({str(value) for value in values if value})) or "unknown"

    facts = {"Study": f"{study.name} (params/{study.name}.yaml)", "Run it again": f"make reproduce STUDY={study.name}"}
    provenances = [read_result(run.folder(reports))["provenance"] for run in runs]
    if not provenances:
        return {**facts, "Results": "none yet"}
    gits = [p["git"] for p in provenances if (p.get("git") or {}).get("revision")]
    revisions = [git["revision"][:12] + " with uncommitted changes" * bool(git.get("dirty")) for git in gits]
    started = [p["started"] for p in provenances if p.get("started")]
    ended = [p["ended"] for p in provenances if p.get("ended")]
    if started and ended:
        facts["Trained (UTC)"] = " to ".join(str(t)[:16].replace("T", " ") for t in (min(started), max(ended)))
    seconds = sum(p.get("seconds") or 0 for p in provenances)
    return {
        **facts,
        "Time of all runs": f"{seconds / 60:.0f} minutes, one after the other",
        "Machine": distinct(f"{p.get('cpu')}, {p.get('cores')} cores, {p.get('platform')}" for p in provenances),
        "Revision": distinct(revisions),
        "Python": distinct(p.get("python") for p in provenances),
        "PyTorch": distinct((p.get("packages") or {}).get("torch") for p in provenances),
    }
