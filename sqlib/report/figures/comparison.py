"""Setups beside each other: accuracy against the quality of the maps, quantities by setup, agreement, the Pareto front."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from sqlib.data.datasets import dataset_title
from sqlib.measures import family, row_of
from sqlib.report.figures.style import FAINT, WIDTH, present, setup_style, styled, training_key, training_look
from sqlib.report.words import training_title


@styled
def accuracy_against(df, quality: str = "gini") -> Figure:
    """Test accuracy against a quality of the maps: a faint point a run, the mean of each setup and training in front.

    The means of one training are joined in the setups' order. `df`: rows of runs.csv; a panel a data set.
    """
    datasets, trainings = present(df, "dataset"), present(df, "training")
    fig = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = fig.subplots(1, len(datasets), squeeze=False)[0]
    styles = setup_style(present(df, "setup"))
    measure = row_of(quality)
    factor = measure.factor
    words = {axis: [] for axis in axes}
    for axis, dataset in zip(axes, datasets, strict=True):
        part = df[df["dataset"] == dataset]
        for training in trainings:
            chosen = part[part["training"] == training]
            means = chosen.groupby("setup", sort=False)[[quality, "test_accuracy"]].mean()
            guided = training == "saliency_guided"
            axis.plot(means[quality] * factor, means["test_accuracy"] * 100, "-" if guided else "--",
                      color="#aaaaaa", linewidth=1.2, zorder=1)  # fmt: skip
            for setup, mean in means.iterrows():
                colour, marker = styles[setup]
                runs = chosen[chosen["setup"] == setup]
                look = training_look(training, colour)
                if len(runs) > 1:
                    axis.plot(runs[quality] * factor, runs["test_accuracy"] * 100, linestyle="none", marker=marker,
                              markersize=4, alpha=0.45, zorder=2, **{**look, "markeredgewidth": 0.8})  # fmt: skip
                axis.plot(mean[quality] * factor, mean["test_accuracy"] * 100, marker=marker, markersize=9,
                          linestyle="none", zorder=3, **look)  # fmt: skip
                words[axis].append((mean[quality] * factor, mean["test_accuracy"] * 100, setup, styles[setup].text))
        axis.margins(x=0.14, y=0.12)
        axis.set_xlabel(measure.label + (f" ({measure.better} is better)" if measure.better else ""))
        axis.set_ylabel("test accuracy, %")
        if len(datasets) > 1:
            axis.set_title(dataset_title(dataset), loc="left")
    training_key(fig, trainings)
    fig.draw_without_rendering()  # the layout decides where there is room
    for axis, marks in words.items():
        _label_marks(axis, marks)
    return fig


def _label_marks(axis, marks: Sequence[tuple[float, float, str, object]]) -> None:
    """Words beside marks, (x, y, word, colour) each: at the first side where they cover neither a mark nor other words."""
    unit = axis.figure.dpi / 72
    places = [tuple(place / unit for place in axis.transData.transform((x, y))) for x, y, *_ in marks]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    halo = withStroke(linewidth=2.5, foreground="w")
    for (x, y), (value_x, value_y, word, colour) in zip(places, marks, strict=True):
        wide = 5.6 * len(word)
        sides = [
            (7, 5),
            (7, -14),
            (-7 - wide, 5),
            (-7 - wide, -14),
            (7, -4),
            (-7 - wide, -4),
            (-wide / 2, 9),
            (-wide / 2, -18),
        ]
        boxes = [(x + right, y + up, x + right + wide, y + up + 10) for right, up in sides]

        def covers(box) -> float:
            return sum(
                max(0, min(box[2], other[2]) - max(box[0], other[0]))
                * max(0, min(box[3], other[3]) - max(box[1], other[1]))
                for other in taken
            )

        best = min(range(len(sides)), key=lambda at: (round(covers(boxes[at])), at))
        taken.append(boxes[best])
        axis.annotate(word, (value_x, value_y), xytext=sides[best], textcoords="offset points", fontsize=9, color=colour,
                      zorder=5, path_effects=[halo])  # fmt: skip


def _by_setup_panel(axis, df, column: str, factor: float, setups: Sequence[str], trainings: Sequence[str]) -> None:
    styles = setup_style(setups)
    for i, setup in enumerate(setups):
        colour, marker = styles[setup]
        for j, training in enumerate(trainings):
            rows = df[(df["setup"] == setup) & (df["training"] == training)]
            values = rows[column].to_numpy(dtype=float) * factor
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            x = i + 0.36 * (j - (len(trainings) - 1) / 2)
            if len(values) > 1:
                axis.hlines(values.mean(), x - 0.15, x + 0.15, color=colour, linewidth=2)
            spread = x + np.linspace(-0.07, 0.07, len(values)) * (len(values) > 1)
            axis.plot(spread, values, linestyle="none", marker=marker, markersize=6, **training_look(training, colour))
    axis.set(xticks=range(len(setups)), xlim=(-0.6, len(setups) - 0.4))
    axis.set_xticklabels(setups, rotation=0 if len(setups) <= 5 else 40, ha="center" if len(setups) <= 5 else "right")
    axis.margins(y=0.12)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)


@styled
def by_setup(df, *columns: str) -> Figure:
    """Quantities of runs.csv per setup: a point a seed, a short line for the mean, a row a quantity, a panel a data set."""
    datasets, trainings, setups = present(df, "dataset"), present(df, "training"), present(df, "setup")
    columns = columns or ("test_accuracy",)
    fig = Figure(figsize=(WIDTH, 0.7 + 2.5 * len(columns)), layout="constrained")
    panels = fig.subplots(len(columns), len(datasets), squeeze=False)
    for axes, column in zip(panels, columns, strict=True):
        for axis, dataset in zip(axes, datasets, strict=True):
            _by_setup_panel(axis, df[df["dataset"] == dataset], column, row_of(column).factor, setups, trainings)
        axes[0].set_ylabel(row_of(column).label)
    for axis, dataset in zip(panels[0], datasets, strict=True):
        axis.set_title(dataset_title(dataset), loc="left")
    training_key(fig, trainings, lines=None)
    return fig


@styled
def agreement(df, ceiling: Mapping[tuple[str, str], float] | None = None) -> Figure:
    """Agreement of maps with those of the unquantised network: a panel a measure, a point a pair of models.

    `df` has columns setup, training, seed and the measures of agreement; `ceiling[training, measure]` is a line.
    """
    setups, trainings = present(df, "setup"), present(df, "training")
    styles = setup_style(setups)
    measures = [row.name for row in family("agreement") if row.name in df]
    fig = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = fig.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axis, measure in zip(axes, measures, strict=True):
        for i, setup in enumerate(setups):
            for j, training in enumerate(trainings):
                values = df[(df["setup"] == setup) & (df["training"] == training)][measure].to_numpy(dtype=float)
                x = i + 0.3 * (j - (len(trainings) - 1) / 2)
                axis.plot(np.full(len(values), x), values, linestyle="none", marker=styles[setup].marker,
                          **training_look(training, styles[setup].colour))  # fmt: skip
        for training in trainings:
            level = (ceiling or {}).get((training, measure))
            if level is not None and np.isfinite(level):
                axis.axhline(
                    level, color=FAINT, linestyle="-" if training == "saliency_guided" else "--", linewidth=1.2
                )
        axis.set(xticks=range(len(setups)), xlim=(-0.6, len(setups) - 0.4))
        axis.set_xticklabels(
            setups, rotation=0 if len(setups) <= 4 else 40, ha="center" if len(setups) <= 4 else "right"
        )
        axis.set_title(row_of(measure).title, loc="left")
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        low = float(np.nanmin(df[measure])) if df[measure].notna().any() else 0.0
        axis.set_ylim(min(axis.get_ylim()[0], 0, low), 1.02)
    axes[0].set_ylabel("agreement (1: the same)")
    training_key(fig, trainings, lines=" (line: its ceiling)" if ceiling else None)
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
