"""Curves of what is lost: each in the salient order stands beside its random one, with the range over the seeds."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from sqlib.report.figures import fill_curves, roar_curves, sanity_depths


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


def test_randomisation_starts_at_the_map_itself():
    fig = sanity_depths({"fp32": {"gradient": [0.5, 0.1]}}, ["fc2", "conv1"])
    assert list(fig.axes[0].lines[0].get_ydata()) == [1.0, 0.5, 0.1]
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["none", "fc2", "conv1"]


def test_every_salient_curve_stands_beside_its_random_one():
    curves = {(d, f): {"fp32": ([1.0, 0.5], [1.0, 0.9])} for d in ("deletion", "insertion") for f in ("corner", "mean")}
    fig = fill_curves(curves, [0.0, 0.1])
    assert len(fig.axes) == 4
    for axis in fig.axes:
        assert [list(line.get_ydata()) for line in axis.lines] == [[100, 50], [100, 90]]
