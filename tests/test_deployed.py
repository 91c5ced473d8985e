"""What is deployed against what was trained: by hand, and on published networks and every test image."""

import shutil

import numpy as np
import pytest

from sqlib import deployed, runs
from sqlib.config import REPOSITORY, SqlibError


def test_comparison_by_hand():
    trained = np.array([[1.0, 2.0], [4.0, -8.0], [0.0, 0.0]], np.float32)
    other = np.array([[2.5, 2.0], [4.0, -8.0], [0.0, 0.0]], np.float32)
    assert deployed.compare(trained, other) == {
        "images": 3, "same_predictions": 2, "largest_relative": 0.75, "equal_bit_for_bit": False,
    }  # fmt: skip
    same = deployed.compare(trained, trained)
    assert (same["same_predictions"], same["largest_relative"], same["equal_bit_for_bit"]) == (3, 0.0, True)


@pytest.mark.parametrize("dataset, setup", [("mnist", "w2a2"), ("fashion_mnist", "mixed"), ("fashion_mnist", "w4a4")])
def test_a_published_network_answers_the_same_in_integers_and_as_onnx(tmp_path, dataset, setup):
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / f"reports/reference/runs/{dataset}/lenet/{setup}/standard/seed0", folder)
    result = deployed.measure_run(runs.run_of(folder), folder)
    assert result == runs.read_json(folder / "deployed.json")
    assert result["packed"]["images"] == 10_000
    assert result["packed"]["same_predictions"] == 10_000 and result["packed"]["largest_relative"] <= 1e-4
    assert result["onnx"]["same_predictions"] >= 9_999 and result["onnx"]["largest_relative"] <= 1e-3
    assert result["packed"]["bytes"] == (folder / runs.PACKED).stat().st_size
    assert not list(folder.glob(".*"))


def test_a_float_run_cannot_be_compared(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / "reports/reference/runs/mnist/lenet/fp32/standard/seed0", folder)
    with pytest.raises(SqlibError, match="not quantised"):
        deployed.measure_run(runs.run_of(folder), folder)
    assert not (folder / "deployed.json").exists()
