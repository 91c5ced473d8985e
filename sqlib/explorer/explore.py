"""The explorer of `notebooks/explore.ipynb`: one image, every setup side by side, answers and maps at once.

`Lab` finds models and computes, `view` makes the HTML of what it found, `Explorer` connects both with controls. The only
part that is not Python is `Pad`, a canvas to draw on.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
import torch
import traitlets
from PIL import Image
from torch import Tensor

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.data.loading import load
from sqlib.explorer.explain import SIGNED_COLOURS
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.maps.surrogates import SURROGATES
from sqlib.measures.clarity import dead
from sqlib.measures.faithfulness import salient_order
from sqlib.networks.network import Network
from sqlib.networks.passes import predict
from sqlib.report.figures.style import setup_style
from sqlib.report.runs_table import find_reports, study_of
from sqlib.report.words import training_title
from sqlib.study.results import finished, load_model, saved_model
from sqlib.training.examples import Dataset, to_float

IMAGES = 1000
"""The first test images: those that can be chosen."""

ALL, ERRORS, DISAGREEMENTS = "all images", "some setup is wrong", "setups disagree"
FILTERS = (ALL, ERRORS, DISAGREEMENTS)
EMPTY = "Draw a digit or a garment, white on black, or start from a test image: every network answers while you draw."
ALL_CLASSES = -1  # a menu shows nothing for None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their setup."""

    dataset: str
    network: str
    training: str
    seed: int


@dataclass
class Answer:
    """What one network makes of one image.

    `probabilities` (classes,), `saliency` (H,W) of the class it predicts, signed; `blanked` (H,W), the image without its most
    salient pixels, and `confidence_left`, the probability of the same class then.
    """

    setup: str
    probabilities: Tensor
    saliency: Tensor
    blanked: Tensor
    confidence_left: float
    predicted_then: int

    @property
    def predicted(self) -> int:
        return int(self.probabilities.argmax())


class Lab:
    """The trained models of a study's reports and the test images they are asked about."""

    def __init__(self, reports: Path | None = None):
        """reports: a study's folder (default: the first of paper, reference and smoke). SqlibError without any model."""
        self.reports = find_reports(reports)
        self.study = study_of(self.reports)
        self.places: dict[Group, dict[str, Path]] = {}
        for run in self.study.runs():
            folder = run.folder(self.reports)
            if finished(folder) and saved_model(folder):
                group = Group(run.dataset, run.network, run.training, run.seed)
                self.places.setdefault(group, {})[run.setup.name] = folder
        if not self.places:
            raise SqlibError(f"no trained model in {self.reports}: make some with `make smoke` or `make reproduce`")
        self.models = lru_cache(maxsize=None)(self._models)
        self.predictions = lru_cache(maxsize=None)(self._predictions)

    def _models(self, group: Group) -> dict[str, Network]:
        return {setup: load_model(folder) for setup, folder in self.places[group].items()}

    def data(self, group: Group) -> Dataset:
        """The group's data set, read once."""
        return _data(group.dataset)

    def _predictions(self, group: Group) -> Tensor:
        """(setups, IMAGES) the classes that the group's networks predict."""
        images = to_float(self.data(group).test_images[:IMAGES])
        return torch.stack([predict(model, images).argmax(dim=1) for model in self.models(group).values()])

    def numbers(self, group: Group, label: int = ALL_CLASSES, which: str = ALL) -> list[int]:
        """The numbers of the test images of a class (default: any) that pass one of `FILTERS`."""
        labels, predicted = self.data(group).test_labels[:IMAGES], self.predictions(group)
        chosen = torch.ones(len(labels), dtype=torch.bool) if label == ALL_CLASSES else labels == label
        if which == ERRORS:
            chosen &= (predicted != labels).any(dim=0)
        elif which == DISAGREEMENTS:
            chosen &= (predicted != predicted[0]).any(dim=0)
        return chosen.nonzero().flatten().tolist()

    def ask(
        self, group: Group, pixels: Tensor, method: str = "gradient", surrogate: str = SURROGATES[0], blank: float = 0.0
    ) -> list[Answer]:
        """What every network of a group makes of an image.

        Args:
            pixels: (28,28) uint8.
            method, surrogate: see `sqlib.maps.attribution.saliency_map`.
            blank: the share of pixels, 0 to 1, most salient first in each network's own map, that take the corner's value.
        """
        image = to_float(pixels[None])
        answers = []
        for setup, model in self.models(group).items():
            probabilities = predict(model, image).softmax(dim=1)
            target = probabilities.argmax(dim=1)
            saliency = saliency_map(model, image, target, method, surrogate)
            where = salient_order(saliency)[0, : round(blank * saliency[0].numel())]
            blanked = image.flatten().clone()
            blanked[where] = image[0, 0, 0, 0]
            blanked = blanked.view_as(image)
            then = predict(model, blanked).softmax(dim=1)[0]
            left, answer = float(then[target]), int(then.argmax())
            answers.append(Answer(setup, probabilities[0], saliency[0], blanked[0, 0], left, answer))
        return answers


@lru_cache(maxsize=2)
def _data(name: str) -> Dataset:
    return load(name, log=lambda line: None)


# ---- what is seen --------------------------------------------------------------------------------------------------


def picture(values: Tensor, signed: bool = False, size: int = 150) -> str:
    """An image (H,W) as a data address: grey values in [0,1], or a signed map, blue to red, white at 0."""
    array = values.detach().float().numpy()
    if signed:
        top = float(np.abs(array).max()) or 1.0
        rgb = SIGNED_COLOURS(array / top / 2 + 0.5, bytes=True)[..., :3]
    else:
        rgb = np.repeat((255 * array.clip(0, 1)).round().astype(np.uint8)[..., None], 3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(rgb).resize((size, size), Image.Resampling.NEAREST).save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


STYLE = """<style>
.sqx {display: flex; flex-wrap: wrap; gap: 8px; font: 14px system-ui, sans-serif}
.sqx figure {margin: 0; flex: 1 1 118px; max-width: 154px; min-width: 0}
.sqx img {display: block; box-sizing: border-box; width: 100%; aspect-ratio: 1; border: 1px solid #767676}
.sqx .row + img {margin-top: 8px}
.sqx h3 {margin: 0 0 2px; font-size: 15px} .sqx p {margin: 4px 0}
.sqx p.says {min-height: 36px; line-height: 18px} .sqx .wrong {color: #A33B00; font-weight: bold}
.sqx .row {display: flex; align-items: center; gap: 4px; font-size: 12px; line-height: 16px}
.sqx .row span {flex: 0 0 42%; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; text-align: right}
.sqx .row div {flex: 1; min-width: 0} .sqx .row i {display: block; height: 10px} .sqx .row small {font-size: 12px}
body[data-jp-theme-light="false"] .sqx .wrong {color: #FF9E66}
body[data-jp-theme-light="false"] .sqx .row i {box-shadow: 0 0 0 1px #BDBDBD}
</style>"""


def view(
    answers: Sequence[Answer], pixels: Tensor, classes: Sequence[str], truth: int | None = None, blank: float = 0.0
) -> str:
    """The HTML that shows an image and the answers side by side: map, probabilities and, when blanking, what is left.

    truth: the image's class; None for a drawing, which has none and stands on the pad already.
    """
    styles = setup_style([answer.setup for answer in answers])
    parts = []
    if truth is not None:
        said = f"truth: {classes[truth]}"
        image = picture(to_float(pixels[None])[0, 0])
        parts.append(_figure("the image", image, f"The image, {said}", f"<p>{html.escape(said)}</p>"))
    for answer in answers:
        name, confidence = classes[answer.predicted], float(answer.probabilities.max())
        wrong = truth is not None and answer.predicted != truth
        below = f"<p class='says{' wrong' * wrong}'>{html.escape(name)}, {confidence:.1%}{' (wrong)' * wrong}</p>"
        if dead(answer.saliency[None])[0]:
            below += "<p class=wrong>dead map: zero everywhere</p>"
        below += _bars(answer.probabilities, classes, styles[answer.setup].colour)
        if blank:
            then = classes[answer.predicted_then]
            below += (
                f'<img src="{picture(answer.blanked)}" alt="The image without its most salient {blank:.0%} of pixels">'
                f"<p>without its top {blank:.0%}: {html.escape(name)} {answer.confidence_left:.1%}"
                + (f", now {html.escape(then)}" if answer.predicted_then != answer.predicted else "")
                + "</p>"
            )
        alt = f"Saliency map of {answer.setup}, which says {name} with {confidence:.0%}"
        parts.append(_figure(answer.setup, picture(answer.saliency, signed=True), alt, below))
    return f'{STYLE}<div class="sqx">{"".join(parts)}</div>'


def _figure(title: str, address: str, alt: str, below: str) -> str:
    head = f"<h3>{html.escape(title)}</h3>"
    return f'<figure>{head}<img src="{address}" alt="{html.escape(alt)}"><figcaption>{below}</figcaption></figure>'


def _bars(probabilities: Tensor, classes: Sequence[str], colour: str) -> str:
    # A bar that would be thinner than a line is left out: on dark ground bars have a rim.
    return "".join(
        f'<div class="row"><span>{html.escape(name)}</span><div>'
        + (f'<i style="width: {float(p):.0%}; background: {colour}"></i>' if p >= 0.015 else "")
        + f"</div><small>{float(p):.0%}</small></div>"
        for name, p in zip(classes, probabilities, strict=True)
    )


# ---- controls ------------------------------------------------------------------------------------------------------


class Pad(anywidget.AnyWidget):
    """A 28 x 28 canvas to draw on with mouse, pen or finger; `pixels` follows while one draws: 784 numbers, 0 to 255."""

    _esm = """
    function render({ model, el }) {
      const side = 28, scale = 9, canvas = document.createElement("canvas");
      canvas.width = canvas.height = side * scale;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "Canvas to draw a digit or a garment on, white on black");
      canvas.style.cssText = "touch-action: none; cursor: crosshair; border: 1px solid #767676";
      el.appendChild(canvas);
      const context = canvas.getContext("2d");
      let pixels = model.get("pixels").slice(), at = null, waiting = false;
      const paint = () => pixels.forEach((value, i) => {
        context.fillStyle = `rgb(${value},${value},${value})`;
        context.fillRect((i % side) * scale, Math.floor(i / side) * scale, scale, scale);
      });
      const send = () => {
        if (waiting) return;
        waiting = true;
        setTimeout(() => { waiting = false; model.set("pixels", pixels.slice()); model.save_changes(); }, 120);
      };
      const dot = (x, y) => {
        const wide = model.get("brush");
        for (let row = 0; row < side; row++) for (let column = 0; column < side; column++) {
          const far = Math.hypot(column + 0.5 - x, row + 0.5 - y);
          const value = Math.round(255 * Math.min(1, Math.max(0, wide - far + 0.5)));
          const i = row * side + column;
          pixels[i] = model.get("erase") ? Math.min(pixels[i], 255 - value) : Math.max(pixels[i], value);
        }
      };
      const place = (event) => {
        const box = canvas.getBoundingClientRect();
        return [(event.clientX - box.left) / box.width * side, (event.clientY - box.top) / box.height * side];
      };
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        at = place(event); dot(...at); paint(); send();
      });
      canvas.addEventListener("pointermove", (event) => {
        if (at === null) return;
        const to = place(event), steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - at[0], to[1] - at[1])));
        for (let k = 1; k <= steps; k++)
          dot(at[0] + (to[0] - at[0]) * k / steps, at[1] + (to[1] - at[1]) * k / steps);
        at = to; paint(); send();
      });
      const stop = () => { if (at !== null) { at = null; send(); } };
      canvas.addEventListener("pointerup", stop);
      canvas.addEventListener("pointercancel", stop);
      model.on("change:pixels", () => { if (at === null) { pixels = model.get("pixels").slice(); paint(); } });
      paint();
    }
    export default { render };
    """
    pixels = traitlets.List([0] * 784).tag(sync=True)
    brush = traitlets.Float(1.2).tag(sync=True)
    erase = traitlets.Bool(False).tag(sync=True)


class Explorer(widgets.VBox):
    """The controls, and what they show; `show()` draws anew from what they say now."""

    def __init__(self, lab: Lab):
        self.lab = lab
        groups = list(lab.places)
        first = groups[0]

        def choice(what: str, values: Sequence, label) -> widgets.Dropdown:
            options = [(label(value), value) for value in dict.fromkeys(values)]
            # As wide as its words: all controls stand in two lines, and the maps in sight below them.
            look = {"style": {"description_width": "initial"}, "layout": {"width": "max-content"}}
            return widgets.Dropdown(options=options, description=what, **look)

        self.dataset = choice("data set", [g.dataset for g in groups], dataset_title)
        self.network = choice("network", [g.network for g in groups], str)
        self.training = choice("training", [g.training for g in groups], training_title)
        self.seed = choice("seed", [g.seed for g in groups], str)
        self.method = choice("method", METHODS, lambda name: METHODS[name].title)
        self.surrogate = choice("gradient", SURROGATES, lambda name: name.replace("_", "-"))
        self.label = widgets.Dropdown(
            options=[("all classes", ALL_CLASSES)], description="class", layout={"width": "220px"}
        )
        self.which = choice("show", FILTERS, str)
        # Its position says nothing; which image it is, and which of how many, stands above the maps.
        self.image = widgets.IntSlider(
            description="image", continuous_update=True, readout=False, layout={"width": "380px"}
        )
        self.blank = widgets.IntSlider(0, 0, 90, 5, description="blank top %", layout={"width": "380px"})
        self.pad = Pad()
        self.clear = widgets.Button(description="clear", layout={"width": "122px"})
        self.erase = widgets.ToggleButton(description="erase", layout={"width": "122px"})
        self.start = widgets.Button(description="draw on this image")
        self.brush = widgets.FloatSlider(1.2, min=0.4, max=4, step=0.2, description="brush", layout={"width": "254px"})
        self.out = widgets.HTML()
        self.drawn = widgets.HTML(layout={"flex": "1 1 0%", "min_width": "500px"})  # four maps beside the pad
        self.note = widgets.HTML()
        titles = {setup.name: setup.title for setup in lab.study.setups}
        legend = "; ".join(
            f"<strong>{html.escape(name)}</strong>: {html.escape(title)}" for name, title in titles.items()
        )
        self.legend = widgets.HTML(f"<p>{legend}.</p>")

        self._numbers: list[int] = []
        self._number: int | None = None  # of the test image that is shown
        self._choosing = False
        self._fill_classes(first)
        self._choose_images()
        self._connect()
        super().__init__(self._laid_out())
        self.show_drawing()

    def _connect(self) -> None:
        """Each control, when it is changed, draws anew what depends on it."""
        for control in (self.dataset, self.network, self.training, self.seed):
            control.observe(self._changed_group, "value")
        for control in (self.label, self.which):
            control.observe(lambda _: self._choose_images(), "value")
        self.image.observe(lambda _: self._choosing or self.show(), "value")
        self.method.observe(self._changed_method, "value")
        for control in (self.method, self.surrogate, self.blank):
            control.observe(lambda _: self._show_what_is_seen(), "value")
        self.pad.observe(lambda _: self.show_drawing(), "pixels")
        self.clear.on_click(lambda _: self._clear())
        self.start.on_click(lambda _: self._draw_on_the_image())
        widgets.link((self.erase, "value"), (self.pad, "erase"))
        widgets.link((self.brush, "value"), (self.pad, "brush"))

    def _laid_out(self) -> list[widgets.Widget]:
        """The controls in their rows, and the two tabs: test images, and a drawing."""
        which_run = widgets.HBox([self.dataset, self.network, self.training, self.seed], layout={"flex_flow": "wrap"})
        how = widgets.HBox([self.method, self.surrogate, self.blank], layout={"flex_flow": "wrap"})
        what = widgets.HBox([self.label, self.which, self.image], layout={"flex_flow": "wrap"})
        tools = widgets.VBox([self.pad, self.brush, widgets.HBox([self.clear, self.erase]), self.start])
        drawing = widgets.HBox([tools, self.drawn], layout={"flex_flow": "wrap"})
        self.tabs = widgets.Tab([widgets.VBox([what, self.out]), drawing], titles=["Test images", "Draw your own"])
        self.tabs.observe(lambda _: self._show_what_is_seen(), "selected_index")
        return [which_run, how, self.note, self.tabs, self.legend]

    @property
    def group(self) -> Group | None:
        """The runs that are chosen; None where there are none."""
        chosen = Group(self.dataset.value, self.network.value, self.training.value, self.seed.value)
        return chosen if chosen in self.lab.places else None

    def _changed_group(self, _change: dict) -> None:
        if self.group is None:
            self.note.value = "<p>There is no trained model of this choice; the seeds that are published have them.</p>"
            self.start.disabled = True
            return
        self.note.value = ""
        self._fill_classes(self.group)
        self._choose_images()
        if self.tabs.selected_index == 1:
            self.show_drawing()

    def _show_what_is_seen(self) -> None:
        """Show the tab in front; the other one follows when it is opened, so that nothing is computed twice."""
        (self.show_drawing if self.tabs.selected_index == 1 else self.show)()

    def _fill_classes(self, group: Group) -> None:
        classes = self.lab.data(group).classes
        options = (("all classes", ALL_CLASSES), *((name, i) for i, name in enumerate(classes)))
        if options == self.label.options:
            return
        self._choosing = True  # a new menu begins with all classes
        try:
            self.label.options = options
        finally:
            self._choosing = False

    def _changed_method(self, change: dict) -> None:
        self.surrogate.disabled = not METHODS[change["new"]].uses_gradient

    def _choose_images(self) -> None:
        """Take the images that pass the filters; the one that is shown stays, if it is among them, else the first comes."""
        if self.group is None or self._choosing:
            return
        self._numbers = self.lab.numbers(self.group, self.label.value, self.which.value)
        self._choosing = True
        try:
            self.image.max = max(0, len(self._numbers) - 1)
            self.image.value = self._numbers.index(self._number) if self._number in self._numbers else 0
        finally:
            self._choosing = False
        self.image.disabled = len(self._numbers) < 2
        self.start.disabled = not self._numbers
        self.show()

    def _clear(self) -> None:
        self.erase.value = False
        self.pad.pixels = [0] * 784

    def _draw_on_the_image(self) -> None:
        if self.group is not None and self._numbers:
            self.pad.pixels = self.lab.data(self.group).test_images[self._number].flatten().tolist()

    def show(self) -> None:
        """Show the chosen test image as every network sees it."""
        if self.group is None:
            return
        if not self._numbers:
            self.out.value = "<p>None of the first 1,000 test images is like that.</p>"
            self.start.description = "draw on a test image"
            return
        self._number = number = self._numbers[self.image.value]
        self.start.description = f"draw on test image {number}"
        data = self.lab.data(self.group)
        shown = self._view(data.test_images[number], int(data.test_labels[number]))
        self.out.value = f"<p>Test image {number}, {self.image.value + 1} of {len(self._numbers)}</p>{shown}"

    def show_drawing(self) -> None:
        """Show what every network makes of the drawing; of an empty pad, what it is for."""
        if not any(self.pad.pixels):
            self.drawn.value = f'{STYLE}<div class="sqx"><p>{EMPTY}</p></div>'
        elif self.group is not None:
            self.drawn.value = self._view(torch.tensor(self.pad.pixels, dtype=torch.uint8).view(28, 28), None)

    def _view(self, pixels: Tensor, truth: int | None) -> str:
        blank = self.blank.value / 100
        answers = self.lab.ask(self.group, pixels, self.method.value, self.surrogate.value, blank)
        return view(answers, pixels, self.lab.data(self.group).classes, truth, blank)
