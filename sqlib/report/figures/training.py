"""What a training does epoch by epoch: loss, accuracy, and the clips of PACT."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sqlib.report.figures.style import FAINT, WIDTH, readable, styled


def _whole_epochs(axis, last: int) -> None:
    step = max(1, -(-last // 8))
    axis.set(
        xlabel="epoch", xticks=range(0 if last > 8 else 1, last + 1, step), xlim=(0.8, last + max(0.9, 0.28 * last))
    )


def _label_ends(axis, ends: Sequence[tuple[float, float, str, object]], gap_points: float = 11.0) -> None:
    """Words at the right ends of lines, (x, y, word, colour) each, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    points = axis.get_window_extent().height * 72 / axis.figure.dpi or 150
    unit = gap_points / points * (high - low)
    placed = []
    for x, y, word, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, placed[-1] + unit) if placed else y
        placed.append(at)
        shift = (at - y) / (high - low) * points
        axis.annotate(
            word, (x, y), xytext=(7, shift), textcoords="offset points", va="center", color=colour, fontsize=9
        )


@styled
def training_curves(history: Sequence[Mapping], epochs: int | None = None) -> Figure:
    """Loss (left) and accuracy (right) after each epoch, training and validation. `epochs`: how many there will be."""
    fig = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = fig.subplots(1, 2)
    x = [entry["epoch"] for entry in history]
    last = max([epochs or 1, *x])
    for axis, name, unit in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
        ends = []
        for part, word, colour, line, marker in (
            ("train", "training", FAINT, "--", "s"),
            ("val", "validation", "#0072B2", "-", "o"),
        ):
            y = [unit * entry[f"{part}_{name}"] for entry in history]
            axis.plot(x, y, line, color=colour, marker=marker, markersize=5)
            if y:
                ends.append((x[-1], y[-1], f"{word} {y[-1]:.3f}" if unit == 1 else f"{word} {y[-1]:.1f}%", colour))
        axis.set_title(name if unit == 1 else f"{name} (%)", loc="left")
        _whole_epochs(axis, last)
        axis.set_xlim(0.8, last + 0.55 * last + 0.3)
        if name == "loss" and history:
            axis.set_ylim(bottom=0)
        _label_ends(axis, ends, 14)
    return fig


@styled
def clip_paths(history: Sequence[Mapping], start: float | None = None, epochs: int | None = None) -> Figure:
    """PACT's clip of each layer after each epoch; `start`: its value before the first (drawn at epoch 0)."""
    fig = Figure(figsize=(WIDTH * 0.62, 2.9), layout="constrained")
    axis = fig.subplots()
    layers = list(history[0]["clips"]) if history else []
    x = [entry["epoch"] for entry in history]
    last = max([epochs or 1, *x])
    ends = []
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
    for i, layer in enumerate(layers):
        y = [entry["clips"][layer] for entry in history]
        xs, ys = ([0, *x], [start, *y]) if start is not None else (x, y)
        axis.plot(xs, ys, color=colours[i % 6], marker="osD^vP"[i % 6], markersize=5)
        ends.append((x[-1], y[-1], f"{layer}  {y[-1]:.2f}", readable(colours[i % 6])))
    _whole_epochs(axis, last)
    if start is not None:
        axis.set(xticks=sorted({0, *axis.get_xticks()}))
    axis.set_xlim(-0.15 if start is not None else 0.8, last + 0.4 * last)
    axis.set_title("clip of the activations behind each layer", loc="left")
    if layers:
        axis.set_ylim(bottom=0)
    else:
        axis.text(0.5, 0.5, "nothing is clipped in this setup", transform=axis.transAxes, ha="center", color=FAINT)
    _label_ends(axis, ends, 12)
    return fig
