"""Faithfulness of saliency maps: does accuracy follow the pixels that a map calls important?

Deletion replaces the most salient pixels of an image by a fill, insertion starts from the fill alone and reveals them (the
masked accuracy of Ismail et al. 2021, fig. 3; the two games of Petsiuk et al. 2018, "RISE", there with the probability of
a class in place of accuracy). Blanked images are out of distribution, and no fill is neutral: hence three of them, and a
random order of the pixels beside every curve.
"""

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from sqlib.measures import DIRECTIONS, FILLS
from sqlib.networks.passes import predict

FRACTIONS = tuple(k / 10 for k in range(10))
"""Shares of the pixels that deletion blanks: 0, 0.1 ... 0.9."""


def salient_order(maps: Tensor) -> Tensor:
    """(N,H,W) maps to (N, H*W) pixel indices by falling |map|; ties keep their place in the image.

    >>> salient_order(torch.tensor([[[0.5, -3.0], [0.5, 1.0]]]))
    tensor([[1, 3, 0, 2]])
    """
    return maps.abs().flatten(1).argsort(dim=1, descending=True, stable=True)


def random_order(count: int, pixels: int, seed: int) -> Tensor:
    """(count, pixels): a random order of the pixels for each image, the control beside every deletion curve."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, pixels, generator=generator).argsort(dim=1)


def area_under(curve: Tensor, fractions: tuple[float, ...] = FRACTIONS) -> float:
    """Trapezoid area under a curve over its fractions, over their range: the mean height, 0 to 1 for an accuracy.

    >>> area_under(torch.tensor([1.0, 0.5, 0.0]), (0.0, 0.5, 1.0))
    0.5
    """
    return areas_under(curve[None], fractions).item()


def areas_under(curves: Tensor, fractions: tuple[float, ...] = FRACTIONS) -> Tensor:
    """(N,) `area_under` of each of the curves (N, len(fractions)), such as `still_right(...).T`.

    The mean of the areas under the curves of single images is the area under the curve of the accuracy.
    """
    x = torch.tensor(fractions, dtype=torch.float64, device=curves.device)
    return torch.trapezoid(curves.double(), x) / (x[-1] - x[0])


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
        order: (N, H*W) pixel indices, the first to be replaced first (`salient_order`, `random_order`).
        fill: see `filled`.
        direction: `deletion` puts the fill in the image's place, `insertion` the image in the fill's.
        fractions: of the pixels, 0 to 1; their number is rounded.

    Raises ValueError for an unknown fill or direction, and for an order that does not fit the images.

    >>> brightest = nn.Flatten()  # answers with the number of the brightest pixel
    >>> image, label, order = torch.tensor([[[[0.0, 9.0], [5.0, 1.0]]]]), torch.tensor([1]), torch.tensor([[1, 2, 3, 0]])
    >>> still_right(brightest, image, label, order, "mean", "insertion", fractions=(0, 0.25)).tolist()
    [[False], [True]]
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


def deletion_curve(
    model: nn.Module, images: Tensor, labels: Tensor, order: Tensor, fractions: tuple[float, ...] = FRACTIONS
) -> Tensor:
    """Accuracy while the first pixels of `order` are blanked with the image's corner value: (len(fractions),).

    The masked accuracy of Ismail et al. 2021, fig. 3. images (N,C,H,W), labels (N,), order (N, H*W) pixel indices, most
    salient first (see `salient_order`, `random_order`).

    >>> brightest = nn.Flatten()  # answers with the number of the brightest pixel
    >>> image = torch.tensor([[[[0.0, 9.0], [5.0, 1.0]]]])
    >>> deletion_curve(brightest, image, torch.tensor([1]), salient_order(image[0]), (0, 0.25)).tolist()
    [1.0, 0.0]
    """
    return still_right(model, images, labels, order, "corner", "deletion", fractions).double().mean(dim=1)


def gap(area: Tensor | float, random_area: Tensor | float, direction: str) -> Tensor | float:
    """How far a salient order beats a random one, in accuracy, -1 to 1; 0 is chance, higher is better.

    `random - salient` areas for `deletion`, `salient - random` for `insertion`. Raises ValueError for others.

    >>> gap(0.25, 0.75, "deletion"), gap(0.25, 0.75, "insertion")
    (0.5, -0.5)
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction = '{direction}': expected 'deletion' or 'insertion'")
    return random_area - area if direction == "deletion" else area - random_area
