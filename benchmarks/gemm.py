"""How fast this machine multiplies matrices, and how long the arithmetic of a training step would take at that rate."""

import torch

from sqlib.config import FLOAT
from sqlib.models import Network
from timing import Step

FLOPS_PER_MAC = 2
STEP_OVER_FORWARD = 3
"""Forward once, backward twice (gradient of the input, gradient of the weights).

The first layer's input gradient is counted although an ordinary step does not need it: 4% of `lenet`, 0.5% of `sgt_cnn`.
"""


def product(size: int, dtype: torch.dtype = torch.float32) -> Step:
    """One product of two square matrices of random numbers, into memory that is there already."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def product_flops(size: int) -> int:
    """Floating-point operations of `product`."""
    return FLOPS_PER_MAC * size**3


def step_flops(model: Network, batch: int, training: str = "standard", integers: bool = False) -> int:
    """Floating-point operations of the matrix products in one training step; nothing else is counted.

    A guided step explains (backward to the image) and trains on two batches; the pass that is explained is one of the two.
    integers: leave out what is multiplied as 8-bit integers, at a rate of its own: forward, convolutions of codes.
    """
    forward, passes = (2, 2 * STEP_OVER_FORWARD + 1) if training == "saliency_guided" else (1, STEP_OVER_FORWARD)
    macs = passes * sum(model.macs.values())
    if integers:
        pairs = zip(model.convs, model.convs[1:], strict=False)
        coded = [
            b for a, b in pairs if FLOAT not in (model.get_submodule(f"{a}_act").bits, model.get_submodule(b).bits)
        ]
        macs -= forward * sum(model.macs[layer] for layer in coded)
    return FLOPS_PER_MAC * batch * macs
