"""Sweeps: what a file may say, the trials it stands for, and the rule on tables whose outcome is known."""

import json
import os

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
            "default": "10",
            "values": {"1": {"training": {"clip": {"start": 1.0}}}, "10": {"training": {"clip": {"start": 10.0}}}},
        },
        "ends": {
            "title": "Ends",
            "about": "B.",
            "default": "same",
            "values": {"same": {}, "float": {"setup": {"first": {"weights": 32}, "last": {"weights": 32}}}},
        },
    },
}
STUDY = load_study("smoke").model_copy(update={"sweeps": ["s"]})


def factor(values, default):
    return {"title": "F", "about": "", "values": values, "default": default}


def loaded(tmp_path, **changes):
    (tmp_path / "sweeps").mkdir(exist_ok=True)
    (tmp_path / "sweeps/s.yaml").write_text(yaml.safe_dump({**PLAIN, **changes}))
    return sweeps.load_sweep("s", tmp_path)


def test_the_sweeps_in_params_are_valid_and_start_from_their_studies():
    for name, names in (("paper", ["quantisation", "guidance"]), ("smoke", ["quick"])):
        study = load_study(name)
        assert set(study.sweeps) <= set(names)
        for sweep_name in names:
            sweep = sweeps.load_sweep(sweep_name)
            found = sweeps.trials(study, sweep)
            values = sum(len(factor.values) - 1 for factor in sweep.factors.values())
            assert len(found) == len({trial.id for trial in found}) == len(sweeps.datasets_of(study, sweep)) * (values + 2)
            for trial in found:
                if trial.variant == sweeps.DEFAULT:
                    for run in trial.runs:
                        assert run.parameters.clip == study.training.clip
                        assert run.parameters.guidance == study.training.guidance
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
        ({"factors": {"f": factor({"a": {}}, "a")}}, "needs two or more"),
        ({"factors": {"f": factor({"a": {}, "b": {}}, "c")}}, "the default 'c' among them"),
        ({"factors": {"f": factor({"a": {}, "../b": {"setup": {"x": 1}}}, "a")}}, "label"),
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
    sweep = loaded(tmp_path, factors={"f": factor({"a": {}, "b": override}, "a")})
    with pytest.raises(SqlibError, match=rf"f=b: .*{message}"):
        sweeps.trials(STUDY, sweep)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"3": {"training": {"clip": {"start": 3.0}}}, "x": {}},
            r"f: '3' is called the default.*clip.start: 10.0, not 3.0",
        ),
        ({"3": {}, "10": {"training": {"clip": {"start": 10.0}}}}, "f=10 changes nothing"),
    ],
)
def test_the_default_is_what_the_study_has_and_nothing_else_is(tmp_path, values, message):
    sweep = loaded(tmp_path, factors={"f": factor(values, "3")})
    with pytest.raises(SqlibError, match=message):
        sweeps.trials(STUDY, sweep)


def test_epochs_and_a_data_sets_own_values_can_be_swept(tmp_path):
    values = {"1": {}, "8": {"training": {"epochs": 8}}, "m": {"training": {"shift": {"mnist": 2, "fashion_mnist": 1}}}}
    found = {t.id: t.runs[0] for t in sweeps.trials(STUDY, loaded(tmp_path, factors={"f": factor(values, "1")}))}
    assert found["s/mnist/f=8"].epochs == found["s/mnist/f=8"].parameters.epochs == 8
    assert [found[f"s/{name}/f=m"].parameters.shift for name in ("mnist", "fashion_mnist")] == [2, 1]


def test_a_layer_that_the_network_lacks_is_told_before_anything_is_trained(tmp_path):
    values = {"a": {}, "b": {"setup": {"layers": {"fc3": {"weights": 4}}}}}
    with pytest.raises(SqlibError, match="f=b: .*no layer 'fc3'"):
        sweeps.trials(STUDY, loaded(tmp_path, factors={"f": factor(values, "a")}))


def test_a_value_with_which_training_diverges_is_a_finding(tmp_path, monkeypatch):
    def fit(run, data):
        raise SqlibError(f"{run.id}: training diverged")

    trial = next(t for t in sweeps.trials(STUDY, loaded(tmp_path)) if t.id == "s/mnist/clip_start=1")
    monkeypatch.setattr("sqlib.train.fit", fit)
    assert sweeps.run_trial(trial, tmp_path)
    rows = sweeps.collect_trials(STUDY, loaded(tmp_path), tmp_path)
    assert len(rows) == 2 and rows["val_accuracy"].isna().all()


def test_results_made_with_other_parameters_are_left_out(tmp_path):
    trial = next(t for t in sweeps.trials(STUDY, loaded(tmp_path)) if t.variant == "clip_start=1")
    path = trial.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"runs": [], "seeds": [{"seed": 0, "diverged": "x"}]}))
    assert sweeps.collect_trials(STUDY, loaded(tmp_path), tmp_path).empty


def test_unknown_names_are_told_with_the_nearest(tmp_path):
    with pytest.raises(SqlibError, match="quantisation"):
        sweeps.load_sweep("quantization", PARAMS)
    paper = load_study("paper").model_copy(update={"sweeps": ["quantisation"]})
    with pytest.raises(SqlibError, match="has no sweep 'x'"):
        sweeps.trial_of(paper, "x/mnist/default")
    with pytest.raises(SqlibError, match="clip_start=3"):
        sweeps.trial_of(paper, "quantisation/mnist/clip_start=33")


def test_a_trial_is_trained_once_and_again_only_when_it_changed(tmp_path):
    trial = next(t for t in sweeps.trials(STUDY, loaded(tmp_path, seeds=[3])) if t.id == "s/mnist/clip_start=1")
    path = trial.path(tmp_path)
    assert sweeps.run_trial(trial, tmp_path)
    first = path.read_bytes()
    assert not sweeps.run_trial(trial, tmp_path)
    assert path.read_bytes() == first
    result = json.loads(first)
    assert [entry["seed"] for entry in result["seeds"]] == [3]
    path.write_bytes(first[: len(first) // 2])  # half a file is not a result
    assert sweeps.run_trial(trial, tmp_path)
    again = json.loads(path.read_bytes())
    assert [h["val_accuracy"] for h in again["seeds"][0]["history"]] == [
        h["val_accuracy"] for h in result["seeds"][0]["history"]
    ]
    other = next(t for t in sweeps.trials(STUDY, loaded(tmp_path, seeds=[4])) if t.id == trial.id)
    assert trial.is_current(tmp_path) and not other.is_current(tmp_path)


def test_a_right_result_is_made_to_look_new_and_a_wrong_one_taken_away(tmp_path):
    trial = next(t for t in sweeps.trials(STUDY, loaded(tmp_path)) if t.variant == "default")
    path, stamp = trial.path(tmp_path), trial.stamp_path(tmp_path)
    for file, content in ((path, {"stamp": trial.stamp()}), (stamp, trial.stamp())):
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    os.utime(path, (1, 1))
    sweeps.settle(trial, tmp_path)
    assert path.stat().st_mtime >= stamp.stat().st_mtime
    for wrong in ('{"stamp": "another"}', "{"):
        path.write_text(wrong)
        sweeps.settle(trial, tmp_path)
        assert not path.exists()
    sweeps.settle(trial, tmp_path)  # and where there is nothing, nothing happens


def write_trials(tmp_path, accuracy, dead=None, **changes):
    """Results with these validation accuracies by variant, the same on both data sets but for a fixed offset."""
    sweep = loaded(tmp_path, seeds=[0, 1, 2], **changes)
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
        path.write_text(json.dumps({"seeds": rows, "runs": [run.model_dump(mode="json") for run in trial.runs]}))
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
    # By hand: gains 0.050, 0.051, 0.050 on both data sets; squares within them 2 x 6.667e-7, 4 degrees of freedom, t 2.7764.
    ends = next(c for c in comparisons if c.factor == "ends")
    assert ends.low == pytest.approx(0.151 / 3 - 2.7764 * (2 * 6.6667e-7 / 4) ** 0.5 / 6**0.5, abs=1e-6)
    assert ends.verdict == "better"


def test_a_value_that_spends_more_bits_replaces_nothing(tmp_path):
    ends = {**PLAIN["factors"]["ends"], "spends_bits": True}
    accuracy = {**FLAT, "clip_start=1": [0.79, 0.80, 0.81], "ends=float": [0.850, 0.861, 0.870]}
    factors = {**PLAIN["factors"], "ends": ends}
    sweep, table = write_trials(tmp_path, accuracy, factors=factors)
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen == {"clip_start": "10", "ends": "same"}
    assert next(c for c in comparisons if c.factor == "ends").verdict == "better"


def test_a_difference_between_data_sets_is_no_noise(tmp_path):
    sweep, table = write_trials(tmp_path, {**FLAT, "clip_start=1": [0.81, 0.82, 0.83], "ends=float": [0.8] * 3})
    more = (table["dataset"] == "mnist") & (table["value"] == "1")
    table.loc[more, "val_accuracy"] += (
        0.05  # gains of 0.01 on one and 0.06 on the other data set, the same for every seed
    )
    assert sweeps.decide(table, sweep)[1]["clip_start"] == "1"
    table.loc[more, "val_accuracy"] -= 0.07  # and a loss on one of them
    assert sweeps.decide(table, sweep)[1]["clip_start"] == "10"


def test_a_value_that_diverged_anywhere_is_out(tmp_path):
    sweep, table = write_trials(tmp_path, {**FLAT, "clip_start=1": [0.9, 0.91, 0.92], "ends=float": [0.8] * 3})
    table.loc[(table["value"] == "1") & (table["seed"] == 2), "val_accuracy"] = float("nan")
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen["clip_start"] == "10" and comparisons[0].verdict == "diverged"


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
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen == {"clip_start": "1", "ends": "float"}
    assert {comparison.verdict for comparison in comparisons} == {"replaces"}


def test_the_rule_does_not_guess_what_was_not_trained(tmp_path):
    sweep, table = write_trials(tmp_path, {**FLAT, "clip_start=1": [0.8] * 3, "ends=float": [0.8] * 3})
    with pytest.raises(SqlibError, match="ends=float has not been trained"):
        sweeps.decide(table[table["value"] != "float"], sweep)
    with pytest.raises(SqlibError, match="default has not been trained"):
        sweeps.decide(table[table["variant"] != "default"], sweep)
