"""Tests of sqlib.quality: the job on small untrained networks, its files, and the agreement between runs."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from sqlib import config, metrics, quality, runs
from sqlib.config import SqlibError
from sqlib.models import build_model
from sqlib.saliency import METHODS
from sqlib.train import seeded_model

SETUPS = (32, 2)
SEEDS = (0, 1, 2)


@pytest.fixture
def study(make_setup):
    return config.Study(
        name="test",
        title="test",
        datasets=["mnist"],
        networks=["lenet5"],
        setups=[make_setup(bits, bits) for bits in SETUPS],
        trainings=["standard"],
        seeds=list(SEEDS),
        training=config.Training(epochs=1),
    )


@pytest.fixture
def reports(study, tmp_path):
    """A folder with the finished runs of the study, as their seeds initialised them."""
    for run in study.runs():
        model, one = seeded_model(run), {"dead": torch.zeros(1)}
        for clip in model.clips().values():  # behind a clip of 10 an untrained 2-bit lenet5 is dead
            clip.alpha.data.fill_(2.0)
        runs.save_run(run.folder(tmp_path), run, model, [], {"test_accuracy": 0.1}, {}, one, started=0.0)
    return tmp_path


@pytest.fixture(autouse=True)
def small(monkeypatch, blobs):
    monkeypatch.setattr(quality, "load", lambda name: blobs)
    for name, count in (("CLARITY", 30), ("FAITHFULNESS", 6), ("SANITY", 4), ("ROBUSTNESS", 3), ("AGREEMENT", 3)):
        monkeypatch.setattr(quality, f"{name}_IMAGES", count)
    monkeypatch.setattr(quality, "COSTLY_IMAGES", {"clarity": 5, "sanity": 2, "robustness": 2})


def run_of(study, bits, seed=0):
    return study.run(f"mnist/lenet5/w{bits}a{bits}/standard/seed{seed}")


def test_the_job_writes_what_it_returns(study, reports):
    run = run_of(study, 2)
    folder = run.folder(reports)
    result = quality.measure_quality(study, run, folder)
    written = (folder / "quality.json").read_bytes()
    assert written == runs.to_json(result) and runs.read_json(folder / "quality.json")["run"] == run.id
    assert sorted(result["methods"]) == sorted(METHODS)
    for method, by_surrogate in result["methods"].items():
        expected = ["straight_through"] if method == "occlusion" else ["straight_through", "unclipped"]
        assert list(by_surrogate) == expected
        for measured in by_surrogate.values():
            assert set(measured) == {"clarity", "faithfulness", "sanity", "robustness"}
            assert measured["clarity"]["dead"]["n"] == (5 if method in quality.COSTLY else 30)
            assert set(measured["faithfulness"]) == {"corner", "mean", "blurred"}
            assert (measured["robustness"] is None) == (method == "occlusion")
            assert [depth["layer"] for depth in measured["sanity"]["depths"]] == ["fc3", "fc2", "fc1", "conv2", "conv1"]
            assert isinstance(measured["sanity"]["flagged"], bool)

    tensors = load_file(folder / "quality.safetensors")
    gradient = result["methods"]["gradient"]["straight_through"]
    for name, summary in gradient["clarity"].items():
        values = tensors[f"gradient/straight_through/{name}"]
        assert len(values) == 30
        if summary["n"]:
            assert values.nanmean().item() == pytest.approx(summary["mean"], abs=1e-6)
    deletion = gradient["faithfulness"]["corner"]["deletion"]
    assert deletion["gap"]["mean"] == pytest.approx(deletion["random_auc"]["mean"] - deletion["auc"]["mean"], abs=1e-6)
    assert metrics.area_under(torch.tensor(deletion["curve"])) == pytest.approx(deletion["auc"]["mean"], abs=1e-6)

    (folder / "quality.json").unlink()
    quality.measure_quality(study, run, folder)
    assert (folder / "quality.json").read_bytes() == written  # the same bytes again


def test_a_float_network_has_one_surrogate_and_dead_maps_never_become_numbers(make_setup, blobs):
    model = build_model("lenet5", make_setup(32, 32)).eval()
    with torch.no_grad():
        model.fc3.weight.zero_()
    state = torch.get_rng_state()
    methods, _, per_image = quality.measure_model(model, blobs, seed=0, methods=("gradient",))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(methods["gradient"]) == ["straight_through"]
    measured = methods["gradient"]["straight_through"]
    assert measured["clarity"]["dead"] == {"mean": 1.0, "n": 30}
    assert measured["clarity"]["gini"]["n"] == measured["robustness"]["sensitivity"]["n"] == 0
    assert measured["faithfulness"]["mean"]["insertion"]["gap"]["n"] == 0
    assert not measured["sanity"]["flagged"]
    assert per_image["gradient/straight_through/deletion_corner_gap"].isnan().all()
    assert json.loads(runs.to_json(measured))["clarity"]["gini"] == {"mean": None, "n": 0}


def test_summary_leaves_out_what_is_no_number():
    assert quality.summary(torch.tensor([1.0, math.nan, 4.0])) == {"mean": 2.5, "n": 2}


def test_a_model_agrees_with_itself(make_setup, blobs):
    model = build_model("lenet5", make_setup(32, 32)).eval()
    images = blobs.test_images.float() / 255
    images = images.view(-1, 1, 28, 28)
    labels = model(images).argmax(dim=1)
    values = quality.agreement(model, model, images, labels, count=7)
    for value in values.values():
        torch.testing.assert_close(value, torch.ones(7))
    wrong = quality.agreement(model, model, images, (labels + 1) % 10)
    assert all(len(value) == 0 for value in wrong.values())


def test_agreement_names_the_runs_it_compared(study, reports, monkeypatch):
    likeness = {name: torch.tensor([0.2, math.nan, 0.4]) for name in quality.LIKENESS}
    monkeypatch.setattr(quality, "agreement", lambda *_: likeness)
    floats = [run_of(study, 32, seed) for seed in SEEDS]

    run = run_of(study, 2, 1)
    result = quality.agreement_with(study, run, run.folder(reports))
    assert result["float"]["run"] == floats[1].id
    assert result["float"]["unclipped"]["ssim"] == {"mean": pytest.approx(0.3), "n": 2}
    pairs = [pair["runs"] for pair in result["ceiling"]["pairs"]]
    assert pairs == [[floats[a].id, floats[b].id] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert result["ceiling"]["top_iou"] == pytest.approx(0.3)

    result = quality.agreement_with(study, floats[1], floats[1].folder(reports))
    assert result["float"] is None
    assert [pair["runs"] for pair in result["ceiling"]["pairs"]] == [pairs[0], pairs[2]]

    for seed in (0, 1):
        (floats[seed].folder(reports) / "result.json").unlink()
    result = quality.agreement_with(study, run, run.folder(reports))
    assert result["float"] is None and result["ceiling"]["pairs"] == []
    assert math.isnan(result["ceiling"]["spearman"])


def test_a_run_that_is_not_there(study, tmp_path):
    run = run_of(study, 2)
    with pytest.raises(SqlibError, match="no such file"):
        quality.measure_quality(study, run, run.folder(tmp_path))
