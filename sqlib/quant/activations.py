"""Quantised activations: PACT with its learnable clip (Choi et al. 2018, arXiv 1805.06085), or ReLU."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sqlib.hardware import constant
from sqlib.quant.bits import FLOAT, check_bits
from sqlib.quant.kernels import clipped, clipped_by_value, gates, gates_by_value, wanted

SMALLEST_CLIP = 1e-2
"""Where `PACT.project_` stops a clip that would become zero or negative."""


class _Pact(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, bits: int, unclipped: bool) -> tuple[Tensor, Tensor]:
        n = 2**bits - 1
        # In place where it can be: elementwise passes cost memory traffic, not arithmetic.
        codes = (clipped_by_value if x.is_cpu else clipped)(x.float(), alpha)
        # Multiplied, then divided: `x * (n / alpha)` rounds twice, and moves values that lie exactly between two levels.
        codes.mul_(n).div_(alpha).round_()
        ctx.save_for_backward(x, alpha)
        ctx.unclipped = unclipped
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)  # or torch makes zeros for the codes' gradient, as large as they are
        return codes.mul(alpha / constant(n, alpha.device)).to(x.dtype), codes

    @staticmethod
    def backward(ctx, grad: Tensor | None, _):
        if grad is None:  # nothing behind depends on the output
            return None, None, None, None
        x, alpha = ctx.saved_tensors
        # Decided on the unrounded x: the rounded value would widen the pass zone by half a step. In float32, because beside
        # a bfloat16 x torch would round alpha to bfloat16. `threshold_backward(grad, x, 0)` is grad where x > 0, else 0, in
        # one vectorised pass, and without a mask that is written and read.
        x, grad = x.float(), grad.float()
        needs_alpha = ctx.needs_input_grad[1] and wanted.parameters
        grad_x, grad_clipped = (gates_by_value if x.is_cpu else gates)(grad, x, alpha, needs_alpha, ctx.unclipped)
        return grad_x, grad_clipped.sum().reshape(alpha.shape) if needs_alpha else None, None, None


def pact(x: Tensor, alpha: Tensor | float, bits: int, unclipped: bool = False) -> Tensor:
    """PACT (Choi et al. 2018, eq. 1-3): `round(clip(x, 0, alpha) * n / alpha) * alpha / n` with `n = 2^bits - 1`.

    Args:
        x: any shape; computed in float32 whatever its dtype, returned in its dtype.
        alpha: the clip, one positive number; a tensor of one element to have its gradient.
        bits: 1 to 8.
        unclipped: take 1 as the derivative above the clip, too: a second surrogate, for explanations only.

    Backward: dy/dx = 1 where 0 < x < alpha, else 0; dy/dalpha = 1 where x >= alpha, else 0, summed in float32.
    The result carries its codes for the layer behind it, which need not work them out again: `carried`.
    Raises ValueError for other bits, and for alpha <= 0 (not checked on a GPU, where looking would stall the device).

    >>> x, alpha = torch.tensor([-1.0, 0.4, 1.1, 5.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    >>> y = pact(x, alpha, bits=2)
    >>> y.tolist(), carried(y).codes.tolist()
    ([0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 1.0, 3.0])
    >>> y.sum().backward()
    >>> x.grad.tolist(), alpha.grad.item()
    ([0.0, 1.0, 1.0, 0.0], 1.0)
    """
    check_bits(bits, 1)
    alpha = torch.as_tensor(alpha, dtype=torch.float32, device=x.device)
    if alpha.numel() != 1:
        raise ValueError(f"alpha has {alpha.numel()} elements: expected one clip a tensor")
    if alpha.is_cpu and not alpha.item() > 0:
        raise ValueError(f"alpha = {alpha.item()}: the clip must be positive")
    y, codes = _Pact.apply(x, alpha.reshape(()), bits, unclipped)
    if not y.is_inference():  # torch does not count the changes of those
        y.carried = Carried(codes, (2**bits - 1) / alpha.detach(), y._version)
    return y


class Carried(NamedTuple):
    """What `pact` hangs on the tensor that it returns, as its attribute `carried`.

    codes: same shape, float32 integers from 0 to 2^bits - 1, not differentiable. scale: codes per unit, `n / alpha`.
    version: how often the tensor had been changed in place.
    """

    codes: Tensor
    scale: Tensor
    version: int


def carried(y: Tensor) -> Carried | None:
    """The codes of y and their scale if it is what `pact` returned; None if not, or if it was changed in place since.

    So a hook that edits an activation is obeyed (but not through `.data`, where torch does not count): the layer behind it
    works out the codes of what it is given. What is made of y (pooled, reshaped, dropped) is another tensor and carries
    nothing.
    """
    found = getattr(y, "carried", None)
    return found if found is not None and y._version == found.version else None


class PACT(nn.Module):
    """The activation `pact` with its learnable clip `alpha` (a 0-d parameter; starts wide, at 10).

    >>> layer = PACT(bits=2, start=1.5)
    >>> layer(torch.tensor([-1.0, 0.4, 2.0]))
    tensor([0.0000, 0.5000, 1.5000], grad_fn=<_PactBackward>)
    """

    def __init__(self, bits: int, start: float = 10.0):
        super().__init__()
        check_bits(bits, 1)
        self.bits = bits
        self.alpha = nn.Parameter(torch.tensor(float(start)))
        self.unclipped = False

    def forward(self, x: Tensor) -> Tensor:
        return pact(x, self.alpha, self.bits, self.unclipped)

    @property
    def code_scale(self) -> Tensor:
        """Codes per unit of the output, `n / alpha`."""
        return (2**self.bits - 1) / self.alpha.detach()

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the clip positive: called after each optimiser step."""
        self.alpha.clamp_(min=SMALLEST_CLIP)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class ReLU(nn.ReLU):
    """The activation of a layer that is not quantised; its output has no codes."""

    bits = FLOAT
    code_scale = None


def make_activation(bits: int) -> PACT | ReLU:
    """PACT with 1 to 8 bits, ReLU with 32."""
    return ReLU() if bits == FLOAT else PACT(bits)
