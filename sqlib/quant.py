"""Quantisation: PACT for activations, SAWB, DoReFa or min-max for weights, and layers that compute on integer codes.

A quantised tensor is `codes * step`: small integers and one float. Layers multiply and add codes, which float32 holds exactly
while sums stay below 2^24, and rescale once after the sum; so the trained model and an integer implementation of it
agree by construction. Where the processor multiplies 8-bit integers, convolutions of codes are computed in them: the
same sums, in less time. Gradients are those of the straight-through surrogates, on the real values.

Sources: PACT, Choi et al. 2018 (arXiv 1805.06085); SAWB, Choi et al. 2019 (MLSys, "Accurate and Efficient 2-bit
Quantized Neural Networks"); DoReFa, Zhou et al. 2016 (arXiv 1606.06160).
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqlib.config import FLOAT
from sqlib.machine import constant, int8_units

PIXEL_SCALE = 255.0
"""Codes per unit of an input image: pixels are 8-bit integers divided by 255."""

SMALLEST_CLIP = 1e-2
"""Where `PACT.project_` stops a clip that would become zero or negative."""

# clip = c1 * sqrt(E[w^2]) + c2 * E|w|, fitted by the authors of SAWB on six distributions (DESIGN.md).
SAWB_COEFFICIENTS = {
    (2, False): (3.12, -2.064),
    (3, False): (7.509, -6.892),
    (4, False): (12.68, -12.80),
    (4, True): (12.035, -12.03),
    (8, True): (31.76, -35.04),
}


def check_bits(bits: int, lowest: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not lowest <= bits <= 8:
        raise ValueError(f"bits = {bits!r}: expected an integer from {lowest} to 8")


class _Wanted:
    """Which gradients the functions below compute, as they cannot ask autograd which of them it will use."""

    parameters = inputs = True


_wanted = _Wanted()


@contextlib.contextmanager
def gradients_of(what: str) -> Iterator[None]:
    """Backward passes inside compute only what is wanted: gradients of the network's `inputs`, or of its `parameters`.

    For two passes through one graph. The other gradients are then missing (None), not wrong.
    """
    before = _wanted.parameters, _wanted.inputs
    _wanted.parameters, _wanted.inputs = what == "parameters", what == "inputs"
    try:
        yield
    finally:
        _wanted.parameters, _wanted.inputs = before


# ---------------------------------------------------------------------------------------------------- activations


class _Pact(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, bits: int, unclipped: bool) -> tuple[Tensor, Tensor]:
        n = 2**bits - 1
        # In place where it can be: elementwise passes cost memory traffic, not arithmetic.
        codes = (_clipped_by_value if x.is_cpu else _clipped)(x.float(), alpha)
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
        needs_alpha = ctx.needs_input_grad[1] and _wanted.parameters
        grad_x, grad_clipped = (_gates_by_value if x.is_cpu else _gates)(grad, x, alpha, needs_alpha, ctx.unclipped)
        return grad_x, grad_clipped.sum().reshape(alpha.shape) if needs_alpha else None, None, None


def _clipped(x: Tensor, alpha: Tensor) -> Tensor:
    """clip(x, 0, alpha), a new tensor; the value of alpha is not looked at, for which a GPU would stall."""
    return x.clamp(constant(0, x.device), alpha)


def _clipped_by_value(x: Tensor, alpha: Tensor) -> Tensor:
    """`_clipped`, to the bit: passes that take a number do the work of two that take a tensor."""
    return x.clamp(0, alpha.item())


def _gates(grad: Tensor, x: Tensor, alpha: Tensor, needs_alpha: bool, unclipped: bool) -> tuple[Tensor, Tensor | None]:
    """(grad where 0 < x < alpha, or where 0 < x if `unclipped`; grad where x >= alpha, if `needs_alpha`), 0 elsewhere."""
    above_zero = torch.ops.aten.threshold_backward(grad, x, 0)
    if unclipped and not needs_alpha:
        return above_zero, None
    inside = torch.ops.aten.threshold_backward(above_zero, alpha - x, 0)
    return above_zero if unclipped else inside, above_zero - inside if needs_alpha else None


def _gates_by_value(
    grad: Tensor, x: Tensor, alpha: Tensor, needs_alpha: bool, unclipped: bool
) -> tuple[Tensor, Tensor | None]:
    """`_gates`, to the bit (but for what is not finite), in a pass each.

    `hardtanh_backward(grad, x, a, b)` is grad where a < x < b, else 0.
    """
    value = alpha.item()
    below = float(np.nextafter(np.float32(value), np.float32(0)))  # x > below: x >= alpha
    return (
        torch.ops.aten.threshold_backward(grad, x, 0)
        if unclipped
        else torch.ops.aten.hardtanh_backward(grad, x, 0, value),
        torch.ops.aten.threshold_backward(grad, x, below) if needs_alpha else None,
    )


def pact(x: Tensor, alpha: Tensor | float, bits: int, unclipped: bool = False) -> Tensor:
    """PACT (Choi et al. 2018, eq. 1-3): `round(clip(x, 0, alpha) * n / alpha) * alpha / n` with `n = 2^bits - 1`.

    Args:
        x: any shape; computed in float32 whatever its dtype, returned in its dtype.
        alpha: the clip, one positive number; a tensor of one element to have its gradient.
        bits: 1 to 8.
        unclipped: take 1 as the derivative above the clip, too: a second surrogate, for explanations only.

    Backward: dy/dx = 1 where 0 < x < alpha, else 0; dy/dalpha = 1 where x >= alpha, else 0, summed in float32.
    The result carries its codes (float32, not differentiable) for the layer behind it, which need not work them out again:
    `carried_codes`.
    Raises ValueError for other bits, and for alpha <= 0 (not checked on a GPU, where looking would stall the device).
    """
    check_bits(bits, 1)
    alpha = torch.as_tensor(alpha, dtype=torch.float32, device=x.device)
    if alpha.numel() != 1:
        raise ValueError(f"alpha has {alpha.numel()} elements: expected one clip a tensor")
    if alpha.is_cpu and not alpha.item() > 0:
        raise ValueError(f"alpha = {alpha.item()}: the clip must be positive")
    y, codes = _Pact.apply(x, alpha.reshape(()), bits, unclipped)
    if not y.is_inference():  # torch does not count the changes of those
        y.codes = codes, y._version
    return y


def carried_codes(y: Tensor) -> Tensor | None:
    """The codes of y (same shape, float32) if it is what `pact` returned; None if not, or if it was changed in place since.

    So a hook that edits an activation is obeyed: the layer behind it works out the codes of what it is given.
    """
    codes, version = getattr(y, "codes", (None, None))
    return codes if codes is not None and y._version == version else None


class PACT(nn.Module):
    """The activation `pact` with its learnable clip `alpha` (a 0-d parameter; starts wide, at 10)."""

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


# -------------------------------------------------------------------------------------------------------- weights


def _largest(x: Tensor, per_channel: bool) -> Tensor:
    """The largest absolute value, or that of each output channel: a 0-d tensor or (out,1,...)."""
    over = {"dim": tuple(range(1, x.dim())), "keepdim": True} if per_channel else {}
    return torch.linalg.vector_norm(x, math.inf, **over)


def sawb_clip(weight: Tensor, bits: int, zero_aligned: bool = False, per_channel: bool = False) -> Tensor:
    """SAWB's clip `c1 * sqrt(E[w^2]) + c2 * E|w|` (Choi et al. 2019, eq. 7): a 0-d tensor; (out,1,...) per channel.

    Fitted for 2, 3 and 4 bits, and zero-aligned (2^bits - 1 levels, zero among them) for 4 and 8; 8 bits are always
    zero-aligned. The fit assumes bell-shaped weights; where it gives nothing positive (all weights of nearly one size) the
    largest absolute weight is the clip. Raises ValueError for other bits.
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
    """
    if bits == FLOAT:
        return weight
    codes, step, values = weight_codes(weight, bits, method, zero_aligned, per_channel)
    return _StraightThrough.apply(values, codes * step)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, quantised: Tensor) -> Tensor:
        return quantised.to(values.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


# --------------------------------------------------------------------------------------------------------- layers


class _Convolve(torch.autograd.Function):
    """conv2d of codes, with the gradients of conv2d of the real values that the codes stand for; computed in `dtype`.

    `coded`: both operands are codes. Where they fit 8-bit integers, and the processor has units for these, the sums are
    computed in them: exact whatever `dtype`, and below 2^24, where float32 is exact too, the same. What does not fit (a
    NaN above all, which no integer can carry on) is computed in `dtype`.
    """

    @staticmethod
    def forward(ctx, x, weight, x_codes, weight_codes, code_scale, padding, dtype, coded) -> Tensor:
        # In bfloat16 codes up to 256 are exact; what is rounded, to 8 bits, are sums and gradients.
        kept = _channels_last(x_codes.to(dtype))
        ctx.save_for_backward(kept, weight)
        ctx.code_scale, ctx.padding, ctx.first = code_scale, padding, x.is_leaf
        if coded and kept.is_cpu and integers() and _within(kept, 0, 255) and _within(weight_codes, -127, 127):
            return _convolve_int8(kept, weight_codes, padding)
        return F.conv2d(kept, _channels_last(weight_codes.to(dtype)), padding=padding)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x_codes, weight = ctx.saved_tensors
        grad = grad.to(x_codes.dtype)
        needs_x = ctx.needs_input_grad[0] and (_wanted.inputs or not ctx.first)
        needs_weight = ctx.needs_input_grad[1] and _wanted.parameters
        grad_x = grad_weight = None
        if needs_x and x_codes.shape[1] == 1:
            # With one input channel the libraries are much slower than this.
            grad_x, needs_x = _one_channel_input_gradient(grad, weight, x_codes.shape, ctx.padding), False
        if needs_x or needs_weight:
            p = [ctx.padding, ctx.padding]
            mask = [needs_x, needs_weight, False]
            kernel = _channels_last(weight.to(grad.dtype))
            library_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, x_codes, kernel, None, [1, 1], p, [1, 1], False, [0, 0], 1, mask
            )
            grad_x = library_x.float() if needs_x else grad_x
        if needs_weight:
            # Codes are what was kept: real inputs are codes / code_scale.
            grad_weight = grad_weight.float() if ctx.code_scale is None else grad_weight.float() / ctx.code_scale
        return grad_x, grad_weight, None, None, None, None, None, None


def _within(codes: Tensor, lowest: int, highest: int) -> bool:
    """Whether all codes (N,C,H,W) lie in a range; False where one is NaN."""
    if not codes.numel():
        return False
    # `aminmax` copies what does not lie in memory as it is indexed: inputs are channels_last, weights are not.
    smallest, largest = (codes if codes.is_contiguous() else codes.permute(0, 2, 3, 1)).aminmax()
    return bool(smallest >= lowest) and bool(largest <= highest)


@functools.cache
def integers() -> bool:
    """Whether 8-bit integers are convolved here without overflow: VNNI, and oneDNN uses it (tried with the largest codes).

    Without it, or where it is switched off (ONEDNN_MAX_CPU_ISA), pairs of products saturate in 16 bits.
    """
    if not (int8_units() and torch.backends.mkldnn.is_available()):
        return False
    x, weight = torch.full((1, 32, 5, 5), 255.0), torch.full((16, 32, 5, 5), 127.0)
    return bool((_convolve_int8(_channels_last(x), weight, 0) == 255 * 127 * weight[0].numel()).all())


def _convolve_int8(x_codes: Tensor, weight_codes: Tensor, padding: int) -> Tensor:
    """conv2d of integers, 0 to 255 and -127 to 127, held in float tensors: their sums, rounded only above 2^24, in float32.

    The operation is the one that PyTorch's own quantised models run on x86 (oneDNN); all its scales are 1 here. By way
    of int16, since torch's conversion from float to uint8 is not vectorised, and slower than both.
    """
    scales, packed = _packed(weight_codes, padding, x_codes.shape)
    return torch.ops.onednn.qconv2d_pointwise(
        x_codes.to(torch.int16).to(torch.uint8), 1.0, 0, packed, *scales, None, [1, 1], [padding, padding], [1, 1], 1,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


def _packed(weight_codes: Tensor, padding: int, shape: torch.Size) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((scales, zero points), codes in oneDNN's order for inputs of this shape): kept with the codes, which passes may share."""
    kept = vars(weight_codes).setdefault("packed", {})
    if (padding, shape) not in kept:
        one_each, none = torch.ones(len(weight_codes)), torch.zeros(len(weight_codes), dtype=torch.int64)
        stride, pads, dilation = [1, 1], [padding, padding], [1, 1]
        packed = torch.ops.onednn.qconv_prepack(
            weight_codes.to(torch.int8), one_each, 1.0, 0, stride, pads, dilation, 1, list(shape)
        )
        kept[padding, shape] = (one_each, none), packed
    return kept[padding, shape]


def _channels_last(x: Tensor) -> Tensor:
    """NHWC in memory: faster convolution and pooling. With one channel the strides have to be spelled out."""
    if x.shape[1] == 1:
        n, _, h, w = x.shape
        return x.contiguous().as_strided((n, 1, h, w), (h * w, 1, w, 1))
    return x.contiguous(memory_format=torch.channels_last)


def _one_channel_input_gradient(
    grad: Tensor, weight: Tensor, shape: torch.Size, padding: int, fold: bool | None = None
) -> Tensor:
    """d(conv2d)/dx for one input channel: one matrix product, then each kernel position added in its place.

    fold: have torch's `fold` add all of them; None: on a GPU, where that is one kernel for 25. On a CPU it is slower.
    """
    n, _, height, width = shape
    out_channels, _, kh, kw = weight.shape
    oh, ow = grad.shape[2:]
    pixels = grad.permute(0, 2, 3, 1).reshape(-1, out_channels)
    kernel = weight.to(grad.dtype).reshape(out_channels, kh * kw).t().contiguous()
    if not grad.is_cpu if fold is None else fold:
        columns = kernel @ pixels.view(n, oh * ow, out_channels).transpose(1, 2)
        return F.fold(columns.float(), (height, width), (kh, kw), padding=padding)
    columns = (kernel @ pixels.t()).view(kh, kw, n, oh, ow).float()
    result = columns.new_zeros(n, height + 2 * padding, width + 2 * padding)
    for i in range(kh):
        for j in range(kw):
            result[:, i : i + oh, j : j + ow] += columns[i, j]
    return result[:, padding : padding + height, padding : padding + width].unsqueeze(1)


class _Multiply(torch.autograd.Function):
    """x @ weight.T of codes, with the gradients of the real values that the codes stand for."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, x_codes: Tensor, weight_codes: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x_codes, weight_codes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_weight = grad.t() @ x if ctx.needs_input_grad[1] and _wanted.parameters else None
        return grad_x, grad_weight, None, None


class _Rescale(torch.autograd.Function):
    """Sums of codes times their step, in place. The gradient passes unchanged: it was that of the real values all along.

    Behind the last convolution the gradient arrives as linear layers leave it, in NCHW. Made channels_last here, as the sums
    are, it spares max-pooling's backward pass copies of it, of the indices and of the result.
    """

    @staticmethod
    def forward(ctx, sums: Tensor, step: Tensor) -> Tensor:
        ctx.mark_dirty(sums)
        return sums.mul_(step)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _channels_last(grad) if grad.dim() == 4 else grad, None


class _QuantLayer:
    """What the two layers share: how weights and input become codes."""

    held = None

    def _set_bits(self, bits: int, method: str, zero_aligned: bool, per_channel: bool) -> None:
        if bits != FLOAT:
            check_bits(bits, 2)
        self.bits, self.method, self.zero_aligned, self.per_channel = bits, method, zero_aligned, per_channel
        # Buffers, so that they follow the model to a device; not part of its state.
        self.register_buffer("fixed_codes", None, persistent=False)
        self.register_buffer("fixed_step", None, persistent=False)

    def fix_codes(self, codes: Tensor, step: Tensor) -> None:
        """Compute with these codes and this step from now on, whatever the weights: for a model read from a packed file."""
        self.fixed_codes, self.fixed_step = codes, step
        with torch.no_grad():
            self.weight.copy_(codes * step)

    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(codes, step, values)` of the weights, see `weight_codes`."""
        if self.fixed_codes is not None:
            # Detached: what is hung on the tensor (`_packed`) does not stay with the model.
            return self.fixed_codes.detach(), self.fixed_step, self.weight
        return weight_codes(self.weight, self.bits, self.method, self.zero_aligned, self.per_channel)

    def _quantised(self) -> tuple[Tensor, Tensor, Tensor]:
        """The quantised weights, differentiable, their codes and their step."""
        if self.held is not None:
            return self.held
        codes, step, values = self.codes()
        return _StraightThrough.apply(values, codes * step), codes, step

    def _operands(self, x: Tensor, code_scale: Tensor | float | None):
        """Real weight, input codes, weight codes, and the step of their product (None where nothing is coded)."""
        if self.bits == FLOAT:
            return self.weight, x.detach(), self.weight.detach(), None
        weight, codes, step = self._quantised()
        if code_scale is None:
            return weight, x.detach(), codes, step
        if not isinstance(code_scale, Tensor):  # images between pixel values stay there
            return weight, x.detach() * code_scale, codes, step / constant(code_scale, step.device)
        x_codes = carried_codes(x)
        if x_codes is None:  # reshaped, dropped or edited since PACT: on the grid up to rounding error
            x_codes = (x.detach() * code_scale).round_()
        return weight, x_codes, codes, step / code_scale


@contextlib.contextmanager
def holding_weights(model: nn.Module) -> Iterator[None]:
    """Passes through the model inside share their quantised weights, which must not change meanwhile.

    Inside another such context they are quantised anew, since gradients may be wanted in only one of the two.
    """
    layers = [module for module in model.modules() if isinstance(module, _QuantLayer) and module.bits != FLOAT]
    before = [layer.held for layer in layers]
    try:
        for layer in layers:
            layer.held = None
            layer.held = layer._quantised()
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.held = held


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """Convolution (stride 1) with `bits`-bit weights, computed on codes; then max-pooling, rescaling and bias.

    Pooling sits inside the layer, before rescaling and bias: it commutes with everything monotone, and what follows then
    has a quarter of the elements. `forward(x, code_scale)`: x (N,C,H,W), `code_scale` = codes per unit of x (None: x has no
    codes; a tensor: PACT's, x not negative; a float: the pixels' 255, where values between codes are kept).
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        *,
        padding=0,
        pool=1,
        bits=FLOAT,
        method="sawb",
        zero_aligned=False,
        per_channel=False,
    ):
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self._set_bits(bits, method, zero_aligned, per_channel)
        self.pool = pool
        self.arithmetic = torch.float32

    def forward(self, x: Tensor, code_scale: Tensor | float | None = None) -> Tensor:
        weight, x_codes, codes, step = self._operands(x, code_scale)
        scale = None if self.bits == FLOAT else code_scale
        coded = self.bits != FLOAT and isinstance(code_scale, Tensor)
        sums = _Convolve.apply(x, weight, x_codes, codes, scale, self.padding[0], self.arithmetic, coded)
        if self.pool > 1:
            sums = F.max_pool2d(sums, self.pool)
        sums = sums.float()
        if step is not None:
            sums = _Rescale.apply(sums, step.reshape(-1, 1, 1) if step.dim() else step)
        return sums.add_(self.bias.view(1, -1, 1, 1))


class QuantLinear(_QuantLayer, nn.Linear):
    """Linear layer with `bits`-bit weights, computed on codes: `forward(x, code_scale)`, x (N,features)."""

    def __init__(self, in_features, out_features, *, bits=FLOAT, method="sawb", zero_aligned=False, per_channel=False):
        super().__init__(in_features, out_features)
        self._set_bits(bits, method, zero_aligned, per_channel)

    def forward(self, x: Tensor, code_scale: Tensor | float | None = None) -> Tensor:
        weight, x_codes, codes, step = self._operands(x, code_scale)
        sums = _Multiply.apply(x, weight, x_codes, codes)
        if step is not None:
            sums = _Rescale.apply(sums, step.flatten() if step.dim() else step)
        return sums.add_(self.bias)
