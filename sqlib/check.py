"""Fresh results against the published ones: what agrees, what moved, what is missing.

Two ways of comparing. On the same processor model, with the same versions, threads, parameters and code, a run must give
*identical* numbers. Anywhere else rounding differs in the last bit, training amplifies it, and a run with the same seed is in
effect a run with another one: then the means over seeds must agree within what seeds alone make of them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlib import runs
from sqlib.config import Run, SqlibError, Study, digest

FAMILY_ERROR = 0.05
"""Chance that a study which differs by its seeds only is called different, over all its comparisons together."""

TIMES = ("train_seconds",)
FIXED = ("weight_bytes", "float_weight_bytes", "macs", "bit_operations", "peak_activation_bytes")
"""Metrics that follow from network and setup: they must be equal everywhere."""

RESOLUTION = {"val_accuracy": 1 / 5_000, "test_accuracy": 1 / 10_000, "dead_map_rate": 0.005}
"""Smaller differences than these do not count: one image; for dead maps the limit the study allows itself."""


@dataclass(frozen=True)
class Row:
    """One comparison: a run's metric (`how` = identical), or the mean over seeds of a group (seed spread, fixed)."""

    what: str
    metric: str
    how: str
    fresh: float
    published: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        both_absent = math.isnan(self.fresh) and math.isnan(self.published)
        return both_absent or abs(self.fresh - self.published) <= self.tolerance


@dataclass
class Report:
    """All comparisons, and the runs that could not be compared, with the reason."""

    rows: list[Row]
    missing: dict[str, str]

    @property
    def moved(self) -> list[Row]:
        """The comparisons that do not agree."""
        return [row for row in self.rows if not row.agrees]


def compare_studies(study: Study, fresh: Path, published: Path) -> Report:
    """Compare every run of `study` under two folders of reports. SqlibError when nothing can be compared."""
    if not (published / "runs").is_dir():
        raise SqlibError(f"{published} holds no published results")
    rows, missing, alike, loose, every = [], {}, [], [], []
    for run in study.runs():
        try:
            theirs = runs.read_result(run.folder(published))
        except SqlibError:
            missing[run.id] = "not published"
            continue
        if theirs["digest"] != digest(run):
            missing[run.id] = "published with other parameters"
            continue
        every.append((run, theirs["metrics"]))
        if not (run.folder(fresh) / "result.json").exists():
            missing[run.id] = "not made yet"
            continue
        ours = runs.read_result(run.folder(fresh))
        if ours["digest"] != theirs["digest"]:
            missing[run.id] = "made with other parameters"
            continue
        (alike if _same_conditions(ours, theirs) else loose).append((run, ours["metrics"], theirs["metrics"]))
    if not alike and not loose:
        reasons = ", ".join(
            f"{reason}: {list(missing.values()).count(reason)}" for reason in dict.fromkeys(missing.values())
        )
        raise SqlibError(f"no run of study '{study.name}' can be compared with {published} ({reasons})")
    for run, ours, theirs in alike:
        for metric in theirs:
            if metric not in TIMES:
                rows.append(Row(run.id, metric, "identical", _number(ours, metric), _number(theirs, metric), 0.0))
    rows += _by_seed_spread([(run, ours) for run, ours, _ in loose], every)
    return Report(rows, missing)


def _same_conditions(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two results must be equal bit for bit: code, processor, versions and threads are the same."""
    a, b = ours["provenance"], theirs["provenance"]
    keys = ("cpu", "device", "platform", "python", "threads", "precision", "data")
    packages = [{name: p["packages"].get(name) for name in ("torch", "numpy", "captum")} for p in (a, b)]
    return (
        ours.get("sources") == theirs.get("sources")
        and packages[0] == packages[1]
        and all(a.get(key) == b.get(key) for key in keys)
    )


def _number(metrics: dict[str, Any], name: str) -> float:
    value = metrics.get(name)
    return math.nan if value is None else float(value)


def _by_seed_spread(fresh: list[tuple[Run, dict]], published: list[tuple[Run, dict]]) -> list[Row]:
    """Means over the seeds there are of each data set, network, setup and training.

    The tolerance of a metric is t x sd x sqrt(1 / n_fresh + 1 / n_published): sd is the published runs' standard deviation
    within such groups, pooled over a data set and network; t is Student's, two-sided, for `FAMILY_ERROR` shared by all
    comparisons. (Approximate: groups do not spread quite equally.)
    """
    import pandas
    from scipy import stats

    if not fresh:
        return []
    keys = ["dataset", "network", "setup", "training"]
    metrics = [name for name in published[0][1] if name not in TIMES]
    spread = [name for name in metrics if name not in FIXED]

    def grouped(results: list[tuple[Run, dict]]):
        return pandas.DataFrame(
            {
                **dict(zip(keys, (run.dataset, run.network, run.setup.name, run.training), strict=True)),
                **{name: _number(measured, name) for name in metrics},
            }
            for run, measured in results
        ).groupby(keys, sort=False)

    ours, theirs = grouped(fresh), grouped(published)
    counts, all_counts = ours.size(), theirs.size()
    place = ["dataset", "network"]
    freedom = (all_counts - 1).groupby(level=place).sum()
    squares = theirs[spread].var().fillna(0).mul(all_counts - 1, axis=0).groupby(level=place).sum()
    pooled = squares.div(freedom.where(freedom > 0), axis=0).pow(0.5)
    means, all_means = ours[metrics].mean(), theirs[metrics].mean()
    rows = []
    for group in counts.index:
        df = int(freedom.loc[group[:2]])
        for name in metrics:
            values = float(means.loc[group, name]), float(all_means.loc[group, name])
            if name in FIXED:
                rows.append(Row("/".join(group), name, "fixed", *values, 0.0))
                continue
            tolerance = RESOLUTION.get(name, 0.0)
            if df > 0:
                t = stats.t.ppf(1 - FAMILY_ERROR / (len(counts) * len(spread)) / 2, df)
                noise = float(pooled.loc[group[:2], name]) * math.sqrt(1 / counts[group] + 1 / all_counts[group])
                tolerance = max(tolerance, t * noise)
            rows.append(Row("/".join(group), name, "seed spread", *values, tolerance))
    return rows


def tolerances(study: Study, published: Path) -> dict[tuple[str, str], float]:
    """By data set and metric: how far the mean over as many seeds as were published may lie from the published one, elsewhere."""
    results = [(run, runs.read_result(run.folder(published))["metrics"]) for run in study.runs()]
    rows = _by_seed_spread(results, results)
    return {(row.what.split("/")[0], row.metric): row.tolerance for row in rows if row.how == "seed spread"}


def describe(report: Report) -> str:
    """The report as text: how was compared, what moved, what is missing, and a last line with the verdict."""
    lines = []
    for how, words in (
        ("identical", "same machine, versions and code: identity asked for"),
        ("seed spread", "other machine or versions: means over seeds, within what seeds alone make of them"),
        ("fixed", "follows from network and setup: equality asked for"),
    ):
        part = [row for row in report.rows if row.how == how]
        if part:
            lines.append(f"{sum(row.agrees for row in part)} of {len(part)} agree ({words})")
    if report.moved:
        lines += ["", f"{'moved':58} {'metric':20} {'fresh':>12} {'published':>12} {'tolerance':>12}"]
        for row in report.moved:
            numbers = f"{row.fresh:>12.6g} {row.published:>12.6g} {row.tolerance:>12.3g}"
            lines.append(f"{row.what:58} {row.metric:20} {numbers}")
        lines.append("")
    if report.missing:
        lines.append(f"not compared: {len(report.missing)} runs")
        lines += [f"  {run_id}: {reason}" for run_id, reason in list(report.missing.items())[:10]]
        lines += [f"  and {len(report.missing) - 10} more"] * (len(report.missing) > 10)
    if report.moved:
        lines.append(f"DIFFERENT: {len(report.moved)} of {len(report.rows)} comparisons moved beyond their tolerance")
    else:
        lines.append("the same" + (", as far as there are results" if report.missing else ": everything agrees"))
    return "\n".join(lines)
