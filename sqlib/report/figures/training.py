"""What a training does epoch by epoch: loss, accuracy, and the clips of PACT."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sqlib.report.figures.style import FAINT, SETUP_STYLE, WIDTH, readable, styled

CLIP_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")


def _whole_epochs(axis, last: int, room: float) -> None:
    """Ticks at epochs up to `last`, and `room`, a share of them, for words behind the last one."""
    step = max(1, -(-last // 8))
    axis.set(xlabel="epoch", xticks=range(0 if last > 8 else 1, last + 1, step), xlim=(0.8, last + room * last + 0.3))


def _label_ends(axis, ends: Sequence[tuple[float, float, str, object]], gap_points: float) -> None:
    """Words at the right ends of lines, (x, y, word, colour) each, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    points = axis.get_window_extent().height * 72 / axis.figure.dpi or 150
    unit = gap_points / points * (high - low)
    at = float("-inf")
    for x, y, word, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, at + unit)
        shift = (at - y) / (high - low) * points
        axis.annotate(
            word, (x, y), xytext=(7, shift), textcoords="offset points", va="center", color=colour, fontsize=9
        )


@styled
def training_curves(history: Sequence[Mapping], epochs: int | None = None) -> Figure:
    """Loss (left) and accuracy (right) after each epoch, training and validation. `epochs`: how many there will be."""
    fig = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    x = [entry["epoch"] for entry in history]
    for axis, name, title, unit, form in zip(
        fig.subplots(1, 2), ("loss", "accuracy"), ("loss", "accuracy (%)"), (1, 100), ("{:.3f}", "{:.1f}%"), strict=True
    ):
        ends = []
        for part, word, colour, look in (
            ("train", "training", FAINT, "s--"), ("val", "validation", SETUP_STYLE["w4a4"].colour, "o-"),
        ):  # fmt: skip
            y = [unit * entry[f"{part}_{name}"] for entry in history]
            axis.plot(x, y, look, color=colour, markersize=5)
            ends += [(x[-1], y[-1], f"{word} {form.format(y[-1])}", colour)] if y else []
        axis.set_title(title, loc="left")
        _whole_epochs(axis, max([epochs or 1, *x]), 0.55)
        if name == "loss" and history:
            axis.set_ylim(bottom=0)
        _label_ends(axis, ends, 14)
    return fig


@styled
def clip_paths(history: Sequence[Mapping], start: float | None = None, epochs: int | None = None) -> Figure:
    """PACT's clip of each layer after each epoch; `start`: its value before the first (drawn at epoch 0)."""
    fig = Figure(figsize=(WIDTH * 0.62, 2.9), layout="constrained")
    axis = fig.subplots()
    x = [entry["epoch"] for entry in history]
    before = [] if start is None else [start]
    ends = []
    for i, layer in enumerate(history[0]["clips"] if history else []):
        colour, y = CLIP_COLOURS[i % 6], [entry["clips"][layer] for entry in history]
        axis.plot([0] * len(before) + x, before + y, color=colour, marker="osD^vP"[i % 6], markersize=5)
        ends.append((x[-1], y[-1], f"{layer}  {y[-1]:.2f}", readable(colour)))
    _whole_epochs(axis, max([epochs or 1, *x]), 0.4)
    if before:
        axis.set(xticks=sorted({0, *axis.get_xticks()}), xlim=(-0.15, axis.get_xlim()[1]))
    axis.set_title("clip of the activations behind each layer", loc="left")
    if ends:
        axis.set_ylim(bottom=0)
    else:
        axis.text(0.5, 0.5, "nothing is clipped in this setup", transform=axis.transAxes, ha="center", color=FAINT)
    _label_ends(axis, ends, 12)
    return fig
