"""How fast this machine multiplies matrices, and how long the arithmetic of a training step would take at that rate."""

import torch

from sqlib.networks.network import Network
from sqlib.quant.bits import FLOAT
from timing import Step

FLOPS_PER_MAC = 2


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

    Forward once, backward twice: the gradient of the weights and that of the input, which training does not need in the
    first layer. A guided step trains on two batches, and the pass of one of them is explained: backward to the image.
    integers: leave out what is multiplied as 8-bit integers, at a rate of its own: forward, convolutions of codes.
    """
    trained, explained = (2, 1) if training == "saliency_guided" else (1, 0)
    whole, first = sum(model.macs.values()), model.macs[model.convs[0]]
    macs = trained * (3 * whole - first) + explained * whole
    if integers:
        pairs = zip(model.convs, model.convs[1:], strict=False)
        coded = [
            b for a, b in pairs if FLOAT not in (model.get_submodule(f"{a}_act").bits, model.get_submodule(b).bits)
        ]
        macs -= trained * sum(model.macs[layer] for layer in coded)
    return FLOPS_PER_MAC * batch * macs
