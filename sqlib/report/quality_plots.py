"""The figures of `sqlib.study.jobs.quality`'s measurements; looks and colours are those of `sqlib.report.plots`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sqlib.report.plots import FAINT, INK, WIDTH, setup_style, styled, training_look, training_title

METHOD_STYLE = {
    "gradient": ("#000000", "o"),
    "input_x_gradient": ("#D55E00", "D"),
    "integrated_gradients": ("#0072B2", "s"),
    "smoothgrad": ("#009E73", "^"),
    "grad_cam": ("#CC79A7", "v"),
    "occlusion": ("#E69F00", "P"),
}
"""Colour and marker of a method (the palette of Okabe and Ito, as for the setups)."""


def method_title(name: str) -> str:
    """A method's name in words."""
    special = {"smoothgrad": "SmoothGrad", "grad_cam": "Grad-CAM", "input_x_gradient": "input × gradient"}
    return special.get(name, name.replace("_", " "))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats in both coordinates (higher is better), left to right.

    A point is beaten when another one is at least as good in both and better in one. NaN is left out.
    """
    points = [(float(x), float(y)) for x, y in points]
    known = [i for i, point in enumerate(points) if not np.isnan(point).any()]
    front = [
        i
        for i in known
        if not any(
            points[j][0] >= points[i][0] and points[j][1] >= points[i][1] and points[j] != points[i] for j in known
        )
    ]
    return sorted(front, key=lambda i: points[i])


@styled
def trade_off(table, measures: Mapping[str, tuple[str, bool]]) -> Figure:
    """Accuracy against each quality of the maps: a point a run, the means of a training joined, the Pareto front drawn.

    table: a row a run with setup, training, test_accuracy (0..1) and the measures. measures: column -> (axis label, is
    higher better?). The front is over the means: a setup and training on it is beaten in both by none.
    """

    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    fig = Figure(figsize=(WIDTH, 2.7 * rows + 0.5), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    setups = list(dict.fromkeys(table["setup"]))
    styles = setup_style(setups)
    trainings = list(dict.fromkeys(table["training"]))
    for axis, (column, (label, higher)) in zip(axes, measures.items(), strict=False):
        means = table.groupby(["training", "setup"], sort=False)[[column, "test_accuracy"]].mean().dropna()
        front = pareto([(x if higher else -x, y) for x, y in means.itertuples(index=False)])
        path = means.iloc[front]
        axis.plot(path[column], path["test_accuracy"] * 100, color="#f0c000", linewidth=7, alpha=0.45, zorder=0,
                  solid_capstyle="round", marker="o", markersize=13, markeredgewidth=0)  # fmt: skip
        for training in trainings:
            guided = training == "saliency_guided"
            if training in means.index.get_level_values(0):
                line = means.loc[training]
                axis.plot(line[column], line["test_accuracy"] * 100, "-" if guided else "--", color="#aaaaaa",
                          linewidth=1.1, zorder=1)  # fmt: skip
            for setup in setups:
                colour, marker = styles[setup]
                here = table[(table["training"] == training) & (table["setup"] == setup)]
                axis.plot(here[column], here["test_accuracy"] * 100, linestyle="none", marker=marker, markersize=5,
                          zorder=2, **training_look(training, colour))  # fmt: skip
        axis.set_xlabel(f"{label} {'→' if higher else '←'} better", fontsize=9)
        axis.margins(0.1)
        axis.grid(color="#ececec", linewidth=0.7)
    for axis in axes[len(measures) :]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel("test accuracy, %")
    handles = [
        Line2D([], [], linestyle="none", marker=styles[s].marker, color=styles[s].colour, label=s) for s in setups
    ]
    handles += [
        Line2D([], [], color=FAINT, marker="o", markersize=6, linestyle="-" if t == "saliency_guided" else "--",
               label=training_title(t), **training_look(t, FAINT))
        for t in trainings
    ]  # fmt: skip
    handles.append(Line2D([], [], color="#f0c000", linewidth=7, alpha=0.45, label="Pareto front of the means"))
    fig.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return fig


@styled
def sanity_depths(depths: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[str]) -> Figure:
    """Likeness to the trained network's map while layers are randomised from the last to the first: a panel a setup.

    depths: setup -> method -> mean Spearman after each of `layers`; before the first it is 1.
    """

    fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = fig.subplots(1, len(depths), sharey=True, squeeze=False)[0]
    for axis, (setup, methods) in zip(axes, depths.items(), strict=True):
        for method, values in methods.items():
            colour, marker = METHOD_STYLE.get(method, (INK, "o"))
            axis.plot(range(len(layers) + 1), [1.0, *values], color=colour, marker=marker, markersize=5)
        axis.axhline(0, color=FAINT, linewidth=0.8)
        axis.set_xticks(range(len(layers) + 1), ["none", *layers])
        axis.set_title(setup, loc="left")
        axis.grid(axis="y", color="#ececec", linewidth=0.7)
    axes[0].set_ylabel("Spearman, bright pixels")
    fig.supxlabel("layers with random weights, from the last one up to", fontsize=10)
    methods = dict.fromkeys(method for found in depths.values() for method in found)
    handles = [
        Line2D([], [], color=METHOD_STYLE.get(m, (INK, "o"))[0], marker=METHOD_STYLE.get(m, (INK, "o"))[1],
               markersize=5, label=method_title(m)) for m in methods
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False, fontsize=9)
    return fig


@styled
def fill_curves(curves: Mapping[tuple[str, str], Mapping[str, tuple]], fractions: Sequence[float]) -> Figure:
    """Accuracy while pixels are taken away or shown: a row a direction, a column a fill, a line a setup.

    curves: (direction, fill) -> setup -> (curve in the salient order, curve in a random order), accuracies 0..1.
    """

    directions = list(dict.fromkeys(direction for direction, _ in curves))
    fills = list(dict.fromkeys(fill for _, fill in curves))
    fig = Figure(figsize=(WIDTH, 2.3 * len(directions) + 0.5), layout="constrained")
    axes = fig.subplots(len(directions), len(fills), sharex=True, sharey=True, squeeze=False)
    names = list(dict.fromkeys(setup for found in curves.values() for setup in found))
    styles = setup_style(names)
    for i, direction in enumerate(directions):
        for j, fill in enumerate(fills):
            axis = axes[i, j]
            for setup, (salient, random) in curves[direction, fill].items():
                x, style = np.array(fractions) * 100, styles[setup]
                axis.plot(x, np.array(salient) * 100, color=style.colour, marker=style.marker, markersize=4)
                axis.plot(x, np.array(random) * 100, "--", color=style.colour, linewidth=1.1, alpha=0.7)
            axis.grid(color="#ececec", linewidth=0.7)
            axis.set(ylim=(0, 103), xlim=(-2, 92))
            if i == 0:
                axis.set_title(f"fill: {fill}", loc="left")
        axes[i, 0].set_ylabel(f"{direction}\naccuracy, %")
    fig.supxlabel("pixels replaced (deletion) or shown (insertion), %", fontsize=10)
    handles = [Line2D([], [], color=styles[s].colour, marker=styles[s].marker, markersize=4, label=s) for s in names]
    handles += [
        Line2D([], [], color=FAINT, linestyle="-", label="most salient first"),
        Line2D([], [], color=FAINT, linestyle="--", label="random order"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    return fig
