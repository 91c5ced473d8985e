"""Curves of what is lost: accuracy while pixels go, and likeness while layers are randomised."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sqlib.data.datasets import dataset_title
from sqlib.report.figures.style import FAINT, INK, METHOD_STYLE, WIDTH, setup_style, styled, training_look
from sqlib.report.words import method_title, training_title


@styled
def deletion_curves(results: Sequence[Mapping]) -> Figure:
    """Accuracy while pixels are blanked, most salient first (solid) or at random (dashed).

    A column a setup, a row a training. `results`: one mapping a run with `setup`, `training`, `fractions`, `deletion`,
    `random`. Lines are means over the runs, bands go from their smallest to their largest.
    """
    setups = list(dict.fromkeys(result["setup"] for result in results))
    trainings = list(dict.fromkeys(result["training"] for result in results))
    styles = setup_style(setups)
    fig = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(trainings)), layout="constrained")
    axes = fig.subplots(len(trainings), len(setups), sharex=True, sharey=True, squeeze=False)
    for i, training in enumerate(trainings):
        for j, setup in enumerate(setups):
            axis, style = axes[i, j], styles[setup]
            runs = [r for r in results if r["setup"] == setup and r["training"] == training]
            if not runs:
                axis.text(0.5, 0.5, "no run", transform=axis.transAxes, ha="center", color=FAINT)
            for kind, line in (("deletion", "-"), ("random", "--")) if runs else ():
                x = np.array(runs[0]["fractions"]) * 100
                curves = np.array([run[kind] for run in runs]) * 100
                axis.plot(x, curves.mean(axis=0), line, color=style.colour if line == "-" else FAINT)
                if len(runs) > 1:
                    axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), alpha=0.22, linewidth=0,
                                      color=style.colour if line == "-" else FAINT)  # fmt: skip
            axis.set(ylim=(0, 103), xlim=(0, 92))
            axis.grid(color="#ececec", linewidth=0.7)
            if i == 0:
                axis.set_title(setup, color=style.text, fontweight="bold")
        axes[i, 0].set_ylabel(f"{training_title(training)}\naccuracy, %")
    fig.supxlabel("blanked pixels, %", fontsize=10)
    handles = [
        Line2D([], [], color=INK, linestyle="-", label="most salient first"),
        Line2D([], [], color=FAINT, linestyle="--", label="at random"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
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


@styled
def roar_curves(result: Mapping) -> Figure:
    """Accuracy of retrained networks against the removed pixels: a panel a setup, a line an explained run.

    result: `roar.measure`'s, or its file. Open marks: standard training of the explained run, filled: saliency-guided;
    dashed grey: a random order. Lines are means over the retrained seeds, bands go from the lowest to the highest.
    """
    explained = list(result["explained"].values())
    setups = list(dict.fromkeys(run["setup"] for run in explained))
    styles = setup_style(setups)
    fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = fig.subplots(1, len(setups), sharex=True, sharey=True, squeeze=False)[0]
    for axis, setup in zip(axes, setups, strict=True):
        _line(axis, result, result["random"], color=FAINT, linestyle="--")
        for run in (run for run in explained if run["setup"] == setup):
            colour, marker = styles[setup]
            look = training_look(run["training"], colour)
            _line(axis, result, run["accuracy"], color=colour, marker=marker, markersize=6, **look)
        axis.set_title(setup, color=styles[setup].text, fontweight="bold")
        axis.set(xlim=(-2, 102), xticks=range(0, 101, 20))
        axis.grid(color="#ececec", linewidth=0.7)
    axes[0].set_ylabel(f"{dataset_title(result['dataset'])}\nretrained accuracy, %")
    fig.supxlabel("removed pixels, %", fontsize=10)
    trainings = list(dict.fromkeys(run["training"] for run in explained))
    handles = [
        Line2D(
            [],
            [],
            color=FAINT,
            marker="o",
            markersize=6,
            label=f"most salient first, {training_title(training)}",
            **training_look(training, FAINT),
        )
        for training in trainings
    ]
    handles.append(Line2D([], [], color=FAINT, linestyle="--", label="at random"))
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    return fig


def _line(axis, result: Mapping, accuracy: list[list[float]], **look) -> None:
    """Mean and range over the seeds of accuracy [seed][fraction], from the intact images on."""
    x = 100 * np.array([0.0, *result["fractions"]])
    curves = 100 * np.column_stack([result["intact"], accuracy])
    axis.plot(x, curves.mean(axis=0), **look)
    axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=look["color"], alpha=0.2, linewidth=0)


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
