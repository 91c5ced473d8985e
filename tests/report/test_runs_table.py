"""What figures and tables are made of (pairs, words, missing runs) is worked out by hand."""

import json
import shutil

import pytest

from sqlib.checked import SqlibError
from sqlib.report import runs_table


def test_paired_differences(runs):
    assert runs_table.paired(runs, "gini", "w2a2", "standard", "fp32") == pytest.approx([-0.1, -0.2])
    guided = runs_table.paired(runs, "gini", "fp32", "saliency_guided", "fp32", "standard")
    assert guided == pytest.approx([0.1, 0.1])
    without = runs.drop(runs[(runs["setup"] == "fp32") & (runs["seed"] == 0)].index)
    assert runs_table.paired(without, "gini", "w2a2", "standard", "fp32") == pytest.approx([-0.2])
    assert len(runs_table.paired(runs, "gini", "absent", "standard", "fp32")) == 0


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([-0.1, -0.2], "lower by 0.15 (in all 2 seeds)"),
        ([0.3, -0.1], "higher by 0.10 (in 1 of 2 seeds)"),
        ([0.25], "higher by 0.25 (one seed)"),
        ([0.001, -0.002], "the same within 0.01"),
        ([0.001], "the same within 0.01 (one seed)"),
        ([], "not known (runs are missing)"),
    ],
)
def test_differences_in_words(differences, words):
    assert runs_table.in_words(differences) == words


def test_summary_has_mean_spread_and_paired_difference(runs):
    shown, long = runs_table.summary(runs, ["test_accuracy", "gini"], "fp32")
    row = shown[(shown["setup"] == "w2a2") & (shown["training"] == "standard")].iloc[0]
    assert row["Gini index ↑"] == "0.450 ± 0.071 (−0.150)" and row["n"] == 2
    assert shown.iloc[0]["test accuracy, % ↑"] == "99.05 ± 0.07" and "network" not in shown
    value = long[(long["setup"] == "w2a2") & (long["training"] == "standard") & (long["measure"] == "gini")].iloc[0]
    assert (value["mean"], value["difference"], value["paired"]) == (pytest.approx(0.45), pytest.approx(-0.15), 2)
    one, _ = runs_table.summary(runs[runs["seed"] == 0], ["gini"], "fp32")
    assert one.iloc[0]["Gini index ↑"] == "0.600"


def test_reference_is_the_unquantised_setup(study):
    assert runs_table.reference_setup(study) == "fp32"
    backwards = study.model_copy(update={"setups": study.setups[::-1]})
    assert runs_table.reference_setup(backwards) == "fp32"
    assert runs_table.reference_setup(study.model_copy(update={"setups": study.setups[1:]})) == study.setups[1].name


def test_reports_are_found_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    with pytest.raises(SqlibError, match="make smoke"):
        runs_table.find_reports()
    for name in ("smoke", "reference"):
        run = tmp_path / name / "runs/mnist/lenet/fp32/standard/seed0"
        run.mkdir(parents=True)
        (run / "result.json").touch()
        assert runs_table.find_reports().name == name
    (tmp_path / "paper").mkdir()  # begun, without any result
    assert runs_table.find_reports().name == "reference"
    assert runs_table.find_reports(tmp_path / "smoke").name == "smoke"


def test_study_of_a_folder(tmp_path, study):
    assert runs_table.study_of(tmp_path / "reference").name == "paper"
    stamps = tmp_path / "renamed" / "stamps"
    stamps.mkdir(parents=True)
    (stamps / "index.json").write_text(json.dumps({"study": study.model_dump(mode="json")}))
    assert runs_table.study_of(tmp_path / "renamed") == study
    shutil.rmtree(stamps)
    with pytest.raises(SqlibError, match="no such file"):
        runs_table.study_of(tmp_path / "renamed")


def test_runs_known_only_from_the_table_are_used_and_named(tmp_path, study, runs):
    results = tmp_path / "results"
    results.mkdir()
    runs.iloc[::-1].assign(seed=lambda df: df["seed"]).to_csv(results / "runs.csv", index=False)
    rows, missing, listed = runs_table.runs_of(study, tmp_path)
    assert len(rows) == len(listed) == 4  # seed 1 is not in the study
    assert list(rows["setup"]) == ["fp32", "fp32", "w2a2", "w2a2"]
    assert list(rows["training"])[:2] == ["standard", "saliency_guided"]
    assert len(missing) == len(study.runs()) - 4 and "mnist/lenet/w4a4/standard/seed0" in missing
