"""Passes through a network: in eval mode, in another arithmetic, or looked at from inside."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sqlib.networks.network import Network
from sqlib.quant.layers import QuantConv2d, holding_weights

BATCH = 64
"""Images at a time where nothing is trained."""


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
