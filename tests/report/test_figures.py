"""Figures draw what they are given."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from sqlib.report import figures


def texts(figure: Figure) -> str:
    figure.savefig(io.BytesIO(), format="png", dpi=40)  # draws everything, so that a fault comes up here
    found = [t.get_text() for t in figure.findobj(Text)]
    return "\n".join(found)


def test_a_setup_looks_the_same_in_every_figure():
    assert (
        figures.setup_style(["w2a2", "fp32"])["fp32"]
        == figures.setup_style(["fp32", "own"])["fp32"]
        == figures.SETUP_STYLE["fp32"]
    )
    assert figures.setup_style(["own"])["own"] == figures.setup_style(["fp32", "own"])["own"]
    many = [*figures.SETUP_STYLE, *(f"own{i}" for i in range(30))]
    styles = figures.setup_style(many)
    assert list(styles) == many and len(set(styles.values())) == len(many)


def test_setups_of_a_study_have_styles(study):
    assert list(figures.setup_style(study.setups)) == [setup.name for setup in study.setups]


@pytest.mark.parametrize("colour", [style.colour for style in figures.SETUP_STYLE.values()])
def test_words_in_a_setups_colour_can_be_read(colour):
    rgb = np.array(figures.readable(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5


def test_map_grid_draws_image_maps_notes_and_dead_maps():
    maps = torch.rand(2, 3, 28, 28) - 0.5
    maps[1, 2] = 0
    images = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    figure = figures.map_grid(
        images, maps, ["shirt", "bag"], ["fp32", "w4a4", "fp32"], [("standard", 2), ("guided", 1)],
        notes=[["", "coat", ""], ["", "", ""]],
    )  # fmt: skip
    words = texts(figure)
    assert len(figure.axes[0].images) == 2 * 4
    assert words.count("dead") == 1 and "coat" in words and "guided" in words and "one scale a row" in words


def test_map_grid_shares_one_scale_in_a_row():
    maps = torch.zeros(1, 2, 28, 28)
    maps[0, 0, 14, 14] = 5.0
    maps[0, 1, 10:12, 10:12] = 1.0

    def ranges(scale):
        figure = figures.map_grid(torch.rand(1, 28, 28), maps, ["0"], ["a", "b"], scale=scale)
        _, *drawn = figure.axes[0].images
        return [image.get_clim() for image in drawn], drawn[0].get_array().max()

    (first, second), top = ranges("share")
    assert first == second and top == pytest.approx(1.0)  # all of the map's mass is in one pixel
    (first, second), top = ranges("row")
    assert first == second and top == 5.0
    (first, second), _ = ranges("map")
    assert (first[1], second[1]) == (5.0, 1.0)


def test_map_grid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="column labels"):
        figures.map_grid(torch.rand(1, 28, 28), torch.rand(1, 2, 28, 28), ["0"], ["a"])
    with pytest.raises(ValueError, match="scale = 'rows'"):
        figures.map_grid(torch.rand(1, 28, 28), torch.rand(1, 1, 28, 28), ["0"], ["a"], scale="rows")


def test_film_strip_keeps_first_and_last_epoch():
    strips = [torch.rand(3, 28, 28) for _ in range(40)]
    words = texts(figures.film_strip(strips, torch.rand(3, 1, 28, 28), ["a", "b", "c"], most=5)).splitlines()
    assert "epoch 1" in words and "epoch 40" in words and sum(word.startswith("epoch") for word in words) == 5
    assert len(figures.film_strip([], torch.rand(3, 28, 28)).axes[0].images) == 3


def test_pictures_stand_upright_in_squares_of_their_own_with_their_outlines():
    images = torch.zeros(2, 28, 28)
    images[:, 3:9, 14:24] = 1.0  # above, to the right of the middle
    maps = images[:, None].repeat(1, 2, 1, 1)
    for figure in (
        figures.map_grid(images, maps, ["0", "1"], ["a", "b"]),
        figures.film_strip([images, images], images),
    ):
        (axis,) = (axis for axis in figure.axes if len(axis.images) > 1)
        squares = [image.get_extent() for image in axis.images]
        assert len(squares) == 6 and all(image.origin == "upper" for image in axis.images)
        for i, (left, right, bottom, top) in enumerate(squares):
            assert right - left == pytest.approx(top - bottom)
            assert axis.get_xlim()[0] - 1e-9 <= left and right <= axis.get_xlim()[1] + 1e-9
            assert axis.get_ylim()[0] - 1e-9 <= bottom and top <= axis.get_ylim()[1] + 1e-9
            for other in squares[:i]:
                assert right < other[0] or other[1] < left or top < other[2] or other[3] < bottom
        outlines = [collection.get_paths()[0].get_extents() for collection in axis.collections]
        assert len(outlines) == 4  # of the maps alone
        mapped = [s for s, image in zip(squares, axis.images, strict=True) if image.get_cmap().name != "gray"]
        for (left, right, _, top), outline in zip(mapped, outlines, strict=True):
            pixel = (right - left) / 28
            assert outline.x0 == pytest.approx(left + 14 * pixel) and outline.x1 == pytest.approx(left + 24 * pixel)
            assert outline.y0 == pytest.approx(top - 9 * pixel) and outline.y1 == pytest.approx(top - 3 * pixel)


def entry(epoch, **clips):
    return {
        "epoch": epoch, "train_loss": 1 / epoch, "val_loss": 0.9 / epoch, "train_accuracy": 0.9, "val_accuracy": 0.91,
        "clips": clips,
    }  # fmt: skip


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_training_and_clips_are_labelled_with_their_last_value(epochs):
    history = [entry(epoch, conv1=2.0, fc1=3.25) for epoch in range(1, epochs + 1)]
    assert "validation 91.0%" in texts(figures.training_curves(history, epochs=30))
    assert "fc1  3.25" in texts(figures.clip_paths(history, start=10.0, epochs=30))


def test_figures_of_a_run_without_clips_and_before_the_first_epoch():
    assert "nothing is clipped" in texts(figures.clip_paths([entry(1)]))
    assert texts(figures.training_curves([], epochs=3)) and texts(figures.clip_paths([], epochs=3))


def test_figures_of_a_study_draw_every_setup(runs):
    for figure in (figures.accuracy_against(runs), figures.by_setup(runs), figures.by_setup(runs, "gini")):
        words = texts(figure)
        assert "fp32" in words and "w2a2" in words and "saliency-guided" in words
    two = pd.concat([runs, runs.assign(dataset="fashion_mnist", setup="own")])
    assert "Fashion" in texts(figures.accuracy_against(two, "dead_map_rate"))
    assert texts(figures.by_setup(runs[runs["seed"] == 0]))


def test_deletion_curves_say_where_a_run_is_missing():
    curve = {"fractions": [0, 0.5, 0.9], "deletion": [1, 0.4, 0.1], "random": [1, 0.9, 0.3]}
    results = [{"setup": s, "training": t, **curve} for s, t in (("fp32", "standard"), ("own", "saliency_guided"))]
    assert texts(figures.deletion_curves(results)).count("no run") == 2
    assert "no run" not in texts(figures.deletion_curves([results[0], results[0]]))


def test_agreement_with_and_without_a_ceiling():
    rows = [
        {"setup": s, "training": "standard", "seed": 0, "spearman": 0.5, "ssim": np.nan, "top_iou": 0.2} for s in "ab"
    ]
    assert "ceiling" not in texts(figures.agreement(pd.DataFrame(rows)))
    assert "ceiling" in texts(figures.agreement(pd.DataFrame(rows), {("standard", "spearman"): 0.6}))


def test_methods_are_columns_with_their_names():
    maps = {"gradient": torch.rand(2, 28, 28), "grad_cam": torch.zeros(2, 28, 28)}
    assert "Grad-CAM" in texts(figures.saliency_methods(torch.rand(2, 28, 28), maps, ["1", "2"]))


def test_the_frames_of_a_film_share_the_scales_of_the_whole_strip():
    images = torch.rand(3, 28, 28)
    strips = [torch.full((3, 28, 28), 1.0), torch.full((3, 28, 28), 4.0)]
    frames = figures.film_frames(strips, images, labels=["a", "b", "c"])
    assert len(frames) == 2 and frames[0].get_size_inches().tolist() == frames[1].get_size_inches().tolist()

    def tops(fig):
        return [image.norm.vmax for axis in fig.axes for image in axis.images if image.norm.vmax not in (None, 1.0)]

    assert tops(frames[0]) == tops(frames[1]) != tops(figures.film_strip(strips[:1], images))
