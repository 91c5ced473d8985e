"""Claims drawn: each effect with its interval, and its verdict."""

import math
from typing import Any

from sqlib.data.datasets import dataset_title
from sqlib.measures import row_of
from sqlib.study.claims import unit_of

# ---- shown ---------------------------------------------------------------------------------------------------------
VERDICTS = {"supported": ("#0072B2", "s"), "contradicted": ("#D55E00", "X"), "inconclusive": ("#767676", "o")}
"""Colour and marker of each verdict; supported and contradicted are filled, inconclusive is open."""


def forest(rows: list[dict[str, Any]]):
    """One claim's rows (a data set each) as effects with intervals: zero marked, what is short of the margin shaded.

    The tested effect is coloured and shaped by its verdict; the single setups that it averages stand below, thin, in
    their own colours and with their own marks, untested.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    from sqlib.report.figures.style import setup_style

    factor, unit, _ = unit_of(rows[0]["quantity"])
    lines = []
    for row in rows:
        lines.append((dataset_title(row["dataset"]), row, row["verdict"]))
        lines += [(f"    {part['label']}", part, None) for part in row["parts"]]
    fig = Figure(figsize=(8.0, 0.9 + 0.3 * len(lines)), layout="constrained")
    axis = fig.subplots()
    sign, margin = (1 if rows[0]["direction"] == "rise" else -1), rows[0]["margin"] * factor
    axis.axvspan(-margin, margin, color="#ececec", zorder=0)
    axis.axvline(0, color="#1a1a1a", linewidth=1.2)
    axis.axvline(sign * margin, color="#767676", linewidth=1, linestyle="--")
    for y, (label, values, verdict) in enumerate(lines):
        colour, marker = VERDICTS[verdict] if verdict else setup_style([label.strip()])[label.strip()]
        x = values["effect"] * factor
        if math.isnan(x):
            axis.annotate("no runs", (0, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
            continue
        if not math.isnan(values["low"]):
            width = 2.2 if verdict else 1.0
            axis.plot([values["low"] * factor, values["high"] * factor], [y, y], color=colour, linewidth=width)
        fill = "white" if verdict == "inconclusive" else colour
        axis.plot(
            x,
            y,
            marker=marker,
            markersize=8 if verdict else 5,
            color=colour,
            markerfacecolor=fill,
            linestyle="none",
            zorder=3,
        )
        if verdict:
            axis.annotate(
                verdict, (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9,
                annotation_clip=False, path_effects=[withStroke(linewidth=3, foreground="w")],
            )  # fmt: skip
    axis.set(yticks=range(len(lines)), ylim=(len(lines) - 0.5, -0.8))
    for tick, (*_, verdict) in zip(
        axis.set_yticklabels([label for label, *_ in lines], fontsize=9), lines, strict=True
    ):
        tick.set_fontweight("bold" if verdict else "normal")
    axis.margins(x=0.1)
    for spine in ("top", "right", "left"):
        axis.spines[spine].set_visible(False)
    axis.tick_params(axis="y", length=0)
    arrow = "the claim expects this side →" if sign > 0 else "← the claim expects this side"
    axis.set_xlabel(f"difference in {row_of(rows[0]['quantity']).title}{',' * bool(unit)}{unit}    {arrow}")
    return fig
