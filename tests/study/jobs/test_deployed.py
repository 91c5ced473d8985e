"""What is deployed against what was trained: by hand, and on published networks and every test image."""

import shutil

import numpy as np
import pytest

from sqlib.checked import SqlibError
from sqlib.data.loading import load
from sqlib.deploy import packed
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.jobs import deployed
from sqlib.study.parameters import load_study
from sqlib.training.loop import seeded_model
from sqlib.workflow.pages import write_stamps


def measured(run, folder):
    return deployed.compare_forms(run, folder, load(run.dataset).test_images)


def test_comparison_by_hand():
    trained = np.array([[1.0, 2.0], [4.0, -8.0], [0.0, 0.0]], np.float32)
    other = np.array([[2.5, 2.0], [4.0, -8.0], [0.0, 0.0]], np.float32)
    assert deployed.compare_logits(trained, other) == {
        "images": 3, "same_predictions": 2, "largest_relative": 0.75, "equal_bit_for_bit": False,
    }  # fmt: skip
    same = deployed.compare_logits(trained, trained)
    assert (same["same_predictions"], same["largest_relative"], same["equal_bit_for_bit"]) == (3, 0.0, True)


@pytest.mark.slow
@pytest.mark.parametrize("dataset, setup", [("mnist", "w2a2"), ("fashion_mnist", "mixed"), ("fashion_mnist", "w4a4")])
def test_a_published_network_answers_the_same_in_integers_and_as_onnx(tmp_path, dataset, setup):
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / f"reports/reference/runs/{dataset}/lenet/{setup}/standard/seed0", folder)
    before = {path.name for path in folder.iterdir()}
    result = measured(results.run_of(folder), folder)
    assert result["packed"]["images"] == 10_000
    assert result["packed"]["same_predictions"] == 10_000 and result["packed"]["largest_relative"] <= 1e-4
    assert result["onnx"]["same_predictions"] >= 9_999 and result["onnx"]["largest_relative"] <= 1e-3
    assert result["packed"]["bytes"] == (folder / results.PACKED).stat().st_size
    assert {path.name for path in folder.iterdir()} == before


def test_the_trained_weights_themselves_are_what_is_compared(tmp_path, monkeypatch):
    """Not the packed file with itself: a run saved with weights that are not the packed ones is found out."""
    study = load_study("smoke")
    run = study.run("mnist/lenet/w2a2/standard/seed0")
    folder = run.folder(tmp_path)
    write_stamps(study, tmp_path)
    models = [seeded_model(run.model_copy(update={"seed": seed})) for seed in (0, 1)]
    for model in models:
        for clip in model.clips().values():
            clip.alpha.data.fill_(2.0)
    results.save_run(folder, run, models[0].eval(), [{}] * run.epochs, results.Measurements(), 0.0)
    same = measured(run, folder)
    assert same["packed"]["images"] == same["packed"]["same_predictions"] == 500 and same["packed"]["equal_bit_for_bit"]
    packed.pack(models[1], tmp_path / "other")
    monkeypatch.setattr(results, "pack_run", lambda *_, **__: tmp_path / "other")
    assert measured(run, folder)["packed"]["same_predictions"] < 500


def test_a_float_run_cannot_be_compared(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / "reports/reference/runs/mnist/lenet/fp32/standard/seed0", folder)
    with pytest.raises(SqlibError, match="not quantised"):
        measured(results.run_of(folder), folder)
