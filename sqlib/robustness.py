"""Robustness of saliency maps: how far a map moves when its image moves a little (Captum's `sensitivity_max`)."""

import math

import torch
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from sqlib.metrics import dead
from sqlib.saliency import saliency_map

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
) -> Tensor:
    """Maximum sensitivity `max_k ||map(x + e_k) - map(x)|| / ||map(x)||` of signed maps, (N,); 0 is best, no upper end.

    Max-sensitivity of Yeh et al. 2019 ("On the (In)fidelity and Sensitivity of Explanations") over the ball
    `max |e| <= radius`, estimated from below with `samples` uniform draws of e; Frobenius norm, divided by the size of
    the map, so that its unit does not count. x + e is not cut to [0,1]: the networks take any values, and a cut would
    halve the change of a black background. NaN for dead maps, which have no size.

    Args:
        images: (N,C,H,W) in [0,1].
        targets: (N,) the explained classes, for the perturbed images, too.
        method, surrogate: see `saliency.saliency_map`, whose errors are raised.
        radius: in pixel units, > 0.
        seed: of the draws; torch's global generator is left alone.

    Raises ValueError for a radius or number of samples that is not positive.
    """
    if not radius > 0 or samples < 1:
        raise ValueError(f"radius = {radius}, samples = {samples}: expected more than 0 of both")
    if not len(images):
        return images.new_zeros(0)
    generator = torch.Generator().manual_seed(seed)

    def explain(inputs: Tensor | tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        # Captum hands over a tuple first, tensors later. Of a tensor returned it would take the first image for the batch.
        (inputs,) = inputs if isinstance(inputs, tuple) else (inputs,)
        return (saliency_map(model, inputs, target, method, surrogate),)

    def perturb(inputs: Tensor, radius: float) -> Tensor:
        return inputs + (torch.rand(inputs.shape, generator=generator) * 2 - 1).mul_(radius).to(inputs)

    # One copy of each image at a time: so an image and its copies have the same place in the batch, on which the noise of
    # SmoothGrad depends, and what is measured is the change of the image alone.
    values = sensitivity_max(
        explain,
        images,
        perturb_func=perturb,
        perturb_radius=radius,
        n_perturb_samples=samples,
        max_examples_per_batch=len(images),
        target=targets,
    )
    return values.masked_fill(dead(explain(images, targets)[0]), math.nan)
