"""Pictures of the inside of a quantised network: values, the levels they are rounded to, and who passes gradient."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sqlib.networks.network import Network
from sqlib.quant.activations import PACT
from sqlib.quant.bits import FLOAT
from sqlib.report.figures.style import INK, SETUP_STYLE, WIDTH, styled

_BLUE, _ORANGE = SETUP_STYLE["w4a4"].colour, SETUP_STYLE["w2a2"].colour


def _distributions(count: int) -> tuple[Figure, np.ndarray]:
    """(a figure, a row of axes without a scale upwards)."""
    fig = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = fig.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines["left"].set_visible(False)
    return fig, axes


def _distribution(axis, values: Tensor, bins: int, low: float, high: float, levels, title: str, what: str) -> None:
    """A histogram of the values from `low` to `high`, with a line at each level that they are rounded to."""
    import seaborn

    for level in levels:
        axis.axvline(level, color=_ORANGE, linewidth=0.9)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values.detach().float(), bins, low, high).cpu()  # of millions of values, in no time
    middles = low + (high - low) * (np.arange(bins) + 0.5) / bins
    seaborn.histplot(
        x=middles, weights=counts.numpy(), bins=bins, binrange=(low, high), element="step", linewidth=0, color=_BLUE,
        alpha=0.6, ax=axis,
    )  # fmt: skip
    axis.set(title=title, xlabel=what, ylabel="", yticks=[])


@styled
def weight_levels(model: Network) -> Figure:
    """A histogram of each layer's weights, with the levels they are rounded to."""
    fig, axes = _distributions(len(model.layer_names))
    for axis, layer in zip(axes, model.layer_names, strict=True):
        module = model.get_submodule(layer)
        weights, bits, levels = module.weight.detach(), "float", []
        if module.bits != FLOAT:
            codes, step, weights = (
                tensor.detach() for tensor in module.codes()
            )  # DoReFa rounds a transform of the weights
            bits = f"{module.bits} bits" + ", mean channel" * bool(step.dim())
            levels = (codes.unique() * step.mean()).tolist()
        _distribution(axis, weights, 60, *map(float, weights.aminmax()), levels, f"{layer}, {bits}", "weight")
    return fig


@styled
def activation_levels(model: Network, values: dict[str, Tensor]) -> Figure:
    """A histogram of what enters each activation (see `sqlib.networks.passes.pre_activations`), with the levels of its output."""
    fig, axes = _distributions(len(values))
    for axis, (layer, entering) in zip(axes, values.items(), strict=True):
        activation = model.get_submodule(f"{layer}_act")
        some = entering.flatten()[:: max(1, entering.numel() // 100_000)]
        low, high = (float(some.quantile(q)) for q in (0.002, 0.998))
        title, levels = f"{layer}, float", np.array([])
        if isinstance(activation, PACT):
            clip, n = activation.alpha.item(), 2**activation.bits - 1
            high = max(high, 1.1 * clip)
            title, levels = f"{layer}, {activation.bits} bits, clip {clip:.2f}", clip * np.arange(n + 1) / n
        _distribution(axis, entering, 80, low, high, levels, title, "before the activation")
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(_power_of_ten)
        axis.axvline(0, color=INK, linewidth=0.9)
    return fig


def _power_of_ten(value: float, _position: int) -> str:
    """Such as 10⁴, in plain letters: as a formula each label would be parsed anew for each file of the figure."""
    return "10" + f"{round(np.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


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
