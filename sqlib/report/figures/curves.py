"""Curves of what is lost: accuracy while pixels go, and likeness while layers are randomised."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sqlib.data.datasets import dataset_title
from sqlib.maps.attribution import METHODS
from sqlib.report.figures.parts import curve, handle, key, panels, training_handles, training_look
from sqlib.report.figures.style import FAINT, INK, METHOD_STYLE, SetupStyle, setup_style, styled
from sqlib.report.words import training_title


@styled
def deletion_curves(results: Sequence[Mapping]) -> Figure:
    """Accuracy while pixels are blanked, most salient first (solid) or at random (dashed).

    A column a setup, a row a training. `results`: one mapping a run with `setup`, `training`, `fractions`, `deletion`,
    `random`. Lines are means over the runs, bands go from their smallest to their largest.
    """
    setups = list(dict.fromkeys(result["setup"] for result in results))
    trainings = list(dict.fromkeys(result["training"] for result in results))
    fig, axes = panels(len(trainings), len(setups), 0.5 + 1.75 * len(trainings), sharex=True, sharey=True)
    for row, training in zip(axes, trainings, strict=True):
        for axis, (setup, style) in zip(row, setup_style(setups).items(), strict=True):
            runs = [r for r in results if r["setup"] == setup and r["training"] == training]
            if runs:
                x = np.array(runs[0]["fractions"]) * 100
                curve(axis, x, [100 * np.array(run["deletion"]) for run in runs], color=style.colour)
                curve(axis, x, [100 * np.array(run["random"]) for run in runs], color=FAINT, linestyle="--")
            else:
                axis.text(0.5, 0.5, "no run", transform=axis.transAxes, ha="center", color=FAINT)
            axis.set(ylim=(0, 103), xlim=(0, 92))
            if training == trainings[0]:
                axis.set_title(setup, color=style.text, fontweight="bold")
        row[0].set_ylabel(f"{training_title(training)}\naccuracy, %")
    fig.supxlabel("blanked pixels, %", fontsize=10)
    key(fig, [handle("most salient first", INK, line="-"), handle("at random", line="--")])
    return fig


@styled
def fill_curves(curves: Mapping[tuple[str, str], Mapping[str, tuple]], fractions: Sequence[float]) -> Figure:
    """Accuracy while pixels are taken away or shown: a row a direction, a column a fill, a line a setup.

    curves: (direction, fill) -> setup -> (curve in the salient order, curve in a random order), accuracies 0..1.
    """
    directions = list(dict.fromkeys(direction for direction, _ in curves))
    fills = list(dict.fromkeys(fill for _, fill in curves))
    styles = setup_style(list(dict.fromkeys(setup for found in curves.values() for setup in found)))
    fig, axes = panels(len(directions), len(fills), 2.3 * len(directions) + 0.5, sharex=True, sharey=True)
    x = np.array(fractions) * 100
    for row, direction in zip(axes, directions, strict=True):
        for axis, fill in zip(row, fills, strict=True):
            for setup, (salient, random) in curves[direction, fill].items():
                colour, marker = styles[setup]
                axis.plot(x, 100 * np.array(salient), color=colour, marker=marker, markersize=4)
                axis.plot(x, 100 * np.array(random), "--", color=colour, linewidth=1.1, alpha=0.7)
            axis.set(ylim=(0, 103), xlim=(-2, 92))
            if direction == directions[0]:
                axis.set_title(f"fill: {fill}", loc="left")
        row[0].set_ylabel(f"{direction}\naccuracy, %")
    fig.supxlabel("pixels replaced (deletion) or shown (insertion), %", fontsize=10)
    orders = [handle("most salient first", line="-"), handle("random order", line="--")]
    key(fig, [handle(setup, *style, line="-") for setup, style in styles.items()] + orders, len(styles) + 2)
    return fig


@styled
def roar_curves(result: Mapping) -> Figure:
    """Accuracy of retrained networks against the removed pixels: a panel a setup, a line an explained run.

    result: `sqlib.study.jobs.roar.remove_and_retrain`'s, or its file. Open marks: standard training of the explained run, filled:
    saliency-guided; dashed grey: a random order. Lines are means over the retrained seeds, bands go from the lowest to
    the highest.
    """
    explained = list(result["explained"].values())
    styles = setup_style(list(dict.fromkeys(run["setup"] for run in explained)))
    x, intact = 100 * np.array([0.0, *result["fractions"]]), result["intact"]
    fig, axes = panels(1, len(styles), 3.4, sharex=True, sharey=True)
    for axis, (setup, style) in zip(axes[0], styles.items(), strict=True):
        curve(axis, x, 100 * np.column_stack([intact, result["random"]]), color=FAINT, linestyle="--")
        for run in (run for run in explained if run["setup"] == setup):
            look = {"marker": style.marker, "markersize": 6, **training_look(run["training"], style.colour)}
            curve(axis, x, 100 * np.column_stack([intact, run["accuracy"]]), color=style.colour, **look)
        axis.set_title(setup, color=style.text, fontweight="bold")
        axis.set(xlim=(-2, 102), xticks=range(0, 101, 20))
    axes[0, 0].set_ylabel(f"{dataset_title(result['dataset'])}\nretrained accuracy, %")
    fig.supxlabel("removed pixels, %", fontsize=10)
    trainings = list(dict.fromkeys(run["training"] for run in explained))
    handles = training_handles(trainings, "most salient first, {}", lambda _: "-")
    key(fig, [*handles, handle("at random", line="--")])
    return fig


@styled
def sanity_depths(depths: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[str]) -> Figure:
    """Likeness to the trained network's map while layers are randomised from the last to the first: a panel a setup.

    depths: setup -> method -> mean Spearman after each of `layers`; before the first it is 1.
    """
    fig, axes = panels(1, len(depths), 3.4, "y", sharey=True)
    styles = {method: METHOD_STYLE.get(method, SetupStyle(INK, "o")) for found in depths.values() for method in found}
    for axis, (setup, methods) in zip(axes[0], depths.items(), strict=True):
        for method, values in methods.items():
            colour, marker = styles[method]
            axis.plot(range(len(layers) + 1), [1.0, *values], color=colour, marker=marker, markersize=5)
        axis.axhline(0, color=FAINT, linewidth=0.8)
        axis.set_xticks(range(len(layers) + 1), ["none", *layers])
        axis.set_title(setup, loc="left")
    axes[0, 0].set_ylabel("Spearman, bright pixels")
    fig.supxlabel("layers with random weights, from the last one up to", fontsize=10)
    key(fig, [handle(METHODS[method].title, *style, line="-") for method, style in styles.items()], 3)
    return fig
