"""What `sqlib.study.jobs.quality` measured, gathered over a study: values by image, and tables with an interval in each cell.

A cell is the mean over seeds and images with its 95% interval, from a bootstrap over both (`sqlib.statistics`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sqlib.checked import Recorded, check_recorded
from sqlib.data.datasets import dataset_title
from sqlib.files import read_json
from sqlib.measures import Measure
from sqlib.report.runs_table import to_show
from sqlib.report.words import training_title
from sqlib.statistics import Interval, bootstrap
from sqlib.study.parameters import Run, Study
from sqlib.study.results import load_model, load_quality

if TYPE_CHECKING:
    import pandas

GRADIENT = "gradient/straight_through"
SENSITIVITY_CAP = 2.0
"""A single nearly dead map can have a sensitivity of hundreds, and a mean would be about that map."""


class _Mean(Recorded):
    mean: float | None
    n: int


class _Sanity(Recorded):
    spearman: _Mean
    spearman_foreground: _Mean
    flagged: bool
    flagged_foreground: bool


class _Method(Recorded):
    clarity: dict[str, _Mean] = {}
    faithfulness: dict[str, dict[str, dict[str, Any]]] = {}
    sanity: _Sanity


class _Quality(Recorded):
    """What readers of `quality.json` rely on; see `sqlib.study.jobs.quality.measure_quality`."""

    parameters: dict[str, int | float] = {}
    fractions: list[float] = []
    methods: dict[str, dict[str, _Method]]
    random_curves: dict[str, dict[str, list[float]]] = {}
    agreement: dict[str, dict[str, dict[str, _Mean]]] = {}
    files: dict[str, str] = {}


def read_quality(path: Path) -> dict[str, Any]:
    """The content of a `quality.json`; SqlibError if it is missing, damaged or not as `measure_quality` writes it."""
    content = read_json(path)
    check_recorded(_Quality, content, path)
    return content


class QualityValues:
    """The values of a study's measured runs, each file read once."""

    def __init__(self, study: Study, reports: Path):
        self.study, self.reports = study, Path(reports)
        self._tensors: dict[str, dict[str, np.ndarray]] = {}
        self._summaries: dict[str, dict[str, Any]] = {}

    def tensors(self, run: Run) -> dict[str, np.ndarray]:
        """The per-image values of a run by name; empty when it is not measured."""
        if run.id not in self._tensors:
            folder = run.folder(self.reports)
            there = (folder / "quality.safetensors").exists()
            self._tensors[run.id] = load_quality(folder) if there else {}
        return self._tensors[run.id]

    def summary(self, run: Run) -> dict[str, Any]:
        """`quality.json` of a run; empty when it is not measured."""
        if run.id not in self._summaries:
            path = run.folder(self.reports) / "quality.json"
            self._summaries[run.id] = read_quality(path) if path.exists() else {}
        return self._summaries[run.id]

    def measure(self, run: Run, images: int) -> None:
        """Measure the gradient maps of a run now, on few images, and keep the values here and nowhere else.

        For results that are published without their values per image. Needs the run's model; SqlibError without it.
        """
        from sqlib.data.loading import load
        from sqlib.measures.faithfulness import FRACTIONS
        from sqlib.study.jobs import quality
        from sqlib.training.examples import to_float

        model, data = load_model(run.folder(self.reports)), load(run.dataset)
        methods, random_curves, tensors = quality.measure_maps_of(model, data, run.seed, images, ("gradient",))
        seen, labels = to_float(data.test_images[:images]), data.test_labels[:images]
        agreement, alike = quality.agreement_with(self.study, run, self.reports, model, seen, labels)
        self._tensors[run.id] = {name: values.float().numpy() for name, values in (tensors | alike).items()}
        self._summaries[run.id] = {
            "parameters": {"images": images},
            "fractions": list(FRACTIONS),
            "methods": methods,
            "random_curves": random_curves,
            "agreement": agreement,
        }

    def measured(self) -> list[Run]:
        """The runs that have been measured, in the order of the study."""
        return [run for run in self.study.quality_runs() if self.tensors(run)]

    def rows(self, runs: Sequence[Run], name: str) -> list[np.ndarray]:
        """(images,) values of one quantity in each of these runs (seeds) that has it; sensitivities are capped."""
        found = [self.tensors(run)[name] for run in runs if name in self.tensors(run)]
        return [np.minimum(row, SENSITIVITY_CAP) for row in found] if name.endswith("/sensitivity") else found

    def interval(self, runs: Sequence[Run], name: str) -> Interval:
        """Mean and interval of `rows`."""
        return _interval(self.rows(runs, name))

    def agreements(self, runs: Sequence[Run], measure: str, surrogate: str = "straight_through") -> list[np.ndarray]:
        """(images,) agreement with each float run that these runs were compared with; for float runs, the ceiling."""
        end = f"/{surrogate}/{measure}"
        tensors = [self.tensors(run) for run in runs]
        return [
            found[name] for found in tensors for name in found if name.startswith("agreement/") and name.endswith(end)
        ]

    def agreement(self, runs: Sequence[Run], measure: str, surrogate: str = "straight_through") -> Interval:
        """Mean and interval of `agreements`; of float runs no interval, since their pairs share seeds."""
        found = _interval(self.agreements(runs, measure, surrogate))
        return replace(found, low=math.nan, high=math.nan) if runs and runs[0].setup.is_float else found


def columns_of(run: Run) -> dict[str, Any]:
    """What names a run in a table: dataset, network, setup, training, seed."""
    return {
        "dataset": run.dataset, "network": run.network, "setup": run.setup.name, "training": run.training, "seed": run.seed,
    }  # fmt: skip


def counted(rows: Sequence[np.ndarray]) -> str:
    """How many values there are, such as '3 × 425 to 453': seeds x images that have one (their maps are alive)."""
    counts = [int((~np.isnan(row)).sum()) for row in rows]
    if not counts:
        return "–"
    low, high = min(counts), max(counts)
    return f"{len(counts)} × {low:,}" + (f" to {high:,}" if high > low else "")


def _interval(rows: list[np.ndarray]) -> Interval:
    if not rows:
        return Interval(math.nan, math.nan, math.nan, 0, 0, math.nan, math.nan)
    return bootstrap(np.stack(rows))


def groups(runs: Sequence[Run]) -> dict[tuple[str, str, str, str], list[Run]]:
    """Runs that differ only in their seed: (dataset, network, setup, training) -> runs."""
    found: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        *key, _ = columns_of(run).values()
        found.setdefault(tuple(key), []).append(run)
    return found


def family(
    values: QualityValues, measures: Sequence[Measure], kind: str = GRADIENT
) -> "tuple[pandas.DataFrame, pandas.DataFrame]":
    """(table to show, table to compute with) of some measures, a row for each data set, network, setup and training.

    kind: `<method>/<surrogate>`, or `agreement` for the agreement with the float runs. Shown: "mean [low, high]" and n as
    seeds x images with a value; for the ceiling, whose pairs share seeds, the mean and in round brackets the pairs'
    range. The other one has a row a group and measure: effect, low, high, n_seeds, n_images.
    """
    import pandas

    shown, long = [], []
    for (dataset, network, setup, training), runs in groups(values.measured()).items():
        alike = kind == "agreement"
        ceiling = alike and runs[0].setup.is_float
        name = f"{setup}: the ceiling" if ceiling else setup
        line = {
            "dataset": dataset_title(dataset),
            "network": network,
            "setup": name,
            "training": training_title(training),
        }
        cells = {}
        for measure in measures:
            name = measure.name if alike else f"{kind}/{measure.name}"
            rows, found = (
                (values.agreements(runs, name), values.agreement(runs, name)) if alike
                else (values.rows(runs, name), values.interval(runs, name))
            )  # fmt: skip
            line["n"] = counted(rows)
            cells[measure.heading] = cell(found, measure.decimals)
            if ceiling and len(rows) > 1:
                ends = sorted(float(np.nanmean(row)) for row in rows)
                cells[measure.heading] += f" ({ends[0]:.{measure.decimals}f} to {ends[-1]:.{measure.decimals}f})"
            long.append(
                {
                    "dataset": dataset, "network": network, "setup": setup, "training": training,
                    "measure": f"{kind}/{measure.name}", "mean": found.effect, "low": found.low, "high": found.high,
                    "n_seeds": found.n_seeds, "n_images": found.n_images,
                }
            )  # fmt: skip
        if any(text != "–" for text in cells.values()):
            shown.append({**line, **cells})
    return to_show(shown), pandas.DataFrame(long)


def cell(found: Interval, decimals: int = 3) -> str:
    """An interval as text, such as '0.512 [0.487, 0.537]'; without one the mean alone, '–' without any value."""
    if math.isnan(found.effect):
        return "–"
    text = f"{found.effect:.{decimals}f}"
    if not math.isnan(found.low):
        text += f" [{found.low:.{decimals}f}, {found.high:.{decimals}f}]"
    return text.replace("-", "−")


def flagged(values: QualityValues) -> "pandas.DataFrame":
    """One row for each run, method and surrogate: does the method react to the weights? (`sqlib.measures.sanity`)

    Columns: dataset, network, setup, training, seed, method, surrogate, spearman, spearman_foreground, flagged,
    flagged_foreground.
    """
    import pandas

    rows = []
    for run in values.measured():
        for method, kinds in values.summary(run)["methods"].items():
            for surrogate, found in kinds.items():
                sane = found["sanity"]
                means = {name: sane[name]["mean"] for name in ("spearman", "spearman_foreground")}
                flags = {name: sane[name] for name in ("flagged", "flagged_foreground")}
                rows.append({**columns_of(run), "method": method, "surrogate": surrogate, **means, **flags})
    return pandas.DataFrame(rows)
