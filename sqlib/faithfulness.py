"""Faithfulness of saliency maps: does accuracy follow the pixels that a map calls important?

Deletion replaces the most salient pixels of an image by a fill, insertion starts from the fill alone and reveals them (the
masked accuracy of Ismail et al. 2021, fig. 3; the two games of Petsiuk et al. 2018, "RISE", there with the probability of
a class in place of accuracy). Blanked images are out of distribution, and no fill is neutral: hence three of them, and a
random order of the pixels beside every curve.
"""

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from sqlib.metrics import FRACTIONS, areas_under
from sqlib.models import predict

FILLS = ("corner", "mean", "blurred")
DIRECTIONS = ("deletion", "insertion")

BLUR = 5.0
"""Standard deviation in pixels of the `blurred` fill: wide enough for a 28 x 28 image to lose its shape, not its light."""


def filled(images: Tensor, fill: str) -> Tensor:
    """What is left of images (N,C,H,W) when every pixel is replaced; same shape and range.

    fill: `corner`, each channel's top left pixel; `mean`, each channel's own mean; `blurred`, the image behind a Gaussian
    of `BLUR` pixels, its edge pixels repeated outwards (one of Fong and Vedaldi 2017's three). Raises ValueError for others.
    """
    if fill == "corner":
        return images[:, :, :1, :1].expand_as(images)
    if fill == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if fill == "blurred":
        blurred = gaussian_filter(images.detach().cpu().numpy(), sigma=(0, 0, BLUR, BLUR), mode="nearest")
        return torch.from_numpy(blurred).to(images)
    raise ValueError(f"fill = '{fill}': expected one of {', '.join(FILLS)}")


def still_right(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    fill: str = "corner",
    direction: str = "deletion",
    fractions: tuple[float, ...] = FRACTIONS,
) -> Tensor:
    """(len(fractions), N) truth values: is the model right about an image whose first pixels of `order` were replaced?

    Args:
        images: (N,C,H,W) in [0,1].
        labels: (N,) the true classes.
        order: (N, H*W) pixel indices, the first to be replaced first (`metrics.salient_order`, `metrics.random_order`).
        fill: see `filled`.
        direction: `deletion` puts the fill in the image's place, `insertion` the image in the fill's.
        fractions: of the pixels, 0 to 1; their number is rounded.

    Raises ValueError for an unknown fill or direction, and for an order that does not fit the images.
    """
    n, channels, height, width = images.shape
    if order.shape != (n, height * width):
        raise ValueError(f"order {tuple(order.shape)}: expected {(n, height * width)}, every pixel of every image")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction = '{direction}': expected 'deletion' or 'insertion'")
    start, end = images, filled(images, fill)
    if direction == "insertion":
        start, end = end, start
    start, end = (part.reshape(n, channels, -1) for part in (start, end))
    right = []
    for fraction in fractions:
        where = order[:, None, : round(fraction * order.shape[1])].expand(n, channels, -1)
        replaced = start.scatter(2, where, end.gather(2, where)).view_as(images)
        right.append(predict(model, replaced).argmax(dim=1) == labels)
    return torch.stack(right)


def areas(right: Tensor, fractions: tuple[float, ...] = FRACTIONS) -> Tensor:
    """(N,) `metrics.area_under` of each image's own curve, 0 to 1; their mean is the area under the accuracy curve.

    right: (len(fractions), N) from `still_right`.
    """
    return areas_under(right.T, fractions)


def gap(area: Tensor | float, random_area: Tensor | float, direction: str) -> Tensor | float:
    """How far a salient order beats a random one, in accuracy, -1 to 1; 0 is chance, higher is better.

    `random - salient` areas for `deletion`, `salient - random` for `insertion`. Raises ValueError for others.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction = '{direction}': expected 'deletion' or 'insertion'")
    return random_area - area if direction == "deletion" else area - random_area
