"""Whether the explanations of one data set can be trusted: the numbers of notebook 8, from the measurements of its maps."""

import numpy as np
import pandas as pd

from sqlib.checked import SqlibError
from sqlib.files import read_json
from sqlib.maps.attribution import METHODS
from sqlib.maps.surrogates import SURROGATES
from sqlib.measures import DIRECTIONS, FILLS, row_of
from sqlib.report import quality_table
from sqlib.report.figures import pareto
from sqlib.report.quality_table import GRADIENT, QualityValues
from sqlib.report.sections import Report
from sqlib.report.words import training_title
from sqlib.study.claims import signed
from sqlib.study.results import read_result

LOOK = 50
"""Images on which maps are measured at once where no values are kept."""
_SHORT = {
    "deletion_corner_gap": "deletion gap",
    "insertion_corner_gap": "insertion gap",
    "sanity_spearman_foreground": "likeness to random weights",
}
QUALITIES = {
    name: (_SHORT.get(name, row_of(name).title), row_of(name).better == "higher")
    for name in (
        "gini", "foreground_lift", "deletion_corner_gap", "insertion_corner_gap", "sensitivity", "sanity_spearman_foreground",
    )
}  # fmt: skip
"""Qualities of a map: their titles, and whether more is better."""


class Maps:
    """What was measured on the maps of a report's runs: its `runs`, `groups` of them that differ only in their seed.

    Where nothing is kept and the notebook was opened by hand (`looked`), the gradient maps of the first seed are measured now,
    on few images. SqlibError where nothing is measured.
    """

    def __init__(self, report: Report):
        study, planned = report.study, report.planned
        self.report = report
        self.values = QualityValues(
            study.model_copy(update={"datasets": [report.dataset], "networks": [report.network]}), report.folder
        )
        self.looked = not report.kept and not any(self.values.tensors(run) for run in planned)
        if self.looked:
            for run in planned:
                if run.seed == study.seeds[0] and (run.folder(report.folder) / "result.json").exists():
                    self.values.measure(run, LOOK)
        self.runs = [run for run in planned if self.values.tensors(run)]
        if not self.runs:
            see = f"see `quality:` in params/{study.name}.yaml"
            raise SqlibError(f"{report.folder}: the maps of no run on {report.dataset} have been measured; {see}")
        self.groups = {key[2:]: runs for key, runs in quality_table.groups(self.runs).items()}
        self.setups, self.trainings = (list(dict.fromkeys(key[i] for key in self.groups)) for i in (0, 1))
        self.seeds = len({run.seed for run in self.runs})
        self.images = self.values.summary(self.runs[0])["parameters"]["images"]
        self.fractions = self.values.summary(self.runs[0])["fractions"]
        self.reference, self.training = report.reference, self.trainings[0]
        first = {run.setup.name: run for run in reversed(self.runs)}
        self.fewest = min(self.setups, key=lambda setup: self.metric(first[setup], "weight_bytes"))
        self.ends = list(dict.fromkeys([self.reference, self.fewest]))

    def metric(self, run, name: str) -> float:
        """A number of the run itself."""
        return read_result(run.folder(self.report.folder))["metrics"][name]

    def of(self, setup: str) -> list:
        """The runs of a setup under the first training; none where none is measured."""
        return self.groups.get((setup, self.training), [])


def points(maps: Maps) -> pd.DataFrame:
    """A row a run: setup, training, seed, test accuracy, and the mean over its images of each of `QUALITIES`."""
    return pd.DataFrame(
        {
            "setup": run.setup.name,
            "training": run.training,
            "seed": run.seed,
            "test_accuracy": maps.metric(run, "test_accuracy"),
            **{name: float(np.nanmean(maps.values.tensors(run)[f"{GRADIENT}/{name}"])) for name in QUALITIES},
        }
        for found in maps.groups.values()
        for run in found
    )


def fronts(points: pd.DataFrame) -> dict[str, list[str]]:
    """For each of `QUALITIES` what the Pareto front of the means holds ('w2a2 standard'), from the worse maps to the better."""
    means = points.groupby(["setup", "training"], sort=False).mean(numeric_only=True)
    names = [f"{setup} {training_title(training)}" for setup, training in means.index]
    return {
        name: [names[i] for i in pareto(zip(means[name] if more else -means[name], means["test_accuracy"]))]
        for name, (_, more) in QUALITIES.items()
    }


def fill_curves(maps: Maps) -> dict[tuple[str, str], dict[str, tuple]]:
    """(direction, fill) -> setup -> (accuracy by fraction in the map's order, in a random one), means over seeds."""
    found = {}
    for direction in DIRECTIONS:
        for fill in FILLS:
            found[direction, fill] = curves = {}
            for setup in maps.setups:
                if parts := [maps.values.summary(run) for run in maps.of(setup)]:
                    kinds = [part["methods"]["gradient"]["straight_through"]["faithfulness"] for part in parts]
                    salient = [kind[fill][direction]["curve"] for kind in kinds]
                    random = [part["random_curves"][fill][direction] for part in parts]
                    curves[setup] = np.mean(salient, axis=0), np.mean(random, axis=0)
    return found


def faithfulness_verdict(gaps: pd.DataFrame) -> str:
    """Whether every gap (rows of `quality_table.family`) is above 0 with its whole interval, and where not."""
    useless = gaps[~(gaps["low"] > 0)]
    if gaps["low"].isna().all():
        return "One seed gives no interval, so nothing is judged here."
    if useless.empty:
        everywhere = "in every setup, training, fill and direction the map knows more than chance"
        return f"Every gap is above 0 with its whole interval: {everywhere}."
    if len(useless) <= 4:
        where = "; ".join(
            f"{row.setup} {training_title(row.training)} ({row.measure.split('/')[-1].replace('_', ' ')})"
            for row in useless.itertuples()
        )
    else:
        where = ", ".join(f"{setup} {n}" for setup, n in useless.groupby("setup", sort=False).size().items())
    return f"{len(useless)} of {len(gaps)} gaps are not above 0 with their whole interval: {where}."


# ---- networks that may learn again ---------------------------------------------------------------------------------


def read_roar(report: Report) -> dict | None:
    """What ROAR measured on the report's data set; None where it did not."""
    path = report.folder / "results" / f"roar_{report.dataset}.json"
    return read_json(path) if path.exists() else None


def roar_table(roar: dict) -> pd.DataFrame:
    """A row an explained network and one for the random order: accuracy by what is removed and the gap, all in %."""
    removed = [f"{100 * fraction:.0f}% removed" for fraction in roar["fractions"]]

    def row(name: str, accuracy: list) -> dict:
        return {"explained network": name} | dict(zip(removed, 100 * np.mean(accuracy, axis=0)))

    rows = [
        row(f"{run['setup']}, {training_title(run['training'])}, seed {run['seed']}", run["accuracy"])
        | {
            "gap, points ↑": 100 * np.mean(run["gap"]),
            "smallest and largest": f"{100 * min(run['gap']):+.1f}, {100 * max(run['gap']):+.1f}".replace("-", "−"),
        }
        for run in roar["explained"].values()
    ]
    return pd.DataFrame([*rows, row("random order", roar["random"])])


def roar_sides(roar: dict, table: pd.DataFrame) -> tuple[str, str]:
    """The explained networks that beat a random order with every retrained seed, and those that it beats: names or 'none'."""
    gaps = list(zip(table["explained network"], (run["gap"] for run in roar["explained"].values())))
    return (
        "; ".join(name for name, gap in gaps if min(gap) > 0) or "none",
        "; ".join(name for name, gap in gaps if max(gap) < 0) or "none",
    )


def retraining_agrees(maps: Maps, roar: dict, gaps: pd.DataFrame) -> tuple[str, str, str] | None:
    """(change of the gap from the reference to the fewest bits after retraining, by deletion alone, how the two compare).

    In points, under the first training; None where one of the four is not measured.
    """
    retrained = {(run["setup"], run["training"]): float(np.mean(run["gap"])) for run in roar["explained"].values()}
    deleted = gaps[gaps["measure"].str.endswith("deletion_corner_gap")].set_index(["setup", "training"])["mean"]
    here, there = ((setup, maps.training) for setup in (maps.reference, maps.fewest))
    if here == there or not all(key in found for found in (retrained, deleted.index) for key in (here, there)):
        return None
    by_retraining, by_deletion = retrained[there] - retrained[here], float(deleted[there] - deleted[here])
    agree = "agree in direction" if by_retraining * by_deletion > 0 else "**contradict each other**"
    return signed(100 * by_retraining, 1), signed(100 * by_deletion, 1), agree


# ---- the other methods ---------------------------------------------------------------------------------------------


def methods(maps: Maps, flags: pd.DataFrame) -> tuple[dict[tuple[str, str], pd.DataFrame], pd.DataFrame]:
    """({(setup, training): table to show, a row a method and surrogate}, table to compute with).

    Of the setups for which more than gradient maps are measured. flags: of `quality_table.flagged`.
    """
    shown, long = {}, []
    headings = {name: f"{title} {'↑' if more else '↓'}" for name, (title, more) in QUALITIES.items()}
    for (setup, training), found in maps.groups.items():
        kinds = {name.rsplit("/", 1)[0] for run in found for name in maps.values.tensors(run)}
        kinds = {tuple(kind.split("/")) for kind in kinds if not kind.startswith("agreement")}
        if len({method for method, _ in kinds}) == 1:
            continue
        rows = []
        for method, surrogate in sorted(kinds, key=lambda k: (list(METHODS).index(k[0]), SURROGATES.index(k[1]))):
            kind, cells = f"{method}/{surrogate}", {}
            for name, heading in headings.items():
                interval = maps.values.interval(found, f"{kind}/{name}")
                cells[heading] = quality_table.cell(interval, 2)
                ends = interval.effect, interval.low, interval.high
                long.append((setup, training, kind, name, *ends, interval.n_seeds, interval.n_images))
            same = flags[["setup", "training", "method", "surrogate"]] == [setup, training, method, surrogate]
            here, dead = flags[same.all(axis=1)], maps.values.interval(found, f"{kind}/dead").effect
            rows.append(
                {
                    "method": METHODS[method].title,
                    "surrogate": surrogate.replace("_", "-"),
                    "flagged": f"{here['flagged'].sum():.0f} / {here['flagged_foreground'].sum():.0f} of {len(here)}",
                    "dead, %": "–" if pd.isna(dead) else f"{100 * dead:.1f}",
                    **cells,
                    "n": quality_table.counted(maps.values.rows(found, f"{kind}/gini")),
                    "n, random": quality_table.counted(maps.values.rows(found, f"{kind}/sanity_spearman_foreground")),
                }
            )
        frame = pd.DataFrame(rows)
        shown[setup, training] = frame if len(kinds) > len(METHODS) else frame.drop(columns="surrogate")
    columns = ["setup", "training", "kind", "measure", "mean", "low", "high", "n_seeds", "n_images"]
    return shown, pd.DataFrame(long, columns=columns)


def best_method(methods: pd.DataFrame, measure: str, lower: bool = False) -> str:
    """The straight-through method with the best mean of a measure, and those whose intervals overlap its own; or 'none'.

    methods: rows of one setup and training.
    """
    here = methods[(methods["measure"] == measure) & methods["kind"].str.endswith("straight_through")]
    here = here.dropna(subset="mean").sort_values("mean", ascending=lower)
    if here.empty:
        return "none"
    first, others = here.iloc[0], here.iloc[1:]
    others = others[(others["low"] <= first["high"]) & (others["high"] >= first["low"])]
    name, *names = (METHODS[kind.split("/")[0]].title for kind in [first["kind"], *others["kind"]])
    return name + (f" (not told apart from {', '.join(names)})" if names else "")


def best_methods(maps: Maps, methods: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """(setup, most faithful by deletion, by insertion, the calmest) of each setup, under the first training."""
    here = methods[methods["training"] == maps.training].groupby("setup", sort=False)
    faithful = ("deletion_corner_gap", "insertion_corner_gap")
    return [
        (setup, *(best_method(part, measure) for measure in faithful), best_method(part, "sensitivity", lower=True))
        for setup, part in here
    ]


def what_the_clip_hides(maps: Maps, methods: pd.DataFrame) -> str:
    """What the reference and the fewest bits have of two measures under both surrogates, in words; "" where one is missing."""
    found = []
    for name, title in (("gini", "Gini"), ("deletion_corner_gap", "deletion gap")):
        at = methods[(methods["training"] == maps.training) & (methods["measure"] == name)]
        at = at.set_index(["setup", "kind"])["mean"]
        keys = [(maps.reference, GRADIENT), *((maps.fewest, f"gradient/{surrogate}") for surrogate in SURROGATES)]
        if maps.reference != maps.fewest and all(key in at.index for key in keys):
            base, clipped, opened = (float(at[key]) for key in keys)
            found.append(
                f"{title} {base:.3f} at {maps.reference}, {clipped:.3f} at {maps.fewest} with the straight-through surrogate,"
                f" {opened:.3f} unclipped"
            )
    return "; ".join(found)


def flagged_by_method(flags: pd.DataFrame, column: str) -> str:
    """How many networks and surrogates of each method are flagged in a column of `quality_table.flagged`; or 'none'."""
    sizes = flags[flags[column].astype(bool)].groupby("method").size()
    return ", ".join(f"{METHODS[method].title} ({n})" for method, n in sizes.items()) or "none"


def sanity_depths(maps: Maps) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """(setup -> method -> mean likeness after each layer lost its weights, the layers), of the two ends of the study."""
    depths, layers = {}, []
    for setup in maps.ends:
        by_method: dict[str, list] = {}
        for run in maps.of(setup):
            for method, kinds in maps.values.summary(run)["methods"].items():
                steps = kinds["straight_through"]["sanity"]["depths"]
                layers = [step["layer"] for step in steps]
                likeness = [step["spearman_foreground"]["mean"] for step in steps]
                by_method.setdefault(method, []).append([np.nan if v is None else v for v in likeness])
        depths[setup] = {m: np.nanmean(rows, axis=0) for m, rows in by_method.items() if not np.isnan(rows).all()}
    return depths, layers


def fully_random(depths: dict[str, dict[str, np.ndarray]]) -> list[tuple[str, str, str]]:
    """(setup, smallest, largest likeness over the methods) with all layers random, where a map is alive."""
    last = {setup: [values[-1] for values in found.values()] for setup, found in depths.items() if found}
    return [(s, *(f"{end:.2f}".replace("-", "−") for end in (min(v), max(v)))) for s, v in last.items()]


# ---- class by class, image by image --------------------------------------------------------------------------------


def classes(maps: Maps, likeness: pd.DataFrame, names: tuple[str, ...], labels: np.ndarray) -> pd.DataFrame:
    """A row a class: clarity, faithfulness and agreement, over seeds first, then over the (images,) of that label."""

    def by_class(rows) -> list[float]:
        return (
            pd.DataFrame(rows, columns=range(maps.images))
            .mean()
            .groupby(labels)
            .mean()
            .reindex(range(len(names)))
            .to_list()
        )

    def values(setup: str, name: str) -> list[float]:
        tensors = [maps.values.tensors(run) for run in maps.of(setup)]
        return by_class([found[f"{GRADIENT}/{name}"] for found in tensors if f"{GRADIENT}/{name}" in found])

    frame = pd.DataFrame({"class": names, "images": np.bincount(labels, minlength=len(names))})
    for setup in maps.ends:
        frame[f"Gini, {setup} ↑"] = values(setup, "gini")
        frame[f"deletion gap, {setup} ↑"] = values(setup, "deletion_corner_gap")
    frame[f"agreement of {maps.fewest} with {maps.reference} ↑"] = by_class(likeness)
    known = np.repeat(labels[None], len(likeness), 0)[likeness.notna().to_numpy()]
    frame["n of agreement"] = np.bincount(known, minlength=len(names))
    return frame


def class_ends(classes: pd.DataFrame, column: str) -> tuple[str, str] | None:
    """The two classes with the least and with the most of a column, '*7* (0.12) and *1* (0.20)'; None where none is known."""
    order = classes.dropna(subset=column).sort_values(column)
    if order.empty:
        return None
    ends = (order.head(2), order.tail(2)[::-1])
    return tuple(" and ".join(f"*{c}* ({v:.2f})" for c, v in zip(end["class"], end[column])) for end in ends)


def changed_images(maps: Maps, likeness: pd.DataFrame, most: int = 4) -> dict[str, list[int]]:
    """The images whose maps changed `most` and `least`, of those that every network gets right; {} without two of them."""
    alike, right = likeness.mean().to_numpy(), likeness.notna().all().to_numpy()
    if len(maps.ends) < 2 or not all(map(maps.of, maps.ends)) or not len(likeness) or right.sum() < 2:
        return {}
    order = [int(i) for i in np.argsort(np.where(right, alike, np.inf)) if right[i]]
    count = min(most, len(order) // 2)
    return {"most": order[:count], "least": order[-count:][::-1]}
