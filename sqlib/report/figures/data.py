"""A data set: the first images of each class, how its pixels are distributed, and the mean image of each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sqlib.report.figures.style import FAINT, WIDTH, styled


@styled
def first_of_each_class(images, labels, classes: Sequence[str], count: int = 10) -> Figure:
    """The first `count` images of each class, a row a class. images (N,28,28) in 0..255, labels (N,)."""
    rows = [np.hstack(images[labels == label][:count]) for label in range(len(classes))]
    fig = Figure(figsize=(WIDTH, WIDTH))
    axis = fig.subplots()
    axis.imshow(np.vstack(rows), cmap="gray", vmin=0, vmax=255, extent=(0, count, len(classes), 0))
    axis.set(xticks=[], yticks=np.arange(len(classes)) + 0.5, yticklabels=classes)
    axis.tick_params(length=0)
    for edge in range(1, len(classes)):
        axis.axhline(edge, color="white", linewidth=3)
    for edge in range(1, count):
        axis.axvline(edge, color="white", linewidth=3)
    axis.spines[:].set_visible(False)
    return fig


@styled
def pixel_values(histogram, foreground) -> Figure:
    """Left, the share of pixels by value (256,); right, how the images' shares of pixels above 0, (N,), are distributed."""
    fig = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = fig.subplots(1, 2)
    left.stairs(histogram, np.arange(257) - 0.5, fill=True, color=FAINT)
    left.set(yscale="log", xlabel="pixel value", ylabel="share of pixels (log)")
    right.hist(np.asarray(foreground), bins=40, range=(0, 1), color=FAINT)
    right.set(xlabel="share of the image above 0", ylabel="training images")
    return fig


@styled
def class_means(means: np.ndarray, classes: Sequence[str]) -> Figure:
    """The mean image (classes, 28, 28) of each class, five in a row."""
    fig = Figure(figsize=(WIDTH, 1.9 * -(-len(classes) // 5)), layout="constrained")
    axes = fig.subplots(-(-len(classes) // 5), 5, squeeze=False)
    for axis in axes.flat[len(classes) :]:
        axis.set_axis_off()
    for axis, mean, name in zip(axes.flat, means, classes):
        shown = axis.imshow(mean, cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[], title=name)
    fig.colorbar(shown, ax=axes, label="mean pixel value")
    return fig
