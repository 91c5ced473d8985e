"""A model of one's own, quantised: torch's layers swapped for those of `layers` and `activations`."""

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from sqlib.checked import SqlibError, nearest
from sqlib.quant.activations import PACT
from sqlib.quant.bits import FLOAT, Setup
from sqlib.quant.layers import QuantConv2d, QuantLinear

CONVOLUTION = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
"""What `QuantConv2d` computes: an `nn.Conv2d` with these, and with the same number of zeros around all four sides."""
READING = nn.MultiheadAttention, nn.TransformerEncoderLayer
"""Modules that read their layers' weights themselves, past what a quantised layer computes."""


def quantise_(model: nn.Module, setup: Setup) -> nn.Module:
    """The model itself: its `nn.Conv2d` and `nn.Linear` now have weights of `setup`'s bits, its `nn.ReLU` are `PACT`.

    Args:
        model: an `nn.Sequential`, or a module of one's own that holds such layers, at whatever depth. Layers count in the
            order in which the model registers them, a shared one at each of its places, and a ReLU belongs to the layer with
            weights that is registered before it. Weights and biases stay the same `nn.Parameter`, clips are new: make the
            optimiser later.
        setup: the bits. Its `layers` are called by their qualified names, such as "features.0".

    What has 32 bits, a ReLU behind the last layer (the logits are never quantised), pooling, normalisation and dropout stay
    as they are. A layer right behind a PACT multiplies integer codes; with pooling, flattening or dropout in between these
    are lost, and it multiplies real values: that is right, too, only slower. Put max-pooling before the ReLU, where it gives
    the same numbers.

    It is trained like any model; after each step of the optimiser each PACT's `project_` keeps its clip positive, and a
    penalty on the clips' squares, such as their `weight_decay`, closes them. Clips start at 10; where the values of a trained
    model are far smaller, they would all round to 0: then set each `alpha` to about the largest value that enters it.

    Raises SqlibError, and changes nothing, for a model that is quantised already, names in `setup` that the model lacks, a
    layer that cannot be quantised (`CONVOLUTION`, `READING`, hooks, normalised weights, lazy modules), and an activation to
    be quantised that is no `nn.ReLU` (`F.relu` in a `forward` cannot be swapped).

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 10))
    >>> setup = Setup(name="w2a4", title="2-bit weights", default={"weights": 2, "activations": 4}, last={"weights": 8})
    >>> [type(layer).__name__ for layer in quantise_(model, setup)]
    ['QuantConv2d', 'MaxPool2d', 'PACT', 'Flatten', 'QuantLinear']
    >>> model(torch.rand(2, 1, 28, 28)).shape, model[0].bits, model[2].bits, model[4].bits
    (torch.Size([2, 10]), 2, 4, 8)
    """
    layers = _checked_layers(model, setup)
    places = list(model.named_modules(remove_duplicate=False))
    names = [layers[module] for _, module in places if module in layers]  # a shared layer's several times
    bits = {name: setup.bits(name, names) for name in names}
    swapped: dict[str, nn.Module] = {}  # by the place in the model, of which a shared layer has several
    made: dict[nn.Module, nn.Module] = {}
    asked: dict[nn.Module, int] = {}  # the bits of each ReLU, which must be the same wherever it stands
    passed: list[str] = []
    followed: set[str] = set()
    for place, module in places:
        if module in layers:
            passed.append(layers[module])
            device = next(module.parameters()).device
            if bits[layers[module]][0] != FLOAT:
                _check_place(model, place, module, f"{layers[module]}: {{weights: 32}}")
                made[module] = made.get(module) or _with_codes(layers[module], module, bits[layers[module]][0], setup)
                swapped[place] = made[module]
        elif type(module) is nn.ReLU and 0 < len(passed) < len(names):
            followed.add(passed[-1])
            wanted = bits[passed[-1]][1]
            if wanted != FLOAT:
                _check_place(model, place, module, f"{passed[-1]}: {{activations: 32}}")
                made[module] = made.get(module) or PACT(wanted).to(device).train(module.training)
                swapped[place] = made[module]
            if asked.setdefault(module, wanted) != wanted:
                raise SqlibError(
                    f"'{place}' is one nn.ReLU behind layers whose activations have different bits: give each its own"
                )
    for name in names[:-1]:
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
        if isinstance(module, LazyModuleMixin):
            raise SqlibError(
                f"'{name}' is a {type(module).__name__} without weights yet: pass an input through the model first"
            )
    layers = {module: name for name, module in model.named_modules() if _is_layer(module)}
    if not layers or model in layers:
        raise SqlibError(
            f"{type(model).__name__}: expected a model that holds layers with weights, such as an nn.Sequential"
        )
    for name in setup.layers:
        if name not in layers.values():
            raise SqlibError(f"setup '{setup.name}': the model has no layer '{name}'{nearest(name, layers.values())}")
    return layers


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a convolution or linear layer, or owns a matrix and holds no other module (but `parametrizations` of its
    own): a class token beside layers makes no layer of what holds both."""
    alone = {name for name, _ in module.named_children()} <= {"parametrizations"}
    return isinstance(module, nn.Conv2d | nn.Linear) or (alone and any(p.dim() > 1 for p in module.parameters()))


def _check_place(model: nn.Module, place: str, module: nn.Module, leave: str) -> None:
    """SqlibError where another module in this one's place would not do what it does; `leave`: what the setup says instead."""
    parent = model.get_submodule(place.rpartition(".")[0])
    wrong = None
    if isinstance(parent, READING):
        wrong = f"stands in a {type(parent).__name__}, which may read its weights past it"
    elif any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks")):
        wrong = "has hooks (weight_norm, spectral_norm and pruning are such), which would be lost"
    if wrong:
        raise SqlibError(f"'{place}' {wrong}; leave it as it is: `layers: {{{leave}}}` in the setup")


def _with_codes(name: str, layer: nn.Module, bits: int, setup: Setup) -> QuantConv2d | QuantLinear:
    """The layer with the same parameters and quantised weights; SqlibError if there is none that computes what it does."""
    wrong = None
    if type(layer) not in (nn.Conv2d, nn.Linear):
        wrong = f"is a {type(layer).__name__}: expected nn.Conv2d or nn.Linear itself"
    elif not isinstance(layer.weight, nn.Parameter):
        wrong = "has a weight that is no nn.Parameter"
    elif layer.weight.dtype != torch.float32:
        wrong = f"has weights of type {layer.weight.dtype}: expected torch.float32"
    elif type(layer) is nn.Conv2d:
        for key, expected in CONVOLUTION.items():
            if getattr(layer, key) != expected:
                wrong = f"has {key} = {getattr(layer, key)!r}: expected {expected!r}"
        if _padding(layer) is None:
            wrong = f"has padding = {layer.padding!r}: expected the same number of pixels on all sides"
    if wrong:
        raise SqlibError(f"'{name}' {wrong}; or leave it as it is: `layers: {{{name}: {{weights: 32}}}}` in the setup")
    with torch.device("meta"):  # new weights would be thrown away, and draw from the generator
        if type(layer) is nn.Conv2d:
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size
            new = QuantConv2d(*sizes, padding=_padding(layer), bits=bits, **setup.weight_options)
        else:
            new = QuantLinear(layer.in_features, layer.out_features, bits=bits, **setup.weight_options)
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


def _padding(layer: nn.Conv2d) -> int | None:
    """The zeros on each of the four sides; None where their numbers differ, as for "same" with an even kernel."""
    if layer.padding == "valid":
        return 0
    each = {(size - 1) / 2 for size in layer.kernel_size} if layer.padding == "same" else set(layer.padding)
    side = each.pop()
    return int(side) if not each and side == int(side) else None
