"""The explorer: what it shows is what the models say, every control does what it says, and no choice breaks it."""

import re

import pytest
import torch

from sqlib.checked import SqlibError
from sqlib.explorer import explore
from sqlib.explorer.explore import ALL, DISAGREEMENTS, ERRORS, Explorer, Group, Lab, Pad
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.networks.passes import predict
from sqlib.places import REPOSITORY
from sqlib.training.examples import to_float

GROUP = Group("fashion_mnist", "lenet", "saliency_guided", 0)
CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def lab():
    return Lab(REPOSITORY / "reports/reference")


@pytest.fixture
def explorer(lab, monkeypatch):
    monkeypatch.setattr(explore, "IMAGES", 60)
    lab.predictions.cache_clear()
    yield Explorer(lab)
    lab.predictions.cache_clear()


def test_published_models_of_every_setup_are_found(lab):
    assert set(lab.places) == {
        Group(dataset, "lenet", training, 0)
        for dataset in ("mnist", "fashion_mnist")
        for training in ("standard", "saliency_guided")
    }
    assert all(list(found) == ["fp32", "w4a4", "mixed", "w2a2"] for found in lab.places.values())


def test_answers_are_those_of_the_models(lab):
    pixels = lab.data(GROUP).test_images[5]
    answers = lab.ask(GROUP, pixels, "input_x_gradient", "unclipped")
    for answer, (setup, model) in zip(answers, lab.models(GROUP).items(), strict=True):
        image = to_float(pixels[None])
        probabilities = predict(model, image).softmax(dim=1)
        assert answer.setup == setup and torch.equal(answer.probabilities, probabilities[0])
        expected = saliency_map(model, image, probabilities.argmax(dim=1), "input_x_gradient", "unclipped")
        assert torch.equal(answer.saliency, expected[0])
        assert torch.equal(answer.blanked, image[0, 0])  # nothing was to be blanked
        assert answer.confidence_left == pytest.approx(float(probabilities.max()), abs=1e-6)


def test_blanking_takes_the_most_salient_pixels_and_asks_again(lab):
    pixels = lab.data(GROUP).test_images[7]
    image = to_float(pixels[None])[0, 0]
    for answer, model in zip(lab.ask(GROUP, pixels, blank=0.25), lab.models(GROUP).values(), strict=True):
        changed = answer.blanked != image
        least_taken = answer.saliency.abs().flatten().sort(descending=True).values[195]
        assert changed.sum() <= 196 and (answer.saliency.abs()[changed] >= least_taken).all()
        then = predict(model, answer.blanked[None, None]).softmax(dim=1)[0]
        assert answer.confidence_left == float(then[answer.predicted]) and answer.predicted_then == int(then.argmax())


def test_filters(lab):
    labels, predicted = lab.data(GROUP).test_labels[: explore.IMAGES], lab.predictions(GROUP)
    assert lab.numbers(GROUP) == list(range(1000))
    assert lab.numbers(GROUP, label=3) == (labels == 3).nonzero().flatten().tolist()
    errors, disagreements = lab.numbers(GROUP, which=ERRORS), lab.numbers(GROUP, which=DISAGREEMENTS)
    assert set(disagreements) < set(errors)  # where setups disagree, one is wrong; where all are wrong, they may agree
    assert all((predicted[:, i] != labels[i]).any() for i in errors)
    assert all(len(set(predicted[:, i].tolist())) > 1 for i in disagreements)


def test_controls_change_what_is_shown(explorer):
    seen = [explorer.out.value]

    def changed():
        seen.append(explorer.out.value)
        return seen[-1] != seen[-2]

    explorer.image.value = 3
    assert changed() and "Test image 3, 4 of 60" in seen[-1]
    explorer.method.value = "input_x_gradient"
    assert changed()
    explorer.surrogate.value = "unclipped"
    assert changed()
    explorer.blank.value = 30
    assert changed() and "without its top 30%" in seen[-1]
    explorer.training.value = "saliency_guided"
    assert changed()
    explorer.label.value = 7
    assert changed() and re.search(r"Test image \d+, \d+ of \d+", seen[-1])
    explorer.dataset.value = "fashion_mnist"
    assert changed() and "Sneaker" in seen[-1]
    assert explorer.label.options[1][0] == "T-shirt/top"


def test_every_method_can_be_chosen(explorer):
    for method in METHODS:
        explorer.method.value = method
        assert explorer.out.value.count("<figure>") == 5


def test_a_choice_without_images_or_models_says_so_and_goes_on(explorer):
    explorer.label.options = [("none", 99)]
    assert "None of the first 1,000 test images" in explorer.out.value
    explorer.label.options = [("all classes", explore.ALL_CLASSES)]
    assert "Test image" in explorer.out.value
    explorer.seed.options = [("7", 7)]
    assert "no trained model" in explorer.note.value
    explorer.seed.options = [("0", 0)]
    assert explorer.note.value == ""


def test_nothing_can_be_drawn_on_where_no_image_is_shown(explorer):
    explorer.label.options = [("none", 99)]
    assert explorer.start.disabled
    explorer.start.click()
    assert not any(explorer.pad.pixels)
    explorer.label.options = [("all classes", explore.ALL_CLASSES)]
    assert not explorer.start.disabled and explorer.start.description == "draw on test image 0"
    explorer.seed.options = [("7", 7)]
    explorer.start.click()
    assert explorer.start.disabled and not any(explorer.pad.pixels)
    explorer.seed.options = [("0", 0)]
    explorer.image.value = 3
    explorer.start.click()
    assert explorer.pad.pixels == explorer.lab.data(explorer.group).test_images[3].flatten().tolist()


def test_a_filter_keeps_the_image_that_passes_it_and_else_begins_with_the_first(explorer):
    labels = explorer.lab.data(explorer.group).test_labels[:60].tolist()
    explorer.image.value = 20
    explorer.label.value = labels[20]
    same = [i for i, label in enumerate(labels) if label == labels[20]]
    assert f"Test image 20, {same.index(20) + 1} of {len(same)}" in explorer.out.value
    other = (labels[20] + 1) % 10
    explorer.label.value = other
    assert f"Test image {labels.index(other)}, 1 of {labels.count(other)}" in explorer.out.value


def test_an_image_is_asked_about_once_whatever_changes(explorer, monkeypatch):
    asked = []
    monkeypatch.setattr(explorer, "_view", lambda pixels, truth: asked.append(truth) or "")
    explorer.image.value = 50
    explorer.label.value = 7
    assert len(asked) == 2
    explorer.dataset.value = "fashion_mnist"  # which has other classes: all of them are shown
    assert len(asked) == 3 and explorer.label.value == explore.ALL_CLASSES


def test_the_gradient_can_be_chosen_where_there_is_one(explorer):
    for method in METHODS:
        explorer.method.value = method
        assert explorer.surrogate.disabled == (method == "occlusion")


def test_it_says_what_the_setups_are(explorer):
    assert "<strong>mixed</strong>: Mixed 4/2 bits: first and last layer 4, the rest 2" in explorer.legend.value


def test_the_menu_names_the_classes_of_the_data_set_that_is_shown(explorer):
    explorer.dataset.value = "fashion_mnist"
    assert "Sneaker" in [name for name, _ in explorer.label.options]
    explorer.seed.options = [("7", 7), ("0", 0)]  # of which nothing is there
    explorer.dataset.value = "mnist"
    explorer.seed.value = 0
    assert [name for name, _ in explorer.label.options[1:]] == list(explorer.lab.data(explorer.group).classes)


def test_drawing_is_answered_and_cleared(explorer):
    blank = explorer.drawn.value
    assert "Draw a digit or a garment" in blank and "<figure>" not in blank
    pixels = [0] * 784
    for row in range(4, 24):
        pixels[28 * row + 13 : 28 * row + 16] = [255] * 3
    explorer.pad.pixels = pixels
    drawn = explorer.drawn.value
    assert drawn != blank and drawn.count("<figure>") == 4 and "(wrong)" not in drawn
    explorer.erase.value = True
    explorer.clear.click()
    assert explorer.pad.pixels == [0] * 784 and explorer.drawn.value == blank and not explorer.erase.value
    explorer.start.click()
    assert sum(explorer.pad.pixels) > 0 and explorer.drawn.value != blank
    explorer.erase.value, explorer.brush.value = True, 3.0
    assert explorer.pad.erase and explorer.pad.brush == 3.0


def test_only_the_tab_in_front_is_computed_and_the_other_when_it_is_opened(explorer):
    image, drawing = explorer.out.value, explorer.drawn.value
    explorer.method.value = "input_x_gradient"
    assert explorer.out.value != image and explorer.drawn.value == drawing
    image = explorer.out.value
    explorer.pad.pixels = [100] * 784
    drawing = explorer.drawn.value
    explorer.tabs.selected_index = 1
    explorer.blank.value = 20
    assert explorer.out.value == image and explorer.drawn.value != drawing
    explorer.tabs.selected_index = 0
    assert "without its top 20%" in explorer.out.value


def test_dead_maps_and_wrong_answers_are_said_and_names_escaped(lab):
    answers = lab.ask(GROUP, lab.data(GROUP).test_images[0])
    answers[0].saliency = torch.zeros(28, 28)
    wrong = (answers[0].predicted + 1) % 10
    names = ["<b>"] * 10
    shown = explore.view(answers, lab.data(GROUP).test_images[0], names, truth=wrong)
    assert "dead map" in shown and "(wrong)" in shown and "<b>" not in shown and "&lt;b&gt;" in shown
    assert shown.count(" alt=") == 5


def test_a_signed_map_is_blue_and_red_with_white_at_zero():
    import base64
    import io

    import numpy as np
    from PIL import Image

    address = explore.picture(torch.tensor([[-1.0, 0.0], [0.5, 1.0]]), signed=True, size=2)
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))).astype(int)
    assert rgb[0, 0, 2] > rgb[0, 0, 0] and rgb[1, 1, 0] > rgb[1, 1, 2] and rgb[0, 1].min() > 240


def test_nothing_trained_is_one_clear_line(tmp_path):
    with pytest.raises(SqlibError, match="make smoke"):
        Lab(tmp_path)


def test_the_pad_is_offline_and_named():
    assert "http" not in Pad._esm and "aria-label" in Pad._esm
    assert ALL in explore.FILTERS
