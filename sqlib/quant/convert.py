"""A model of one's own, quantised: torch's layers swapped for those of `layers` and `activations`."""

import torch
from torch import nn

from sqlib.checked import SqlibError, nearest
from sqlib.quant.activations import PACT
from sqlib.quant.bits import FLOAT, Setup
from sqlib.quant.layers import QuantConv2d, QuantLinear

CONVOLUTION = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
"""What `QuantConv2d` computes: an `nn.Conv2d` with these, and with the same number of zeros around all four sides."""


def quantise_(model: nn.Module, setup: Setup) -> nn.Module:
    """The model itself: its `nn.Conv2d` and `nn.Linear` now have weights of `setup`'s bits, its `nn.ReLU` are `PACT`.

    Args:
        model: an `nn.Sequential`, or a module of one's own that holds such layers, at whatever depth. Layers count in the
            order in which the model registers them, and a ReLU belongs to the layer with weights that is registered before
            it. Weights and biases stay the same `nn.Parameter`, clips are new: make the optimiser later.
        setup: the bits. Its `layers` are called by their qualified names, such as "features.0".

    What has 32 bits, a ReLU behind the last layer (the logits are never quantised), pooling, normalisation and dropout stay
    as they are. A layer right behind a PACT multiplies integer codes; with pooling, flattening or dropout in between these
    are lost, and it multiplies real values: that is right, too, only slower. Put pooling before the ReLU, where it gives the
    same numbers.

    It is trained like any model; after each step of the optimiser each PACT's `project_` keeps its clip positive, and a
    penalty on the clips' squares, such as their `weight_decay`, closes them. Clips start at 10; where the values of a trained
    model are far smaller, they would all round to 0: then set each `alpha` to about the largest value that enters it.

    Raises SqlibError, and changes nothing, for a model that is quantised already, names in `setup` that the model lacks, a
    layer that cannot be quantised (`CONVOLUTION`), and an activation to be quantised that is no `nn.ReLU` (`F.relu` in a
    `forward` cannot be swapped).

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 10))
    >>> setup = Setup(name="w2a4", title="2-bit weights", default={"weights": 2, "activations": 4}, last={"weights": 8})
    >>> [type(layer).__name__ for layer in quantise_(model, setup)]
    ['QuantConv2d', 'MaxPool2d', 'PACT', 'Flatten', 'QuantLinear']
    >>> model(torch.rand(2, 1, 28, 28)).shape, model[0].bits, model[2].bits, model[4].bits
    (torch.Size([2, 10]), 2, 4, 8)
    """
    layers = _checked_layers(model, setup)
    names = list(layers.values())
    bits = {name: setup.bits(name, names) for name in names}
    swapped: dict[str, nn.Module] = {}  # by the place in the model, of which a shared layer has several
    made: dict[nn.Module, nn.Module] = {}
    asked: dict[nn.Module, int] = {}  # the bits of each ReLU, which must be the same wherever it stands
    before, followed = None, {names[-1]}
    for place, module in model.named_modules(remove_duplicate=False):
        if module in layers:
            before = layers[module]
            device = next(module.parameters()).device
            if bits[before][0] != FLOAT:
                made[module] = made.get(module) or _with_codes(before, module, bits[before][0], setup)
                swapped[place] = made[module]
        elif type(module) is nn.ReLU and before not in (None, names[-1]):
            followed.add(before)
            wanted = bits[before][1]
            if wanted != FLOAT:
                made[module] = made.get(module) or PACT(wanted).to(device).train(module.training)
                swapped[place] = made[module]
            if asked.setdefault(module, wanted) != wanted:
                raise SqlibError(
                    f"'{place}' is one nn.ReLU behind layers whose activations have different bits: give each its own"
                )
    for name in names:
        if name not in followed and bits[name][1] != FLOAT:
            raise SqlibError(
                f"'{name}': setup '{setup.name}' gives the activation behind it {bits[name][1]} bits: expected an nn.ReLU that "
                f"the model registers between it and the next layer (a function in a forward cannot be swapped); without one, "
                f"say `layers: {{{name}: {{activations: 32}}}}` in the setup"
            )
    for place, module in swapped.items():
        model.set_submodule(place, module)
    return model


def _checked_layers(model: nn.Module, setup: Setup) -> dict[nn.Module, str]:
    """The modules that own a matrix of weights, in order, and their names; SqlibError where they and the setup do not fit."""
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d | QuantLinear | PACT):
            raise SqlibError(f"'{name}' is a {type(module).__name__} already: a model is quantised only once")
    layers = {
        module: name
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    }
    if not layers or model in layers:
        raise SqlibError(
            f"{type(model).__name__}: expected a model that holds layers with weights, such as an nn.Sequential"
        )
    for name in setup.layers:
        if name not in layers.values():
            raise SqlibError(f"setup '{setup.name}': the model has no layer '{name}'{nearest(name, layers.values())}")
    return layers


def _with_codes(name: str, layer: nn.Module, bits: int, setup: Setup) -> QuantConv2d | QuantLinear:
    """The layer with the same parameters and quantised weights; SqlibError if there is none that computes what it does."""
    wrong = None
    if type(layer) not in (nn.Conv2d, nn.Linear):
        wrong = f"is a {type(layer).__name__}: expected nn.Conv2d or nn.Linear itself"
    elif layer.weight.dtype != torch.float32:
        wrong = f"has weights of type {layer.weight.dtype}: expected torch.float32"
    elif type(layer) is nn.Conv2d:
        for key, expected in CONVOLUTION.items():
            if getattr(layer, key) != expected:
                wrong = f"has {key} = {getattr(layer, key)!r}: expected {expected!r}"
        if isinstance(layer.padding, str) or layer.padding[0] != layer.padding[1]:
            wrong = f"has padding = {layer.padding!r}: expected the same number of pixels on all sides"
    if wrong:
        raise SqlibError(f"'{name}' {wrong}; or leave it as it is: `layers: {{{name}: {{weights: 32}}}}` in the setup")
    with torch.device("meta"):  # new weights would be thrown away, and draw from the generator
        if type(layer) is nn.Conv2d:
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size
            new = QuantConv2d(*sizes, padding=layer.padding[0], bits=bits, **setup.weight_options)
        else:
            new = QuantLinear(layer.in_features, layer.out_features, bits=bits, **setup.weight_options)
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)
