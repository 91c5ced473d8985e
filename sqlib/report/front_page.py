"""The index of a study: the question, the answer with its numbers, and the way to every page."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import write_atomically
from sqlib.measures import MEASURES, Measure
from sqlib.networks.architectures import NETWORK_LAYERS
from sqlib.report.html import as_html, check_size, link_files, mark_wide_figures, parse, render_page
from sqlib.report.tables import table_html
from sqlib.report.words import logged_errors, training_title
from sqlib.study.claims import change_in_words, read_claims, signed
from sqlib.study.parameters import Run, Study
from sqlib.study.results import collect, read_result

if TYPE_CHECKING:
    import pandas

_VERDICT_MARKS = {"supported": "■", "contradicted": "✕", "inconclusive": "○"}  # as in the figures of the claims page
_ANSWERED = {"accuracy": "test_accuracy", "gini": "gini", "gap": "faithfulness_gap"}


def write_index(study: Study, reports_folder: Path, pages: Sequence[tuple[str, str, str]] = ()) -> Path:
    """Writes `<reports_folder>/index.html` from the results and pages that are there, and returns its path.

    The question, the answer with its numbers, one figure, the headline tables, every page, the runs that are missing,
    and where it all comes from. Works for a study of which nothing is finished yet. pages: (title, file, what it answers) of
    those to list, where they are there, the ones that answer the question first.
    """
    reports = Path(reports_folder)
    results = collect(study, reports)
    groups = [
        (_group_title(study, dataset, network), dataset, network, _of(results, dataset, network))
        for dataset in study.datasets
        for network in study.networks
    ]
    provenances = [read_result(run.folder(reports))["provenance"] for run in study.runs() if _finished(run, reports)]
    pages = [page for page in pages if (reports / page[1]).exists()]
    verdicts, counted = _verdicts(study, reports)
    page = render_page(
        "index.html.j2",
        title=study.title,
        heading=study.title,
        description=f"Study {study.name}: accuracy and saliency of quantised networks.",
        crumbs=[],
        facts=_index_facts(study, provenances),
        parameters={},
        previous=None,
        next=pages[0][:2] if pages else None,
        study=study,
        finished=len(results),
        total=len(study.runs()),
        small=study.training.images < 55_000,
        datasets=_listed([dataset_title(dataset) for dataset in study.datasets]),
        setups=_COUNTS.get(len(study.setups), str(len(study.setups)))
        + " choice"
        + "s" * (len(study.setups) > 1)
        + " of",
        trainings=_listed([training_title(training) for training in study.trainings]) + " training",
        answers=[found for title, _, network, rows in groups if (found := answer(study, network, title, rows))],
        # What happens to the maps of the same images, and what each bit costs in numbers.
        hero=_picture(reports, [f"compare_{dataset}_maps" for dataset in study.datasets]),
        costs=_picture(reports, ["answer"]),
        tables=[
            _headline(study, title, dataset, network, rows) for title, dataset, network, rows in groups if len(rows)
        ],
        verdicts=verdicts,
        counted=counted,
        pages=pages,
        grids=[_run_grid(study, title, dataset, network, reports, results) for title, dataset, network, _ in groups],
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


_COUNTS = dict(enumerate(["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))


def _listed(words: list[str]) -> str:
    """'a, b and c'."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def _group_title(study: Study, dataset: str, network: str) -> str:
    return dataset_title(dataset) + (f", {network}" if len(study.networks) > 1 else "")


def _of(results, dataset: str, network: str, setup: str | None = None, training: str | None = None):
    chosen = (results["dataset"] == dataset) & (results["network"] == network)
    if setup is not None:
        chosen &= (results["setup"] == setup) & (results["training"] == training)
    return results[chosen]


def _spread(values, measure: Measure) -> str:
    """'mean ± standard deviation' over the runs that have the value; no ± for a single one."""
    values = values.dropna() * measure.factor
    if not len(values):
        return "–"
    mean = f"{values.mean():.{measure.decimals}f}"
    return f"{mean} ± {values.std():.{measure.decimals}f}" if len(values) > 1 else mean


def answer(study: Study, network: str, title: str, rows) -> dict[str, object] | None:
    """What the fewest bits do to accuracy, clarity and faithfulness against float, standard training: paired over seeds.

    `least_faithful` and `least_gap`: the quantised setup whose maps know least beyond chance, not always the one with the
    fewest bits.
    """
    floats = [setup for setup in study.setups if setup.is_float]
    quantised = [setup for setup in study.setups if not setup.is_float]
    if not floats or not quantised or not len(rows):
        return None
    reference = floats[0]
    layers = NETWORK_LAYERS[network]
    lowest = min(quantised, key=lambda setup: sum(sum(setup.bits(layer, layers)) for layer in layers))

    def by_seed(setup: str, training: str):
        return rows[(rows["setup"] == setup) & (rows["training"] == training)].set_index("seed")

    before, after = by_seed(reference.name, "standard"), by_seed(lowest.name, "standard")
    seeds = before.index.intersection(after.index)
    if not len(seeds):
        return None
    parts = {}
    for key, name in _ANSWERED.items():
        row = MEASURES[name]
        change = (after.loc[seeds, name] - before.loc[seeds, name]).dropna() * row.factor
        parts[f"{key}_before"] = f"{before.loc[seeds, name].mean() * row.factor:.{row.decimals}f}"
        parts[f"{key}_after"] = f"{after.loc[seeds, name].mean() * row.factor:.{row.decimals}f}"
        parts[f"{key}_change"] = _signed(change, row.decimals)
    gaps = {setup.name: by_seed(setup.name, "standard")["faithfulness_gap"].mean() for setup in quantised}
    if known := {name: gap for name, gap in gaps.items() if gap == gap}:
        parts["least_faithful"] = min(known, key=lambda name: (known[name], name != lowest.name))
        least, decimals = known[parts["least_faithful"]], MEASURES["faithfulness_gap"].decimals
        parts["least_gap"] = f"{least:.{decimals}f}".replace("-", "−")
    guided = by_seed(lowest.name, "saliency_guided")
    seeds_guided = after.index.intersection(guided.index)
    if len(seeds_guided):
        for key, name in _ANSWERED.items():
            change = (guided.loc[seeds_guided, name] - after.loc[seeds_guided, name]).dropna() * MEASURES[name].factor
            parts[f"guided_{key}"] = _signed(change, MEASURES[name].decimals)
    return {
        "title": title,
        "before": reference.name,
        "after": lowest.name,
        "after_title": lowest.title,
        "seeds": f"over {len(seeds)} seeds" if len(seeds) > 1 else "from one seed, so no spread can be given",
        "several": len(seeds) > 1,
        **parts,
    }


def _signed(change, decimals: int) -> str:
    if not len(change):
        return "an unknown amount"
    mean = signed(change.mean(), decimals)
    return f"{mean} ± {change.std():.{decimals}f}" if len(change) > 1 else mean


def headline_frame(study: Study, dataset: str, network: str, rows) -> "pandas.DataFrame":
    """The main table of one data set: a line for each setup and training, mean ± standard deviation over seeds."""
    import pandas

    lines = []
    for setup in study.setups:
        for training in study.trainings:
            runs = _of(rows, dataset, network, setup.name, training)
            if len(runs):
                values = {row.label: _spread(runs[row.name], row) for row in MEASURES.values() if row.headline}
                lines.append({"setup": setup.name, "training": training_title(training), **values, "runs": len(runs)})
    return pandas.DataFrame(lines).set_index(["setup", "training"])


def _headline(study: Study, title: str, dataset: str, network: str, rows):
    from markupsafe import Markup

    frame = headline_frame(study, dataset, network, rows)
    several = len(study.seeds) > 1
    caption = f"{title}: accuracy and saliency on the test images" + (
        "; mean ± standard deviation over seeds." * several
    )
    return Markup(table_html(frame, f"headline_{dataset}_{network}", caption, dict.fromkeys(frame.columns[:-1], "{}")))


def _run_grid(study: Study, title: str, dataset: str, network: str, reports: Path, results):
    """The table of a data set's runs: one line a combination, a link for each seed's page and for its saliency page."""
    import pandas
    from markupsafe import Markup, escape

    def link(run: Run, page: str, text: str, label: str):
        path = run.folder(reports) / page
        if not path.exists():
            return text if _finished(run, reports) and page == "train.html" else "–"
        address = path.relative_to(reports).as_posix()
        # The label starts with the text that is seen, so that a voice user can say it.
        return Markup(f'<a href="{escape(address)}" aria-label="{escape(f"{text}, {label}")}">{escape(text)}</a>')

    lines = []
    for setup in study.setups:
        for training in study.trainings:
            runs = [study.make_run(dataset, network, setup.name, training, seed) for seed in study.seeds]
            what = f"{title} {setup.name} {training_title(training)}"
            line = {"setup": setup.name, "training": training_title(training)}
            for run in runs:
                accuracy = _of(results, dataset, network, setup.name, training).set_index("seed")["test_accuracy"]
                text = f"{accuracy[run.seed] * 100:.2f}\u00a0%" if run.seed in accuracy.index else "not finished"
                line[f"seed {run.seed}"] = link(run, "train.html", text, f"training of {what} seed {run.seed}")
            for run in runs:
                if (run.folder(reports) / "saliency.html").exists():
                    line["saliency maps"] = link(
                        run, "saliency.html", f"maps of seed {run.seed}", f"saliency of {what}"
                    )
                    break
            lines.append(line)
    frame = pandas.DataFrame(lines).set_index(["setup", "training"])
    caption = f"{title}: the page of each run, by its test accuracy."
    return Markup(table_html(frame, f"runs_{dataset}_{network}", caption))


def _verdicts(study: Study, reports: Path):
    """(the table of the verdicts on each claim, data set by data set, as the claims page left them; how many there are of
    each): None and nothing without that page."""
    import pandas
    from markupsafe import Markup

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


def _missing(study: Study, reports: Path):
    """The table of runs without a result and of other jobs that failed: cell, error, and the files to look at; or None."""
    import pandas
    from markupsafe import Markup, escape

    def links(name: str, files: dict[str, Path]) -> Markup:
        there = {word: path.relative_to(reports).as_posix() for word, path in files.items() if path.exists()}
        found = (
            f'<a href="{escape(at)}" aria-label="{word} of {escape(name)}">{word}</a>' for word, at in there.items()
        )
        return Markup(", ".join(found) or "–")

    lines = []
    for run in study.runs():
        if not _finished(run, reports):
            folder, log = run.folder(reports), reports / "logs" / run.id / "train.log"
            files = {"log": log, "notebook": folder / "notebook.ipynb", "page": folder / "train.html"}
            cell, error = _last_error(files["notebook"], log)
            lines.append({"run": run.id, "cell": cell, "error": error, "see": links(run.id, files)})
    for log in sorted((reports / "logs").rglob("*.log")):
        name = log.relative_to(reports / "logs").with_suffix("")
        if name.name in ("train", "reproduce", "index") or not logged_errors(log):
            continue
        own = reports / "runs" / name if name.name == "saliency" else reports / "notebooks" / name
        files = {"log": log, "notebook": own.with_suffix(".ipynb")}
        cell, error = _last_error(files["notebook"], log)
        lines.append({"run": name.as_posix(), "cell": cell, "error": error, "see": links(name.as_posix(), files)})
    if not lines:
        return None
    frame = pandas.DataFrame(lines).rename(columns={"run": "run or job"}).set_index("run or job")
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


def _index_facts(study: Study, provenances: list[dict]) -> dict[str, str]:
    """Where the results come from, over all finished runs."""

    def distinct(values) -> str:
        return ", ".join(sorted({str(value) for value in values if value})) or "unknown"

    facts = {"Study": f"{study.name} (params/{study.name}.yaml)", "Run it again": f"make reproduce STUDY={study.name}"}
    if not provenances:
        return {**facts, "Results": "none yet"}
    revisions = []
    for provenance in provenances:
        git = provenance.get("git") or {}
        if git.get("revision"):
            revisions.append(git["revision"][:12] + (" with uncommitted changes" if git.get("dirty") else ""))
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
