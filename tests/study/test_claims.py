"""Planted effects and planted nulls through the claims machinery: the verdicts must be right."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sqlib import places
from sqlib.checked import SqlibError
from sqlib.files import to_json
from sqlib.networks.network import build_model
from sqlib.report.figures import forest
from sqlib.study import claims
from sqlib.study.parameters import load_study
from sqlib.study.results import Measurements, save_run

IMAGES = 300


@pytest.fixture
def study():
    return load_study("smoke").model_copy(update={"seeds": [0, 1, 2], "datasets": ["mnist"]})


@pytest.fixture
def plant(study, tmp_path):
    """Function (drop: setup -> what Gini and accuracy lose, noise, seeds) -> reports folder with the runs of a study."""

    def make(drop, noise=0.0005, seeds=(0, 1, 2), rise=0.0, dead=0):
        generator = np.random.default_rng(0)
        gini = 0.6 + 0.05 * generator.standard_normal(IMAGES)
        for run in study.runs():
            if run.seed not in seeds:
                continue
            lost = drop.get(run.setup.name, 0.0) - rise * (run.training == "saliency_guided")
            here = gini - lost + noise * generator.standard_normal() + 0.005 * generator.standard_normal(IMAGES)
            if dead:
                here[:dead] = np.nan
            wrong = np.arange(IMAGES) < round(IMAGES * (0.1 + drop.get(run.setup.name, 0.0)))
            gone = torch.from_numpy(np.isnan(here)).to(torch.uint8)
            per_image = {"gini": torch.from_numpy(here).float(), "correct": torch.from_numpy(~wrong).to(torch.uint8)}
            gap = 0.4 - lost + noise * generator.standard_normal()
            metrics = {"deletion_auc": 0.5 - gap, "random_auc": 0.5, "test_accuracy": float(1 - wrong.mean())}
            model = build_model(run.network, run.setup)
            measured = Measurements(metrics, {}, {**per_image, "dead": gone})
            save_run(run.folder(tmp_path), run, model, [{}] * run.epochs, measured, 0.0)
        return tmp_path

    return make


def verdicts(study, reports):
    rows = claims.evaluate(claims.load_claims(), study, reports)
    json.loads(to_json(rows))
    return {row["id"]: row["verdict"] for row in rows}, {row["id"]: row for row in rows}


def test_a_planted_effect_is_supported(study, plant):
    found, rows = verdicts(study, plant({"w4a4": 0.1, "mixed": 0.2, "w2a2": 0.3}, rise=0.1))
    assert found == {**dict.fromkeys(found, "supported"), "guided_accuracy": "contradicted"}
    assert rows["clarity"]["effect"] == pytest.approx(-0.2, abs=0.005)
    assert rows["accuracy"]["effect"] == pytest.approx(-0.2, abs=0.005)
    assert [part["label"] for part in rows["clarity"]["parts"]] == ["w4a4", "mixed", "w2a2"]
    assert rows["clarity"]["n_seeds"] == 3 and rows["clarity"]["n_images"] == IMAGES
    assert rows["faithfulness"]["n_images"] == 0
    assert {"id", "claim", "dataset", "quantity", "effect", "low", "high", "verdict"} <= set(rows["clarity"])


def test_a_planted_null_is_never_supported(study, plant):
    found, _ = verdicts(study, plant({}, noise=0.0002))
    assert found == dict.fromkeys(found, "contradicted")


def test_an_effect_of_the_other_sign_contradicts(study, plant):
    found, _ = verdicts(study, plant({"w4a4": -0.02, "mixed": -0.04, "w2a2": -0.06}, rise=-0.1))
    assert found["clarity"] == found["accuracy_fewer_bits"] == found["guided_clarity"] == "contradicted"


def test_seeds_that_disagree_are_inconclusive(study, plant):
    found, rows = verdicts(study, plant({"w2a2": 0.03}, noise=0.05))
    assert found["clarity"] == found["guided_clarity"] == found["faithfulness"] == "inconclusive"
    assert rows["clarity"]["high"] - rows["clarity"]["low"] > 0.05


def test_setups_out_of_order_do_not_support_an_order(study, plant):
    found, rows = verdicts(study, plant({"w4a4": 0.1, "mixed": 0.4, "w2a2": 0.3}))
    assert found["clarity"] == "supported" and found["clarity_fewer_bits"] == "inconclusive"
    assert rows["clarity_fewer_bits"]["ordered"] is False and "order" in rows["clarity_fewer_bits"]["why"]


def test_one_seed_is_inconclusive_and_says_why(study, plant):
    found, rows = verdicts(study, plant({"w4a4": 0.1, "mixed": 0.2, "w2a2": 0.3}, seeds=(0,)))
    assert found == dict.fromkeys(found, "inconclusive")
    assert all("one seed" in row["why"] and math.isnan(row["low"]) for row in rows.values())
    assert "no interval (1 seed" in claims.effect_in_words(rows["clarity"])


def test_dead_maps_are_left_out(study, plant):
    _, rows = verdicts(study, plant({"w4a4": 0.1, "mixed": 0.2, "w2a2": 0.3}, dead=40))
    assert rows["clarity"]["n_images"] == IMAGES - 40 and math.isfinite(rows["clarity"]["low"])
    assert rows["accuracy"]["n_images"] == IMAGES


def test_where_maps_are_measured_faithfulness_has_images_and_other_measures_stand_beside(study, plant):
    reports = plant({"w4a4": 0.1, "mixed": 0.2, "w2a2": 0.3})
    generator = np.random.default_rng(1)
    for run in study.runs():
        lost = {"fp32": 0.0, "w4a4": 0.1, "mixed": 0.2, "w2a2": 0.3}[run.setup.name]
        one = {"": 0.4 - lost, "mean": 0.3 - lost / 2, "opened": 0.5}
        noise = 0.01 * generator.standard_normal((4, 50))
        tensors = {
            "gradient/straight_through/deletion_corner_gap": one[""] + noise[0],
            "gradient/straight_through/deletion_mean_gap": one["mean"] + noise[1],
            "gradient/straight_through/gini": 0.6 - lost + noise[2],
        }
        if run.setup.name != "fp32":  # fewer images, and nothing lost: the clip hid it
            tensors |= {f"gradient/unclipped/{k}": 0.6 + noise[3][:20] for k in ("gini", "deletion_corner_gap")}
        tensors = {name: torch.from_numpy(values).float() for name, values in tensors.items()}
        save_file(tensors, run.folder(reports) / "quality.safetensors")
    _, rows = verdicts(study, reports)
    row = rows["faithfulness"]
    assert row["effect"] == pytest.approx(-0.2, abs=0.01) and (row["n_seeds"], row["n_images"]) == (3, 50)
    beside = {other["label"]: other for other in row["beside"]}
    assert beside["with the image's mean as fill"]["effect"] == pytest.approx(-0.1, abs=0.01)
    opened = {other["label"]: other for other in rows["clarity"]["beside"]}["with the unclipped surrogate"]
    assert opened["effect"] == pytest.approx(0, abs=0.01) and opened["n_images"] == 20
    assert "blurred" not in " ".join(beside)  # it was not measured, so nothing is shown
    assert rows["accuracy"]["beside"] == [] == rows["guided_clarity"]["beside"]  # float networks have no clip
    (next(iter(study.runs())).folder(reports) / "quality.safetensors").unlink()
    _, rows = verdicts(study, reports)
    assert rows["faithfulness"]["n_images"] == 0 and rows["faithfulness"]["beside"] == []  # not all: none


def test_data_sets_that_differ_are_told():
    rows = [
        {"dataset": d, "verdict": v, "overall": "inconclusive"}
        for d, v in (("mnist", "contradicted"), ("fashion_mnist", "supported"))
    ]
    assert claims.over_all(rows) == "inconclusive: the data sets differ (MNIST contradicted, Fashion-MNIST supported)"
    assert claims.over_all(rows[:1]) == "inconclusive"


def test_no_runs_at_all(study, tmp_path):
    found, rows = verdicts(study, tmp_path)
    assert found == dict.fromkeys(found, "inconclusive") and rows["clarity"]["n_seeds"] == 0
    assert not claims.complete(study, tmp_path)


def test_over_all_data_sets_only_a_shared_verdict_counts():
    base = {"effect": -0.1, "low": -0.12, "high": -0.08, "direction": "fall", "margin": 0.01, "n_seeds": 3, "p": 0.001}
    row = {**base, "p_holm": 0.01, "p_margin_holm": 0.01, "ordered": None}
    assert claims.judge(row)[0] == "supported"
    assert claims.judge({**row, "p_holm": 0.06})[0] == "inconclusive"
    assert claims.judge({**row, "effect": -0.005, "low": -0.009, "high": -0.001})[0] == "contradicted"
    small = {**row, "effect": -0.008, "low": -0.015, "high": -0.001, "p_margin_holm": 0.5}
    assert claims.judge(small) == ("inconclusive", "there is a fall, but it is estimated smaller than the margin")
    assert claims.judge({**row, "direction": "rise"})[0] == "contradicted"


def test_rows_are_read_back_and_drawn(study, plant, tmp_path):
    reports = plant({"w4a4": 0.1, "mixed": 0.2, "w2a2": 0.3}, seeds=(0,))
    rows = claims.evaluate(claims.load_claims(), study, reports)
    path = tmp_path / "claims.json"
    path.write_bytes(to_json(rows))
    again = claims.read_claims(path)
    assert to_json(again) == to_json(rows) and math.isnan(again[0]["low"])
    for row in again:
        forest([row]).canvas.draw()
    with pytest.raises(SqlibError, match="no such file"):
        claims.read_claims(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "direction: fall",
            "direction: fall\n    directoin: fall",
            r"claims\[0\] \(accuracy\): unknown key 'directoin'.*did you mean 'direction'",
        ),
        ("quantity: gini", "quantity: ginni", "unknown quantity.*did you mean 'gini'"),
        ("margin: 0.002", "margin: -1", "margin"),
        ("id: clarity\n", "id: accuracy\n", "given twice"),
        ("resamples: 5000", "resamples: 500", "resamples"),
        ("training: standard}", "training: standart}", "did you mean 'standard'"),
    ],
)
def test_mistakes_in_the_file_are_one_line(tmp_path, old, new, words):
    text = (places.PARAMS / "claims.yaml").read_text()
    assert old in text
    (tmp_path / "claims.yaml").write_text(text.replace(old, new))
    with pytest.raises(SqlibError, match=words):
        claims.load_claims(tmp_path / "claims.yaml")
