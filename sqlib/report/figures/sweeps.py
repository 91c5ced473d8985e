"""How the study's parameters were chosen: a sweep drawn factor by factor."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sqlib.data.datasets import dataset_title
from sqlib.measures import row_of
from sqlib.report.figures.parts import handle, key, panels, present
from sqlib.report.figures.style import INK, SetupStyle, styled
from sqlib.study.sweeps import ON_VALIDATION

LOOKS = (SetupStyle(INK, "o"), SetupStyle("#0072B2", "s"))
"""Of the data sets, in their order."""


@styled
def sweep_panels(table, factors: Sequence[str], sweep) -> Figure:
    """A sweep, a row a factor: validation accuracy, dead maps and Gini by its value; a mark a seed, a line the means.

    table: `sqlib.study.sweeps.collect_trials`. The study's default is marked by a band; the dashed line is the baseline.
    """
    datasets = present(table, "dataset")
    looks = {name: LOOKS[i % 2] for i, name in enumerate(datasets)}
    fig, axes = panels(len(factors), len(ON_VALIDATION), 2.15 * len(factors) + 0.4, "y")
    for row, name in zip(axes, factors, strict=True):
        for axis, column in zip(row, ON_VALIDATION, strict=True):
            for i, (dataset, look) in enumerate(looks.items()):
                here = table[table["dataset"] == dataset].assign(y=table[column] * row_of(column).factor)
                _factor(axis, here, name, sweep.factors[name], look, 0.12 * (i - (len(datasets) - 1) / 2))
                baseline = here.loc[here["factor"] == "baseline", "y"]
                if column != "val_dead_map_rate" and len(baseline):
                    axis.axhline(baseline.mean(), color=look.colour, linewidth=0.9, linestyle="--")
            axis.margins(y=0.15)
            if column == "val_dead_map_rate":  # a share: nothing below 0, and a scale also where all are 0
                top = max(0.9, axis.get_ylim()[1])
                axis.set_ylim(-0.06 * top, top)
            axis.set_ylabel(row_of(column).label, fontsize=9)
        row[0].set_title(sweep.factors[name].title, loc="left", fontsize=10)
    handles = [handle(dataset_title(d), *look, line="-", markerfacecolor="none") for d, look in looks.items()]
    key(fig, handles)
    return fig


def _factor(axis, trials, name: str, factor, look: SetupStyle, shift: float) -> None:
    """A data set's trials of one factor (column `y`): marks, and a line through the means; its default in a band."""
    import seaborn

    labels = list(factor.values)
    default = labels.index(factor.default)
    axis.axvspan(default - 0.35, default + 0.35, color="#eeeeee", zorder=0)
    here = trials[trials["factor"] == name]
    x = here["value"].map(labels.index) + shift
    seaborn.lineplot(x=x, y=here["y"], errorbar=None, color=look.colour, linewidth=1.4, ax=axis)
    axis.plot(x, here["y"], look.marker, color=look.colour, markersize=4, markerfacecolor="none")
    axis.set_xlabel("")
    axis.set_xticks(range(len(labels)), labels, fontsize=9)
    axis.set_xlim(-0.5, len(labels) - 0.5)
