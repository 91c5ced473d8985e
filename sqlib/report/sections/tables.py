"""What each bit taken away costs, in accuracy, in the quality of the maps, and in memory: the numbers of notebook 5."""

import pandas as pd

from sqlib.data.datasets import dataset_title
from sqlib.measures import family
from sqlib.report import quality_table
from sqlib.report.quality_table import GRADIENT, QualityValues
from sqlib.report.runs_table import in_words, paired
from sqlib.report.sections import Report
from sqlib.report.words import training_title

CONTROLS = {
    "agreement": (
        "Agreement with the float network of the same seed", ["agreement"], "agreement",
        "The ceiling: pairs of float networks that differ only in their seed, their mean and range. It is no upper bound:"
        " networks of the same seed start from the same weights, pairs of different seeds do not",
    ),
    "fills": (
        "Faithfulness: gap between the map's order and a random one", ["fills"], GRADIENT,
        "0 when the map knows no more than chance, at most the random order's area, below 0 worse than chance",
    ),
    "sanity": (
        "Robustness and sanity", ["robustness", "sanity"], GRADIENT,
        "Sensitivity: the largest change under 10 random changes of every pixel by at most 0.02. Flagged: networks whose mean"
        " Spearman with random weights is above 0.5, on the whole map / among bright pixels",
    ),
}  # fmt: skip
"""The tables of measurements with controls: title, families of measures, kind of map, and what a reader must know of it."""
COST = {
    "float_weight_bytes": ("float weights, kB", 1000, "{:,.1f}"),
    "weight_bytes": ("weights, kB", 1000, "{:,.1f}"),
    "ratio": ("times smaller than float", 1, "{:.1f}"),
    "macs": ("MACs, M", 1e6, "{:.2f}"),
    "bit_operations": ("bit operations, M", 1e6, "{:,.0f}"),
    "peak_activation_bytes": ("peak activations, kB", 1000, "{:.1f}"),
    "packed_bytes": ("packed file, kB", 1000, "{:,.1f}"),
}
"""Columns of Table 3: heading, what a value is divided by, and how it is written."""


def from_to(place: Report) -> tuple[float, float, float, float] | None:
    """(accuracy at the reference, at the fewest bits, gap there and there), means of the first training; None without both."""
    here = place.runs[place.runs["training"] == place.trainings[0]]
    mean = here.groupby("setup")[["test_accuracy", "faithfulness_gap"]].mean()
    ends = [place.reference, place.fewest]
    return tuple(mean.loc[ends].to_numpy().T.flatten().tolist()) if set(ends) <= set(mean.index) else None


def lowest_accuracy(place: Report) -> list[tuple[str, str, str]]:
    """(training, the setup that costs most accuracy against the reference, how much in words) for each training."""
    found = []
    for training in place.trainings:
        cost = {s: paired(place.runs, "test_accuracy", s, training, place.reference) for s in place.setups}
        cost = {setup: values for setup, values in cost.items() if setup != place.reference and len(values)}
        if cost:
            worst = min(cost, key=lambda setup: cost[setup].mean())
            found.append((training_title(training), worst, in_words(cost[worst], 2, 100, " points")))
    return found


def worth_of_training(place: Report) -> list[tuple[str, pd.Series]]:
    """(training, points of accuracy by setup that training with the bits gains over rounding afterwards), where it is known."""
    if "post_training_accuracy" not in place.runs:
        return []
    gain = 100 * (place.runs["test_accuracy"] - place.runs["post_training_accuracy"])
    gain = gain.groupby([place.runs["training"], place.runs["setup"]], sort=False).mean().dropna()
    return [(training_title(t), part.droplevel(0)) for t, part in gain.groupby(level=0, sort=False)]


def controls(values: QualityValues) -> dict[str, tuple[str, pd.DataFrame, pd.DataFrame, str]]:
    """Name -> (title, table to show, table to compute with, note) of each of `CONTROLS`."""
    found = {}
    for name, (title, families, kind, remark) in CONTROLS.items():
        measures = [row for each in families for row in family(each)]
        shown, long = quality_table.family(values, measures, kind)
        if name == "sanity" and len(shown):
            shown.insert(list(shown.columns).index("n"), "flagged", _flagged_of(shown, gradient_flags(values)))
        said = [f"{m.heading[0].upper()}{m.heading[1:]}: {m.meaning}" for m in measures if name != "fills"]
        found[name] = title, shown, long, ". ".join(["Mean [95% interval]; n: seeds × images", *said, remark]) + "."
    return found


def gradient_flags(values: QualityValues) -> pd.DataFrame:
    """The rows of `quality_table.flagged` that are about straight-through gradients."""
    flags = quality_table.flagged(values)
    return flags[(flags["method"] == "gradient") & (flags["surrogate"] == "straight_through")]


def _flagged_of(shown: pd.DataFrame, flags: pd.DataFrame) -> list[str]:
    """'1 / 0 of 3' for each row of a table: networks flagged on the whole map, among bright pixels, of all."""
    by = [flags["dataset"].map(dataset_title), flags["setup"], flags["training"].map(training_title)]
    sums = flags.groupby(by)[["flagged", "flagged_foreground"]].agg(["sum", "size"])
    rows = (sums.loc[key] for key in shown[["dataset", "setup", "training"]].itertuples(index=False, name=None))
    return [f"{row.iloc[0]:.0f} / {row.iloc[2]:.0f} of {row.iloc[1]:.0f}" for row in rows]


def agreement(place: Report, families: pd.DataFrame) -> list[tuple[str, str]]:
    """(training, Spearman's correlation with the reference by setup and, where it is known, the ceiling, in words)."""
    here = families[(families["dataset"] == place.dataset) & (families["network"] == place.network)]
    rho, found = here[here["measure"] == "agreement/spearman"].set_index(["training", "setup"])["mean"], []
    for training in place.trainings:
        known = rho.get(training, pd.Series(dtype=float)).dropna()
        others = known.drop(place.reference, errors="ignore")
        words = ", ".join(f"{setup} {value:.2f}" for setup, value in others.items())
        if place.reference in known:
            words += f"; the ceiling is {known[place.reference]:.2f}"
        if len(others):
            found.append((training_title(training), words))
    return found


def cost(report: Report) -> tuple[pd.DataFrame, dict[str, str], pd.DataFrame]:
    """(table to show, formats of its columns, table to compute with): a row a network and setup; seconds are means over seeds."""
    runs = report.runs
    columns = [name for name in COST if name in runs and runs[name].notna().any()]
    long = runs.groupby(["network", "setup"], sort=False)[columns].first().reset_index()
    long["ratio"] = long["float_weight_bytes"] / long["weight_bytes"]
    shown, formats = long[["network", "setup"]].copy(), {}
    for name, (heading, divisor, form) in COST.items():
        if name in long:
            shown[heading], formats[heading] = long[name] / divisor, form
    for dataset in report.study.datasets:
        for training in report.study.trainings:
            part = runs[(runs["dataset"] == dataset) & (runs["training"] == training)]
            seconds = part.groupby(["network", "setup"])["train_seconds"].mean()
            title = "guided" if training == "saliency_guided" else training_title(training)
            heading = f"training s, {dataset_title(dataset)} {title}"
            formats[heading] = "{:,.0f}" if seconds.max() > 20 else "{:,.1f}"
            shown[heading] = seconds.reindex(pd.MultiIndex.from_frame(long[["network", "setup"]])).to_numpy()
    return shown.drop(columns="network") if len(report.study.networks) == 1 else shown, formats, long


def fewer_operations(smallest: pd.Series, long: pd.DataFrame, reference: str) -> float | None:
    """How many times fewer bit operations a row of `cost`'s table needs than the reference of its network; None without that."""
    base = long[(long["setup"] == reference) & (long["network"] == smallest["network"])]
    return base.iloc[0]["bit_operations"] / smallest["bit_operations"] if len(base) else None


def guided_seconds(runs: pd.DataFrame) -> pd.Series:
    """How many times as long guided training took as standard training, a value a pair of runs."""
    keys = ["dataset", "network", "setup", "seed"]
    pair = runs.pivot_table(index=keys, columns="training", values="train_seconds")
    pair = pair.reindex(columns=["standard", "saliency_guided"]).dropna()
    return pair["saliency_guided"] / pair["standard"]
