"""Figures of the quality of maps: the Pareto front by hand, and figures that hold what they are given."""

import math

import pandas as pd
import pytest

from sqlib.maps.attribution import METHODS
from sqlib.report.figures import fill_curves, pareto, sanity_depths, trade_off


def test_the_front_is_what_nothing_beats():
    points = [(1.0, 5.0), (2.0, 4.0), (1.5, 3.0), (3.0, 1.0), (3.0, 0.5)]
    assert pareto(points) == [0, 1, 3]  # (1.5, 3) loses to (2, 4), (3, 0.5) to (3, 1)
    assert pareto([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]  # equal points do not beat each other
    assert pareto([(math.nan, 9.0), (1.0, 1.0)]) == [1]
    assert pareto([]) == []


@pytest.fixture
def table():
    rows = [
        {"setup": s, "training": t, "seed": k, "test_accuracy": a + k / 1000, "gini": g + k / 100, "sensitivity": 1 - g}
        for (s, a, g) in (("fp32", 0.99, 0.6), ("w2a2", 0.98, 0.5))
        for t in ("standard", "saliency_guided")
        for k in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_every_run_is_a_point_and_the_front_runs_through_means(table):
    fig = trade_off(table, {"gini": ("Gini", True), "sensitivity": ("sensitivity", False)})
    for axis in fig.axes[:2]:
        (front,) = (line for line in axis.lines if line.get_zorder() == 0)
        assert len(front.get_xdata()) == 2  # both trainings of fp32 lie at one place and beat w2a2
        assert front.get_ydata() == pytest.approx([99.05, 99.05])
        assert sum(len(marks.get_offsets()) for marks in axis.collections) == len(table)
    assert "← better" in fig.axes[1].get_xlabel() and "→ better" in fig.axes[0].get_xlabel()


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


def test_methods_have_names_and_looks():
    assert len({METHODS[method].title for method in METHODS}) == len(METHODS)
