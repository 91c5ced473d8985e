"""Setups beside each other: accuracy against the quality of the maps, quantities by setup, agreement, the Pareto front."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sqlib.data.datasets import dataset_title
from sqlib.measures import family, row_of
from sqlib.report.figures.parts import dash, handle, key, marks, panels, present, training_handles
from sqlib.report.figures.style import FAINT, SetupStyle, setup_style, styled

FRONT_LOOK = {"color": "#f0c000", "linewidth": 7, "alpha": 0.45}


def _against_accuracy(axis, rows, column: str, factor: float, styles: Mapping[str, SetupStyle], size: float, **look):
    """A mark a run at (column, test accuracy in %), the means of each training joined; returns the means: x, y, setup..."""
    rows = rows.assign(x=rows[column] * factor, y=rows["test_accuracy"] * 100)
    means = rows.groupby(["training", "setup"], sort=False)[["x", "y"]].mean().dropna().reset_index()
    for training, line in means.groupby("training", sort=False):
        axis.plot(line["x"], line["y"], dash(training), color="#aaaaaa", linewidth=1.2, zorder=1)
    marks(axis, rows, "x", "y", styles, size, **look)
    return means


@styled
def accuracy_against(df, quality: str = "gini") -> Figure:
    """Test accuracy against a quality of the maps: a faint point a run, the mean of each setup and training in front.

    The means of one training are joined in the setups' order. `df`: rows of runs.csv; a panel a data set.
    """
    datasets, trainings = present(df, "dataset"), present(df, "training")
    styles = setup_style(present(df, "setup"))
    measure = row_of(quality)
    fig, axes = panels(1, len(datasets), 4.0)
    means = {}
    for axis, dataset in zip(axes[0], datasets, strict=True):
        part = df[df["dataset"] == dataset]
        means[axis] = _against_accuracy(
            axis, part, quality, measure.factor, styles, 4, alpha=0.45, linewidth=0.8, zorder=2
        )
        marks(axis, means[axis], "x", "y", styles, 9)
        axis.margins(x=0.14, y=0.12)
        axis.set_xlabel(measure.label + (f" ({measure.better} is better)" if measure.better else ""))
        axis.set_ylabel("test accuracy, %")
        if len(datasets) > 1:
            axis.set_title(dataset_title(dataset), loc="left")
    if len(trainings) > 1:
        key(fig, training_handles(trainings, "{} training"))
    fig.draw_without_rendering()  # the layout decides where there is room
    for axis, found in means.items():
        _label_marks(axis, [(row.x, row.y, row.setup, styles[row.setup].text) for row in found.itertuples()])
    return fig


def _label_marks(axis, marks: Sequence[tuple[float, float, str, object]]) -> None:
    """Words beside marks, (x, y, word, colour) each: at the first side where they cover neither a mark nor other words."""
    unit = axis.figure.dpi / 72
    places = [tuple(place / unit for place in axis.transData.transform((x, y))) for x, y, *_ in marks]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    halo = withStroke(linewidth=2.5, foreground="w")
    for (x, y), (value_x, value_y, word, colour) in zip(places, marks, strict=True):
        wide = 5.6 * len(word)
        right, left, middle = 7, -7 - wide, -wide / 2
        sides = [(right, 5), (right, -14), (left, 5), (left, -14), (right, -4), (left, -4), (middle, 9), (middle, -18)]
        boxes = [(x + across, y + up, x + across + wide, y + up + 10) for across, up in sides]

        def covers(box) -> float:
            left, low, right, high = np.array(taken).T
            across = np.minimum(box[2], right) - np.maximum(box[0], left)
            up = np.minimum(box[3], high) - np.maximum(box[1], low)
            return float((across.clip(0) * up.clip(0)).sum())

        best = min(range(len(sides)), key=lambda at: (round(covers(boxes[at])), at))
        taken.append(boxes[best])
        axis.annotate(word, (value_x, value_y), xytext=sides[best], textcoords="offset points", fontsize=9, color=colour,
                      zorder=5, path_effects=[halo])  # fmt: skip


def _by_setup(axis, rows, column: str, factor: float, setups: Sequence[str], trainings: Sequence[str]) -> None:
    """A mark a row above its setup, the trainings side by side, and a short line for the mean of several."""
    import seaborn

    rows, styles = rows.dropna(subset=[column]), setup_style(setups)
    groups = rows.groupby(["setup", "training"], sort=False)
    several, place = groups[column].transform("size") > 1, groups.cumcount()
    beside = 0.36 * (rows["training"].map(trainings.index) - (len(trainings) - 1) / 2)
    middle = rows["setup"].map(setups.index) + beside
    apart = several * 0.14 * (place / (groups[column].transform("size") - 1).clip(1) - 0.5)
    rows = rows.assign(middle=middle, x=middle + apart, y=rows[column] * factor)
    seaborn.pointplot(
        rows[several], x="middle", y="y", hue="setup", palette={name: style.colour for name, style in styles.items()},
        native_scale=True, marker="_", markersize=14, markeredgewidth=2, linestyle="none", errorbar=None, legend=False,
        ax=axis,
    )  # fmt: skip
    marks(axis, rows, "x", "y", styles, 6)
    few = len(setups) <= 5
    axis.set(xlim=(-0.6, len(setups) - 0.4))
    axis.set_xticks(range(len(setups)), setups, rotation=0 if few else 40, ha="center" if few else "right")
    axis.margins(y=0.12)


@styled
def by_setup(df, *columns: str) -> Figure:
    """Quantities of runs.csv per setup: a point a seed, a short line for the mean, a row a quantity, a panel a data set."""
    datasets, trainings, setups = present(df, "dataset"), present(df, "training"), present(df, "setup")
    columns = columns or ("test_accuracy",)
    fig, axes = panels(len(columns), len(datasets), 0.7 + 2.5 * len(columns), "y")
    for row, column in zip(axes, columns, strict=True):
        for axis, dataset in zip(row, datasets, strict=True):
            _by_setup(axis, df[df["dataset"] == dataset], column, row_of(column).factor, setups, trainings)
        row[0].set_ylabel(row_of(column).label)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        axis.set_title(dataset_title(dataset), loc="left")
    if len(trainings) > 1:
        key(fig, training_handles(trainings, "{} training", lambda _: "none"))
    return fig


@styled
def agreement(df, ceiling: Mapping[tuple[str, str], float] | None = None) -> Figure:
    """Agreement of maps with those of the unquantised network: a panel a measure, a point a pair of models.

    `df` has columns setup, training, seed and the measures of agreement; `ceiling[training, measure]` is a line.
    """
    setups, trainings, ceiling = present(df, "setup"), present(df, "training"), ceiling or {}
    measures = [row.name for row in family("agreement") if row.name in df]
    fig, axes = panels(1, len(measures), 3.2, "y", sharey=True)
    for axis, measure in zip(axes[0], measures, strict=True):
        _by_setup(axis, df, measure, 1, setups, trainings)
        for training in trainings:
            if np.isfinite(level := ceiling.get((training, measure), np.nan)):
                axis.axhline(level, color=FAINT, linestyle=dash(training), linewidth=1.2)
        axis.set_title(row_of(measure).title, loc="left")
        axis.set_ylim(min(0, df[measure].min(skipna=True) - 0.05), 1.02)
    axes[0, 0].set_ylabel("agreement (1: the same)")
    if ceiling or len(trainings) > 1:
        words = "{} training (line: its ceiling)" if ceiling else "{} training"
        key(fig, training_handles(trainings, words, dash if ceiling else lambda _: "none"))
    return fig


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
    fig, axes = panels(-(-len(measures) // columns), columns, 2.7 * -(-len(measures) // columns) + 0.5)
    styles = setup_style(present(table, "setup"))
    for axis, (column, (label, higher)) in zip(axes.flat, measures.items(), strict=False):
        means = _against_accuracy(axis, table, column, 1, styles, 5)
        front = means.iloc[pareto([(x if higher else -x, y) for x, y in zip(means["x"], means["y"], strict=True)])]
        axis.plot(front["x"], front["y"], zorder=0, solid_capstyle="round", marker="o", markersize=13,
                  markeredgewidth=0, **FRONT_LOOK)  # fmt: skip
        axis.set_xlabel(f"{label} {'→' if higher else '←'} better", fontsize=9)
        axis.margins(0.1)
    for axis in axes.flat[len(measures) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("test accuracy, %")
    handles = [handle(setup, *style) for setup, style in styles.items()] + training_handles(present(table, "training"))
    key(fig, [*handles, handle("Pareto front of the means", line="-", **FRONT_LOOK)], 4)
    return fig
