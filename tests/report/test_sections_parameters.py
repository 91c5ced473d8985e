"""What the page of a sweep says, on planted trials: gains in words, the verdict, the best and the worst choice, the baseline."""

import math

import pandas as pd
import pytest

from sqlib.checked import SqlibError
from sqlib.report.sections import parameters
from sqlib.study import sweeps
from sqlib.study.sweeps import Comparison, Factor, Gain, Sweep

VALUES = {"1": {}, "10": {}, "30": {}}


@pytest.fixture
def sweep():
    clip = Factor(title="Clip", about="", default="10", values=VALUES)
    bits = Factor(title="Bits", about="", default="2-bit", values={"2-bit": {}, "8-bit": {}}, spends_bits=True)
    return Sweep(
        name="s",
        title="",
        setup="w2a2",
        baseline_setup="fp32",
        seeds=[0, 1],
        factors={"clip_start": clip, "bits": bits},
    )


@pytest.fixture
def trials():
    """Accuracies of two seeds: the baseline's 0.9, the default's 0.8, two other clips and eight bits."""
    places = {
        ("baseline", "baseline"): 0.9, ("clip_start", "10"): 0.8, ("bits", "2-bit"): 0.8, ("clip_start", "1"): 0.7,
        ("clip_start", "30"): 0.85, ("bits", "8-bit"): 0.82,
    }  # fmt: skip
    return pd.DataFrame(
        {
            "dataset": "mnist", "factor": factor, "value": value, "seed": seed, "val_accuracy": accuracy + 0.01 * seed,
            "val_gini": 0.5 + 0.1 * (factor == "baseline"), "val_dead_map_rate": 0.02 * (value == "30") * seed,
            "seconds": 10.0 + 10 * (factor != "baseline"),
        }
        for (factor, value), accuracy in places.items()
        for seed in (0, 1)
    )  # fmt: skip


def comparison(value="1", verdict="not better", half=0.01, gini_half=0.03):
    return Comparison("clip_start", value, -0.1, -0.1 - half, -0.1 + half, -0.12, 0.05, 0.05 - gini_half, 0.05 + gini_half,
                      0.04, 0.001, 2, verdict)  # fmt: skip


def test_what_is_not_there_is_an_error(report, monkeypatch):
    with pytest.raises(SqlibError, match=r"0 of 3 trials of sweep 'quick'; `make sweeps STUDY=smoke` makes them"):
        parameters.collected(report, None)
    report.study = report.study.model_copy(update={"sweeps": []})
    with pytest.raises(SqlibError, match="study 'smoke' has no sweep: name one"):
        parameters.collected(report, None)


def test_another_budget_than_the_studys_is_told(study):
    quick = sweeps.trials(study, sweeps.load_sweep("quick"))
    images, epochs, other = parameters.budget(study, quick)
    assert (images, epochs) == (quick[0].runs[0].parameters.images, "1 epoch") and other
    own = [sweeps.Trial("s", run.dataset, "v", (run,)) for run in study.runs()]
    assert parameters.budget(study, own) == (2000, "2 epochs", False)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.0012, -0.0003, 0.0027), "+0.12 [−0.03, +0.27]"),
        ((-0.01, -math.inf, math.inf), "−1.00"),
        ((math.nan, math.nan, math.nan), "–"),
    ],
)
def test_a_gain_stands_with_its_interval(gain, words):
    assert parameters.interval(gain, 2, 100) == words


def test_the_table_has_the_columns_that_its_rule_needs(sweep):
    clarity = sweep.model_copy(update={"objective": "clarity"})
    one, two = (parameters.judged([comparison()], sweep, datasets) for datasets in (["mnist"], ["mnist", "other"]))
    assert (
        not any("worse" in name for name in one)
        and "points, worse data set" in two
        and "Gini, worse data set" not in two
    )
    row = parameters.judged([comparison()], clarity, ["mnist", "other"]).iloc[0]
    assert (row["parameter"], row["Gini, worse data set"], row["verdict (by Gini)"]) == (
        "clip start",
        "+0.040",
        "not better",
    )


def test_the_smallest_gain_that_would_have_counted(sweep):
    found = [comparison(half=h, gini_half=h / 10) for h in (0.01, 0.02, 0.09)]
    assert "counted: 2.00 points (median" in parameters.smallest_gain(found, sweep)
    assert "counted: 0.002 (median" in parameters.smallest_gain(
        found, sweep.model_copy(update={"objective": "clarity"})
    )
    assert parameters.smallest_gain([comparison(half=math.inf)], sweep).startswith("One seed gives no interval")


def test_the_verdict_keeps_asks_or_waits(sweep):
    assert parameters.verdict({}, sweep) == "The rule keeps every default of the study."
    assert "other values" in parameters.verdict({"a": "1"}, sweep) and "together" not in parameters.verdict(
        {"a": "1"}, sweep
    )
    assert parameters.verdict({"a": "1", "b": "2"}, sweep).endswith("together they have not been tried.")
    assert "the sweep `full` decides" in parameters.verdict(
        {"a": "1"}, sweep.model_copy(update={"confirmed_by": "full"})
    )


def test_ends_and_dead_maps_of_a_factor():
    assert parameters.ends(pd.Series({"a": 0.5, "b": 0.25}), 100, "{:.1f}%") == ("a (50.0%)", "b (25.0%)")
    assert parameters.most_dead(pd.Series({"a": 0.0, "b": 0.0})) == "no value leaves a dead map"
    assert parameters.most_dead(pd.Series({"a": 0.0, "b": 0.3})) == "dead maps are most at b (30.00% of the images)"


def test_choices_leave_out_what_the_rule_puts_out_and_tell_bits_apart(sweep, trials):
    (row,) = parameters.choices(trials, sweep, []).itertuples()
    assert (row.worst_choice, row.best_choice, row.choices) == ("clip: 1", "clip: 30", 3)
    assert [row.baseline, row.default, row.worst, row.best] == pytest.approx([0.905, 0.805, 0.705, 0.855])
    assert row.bits == " Spending bits (bits: 8-bit) changes the default's accuracy by +2.00 points."
    (row,) = parameters.choices(trials, sweep, [comparison("30", "dead maps")]).itertuples()
    assert row.best_choice == "clip: 10"
    assert parameters.deadly(trials, sweep) == "Values that kill explanations in at least one network: clip: 30."
    assert parameters.deadly(trials.assign(val_dead_map_rate=0), sweep).startswith("No value tried here")


def test_the_default_and_what_replaces_it_are_held_against_the_baseline(sweep, trials):
    default, other = parameters.against_baseline(trials, sweep, {"clip_start": "30"})
    assert (default["what"], other["what"], default["seconds_ratio"]) == ("default", "clip start 30", 2)
    assert default["accuracy"].mean == pytest.approx(-0.1) and other["clarity"].mean == pytest.approx(-0.1)
    row = parameters.baseline_table([other]).iloc[0]
    assert row["dead maps, %"] == "0.00 to 1.00" and row["training time"] == "× 2.0" and row["data set"] == "MNIST"


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (Gain(0.02, 0.01, 0.03, 0), "**rises by 2.0 points**"),
        (Gain(-0.02, -0.03, 0.01, 0), "**falls by 2.0 points**, which 2 seeds cannot tell from no change"),
        (Gain(math.nan, 0, 0, 0), "**has no number**"),
    ],
)
def test_a_change_in_words(gain, words):
    assert parameters.change(gain, 1, 100, " points", "2 seeds") == words
