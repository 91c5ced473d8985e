"""The figure of ROAR draws every explained run beside the random order."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from sqlib.report.figures import roar_curves


@pytest.fixture
def result():
    """Two setups in two trainings, two seeds, two fractions."""
    explained = {
        f"{setup}/{training}": {"setup": setup, "training": training, "accuracy": [[0.6, 0.2], [0.5, 0.3]]}
        for setup in ("fp32", "w2a2")
        for training in ("standard", "saliency_guided")
    }
    random = [[0.7, 0.4], [0.7, 0.6]]
    return {
        "dataset": "fashion_mnist", "fractions": [0.5, 0.9], "intact": [0.8, 0.9], "random": random,
        "explained": explained,
    }  # fmt: skip


def test_a_panel_a_setup_a_line_a_run_and_the_random_order_dashed(result):
    figure = roar_curves(result)
    figure.savefig(io.BytesIO(), format="png", dpi=40)  # draws everything, so that a fault comes up here
    assert [axis.get_title() for axis in figure.axes] == ["fp32", "w2a2"]
    for axis in figure.axes:
        assert [line.get_linestyle() for line in axis.lines] == ["--", "-", "-"]
        random, standard, guided = axis.lines
        np.testing.assert_allclose(random.get_xydata(), [[0, 85], [50, 70], [90, 50]])
        np.testing.assert_allclose(guided.get_xydata(), [[0, 85], [50, 55], [90, 25]])
        assert standard.get_markerfacecolor() == "white" != guided.get_markerfacecolor()
        assert len(axis.collections) == 3  # the bands
    words = "\n".join(text.get_text() for text in figure.findobj(Text))
    for word in ("Fashion-MNIST", "most salient first, saliency-guided", "at random", "removed pixels, %"):
        assert word in words


def test_one_setup_has_the_page_to_itself(result):
    result["explained"] = {name: run for name, run in result["explained"].items() if run["setup"] == "w2a2"}
    assert len(roar_curves(result).axes) == 1
