"""The figure of ROAR's result (`sqlib.study.jobs.roar`), in the style of `sqlib.report.plots`."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sqlib.data.datasets import dataset_title
from sqlib.report.plots import FAINT, WIDTH, setup_style, styled, training_look, training_title


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
