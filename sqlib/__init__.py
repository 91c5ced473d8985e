"""Quantised networks and what their saliency maps show: the method, on tensors and models of one's own.

    import torch
    from torch import nn
    import sqlib

    model = nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 10))
    setup = sqlib.Setup(name="w4a4", title="4 bits", default={"weights": 4, "activations": 4})
    sqlib.quantise_(model, setup)                             # Conv2d, Linear and ReLU, in place
    images, labels = torch.rand(16, 1, 28, 28), torch.randint(10, (16,))
    loss, logits = sqlib.guided_loss(model, images, labels)   # saliency-guided training: a loss like any other
    loss.backward()
    maps = sqlib.saliency_map(model, images, labels, "integrated_gradients")  # one of sqlib.METHODS
    sqlib.MEASURES["gini"].of(maps)                           # clarity: (16,), one number an image

What stands here needs no study, neither its folders nor its files of parameters: that is `sqlib.study` and above.
"""

import importlib
from typing import Any

_HOMES = {
    "quantise_": "quant.convert",
    "Setup": "quant.bits",
    "PACT": "quant.activations",
    "QuantConv2d": "quant.layers",
    "QuantLinear": "quant.layers",
    "saliency_map": "maps.attribution",
    "METHODS": "maps.attribution",
    "guided_loss": "training.guided",
    "Guidance": "training.options",
    "MEASURES": "measures",
    "pack": "deploy.packed",
    "IntegerModel": "deploy.integer",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: `python -m sqlib` starts without torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'sqlib' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sqlib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
