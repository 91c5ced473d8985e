"""How every figure of the study looks: colours, markers and sizes.

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
METHOD_STYLE = {
    "gradient": SetupStyle("#000000", "o"),
    "input_x_gradient": SetupStyle("#D55E00", "D"),
    "integrated_gradients": SetupStyle("#0072B2", "s"),
    "smoothgrad": SetupStyle("#009E73", "^"),
    "grad_cam": SetupStyle("#CC79A7", "v"),
    "occlusion": SetupStyle("#E69F00", "P"),
}
"""Colour and marker of a method (the palette of Okabe and Ito, as for the setups)."""

_OTHERS = [
    SetupStyle(colour, marker)
    for marker in "Xph8d*P"
    for colour in ("#CC79A7", "#E69F00", "#56B4E9", "#999999", "#009E73", "#D55E00", "#0072B2")
]


def setup_style(setups: Sequence) -> dict[str, SetupStyle]:
    """Style of each setup (names or `Setup`s), in their order.

    A name without a style of its own gets one from its letters, so it looks the same in every figure; no two of
    these setups look alike while there are enough styles.
    """
    names = [getattr(setup, "name", setup) for setup in setups]
    styles = {name: SETUP_STYLE[name] for name in names if name in SETUP_STYLE}
    for name in names:
        if name not in styles:
            start = zlib.crc32(name.encode()) % len(_OTHERS)
            choices = _OTHERS[start:] + _OTHERS[:start]
            styles[name] = next((style for style in choices if style not in styles.values()), choices[-1])
    return {name: styles[name] for name in names}


def readable(colour: str) -> tuple[float, float, float]:
    """The colour, darkened until words in it have a contrast of 4.5 : 1 on white (WCAG AA)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5:
            return tuple(float(part) for part in rgb)
        rgb = rgb * 0.95


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
