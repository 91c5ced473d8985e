"""How every figure of the study looks: colours, markers, sizes, and the key of the two trainings.

A setup has the same colour and marker in every figure (`setup_style`); standard training is drawn open or dashed,
saliency-guided training filled or solid. Figures are 8 inches wide with 10 point text, a page's width.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sqlib.report.words import training_title

WIDTH = 8.0
"""Width of a figure in inches."""


INK, FAINT = "#1a1a1a", "#767676"


STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 7,
    "axes.axisbelow": True,
}


class SetupStyle(NamedTuple):
    """How a setup is drawn; `text` is its colour dark enough for words on white."""

    colour: str
    marker: str

    @property
    def text(self) -> tuple[float, float, float]:
        return readable(self.colour)


# The colours of Okabe and Ito (2008), which people with any colour vision can tell apart: no yellow, but a grey.
SETUP_STYLE = {
    "fp32": SetupStyle("#000000", "o"),
    "w8a8": SetupStyle("#999999", "P"),
    "w4a4": SetupStyle("#0072B2", "s"),
    "mixed": SetupStyle("#009E73", "^"),
    "w2a2": SetupStyle("#D55E00", "D"),
    "w3a3": SetupStyle("#E69F00", "v"),
    "w4a2": SetupStyle("#56B4E9", "<"),
    "w2a4": SetupStyle("#CC79A7", ">"),
}


_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#999999", "#009E73", "#D55E00", "#0072B2")


_MARKERS = ("X", "p", "h", "8", "d", "*", "P")


def setup_style(setups: Sequence) -> dict[str, SetupStyle]:
    """Style of each setup (names or `Setup`s), in their order.

    A name without a style of its own gets one from its letters, so it looks the same in every figure; no two of
    these setups look alike while there are enough styles.
    """
    names = [getattr(setup, "name", setup) for setup in setups]
    styles = {name: SETUP_STYLE[name] for name in names if name in SETUP_STYLE}
    choices = len(_COLOURS) * len(_MARKERS)
    for name in names:
        start = zlib.crc32(name.encode())
        for step in range(choices if name not in styles else 0):
            at = (start + step) % choices
            style = SetupStyle(_COLOURS[at % len(_COLOURS)], _MARKERS[at // len(_COLOURS)])
            if style not in styles.values() or step == choices - 1:
                styles[name] = style
                break
    return {name: styles[name] for name in names}


def readable(colour: str) -> tuple[float, float, float]:
    """The colour, darkened until words in it have a contrast of 4.5 : 1 on white (WCAG AA)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5:
            return tuple(float(part) for part in rgb)
        rgb = rgb * 0.95


METHOD_STYLE = {
    "gradient": ("#000000", "o"),
    "input_x_gradient": ("#D55E00", "D"),
    "integrated_gradients": ("#0072B2", "s"),
    "smoothgrad": ("#009E73", "^"),
    "grad_cam": ("#CC79A7", "v"),
    "occlusion": ("#E69F00", "P"),
}
"""Colour and marker of a method (the palette of Okabe and Ito, as for the setups)."""


_OF_THE_MACHINE = ("backend", "date.epoch", "interactive", "savefig.directory", "timezone", "tk.", "toolbar", "webagg.")


def own_look(style: Mapping[str, object] | None = None):
    """A context in which matplotlib draws as it was delivered, whatever a user's matplotlibrc says, but for `style`."""
    default = matplotlib.rcParamsDefault
    return matplotlib.rc_context(
        {name: default[name] for name in default if not name.startswith(_OF_THE_MACHINE)} | dict(style or {})
    )


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """A function that draws with `STYLE`."""

    @functools.wraps(function)
    def draw(*args, **kwargs) -> Figure:
        with own_look(STYLE):
            return function(*args, **kwargs)

    return draw


def training_look(training: str, colour: str) -> dict:
    """Marks of a training, for `axis.plot`: filled for saliency-guided, open for standard."""
    guided = training == "saliency_guided"
    return {"markerfacecolor": colour if guided else "white", "markeredgecolor": colour, "markeredgewidth": 1.6}


def training_key(fig: Figure, trainings: Sequence[str], lines: str | None = "") -> None:
    """What open and filled means; `lines`: words about the line in the key, None for no line."""
    if len(trainings) < 2 and not lines:
        return
    handles = []
    for training in trainings:
        style = "none" if lines is None else "-" if training == "saliency_guided" else "--"
        label = f"{training_title(training)} training{lines or ''}"
        handles.append(Line2D([], [], color=FAINT, linestyle=style, marker="o", markersize=6, label=label,
                              **training_look(training, FAINT)))  # fmt: skip
    fig.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9, handlelength=3
    )


def present(df, column: str) -> list[str]:
    return list(dict.fromkeys(df[column]))
