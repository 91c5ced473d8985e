"""A user's images explained: the numbers are those computed directly, no file is lost, no mistake leaves half a result."""

import copy
import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from sqlib.checked import SqlibError
from sqlib.data.datasets import DATASETS
from sqlib.explorer import explain
from sqlib.maps.attribution import saliency_map
from sqlib.measures import clarity, likeness
from sqlib.networks.passes import predict
from sqlib.places import REPOSITORY
from sqlib.study.results import load_model, run_of
from sqlib.training.examples import to_float
from sqlib.workflow import commands as command

RUNS = REPOSITORY / "reports/reference/runs"
FP32, W2A2 = (RUNS / f"fashion_mnist/lenet/{setup}/standard/seed0" for setup in ("fp32", "w2a2"))
CLASSES = DATASETS["fashion_mnist"].classes


def picture(path, seed=0, size=28):
    """Write a picture of something with a black border; its pixels."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((size, size), np.uint8)
    top, left = random.integers(3, 8, 2)
    pixels[top : size - 4, left : size - 6] = random.integers(60, 256, pixels[top : size - 4, left : size - 6].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def run_main(monkeypatch, capsys, *arguments):
    """(exit code, lines on stdout, lines on stderr) of `python -m sqlib explain ...`, in this process."""
    monkeypatch.setattr(sys, "argv", ["sqlib", "explain", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    said = capsys.readouterr()
    return stop.value.code, said.out.splitlines(), said.err.splitlines()


def answers(folder):
    """The JSON files of a folder by name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """One picture explained by fp32 and w2a2: (pixels, maps (2,28,28), record)."""
    path = tmp_path_factory.mktemp("explained") / "boot.png"
    pixels = picture(path)
    ((record, _),) = explain.explain_files(FP32, [path], compared=["w2a2"])
    maps, _ = explain.explain_image([explain.read_trained(FP32), explain.read_trained(W2A2)], pixels, "gradient",
                                    "straight_through")  # fmt: skip
    return pixels, maps, record


# ---- what is in the JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "surrogate", "target"),
    [
        ("gradient", "straight_through", None),
        ("gradient", "unclipped", None),
        ("smoothgrad", "straight_through", None),
        ("grad_cam", "straight_through", "Bag"),
    ],
)
def test_the_numbers_are_those_computed_directly(method, surrogate, target, tmp_path, monkeypatch, capsys):
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    every = [picture(path, seed) for seed, path in enumerate(paths)]
    options = [
        "--method",
        method,
        "--surrogate",
        surrogate,
        "--compare",
        "w2a2",
        *(["--target", target] * bool(target)),
    ]
    code, lines, _ = run_main(monkeypatch, capsys, FP32, *paths, *options, "--output", tmp_path / "out")
    assert (code, len(lines)) == (0, 3)
    for path, pixels, line in zip(paths, every, lines, strict=True):
        record = json.loads((tmp_path / f"out/{path.stem}_explained.json").read_text())
        image, first = to_float(torch.from_numpy(pixels)[None]), None
        for folder, entry in zip((FP32, W2A2), record["models"], strict=True):
            model = load_model(folder)
            probabilities = predict(model, image)[0].double().softmax(dim=0)
            predicted = int(probabilities.argmax())
            number = predicted if target is None else CLASSES.index(target)
            saliency = saliency_map(model, image, torch.tensor([number]), method, surrogate)
            first = saliency if first is None else first
            assert entry["run"] == run_of(folder).id
            assert entry["prediction"] == {"class": predicted, "name": CLASSES[predicted]}
            assert entry["explained"] == {"class": number, "name": CLASSES[number]}
            assert entry["probabilities"] == probabilities.tolist()
            assert entry["confidence"] == max(entry["probabilities"])
            assert entry["map"] == {
                "dead": False,
                "gini": float(clarity.gini(saliency)),
                "entropy": float(clarity.entropy(saliency)),
                "total_variation": float(clarity.total_variation(saliency)),
                "foreground_lift": float(clarity.foreground_lift(saliency, image)),
            }
            if folder == W2A2:
                assert entry["agreement"] == {
                    "with": record["run"],
                    "same_class": entry["explained"] == record["models"][0]["explained"],
                    "spearman": float(likeness.spearman(first, saliency)),
                    "ssim": float(likeness.ssim(first, saliency)),
                    "top_iou": float(likeness.top_iou(first, saliency)),
                }
            assert f"{predicted}, {CLASSES[predicted]} ({entry['confidence']:.1%})" in line


def test_the_record_says_where_everything_comes_from(tmp_path):
    path = tmp_path / "shoe.png"
    picture(path)
    ((record, _),) = explain.explain_files(W2A2, [path], compared=["fp32"], invert=True)
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (W2A2 / "packed.safetensors", path)]
    assert record["models"][0]["file"] == {
        "path": "reports/reference/runs/fashion_mnist/lenet/w2a2/standard/seed0/packed.safetensors",
        "sha256": sums[0],
    }
    assert record["models"][1]["file"]["path"].endswith("fp32/standard/seed0/model.safetensors")
    assert record["image"] == {"file": str(path), "sha256": sums[1], "inverted": True, "notes": []}
    assert record["run"] == "fashion_mnist/lenet/w2a2/standard/seed0"
    assert record["compared_with"] == ["fashion_mnist/lenet/fp32/standard/seed0"]
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]


def test_what_is_said_about_an_image_does_not_depend_on_the_others(tmp_path):
    paths = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(paths):
        picture(path, seed)
    both = explain.explain_files(W2A2, paths, method="smoothgrad")
    assert both[1] == explain.explain_files(W2A2, paths[1:], method="smoothgrad")[0]


def test_a_dead_map_is_named_and_has_no_measures():
    trained = explain.read_trained(W2A2)
    for clip in trained.model.clips().values():
        clip.alpha.data.fill_(1e-6)  # every unit sits above its clip: no gradient passes
    pixels = np.full((28, 28), 200, np.uint8)
    maps, (entry, again) = explain.explain_image([trained, trained], pixels, "gradient", "straight_through")
    assert entry["map"]["dead"] is True
    assert np.isnan([entry["map"]["gini"], entry["map"]["foreground_lift"], again["agreement"]["spearman"]]).all()
    record = {"models": [entry, again], "classes": CLASSES, "method": "gradient", "surrogate": "straight_through"}
    record |= {"image": {"file": "bag.png"}, "target": None}
    assert "is dead" in explain.panel_in_words(record)
    assert "dead map" in [text.get_text() for text in texts(explain.draw(pixels, maps, trained.run, record))]


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("9", 9), ("Sneaker", 7), ("ankle BOOT", 9)])
def test_a_class_is_named_or_numbered(text, number):
    assert explain.class_number(text, CLASSES) == number


@pytest.mark.parametrize("text", ["10", "-1", "07", "", "1.0"])
def test_an_unknown_class_is_refused(text):
    with pytest.raises(SqlibError, match="expected 0 to 9"):
        explain.class_number(text, CLASSES)


# ---- the files -----------------------------------------------------------------------------------------------------


def test_images_of_one_name_get_files_of_their_own_and_no_file_is_lost(tmp_path, monkeypatch, capsys):
    images = [tmp_path / "a/7.png", tmp_path / "b/7.png", tmp_path / "c/7.PNG"]
    for seed, path in enumerate(images):
        picture(path, seed)
    out = tmp_path / "out"
    out.mkdir()
    (out / "7_explained_2.png").write_text("the user's own")
    for _ in range(2):  # the same command again: its own files again, and no more of them
        assert run_main(monkeypatch, capsys, FP32, *images, "--output", out)[0] == 0
        found = {name: record["image"]["file"] for name, record in answers(out).items()}
        names = ("7_explained.json", "7_explained_3.json", "7_explained_4.json")
        assert found == dict(zip(names, map(str, images), strict=True))
        assert all((out / record["panel"]).stat().st_size > 10_000 for record in answers(out).values())
    for more in ([images[1]], [images[0], "--method", "grad_cam"], [images[0], "--compare", "w2a2"]):
        assert run_main(monkeypatch, capsys, FP32, *more, "--output", out)[0] == 0
    assert len(answers(out)) == 5  # image b alone is the same question as before, the other two are new ones
    assert (out / "7_explained_2.png").read_text() == "the user's own"


def test_names_that_differ_in_case_alone_or_are_very_long_have_room(explained, tmp_path):
    def name(file, taken):
        return explain.free_name(tmp_path, {**explained[2], "image": {**explained[2]["image"], "file": file}}, taken)

    assert name("x/Seven.png", {"seven_explained"}) == "Seven_explained_2"
    assert len(name("字" * 300, set()).encode()) < 215


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "7.png")
    (tmp_path / "file").write_text("")
    code, out, err = run_main(monkeypatch, capsys, FP32, tmp_path / "7.png", "--output", tmp_path / "file")
    assert (code, out, len(err)) == (2, [], 1)
    assert "cannot write" in err[0]


def test_what_was_done_to_an_image_is_said(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "large.png", size=56)
    code, out, err = run_main(monkeypatch, capsys, FP32, tmp_path / "large.png", "--output", tmp_path)
    assert (code, len(out), len(err)) == (0, 1, 1)
    assert "resized from 56 x 56" in err[0]
    assert answers(tmp_path)["large_explained.json"]["image"]["notes"] == err


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "good.png"], ["nowhere", "no such folder"]),
        ([RUNS / "fashion_mnist", "good.png"], ["no result.json", "<setup>/<training>"]),
        ([FP32.parent / "seed1", "good.png"], ["neither model.safetensors nor packed.safetensors"]),
        ([FP32, "good.png", "--method", "gradeint"], ["unknown saliency method", "'gradient'"]),
        ([FP32, "good.png", "--method", "deep_lift"], ["PACT"]),
        ([FP32, "good.png", "--surrogate", "straight"], ["unknown surrogate", "'straight_through'"]),
        ([FP32, "good.png", "--target", "Sneeker"], ["unknown class 'Sneeker'", "'Sneaker'"]),
        ([FP32, "good.png", "--compare", "w2a3"], ["no finished run of this setup", "w2a2"]),
        ([FP32, "good.png", "--compare", ".."], ["no finished run of this setup"]),
        ([FP32, "good.png", "--compare", "w2a2", "--compare", "fp32"], ["the run itself"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "good.png")
    before = sorted(tmp_path.iterdir())
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert (code, out, len(err)) == (2, [], 1), err
    assert all(word in err[0] for word in words), err
    assert sorted(tmp_path.iterdir()) == before


def test_images_behind_a_bad_one_are_explained_and_the_exit_code_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "good.png")
    picture(tmp_path / "again.png", 1)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (28, 28), 255).save(tmp_path / "blank.png")
    bad = {"gone.png": "no such file", "cut.png": "damaged image", "text.png": "not an image", "blank.png": "blank"}
    code, out, err = run_main(monkeypatch, capsys, FP32, "gone.png", "good.png", *list(bad)[1:], "again.png")
    assert (code, len(out), len(err)) == (1, 2, 4)
    assert all(line.startswith(f"error: {name}: {words}") for line, (name, words) in zip(err, bad.items(), strict=True))
    assert sorted(answers(tmp_path)) == ["again_explained.json", "good_explained.json"]
    assert run_main(monkeypatch, capsys, FP32, "gone.png")[0] == 1


def test_the_record_says_whether_an_image_was_inverted(tmp_path):
    pixels = picture(tmp_path / "bright.png")
    Image.fromarray(255 - pixels).save(tmp_path / "dark.png")
    both = explain.explain_files(W2A2, [tmp_path / "bright.png", tmp_path / "dark.png"])
    assert [record["image"]["inverted"] for record, _ in both] == [False, True]
    assert both[0][0]["models"] == both[1][0]["models"]


def test_a_sibling_is_the_same_run_of_another_setup_and_nothing_else(tmp_path):
    run = run_of(FP32)
    own, other = (tmp_path / f"{setup}/standard/seed0" for setup in ("fp32", "w2a2"))
    shutil.copytree(FP32, own)
    with pytest.raises(SqlibError, match="there is none of any other setup"):
        explain.sibling(own, run, "w2a2")
    shutil.copytree(W2A2, other)
    assert explain.sibling(own, run, "w2a2") == other
    shutil.copy(FP32.parents[1] / "saliency_guided/seed0/result.json", other)
    with pytest.raises(SqlibError, match="holds run .*fp32/saliency_guided/seed0, expected .*w2a2/standard/seed0"):
        explain.sibling(own, run, "w2a2")


# ---- the panel -----------------------------------------------------------------------------------------------------


def texts(figure):
    """The words that can be seen in a figure."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_no_words_of_the_panel_overlap_or_leave_it(count, explained):
    pixels, maps, record = explained
    first, other = record["models"]
    models = [first] + [copy.deepcopy(other) for _ in range(count - 1)]
    for entry, setup in zip(models[1:], ("w2a2", "w4a4", "mixed", "a_setup_with_a_long_name", "w8a8", "w3a3", "w4a2")):
        entry["setup"], entry["agreement"]["same_class"] = setup, False
        entry["prediction"], entry["confidence"] = {"class": 0, "name": "T-shirt/top"}, 1.0
    record = {
        **record,
        "models": models,
        "image": {**record["image"], "file": "x/a$b_{ " + "a long name " * 9 + ".png"},
    }
    figure = explain.draw(pixels, torch.cat([maps[:1], maps[1:].expand(count - 1, 28, 28)]), run_of(FP32), record)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(boxes) > 10 + 4 * count
    for i, (words, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0, words
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, words
        for others, other_box in boxes[:i]:
            assert not box.overlaps(other_box), (words, others)


def test_the_panel_is_a_picture_with_its_words_inside(explained, tmp_path):
    pixels, maps, record = explained
    panel = explain.png(explain.draw(pixels, maps, run_of(FP32), record), "title", explain.panel_in_words(record))
    (tmp_path / "panel.png").write_bytes(panel)
    with Image.open(tmp_path / "panel.png") as image:
        assert image.format == "PNG" and image.width > 800
        assert image.text["Description"].startswith("Setup fp32 predicts ")


def test_the_map_is_drawn_with_its_signs(explained):
    pixels, maps, record = explained
    figure = explain.draw(pixels, maps, run_of(FP32), record)
    drawn = [axis.images[0] for axis in figure.axes if axis.images and axis.images[0].get_array().shape == (28, 28)]
    assert np.array_equal(drawn[0].get_array(), pixels)
    for image, saliency in zip(drawn[1:], maps.double(), strict=True):
        assert np.allclose(image.get_array(), saliency / saliency.abs().sum())
        assert image.norm.vmin == -image.norm.vmax
        assert image.cmap(0.5)[:3] == pytest.approx([0.97] * 3, abs=0.01)  # zero is white
