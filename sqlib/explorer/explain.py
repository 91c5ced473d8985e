"""A user's own images explained by a trained run, and by its sibling runs of other setups: a panel and a JSON each.

`explain_files` reads, checks and computes everything and writes nothing; `save` writes what it made. So a mistake in what was
asked leaves no result of the first image behind.
"""

import hashlib
import itertools
import os
import platform
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from sqlib.checked import SqlibError, nearest
from sqlib.data.datasets import dataset_title, source_of
from sqlib.data.images import Picture, printable, read_images
from sqlib.deploy.integer import answer
from sqlib.files import read_json, to_json, write_atomically
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.measures import family
from sqlib.networks.network import Network
from sqlib.networks.passes import predict
from sqlib.places import shown_path
from sqlib.report.cells import png
from sqlib.report.figures.style import FAINT, INK, WIDTH, own_look, setup_style
from sqlib.report.words import training_title
from sqlib.study.origin import git_state, package_versions
from sqlib.study.parameters import Run
from sqlib.study.results import PACKED, finished, load_model, run_of, saved_model
from sqlib.training.examples import to_float

FORMAT = 1
SIGNED_COLOURS = colormaps["RdBu_r"].resampled(63)
"""Blue, white, red: told apart with any colour vision. An odd number of steps, so that 0 is exactly white."""
ALERT = "#A33B00"


class Trained(NamedTuple):
    """A finished run: its parameters, its model, and the file the model was read from."""

    run: Run
    model: Network
    file: Path
    sha256: str


# ---- which runs, which class ---------------------------------------------------------------------------------------


def read_trained(folder: Path) -> Trained:
    """The finished run in a folder; SqlibError if it is missing or damaged, or if its model is not there."""
    folder = Path(folder)
    if not finished(folder):
        what = "no result.json in it" if folder.is_dir() else "no such folder"
        raise SqlibError(
            f"{folder}: {what}; expected a finished run, .../<data set>/<network>/<setup>/<training>/seed<k>"
        )
    file = saved_model(folder)
    if file is None:
        raise SqlibError(
            f"{folder}: neither model.safetensors nor {PACKED} in it (results are published with some models)"
        )
    return Trained(run_of(folder), load_model(folder), file, _sha256(file))


def sibling(folder: Path, run: Run, setup: str) -> Path:
    """The folder beside that of `run` that holds the same run of another setup; SqlibError if there is none."""
    folder = Path(folder).resolve()
    training, seed = folder.parent.name, folder.name
    places = {path.name: path / training / seed for path in sorted(folder.parent.parent.parent.iterdir())}
    there = {name: place for name, place in places.items() if finished(place) and place != folder}
    if setup == run.setup.name:
        raise SqlibError(f"--compare {setup}: this is the setup of the run itself{nearest(setup, there)}")
    if setup not in there:
        known = nearest(setup, there) if there else "; there is none of any other setup"
        raise SqlibError(f"--compare {setup}: no finished run of this setup beside {folder}{known}")
    found, expected = run_of(there[setup]).id, f"{run.dataset}/{run.network}/{setup}/{run.training}/seed{run.seed}"
    if found != expected:
        raise SqlibError(f"--compare {setup}: {there[setup]} holds run {found}, expected {expected}")
    return there[setup]


def class_number(text: str, classes: Sequence[str]) -> int:
    """The number of the class that `text` names, in any case, or gives as a number; SqlibError if there is none."""
    for number, name in enumerate(classes):
        if text == str(number) or text.casefold() == name.casefold():
            return number
    raise SqlibError(f"unknown class '{text}': expected 0 to {len(classes) - 1}, or a name{nearest(text, classes)}")


# ---- explaining ----------------------------------------------------------------------------------------------------


def explain_files(
    folder: Path,
    images: Sequence[Path],
    method: str = "gradient",
    surrogate: str = "straight_through",
    compared: Sequence[str] = (),
    target: str | None = None,
    invert: bool | None = None,
    refused: Callable[[SqlibError], None] | None = None,
) -> list[tuple[dict, bytes]]:
    """(record, panel as PNG) of each image; `save` writes the record as JSON.

    Args:
        folder: of a finished run.
        images: files that `sqlib.data.images.read_image` reads; `invert`: whether they are dark on bright (None: as each looks).
        method, surrogate: see `sqlib.maps.attribution.saliency_map`.
        compared: setups of sibling runs to show beside the run, see `sibling`.
        target: the class to explain, by number or name; None: what each network itself predicts.
        refused: given the error of each image that cannot be used, which is then left out; None: it is raised.

    Raises SqlibError if a run or an image is missing or damaged, or a setup, method, surrogate or class is unknown.
    """
    trained = [read_trained(folder)]
    run = trained[0].run
    classes = source_of(run.dataset).classes
    number = None if target is None else class_number(target, classes)
    trained += [read_trained(sibling(folder, run, setup)) for setup in dict.fromkeys(compared)]
    shared = {
        "run": run.id,
        "compared_with": [other.run.id for other in trained[1:]],
        "method": method,
        "surrogate": surrogate,
        "target": None if number is None else _class(number, classes),
        "classes": list(classes),
    }
    origin = {"code": git_state(), "python": platform.python_version(), "packages": package_versions()}
    explained = []
    for path, picture in read_images(images, invert, refused):
        about, pixels = _about(path, picture), picture.pixels
        maps, entries = explain_image(trained, pixels, method, surrogate, number)
        record = {"format": FORMAT, "image": about, **shared, "models": entries, **origin}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in the name of the image
            panel = png(draw(pixels, maps, run, record), f"{about['file']} explained", panel_in_words(record))
        explained.append((record, panel))
    return explained


def explain_image(
    trained: Sequence[Trained], pixels: np.ndarray, method: str, surrogate: str, target: int | None = None
) -> tuple[Tensor, list[dict]]:
    """Maps (M,28,28), signed, of one image uint8 (28,28) by M networks, and what is to be said about each of them.

    Agreement is with the map of the first. Measures are those of `sqlib.measures.clarity`: NaN for a dead map, and
    `foreground_lift` also where every pixel is brighter than 0. Raises SqlibError as `saliency_map`.
    """
    # One image at a time: what is said about it must not depend on the others (SmoothGrad's noise would).
    image = to_float(torch.from_numpy(pixels)[None])
    maps, entries = [], []
    for run, model, file, sha256 in trained:
        classes = source_of(run.dataset).classes
        probabilities = predict(model, image)[0].double().softmax(dim=0)
        predicted = int(probabilities.argmax())
        explained = predicted if target is None else target
        maps.append(saliency_map(model, image, torch.tensor([explained]), method, surrogate))
        entry = {
            "run": run.id,
            "setup": run.setup.name,
            "quantised": not run.setup.is_float,
            "prediction": _class(predicted, classes),
            "confidence": float(probabilities[predicted]),
            "probabilities": probabilities.tolist(),
            "explained": _class(explained, classes),
            "map": {row.per_image: row.of(maps[-1], image).item() for row in family("clarity")},
        }
        if len(maps) > 1:
            entry["agreement"] = {
                "with": trained[0].run.id,
                "same_class": entry["explained"] == entries[0]["explained"],
                **{row.name: row.of(maps[0], maps[-1]).item() for row in family("agreement")},
            }
        entries.append({**entry, "file": {"path": shown_path(file), "sha256": sha256}})
    return torch.cat(maps), entries


def _about(path: Path, picture: Picture) -> dict:
    return {
        "file": printable(str(path)),
        "sha256": _sha256(path),
        "inverted": picture.inverted,
        "notes": list(picture.notes),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _class(number: int, classes: Sequence[str]) -> dict:
    return {"class": number, "name": classes[number]}


# ---- writing -------------------------------------------------------------------------------------------------------


def save(explained: Sequence[tuple[dict, bytes]], output: Path) -> Iterator[str]:
    """Write `<stem>_explained.json` and `.png` of each image to a folder; yields the line to print after each.

    The same question asked again (same image, networks and options) replaces its own answer; anything else that is in
    the way stays, and the new files get a number. SqlibError if the folder cannot be written.
    """
    taken: set[str] = set()
    for record, panel in explained:
        name = free_name(Path(output), record, taken)
        taken.add(name.casefold())
        paths = [Path(output) / f"{name}.{kind}" for kind in ("png", "json")]
        # The JSON first: should this be the last thing we do, the same command knows the file for its own.
        write_atomically(paths[1], to_json({**record, "panel": paths[0].name}))
        write_atomically(paths[0], panel)
        yield f"{record['image']['file']}: {predictions_in_words(record)}; wrote {' and '.join(printable(str(p)) for p in paths)}"


def free_name(output: Path, record: dict, taken: set[str]) -> str:
    """The first of `<stem>_explained`, `<stem>_explained_2`, ... that is free or holds an answer to the same question.

    taken: names given away already, in lower case (some file systems do not tell A from a).
    """
    # 255 bytes is the longest a file's name can be; the rest is for what is added, also while it is written.
    stem = Path(record["image"]["file"]).stem.encode()[:200].decode(errors="ignore")

    def usable(name: str) -> bool:
        there = [os.path.lexists(output / f"{name}.{kind}") for kind in ("png", "json")]
        return not any(there) or _question_in(output / f"{name}.json") == question(record)

    names = (f"{stem}_explained{f'_{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(name for name in names if name.casefold() not in taken and usable(name))


def question(record: dict) -> list:
    """What was asked: equal for two records only if they answer the same question with the same networks."""
    image = record["image"]
    networks = [entry["file"]["sha256"] for entry in record["models"]]
    return [image["file"], image["sha256"], image["inverted"], record["method"], record["surrogate"], record["target"],
            networks]  # fmt: skip


def _question_in(path: Path) -> list | None:
    try:
        return question(read_json(path))
    except (SqlibError, KeyError, TypeError):
        return None


# ---- words ---------------------------------------------------------------------------------------------------------


def predictions_in_words(record: dict) -> str:
    """Each network's prediction and confidence: 'class 9, Ankle boot (99.8%)', with setups where there are several."""
    words = []
    for entry in record["models"]:
        text = answer(entry["prediction"]["class"], entry["confidence"], record["classes"])
        words.append(text if len(record["models"]) == 1 else f"{entry['setup']}: {text}")
    return "; ".join(words)


def panel_in_words(record: dict) -> str:
    """The panel for those who cannot see it."""
    sentences = []
    for entry in record["models"]:
        measured, name = entry["map"], entry["explained"]["name"]
        about = "is dead: zero everywhere" if measured["dead"] else f"has a Gini index of {measured['gini']:.2f}"
        agreement = entry.get("agreement", {}).get("spearman", np.nan)
        also = f" and a rank correlation of {agreement:.2f} with that of the first" if np.isfinite(agreement) else ""
        sentences.append(
            f"Setup {entry['setup']} predicts {entry['prediction']['name']} with {entry['confidence']:.0%}; "
            f"its {METHODS[record['method']].title} map of class {name} {about}{also}."
        )
    return " ".join(sentences)


# ---- the panel -----------------------------------------------------------------------------------------------------


@own_look()
def draw(pixels: np.ndarray, maps: Tensor, run: Run, record: dict) -> Figure:
    """The image as the networks see it; then a column a network: prediction, signed map, probabilities.

    Args:
        pixels: uint8 (28,28).
        maps: (M,28,28), signed; each is drawn as shares of its sum of absolute values, all on one scale up to the
            99.8th percentile.
        run: the run that was asked for.
        record: as `explain_files` makes it, with M models.
    """
    models, classes = record["models"], record["classes"]
    maps, top = _shares(maps)

    gap, margin = 0.12, 0.1
    cell = min(2.1, max(1.2, (WIDTH - 2 * margin - gap * len(models)) / (len(models) + 1)))
    width = 2 * margin + cell + len(models) * (cell + gap)
    name, subtitle = _wrapped(Path(record["image"]["file"]).name, width, 0.085), _wrapped(_subtitle(run, record), width)
    footing = _wrapped(_reading(record), width)
    notes = [_note(entry) for entry in models]
    line, bars = 0.18, 0.165 * len(classes)
    below = line * max(map(len, notes)) + 0.22
    foot = 0.62 + line * len(footing) + 0.2
    height = 0.08 + line * len(name + subtitle) + 0.5 + cell + below + bars + foot
    fig = Figure(figsize=(width, height))

    def axes(column: int, bottom: float, tall: float):
        left = margin + column * (cell + gap)
        return fig.add_axes((left / width, bottom / height, cell / width, tall / height))

    def write(x: float, y: float, text: str, **more) -> None:
        fig.text(x / width, y / height, text, parse_math=False, **{"fontsize": 9, "color": INK, **more})

    for i, text in enumerate(name + subtitle):
        look = {"fontsize": 10, "fontweight": "bold"} if i < len(name) else {}
        write(margin, height - 0.08 - (i + 0.8) * line, text, **look)

    at_maps, at_bars = foot + bars + below, foot
    axis = axes(0, at_maps, cell)
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(f"image as the\nnetwork{'s see' if len(models) > 1 else ' sees'} it", fontsize=9, pad=4)
    _frame(axis)
    styles = setup_style([entry["setup"] for entry in models])
    for column, (entry, saliency, note) in enumerate(zip(models, maps, notes, strict=True), start=1):
        style = styles[entry["setup"]]
        _draw_saliency(axes(column, at_maps, cell), saliency, top, pixels, entry)
        x, y = margin + column * (cell + gap) + cell / 2, at_maps + cell + 0.26
        size = min(10, max(5, 100 * cell / len(entry["setup"])))  # a setup's name may be longer than its column is wide
        write(x, y, entry["setup"], ha="center", fontsize=size, fontweight="bold", color=style.text)
        other = "agreement" in entry and not entry["agreement"]["same_class"]
        for i, text in enumerate(note, start=1):
            write(x, at_maps - 0.03 - i * line, text, ha="center", fontsize=8.5, color=ALERT if other else INK)
        _draw_probabilities(axes(column, at_bars, bars), entry, classes, style.colour, labelled=column == 1)
    middle = margin + cell + gap + (len(models) * (cell + gap) - gap) / 2
    write(middle, foot - 0.36, "probability, %", ha="center")

    against, speaks = _ends(record["method"])
    y = line * len(footing) + 0.08
    key_left = margin + 0.062 * len(against) + 0.08
    write(margin, y, against)
    _draw_key(fig.add_axes((key_left / width, y / height, 0.9 / width, 0.1 / height)))
    write(key_left + 0.98, y, speaks)
    for i, text in enumerate(footing):
        write(margin, line * (len(footing) - 1 - i) + 0.04, text)
    return fig


def _shares(maps: Tensor) -> tuple[np.ndarray, float]:
    """Each map over the sum of its absolute values, and the end of the colours that all of them share."""
    values = maps.numpy().astype(float)
    total = np.abs(values).sum(axis=(1, 2), keepdims=True)
    values = np.where(total > 0, values / np.where(total > 0, total, 1), 0.0)
    return values, float(np.quantile(np.abs(values), 0.998)) or 1.0


def _draw_saliency(axis, saliency: np.ndarray, top: float, pixels: np.ndarray, entry: dict) -> None:
    """A signed map (28,28) in colour from -top to top under the network's answer; the object's outline over it, or "dead"."""
    axis.set_title(f"{entry['prediction']['name']}: {entry['confidence']:.1%}", fontsize=9, pad=4, color=INK)
    axis.imshow(saliency, cmap=SIGNED_COLOURS, vmin=-top, vmax=top, interpolation="nearest")
    object_ = binary_fill_holes(pixels > 0.05 * 255)
    if entry["map"]["dead"]:
        axis.text(13.5, 13.5, "dead map", ha="center", va="center", fontsize=9, color=INK)
    elif object_.any() and not object_.all():
        at = np.arange(-1, 29)  # one pixel more on each side closes the line of an object that is cut off
        axis.contour(at, at, np.pad(object_, 1), levels=[0.5], colors=["#555555"], linewidths=0.6)
        axis.set(xlim=(-0.5, 27.5), ylim=(27.5, -0.5))
    _frame(axis)


def _draw_key(axis) -> None:
    """The colours of signed maps, from the lowest value to the highest."""
    axis.imshow(np.linspace(-1, 1, 63)[None], cmap=SIGNED_COLOURS, aspect="auto")
    _frame(axis)


def _draw_probabilities(axis, entry: dict, classes: Sequence[str], colour: str, labelled: bool) -> None:
    """A bar a class, downwards; a band behind the explained one."""
    explained = entry["explained"]["class"]
    axis.axhspan(explained - 0.5, explained + 0.5, color="#dcdcdc", linewidth=0)
    axis.barh(range(len(classes)), [100 * p for p in entry["probabilities"]], color=colour, height=0.6)
    axis.set(xlim=(0, 100), ylim=(len(classes) - 0.5, -0.5), xticks=[0, 50, 100], yticks=range(len(classes)))
    axis.set_yticklabels(classes if labelled else [])
    axis.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    for label, side in zip(axis.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)  # else 100 of one column runs into 0 of the next
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)


def _wrapped(text: str, width: float, letter: float = 0.066) -> list[str]:
    """Lines that fit `width` inches, with letters of about `letter` inches."""
    return textwrap.wrap(text, int((width - 0.2) / letter), break_on_hyphens=False) or [""]


def _subtitle(run: Run, record: dict) -> str:
    several = len(record["models"]) > 1
    own = "what each network predicts" if several else "what the network predicts"
    of = own if record["target"] is None else f"class {record['target']['name']}"
    quantised = any(entry["quantised"] for entry in record["models"])
    through = f" ({record['surrogate'].replace('_', '-')} surrogate)" if quantised else ""
    return (
        f"{dataset_title(run.dataset)}, {run.network}, {training_title(run.training)} training, seed {run.seed}. "
        f"Maps: {METHODS[record['method']].title} of {of}{through}."
    )


def _note(entry: dict) -> list[str]:
    """The lines under a map."""
    if entry["map"]["dead"]:
        return ["no explanation"]
    lines = [f"Gini {entry['map']['gini']:.2f}"]
    if "agreement" in entry:
        rho = entry["agreement"]["spearman"]
        lines.append(f"agreement {rho:.2f}" if np.isfinite(rho) else "agreement –")
        if not entry["agreement"]["same_class"]:
            lines.append("(another class)")
    return lines


def _ends(method: str) -> tuple[str, str]:
    """What the two ends of the colour key mean."""
    if method in ("gradient", "smoothgrad"):
        return "a brighter pixel lowers the class's score", "raises it"
    return "against the class", "for the class"


def _reading(record: dict) -> str:
    several, first = len(record["models"]) > 1, record["models"][0]["setup"]
    scale = "; one scale for all" if several else ""
    agreement = f"Agreement: rank correlation with the map of {first}, signs left out. " if several else ""
    return (
        f"Each map is divided by the sum of its absolute values{scale}. Thin line: around all that is not black. "
        f"Gini: 0 if all pixels matter alike, near 1 if few do. {agreement}Grey band: the explained class."
    )


def _frame(axis) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="#bbbbbb", linewidth=0.6)
