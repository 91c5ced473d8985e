"""A network as it is explained: with frozen parameters, and the surrogate whose gradient a map shows."""

import contextlib
from collections.abc import Iterator

from torch import nn

from sqlib.checked import SqlibError, nearest
from sqlib.networks.passes import evaluating
from sqlib.quant.activations import PACT

SURROGATES = ("straight_through", "unclipped")


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with parameters that ask for no gradient: explaining it then costs no weight gradients."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield model
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def explanation_gradient(model: nn.Module, surrogate: str) -> Iterator[None]:
    """Every PACT of the model takes this derivative above its clip: 0 (`straight_through`) or 1 (`unclipped`)."""
    if surrogate not in SURROGATES:
        raise SqlibError(f"unknown surrogate '{surrogate}'{nearest(surrogate, SURROGATES)}")
    clips = [module for module in model.modules() if isinstance(module, PACT)]
    before = [clip.unclipped for clip in clips]
    for clip in clips:
        clip.unclipped = surrogate == "unclipped"
    try:
        yield
    finally:
        for clip, value in zip(clips, before, strict=True):
            clip.unclipped = value
