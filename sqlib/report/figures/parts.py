"""The parts that figures are put together from: panels, marks of runs, curves with their bands, and keys.

seaborn is imported where it draws: it takes a second, and most commands draw nothing.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sqlib.report.figures.style import FAINT, WIDTH, SetupStyle
from sqlib.report.words import training_title


def present(rows, column: str) -> list[str]:
    """The values of a column, each once, in their order."""
    return list(dict.fromkeys(rows[column]))


def panels(rows: int, columns: int, height: float, grid: str = "both", **share) -> tuple[Figure, np.ndarray]:
    """(a figure `height` inches high, its axes (rows, columns) with faint lines along `grid`: x, y or both)."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, **share)
    for axis in axes.flat:
        axis.grid(axis=grid, color="#e9e9e9", linewidth=0.8)
    return fig, axes


def dash(training: str) -> str:
    """The line of a training: solid for saliency-guided, dashed for standard."""
    return "-" if training == "saliency_guided" else "--"


def training_look(training: str, colour: str) -> dict:
    """Marks of a training, for `axis.plot`: filled for saliency-guided, open for standard."""
    guided = training == "saliency_guided"
    return {"markerfacecolor": colour if guided else "white", "markeredgecolor": colour, "markeredgewidth": 1.6}


def marks(axis, rows, x: str, y: str, styles: Mapping[str, SetupStyle], size: float = 6, **look) -> None:
    """A mark at the columns `x` and `y` of each row that has both: in its setup's style, open for standard training."""
    import seaborn

    for training, part in rows.dropna(subset=[x, y]).groupby("training", sort=False):
        seaborn.scatterplot(
            part, x=x, y=y, hue="setup", style="setup", palette={name: style.colour for name, style in styles.items()},
            markers={name: style.marker for name, style in styles.items()}, s=size**2, legend=False, ax=axis,
            **{"edgecolor": "face", "linewidth": 1.6, "zorder": 3} | look,
        )  # fmt: skip
        if training != "saliency_guided":
            drawn = axis.collections[-1]
            drawn.set(edgecolor=drawn.get_facecolor(), facecolor="white")
    axis.set(xlabel="", ylabel="")


def curve(axis, x: Sequence[float], values, **look) -> None:
    """A line through the means of `values` (runs, points) over `x`, and a band from their lowest to their highest."""
    import seaborn

    values = np.atleast_2d(np.asarray(values, dtype=float))
    seaborn.lineplot(
        x=np.tile(x, len(values)), y=values.ravel(), errorbar=("pi", 100), err_kws={"alpha": 0.2, "linewidth": 0},
        ax=axis, **look,
    )  # fmt: skip


def handle(label: str, colour: str = FAINT, marker: str = "", line: str = "none", **look) -> Line2D:
    """An entry of a key."""
    look = {"color": colour, "markersize": 6, **look}
    return Line2D([], [], marker=marker, linestyle=line, label=label, **look)


def training_handles(trainings: Sequence[str], words: str = "{}", line: Callable[[str], str] = dash) -> list[Line2D]:
    """Entries that say what open and filled marks mean; `words` go around a training's name, `line` is its line."""
    return [handle(words.format(training_title(t)), FAINT, "o", line(t), **training_look(t, FAINT)) for t in trainings]


def key(fig: Figure, handles: Sequence[Line2D], columns: int = 6) -> None:
    """What marks and lines mean, above the panels."""
    fig.legend(
        handles=handles, loc="outside upper center", ncols=min(columns, len(handles)), frameon=False, fontsize=9,
        handlelength=3,
    )  # fmt: skip
