"""The logits of a trained network, fast: for the many thousand answers that faithfulness, occlusion and controls ask for.

Codes of few bits multiplied as 8-bit integers take a third of the time of the same product in float32, and are the same
numbers: float32 holds sums of codes exactly below 2^24. So nothing here changes a logit, to the last bit, where the layers
before it compute on codes; a float layer computes as ever.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqlib.config import FLOAT
from sqlib.models import Network
from sqlib.quant import PACT, QuantConv2d

BATCH = 64
"""Images at a time: their activations stay in a processor's second-level cache, which 500 images leave."""


def answering(model: nn.Module) -> nn.Module:
    """A copy of a network that gives the same logits, without gradients, in less time; any other model as it is.

    Weights are quantised once instead of for every batch, so later changes to the model do not reach the copy.
    """
    if not isinstance(model, Network):
        return model
    fast = copy.deepcopy(model).eval()
    quantise_once(fast)
    for before, name in zip(fast.convs, fast.convs[1:], strict=False):
        activation, layer = fast.get_submodule(f"{before}_act"), fast.get_submodule(name)
        if fits(activation, layer):
            setattr(fast, f"{before}_act", Codes(activation))
            setattr(fast, name, IntegerConv2d(layer))
    return fast


@torch.no_grad()
def quantise_once(model: Network) -> None:
    """Have a network compute with the codes that its weights have now: the same answers and maps, for every batch less work."""
    for name in model.layer_names:
        layer = model.get_submodule(name)
        if layer.bits != FLOAT:
            layer.fixed_codes, layer.fixed_step, _ = layer.codes()


def fits(activation: nn.Module, layer: QuantConv2d) -> bool:
    """Whether codes of activation and weights are 8-bit integers, on a CPU, and float32 holds all sums of their products."""
    if not isinstance(activation, PACT) or layer.bits == FLOAT or not layer.weight.is_cpu:
        return False
    codes, largest = layer.fixed_codes, 2**activation.bits - 1
    sums = codes.abs().flatten(1).sum(dim=1).max() * largest
    return bool(largest <= 127 and codes.abs().max() <= 127 and sums < 2**24)


class Codes(nn.Module):
    """PACT that hands on its codes, `round(clip(x, 0, alpha) * n / alpha)`, as 8-bit integers."""

    def __init__(self, activation: PACT):
        super().__init__()
        self.bits, self.alpha, self.code_scale = activation.bits, activation.alpha.detach(), activation.code_scale

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.minimum(x, self.alpha).clamp_(min=0).mul_(2**self.bits - 1).div_(self.alpha).round_()
        return codes.to(torch.int8)


class IntegerConv2d(nn.Module):
    """The forward pass of a `QuantConv2d` on 8-bit codes: one integer matrix product, a row for each place of the kernel."""

    def __init__(self, layer: QuantConv2d):
        super().__init__()
        self.padding, self.pool, self.step, self.bias = (
            layer.padding[0],
            layer.pool,
            layer.fixed_step,
            layer.bias.detach(),
        )
        self.kernel = layer.kernel_size
        self.weight = layer.fixed_codes.permute(2, 3, 1, 0).flatten(0, 2).to(torch.int8).contiguous()

    def forward(self, codes: Tensor, code_scale: Tensor) -> Tensor:
        if self.padding:
            codes = F.pad(codes, (self.padding,) * 4)
        codes = codes.permute(0, 2, 3, 1).contiguous()
        (n, height, width, channels), (kh, kw) = codes.shape, self.kernel
        oh, ow = height - kh + 1, width - kw + 1
        image, row, column, one = codes.stride()
        patches = codes.as_strided((n, oh, ow, kh, kw, channels), (image, row, column, row, column, one))
        sums = torch._int_mm(patches.reshape(n * oh * ow, kh * kw * channels), self.weight)
        sums = sums.float().view(n, oh, ow, -1).permute(0, 3, 1, 2)
        if self.pool > 1:
            sums = F.max_pool2d(sums, self.pool)
        step = self.step / code_scale
        return sums.mul_(step.reshape(-1, 1, 1) if step.dim() else step).add_(self.bias.view(1, -1, 1, 1))
