"""Layers that compute on integer codes.

A quantised tensor is `codes * step`: small integers and one float. Layers multiply and add codes, and rescale once after the
sum; so the trained model and an integer implementation of it agree by construction.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqlib.hardware import constant
from sqlib.quant.activations import carried
from sqlib.quant.bits import FLOAT, check_bits
from sqlib.quant.kernels import Convolve, Multiply, Rescale
from sqlib.quant.weights import StraightThrough, weight_codes

PIXEL_SCALE = 255.0
"""Codes per unit of an input image: pixels are 8-bit integers divided by 255."""


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
            # Detached: what is hung on the tensor (`packed`) does not stay with the model.
            return self.fixed_codes.detach(), self.fixed_step, self.weight
        return weight_codes(self.weight, self.bits, self.method, self.zero_aligned, self.per_channel)

    def _quantised(self) -> tuple[Tensor, Tensor, Tensor]:
        """The quantised weights, differentiable, their codes and their step."""
        if self.held is not None:
            return self.held
        codes, step, values = self.codes()
        return StraightThrough.apply(values, codes * step), codes, step

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"

    @staticmethod
    def _scale_of(x: Tensor, code_scale: Tensor | float | None) -> Tensor | float | None:
        """Codes per unit of x: as given, else what x carries, else None."""
        found = carried(x) if code_scale is None else None
        return code_scale if found is None else found.scale

    def _operands(self, x: Tensor, code_scale: Tensor | float | None):
        """Real weight, input codes, weight codes, and the step of their product (None where nothing is coded)."""
        if self.bits == FLOAT:
            return self.weight, x.detach(), self.weight.detach(), None
        weight, codes, step = self._quantised()
        if code_scale is None:
            return weight, x.detach(), codes, step
        if not isinstance(code_scale, Tensor):  # images between pixel values stay there
            return weight, x.detach() * code_scale, codes, step / constant(code_scale, step.device)
        found = carried(x)  # None: reshaped, dropped or edited since PACT, and on the grid up to rounding error
        x_codes = (x.detach() * code_scale).round_() if found is None else found.codes
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
    has a quarter of the elements.

    `forward(x, code_scale=None)`: x (N,C,H,W), `code_scale` = codes per unit of x (a tensor: PACT's, x not negative; a
    float: the pixels' 255, where values between codes are kept). None: what x carries if PACT returned it; else x has no
    codes, and its real values are multiplied with the weights' codes: the same result, to float rounding, in more time.

    >>> layer = QuantConv2d(1, 2, kernel_size=3, bits=2)
    >>> layer(torch.rand(4, 1, 8, 8)).shape
    torch.Size([4, 2, 6, 6])
    >>> codes, step, _ = layer.codes()
    >>> codes.unique()
    tensor([-3., -1.,  1.,  3.])
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
        code_scale = self._scale_of(x, code_scale)
        weight, x_codes, codes, step = self._operands(x, code_scale)
        scale = None if self.bits == FLOAT else code_scale
        coded = self.bits != FLOAT and isinstance(code_scale, Tensor)
        sums = Convolve.apply(x, weight, x_codes, codes, scale, self.padding[0], self.arithmetic, coded)
        if self.pool > 1:
            sums = F.max_pool2d(sums, self.pool)
        sums = sums.float()
        if step is not None:
            sums = Rescale.apply(sums, step.reshape(-1, 1, 1) if step.dim() else step)
        return sums if self.bias is None else sums.add_(self.bias.view(1, -1, 1, 1))


class QuantLinear(_QuantLayer, nn.Linear):
    """Linear layer with `bits`-bit weights, computed on codes: `forward(x, code_scale=None)`, x (...,features).

    `code_scale`: see `QuantConv2d`.

    >>> from sqlib.quant.activations import PACT
    >>> model = torch.nn.Sequential(PACT(bits=4), QuantLinear(6, 3, bits=2))
    >>> model(torch.randn(5, 6)).shape
    torch.Size([5, 3])
    """

    def __init__(self, in_features, out_features, *, bits=FLOAT, method="sawb", zero_aligned=False, per_channel=False):
        super().__init__(in_features, out_features)
        self._set_bits(bits, method, zero_aligned, per_channel)

    def forward(self, x: Tensor, code_scale: Tensor | float | None = None) -> Tensor:
        weight, x_codes, codes, step = self._operands(x, self._scale_of(x, code_scale))
        sums = Multiply.apply(x, weight, x_codes, codes)
        if step is not None:
            sums = Rescale.apply(sums, step.flatten() if step.dim() else step)
        return sums if self.bias is None else sums.add_(self.bias)
