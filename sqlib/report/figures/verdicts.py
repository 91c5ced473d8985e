"""Claims drawn: each effect with its interval, and its verdict."""

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sqlib.data.datasets import dataset_title
from sqlib.measures import row_of
from sqlib.report.figures.parts import panels
from sqlib.report.figures.style import FAINT, INK, SetupStyle, setup_style, styled
from sqlib.study.claims import unit_of

VERDICTS = {
    "supported": SetupStyle("#0072B2", "s"),
    "contradicted": SetupStyle("#D55E00", "X"),
    "inconclusive": SetupStyle(FAINT, "o"),
}
"""Colour and marker of each verdict; supported and contradicted are filled, inconclusive is open."""


@styled
def forest(rows: list[dict[str, Any]]) -> Figure:
    """One claim's rows (a data set each) as effects with intervals: zero marked, what is short of the margin shaded.

    The tested effect is coloured and shaped by its verdict; the single setups that it averages stand below, thin, in
    their own colours and with their own marks, untested.
    """
    factor, unit, _ = unit_of(rows[0]["quantity"])
    lines = []
    for row in rows:
        lines.append((dataset_title(row["dataset"]), row, row["verdict"]))
        lines += [(part["label"], part, None) for part in row["parts"]]
    fig, ((axis,),) = panels(1, 1, 0.9 + 0.3 * len(lines), "x")
    sign, margin = (1 if rows[0]["direction"] == "rise" else -1), rows[0]["margin"] * factor
    axis.axvspan(-margin, margin, color="#ececec", zorder=0)
    axis.axvline(0, color=INK, linewidth=1.2)
    axis.axvline(sign * margin, color=FAINT, linewidth=1, linestyle="--")
    for y, (label, values, verdict) in enumerate(lines):
        style = VERDICTS[verdict] if verdict else setup_style([label])[label]
        _effect(axis, y, values["effect"] * factor, values["low"] * factor, values["high"] * factor, style, verdict)
    axis.set(ylim=(len(lines) - 0.5, -0.8))
    axis.set_yticks(range(len(lines)), [label if verdict else f"    {label}" for label, _, verdict in lines])
    for tick, (*_, verdict) in zip(axis.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if verdict else "normal")
    axis.margins(x=0.1)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    arrow = "the claim expects this side →" if sign > 0 else "← the claim expects this side"
    axis.set_xlabel(f"difference in {row_of(rows[0]['quantity']).title}{',' * bool(unit)}{unit}    {arrow}")
    return fig


def _effect(axis, y: int, x: float, low: float, high: float, style: SetupStyle, verdict: str | None) -> None:
    """An effect with its interval, where there is one, at the height `y`; without a verdict it is thin and small."""
    if math.isnan(x):
        axis.annotate("no runs", (0, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        return
    axis.plot([low, high], [y, y], color=style.colour, linewidth=2.2 if verdict else 1.0)
    fill = "white" if verdict == "inconclusive" else style.colour
    axis.plot(x, y, style.marker, markersize=8 if verdict else 5, color=style.colour, markerfacecolor=fill, zorder=3)
    if verdict:
        axis.annotate(
            verdict, (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9,
            annotation_clip=False, path_effects=[withStroke(linewidth=3, foreground="w")],
        )  # fmt: skip
