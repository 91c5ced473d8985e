"""Which parameters it should be: the numbers of notebook 7, from a sweep's trials and the rule that judges them."""

import math

import pandas as pd

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.report.sections import Report
from sqlib.study import sweeps
from sqlib.study.claims import signed
from sqlib.study.parameters import Study
from sqlib.study.sweeps import ON_VALIDATION, Comparison, Gain, Sweep, Trial


def collected(report: Report, name: str | None) -> tuple[Sweep, list[Trial], pd.DataFrame]:
    """(the sweep, its trials, a row a trained network). name: None is the first of the study that has been made as a whole.

    SqlibError where the study has no sweep, or one of its trials is not made.
    """
    study = report.study
    if name is None and not study.sweeps:
        raise SqlibError(f"study '{study.name}' has no sweep: name one in params/{study.name}.yaml")
    every = sweeps.trials_of(study) if name is None else []
    whole = [each for each in study.sweeps if all(t.is_current(report.folder) for t in every if t.sweep == each)]
    sweep = sweeps.load_sweep(name or (whole or study.sweeps)[0])
    wanted, found = sweeps.trials(study, sweep), sweeps.collect_trials(study, sweep, report.folder)
    made = set(zip(found["dataset"], found["variant"]))
    if len(made) < len(wanted):
        counts = f"{len(made)} of {len(wanted)} trials of sweep '{sweep.name}'"
        raise SqlibError(f"{report.folder}: {counts}; `make sweeps STUDY={study.name}` makes them")
    return sweep, wanted, found


def budget(study: Study, wanted: list[Trial]) -> tuple[int, str, bool]:
    """(training images of a trial, its epochs in words, whether that is another budget than the study's own runs have)."""
    examples = {trial.dataset: trial.runs[0] for trial in wanted}
    epochs = " and ".join(map(str, dict.fromkeys(run.epochs for run in examples.values())))
    own = {run.dataset: (run.parameters.images, run.epochs) for run in study.runs()}
    other = any((run.parameters.images, run.epochs) != own[dataset] for dataset, run in examples.items())
    return next(iter(examples.values())).parameters.images, f"{epochs} epoch{'s' * (epochs != '1')}", other


def interval(gain: Gain | tuple, digits: int, factor: float = 1) -> str:
    """'+0.12 [−0.03, +0.27]': mean and ends with their signs; without ends the mean alone, and '–' where nothing is known."""
    mean, low, high, *_ = gain
    ends = f" [{signed(factor * low, digits)}, {signed(factor * high, digits)}]" if math.isfinite(high - low) else ""
    return "–" if math.isnan(mean) else signed(factor * mean, digits) + ends


def judged(comparisons: list[Comparison], sweep: Sweep, datasets: list[str]) -> pd.DataFrame:
    """The table of every value against the default: gains with their intervals, on the worse data set where there are two."""
    clarity, rows = sweep.objective == "clarity", []
    for c in comparisons:
        row = {"parameter": c.factor.replace("_", " "), "value": c.value}
        row["accuracy gain, points"] = interval((c.gain, c.low, c.high), 2, 100)
        if len(datasets) > 1:
            row["points, worse data set"] = interval((c.worst_data_set, -math.inf, math.inf), 2, 100)
        row["Gini gain"] = interval((c.gini_gain, c.gini_low, c.gini_high), 3)
        if len(datasets) > 1 and clarity:
            row["Gini, worse data set"] = interval((c.gini_worst_data_set, -math.inf, math.inf), 3)
        row["most dead maps, %"] = f"{100 * c.most_dead_maps:.2f}"
        rows.append(row | {f"verdict (by {'Gini' if clarity else 'accuracy'})": c.verdict})
    return pd.DataFrame(rows)


def smallest_gain(comparisons: list[Comparison], sweep: Sweep) -> str:
    """How large a gain had to be to count, in a sentence: half an interval, in the median over the values."""
    clarity = sweep.objective == "clarity"
    widths = [c.gini_high - c.gini_low if clarity else c.high - c.low for c in comparisons]
    half = pd.Series(widths).median() / 2
    if not math.isfinite(half):
        return "One seed gives no interval: nothing could have been shown to be better."
    words = f"{half:.3f}" if clarity else f"{100 * half:.2f} points"
    return f"The smallest gain that would have counted: {words} (median over the values)."


def verdict(changed: dict[str, str], sweep: Sweep) -> str:
    """What follows from the values that the rule puts in place of defaults, in a sentence."""
    if not changed:
        return "The rule keeps every default of the study."
    if sweep.confirmed_by:
        decides = f"the sweep `{sweep.confirmed_by}` decides about them with the study's own budget"
        return f"The rule has candidates for other defaults; {decides}."
    text = "The rule asks for other values than the study's defaults: its parameters should be changed and the study run again."
    return text + " Each was moved alone; together they have not been tried." * (len(changed) > 1)


def ends(by_value: pd.Series, factor: float, form: str) -> tuple[str, str]:
    """The values with the highest and with the lowest mean, '0.7 (91.20%)'. form: of a number, such as '{:.2f}%'."""
    return tuple(f"{at} ({form.format(factor * by_value[at])})" for at in (by_value.idxmax(), by_value.idxmin()))


def most_dead(by_value: pd.Series) -> str:
    """Which value of a factor leaves the most dead maps, in words. by_value: mean dead-map rate by value."""
    if not by_value.max() > 0:
        return "no value leaves a dead map"
    return f"dead maps are most at {by_value.idxmax()} ({100 * by_value.max():.2f}% of the images)"


def choices(trials: pd.DataFrame, sweep: Sweep, comparisons: list[Comparison]) -> pd.DataFrame:
    """A row a data set: mean accuracy of baseline and default, and of the worst and the best choice that spends no bits."""
    out = {(c.factor, c.value) for c in comparisons if c.verdict in ("dead maps", "diverged")}
    name, first = next(iter(sweep.factors.items()))
    rows = []
    for dataset, here in trials.groupby("dataset", sort=False):
        means = here.groupby(["factor", "value"])["val_accuracy"].mean()
        free = [key for key in means.index if key[0] in sweep.factors and not sweep.factors[key[0]].spends_bits]
        free = means[[key for key in free if key not in out]]
        spent = [
            f" Spending bits ({factor.title.lower()}: {means[each].idxmax()}) changes the default's accuracy by"
            f" {signed(100 * (means[each].max() - means[name, first.default]), 2)} points."
            for each, factor in sweep.factors.items()
            if factor.spends_bits
        ]
        worst, best = (f"{sweep.factors[f].title.lower()}: {value}" for f, value in (free.idxmin(), free.idxmax()))
        rows.append(
            {
                "dataset": dataset, "baseline": means[sweeps.BASELINE, sweeps.BASELINE], "default": means[name, first.default],
                "worst": free.min(), "best": free.max(), "choices": len(free), "bits": "".join(spent),
                "worst_choice": worst, "best_choice": best,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def against_baseline(trials: pd.DataFrame, sweep: Sweep, changed: dict[str, str]) -> list[dict]:
    """For each data set, of the default and of each value that replaces one: gains over the baseline, means, and time."""
    name, first = next(iter(sweep.factors.items()))
    who = {"default": (name, first.default)}
    who |= {f"{factor.replace('_', ' ')} {value}": (factor, value) for factor, value in changed.items()}
    found = []
    for dataset in dict.fromkeys(trials["dataset"]):
        base = sweeps.networks(trials, sweeps.BASELINE, sweeps.BASELINE).loc[[dataset]]
        for what, place in who.items():
            here = sweeps.networks(trials, *place).loc[[dataset]]
            gains = {name: sweeps.paired_gain(here, base, measure) for name, measure in sweeps.OBJECTIVES.items()}
            before, after = (part[list(ON_VALIDATION)].mean().to_dict() for part in (base, here))
            found.append(
                {"dataset": dataset, "what": what, "seconds_ratio": (here["seconds"] / base["seconds"]).mean()}
                | {f"baseline_{key}": value for key, value in before.items()}
                | after
                | gains
            )
    return found


def change(gain: Gain, digits: int, factor: float, unit: str, seeds: str) -> str:
    """A gain over the baseline in words: falls or rises by how much, and whether these seeds tell it from no change."""
    if math.isnan(gain.mean):
        return "**has no number**"
    told = "" if gain.low > 0 or gain.high < 0 else f", which {seeds} cannot tell from no change"
    return f"**{'falls' if gain.mean < 0 else 'rises'} by {factor * abs(gain.mean):.{digits}f}{unit}**{told}"


def baseline_table(answers: list[dict]) -> pd.DataFrame:
    """The rows of `against_baseline` as a table to show."""
    return pd.DataFrame(
        {
            "data set": dataset_title(row["dataset"]),
            "against the baseline": row["what"],
            "accuracy, points": interval(row["accuracy"], 2, 100),
            "Gini index": interval(row["clarity"], 3),
            "dead maps, %": f"{100 * row['baseline_val_dead_map_rate']:.2f} to {100 * row['val_dead_map_rate']:.2f}",
            "training time": f"× {row['seconds_ratio']:.1f}",
        }
        for row in answers
    )


def deadly(trials: pd.DataFrame, sweep: Sweep) -> str:
    """Which values leave more dead maps than the limit in at least one network, in a sentence."""
    dead = trials[(trials["val_dead_map_rate"] > sweep.most_dead_maps) & trials["factor"].isin(list(sweep.factors))]
    where = sorted(
        {f"{sweep.factors[factor].title.lower()}: {value}" for factor, value in zip(dead["factor"], dead["value"])}
    )
    if not where:
        return "No value tried here leaves more dead maps than the limit in any network."
    return f"Values that kill explanations in at least one network: {'; '.join(where)}."
