"""Sweeps: one parameter at a time moved away from the study's defaults, judged on validation images alone.

A sweep (`params/sweeps/<name>.yaml`) starts from the parameters of a study, on a smaller budget, and names factors with the
values to try. A trial is one variant on one data set, trained with every seed of the sweep. `decide` follows the written
rule by which a default would be changed.
"""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from sqlib.checked import SqlibError, Strict, digest, mistakes, nearest, short, validate
from sqlib.files import read_json, reading, to_json, touch, write_atomically
from sqlib.networks.architectures import check_network
from sqlib.places import PARAMS
from sqlib.study.origin import provenance
from sqlib.study.parameters import Run, Seeds, Study, check_name, load_setup
from sqlib.study.results import fault, read_result
from sqlib.study.sources import TRAIN, TRIAL, sources_of
from sqlib.study.yaml import read_yaml

if TYPE_CHECKING:
    import pandas

DEFAULT, BASELINE = "default", "baseline"
ON_VALIDATION = ("val_accuracy", "val_dead_map_rate", "val_gini")
OBJECTIVES = {"accuracy": "val_accuracy", "clarity": "val_gini"}
"""What a sweep's rule wants more of, and the measure of it."""


class Override(Strict):
    """What a variant changes: keys of a study's `training` section, and keys of a setup."""

    training: dict[str, Any] = Field(default_factory=dict)
    setup: dict[str, Any] = Field(default_factory=dict)


class Factor(Strict):
    """One parameter: its name for readers, what it does, its values by label, and which of them is the study's default.

    `trials` checks that the default's value is the study's, and that no other one is. spends_bits: its values differ in
    the bits of the network and not only in how well the same bits are used.
    """

    title: str
    about: str
    default: str
    values: dict[str, Override]
    spends_bits: bool = False

    @field_validator("values")
    @classmethod
    def _values(cls, values: dict[str, Override]) -> dict[str, Override]:
        for label in values:
            if not re.fullmatch(r"[A-Za-z0-9_.+-]+", label):
                raise ValueError(f"label '{label}': only letters, digits and . _ + - (it names files)")
        return values

    @model_validator(mode="after")
    def _default(self) -> "Factor":
        if self.default not in self.values or len(self.values) < 2:
            raise ValueError(f"values: needs two or more, the default '{self.default}' among them")
        return self


class Sweep(Strict):
    """`params/sweeps/<name>.yaml`.

    datasets: some of the study's, or none named for all of them. confirmed_by: another sweep of the study, which repeats
    what wins here with the study's own budget; until then it is a candidate, not a default. objective, most_dead_maps and
    most_accuracy_lost (only of clarity; a fraction) are the rule's: see `decide`.
    """

    name: str
    title: str
    datasets: list[str] = Field(default_factory=list)
    setup: str
    training: Literal["standard", "saliency_guided"] = "standard"
    baseline_setup: str
    baseline_training: Literal["standard", "saliency_guided"] = "standard"
    seeds: Seeds
    budget: dict[str, Any] = Field(default_factory=dict)
    confirmed_by: str | None = None
    objective: Literal["accuracy", "clarity"] = "accuracy"
    most_dead_maps: Annotated[float, Field(ge=0, le=1)] = 0.005
    most_accuracy_lost: Annotated[float, Field(ge=0, le=1)] = 0.005
    factors: dict[str, Factor]

    @model_validator(mode="after")
    def _complete(self) -> "Sweep":
        if len(set(self.datasets)) != len(self.datasets):
            raise ValueError("datasets: each only once")
        if self.objective == "accuracy" and "most_accuracy_lost" in self.model_fields_set:
            raise ValueError("most_accuracy_lost: only a sweep with 'objective: clarity' may lose accuracy")
        if not self.factors:
            raise ValueError("factors: needs at least one")
        for name in self.factors:
            if not re.fullmatch(r"[a-z0-9_]+", name) or name in (DEFAULT, BASELINE):
                raise ValueError(f"factors: '{name}': only a-z, 0-9 and _, and not '{DEFAULT}' or '{BASELINE}'")
        return self


@dataclass(frozen=True)
class Trial:
    """One variant on one data set: the runs of all seeds. `variant` is `default`, `baseline` or `<factor>=<label>`."""

    sweep: str
    dataset: str
    variant: str
    runs: tuple[Run, ...]

    @property
    def id(self) -> str:
        return f"{self.sweep}/{self.dataset}/{self.variant}"

    def path(self, reports: Path) -> Path:
        """Where its result is kept."""
        return Path(reports) / "sweeps" / f"{self.id}.json"

    def stamp_path(self, reports: Path) -> Path:
        """Where its input stamp is kept."""
        return Path(reports) / "stamps" / "sweeps" / f"{self.id}.json"

    def stamp(self) -> dict[str, Any]:
        """What its numbers depend on."""
        return {"runs": [digest(run) for run in self.runs], "sources": sources_of(TRIAL)}

    def is_current(self, reports: Path) -> bool:
        """Whether its result is there and belongs to its parameters and sources as they are now."""
        return self._stamped(reports) == self.stamp()

    def is_made(self, reports: Path) -> bool:
        """Whether its result is there and belongs to its parameters, by whatever code."""
        return (self._stamped(reports) or {}).get("runs") == self.stamp()["runs"]

    def _stamped(self, reports: Path) -> dict | None:
        try:
            return read_json(self.path(reports)).get("stamp")
        except SqlibError:
            return None


def load_sweep(name: str, params: Path | None = None) -> Sweep:
    """The sweep in `<params>/sweeps/<name>.yaml`; raises SqlibError (one line) for anything amiss."""
    check_name("sweep", name)
    path = Path(params or PARAMS) / "sweeps" / f"{name}.yaml"
    content = read_yaml(path)
    if "name" in content:
        raise SqlibError(f"{path.name}: unknown key 'name': a sweep is called after its file")
    return validate(Sweep, {**content, "name": name}, path)


def datasets_of(study: Study, sweep: Sweep) -> list[str]:
    """The data sets of a sweep, in the study's order; SqlibError if it names one that the study does not have."""
    for name in sweep.datasets:
        if name not in study.datasets:
            where = f"params/sweeps/{sweep.name}.yaml: datasets"
            raise SqlibError(f"{where}: study '{study.name}' has no '{short(name, 80)}'{nearest(name, study.datasets)}")
    return [name for name in study.datasets if name in (sweep.datasets or study.datasets)]


def trials(study: Study, sweep: Sweep) -> list[Trial]:
    """Every trial of a sweep over its data sets and the first network of a study; SqlibError if an override is wrong."""
    own = _Variant("budget", sweep.setup, sweep.training)
    variants = [_Variant(BASELINE, sweep.baseline_setup, sweep.baseline_training), own._replace(name=DEFAULT)]
    for name, factor in sweep.factors.items():
        others = {label: change for label, change in factor.values.items() if label != factor.default}
        variants += [own._replace(name=f"{name}={label}", change=change) for label, change in others.items()]
    found = []
    for dataset in datasets_of(study, sweep):
        _run(study, sweep, dataset, own, sweep.seeds[0])  # a mistake in the budget is said as one
        for variant in variants:
            runs = [_run(study, sweep, dataset, variant, seed) for seed in sweep.seeds]
            found.append(Trial(sweep.name, dataset, variant.name, tuple(runs)))
        plain = next(trial for trial in found if (trial.dataset, trial.variant) == (dataset, DEFAULT)).runs
        for name, factor in sweep.factors.items():
            default = own._replace(name=name, change=factor.values[factor.default])
            stated = _run(study, sweep, dataset, default, sweep.seeds[0])
            if stated != plain[0]:
                raise SqlibError(
                    f"params/sweeps/{sweep.name}.yaml: {name}: '{factor.default}' is called the default, but study "
                    f"'{study.name}' has another value ({_difference(plain[0], stated)})"
                )
        for trial in found:
            if trial.dataset == dataset and trial.variant not in (DEFAULT, BASELINE) and trial.runs == plain:
                raise SqlibError(f"params/sweeps/{sweep.name}.yaml: {trial.variant} changes nothing: it is the default")
    return found


def _difference(a: Run, b: Run) -> str:
    """The first value in which two runs differ, in words."""

    def flat(value: Any, at: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {at.removeprefix("."): value}
        return {key: part for name, inner in value.items() for key, part in flat(inner, f"{at}.{name}").items()}

    ours, theirs = flat(a.model_dump()), flat(b.model_dump())
    key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
    return f"{key.replace('parameters.', 'training.')}: {ours.get(key)}, not {theirs.get(key)}"


def trials_of(study: Study) -> list[Trial]:
    """Every trial of every sweep of a study. SqlibError where a sweep is to be confirmed by one that the study does not name."""
    found = []
    for name in study.sweeps:
        sweep = load_sweep(name)
        if sweep.confirmed_by is not None and sweep.confirmed_by not in study.sweeps:
            raise SqlibError(
                f"params/sweeps/{name}.yaml: confirmed_by: '{sweep.confirmed_by}' is no sweep of study '{study.name}'"
                f"{nearest(sweep.confirmed_by, study.sweeps)}"
            )
        found += trials(study, sweep)
    return found


def runs_in(study: Study, trial: Trial) -> list[str]:
    """Ids of the study's own runs that a trial consists of (at the study's own budget): they are made first."""
    own = {digest(run): run.id for run in study.runs()}
    return [own[digest(run)] for run in trial.runs if digest(run) in own]


def trial_of(study: Study, trial_id: str) -> Trial:
    """The trial with this id, `<sweep>/<dataset>/<variant>`; raises SqlibError."""
    name = trial_id.split("/")[0]
    if name not in study.sweeps:
        raise SqlibError(f"study '{study.name}' has no sweep '{name}'{nearest(name, study.sweeps)}")
    known = {trial.id: trial for trial in trials(study, load_sweep(name))}
    if trial_id not in known:
        raise SqlibError(f"sweep '{name}' has no trial '{trial_id}'{nearest(trial_id, known)}")
    return known[trial_id]


class _Variant(NamedTuple):
    name: str
    setup: str
    training: str
    change: Override = Override()


def _run(study: Study, sweep: Sweep, dataset: str, variant: _Variant, seed: int) -> Run:
    """The run of a variant; SqlibError, with the sweep's file and the variant, for a setup or a value that there is not."""
    file = f"params/sweeps/{sweep.name}.yaml"
    try:
        base = study.model_copy(update={"setups": [load_setup(variant.setup)]})
    except SqlibError as error:
        lines = (f"{file}: setup '{short(variant.setup, 80)}': {line}" for line in str(error).splitlines())
        raise SqlibError("\n".join(lines)) from None
    content = base.make_run(dataset, study.networks[0], variant.setup, variant.training, seed).model_dump()
    content["parameters"] = _merged(_merged(content["parameters"], sweep.budget), variant.change.training)
    content["setup"] = _merged(content["setup"], variant.change.setup)
    for key in ("epochs", "shift"):
        if isinstance(content["parameters"].get(key), dict):
            content["parameters"][key] = content["parameters"][key].get(dataset)
    content["epochs"] = content["parameters"]["epochs"]
    try:
        run = Run.model_validate(content)
        check_network(run.setup, run.network)
        return run
    except SqlibError as error:
        raise SqlibError(f"{file}: {variant.name}: {error}") from None
    except ValidationError as error:
        first = mistakes(Run, error)[0].replace("parameters.", "training.")
        raise SqlibError(f"{file}: {variant.name}: {first}") from None


def _merged(base: dict, change: dict) -> dict:
    """`base` with the values of `change` put over it, mapping by mapping."""
    both = [key for key in change if isinstance(base.get(key), dict) and isinstance(change[key], dict)]
    return {**base, **change, **{key: _merged(base[key], change[key]) for key in both}}


# ---- running -------------------------------------------------------------------------------------------------------


def run_trial(trial: Trial, reports: Path) -> bool:
    """Train a trial's runs and write its result atomically; False, and nothing done, if an up-to-date one is there.

    A run that the study has made is not trained again: the same parameters and seed give the same numbers.
    """
    from sqlib.data import loading
    from sqlib.training import loop

    if trial.is_current(reports):
        return False
    started, seeds = time.time(), []
    dataset = loading.load(trial.dataset)
    for run in trial.runs:
        try:
            history = made_by_study(run, reports) or loop.fit(run, dataset)[1]
            seeds.append({"seed": run.seed, "history": history})
        except SqlibError as error:  # a value with which training diverges is a finding, and no reason to stop
            seeds.append({"seed": run.seed, "diverged": str(error)})
    result = {
        "trial": trial.id,
        "runs": [run.model_dump(mode="json") for run in trial.runs],
        "stamp": trial.stamp(),
        "seeds": seeds,
        "provenance": provenance(started),
    }
    write_atomically(trial.path(reports), to_json(result))
    return True


def made_by_study(run: Run, reports: Path) -> list[dict[str, Any]] | None:
    """The history of a finished run of the study with these very parameters and today's code, or None."""
    folder = run.folder(reports)
    if fault(folder) is not None:
        return None
    result = read_result(folder)
    same = result["digest"] == digest(run) and result["sources"] == sources_of(TRAIN)
    return result["history"] if same else None


def settle(trial: Trial, reports: Path) -> None:
    """Take away a trial's result that is damaged or of other parameters or code; make one that is right, but older than its
    stamp (files copied, clock moved back), look new."""
    path = trial.path(reports)
    if not path.exists():
        return
    if not trial.is_current(reports):
        path.unlink()
    elif path.stat().st_mtime < trial.stamp_path(reports).stat().st_mtime:
        touch(path)


def collect_trials(study: Study, sweep: Sweep, reports: Path) -> "pandas.DataFrame":
    """One row a trained network: dataset, factor, value, variant, seed, `ON_VALIDATION`, mean clip, seconds.

    A network whose training diverged has NaN everywhere.

    The default stands under every factor, with that factor's label; the baseline has factor and value `baseline`.
    Trials not made yet, or made with other parameters, are left out.
    """
    import pandas

    rows = []
    for trial in trials(study, sweep):
        path = trial.path(reports)
        if not path.exists() or read_json(path).get("runs") != [run.model_dump(mode="json") for run in trial.runs]:
            continue
        if trial.variant == DEFAULT:
            places = [(name, factor.default) for name, factor in sweep.factors.items()]
        elif trial.variant == BASELINE:
            places = [(BASELINE, BASELINE)]
        else:
            places = [tuple(trial.variant.split("=", 1))]
        with reading(path):
            rows += [
                {**row, "dataset": trial.dataset, "factor": factor, "value": value, "variant": trial.variant}
                for row in map(_measured, read_json(path)["seeds"])
                for factor, value in places
            ]
    columns = ["dataset", "factor", "value", "variant", "seed", *ON_VALIDATION, "mean_clip", "seconds"]
    return pandas.DataFrame(rows, columns=columns)


def _measured(entry: dict[str, Any]) -> dict[str, float]:
    """Seed, `ON_VALIDATION`, mean clip and seconds of one trained network of a trial."""
    history = entry.get("history", [])
    last = history[-1] if history else {}
    clips = list(last.get("clips", {}).values())
    return {
        "seed": int(entry["seed"]),
        **{key: math.nan if last.get(key) is None else float(last[key]) for key in ON_VALIDATION},
        "mean_clip": float(sum(clips) / len(clips)) if clips else math.nan,
        "seconds": float(sum(epoch["seconds"] for epoch in history)),
    }


# ---- the rule ------------------------------------------------------------------------------------------------------


class Gain(NamedTuple):
    """A mean paired difference with its interval, and the smallest of the data sets' means."""

    mean: float
    low: float
    high: float
    worst_data_set: float


@dataclass(frozen=True)
class Comparison:
    """A value against the default, on validation: gains in accuracy (a fraction) and in Gini with intervals, and dead maps."""

    factor: str
    value: str
    gain: float
    low: float
    high: float
    worst_data_set: float
    gini_gain: float
    gini_low: float
    gini_high: float
    gini_worst_data_set: float
    most_dead_maps: float
    pairs: int
    verdict: Literal["better", "replaces", "not better", "costs bits", "costs accuracy", "dead maps", "diverged"]


def networks(table: "pandas.DataFrame", factor: str, value: str) -> "pandas.DataFrame":
    """A value's rows of `collect_trials`, by data set and seed."""
    part = table[(table["factor"] == factor) & (table["value"] == value)]
    return part.set_index(["dataset", "seed"]).sort_index()


def paired_gain(here: "pandas.DataFrame", base: "pandas.DataFrame", measure: str, tried: int = 1) -> Gain:
    """What the networks `here` have more of `measure` than those of `base`, paired by data set and seed.

    The interval is Student's t over the pairs, their spread taken within data sets, at 1 - 0.05 / tried (Bonferroni); it is
    infinite where no data set has two pairs. Pairs without a number (diverged, or all maps dead) are left out.
    """
    from scipy import stats

    gains = (here[measure] - base[measure]).dropna()
    by_data_set = gains.groupby(level="dataset")
    mean, half, freedom = gains.mean(), math.inf, len(gains) - by_data_set.ngroups
    if freedom > 0:
        spread = math.sqrt(((gains - by_data_set.transform("mean")) ** 2).sum() / freedom)
        half = stats.t.ppf(1 - 0.025 / tried, freedom) * spread / math.sqrt(len(gains))
    return Gain(mean, mean - half, mean + half, by_data_set.mean().min())


def decide(table: "pandas.DataFrame", sweep: Sweep) -> tuple[list[Comparison], dict[str, str]]:
    """Every value against the default, and the value the rule picks for each factor.

    The rule: values with more than `most_dead_maps` dead maps in any network, or with which training diverged, are out. So
    are, where the objective is clarity, values whose mean accuracy is on any data set more than `most_accuracy_lost` below
    the default's.
    A value replaces the default only if its objective (accuracy, or the Gini index of its maps), paired by data set and
    seed, is higher with an interval that excludes 0, and in the mean on no data set lower; of several such values the one
    with the largest mean. The interval is that of `paired_gain`, at 95% for the factor as a whole. If the default itself has
    too many dead maps, the value with the largest mean that is not out replaces it. A factor that spends bits keeps its
    default whatever its values gain: the name of a setup promises its bits. Raises SqlibError when a trial is missing, or
    the default diverged.
    """
    found, chosen = [], {}
    for name, factor in sweep.factors.items():
        base = networks(table, name, factor.default)
        if base.empty:
            raise SqlibError(f"sweep '{sweep.name}': the default has not been trained yet")
        if base["val_accuracy"].isna().any():
            raise SqlibError(f"sweep '{sweep.name}': training diverged with the default itself")
        chosen[name], best = factor.default, None
        for value in factor.values:
            if value == factor.default:
                continue
            here = networks(table, name, value)
            if not here.index.equals(base.index):
                raise SqlibError(f"sweep '{sweep.name}': {name}={value} has not been trained yet, or not everywhere")
            found.append(_against(here, base, name, value, len(factor.values) - 1, sweep))
            wins = found[-1].verdict in ("better", "replaces")
            mean = here[
                OBJECTIVES[sweep.objective]
            ].mean()  # in the order of the gains, and without a default's maps, too
            if wins and (best is None or mean > best):
                chosen[name], best = value, mean
    return found, chosen


def _against(here, base, factor: str, value: str, tried: int, sweep: Sweep) -> Comparison:
    """A value's networks against the default's, both indexed by data set and seed."""
    gains = {objective: paired_gain(here, base, measure, tried) for objective, measure in OBJECTIVES.items()}
    wanted, dead = gains[sweep.objective], here["val_dead_map_rate"].max()
    lost = -gains["accuracy"].worst_data_set if sweep.objective == "clarity" else 0
    if here["val_accuracy"].isna().any():
        verdict = "diverged"
    elif dead > sweep.most_dead_maps:
        verdict = "dead maps"
    elif lost > sweep.most_accuracy_lost + 1e-9:  # a loss of just the limit is none too much, however it was rounded
        verdict = "costs accuracy"
    elif base["val_dead_map_rate"].max() > sweep.most_dead_maps:
        verdict = "replaces"
    else:
        verdict = "better" if wanted.low > 0 and wanted.worst_data_set >= 0 else "not better"
    if verdict in ("better", "replaces") and sweep.factors[factor].spends_bits:
        verdict = "costs bits"
    return Comparison(factor, value, *gains["accuracy"], *gains["clarity"], dead, len(here), verdict)
