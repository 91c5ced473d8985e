"""Pictures of the inside of a quantised network: values, the levels they are rounded to, and who passes gradient."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sqlib.networks.network import Network
from sqlib.quant.activations import PACT
from sqlib.quant.bits import FLOAT
from sqlib.report.figures.style import FAINT, INK, SETUP_STYLE, WIDTH, own_look

_BLUE, _ORANGE = SETUP_STYLE["w4a4"].colour, SETUP_STYLE["w2a2"].colour


@own_look()
def weight_levels(model: Network) -> Figure:
    """A histogram of each layer's weights, with the levels they are rounded to."""
    fig, axes = _row(len(model.layer_names))
    for axis, layer in zip(axes, model.layer_names, strict=True):
        module = model.get_submodule(layer)
        weights, bits = module.weight, "float"
        if module.bits != FLOAT:
            codes, step, weights = module.codes()  # DoReFa rounds a transform of the weights
            bits = f"{module.bits} bits"
            if step.dim():
                step, bits = step.mean(), f"{bits}, mean channel"
            for level in (codes.unique() * step).tolist():
                axis.axvline(level, color=_ORANGE, linewidth=0.9)
        _histogram(axis, weights.detach(), 60, *(float(end) for end in weights.detach().aminmax()))
        axis.set_title(f"{layer}, {bits}")
        axis.set_xlabel("weight")
    return fig


@own_look()
def activation_levels(model: Network, values: dict[str, Tensor]) -> Figure:
    """A histogram of what enters each activation (see `sqlib.networks.passes.pre_activations`), with the levels of its output."""
    fig, axes = _row(len(values))
    for axis, (layer, entering) in zip(axes, values.items(), strict=True):
        activation = model.get_submodule(f"{layer}_act")
        low, high = (
            float(entering.flatten()[:: max(1, entering.numel() // 100_000)].quantile(q)) for q in (0.002, 0.998)
        )
        title = f"{layer}, float"
        if isinstance(activation, PACT):
            clip, n = activation.alpha.item(), 2**activation.bits - 1
            high = max(high, 1.1 * clip)
            for k in range(n + 1):
                axis.axvline(clip * k / n, color=_ORANGE, linewidth=0.9)
            title = f"{layer}, {activation.bits} bits, clip {clip:.2f}"
        _histogram(axis, entering, 80, low, high)
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(_power_of_ten)
        axis.axvline(0, color=INK, linewidth=0.9)
        axis.set_title(title)
        axis.set_xlabel("before the activation")
    return fig


def unit_shares(model: Network, values: dict[str, Tensor]) -> pd.DataFrame:
    """Shares of unit x image pairs at zero, inside (where gradient passes) and at the clip: one row a layer."""
    rows = {}
    for layer, entering in values.items():
        activation = model.get_submodule(f"{layer}_act")
        clip = activation.alpha.item() if isinstance(activation, PACT) else float("inf")
        zero, above = (entering <= 0).double().mean().item(), (entering >= clip).double().mean().item()
        rows[layer] = {"at zero": zero, "inside": 1 - zero - above, "at the clip": above}
    return pd.DataFrame(rows).T.rename_axis("layer")


def rounding_errors(model: Network) -> dict[str, float]:
    """Of each quantised layer: root mean square of (rounded weight - weight) over that of the weights; empty in float."""
    errors = {}
    for layer in model.layer_names:
        module = model.get_submodule(layer)
        if module.bits != FLOAT:
            codes, step, values = (tensor.detach() for tensor in module.codes())
            errors[layer] = float((codes * step - values).norm() / values.norm())
    return errors


def _histogram(axis, values: Tensor, bins: int, low: float, high: float) -> None:
    """How many of the values lie in each of equal bins; as one outline, which is drawn at once."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values.float(), bins=bins, min=low, max=high)
    axis.stairs(counts.cpu().numpy(), np.linspace(low, high, bins + 1), fill=True, color=_BLUE, alpha=0.6)


def _power_of_ten(value: float, _position: int) -> str:
    """Such as 10⁴, in plain letters: as a formula each label would be parsed anew for each file of the figure."""
    return "10" + f"{round(np.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _row(count: int) -> tuple[Figure, np.ndarray]:
    fig = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = fig.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=INK)
        axis.spines["bottom"].set_color(FAINT)
        axis.title.set_fontsize(10)
    return fig, axes
