"""Saliency maps in rows and columns: of several networks, of several methods, and of one network epoch by epoch."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy.ndimage import binary_fill_holes, binary_opening

from sqlib.maps.attribution import METHODS
from sqlib.measures.clarity import DEAD_BELOW
from sqlib.report.figures.style import FAINT, INK, WIDTH, styled

MAP_COLOURS = matplotlib.colormaps["magma_r"].resampled(32)
"""Perceptually uniform; 32 steps, which the eye does not see and which halve a picture's bytes."""


def _array(values) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def _pixels(images) -> np.ndarray:
    """Images (N,28,28) or (N,1,28,28), 0..255 or 0..1, as (N,28,28) in 0..1."""
    images = _array(images)
    images = images.reshape(-1, *images.shape[-2:])
    return images / 255 if images.size and images.max() > 1 else images


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
    labels = [METHODS[method].short or METHODS[method].title for method in maps]
    return map_grid(images, stacked, row_labels, labels, notes=notes, scale="map")
