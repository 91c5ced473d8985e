"""The parts of README.md and docs/ that are made by commands (`make publish`, `make bench`, ...), each between two marks."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import write_atomically
from sqlib.measures import MEASURES
from sqlib.places import REPOSITORY
from sqlib.report.front_page import answer, headline_frame, training_title
from sqlib.study.claims import read_claims
from sqlib.study.parameters import Study
from sqlib.study.results import collect, read_result
from sqlib.workflow.check import tolerances


@dataclass(frozen=True)
class Block:
    """A part of a page: what it shows, the page's path in the repository, and the command that writes it."""

    name: str
    page: str
    command: str

    @property
    def start(self) -> str:
        return f"<!-- {self.name}: made by `{self.command}`, not by hand -->"

    @property
    def end(self) -> str:
        return f"<!-- end of {self.name} -->"


RESULTS = Block("results", "README.md", "make publish")
EXPECTED = Block("expected", "docs/reproducing.md", "make publish")
ELSEWHERE = Block("elsewhere", "docs/reproducing.md", "make elsewhere")
FAULTS = Block("faults", "docs/reproducing.md", "make test-faults RECORD=yes")
BENCHMARKS = Block("benchmarks", "docs/benchmarks.md", "make bench")
SCALE = Block("scale", "docs/benchmarks.md", "make scale")
GPU = Block("gpu", "docs/benchmarks.md", "make bench-gpu")
BLOCKS = (RESULTS, EXPECTED, ELSEWHERE, FAULTS, BENCHMARKS, SCALE, GPU)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a row has a cell for each column of the header."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def revision(git: dict | None) -> str:
    """Of the code that made something (`runs.provenance`'s `git`): 12 digits, and whether there were changes beside it."""
    return f"code {git['revision'][:12]}{' with changes' if git.get('dirty') else ''}" if git else "no git"


def expected_block(study: Study, reports: Path) -> str:
    """Markdown of what a fresh study may differ by from this one on another machine, and of what making this one took."""
    found, shown = tolerances(study, reports), [row for row in MEASURES.values() if row.headline]
    # A measure that these results do not have yet has no tolerance.
    cells = {key: f"{MEASURES[key[1]].factor * value:.{MEASURES[key[1]].decimals}f}" for key, value in found.items()}
    rows = [[dataset_title(name), *(cells.get((name, row.name), "–") for row in shown)] for name in study.datasets]
    lines = markdown_table(["", *(f"{row.title}, {row.change_unit}".rstrip(", ") for row in shown)], rows)
    made = [read_result(run.folder(reports))["provenance"] for run in study.runs()]
    hours = sum(origin["seconds"] for origin in made) / 3600
    peak = max(origin["peak_memory_mb"] for origin in made)
    size = sum(path.stat().st_size for path in reports.rglob("*") if path.is_file()) / 1e6
    machines = sorted({f"{origin['cpu']}, {origin['cores']} cores" for origin in made})
    revisions = sorted({origin["git"]["revision"][:12] for origin in made if origin["git"]})
    lines += [
        "",
        f"Made from {', '.join(revisions) or 'no git'} on {'; '.join(machines)}: training and measuring the {len(made)} runs "
        f"took {hours:.1f} core hours, {peak:,} MB of memory at most; all that was made fills {size:.0f} MB.",
    ]
    return "\n".join(lines)


def results_block(study: Study, reports: Path, pictures: str) -> str:
    """Markdown of the answer, the main table, the verdicts, and the first data set's comparison picture.

    reports: the study's folder with its results; pictures: where its figures are, as a link from the README.
    """
    rows = collect(study, reports)
    network = study.networks[0]
    rows = rows[rows["network"] == network]
    shown = [row.label for row in MEASURES.values() if row.headline and row.name != "dead_map_rate"]  # said below
    found, lines = [], []
    for dataset in study.datasets:
        title, own = dataset_title(dataset), rows[rows["dataset"] == dataset]
        if len(own):
            found.append(answer(study, network, title, own))
            frame = headline_frame(study, dataset, network, own)
            for setup, both in frame.groupby(level="setup", sort=False):
                lines.append([title, str(setup), *(" / ".join(both[column]) for column in shown)])
    if not lines:
        raise SqlibError(f"{reports} holds no results to show in the README")
    trainings = " / ".join(training_title(training) for training in study.trainings)
    table = markdown_table(["data set", "setup", *shown], lines)
    spread = "mean ± standard deviation over seeds" if len(study.seeds) > 1 else "one seed"
    dead = rows.groupby(["dataset", "setup", "training"])["dead_map_rate"].mean().max()
    verdicts = Counter(row["verdict"] for row in read_claims(reports / "results/claims.json"))
    below = [
        f"In each cell: {trainings} training. Test images, network `{network}`, {spread}. "
        f"In no group of runs are more than {dead:.2%} of the maps dead.",
        f"Verdicts on the claims: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.most_common())}.",
    ]
    picture = (
        f"![The same images under every setup, standard and guided]({pictures}/compare_{study.datasets[0]}_maps.png)"
    )
    return "\n\n".join([_sentences([entry for entry in found if entry]), "\n".join(table), " ".join(below), picture])


def update_page(block: Block, text: str, root: Path = REPOSITORY) -> None:
    """Put the text between the two marks of the block on its page; raises SqlibError when a mark is missing."""
    page = root / block.page
    before, start, rest = page.read_text(encoding="utf-8").partition(block.start)
    _, end, after = rest.partition(block.end)
    if not start or not end:
        raise SqlibError(f"{os.path.relpath(page)}: expected the lines '{block.start}' and '{block.end}'")
    write_atomically(page, f"{before}{start}\n\n{text}\n\n{end}{after}".encode())


def _sentences(found: Sequence[dict[str, str]]) -> str:
    """What the fewest bits change, and what guidance changes there, on each data set: three sentences."""
    if not found:
        return ""

    def on_each(key: str, unit: str = "") -> str:
        return " and ".join(f"{entry[key]}{unit} on {entry['title']}" for entry in found)

    before, after, seeds = (found[0][key] for key in ("before", "after", "seeds"))
    parts = [
        f"**From {before} to {after}, test accuracy changes by {on_each('accuracy_change', ' points')}** ({seeds}).",
        f"The Gini index of the saliency maps changes by {on_each('gini_change')}, "
        f"their faithfulness gap by {on_each('gap_change')}.",
    ]
    if all("guided_accuracy" in entry for entry in found):
        parts.append(
            f"At {after}, saliency-guided instead of ordinary training changes the Gini index by {on_each('guided_gini')}, "
            f"and the accuracy by {on_each('guided_accuracy', ' points')}."
        )
    return " ".join(parts)
