"""Fresh results against published ones: identity on one machine, seed spread elsewhere, and what is missing."""

import json

import pytest

from sqlib.checked import SqlibError, digest
from sqlib.study import results
from sqlib.study.parameters import load_study
from sqlib.workflow import check

STUDY = load_study("smoke").model_copy(update={"seeds": [0, 1, 2], "datasets": ["mnist"]})


def write(folder, accuracy, machine="cpu A", **changes):
    """A folder of results in which a run's accuracy is `accuracy(run)`."""
    for run in STUDY.runs():
        run = run.model_copy(update=changes)
        value = accuracy(run)
        metrics = {"test_accuracy": value, "gini": value / 2, "train_seconds": hash(str(folder)) % 100, "macs": 7}
        provenance = {
            "cpu": machine,
            "platform": "x",
            "python": "3",
            "threads": 1,
            "data": {},
            "packages": {"torch": "2"},
        }
        result = {
            "format": results.FORMAT, "id": run.id, "run": run.model_dump(mode="json"), "digest": digest(run), "sources": "s",
            "metrics": metrics, "curves": {}, "history": [], "provenance": provenance,
        }  # fmt: skip
        path = run.folder(folder) / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    return folder


def seeds(run):
    return 0.9 + 0.001 * run.seed


def test_the_same_machine_must_give_the_same_numbers_but_not_the_same_times(tmp_path):
    published = write(tmp_path / "p", seeds)
    report = check.compare_studies(STUDY, write(tmp_path / "same", seeds), published)
    assert len(report.rows) == 3 * len(STUDY.runs()) and not report.moved and not report.missing
    assert {row.how for row in report.rows} == {"identical"}
    fresh = write(tmp_path / "other", lambda run: seeds(run) + 1e-9 * (run.id == "mnist/lenet/w2a2/standard/seed1"))
    moved = check.compare_studies(STUDY, fresh, published).moved
    assert [(row.what, row.metric) for row in moved] == [
        ("mnist/lenet/w2a2/standard/seed1", "test_accuracy"), ("mnist/lenet/w2a2/standard/seed1", "gini"),
    ]  # fmt: skip
    said = check.describe(check.compare_studies(STUDY, fresh, published))
    assert "DIFFERENT: 2 of" in said
    (line,) = [line for line in said.splitlines() if line.startswith("gini ")]
    assert line.split()[1:4] == ["23/24", "5e-10", "0"] and line.endswith("same machine, versions and code")


def test_the_same_machine_must_give_the_same_weights(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds)
    run = STUDY.runs()[4]
    for folder in (published, fresh):
        edit(run.folder(folder), lambda result: result.update(files={"model.safetensors": "a hash"}))
    assert "same_weights" in check.describe(check.compare_studies(STUDY, fresh, published))
    assert not check.compare_studies(STUDY, fresh, published).different
    edit(run.folder(fresh), lambda result: result["files"].update({"model.safetensors": "another"}))
    assert [(row.what, row.metric) for row in check.compare_studies(STUDY, fresh, published).moved] == [
        (run.id, "same_weights")
    ]
    # A processor of the same name that is another one: other weights are no surprise.
    edit(run.folder(fresh), lambda result: result["provenance"].update(cpu_version="family 26, model 2, stepping 1"))
    report = check.compare_studies(STUDY, fresh, published)
    assert not report.different and any(row.how == "seed spread" for row in report.rows)


def test_elsewhere_the_tolerance_is_what_seeds_make_of_it(tmp_path):
    published = write(tmp_path / "p", seeds)
    groups = len(STUDY.setups) * len(STUDY.trainings)
    # By hand: sd within a group is 0.001 everywhere; 8 groups x 2 metrics with spread; 16 degrees of freedom.
    assert groups == 8
    tolerance = 3.4748 * 0.001 * (2 / 3) ** 0.5  # t(16), two-sided, at 0.05 / 16

    def elsewhere(name, by):
        fresh = write(tmp_path / name, lambda run: seeds(run) + by * (run.setup.name == "w4a4"), machine="cpu B")
        return check.compare_studies(STUDY, fresh, published)

    near, far = elsewhere("near", 0.99 * tolerance), elsewhere("far", 1.01 * tolerance)
    row = next(row for row in near.rows if row.metric == "test_accuracy" and "w4a4" in row.what)
    assert row.how == "seed spread"
    assert row.tolerance == pytest.approx(tolerance, rel=1e-4)
    assert not near.moved
    assert {row.what for row in far.moved} == {"mnist/lenet/w4a4/standard", "mnist/lenet/w4a4/saliency_guided"}
    assert not elsewhere("equal", 0.0).moved
    assert elsewhere("much", 0.05).moved


def test_a_value_that_is_gone_is_not_hidden_by_the_mean_of_the_other_seeds(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds, machine="cpu B")
    assert not check.compare_studies(STUDY, fresh, published).different
    run = STUDY.runs()[4]
    edit(run.folder(fresh), lambda result: result["metrics"].update(gini=None))
    group = run.id.rpartition("/")[0]
    assert [(row.what, row.metric) for row in check.compare_studies(STUDY, fresh, published).moved] == [(group, "gini")]
    for seed in STUDY.seeds:  # where it was not there either, nothing is asked
        edit(published / "runs" / group / f"seed{seed}", lambda result: result["metrics"].update(gini=None))
        edit(fresh / "runs" / group / f"seed{seed}", lambda result: result["metrics"].update(gini=None))
    assert not check.compare_studies(STUDY, fresh, published).different


def test_a_reason_stands_beside_each_tolerance(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds, machine="cpu B")
    said = {
        line.split()[0]: line
        for line in check.describe(check.compare_studies(STUDY, fresh, published)).splitlines()
        if line
    }
    assert said["test_accuracy"].endswith("3 seeds against 3, t = 3.47")
    assert said["macs"].endswith("follows from network and setup")
    equal = write(tmp_path / "p2", lambda run: 0.9), write(tmp_path / "f2", lambda run: 0.9, machine="cpu B")
    said = {line.split()[0]: line for line in check.describe(check.compare_studies(STUDY, *equal)).splitlines() if line}
    assert said["test_accuracy"].endswith("one image of 10,000")
    assert said["gini"].endswith("no spread among the published seeds")


def test_another_verdict_is_a_difference_where_the_runs_are_the_same(tmp_path):
    def judged(folder, verdict, effect=0.1):
        row = {"id": "a", "claim": "c", "dataset": "mnist", "quantity": "gini", "low": None, "high": None}
        (folder / "results").mkdir(exist_ok=True)
        (folder / "results/claims.json").write_text(json.dumps([{**row, "verdict": verdict, "effect": effect}]))
        return folder

    published = judged(write(tmp_path / "p", seeds), "supported")
    fresh = judged(write(tmp_path / "f", seeds), "inconclusive")
    report = check.compare_studies(STUDY, fresh, published)
    assert report.different and not report.moved and "supported" in report.verdicts[0]
    assert "1 verdicts changed" in check.describe(report)
    report = check.compare_studies(STUDY, judged(fresh, "supported", 0.1001), published)
    assert [(row.what.strip(), row.metric) for row in report.moved] == [("a mnist", "effect of claim")]
    elsewhere = judged(write(tmp_path / "e", seeds, machine="cpu B"), "inconclusive")
    report = check.compare_studies(STUDY, elsewhere, published)
    assert not report.different and "another verdict: a mnist" in check.describe(report)


def test_what_is_published_beyond_the_study_is_told(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds)
    report = check.compare_studies(STUDY.model_copy(update={"seeds": [0, 1]}), fresh, published)
    assert not report.different and "not part of this study: 8 runs" in check.describe(report)


def edit(folder, change):
    """Rewrite a result.json after `change` has been applied to its content."""
    result = json.loads((folder / "result.json").read_text())
    change(result)
    (folder / "result.json").write_text(json.dumps(result))


def test_what_follows_from_the_network_must_be_equal_everywhere(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds, machine="cpu B")
    path = fresh / "runs/mnist/lenet/w2a2/standard/seed0/result.json"
    result = json.loads(path.read_text())
    result["metrics"]["macs"] = 8
    path.write_text(json.dumps(result))
    assert [(row.metric, row.how) for row in check.compare_studies(STUDY, fresh, published).moved] == [
        ("macs", "fixed")
    ]


def test_missing_runs_and_other_parameters_are_told_and_not_compared(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds)
    first, second = STUDY.runs()[:2]
    (first.folder(fresh) / "result.json").unlink()
    path = second.folder(fresh) / "result.json"
    result = json.loads(path.read_text())
    result["digest"] = "another"
    path.write_text(json.dumps(result))
    report = check.compare_studies(STUDY, fresh, published)
    assert report.missing == {first.id: "not made yet", second.id: "made with other parameters"}
    assert "not compared: 2 runs" in check.describe(report)
    assert check.describe(report).endswith("as far as there are results")


def test_one_seed_elsewhere_is_judged_by_the_spread_of_all_that_are_published(tmp_path):
    published = write(tmp_path / "p", seeds)
    fresh = write(tmp_path / "f", lambda run: seeds(run) + 1e-4, machine="cpu B")
    for run in STUDY.runs():
        if run.seed:
            (run.folder(fresh) / "result.json").unlink()
    report = check.compare_studies(STUDY, fresh, published)
    assert not report.moved
    row = next(row for row in report.rows if row.metric == "test_accuracy")
    assert (row.fresh, row.published) == (pytest.approx(0.9001), pytest.approx(0.901))
    assert row.tolerance == pytest.approx(3.4748 * 0.001 * (1 + 1 / 3) ** 0.5, rel=1e-4)


def test_a_damaged_result_is_an_error_of_its_own(tmp_path):
    published, fresh = write(tmp_path / "p", seeds), write(tmp_path / "f", seeds)
    (STUDY.runs()[0].folder(fresh) / "result.json").write_text("{")
    with pytest.raises(SqlibError, match="damaged"):
        check.compare_studies(STUDY, fresh, published)


def test_nothing_to_compare_is_an_error(tmp_path):
    published = write(tmp_path / "p", seeds)
    with pytest.raises(SqlibError, match="none holds no results yet: `make reproduce STUDY=smoke` makes them"):
        check.compare_studies(STUDY, tmp_path / "none", published)
    one = STUDY.runs()[0]
    one.folder(tmp_path / "one").parent.mkdir(parents=True)
    one.folder(published).rename(one.folder(tmp_path / "one"))
    with pytest.raises(
        SqlibError, match=r"no run of study 'smoke' can be compared .*not published: 1, not made yet: 23"
    ):
        check.compare_studies(STUDY, tmp_path / "one", published)
    with pytest.raises(SqlibError, match="no published results"):
        check.compare_studies(STUDY, published, tmp_path / "none")
