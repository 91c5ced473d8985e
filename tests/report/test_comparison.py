"""Setups beside each other: the Pareto front by hand, every run a mark, every mean where it belongs."""

import math

import matplotlib
import pandas as pd
import pytest

from sqlib.maps.attribution import METHODS
from sqlib.report import figures
from sqlib.report.figures import pareto, trade_off


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


def test_methods_have_names_and_looks():
    assert len({METHODS[method].title for method in METHODS}) == len(METHODS)


def test_a_mark_a_run_open_for_standard_training_and_a_line_at_each_mean(table):
    fig = figures.by_setup(table.assign(dataset="mnist"), "gini")
    (axis,) = fig.axes
    standard, guided = axis.collections
    assert len(standard.get_offsets()) == len(guided.get_offsets()) == 4
    assert {tuple(colour) for colour in standard.get_facecolor()} == {(1.0, 1.0, 1.0, 1.0)}
    assert len({tuple(colour) for colour in guided.get_facecolor()}) == 2  # a colour a setup
    means = sorted(float(y) for line in axis.lines for y in line.get_ydata() if y == y)
    assert means == pytest.approx([0.505, 0.505, 0.605, 0.605])


def test_drawing_leaves_the_settings_of_matplotlib_alone(table):
    before = dict(matplotlib.rcParams)
    figures.by_setup(table.assign(dataset="mnist"), "gini")
    assert dict(matplotlib.rcParams) == before
