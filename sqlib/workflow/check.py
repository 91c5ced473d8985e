"""Fresh results against the published ones: what agrees, what moved, what is missing.

Two ways of comparing. On the same processor model, with the same versions, threads, parameters and code, a run must give
*identical* numbers, and the same weights. Anywhere else rounding differs in the last bit, training amplifies it, and a run
with the same seed is in effect a run with another one: then the means over seeds must agree within what seeds alone make of them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlib.checked import SqlibError, digest
from sqlib.measures import row_of
from sqlib.study.claims import read_claims
from sqlib.study.parameters import Run, Study
from sqlib.study.results import read_result

FAMILY_ERROR = 0.05
"""Chance that a study which differs by its seeds only is called different, over all its comparisons together."""

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Row:
    """One comparison: a run's metric (`how` = identical), or the mean over seeds of a group (seed spread, fixed).

    because: why the tolerance is what it is.
    """

    what: str
    metric: str
    how: str
    fresh: float
    published: float
    tolerance: float
    because: str

    @property
    def agrees(self) -> bool:
        both_absent = math.isnan(self.fresh) and math.isnan(self.published)
        return both_absent or abs(self.fresh - self.published) <= self.tolerance


@dataclass
class Report:
    """All comparisons, the runs that could not be compared, with the reason, verdicts that must not differ but do, and what
    else is worth saying."""

    rows: list[Row]
    missing: dict[str, str]
    verdicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def moved(self) -> list[Row]:
        """The comparisons that do not agree."""
        return [row for row in self.rows if not row.agrees]

    @property
    def different(self) -> bool:
        return bool(self.moved or self.verdicts)


def compare_studies(study: Study, fresh: Path, published: Path) -> Report:
    """Compare every run of `study` under two folders of reports. SqlibError when nothing can be compared."""
    if not (published / "runs").is_dir():
        raise SqlibError(f"{published} holds no published results")
    if not any((run.folder(fresh) / "result.json").exists() for run in study.runs()):
        raise SqlibError(f"{fresh} holds no results yet: `make reproduce STUDY={study.name}` makes them")
    rows, missing, alike, loose, every = [], {}, [], [], []
    for run in study.runs():
        try:
            theirs = read_result(run.folder(published))
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
        ours = read_result(run.folder(fresh))
        if ours["digest"] != theirs["digest"]:
            missing[run.id] = "made with other parameters"
            continue
        same = _same_conditions(ours, theirs)
        (alike if same else loose).append((run, ours["metrics"], theirs["metrics"]))
        if same and (model := theirs.get("files", {}).get(MODEL)):
            equal = float(ours.get("files", {}).get(MODEL) == model)
            rows.append(
                Row(run.id, "same_weights", "identical", equal, 1.0, 0.0, "SHA-256 of the model, same conditions")
            )
    if not alike and not loose:
        reasons = ", ".join(
            f"{reason}: {list(missing.values()).count(reason)}" for reason in dict.fromkeys(missing.values())
        )
        raise SqlibError(f"no run of study '{study.name}' can be compared with {published} ({reasons})")
    for run, ours, theirs in alike:
        for metric in theirs:
            if row_of(metric).family != "time":
                values = _number(ours, metric), _number(theirs, metric)
                rows.append(Row(run.id, metric, "identical", *values, 0.0, "same machine, versions and code"))
    rows += _by_seed_spread([(run, ours) for run, ours, _ in loose], every)
    notes = []
    known = {run.id for run in study.runs()}
    more = [path.parent for path in (published / "runs").glob("*/*/*/*/seed*/result.json")]
    more = [path for path in more if path.relative_to(published / "runs").as_posix() not in known]
    if more:
        notes.append(
            f"published, but not part of this study: {len(more)} runs, {more[0].relative_to(published / 'runs')}"
        )
    effects, verdicts = _claims(fresh, published)
    if missing or loose:  # other numbers: near its limit a verdict may fall the other way
        notes += [f"another verdict: {words}" for words in verdicts]
        verdicts = []
    else:
        rows += effects
    return Report(rows, missing, verdicts, notes)


def _claims(fresh: Path, published: Path) -> tuple[list[Row], list[str]]:
    """The effects behind the claims that both sides have judged, and in words the verdicts that differ."""
    paths = [folder / "results/claims.json" for folder in (fresh, published)]
    if not all(path.exists() for path in paths):
        return [], []
    ours, theirs = (
        {" ".join((row["id"], row["dataset"], row.get("network", ""))): row for row in read_claims(path)}
        for path in paths
    )
    rows, verdicts = [], []
    for name in [name for name in ours if name in theirs]:
        a, b = ours[name], theirs[name]
        rows.append(Row(name, "effect of claim", "identical", a["effect"], b["effect"], 0.0, "from the same runs"))
        if a["verdict"] != b["verdict"]:
            verdicts.append(f"{name}: {a['verdict']}, published: {b['verdict']}")
    return rows, verdicts


def _same_conditions(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two results must be equal bit for bit: code, processor, versions and threads are the same."""
    a, b = ours["provenance"], theirs["provenance"]
    keys = ("cpu", "cpu_version", "device", "platform", "python", "threads", "precision", "data")
    names = ("torch", "numpy", "captum", "scipy", "scikit-image")
    packages = [{name: (p.get("packages") or {}).get(name) for name in names} for p in (a, b)]
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
    metrics = [name for name in published[0][1] if row_of(name).family != "time"]
    spread = [name for name in metrics if row_of(name).family != "cost"]

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
    gaps, all_gaps = (grouped[metrics].count().lt(grouped.size(), axis=0) for grouped in (ours, theirs))
    rows = []
    for group in counts.index:
        df = int(freedom.loc[group[:2]])
        for name in metrics:
            values = float(means.loc[group, name]), float(all_means.loc[group, name])
            if gaps.loc[group, name] and not all_gaps.loc[group, name]:  # a mean over the other seeds would hide it
                values = math.nan, values[1]
            if name not in spread:
                rows.append(Row("/".join(group), name, "fixed", *values, 0.0, "follows from network and setup"))
                continue
            tolerance, because = row_of(name).resolution or (0.0, "no spread among the published seeds")
            if df > 0:
                t = stats.t.ppf(1 - FAMILY_ERROR / (len(counts) * len(spread)) / 2, df)
                noise = float(pooled.loc[group[:2], name]) * math.sqrt(1 / counts[group] + 1 / all_counts[group])
                if t * noise > tolerance:
                    tolerance = t * noise
                    because = f"{counts[group]} seeds against {all_counts[group]}, t = {t:.2f}"
            rows.append(Row("/".join(group), name, "seed spread", *values, tolerance, because))
    return rows


def tolerances(study: Study, published: Path) -> dict[tuple[str, str], float]:
    """By data set and metric: how far the mean over as many seeds as were published may lie from the published one, elsewhere."""
    results = [(run, read_result(run.folder(published))["metrics"]) for run in study.runs()]
    rows = _by_seed_spread(results, results)
    return {(row.what.split("/")[0], row.metric): row.tolerance for row in rows if row.how == "seed spread"}


def describe(report: Report) -> str:
    """The report as text: how was compared, what moved, what is missing, and a last line with the verdict."""
    lines = []
    for how, words in (
        ("identical", "same machine, versions and code: identity asked for"),
        ("seed spread", "other machine, versions or code: means over seeds, within what seeds alone make of them"),
        ("fixed", "follows from network and setup: equality asked for"),
    ):
        part = [row for row in report.rows if row.how == how]
        if part:
            lines.append(f"{sum(row.agrees for row in part)} of {len(part)} agree ({words})")
    lines += ["", *_by_metric(report.rows), ""]
    if report.moved:
        lines.append(f"{'moved':58} {'metric':20} {'fresh':>12} {'published':>12} {'tolerance':>12}")
        for row in report.moved:
            numbers = f"{row.fresh:>12.6g} {row.published:>12.6g} {row.tolerance:>12.3g}"
            lines.append(f"{row.what:58} {row.metric:20} {numbers}  {row.because}")
        lines.append("")
    lines += [f"another verdict: {words}" for words in report.verdicts] + report.notes
    if report.missing:
        lines.append(f"not compared: {len(report.missing)} runs")
        lines += [f"  {run_id}: {reason}" for run_id, reason in list(report.missing.items())[:10]]
        lines += [f"  and {len(report.missing) - 10} more"] * (len(report.missing) > 10)
    if report.different:
        verdicts = f", {len(report.verdicts)} verdicts changed" if report.verdicts else ""
        moved = f"{len(report.moved)} of {len(report.rows)} comparisons moved beyond their tolerance"
        lines.append(f"DIFFERENT: {moved}{verdicts}")
    else:
        lines.append("the same" + (", as far as there are results" if report.missing else ": everything agrees"))
    return "\n".join(lines)


def _by_metric(rows: list[Row]) -> list[str]:
    """A table: for each metric how many comparisons agree, and the one that is furthest out, with its tolerance and reason."""

    def share(row: Row) -> float:
        apart = abs(row.fresh - row.published)
        if row.agrees:
            return apart / row.tolerance if apart > 0 else 0.0
        return math.inf if math.isnan(apart) or not row.tolerance else apart / row.tolerance

    lines = [f"{'metric':24} {'agree':>9} {'largest difference':>19} {'tolerance':>10}  reason of the tolerance"]
    for kind in dict.fromkeys((row.metric, row.how) for row in rows):
        part = [row for row in rows if (row.metric, row.how) == kind]
        worst = max(part, key=share)
        agree, apart = f"{sum(row.agrees for row in part)}/{len(part)}", abs(worst.fresh - worst.published)
        apart = "none" if worst.agrees and not apart > 0 else "no number" if math.isnan(apart) else f"{apart:.3g}"
        lines.append(f"{kind[0]:24} {agree:>9} {apart:>19} {worst.tolerance:>10.3g}  {worst.because}")
    return lines
