"""The study's figures: functions that take data and return a matplotlib Figure, and show nothing.

A setup has the same colour and marker in every figure (`setup_style`); standard training is drawn open or dashed,
saliency-guided training filled or solid. Figures are 8 inches wide with 10 point text, a page's width.
"""

import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy.ndimage import binary_fill_holes, binary_opening

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import read_json, reading
from sqlib.measures.clarity import DEAD_BELOW
from sqlib.study.parameters import Study, load_study
from sqlib.study.results import any_reports_folder, collect

if TYPE_CHECKING:
    import pandas

WIDTH = 8.0
"""Width of a figure in inches."""
MAP_COLOURS = matplotlib.colormaps["magma_r"].resampled(32)
"""Perceptually uniform; 32 steps, which the eye does not see and which halve a picture's bytes."""
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

TRAINING_TITLES = {"standard": "standard", "saliency_guided": "saliency-guided"}

QUALITIES = {
    "gini": "Gini index of the map (higher: sparser)",
    "entropy": "entropy of the map (lower: clearer)",
    "total_variation": "total variation of the map (lower: smoother)",
    "foreground_lift": "foreground lift (1: chance; higher: on the object)",
    "dead_map_rate": "dead maps (share of images)",
    "faithfulness_gap": "faithfulness gap (0: no better than random)",
    "deletion_auc": "deletion AUC (lower: more faithful)",
    "test_accuracy": "test accuracy",
    "val_accuracy": "validation accuracy",
}
PERCENT = ("test_accuracy", "val_accuracy", "dead_map_rate")


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


def training_title(training: str) -> str:
    """A training's name in words."""
    return TRAINING_TITLES.get(training, training.replace("_", " "))


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


def _array(values) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def _pixels(images) -> np.ndarray:
    """Images (N,28,28) or (N,1,28,28), 0..255 or 0..1, as (N,28,28) in 0..1."""
    images = _array(images)
    images = images.reshape(-1, *images.shape[-2:])
    return images / 255 if images.size and images.max() > 1 else images


# ---- maps ----------------------------------------------------------------------------------------------------------


class _Sheet:
    """A figure in inches, (0, 0) at the lower left, on which pictures of 28 x 28 pixels are laid out.

    One pair of axes for all of them, as large as `box` (left, bottom, right, top), which they fill: to make axes and draw
    them takes matplotlib longer than the pictures.
    """

    def __init__(self, width: float, height: float, box: tuple[float, float, float, float]):
        left, bottom, right, top = box
        self.figure = Figure(figsize=(width, height))
        self.axis = self.figure.add_axes(
            (left / width, bottom / height, (right - left) / width, (top - bottom) / height)
        )
        self.axis.set(xlim=(left, right), ylim=(bottom, top), autoscale_on=False)
        self.axis.set_axis_off()

    def image(self, place: tuple[float, float, float], image: np.ndarray) -> None:
        """An image of 0..1 in the square `place`: left, bottom, side."""
        self._pixels(place, 1 - image, "gray", 1)

    def map(self, place: tuple[float, float, float], saliency: np.ndarray, image: np.ndarray, top: float) -> None:
        """|map| in colour from 0 to `top`, the outline of the image's object over it; a dead map is named."""
        self._pixels(place, saliency, MAP_COLOURS, top or 1)
        left, bottom, side = place
        object_ = binary_fill_holes(image > 0.05)  # without the pattern on a shirt; the hole of a 0 stays, being large
        holes = object_ & (image <= 0.05)
        object_ &= ~binary_opening(holes, iterations=1)
        if object_.any() and not object_.all():
            rows, columns = ((np.arange(count) + 0.5) / count * side for count in object_.shape)
            self.axis.contour(
                left + columns, bottom + side - rows, object_, levels=[0.5], colors=["#5f8296"], linewidths=0.6
            )
        if saliency.max() < DEAD_BELOW:
            self.axis.text(left + side / 2, bottom + side / 2, "dead", ha="center", va="center", fontsize=9, color=INK,
                           bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"})  # fmt: skip

    def title(self, place: tuple[float, float, float], text: str) -> None:
        """Above a square."""
        left, bottom, side = place
        self.axis.text(left + side / 2, bottom + side + 0.04, text, ha="center", va="baseline", fontsize=9)

    def label(self, place: tuple[float, float, float], text: str) -> None:
        """To the left of a square."""
        left, bottom, side = place
        self.axis.text(left - 0.06, bottom + side / 2, text, ha="right", va="center")

    def _pixels(self, place: tuple[float, float, float], values: np.ndarray, colours: str, top: float) -> None:
        left, bottom, side = place
        square = (left, left + side, bottom, bottom + side)
        self.axis.imshow(values, cmap=colours, vmin=0, vmax=top, interpolation="nearest", extent=square, aspect="auto")
        frame = Rectangle((left, bottom), side, side, fill=False, edgecolor="#cccccc", linewidth=0.6, clip_on=False)
        self.axis.add_patch(frame)


def _frame(axis) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color="#cccccc", linewidth=0.6)


@styled
def map_grid(
    images,
    maps,
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    groups: Sequence[tuple[str, int]] = (),
    notes: Sequence[Sequence[str]] | None = None,
    scale: str = "share",
    image_label: str = "image",
) -> Figure:
    """Rows of one image and its maps: the image first, then |map| in colour with the object's outline.

    Args:
        images: (R,28,28) or (R,1,28,28), bytes or 0..1.
        maps: (R,C,28,28), signed or not.
        groups: (heading, number of columns) over neighbouring columns, together C.
        notes: (R,C) short words in a panel's lower corner, such as a wrong prediction; "" for none.
        scale: `share` divides each map by its sum (a pixel's share of the map), `row` takes maps as they are; both
            colour one row alike, up to the 99.8th percentile of its pixels. `map` gives each map a scale of its own.
            The figure says which.
    """
    if scale not in ("share", "row", "map"):
        raise ValueError(f"scale = '{scale}': expected 'share', 'row' or 'map'")
    images, maps = _pixels(images), np.abs(_array(maps))
    rows, columns = maps.shape[:2]
    if len(images) != rows or len(row_labels) != rows or len(col_labels) != columns:
        raise ValueError(
            f"maps {maps.shape} do not fit {len(images)} images, {len(row_labels)} row labels, {len(col_labels)} column"
            " labels"
        )
    if scale == "share":
        total = maps.sum(axis=(2, 3), keepdims=True)
        maps = np.where(total > 0, maps / np.where(total > 0, total, 1), 0.0)

    left, right, below = 0.06 + 0.075 * max(map(len, row_labels), default=0), 0.05, 0.34
    above = 0.25 + 0.24 * bool(groups)
    ends = list(np.cumsum([count for _, count in groups]))[:-1]
    width_units = columns + 1 + 0.15 + 0.15 * len(ends)
    cell = min(1.05, (WIDTH - left - right) / width_units)
    gap = 0.05
    height = above + rows * cell + below
    starts, x = [], left
    for column in range(columns + 1):
        starts.append(x)
        x += cell + 0.15 * cell * (column == 0 or column in ends)
    sheet = _Sheet(WIDTH, height, (left, height - above - rows * cell, starts[-1] + cell - gap, height - above))
    fig = sheet.figure
    for r in range(rows):
        top = np.quantile(maps[r], 0.998)
        for c in range(columns + 1):
            place = starts[c], height - above - (r + 1) * cell, cell - gap  # a gap above each
            if c == 0:
                sheet.image(place, images[r])
                sheet.label(place, row_labels[r])
            else:
                sheet.map(place, maps[r, c - 1], images[r], maps[r, c - 1].max() if scale == "map" else top)
                if notes is not None and notes[r][c - 1]:
                    box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                    corner = place[0] + 0.97 * place[2], place[1] + 0.04 * place[2]
                    sheet.axis.text(*corner, notes[r][c - 1], ha="right", va="bottom", fontsize=8, color="#A33B00",
                                    fontweight="bold", bbox=box)  # fmt: skip
            if r == 0:
                sheet.title(place, [image_label, *col_labels][c])
    at = 1
    for heading, count in groups:
        first, last = starts[at] / WIDTH, (starts[at + count - 1] + cell - gap) / WIDTH
        y = 1 - 0.24 / height
        fig.text((first + last) / 2, y + 0.03 / height, heading, ha="center", va="bottom", fontweight="bold")
        fig.add_artist(Line2D([first, last], [y, y], color=FAINT, linewidth=0.8))
        at += count
    what = {
        "share": "share of the map's total, one scale a row",
        "row": "size of the map, one scale a row",
        "map": "size of the map, each with its own scale",
    }[scale]
    _colour_key(fig, starts[1] / WIDTH, 0.12 / height, height, what)
    return fig


def _colour_key(fig: Figure, x: float, y: float, height: float, what: str) -> None:
    key = fig.add_axes((x, y, 1.0 / WIDTH, 0.09 / height))
    key.imshow(np.linspace(0, 1, 64)[None], cmap=MAP_COLOURS, aspect="auto")
    _frame(key)
    fig.text(x - 0.06 / WIDTH, y + 0.045 / height, "0", ha="right", va="center", fontsize=9)
    fig.text(x + 1.06 / WIDTH, y + 0.045 / height, f"high    colour: {what}; line: outline",
             ha="left", va="center", fontsize=9)  # fmt: skip


@styled
def film_strip(
    strips: Sequence,
    images,
    labels: Sequence[str] | None = None,
    epochs: Sequence[int] | None = None,
    most: int = 10,
    scale: Sequence | None = None,
) -> Figure:
    """The maps of the same images after each epoch, epochs downwards: strips is a list of (K,28,28), images (K,28,28).

    One scale an image (a column) over the epochs. Beyond `most` epochs, evenly spaced ones are shown, with first and
    last. `epochs`: their numbers, 1, 2... by default. `scale`: the strips that decide the scales, where not these ones.
    """
    images = _pixels(images)
    scale = [np.abs(_array(strip)) for strip in (strips if scale is None else scale)]
    strips = [np.abs(_array(strip)) for strip in strips]
    numbers = list(epochs) if epochs is not None else list(range(1, len(strips) + 1))
    if len(strips) > most:
        kept = sorted({round(at) for at in np.linspace(0, len(strips) - 1, most)})
        strips, numbers = [strips[i] for i in kept], [numbers[i] for i in kept]
    count, left, above, below = len(images), 0.75, 0.28, 0.34
    cell = (WIDTH - left - 0.05) / count
    height = above + (len(strips) + 1) * cell + 0.06 + below
    sheet = _Sheet(WIDTH, height, (left, below, left + count * cell - 0.05, height - above))
    tops = np.quantile(np.stack(scale), 0.998, axis=(0, 2, 3)) if scale else []
    for r in range(len(strips) + 1):
        bottom = height - above - (r + 1) * cell - 0.06 * (r > 0)
        for c in range(count):
            place = left + c * cell, bottom, cell - 0.05
            if r == 0:
                sheet.image(place, images[c])
                if labels is not None:
                    sheet.title(place, _shorten(labels[c], 11))
            else:
                sheet.map(place, strips[r - 1][c], images[c], tops[c])
            if c == 0:
                sheet.label(place, "image" if r == 0 else f"epoch {numbers[r - 1]}")
    if strips:
        _colour_key(sheet.figure, (left + 0.1) / WIDTH, 0.12 / height, height, "size of the map, one scale an image")
    return sheet.figure


def film_frames(strips: Sequence, images, labels: Sequence[str] | None = None) -> list[Figure]:
    """`film_strip` one epoch at a time, a figure each, all with the scales of the whole strip."""
    return [film_strip([strip], images, labels, epochs=[k], scale=strips) for k, strip in enumerate(strips, start=1)]


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def saliency_methods(
    images, maps: Mapping[str, object], row_labels: Sequence[str], notes: Sequence[Sequence[str]] | None = None
) -> Figure:
    """The same images explained by several methods: maps is method -> (N,28,28). Each map has its own scale, because
    the methods' units differ."""
    stacked = np.stack([_array(values) for values in maps.values()], axis=1)
    names = {"integrated_gradients": "int. gr.", "input_x_gradient": "input × gr.", "grad_cam": "Grad-CAM",
             "smoothgrad": "SmoothGr."}  # fmt: skip
    labels = [names.get(method, method.replace("_", " ")) for method in maps]
    return map_grid(images, stacked, row_labels, labels, notes=notes, scale="map")


# ---- training ------------------------------------------------------------------------------------------------------


def _whole_epochs(axis, last: int) -> None:
    step = max(1, -(-last // 8))
    axis.set(
        xlabel="epoch", xticks=range(0 if last > 8 else 1, last + 1, step), xlim=(0.8, last + max(0.9, 0.28 * last))
    )


def _label_ends(axis, ends: Sequence[tuple[float, float, str, object]], gap_points: float = 11.0) -> None:
    """Words at the right ends of lines, (x, y, word, colour) each, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    points = axis.get_window_extent().height * 72 / axis.figure.dpi or 150
    unit = gap_points / points * (high - low)
    placed = []
    for x, y, word, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, placed[-1] + unit) if placed else y
        placed.append(at)
        shift = (at - y) / (high - low) * points
        axis.annotate(
            word, (x, y), xytext=(7, shift), textcoords="offset points", va="center", color=colour, fontsize=9
        )


@styled
def training_curves(history: Sequence[Mapping], epochs: int | None = None) -> Figure:
    """Loss (left) and accuracy (right) after each epoch, training and validation. `epochs`: how many there will be."""
    fig = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = fig.subplots(1, 2)
    x = [entry["epoch"] for entry in history]
    last = max([epochs or 1, *x])
    for axis, name, unit in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
        ends = []
        for part, word, colour, line, marker in (
            ("train", "training", FAINT, "--", "s"),
            ("val", "validation", "#0072B2", "-", "o"),
        ):
            y = [unit * entry[f"{part}_{name}"] for entry in history]
            axis.plot(x, y, line, color=colour, marker=marker, markersize=5)
            if y:
                ends.append((x[-1], y[-1], f"{word} {y[-1]:.3f}" if unit == 1 else f"{word} {y[-1]:.1f}%", colour))
        axis.set_title(name if unit == 1 else f"{name} (%)", loc="left")
        _whole_epochs(axis, last)
        axis.set_xlim(0.8, last + 0.55 * last + 0.3)
        if name == "loss" and history:
            axis.set_ylim(bottom=0)
        _label_ends(axis, ends, 14)
    return fig


@styled
def clip_paths(history: Sequence[Mapping], start: float | None = None, epochs: int | None = None) -> Figure:
    """PACT's clip of each layer after each epoch; `start`: its value before the first (drawn at epoch 0)."""
    fig = Figure(figsize=(WIDTH * 0.62, 2.9), layout="constrained")
    axis = fig.subplots()
    layers = list(history[0]["clips"]) if history else []
    x = [entry["epoch"] for entry in history]
    last = max([epochs or 1, *x])
    ends = []
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
    for i, layer in enumerate(layers):
        y = [entry["clips"][layer] for entry in history]
        xs, ys = ([0, *x], [start, *y]) if start is not None else (x, y)
        axis.plot(xs, ys, color=colours[i % 6], marker="osD^vP"[i % 6], markersize=5)
        ends.append((x[-1], y[-1], f"{layer}  {y[-1]:.2f}", readable(colours[i % 6])))
    _whole_epochs(axis, last)
    if start is not None:
        axis.set(xticks=sorted({0, *axis.get_xticks()}))
    axis.set_xlim(-0.15 if start is not None else 0.8, last + 0.4 * last)
    axis.set_title("clip of the activations behind each layer", loc="left")
    if layers:
        axis.set_ylim(bottom=0)
    else:
        axis.text(0.5, 0.5, "nothing is clipped in this setup", transform=axis.transAxes, ha="center", color=FAINT)
    _label_ends(axis, ends, 12)
    return fig


# ---- a study -------------------------------------------------------------------------------------------------------


def training_look(training: str, colour: str) -> dict:
    """Marks of a training, for `axis.plot`: filled for saliency-guided, open for standard."""
    guided = training == "saliency_guided"
    return {"markerfacecolor": colour if guided else "white", "markeredgecolor": colour, "markeredgewidth": 1.6}


def _training_key(fig: Figure, trainings: Sequence[str], lines: str | None = "") -> None:
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


def _present(df, column: str) -> list[str]:
    return list(dict.fromkeys(df[column]))


@styled
def accuracy_against(df, quality: str = "gini") -> Figure:
    """Test accuracy against a quality of the maps: a faint point a run, the mean of each setup and training in front.

    The means of one training are joined in the setups' order. `df`: rows of runs.csv; a panel a data set.
    """
    datasets, trainings = _present(df, "dataset"), _present(df, "training")
    fig = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = fig.subplots(1, len(datasets), squeeze=False)[0]
    styles = setup_style(_present(df, "setup"))
    factor = 100 if quality in PERCENT else 1
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
        axis.set_xlabel(QUALITIES.get(quality, quality) + (", %" if factor == 100 else ""))
        axis.set_ylabel("test accuracy, %")
        if len(datasets) > 1:
            axis.set_title(dataset_title(dataset), loc="left")
    _training_key(fig, trainings)
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
    datasets, trainings, setups = _present(df, "dataset"), _present(df, "training"), _present(df, "setup")
    columns = columns or ("test_accuracy",)
    fig = Figure(figsize=(WIDTH, 0.7 + 2.5 * len(columns)), layout="constrained")
    panels = fig.subplots(len(columns), len(datasets), squeeze=False)
    for axes, column in zip(panels, columns, strict=True):
        factor = 100 if column in PERCENT else 1
        for axis, dataset in zip(axes, datasets, strict=True):
            _by_setup_panel(axis, df[df["dataset"] == dataset], column, factor, setups, trainings)
        label = QUALITIES.get(column, column.replace("_", " "))
        if len(columns) > 1:
            label = label.split(" (")[0]  # the explanation in brackets is longer than a panel is high
        axes[0].set_ylabel(label + (", %" if factor == 100 else ""))
    for axis, dataset in zip(panels[0], datasets, strict=True):
        axis.set_title(dataset_title(dataset), loc="left")
    _training_key(fig, trainings, lines=None)
    return fig


@styled
def sweep_panels(table, factors: Sequence[str], sweep) -> Figure:
    """A sweep, a row a factor: validation accuracy, dead maps and Gini by its value; a mark a seed, a line the means.

    table: `sqlib.study.sweeps.collect_trials`. The study's default is marked by a band; the dashed line is the baseline.
    """
    measures = {
        "val_accuracy": ("validation accuracy, %", 100),
        "val_dead_map_rate": ("dead maps, %", 100),
        "val_gini": ("Gini index", 1),
    }
    datasets = _present(table, "dataset")
    looks = {name: ((INK, "o"), ("#0072B2", "s"))[i % 2] for i, name in enumerate(datasets)}
    fig = Figure(figsize=(WIDTH, 2.15 * len(factors) + 0.4), layout="constrained")
    axes = fig.subplots(len(factors), len(measures), squeeze=False)
    for row, name in zip(axes, factors, strict=True):
        factor = sweep.factors[name]
        labels = list(factor.values)
        for axis, (column, (words, scale)) in zip(row, measures.items(), strict=True):
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
            axis.set_ylabel(words, fontsize=9)
        row[0].set_title(factor.title, loc="left", fontsize=10)
    for dataset in datasets:
        colour, marker = looks[dataset]
        axes[0, 0].plot([], [], color=colour, marker=marker, markerfacecolor="none", label=dataset_title(dataset))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(datasets), frameon=False)
    return fig


@styled
def deletion_curves(results: Sequence[Mapping]) -> Figure:
    """Accuracy while pixels are blanked, most salient first (solid) or at random (dashed).

    A column a setup, a row a training. `results`: one mapping a run with `setup`, `training`, `fractions`, `deletion`,
    `random`. Lines are means over the runs, bands go from their smallest to their largest.
    """
    setups = list(dict.fromkeys(result["setup"] for result in results))
    trainings = list(dict.fromkeys(result["training"] for result in results))
    styles = setup_style(setups)
    fig = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(trainings)), layout="constrained")
    axes = fig.subplots(len(trainings), len(setups), sharex=True, sharey=True, squeeze=False)
    for i, training in enumerate(trainings):
        for j, setup in enumerate(setups):
            axis, style = axes[i, j], styles[setup]
            runs = [r for r in results if r["setup"] == setup and r["training"] == training]
            if not runs:
                axis.text(0.5, 0.5, "no run", transform=axis.transAxes, ha="center", color=FAINT)
            for kind, line in (("deletion", "-"), ("random", "--")) if runs else ():
                x = np.array(runs[0]["fractions"]) * 100
                curves = np.array([run[kind] for run in runs]) * 100
                axis.plot(x, curves.mean(axis=0), line, color=style.colour if line == "-" else FAINT)
                if len(runs) > 1:
                    axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), alpha=0.22, linewidth=0,
                                      color=style.colour if line == "-" else FAINT)  # fmt: skip
            axis.set(ylim=(0, 103), xlim=(0, 92))
            axis.grid(color="#ececec", linewidth=0.7)
            if i == 0:
                axis.set_title(setup, color=style.text, fontweight="bold")
        axes[i, 0].set_ylabel(f"{training_title(training)}\naccuracy, %")
    fig.supxlabel("blanked pixels, %", fontsize=10)
    handles = [
        Line2D([], [], color=INK, linestyle="-", label="most salient first"),
        Line2D([], [], color=FAINT, linestyle="--", label="at random"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return fig


AGREEMENT = {"spearman": "Spearman's rank correlation", "ssim": "SSIM", "top_iou": "IoU of the top 10%"}


@styled
def agreement(df, ceiling: Mapping[tuple[str, str], float] | None = None) -> Figure:
    """Agreement of maps with those of the unquantised network: a panel a measure, a point a pair of models.

    `df` has columns setup, training, seed and the measures of `AGREEMENT`; `ceiling[training, measure]` is a line.
    """
    setups, trainings = _present(df, "setup"), _present(df, "training")
    styles = setup_style(setups)
    measures = [measure for measure in AGREEMENT if measure in df]
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
        axis.set_title(AGREEMENT[measure], loc="left")
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        low = float(np.nanmin(df[measure])) if df[measure].notna().any() else 0.0
        axis.set_ylim(min(axis.get_ylim()[0], 0, low), 1.02)
    axes[0].set_ylabel("agreement (1: the same)")
    _training_key(fig, trainings, lines=" (line: its ceiling)" if ceiling else None)
    return fig


@styled
def prediction_bars(probabilities, classes: Sequence[str], truth: int | None = None) -> Figure:
    """A model's probability of each class as bars: (classes,), or a mapping setup -> (classes,) for a panel each.

    The true class, if given, is in bold and hatched.
    """
    panels = probabilities if isinstance(probabilities, Mapping) else {"": probabilities}
    styles = setup_style([name for name in panels if name])
    fig = Figure(figsize=(min(WIDTH, 1.4 + 1.75 * len(panels)), 0.6 + 0.23 * len(classes)), layout="constrained")
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        values = 100 * _array(values).ravel()
        style = styles.get(name, SetupStyle("#0072B2", "o"))
        bars = axis.barh(range(len(classes)), values, color=style.colour, height=0.7)
        if truth is not None:
            bars[truth].set(hatch="////", edgecolor="white")
        best = int(values.argmax())
        axis.annotate(f"{values[best]:.0f}%", (values[best], best), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
        axis.set(xlim=(0, 132), xticks=[0, 50, 100], yticks=range(len(classes)))
        axis.set_yticklabels(classes)
        axis.tick_params(axis="y", length=0)
        axis.set_title(name, color=style.text if name else INK, fontweight="bold")
    axes[0].invert_yaxis()
    if truth is not None:
        axes[0].get_yticklabels()[truth].set_fontweight("bold")
    fig.supxlabel("probability, %", fontsize=10)
    return fig


# ---- what the figures are made of ----------------------------------------------------------------------------------


def find_reports(reports: str | Path | None = None) -> Path:
    """The folder of a study's reports: the given one, else `runs.any_reports_folder`. SqlibError when it has no results."""
    folder = any_reports_folder() if reports is None else Path(reports)
    if (folder / "results/runs.csv").exists() or next(folder.glob("runs/*/*/*/*/seed*/result.json"), None):
        return folder.resolve()
    raise SqlibError(f"no finished run in {folder}: make some with `make smoke` or `make reproduce`")


def study_of(reports: Path) -> Study:
    """The study that a folder of reports belongs to: as its index stamp says, else `params/<folder's name>.yaml`
    (`params/paper.yaml` for `reference`). Raises SqlibError."""
    stamp = Path(reports) / "stamps" / "index.json"
    if stamp.exists():
        try:
            return Study.model_validate_json(json.dumps(read_json(stamp)["study"]))
        except (KeyError, ValueError):
            pass  # written by an older version: the file in params/ is next
    name = Path(reports).name
    return load_study("paper" if name == "reference" else name)


def runs_of(study: Study, reports: Path) -> "tuple[pandas.DataFrame, list[str], list[str]]":
    """(one row a run as `sqlib.study.results.collect`, ids of the runs that are missing, ids known only from `runs.csv`).

    Published results hold the folders of some runs only; the numbers of the others are in `results/runs.csv`.
    """
    import pandas

    rows = collect(study, reports)
    keys = ["dataset", "network", "setup", "training", "seed"]
    found = {tuple(row) for row in rows[keys].itertuples(index=False, name=None)}
    table = Path(reports) / "results" / "runs.csv"
    listed = []
    wanted = {(r.dataset, r.network, r.setup.name, r.training, r.seed): r.id for r in study.runs()}
    if table.exists():
        with reading(table):
            known = pandas.read_csv(table)
            at = [tuple(row) for row in known[keys].itertuples(index=False, name=None)]
        only = [key in wanted and key not in found for key in at]
        listed = [wanted[key] for key, chosen in zip(at, only, strict=True) if chosen]
        if listed:
            rows = pandas.concat([rows, known[only]], ignore_index=True) if len(rows) else known[only]
            found |= {key for key, chosen in zip(at, only, strict=True) if chosen}
    place = {key: i for i, key in enumerate(wanted)}
    order = sorted(range(len(rows)), key=lambda i: place[tuple(rows.iloc[i][keys])])
    missing = [run_id for key, run_id in wanted.items() if key not in found]
    return rows.iloc[order].reset_index(drop=True), missing, listed


def deployed_of(study: Study, reports: Path):
    """One row a run whose packed and ONNX forms were compared with it (`sqlib.study.jobs.deployed`): a table to show."""
    import pandas

    rows, measured = [], {}
    for dataset in study.datasets:
        path = Path(reports) / "results" / f"deployed_{dataset}.json"
        measured |= read_json(path) if path.exists() else {}
    for run in study.runs():
        if run.id in measured:
            found = measured[run.id]
            row = {
                "data set": dataset_title(run.dataset),
                "setup": run.setup.name,
                "training": f"{training_title(run.training)}, seed {run.seed}",
            }
            with reading(Path(reports) / "results" / f"deployed_{run.dataset}.json"):
                for form, words in (("packed", "integer model"), ("onnx", "ONNX")):
                    part = found[form]
                    row[f"{words}, same predictions"] = f"{part['same_predictions']:,} of {part['images']:,}"
                    row[f"{words}, logits"] = f"{part['largest_relative']:.1e}" if part["largest_relative"] else "0"
                    row[f"{words}, file, kB"] = f"{part['bytes'] / 1000:,.1f}"
            rows.append(row)
    return pandas.DataFrame(rows)


def reference_setup(study: Study) -> str:
    """The setup that the others are compared with: the first that is not quantised, else the study's first."""
    return next((setup.name for setup in study.setups if setup.is_float), study.setups[0].name)


def paired(df, column: str, setup: str, training: str, reference: str, other_training: str | None = None) -> np.ndarray:
    """Differences (one a seed that both have) of a column: `setup` minus `reference`; with `other_training`, `setup`
    under `training` minus `reference` under that one. `df`: rows of one data set and network."""

    def column_of(name: str, kind: str):
        rows = df[(df["setup"] == name) & (df["training"] == kind)]
        return dict(zip(rows["seed"], rows[column].astype(float), strict=True))

    new, old = column_of(setup, training), column_of(reference, other_training or training)
    return np.array([new[seed] - old[seed] for seed in new if seed in old and np.isfinite(new[seed] - old[seed])])


def in_words(differences: np.ndarray, decimals: int = 2, factor: float = 1, unit: str = "") -> str:
    """Paired differences as words: "lower by 0.12 (in all 3 seeds)", "(in 2 of 3 seeds)"; honest about one seed."""
    differences = np.asarray(differences, dtype=float) * factor
    if not len(differences):
        return "not known (runs are missing)"
    mean = differences.mean()
    if round(abs(mean), decimals) == 0:
        words = f"the same within {10.0**-decimals:.{decimals}f}{unit}"
    else:
        words = f"{'higher' if mean > 0 else 'lower'} by {abs(mean):.{decimals}f}{unit}"
    if len(differences) == 1:
        return f"{words} (one seed)"
    same = int((np.sign(differences) == np.sign(mean)).sum())
    if round(abs(mean), decimals) == 0:
        return words
    return f"{words} (in {'all' if same == len(differences) else f'{same} of'} {len(differences)} seeds)"


MEASURES = {
    # column of runs.csv: (heading with the better direction, factor, decimals)
    "val_accuracy": ("validation accuracy, % ↑", 100, 2),
    "test_accuracy": ("test accuracy, % ↑", 100, 2),
    "post_training_accuracy": ("float rounded afterwards, test accuracy, % ↑", 100, 2),
    "gini": ("Gini ↑", 1, 3),
    "entropy": ("entropy ↓", 1, 3),
    "total_variation": ("total variation ↓", 1, 3),
    "foreground_lift": ("foreground lift ↑", 1, 2),
    "dead_map_rate": ("dead maps, % ↓", 100, 2),
    "deletion_auc": ("deletion AUC ↓", 1, 3),
    "random_auc": ("random AUC", 1, 3),
    "faithfulness_gap": ("gap ↑", 1, 3),
}


def summary(df, columns: Sequence[str], reference: str, interval: bool = False):
    """(table to show, table to compute with) of some `MEASURES` by data set, network, setup and training.

    Shown: "mean ± standard deviation over the seeds (mean paired difference to `reference`)"; with `interval` its 95%
    interval over the seeds (Student's t) in place of the deviation. The other one has a row a group and measure: `n, mean,
    sd, low, high, paired, difference, difference_sd`, in the units of runs.csv.
    """
    import pandas
    from scipy.special import stdtrit

    keys = ["dataset", "network", "setup", "training"]
    shown, long = [], []
    for group, rows in df.groupby(keys, sort=False):
        group = dict(zip(keys, group, strict=True))
        same = df[(df["dataset"] == group["dataset"]) & (df["network"] == group["network"])]
        words = {"dataset": dataset_title(group["dataset"]), "training": training_title(group["training"])}
        line = {**group, **words, "n": len(rows)}
        for column in columns:
            heading, factor, decimals = MEASURES[column]
            values = rows[column].dropna().to_numpy(dtype=float)
            differences = paired(same, column, group["setup"], group["training"], reference)
            mean, sd = _mean_sd(values)
            difference, difference_sd = _mean_sd(differences)
            spread = {"difference": difference, "difference_sd": difference_sd, "paired": len(differences)}
            half = float("nan") if np.isnan(sd) else stdtrit(len(values) - 1, 0.975) * sd / len(values) ** 0.5
            ends = {"low": mean - half, "high": mean + half}
            long.append({**group, "measure": column, "n": len(values), "mean": mean, "sd": sd, **ends, **spread})
            text = "–" if np.isnan(mean) else f"{factor * mean:.{decimals}f}"
            if not np.isnan(sd):
                low, high = (f"{factor * end:.{decimals}f}" for end in ends.values())
                text += f" [{low}, {high}]" if interval else f" ± {factor * sd:.{decimals}f}"
            if group["setup"] != reference and not np.isnan(difference):
                text += f" ({factor * difference:+.{decimals}f})"
            line[heading] = text.replace("-", "−")
        shown.append(line)
    shown, long = pandas.DataFrame(shown), pandas.DataFrame(long)
    return (shown.drop(columns="network") if len(shown) and shown["network"].nunique() == 1 else shown), long


def _mean_sd(values: np.ndarray) -> tuple[float, float]:
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan")
