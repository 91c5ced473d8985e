"""The three networks of the study, built for any setup, and what they cost to run."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sqlib.config import FLOAT, NETWORK_LAYERS, Setup, SqlibError, nearest
from sqlib.quant import PACT, PIXEL_SCALE, QuantConv2d, QuantLinear, holding_weights, make_activation

BATCH = 64
"""Images at a time where nothing is trained."""


@dataclass(frozen=True)
class Conv:
    channels: int
    kernel: int
    padding: int = 0
    pool: int = 1


@dataclass(frozen=True)
class Architecture:
    """Convolutions, then hidden linear layers, then the classes; dropout before the first and the last linear layer."""

    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]
    dropout: tuple[float, float] = (0.0, 0.0)
    description: str = ""


ARCHITECTURES = {
    "lenet": Architecture((Conv(32, 5, pool=2), Conv(64, 5, pool=2)), (128,), description="LeNet-like, 3.9 M MACs"),
    "sgt_cnn": Architecture(
        (Conv(32, 3), Conv(64, 3, pool=2)),
        (128,),
        dropout=(0.25, 0.5),
        description="the network of the saliency-guided-training paper's code, 12 M MACs",
    ),
    "lenet5": Architecture(
        (Conv(6, 5, padding=2, pool=2), Conv(16, 5, pool=2)), (120, 84), description="LeNet-5 with ReLU, 0.4 M MACs"
    ),
}


class Network(nn.Module):
    """A convolutional classifier: images (N,C,28,28) in [0,1] to logits (N,classes).

    Layers are called conv1.., fc1..; the activation behind layer `conv1` is `conv1_act`. `macs[layer]` holds the layer's
    multiply-accumulates an image, `activations[layer]` the number of elements behind it.
    """

    def __init__(self, architecture: Architecture, name: str, setup: Setup, in_channels: int, classes: int):
        super().__init__()
        self.name, self.setup = name, setup
        self.layer_names = NETWORK_LAYERS[name]
        self.macs: dict[str, int] = {}
        self.activations: dict[str, int] = {}
        self.convs = self.layer_names[: len(architecture.convs)]
        self.linears = self.layer_names[len(architecture.convs) :]
        weights = {"method": setup.weight_method, "zero_aligned": setup.zero_aligned}
        weights["per_channel"] = setup.per_channel

        channels, size = in_channels, 28
        for layer, conv in zip(self.convs, architecture.convs, strict=True):
            bits, activation_bits = setup.bits(layer, name)
            module = QuantConv2d(
                channels, conv.channels, conv.kernel, padding=conv.padding, pool=conv.pool, bits=bits, **weights
            )
            size = size + 2 * conv.padding - conv.kernel + 1
            self.macs[layer] = size * size * conv.kernel**2 * channels * conv.channels
            size, channels = size // conv.pool, conv.channels
            self.activations[layer] = size * size * channels
            self.add_module(layer, module)
            self.add_module(f"{layer}_act", make_activation(activation_bits))

        self.dropout_first = Dropout(architecture.dropout[0])
        self.dropout_last = Dropout(architecture.dropout[1])
        features = channels * size * size
        for layer, width in zip(self.linears, (*architecture.hidden, classes), strict=True):
            bits, activation_bits = setup.bits(layer, name)
            self.add_module(layer, QuantLinear(features, width, bits=bits, **weights))
            self.macs[layer] = features * width
            self.activations[layer] = features = width
            if layer != self.linears[-1]:
                self.add_module(f"{layer}_act", make_activation(activation_bits))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation (He et al. 2015) of the weights, biases at zero.

        torch's default is smaller by a factor of 2.4 a layer; behind a wide clip its activations would all round to 0.
        """
        for layer in self.layer_names:
            nn.init.kaiming_normal_(getattr(self, layer).weight, nonlinearity="relu")
            nn.init.zeros_(getattr(self, layer).bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(*self.features(images))

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the convolutions make of images, (N,features), and its codes per unit: the same in train and eval mode."""
        x, scale = images, PIXEL_SCALE
        for layer in self.convs:
            activation = getattr(self, f"{layer}_act")
            x, scale = activation(getattr(self, layer)(x, scale)), activation.code_scale
        return x.flatten(1), scale

    def classify(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Logits (N,classes) of `features`."""
        x, scale = _drop(self.dropout_first, x, scale)
        for layer in self.linears[:-1]:
            activation = getattr(self, f"{layer}_act")
            x, scale = activation(getattr(self, layer)(x, scale)), activation.code_scale
        x, scale = _drop(self.dropout_last, x, scale)
        return getattr(self, self.linears[-1])(x, scale)

    def clips(self) -> dict[str, PACT]:
        """The PACT activations by the name of the layer they follow."""
        return {name.removesuffix("_act"): m for name, m in self.named_modules() if isinstance(m, PACT)}

    def drops(self) -> bool:
        """Whether train mode drops anything: if not, it is the same function as eval mode."""
        return self.dropout_first.p > 0 or self.dropout_last.p > 0

    def last_convolution(self) -> nn.Module:
        """The activation behind the last convolution (what Grad-CAM looks at)."""
        return getattr(self, f"{self.convs[-1]}_act")


class Dropout(nn.Dropout):
    """torch's dropout, with `dropout_mask` where that is quicker: on the CPU, for a `p` in steps of 1/256."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.is_cpu and 0 < self.p < 1 and (self.p * 256).is_integer() and not self.inplace:
            return x * dropout_mask(x, self.p)
        return super().forward(x)


def dropout_mask(x: Tensor, p: float) -> Tensor:
    """What dropout multiplies x by, same shape and type: 0 with probability `p`, a multiple of 1/256, else 1 / (1 - p).

    From torch's global generator, one random byte an element: torch's own draws more for each.
    """
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= int(p * 256)
    return kept.to(x.dtype).mul_(1 / (1 - p))


def _drop(dropout: nn.Dropout, x: Tensor, scale: Tensor | None):
    """Dropout of x; in training it enlarges what it keeps by 1 / (1 - p), and the codes per unit shrink with it."""
    if not dropout.training or dropout.p == 0:
        return x, scale
    return dropout(x), None if scale is None else scale * (1 - dropout.p)


def build_model(name: str, setup: Setup, in_channels: int = 1, classes: int = 10) -> Network:
    """A freshly initialised network (from torch's global generator).

    Args:
        name: `lenet`, `sgt_cnn` or `lenet5`.
        setup: bits of each layer.

    Raises SqlibError for an unknown network, or a layer in the setup that the network lacks.
    """
    if name not in ARCHITECTURES:
        raise SqlibError(f"unknown network '{name}'{nearest(name, ARCHITECTURES)}")
    setup.check_network(name)
    return Network(ARCHITECTURES[name], name, setup, in_channels, classes)


def cost(model: Network) -> dict[str, int]:
    """What a model takes to store and to run, from its layers' shapes and bits.

    `weight_bytes`: weights at their bits, rounded up to bytes a layer, biases, one float32 step a quantised layer (a
    channel, if per channel) and one clip a PACT; `float_weight_bytes`: the same network in float32; `macs`:
    multiply-accumulates an image;
    `bit_operations`: MACs x bits of the weight x bits of the layer's input (8 for pixels, 32 for float; a layer with
    float weights computes in float whatever its input, and counts 32 x 32);
    `peak_activation_bytes`: the largest layer's input and output together.
    """
    weight_bytes = float_bytes = bit_operations = peak = 0
    input_bits, input_bytes = 8, 28 * 28 * model.get_submodule(model.layer_names[0]).in_channels
    for layer in model.layer_names:
        module = model.get_submodule(layer)
        count, biases = module.weight.numel(), module.bias.numel()
        float_bytes += 4 * (count + biases)
        quantised = module.bits != FLOAT
        weight_bytes += -(-count * module.bits // 8) + 4 * biases
        weight_bytes += 4 * quantised * (module.weight.shape[0] if module.per_channel else 1)
        bit_operations += model.macs[layer] * module.bits * (input_bits if quantised else FLOAT)
        activation = getattr(model, f"{layer}_act", None)
        input_bits = activation.bits if activation is not None else FLOAT
        weight_bytes += 4 * isinstance(activation, PACT)
        output_bytes = -(-model.activations[layer] * input_bits // 8)
        peak = max(peak, input_bytes + output_bytes)
        input_bytes = output_bytes
    return {
        "weight_bytes": weight_bytes,
        "float_weight_bytes": float_bytes,
        "macs": sum(model.macs.values()),
        "bit_operations": bit_operations,
        "peak_activation_bytes": peak,
    }


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model with its convolutions computed in float32 or bfloat16; afterwards as before.

    Everything else stays float32: the linear layers are 5% of the arithmetic or less, and logits need their digits.
    """
    convolutions = [module for module in model.modules() if isinstance(module, QuantConv2d)]
    before = [convolution.arithmetic for convolution in convolutions]
    for convolution in convolutions:
        convolution.arithmetic = dtype
    try:
        yield model
    finally:
        for convolution, value in zip(convolutions, before, strict=True):
            convolution.arithmetic = value


def pre_activations(model: Network, images: Tensor) -> dict[str, Tensor]:
    """What enters each activation of the network for these images, by the name of the layer it follows."""
    seen: dict[str, Tensor] = {}

    def keep(layer: str):
        return lambda module, inputs: seen.__setitem__(layer, inputs[0].detach().clone())

    hooks = [
        model.get_submodule(f"{layer}_act").register_forward_pre_hook(keep(layer)) for layer in model.layer_names[:-1]
    ]
    try:
        predict(model, images, batch=len(images))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def predict(model: nn.Module, images: Tensor, batch: int = BATCH) -> Tensor:
    """Logits (N,classes) of float images (N,C,H,W), in eval mode, without gradients; the model's modes are kept."""
    with evaluating(model), torch.no_grad(), holding_weights(model):
        return torch.cat([model(part) for part in images.split(batch)])
