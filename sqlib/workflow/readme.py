"""The parts of README.md and REPRODUCING.md that are made by commands (`make publish`, `make bench`, ...), between two marks."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import write_atomically
from sqlib.report.front_page import answer, headline_frame
from sqlib.study.parameters import Study
from sqlib.study.results import collect, read_result
from sqlib.workflow.check import tolerances

START, END = "<!-- results: made by `make publish`, not by hand -->", "<!-- end of results -->"
ELSEWHERE = "<!-- elsewhere: made by `make elsewhere`, not by hand -->", "<!-- end of elsewhere -->"
BENCHMARKS = "<!-- benchmarks: made by `make bench`, not by hand -->", "<!-- end of benchmarks -->"
SCALE = "<!-- scale: made by `make scale`, not by hand -->", "<!-- end of scale -->"
GPU = "<!-- gpu: made by `make bench-gpu`, not by hand -->", "<!-- end of gpu -->"
FAULTS = "<!-- faults: made by `make test-faults RECORD=yes`, not by hand -->", "<!-- end of faults -->"
EXPECTED = "<!-- expected: made by `make publish`, not by hand -->", "<!-- end of expected -->"
EXPECTED_METRICS = {
    "test_accuracy": ("test accuracy, points", 100, 2),
    "gini": ("Gini index", 1, 3),
    "faithfulness_gap": ("faithfulness gap", 1, 3),
    "dead_map_rate": ("dead maps, points", 100, 1),
}
"""Metrics whose tolerances are shown: name, factor, digits."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a row has a cell for each column of the header."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def revision(git: dict | None) -> str:
    """Of the code that made something (`runs.provenance`'s `git`): 12 digits, and whether there were changes beside it."""
    return f"code {git['revision'][:12]}{' with changes' if git['dirty'] else ''}" if git else "no git"


def expected_block(study: Study, reports: Path) -> str:
    """Markdown of what a fresh study may differ by from this one on another machine, and of what making this one took."""
    found = tolerances(study, reports)
    rows = []
    for dataset in study.datasets:
        cells = [
            f"{factor * found[dataset, metric]:.{digits}f}" for metric, (_, factor, digits) in EXPECTED_METRICS.items()
        ]
        rows.append([dataset_title(dataset), *cells])
    lines = markdown_table(["", *(title for title, _, _ in EXPECTED_METRICS.values())], rows)
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
    """Markdown of the answer for each data set, the main table, and the first data set's comparison picture.

    reports: the study's folder with its results; pictures: where its figures are, as a link from the README.
    """
    rows = collect(study, reports)
    network = study.networks[0]
    rows = rows[rows["network"] == network]
    parts, tables = [], []
    for dataset in study.datasets:
        own = rows[rows["dataset"] == dataset]
        found = answer(study, network, dataset_title(dataset), own)
        if found:
            parts.append(_sentence(found))
        if len(own):
            frame = headline_frame(study, dataset, network, own).reset_index()
            frame.insert(0, "data set", dataset_title(dataset))
            tables.append(frame)
    if not tables:
        raise SqlibError(f"{reports} holds no results to show in the README")
    rows = ([str(cell) for cell in row] for frame in tables for row in frame.itertuples(index=False))
    lines = markdown_table([str(column) for column in tables[0].columns], rows)
    seeds = "mean ± standard deviation over seeds" if len(study.seeds) > 1 else "one seed"
    picture = (
        f"![The same images under every setup, standard and guided]({pictures}/compare_{study.datasets[0]}_maps.png)"
    )
    return "\n\n".join([*parts, "\n".join(lines), f"Test images, network `{network}`, {seeds}.", picture])


def update_readme(readme: Path, block: str, marks: tuple[str, str] = (START, END)) -> None:
    """Put the block between two marks of the README; raises SqlibError when a mark is missing."""
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        raise SqlibError(
            f"{os.path.relpath(readme)}: expected the lines '{marks[0]}' and '{marks[1]}' around the results"
        )
    write_atomically(readme, f"{before}{marks[0]}\n\n{block}\n\n{marks[1]}{after}".encode())


def _sentence(found: dict[str, str]) -> str:
    guided = ""
    if "guided_accuracy" in found:
        guided = (
            f" At {found['after']}, saliency-guided instead of ordinary training changes the accuracy by "
            f"{found['guided_accuracy']} points and the Gini index by {found['guided_gini']}."
        )
    return (
        f"**{found['title']}**, {found['before']} to {found['after']} with ordinary training: test accuracy "
        f"{found['accuracy_before']}% to {found['accuracy_after']}% ({found['accuracy_change']} points), "
        f"Gini index of the saliency maps {found['gini_before']} to {found['gini_after']} ({found['gini_change']}), their "
        f"faithfulness gap {found['gap_before']} to {found['gap_after']} ({found['gap_change']}); {found['seeds']}.{guided}"
    )
