"""Sweeps: what a file may say, the trials it stands for, and the rule on tables whose outcome is known."""

import json
import os

import pandas as pd
import pytest
import yaml

from sqlib import sweeps
from sqlib.config import PARAMS, SqlibError, load_study

PLAIN = {
    "title": "T",
    "setup": "w2a2",
    "baseline_setup": "fp32",
    "seeds": [0, 1],
    "budget": {"images": 100, "epochs": 1},
    "factors": {
        "clip_start": {
            "title": "Start",
            "about": "A.",
            "values": {"1": {"training": {"clip": {"start": 1.0}}}, "10": {}},
        },
        "ends": {
            "title": "Ends",
            "about": "B.",
            "values": {"same": {}, "float": {"setup": {"first": {"weights": 32}, "last": {"weights": 32}}}},
        },
    },
}
STUDY = load_study("smoke").model_copy(update={"sweeps": ["s"]})


def loaded(tmp_path, **changes):
    (tmp_path / "sweeps").mkdir(exist_ok=True)
    (tmp_path / "sweeps/s.yaml").write_text(yaml.safe_dump({**PLAIN, **changes}))
    return sweeps.load_sweep("s", tmp_path)


def test_the_sweeps_in_params_are_valid_and_start_from_their_studies():
    for name in ("paper", "smoke"):
        study = load_study(name)
        for sweep_name in study.sweeps:
            sweep = sweeps.load_sweep(sweep_name)
            found = sweeps.trials(study, sweep)
            values = sum(len(factor.values) - 1 for factor in sweep.factors.values())
            assert len(found) == len({trial.id for trial in found}) == len(study.datasets) * (values + 2)
            for trial in found:
                if trial.variant == sweeps.DEFAULT:
                    for run in trial.runs:
                        assert run.parameters.clip == study.training.clip
                        assert run.setup == sweeps.load_setup(sweep.setup)


def test_a_variant_changes_what_it_says_and_nothing_else(tmp_path):
    trials = {trial.variant: trial for trial in sweeps.trials(STUDY, loaded(tmp_path)) if trial.dataset == "mnist"}
    assert set(trials) == {"baseline", "default", "clip_start=1", "ends=float"}
    plain = trials["default"].runs[1]
    assert (plain.seed, plain.epochs, plain.parameters.images, plain.parameters.epochs) == (1, 1, 100, 1)
    moved = trials["clip_start=1"].runs[1]
    assert moved.parameters.clip.start == 1.0 and moved.parameters.clip.penalty == plain.parameters.clip.penalty
    clip = plain.parameters.clip.model_copy(update={"start": 1.0})
    assert moved == plain.model_copy(update={"parameters": plain.parameters.model_copy(update={"clip": clip})})
    assert trials["ends=float"].runs[0].setup.bits("conv1", "lenet") == (32, 2)
    assert trials["ends=float"].runs[0].setup.bits("conv2", "lenet") == (2, 2)
    assert trials["baseline"].runs[0].setup.name == "fp32"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": []}, "seeds: needs at least one"),
        ({"factors": {}}, "factors: needs at least one"),
        ({"most_dead_maps": 2.0}, "most_dead_maps"),
        ({"sed": [0]}, "unknown key 'sed'"),
        ({"factors": {"default": PLAIN["factors"]["ends"]}}, "'default'"),
        ({"factors": {"f": {"title": "F", "about": "", "values": {"a": {}, "b": {}}}}}, "exactly one of them empty"),
        ({"factors": {"f": {"title": "F", "about": "", "values": {"a": {}, "../b": {"setup": {"x": 1}}}}}}, "label"),
    ],
)
def test_a_bad_sweep_is_one_clear_line(tmp_path, change, message):
    with pytest.raises(SqlibError, match=message) as caught:
        loaded(tmp_path, **change)
    assert "s.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"training": {"clip": {"begin": 1.0}}}, "clip.begin"),
        ({"training": {"clip": {"start": -1.0}}}, "clip.start"),
        ({"setup": {"first": {"weights": 17}}}, "setup.first.weights"),
        ({"setup": {"weight_method": "best"}}, "weight_method"),
    ],
)
def test_an_impossible_value_names_its_variant_and_key(tmp_path, override, message):
    sweep = loaded(tmp_path, factors={"f": {"title": "F", "about": "", "values": {"a": {}, "b": override}}})
    with pytest.raises(SqlibError, match=rf"f=b: .*{message}"):
        sweeps.trials(STUDY, sweep)


def test_unknown_names_are_told_with_the_nearest(tmp_path):
    with pytest.raises(SqlibError, match="quantisation"):
        sweeps.load_sweep("quantization", PARAMS)
    paper = load_study("paper")
    with pytest.raises(SqlibError, match="has no sweep 'x'"):
        sweeps.trial_of(paper, "x/mnist/default")
    with pytest.raises(SqlibError, match="clip_start=3"):
        sweeps.trial_of(paper, "quantisation/mnist/clip_start=33")


def test_a_trial_is_trained_once_and_again_only_when_it_changed(tmp_path):
    trial = next(t for t in sweeps.trials(STUDY, loaded(tmp_path, seeds=[3])) if t.id == "s/mnist/clip_start=1")
    path = trial.path(tmp_path)
    assert sweeps.run_trial(trial, path)
    first = path.read_bytes()
    assert not sweeps.run_trial(trial, path)
    assert path.read_bytes() == first
    result = json.loads(first)
    assert [entry["seed"] for entry in result["seeds"]] == [3]
    path.write_bytes(first[: len(first) // 2])  # half a file is not a result
    assert sweeps.run_trial(trial, path)
    again = json.loads(path.read_bytes())
    assert [h["val_accuracy"] for h in again["seeds"][0]["history"]] == [
        h["val_accuracy"] for h in result["seeds"][0]["history"]
    ]
    other = next(t for t in sweeps.trials(STUDY, loaded(tmp_path, seeds=[4])) if t.id == trial.id)
    assert not sweeps._is_current(other, path)


def test_a_current_result_older_than_its_stamp_is_made_to_look_new(tmp_path, monkeypatch):
    trial = next(t for t in sweeps.trials(STUDY, loaded(tmp_path)) if t.variant == "default")
    path, stamp = trial.path(tmp_path), trial.stamp_path(tmp_path)
    for file, content in ((path, {"stamp": trial.stamp()}), (stamp, trial.stamp())):
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    os.utime(path, (1, 1))
    sweeps.touch_if_current(trial, tmp_path)
    assert path.stat().st_mtime >= stamp.stat().st_mtime
    path.write_text(json.dumps({"stamp": "another"}))
    os.utime(path, (1, 1))
    sweeps.touch_if_current(trial, tmp_path)
    assert path.stat().st_mtime == 1


def write_trials(tmp_path, accuracy, dead=None):
    """Results with these validation accuracies by variant, the same on both data sets but for a fixed offset."""
    sweep = loaded(tmp_path, seeds=[0, 1, 2])
    for trial in sweeps.trials(STUDY, sweep):
        rows = []
        for i, run in enumerate(trial.runs):
            value = accuracy[trial.variant][i] + (0.05 if trial.dataset == "mnist" else 0)
            last = {
                "val_accuracy": value, "val_dead_map_rate": (dead or {}).get(trial.variant, 0.0), "val_gini": 0.5,
                "clips": {"conv1": 2.0, "conv2": 4.0}, "seconds": 1.5,
            }  # fmt: skip
            rows.append({"seed": run.seed, "history": [last]})
        path = trial.path(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seeds": rows}))
    return sweep, sweeps.collect_trials(STUDY, sweep, tmp_path)


FLAT = {"baseline": [0.9] * 3, "default": [0.80, 0.81, 0.82]}


def test_the_default_stands_under_every_factor(tmp_path):
    _, table = write_trials(tmp_path, {**FLAT, "clip_start=1": [0.8] * 3, "ends=float": [0.8] * 3})
    assert set(zip(table["factor"], table["value"], strict=True)) == {
        ("baseline", "baseline"), ("clip_start", "1"), ("clip_start", "10"), ("ends", "same"), ("ends", "float"),
    }  # fmt: skip
    assert table["mean_clip"].eq(3.0).all() and len(table) == 5 * 2 * 3
    assert table[table["variant"] == "default"]["val_accuracy"].sum() == pytest.approx(2 * (2 * 2.43 + 3 * 0.05))


def test_the_rule_keeps_a_default_that_is_beaten_by_chance_only(tmp_path):
    sweep, table = write_trials(
        tmp_path, {**FLAT, "clip_start=1": [0.83, 0.80, 0.83], "ends=float": [0.79, 0.80, 0.81]}
    )
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen == {"clip_start": "10", "ends": "same"}
    start = next(c for c in comparisons if c.factor == "clip_start")
    assert start.gain == pytest.approx(0.01) and start.low < 0 < start.high and start.pairs == 6
    assert start.verdict == "not better"


def test_the_rule_takes_what_is_better_beyond_chance(tmp_path):
    sweep, table = write_trials(
        tmp_path, {**FLAT, "clip_start=1": [0.80, 0.81, 0.82], "ends=float": [0.850, 0.861, 0.870]}
    )
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen == {"clip_start": "10", "ends": "float"}
    # By hand: gains 0.050, 0.051, 0.050 twice; t(5) at 1 - 0.025 / 2 is 3.1634.
    gains = pd.Series([0.050, 0.051, 0.050] * 2)
    ends = next(c for c in comparisons if c.factor == "ends")
    assert ends.low == pytest.approx(gains.mean() - 3.1634 * gains.std() / 6**0.5, abs=1e-6)
    assert ends.verdict == "better"


def test_the_rule_takes_nothing_that_kills_maps_however_accurate(tmp_path):
    accuracy = {**FLAT, "clip_start=1": [0.9, 0.91, 0.92], "ends=float": [0.8] * 3}
    sweep, table = write_trials(tmp_path, accuracy, dead={"clip_start=1": 0.006})
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen["clip_start"] == "10"
    assert next(c for c in comparisons if c.factor == "clip_start").verdict == "dead maps"
    sweep, table = write_trials(tmp_path, accuracy, dead={"clip_start=1": 0.005})
    assert sweeps.decide(table, sweep)[1]["clip_start"] == "1"


def test_a_default_with_dead_maps_is_replaced_even_by_something_less_accurate(tmp_path):
    accuracy = {**FLAT, "clip_start=1": [0.7, 0.7, 0.7], "ends=float": [0.75] * 3}
    sweep, table = write_trials(tmp_path, accuracy, dead={"default": 0.5})
    assert sweeps.decide(table, sweep)[1] == {"clip_start": "1", "ends": "float"}


def test_the_rule_does_not_guess_what_was_not_trained(tmp_path):
    sweep, table = write_trials(tmp_path, {**FLAT, "clip_start=1": [0.8] * 3, "ends=float": [0.8] * 3})
    with pytest.raises(SqlibError, match="ends=float has not been trained"):
        sweeps.decide(table[table["value"] != "float"], sweep)
    with pytest.raises(SqlibError, match="default has not been trained"):
        sweeps.decide(table[table["variant"] != "default"], sweep)
