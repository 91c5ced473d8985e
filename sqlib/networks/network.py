"""The networks of `architectures`, built for any setup."""

import torch
from torch import Tensor, nn

from sqlib.checked import SqlibError, nearest
from sqlib.networks.architectures import ARCHITECTURES, Architecture, check_network
from sqlib.quant.activations import PACT, make_activation
from sqlib.quant.bits import Setup
from sqlib.quant.layers import PIXEL_SCALE, QuantConv2d, QuantLinear


class Network(nn.Module):
    """A convolutional classifier: images (N,C,28,28) in [0,1] to logits (N,classes).

    Layers are called conv1.., fc1..; the activation behind layer `conv1` is `conv1_act`. `macs[layer]` holds the layer's
    multiply-accumulates an image, `activations[layer]` the number of elements behind it.
    """

    def __init__(self, architecture: Architecture, name: str, setup: Setup, in_channels: int, classes: int):
        super().__init__()
        self.name, self.setup = name, setup
        self.layer_names = architecture.layers
        self.macs: dict[str, int] = {}
        self.activations: dict[str, int] = {}
        self.convs = self.layer_names[: len(architecture.convs)]
        self.linears = self.layer_names[len(architecture.convs) :]
        weights = setup.weight_options

        channels, size = in_channels, 28
        for layer, conv in zip(self.convs, architecture.convs, strict=True):
            bits, activation_bits = setup.bits(layer, self.layer_names)
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
            bits, activation_bits = setup.bits(layer, self.layer_names)
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
    check_network(setup, name)
    return Network(ARCHITECTURES[name], name, setup, in_channels, classes)
