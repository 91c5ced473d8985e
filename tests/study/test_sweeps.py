"""Sweeps: what a file may say, the trials it stands for, and the rule on tables whose outcome is known."""

import json
import math
import os

import pytest
import torch
import yaml

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.files import write_atomically
from sqlib.networks.architectures import NETWORK_LAYERS
from sqlib.places import PARAMS, REPOSITORY
from sqlib.study import results, sources, sweeps
from sqlib.study.parameters import load_study
from sqlib.workflow.notebooks import execute

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
    for name, names in (("paper", ["quantisation", "quantisation_full", "guidance"]), ("smoke", ["quick"])):
        study = load_study(name)
        assert set(study.sweeps) <= set(names)
        for sweep_name in names:
            sweep = sweeps.load_sweep(sweep_name)
            found = sweeps.trials(study, sweep)
            values = sum(len(factor.values) - 1 for factor in sweep.factors.values())
            assert (
                len(found) == len({trial.id for trial in found}) == len(sweeps.datasets_of(study, sweep)) * (values + 2)
            )
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
    assert trials["ends=float"].runs[0].setup.bits("conv1", NETWORK_LAYERS["lenet"]) == (32, 2)
    assert trials["ends=float"].runs[0].setup.bits("conv2", NETWORK_LAYERS["lenet"]) == (2, 2)
    assert trials["baseline"].runs[0].setup.name == "fp32"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": []}, r"seeds = \[\]: needs at least one"),
        ({"factors": {}}, "factors: needs at least one"),
        ({"most_dead_maps": 2.0}, "most_dead_maps"),
        ({"sed": [0]}, "unknown key 'sed'"),
        ({"objective": "beauty"}, "objective"),
        ({"most_accuracy_lost": 0.01}, "most_accuracy_lost: only a sweep with 'objective: clarity'"),
        ({"datasets": ["mnist", "mnist"]}, "datasets: each only once"),
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
        ({"training": {"clip": {"stat": 1.0}}}, r"unknown key 'training.clip.stat'; did you mean 'start'\?"),
        ({"training": {"clip": {"start": -1.0}}}, r"training.clip.start = -1.0: should be greater than 0"),
        ({"setup": {"first": {"weights": 17}}}, r"setup.first.weights = 17"),
        ({"setup": {"weight_method": "swab"}}, r"weight_method = 'swab'.*did you mean 'sawb'\?"),
    ],
)
def test_an_impossible_value_names_its_variant_and_key(tmp_path, override, message):
    sweep = loaded(tmp_path, factors={"f": factor({"a": {}, "b": override}, "a")})
    with pytest.raises(SqlibError, match=rf"f=b: .*{message}"):
        sweeps.trials(STUDY, sweep)


def test_a_mistake_in_the_budget_is_the_budgets(tmp_path):
    with pytest.raises(SqlibError, match=r"s.yaml: budget: unknown key 'training.epoch'; did you mean 'epochs'\?"):
        sweeps.trials(STUDY, loaded(tmp_path, budget={"epoch": 1}))


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


def test_a_sweep_may_keep_to_some_of_the_studys_data_sets(tmp_path):
    def of(**changes):
        return {trial.dataset for trial in sweeps.trials(STUDY, loaded(tmp_path, **changes))}

    assert of() == {"mnist", "fashion_mnist"} and of(datasets=["fashion_mnist"]) == {"fashion_mnist"}
    assert sweeps.datasets_of(STUDY, loaded(tmp_path, datasets=["fashion_mnist", "mnist"])) == STUDY.datasets
    with pytest.raises(
        SqlibError, match="s.yaml: datasets: study 'smoke' has no 'fashion'; did you mean 'fashion_mnist'"
    ):
        of(datasets=["fashion"])


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
    monkeypatch.setattr("sqlib.training.loop.fit", fit)
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


def test_a_run_that_the_study_has_made_is_not_trained_again(tmp_path, monkeypatch):
    study = STUDY.model_copy(update={"seeds": [0, 1]})
    found = {t.variant: t for t in sweeps.trials(study, loaded(tmp_path, budget={})) if t.dataset == "mnist"}
    own = found["default"].runs
    assert sweeps.runs_in(study, found["default"]) == [run.id for run in own]
    assert sweeps.runs_in(study, found["clip_start=1"]) == []
    history = [
        {"epoch": epoch, "val_accuracy": 0.25, "val_dead_map_rate": 0.0, "val_gini": 0.5, "clips": {}, "seconds": 2.0}
        for epoch in range(1, own[0].epochs + 1)
    ]
    for run in own:
        folder, model = run.folder(tmp_path), torch.nn.Linear(1, 1)
        write_atomically(folder / "parameters.json", files.to_json(sources.run_stamp(run)))
        monkeypatch.setattr("sqlib.deploy.packed.pack", lambda *_: b"")
        results.save_run(folder, run, model, history, results.Measurements(), started=0.0)
    monkeypatch.setattr("sqlib.training.loop.fit", lambda run, data: pytest.fail(f"{run.id} was trained again"))
    assert sweeps.run_trial(found["default"], tmp_path)
    assert json.loads(found["default"].path(tmp_path).read_text())["seeds"][1]["history"] == history

    stale = json.loads((own[0].folder(tmp_path) / "result.json").read_text()) | {"sources": "older"}
    (own[0].folder(tmp_path) / "result.json").write_text(json.dumps(stale))
    assert sweeps.made_by_study(own[0], tmp_path) is None  # older code may give other numbers


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


def write_trials(tmp_path, accuracy, dead=None, gini=None, **changes):
    """Results with these validation accuracies by variant, the same on both data sets but for a fixed offset."""
    sweep = loaded(tmp_path, seeds=[0, 1, 2], **changes)
    write_results(tmp_path, STUDY, sweep, accuracy, dead or {}, gini or {})
    return sweep, sweeps.collect_trials(STUDY, sweep, tmp_path)


def write_results(reports, study, sweep, accuracy, dead, gini):
    """The files of every trial: accuracies and Gini indices by variant, one a seed, and a dead-map rate."""
    for trial in sweeps.trials(study, sweep):
        rows = []
        for i, run in enumerate(trial.runs):
            value = accuracy[trial.variant][i] + (0.05 if trial.dataset == "mnist" else 0)
            last = {
                "val_accuracy": value, "val_dead_map_rate": dead.get(trial.variant, 0.0),
                "val_gini": gini[trial.variant][i] if trial.variant in gini else 0.5,
                "clips": {"conv1": 2.0, "conv2": 4.0}, "seconds": 1.5,
            }  # fmt: skip
            rows.append({"seed": run.seed, "history": [last]})
        path = trial.path(reports)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files.to_json({"seeds": rows, "runs": [run.model_dump(mode="json") for run in trial.runs]}))


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


def test_what_a_sweep_is_confirmed_by_must_be_a_sweep_of_the_study(monkeypatch, tmp_path):
    sweep = loaded(tmp_path, confirmed_by="quick")
    monkeypatch.setattr(sweeps, "load_sweep", lambda name: sweep)
    with pytest.raises(SqlibError, match="confirmed_by: 'quick' is no sweep of study"):
        sweeps.trials_of(STUDY)


def test_a_value_that_spends_more_bits_replaces_nothing(tmp_path):
    ends = {**PLAIN["factors"]["ends"], "spends_bits": True}
    accuracy = {**FLAT, "clip_start=1": [0.79, 0.80, 0.81], "ends=float": [0.850, 0.861, 0.870]}
    factors = {**PLAIN["factors"], "ends": ends}
    sweep, table = write_trials(tmp_path, accuracy, factors=factors)
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen == {"clip_start": "10", "ends": "same"}
    assert next(c for c in comparisons if c.factor == "ends").verdict == "costs bits"


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


# ---- clarity -------------------------------------------------------------------------------------------------------

CLARITY = {"objective": "clarity", "most_accuracy_lost": 0.005}
SAME = {**FLAT, "clip_start=1": FLAT["default"], "ends=float": FLAT["default"]}
CLEAR = {"default": [0.50, 0.51, 0.52], "clip_start=1": [0.50, 0.51, 0.52], "ends=float": [0.550, 0.561, 0.570]}


def judged(tmp_path, accuracy=SAME, gini=CLEAR, dead=None):
    sweep, table = write_trials(tmp_path, accuracy, dead, gini, **CLARITY)
    comparisons, chosen = sweeps.decide(table, sweep)
    return {comparison.factor: comparison for comparison in comparisons}, chosen


def test_of_clarity_the_rule_takes_what_is_clearer_beyond_chance(tmp_path):
    found, chosen = judged(tmp_path)
    assert chosen == {"clip_start": "10", "ends": "float"}
    ends = found["ends"]
    # The gains 0.050, 0.051, 0.050 of test_the_rule_takes_what_is_better_beyond_chance, here of the Gini index.
    half = 2.7764 * (2 * 6.6667e-7 / 4) ** 0.5 / 6**0.5
    assert (ends.gini_low, ends.gini_high) == pytest.approx((0.151 / 3 - half, 0.151 / 3 + half), abs=1e-6)
    assert (ends.gain, ends.low, ends.high, ends.worst_data_set) == pytest.approx((0, 0, 0, 0), abs=1e-12)
    assert (ends.verdict, found["clip_start"].verdict) == ("better", "not better")


def test_of_clarity_noise_replaces_nothing(tmp_path):
    found, chosen = judged(tmp_path, gini={**CLEAR, "ends=float": [0.53, 0.50, 0.53]})
    assert chosen["ends"] == "same" and found["ends"].gini_gain == pytest.approx(0.01)
    assert found["ends"].gini_low < 0 < found["ends"].gini_high and found["ends"].verdict == "not better"


def test_of_clarity_a_gain_on_one_data_set_makes_up_for_no_loss_on_another(tmp_path):
    sweep, table = write_trials(tmp_path, SAME, None, CLEAR, **CLARITY)
    table.loc[(table["value"] == "float") & (table["dataset"] == "mnist"), "val_gini"] -= 0.06
    table.loc[(table["value"] == "float") & (table["dataset"] == "fashion_mnist"), "val_gini"] += 0.2
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen["ends"] == "same" and comparisons[1].gini_low > 0 and comparisons[1].verdict == "not better"


def test_of_clarity_what_costs_accuracy_on_one_data_set_is_out(tmp_path):
    sweep, table = write_trials(tmp_path, SAME, None, CLEAR, **CLARITY)
    here = (table["value"] == "float") & (table["dataset"] == "mnist")
    table.loc[here, "val_accuracy"] -= 0.005  # just the limit
    assert sweeps.decide(table, sweep)[1]["ends"] == "float"
    table.loc[here, "val_accuracy"] -= 0.0002
    table.loc[~here & (table["value"] == "float"), "val_accuracy"] += 0.1
    comparisons, chosen = sweeps.decide(table, sweep)
    assert chosen["ends"] == "same" and comparisons[1].verdict == "costs accuracy"
    assert comparisons[1].worst_data_set == pytest.approx(-0.0052) and comparisons[1].gain > 0


def test_of_clarity_dead_maps_are_out_and_a_dead_default_is_replaced(tmp_path):
    found, chosen = judged(tmp_path, dead={"ends=float": 0.006})
    assert chosen["ends"] == "same" and found["ends"].verdict == "dead maps"
    gini = {**CLEAR, "default": [math.nan] * 3, "clip_start=1": [0.2] * 3}  # all maps of the default are dead
    found, chosen = judged(tmp_path, gini=gini, dead={"default": 1.0})
    assert chosen == {"clip_start": "1", "ends": "float"} and found["ends"].verdict == "replaces"
    assert math.isnan(found["ends"].gini_gain)


def test_a_gain_is_told_without_an_interval_where_no_data_set_has_two_pairs(tmp_path):
    _, table = write_trials(tmp_path, SAME, None, CLEAR, **CLARITY)
    one = table[table["seed"] == 0]
    here, base = sweeps.networks(one, "ends", "float"), sweeps.networks(one, "ends", "same")
    assert sweeps.paired_gain(here, base, "val_gini") == pytest.approx((0.05, -math.inf, math.inf, 0.05))


# ---- the page ------------------------------------------------------------------------------------------------------


def page_of(tmp_path, study, name, accuracy, gini, dead):
    """(what the cells show, the result) of notebook 7 over results made up by rule: variant, number of the seed -> value."""
    reports = tmp_path / study
    study, sweep = load_study(study), sweeps.load_sweep(name)
    variants, seeds = {trial.variant for trial in sweeps.trials(study, sweep)}, range(len(sweep.seeds))
    by_variant = [{v: [made(v, i) for i in seeds] for v in variants} for made in (accuracy, gini)]
    write_results(reports, study, sweep, by_variant[0], dead, by_variant[1])
    (reports / "results").mkdir()
    (reports / "results/runs.csv").touch()  # how a folder of reports is told
    result = reports / "results/sweep.json"
    notebook = REPOSITORY / "notebooks/7_parameters.ipynb"
    parameters = {"reports": reports, "sweep": name, "result_file": result}
    execute(notebook, reports / "n.ipynb", parameters, 200, required=[result])
    outputs = [
        output for cell in json.loads((reports / "n.ipynb").read_text())["cells"] for output in cell.get("outputs", [])
    ]
    data = [output["data"].get("text/markdown", output["data"].get("text/html", "")) for output in outputs]
    shown = " ".join("\n".join("".join(lines) for lines in data).split())  # a sentence may go over several lines
    return shown, json.loads(result.read_text())


@pytest.mark.slow
def test_the_page_of_a_sweep_for_clarity(tmp_path):
    gains = {"fraction=0.7": 0.03, "rank=signed": 0.1, "kl_weight=0": -0.05, "baseline": -0.05}
    losses = {"fraction=0.7": 0.003, "rank=signed": 0.02, "baseline": -0.0091}
    page, result = page_of(
        tmp_path, "paper", "guidance",
        accuracy=lambda v, i: 0.87 - losses.get(v, 0) + 0.002 * i + 0.0003 * (len(v) * i % 3),
        gini=lambda v, i: 0.6 + gains.get(v, 0) + 0.004 * i + 0.0005 * (len(v) * i % 3),
        dead={"fraction=0.9": 0.3},
    )  # fmt: skip
    assert result["chosen"] == {"fraction": "0.7", "rank": "abs", "score": "log_prob", "kl_weight": "1"}
    verdicts = {(c["factor"], c["value"]): c["verdict"] for c in result["comparisons"]}
    assert verdicts["rank", "signed"] == "costs accuracy" and verdicts["fraction", "0.9"] == "dead maps"
    for words in (
        "more than 0.5 points below the default's on any data set is out",
        "its maps have a Gini index that, paired by data set and seed, is higher with an interval that excludes 0",
        "<td>costs accuracy</td>", "<td>dead maps</td>", "<td>better</td>", "<td>not better</td>",
        "What does guidance cost, and what does it gain?", "The rule asks for other values",
        "accuracy **falls by 0.9", "Gini index of the maps **rises by 0.05",
    ):  # fmt: skip
        assert words in page, words
    assert "The bits, or the choice?" not in page and "2-bit" not in page
    assert {a["what"] for a in result["answers"]} == {"default", "fraction 0.7"}
    assert result["answers"][0]["accuracy"]["mean"] < 0 < result["answers"][0]["clarity"]["mean"]


@pytest.mark.slow
def test_the_page_of_a_sweep_for_accuracy(tmp_path):
    page, result = page_of(
        tmp_path, "smoke", "quick",
        accuracy=lambda v, i: {"baseline": 0.9, "default": 0.8}.get(v, 0.85),
        gini=lambda v, i: 0.5,
        dead={"clip_start=1": 0.01},
    )  # fmt: skip
    assert result["chosen"] == {"clip_start": "10"} and result["comparisons"][0]["verdict"] == "dead maps"
    assert {trial["dataset"] for trial in result["trials"]} == {"mnist"}
    for words in (
        "its validation accuracy, paired by data set and seed, is higher with an interval that excludes 0",
        "<td>dead maps</td>", "The bits, or the choice?", "The rule keeps every default", "One seed gives no interval",
    ):  # fmt: skip
        assert words in page, words
    assert "What does guidance cost" not in page and "points below the default" not in page
    assert "worse data set" not in page and "inf]" not in page
