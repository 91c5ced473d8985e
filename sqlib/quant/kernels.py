"""Arithmetic on codes, and its gradients: each fast form computes what the plain form beside it does.

Codes are small integers held in float tensors, and float32 adds them exactly while sums stay below 2^24. Where the processor
multiplies 8-bit integers, convolutions of codes are computed in them: the same sums, in less time. Gradients are those of
the straight-through surrogates, on the real values that the codes stand for.

Two tensors have an attribute hung on them, which is gone when they are: what `activations.pact` returns has `carried`, its
codes for the layer behind it; the codes of a weight have `packed`, themselves in the order that oneDNN multiplies them in.
"""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sqlib.hardware import constant, int8_units


class Wanted:
    """Which gradients the functions below compute.

    One for the process: autograd tells a function which of its inputs have a gradient and not which of those a backward pass
    is for, and on a GPU it calls the function from a thread of its own, where no context variable reaches.
    """

    parameters = inputs = True


wanted = Wanted()


@contextlib.contextmanager
def gradients_of(what: str) -> Iterator[None]:
    """Backward passes inside compute only what is wanted: gradients of the network's `inputs`, or of its `parameters`.

    For two passes through one graph. The other gradients are then missing (None), not wrong.
    """
    before = wanted.parameters, wanted.inputs
    wanted.parameters, wanted.inputs = what == "parameters", what == "inputs"
    try:
        yield
    finally:
        wanted.parameters, wanted.inputs = before


def clipped(x: Tensor, alpha: Tensor) -> Tensor:
    """clip(x, 0, alpha), a new tensor; the value of alpha is not looked at, for which a GPU would stall."""
    return x.clamp(constant(0, x.device), alpha)


def clipped_by_value(x: Tensor, alpha: Tensor) -> Tensor:
    """`clipped`, to the bit: passes that take a number do the work of two that take a tensor."""
    return x.clamp(0, alpha.item())


def gates(grad: Tensor, x: Tensor, alpha: Tensor, needs_alpha: bool, unclipped: bool) -> tuple[Tensor, Tensor | None]:
    """(grad where 0 < x < alpha, or where 0 < x if `unclipped`; grad where x >= alpha, if `needs_alpha`), 0 elsewhere."""
    above_zero = torch.ops.aten.threshold_backward(grad, x, 0)
    if unclipped and not needs_alpha:
        return above_zero, None
    inside = torch.ops.aten.threshold_backward(above_zero, alpha - x, 0)
    return above_zero if unclipped else inside, above_zero - inside if needs_alpha else None


def gates_by_value(
    grad: Tensor, x: Tensor, alpha: Tensor, needs_alpha: bool, unclipped: bool
) -> tuple[Tensor, Tensor | None]:
    """`gates`, to the bit (but for what is not finite), in a pass each.

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


# --------------------------------------------------------------------------------------------------------- layers
def _without_autocast(method):
    """The `forward` or `backward`, for which `torch.autocast` is off: it would round sums of codes to 16 bits."""

    @functools.wraps(method)
    def computed(ctx, tensor: Tensor, *more):
        device = tensor.device.type
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if on else contextlib.nullcontext():
            return method(ctx, tensor, *more)

    return computed


class Convolve(torch.autograd.Function):
    """conv2d of codes, with the gradients of conv2d of the real values that the codes stand for; computed in `dtype`.

    `coded`: both operands are codes. Where they fit 8-bit integers, and the processor has units for these, the sums are
    computed in them: exact whatever `dtype`, and below 2^24, where float32 is exact too, the same. What does not fit (a
    NaN above all, which no integer can carry on) is computed in `dtype`.
    """

    @staticmethod
    @_without_autocast
    def forward(ctx, x, weight, x_codes, weight_codes, code_scale, padding, dtype, coded) -> Tensor:
        # In bfloat16 codes up to 256 are exact; what is rounded, to 8 bits, are sums and gradients.
        kept = _channels_last(x_codes.to(dtype))
        ctx.save_for_backward(kept, weight)
        ctx.code_scale, ctx.padding, ctx.first = code_scale, padding, x.is_leaf
        if coded and kept.is_cpu and integers() and _within(kept, 0, 255) and _within(weight_codes, -127, 127):
            return _convolve_int8(kept, weight_codes, padding)
        return F.conv2d(kept, _channels_last(weight_codes.to(dtype)), padding=padding)

    @staticmethod
    @_without_autocast
    def backward(ctx, grad: Tensor):
        x_codes, weight = ctx.saved_tensors
        grad = grad.to(x_codes.dtype)
        needs_x = ctx.needs_input_grad[0] and (wanted.inputs or not ctx.first)
        needs_weight = ctx.needs_input_grad[1] and wanted.parameters
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


class Multiply(torch.autograd.Function):
    """x (...,features) @ weight.T of codes, with the gradients of the real values that the codes stand for.

    Computed in the weight's type, float32, also where x is bfloat16.
    """

    @staticmethod
    @_without_autocast
    def forward(ctx, x: Tensor, weight: Tensor, x_codes: Tensor, weight_codes: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x_codes.to(weight_codes.dtype), weight_codes)

    @staticmethod
    @_without_autocast
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1] and wanted.parameters:
            outputs, inputs = weight.shape
            grad_weight = grad.reshape(-1, outputs).t() @ x.to(weight.dtype).reshape(-1, inputs)
        return grad_x, grad_weight, None, None


class Rescale(torch.autograd.Function):
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
