"""How the study's parameters were chosen: a sweep drawn factor by factor."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sqlib.data.datasets import dataset_title
from sqlib.measures import row_of
from sqlib.report.figures.style import INK, WIDTH, present, styled
from sqlib.study.sweeps import ON_VALIDATION


@styled
def sweep_panels(table, factors: Sequence[str], sweep) -> Figure:
    """A sweep, a row a factor: validation accuracy, dead maps and Gini by its value; a mark a seed, a line the means.

    table: `sqlib.study.sweeps.collect_trials`. The study's default is marked by a band; the dashed line is the baseline.
    """
    datasets = present(table, "dataset")
    looks = {name: ((INK, "o"), ("#0072B2", "s"))[i % 2] for i, name in enumerate(datasets)}
    fig = Figure(figsize=(WIDTH, 2.15 * len(factors) + 0.4), layout="constrained")
    axes = fig.subplots(len(factors), len(ON_VALIDATION), squeeze=False)
    for row, name in zip(axes, factors, strict=True):
        factor = sweep.factors[name]
        labels = list(factor.values)
        for axis, column in zip(row, ON_VALIDATION, strict=True):
            scale = row_of(column).factor
            axis.axvspan(labels.index(factor.default) - 0.35, labels.index(factor.default) + 0.35, color="#eeeeee")
            for i, dataset in enumerate(datasets):
                colour, marker = looks[dataset]
                here = table[(table["dataset"] == dataset) & (table["factor"] == name)]
                values = [here.loc[here["value"] == label, column].to_numpy(dtype=float) * scale for label in labels]
                shift = 0.12 * (i - (len(datasets) - 1) / 2)
                for x, points in enumerate(values):
                    axis.plot([x + shift] * len(points), points, linestyle="none", marker=marker, markersize=4,
                              markerfacecolor="none", color=colour)  # fmt: skip
                means = [points.mean() if len(points) else np.nan for points in values]
                axis.plot(np.arange(len(labels)) + shift, means, color=colour, linewidth=1.4)
                base = table[(table["dataset"] == dataset) & (table["factor"] == "baseline")][column]
                if column != "val_dead_map_rate" and len(base):
                    axis.axhline(base.mean() * scale, color=colour, linewidth=0.9, linestyle="--")
            axis.set_xticks(range(len(labels)), labels, fontsize=9)
            axis.set_xlim(-0.5, len(labels) - 0.5)
            axis.margins(y=0.15)
            if column == "val_dead_map_rate":  # a share: nothing below 0, and a scale also where all are 0
                top = max(0.9, axis.get_ylim()[1])
                axis.set_ylim(-0.06 * top, top)
            axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axis.set_ylabel(row_of(column).label, fontsize=9)
        row[0].set_title(factor.title, loc="left", fontsize=10)
    for dataset in datasets:
        colour, marker = looks[dataset]
        axes[0, 0].plot([], [], color=colour, marker=marker, markerfacecolor="none", label=dataset_title(dataset))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(datasets), frameon=False)
    return fig
