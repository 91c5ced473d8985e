"""Quantised weights: codes and step by SAWB, DoReFa or the largest weight.

Sources: SAWB, Choi et al. 2019 (MLSys, "Accurate and Efficient 2-bit Quantized Neural Networks"); DoReFa, Zhou et al. 2016
(arXiv 1606.06160).
"""

import math

import torch
from torch import Tensor

from sqlib.hardware import constant
from sqlib.quant.bits import FLOAT, check_bits

# clip = c1 * sqrt(E[w^2]) + c2 * E|w|, fitted by the authors of SAWB on six distributions (docs/method.md).
SAWB_COEFFICIENTS = {
    (2, False): (3.12, -2.064),
    (3, False): (7.509, -6.892),
    (4, False): (12.68, -12.80),
    (4, True): (12.035, -12.03),
    (8, True): (31.76, -35.04),
}


def _largest(x: Tensor, per_channel: bool) -> Tensor:
    """The largest absolute value, or that of each output channel: a 0-d tensor or (out,1,...)."""
    over = {"dim": tuple(range(1, x.dim())), "keepdim": True} if per_channel else {}
    return torch.linalg.vector_norm(x, math.inf, **over)


def sawb_clip(weight: Tensor, bits: int, zero_aligned: bool = False, per_channel: bool = False) -> Tensor:
    """SAWB's clip `c1 * sqrt(E[w^2]) + c2 * E|w|` (Choi et al. 2019, eq. 7): a 0-d tensor; (out,1,...) per channel.

    Fitted for 2, 3 and 4 bits, and zero-aligned (2^bits - 1 levels, zero among them) for 4 and 8; 8 bits are always
    zero-aligned. The fit assumes bell-shaped weights; where it gives nothing positive (all weights of nearly one size) the
    largest absolute weight is the clip. Raises ValueError for other bits.

    >>> sawb_clip(torch.tensor([-2.0, 2.0, -1.0, 1.0]), bits=2)  # 3.12 * sqrt(2.5) - 2.064 * 1.5
    tensor(1.8372)
    """
    coefficients = SAWB_COEFFICIENTS.get((bits, zero_aligned or bits == 8))
    if coefficients is None:
        fitted = ", ".join(f"{b} zero-aligned" if z else str(b) for b, z in SAWB_COEFFICIENTS)
        asked = f"{bits} bits{', zero-aligned' if zero_aligned else ''}"
        raise ValueError(f"SAWB has no coefficients for {asked} (only for {fitted}): take 'minmax' or 'dorefa'")
    c1, c2 = coefficients
    weight = weight.detach().float()
    # In float64: the two terms nearly cancel, and no square overflows.
    over = {"dim": tuple(range(1, weight.dim())), "keepdim": True} if per_channel else {}
    count = weight[0].numel() if per_channel else weight.numel()
    norm1, norm2 = (torch.linalg.vector_norm(weight, order, dtype=torch.float64, **over) for order in (1, 2))
    clip = torch.add(norm2 * (c1 / math.sqrt(count)), norm1, alpha=c2 / count)
    positive = clip > 0
    if clip.is_cpu and positive.all():  # nearly always; to ask a GPU would stall it
        return clip.float()
    return torch.where(positive, clip, _largest(weight, per_channel)).float()


def weight_codes(
    weight: Tensor, bits: int, method: str = "sawb", zero_aligned: bool = False, per_channel: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of a weight tensor: `(codes, step, values)`, with the quantised weights being `codes * step`.

    `codes` are float32 integers: odd, from -(2^bits - 1) to 2^bits - 1, for 2^bits levels; all from -(2^(bits-1) - 1) to
    2^(bits-1) - 1 when zero-aligned (and always at 8 bits). `step` is a 0-d tensor; with `per_channel`, where each output
    channel (first dimension) has a clip of its own, (out,1,...). `values` is what was rounded: the
    weights themselves, or DoReFa's tanh transform of them; differentiable. Bits 2 to 8; raises ValueError.

    >>> codes, step, _ = weight_codes(torch.tensor([-0.9, -0.2, 0.4, 0.7]), bits=2, method="minmax")
    >>> codes, step
    (tensor([-3., -1.,  1.,  3.]), tensor(0.3000))
    """
    check_bits(bits, 2)
    zero_aligned = zero_aligned or bits == 8
    if method == "dorefa":
        # DoReFa eq. 9 without its final rounding: tanh squeezes the weights to [-1, 1].
        squeezed = weight.float().tanh()
        values = squeezed / _largest(squeezed, per_channel).clamp(min=1e-8)
        clip = torch.ones_like(_largest(values.detach(), per_channel))
    elif method == "sawb":
        values, clip = weight, sawb_clip(weight, bits, zero_aligned, per_channel)
    elif method == "minmax":
        values, clip = weight, _largest(weight.detach().float(), per_channel)
    else:
        raise ValueError(f"method '{method}': expected 'sawb', 'dorefa' or 'minmax'")
    clip = clip.clamp(min=torch.finfo(torch.float32).tiny * 2**12)  # all-zero weights: any clip will do
    unit = (values.detach().float() / clip).clamp_(-1, 1)
    if zero_aligned:
        top = 2 ** (bits - 1) - 1
        codes = unit.mul_(top).round_()
    else:
        top = 2**bits - 1
        codes = unit.add_(1).mul_(top / 2).round_().mul_(2).sub_(top)
    return codes, clip / constant(top, clip.device), values


def quantize_weight(
    weight: Tensor, bits: int, method: str = "sawb", zero_aligned: bool = False, per_channel: bool = False
) -> Tensor:
    """The weights rounded to their levels, same shape, with straight-through gradient (dq/dw = 1 everywhere).

    Bits 2 to 8, or 32 to return the weights as they are. Stateless: computed from the weights in train and eval mode alike.

    >>> quantize_weight(torch.tensor([-0.9, -0.2, 0.4, 0.7]), bits=2, method="minmax")
    tensor([-0.9000, -0.3000,  0.3000,  0.9000])
    """
    if bits == FLOAT:
        return weight
    codes, step, values = weight_codes(weight, bits, method, zero_aligned, per_channel)
    return StraightThrough.apply(values, codes * step)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, quantised: Tensor) -> Tensor:
        return quantised.to(values.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None
