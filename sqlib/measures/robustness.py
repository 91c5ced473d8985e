"""Robustness of saliency maps: how far a map moves when its image moves a little."""

import math

import torch
from torch import Tensor, nn

from sqlib.maps.attribution import saliency_map
from sqlib.measures.clarity import dead

RADIUS = 0.02
"""Largest change of a pixel, in units of the pixel range [0, 1]: 5 of 255 grey levels."""
SAMPLES = 10


def sensitivity(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    method: str = "gradient",
    surrogate: str = "straight_through",
    radius: float = RADIUS,
    samples: int = SAMPLES,
    seed: int = 0,
    maps: Tensor | None = None,
) -> Tensor:
    """Maximum sensitivity `max_k ||map(x + e_k) - map(x)|| / ||map(x)||` of signed maps, (N,); 0 is best, no upper end.

    Max-sensitivity of Yeh et al. 2019 ("On the (In)fidelity and Sensitivity of Explanations") over the ball `max |e| <=
    radius`, estimated from below with `samples` uniform draws of e; Frobenius norm, divided by the size of the map, so
    that its unit does not count: what Captum's `sensitivity_max` computes. x + e is not cut to [0,1]: the networks take
    any values, and a cut would halve the change of a black background. NaN for dead maps, which have no size.

    Args:
        images: (N,C,H,W) in [0,1].
        targets: (N,) the explained classes, for the perturbed images, too.
        method, surrogate: see `sqlib.maps.attribution.saliency_map`, whose errors are raised.
        radius: in pixel units, > 0.
        seed: of the draws; torch's global generator is left alone.
        maps: (N,H,W) of the images as they are, where they are known.

    Raises ValueError for a radius or number of samples that is not positive.

    >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> sensitivity(linear, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]))  # its gradient is the same everywhere
    tensor([0., 0., 0.])
    """
    if not radius > 0 or samples < 1:
        raise ValueError(f"radius = {radius}, samples = {samples}: expected more than 0 of both")
    if not len(images):
        return images.new_zeros(0)
    generator = torch.Generator().manual_seed(seed)
    if maps is None:
        maps = saliency_map(model, images, targets, method, surrogate)
    # One copy of each image at a time: so an image and its copies have the same place in the batch, on which the noise of
    # SmoothGrad depends, and what is measured is the change of the image alone.
    change = images.new_zeros(len(images))
    for _ in range(samples):
        noise = (torch.rand(images.shape, generator=generator) * 2 - 1).mul_(radius).to(images)
        moved = saliency_map(model, images + noise, targets, method, surrogate)
        change = torch.maximum(change, (moved - maps).flatten(1).norm(dim=1))
    return (change / maps.flatten(1).norm(dim=1)).masked_fill(dead(maps), math.nan)
