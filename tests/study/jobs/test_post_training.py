"""Post-training quantisation: the clip it picks, what it leaves alone, and a published network rounded for real."""

import shutil

import pytest
import torch

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.data.loading import load
from sqlib.networks.passes import predict
from sqlib.places import REPOSITORY
from sqlib.quant.activations import pact
from sqlib.study import results
from sqlib.study.jobs import post_training
from sqlib.study.parameters import load_setup, load_study
from sqlib.training.examples import to_float

FLOAT_RUN = REPOSITORY / "reports/reference/runs/mnist/lenet/fp32/standard/seed0"


def test_the_clip_leaves_the_smallest_squared_error():
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 3
    clip = post_training.best_clip(torch.cat([values, -values]), 2)
    assert clip == pytest.approx(3, abs=0.6)  # evenly spread values: close to their largest

    def error(c):
        return (pact(values, c, 2) - values).square().mean().item()

    largest = values.max().item()
    assert error(clip) == pytest.approx(min(error(largest * k / 100) for k in range(1, 101)))


def test_one_outlier_does_not_decide_the_clip():
    values = torch.cat([torch.rand(5000, generator=torch.Generator().manual_seed(0)), torch.tensor([5.0])])
    assert post_training.best_clip(values, 4) < 2


def test_nothing_positive_gives_a_clip_that_is_one():
    assert post_training.best_clip(torch.tensor([-1.0, 0.0]), 4) == 1.0


@pytest.fixture(scope="module")
def mnist():
    return load("mnist")


def test_eight_bits_change_next_to_nothing_and_two_bits_do(mnist):
    model = results.load_model(FLOAT_RUN)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    calibration, images = to_float(mnist.train_images[:200]), to_float(mnist.validation_images[:500])
    expected = predict(model, images).argmax(dim=1)
    same = {}
    for setup in ("w8a8", "w2a2"):
        small = post_training.quantise(model, load_setup(setup), calibration)
        assert not small.training and small.setup.name == setup
        assert all(torch.equal(small.get_parameter(name), value) for name, value in before.items())
        assert all(clip.alpha > 0 for clip in small.clips().values())
        same[setup] = (predict(small, images).argmax(dim=1) == expected).float().mean().item()
    assert same["w8a8"] >= 0.998 > same["w2a2"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())


def test_a_quantised_network_is_refused(mnist):
    model = results.load_model(FLOAT_RUN.parents[2] / "w2a2/standard/seed0")
    with pytest.raises(SqlibError, match="quantised already"):
        post_training.quantise(model, load_setup("w4a4"), to_float(mnist.train_images[:10]))


def test_a_run_is_measured_beside_its_result_and_found_by_the_tables(tmp_path, mnist):
    study = load_study("paper")
    run = study.run("mnist/lenet/fp32/standard/seed0")
    run = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"images": 300})})
    for setup in ("fp32", "w2a2"):
        folder = tmp_path / f"runs/mnist/lenet/{setup}/standard/seed0"
        shutil.copytree(FLOAT_RUN.parents[2] / f"{setup}/standard/seed0", folder)
    study = study.model_copy(update={"setups": [study.setup("fp32"), study.setup("w2a2")]})
    measured = post_training.measure_rounded(study, run, tmp_path / "runs" / run.id)
    assert set(measured) == {"w2a2"} and 0.5 < measured["w2a2"]["accuracy"] < 1
    assert set(measured["w2a2"]["clips"]) == {"conv1", "conv2", "fc1"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results/post_training_mnist.json").write_bytes(files.to_json({run.id: measured}))
    table = results.collect(None, tmp_path).set_index("setup")
    assert table.loc["w2a2", "post_training_accuracy"] == measured["w2a2"]["accuracy"]
    assert table["post_training_accuracy"].isna()["fp32"]


def test_every_float_run_of_a_data_set_is_rounded(tmp_path, monkeypatch):
    study = load_study("smoke")
    monkeypatch.setattr(post_training, "measure_rounded", lambda study, run, folder: {"w2a2": {"accuracy": 0.5}})
    found = post_training.round_float_runs(study, "mnist", tmp_path)
    assert set(found) == {"mnist/lenet/fp32/standard/seed0", "mnist/lenet/fp32/saliency_guided/seed0"}
    assert files.read_json(tmp_path / "results/post_training_mnist.json") == found
