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
    """A figure `height` inches high, on which pictures of 28 x 28 pixels are laid out in rows and columns.

    starts, bottoms: the left ends of the columns and the lower ends of the rows, in inches; side: of each picture.

    One pair of axes for all of them, which they fill: to make axes and draw them takes matplotlib longer than the pictures.
    """

    def __init__(self, starts: Sequence[float], bottoms: Sequence[float], side: float, height: float):
        self.starts, self.bottoms, self.side, self.height = starts, bottoms, side, height
        self.figure = Figure(figsize=(WIDTH, height))
        left, right, low, high = starts[0], starts[-1] + side, bottoms[-1], bottoms[0] + side
        self.axis = self.figure.add_axes((left / WIDTH, low / height, (right - left) / WIDTH, (high - low) / height))
        self.axis.set(xlim=(left, right), ylim=(low, high), autoscale_on=False)
        self.axis.set_axis_off()

    def image(self, row: int, column: int, image: np.ndarray) -> None:
        """An image of 0..1."""
        self._picture(row, column, 1 - image, "gray", 1)

    def map(self, row: int, column: int, saliency: np.ndarray, image: np.ndarray, top: float, note: str = "") -> None:
        """|map| in colour from 0 to `top`, the outline of the image's object over it; a dead map is named."""
        self._picture(row, column, saliency, MAP_COLOURS, top or 1)
        left, bottom, side = self.starts[column], self.bottoms[row], self.side
        object_ = binary_fill_holes(image > 0.05)  # without the pattern on a shirt; the hole of a 0 stays, being large
        holes = object_ & (image <= 0.05)
        object_ &= ~binary_opening(holes, iterations=1)
        if object_.any() and not object_.all():
            y, x = ((np.arange(count) + 0.5) / count * side for count in object_.shape)
            self.axis.contour(left + x, bottom + side - y, object_, levels=[0.5], colors=["#5f8296"], linewidths=0.6)
        box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        if saliency.max() < DEAD_BELOW:
            middle = left + side / 2, bottom + side / 2
            self.axis.text(*middle, "dead", ha="center", va="center", fontsize=9, color=INK, bbox=box)
        if note:
            corner = left + 0.97 * side, bottom + 0.04 * side
            self.axis.text(*corner, note, ha="right", va="bottom", fontsize=8, color="#A33B00", fontweight="bold",
                           bbox={**box, "alpha": 0.85})  # fmt: skip

    def title(self, column: int, text: str) -> None:
        """Above a column."""
        at = self.starts[column] + self.side / 2, self.bottoms[0] + self.side + 0.04
        self.axis.text(*at, text, ha="center", va="baseline", fontsize=9)

    def label(self, row: int, text: str) -> None:
        """To the left of a row."""
        self.axis.text(self.starts[0] - 0.06, self.bottoms[row] + self.side / 2, text, ha="right", va="center")

    def heading(self, first: int, last: int, text: str) -> None:
        """Over neighbouring columns, with a line under it."""
        left, right = self.starts[first] / WIDTH, (self.starts[last] + self.side) / WIDTH
        y = 1 - 0.24 / self.height
        self.figure.text((left + right) / 2, y + 0.03 / self.height, text, ha="center", va="bottom", fontweight="bold")
        self.figure.add_artist(Line2D([left, right], [y, y], color=FAINT, linewidth=0.8))

    def key(self, x: float, what: str) -> None:
        """What the colours mean, at the foot of the figure, `x` inches from the left."""
        key = self.figure.add_axes((x / WIDTH, 0.12 / self.height, 1.0 / WIDTH, 0.09 / self.height))
        key.imshow(np.linspace(0, 1, 64)[None], cmap=MAP_COLOURS, aspect="auto")
        key.set(xticks=[], yticks=[])
        key.spines[:].set(visible=True, color="#cccccc", linewidth=0.6)
        y = 0.165 / self.height
        self.figure.text((x - 0.06) / WIDTH, y, "0", ha="right", va="center", fontsize=9)
        words = f"high    colour: {what}; line: outline"
        self.figure.text((x + 1.06) / WIDTH, y, words, ha="left", va="center", fontsize=9)

    def _picture(self, row: int, column: int, values: np.ndarray, colours: str, top: float) -> None:
        left, bottom, side = self.starts[column], self.bottoms[row], self.side
        square = (left, left + side, bottom, bottom + side)
        self.axis.imshow(values, cmap=colours, vmin=0, vmax=top, interpolation="nearest", extent=square, aspect="auto")
        frame = Rectangle((left, bottom), side, side, fill=False, edgecolor="#cccccc", linewidth=0.6, clip_on=False)
        self.axis.add_patch(frame)


SCALES = {
    "share": "share of the map's total, one scale a row",
    "row": "size of the map, one scale a row",
    "map": "size of the map, each with its own scale",
}


@styled
def map_grid(
    images,
    maps,
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    groups: Sequence[tuple[str, int]] = (),
    notes: Sequence[Sequence[str]] | None = None,
    scale: str = "share",
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
    if scale not in SCALES:
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

    left, above, below = 0.06 + 0.075 * max(map(len, row_labels), default=0), 0.25 + 0.24 * bool(groups), 0.34
    ends = np.cumsum([0, *(count for _, count in groups)])[: max(1, len(groups))]  # columns with a gap behind them
    places = [c + 0.15 * (ends < c).sum() for c in range(columns + 1)]
    cell = min(1.05, (WIDTH - left - 0.05) / (places[-1] + 1))
    bottoms = [below + (rows - r - 1) * cell for r in range(rows)]
    starts = [left + place * cell for place in places]
    sheet = _Sheet(starts, bottoms, cell - 0.05, above + rows * cell + below)
    for column, label in enumerate(["image", *col_labels]):
        sheet.title(column, label)
    for r in range(rows):
        sheet.label(r, row_labels[r])
        sheet.image(r, 0, images[r])
        tops = maps[r].max(axis=(1, 2)) if scale == "map" else [np.quantile(maps[r], 0.998)] * columns
        for c in range(columns):
            sheet.map(r, c + 1, maps[r, c], images[r], tops[c], notes[r][c] if notes is not None else "")
    at = 1
    for heading, count in groups:
        sheet.heading(at, at + count - 1, heading)
        at += count
    sheet.key(starts[1], SCALES[scale])
    return sheet.figure


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
    tops = np.quantile(np.stack(scale), 0.998, axis=(0, 2, 3)) if scale else []
    numbers = list(epochs) if epochs is not None else list(range(1, len(strips) + 1))
    kept = sorted({round(at) for at in np.linspace(0, len(strips) - 1, min(most, len(strips)))})
    left, above, below = 0.75, 0.28, 0.34
    cell = (WIDTH - left - 0.05) / len(images)
    bottoms = [below + (len(kept) - r) * cell + 0.06 * (r == 0) for r in range(len(kept) + 1)]
    starts = [left + c * cell for c in range(len(images))]
    sheet = _Sheet(starts, bottoms, cell - 0.05, above + (len(kept) + 1) * cell + 0.06 + below)
    sheet.label(0, "image")
    for c, image in enumerate(images):
        sheet.image(0, c, image)
        if labels is not None:
            sheet.title(c, labels[c] if len(labels[c]) <= 11 else labels[c][:10] + "…")
    for r, k in enumerate(kept, start=1):
        sheet.label(r, f"epoch {numbers[k]}")
        for c, saliency in enumerate(np.abs(_array(strips[k]))):
            sheet.map(r, c, saliency, images[c], tops[c])
    if kept:
        sheet.key(left + 0.1, "size of the map, one scale an image")
    return sheet.figure


def film_frames(strips: Sequence, images, labels: Sequence[str] | None = None) -> list[Figure]:
    """`film_strip` one epoch at a time, a figure each, all with the scales of the whole strip."""
    return [film_strip([strip], images, labels, epochs=[k], scale=strips) for k, strip in enumerate(strips, start=1)]


def saliency_methods(
    images, maps: Mapping[str, object], row_labels: Sequence[str], notes: Sequence[Sequence[str]] | None = None
) -> Figure:
    """The same images explained by several methods: maps is method -> (N,28,28). Each map has its own scale, because
    the methods' units differ."""
    stacked = np.stack([_array(values) for values in maps.values()], axis=1)
    labels = [METHODS[method].short or METHODS[method].title for method in maps]
    return map_grid(images, stacked, row_labels, labels, notes=notes, scale="map")
