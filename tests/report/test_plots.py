"""Figures draw what they are given; what they are made of (pairs, words, missing runs) is worked out by hand."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from sqlib.checked import SqlibError
from sqlib.report import plots
from sqlib.study.parameters import load_study

CLASSES = [str(c) for c in range(10)]


@pytest.fixture
def study():
    return load_study("smoke")


@pytest.fixture
def runs():
    """Two seeds of two setups and two trainings on one data set; numbers that are easy to subtract."""
    rows = []
    for setup, accuracy in (("fp32", 0.99), ("w2a2", 0.97)):
        for training, gini in (("standard", 0.6), ("saliency_guided", 0.7)):
            for seed in (0, 1):
                rows.append(
                    {
                        "dataset": "mnist", "network": "lenet", "setup": setup, "training": training, "seed": seed,
                        "test_accuracy": accuracy + 0.001 * seed, "gini": gini - 0.1 * (setup == "w2a2") * (1 + seed),
                        "dead_map_rate": 0.0, "deletion_auc": 0.3, "random_auc": 0.5,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def texts(figure: Figure) -> str:
    figure.savefig(io.BytesIO(), format="png", dpi=40)  # draws everything, so that a fault comes up here
    found = [t.get_text() for t in figure.findobj(Text)]
    return "\n".join(found)


def test_a_setup_looks_the_same_in_every_figure():
    assert (
        plots.setup_style(["w2a2", "fp32"])["fp32"]
        == plots.setup_style(["fp32", "own"])["fp32"]
        == plots.SETUP_STYLE["fp32"]
    )
    assert plots.setup_style(["own"])["own"] == plots.setup_style(["fp32", "own"])["own"]
    many = [*plots.SETUP_STYLE, *(f"own{i}" for i in range(30))]
    styles = plots.setup_style(many)
    assert list(styles) == many and len(set(styles.values())) == len(many)


def test_setups_of_a_study_have_styles(study):
    assert list(plots.setup_style(study.setups)) == [setup.name for setup in study.setups]


@pytest.mark.parametrize("colour", [style.colour for style in plots.SETUP_STYLE.values()])
def test_words_in_a_setups_colour_can_be_read(colour):
    rgb = np.array(plots.readable(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5


def test_map_grid_draws_image_maps_notes_and_dead_maps():
    maps = torch.rand(2, 3, 28, 28) - 0.5
    maps[1, 2] = 0
    images = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    figure = plots.map_grid(
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
        figure = plots.map_grid(torch.rand(1, 28, 28), maps, ["0"], ["a", "b"], scale=scale)
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
        plots.map_grid(torch.rand(1, 28, 28), torch.rand(1, 2, 28, 28), ["0"], ["a"])
    with pytest.raises(ValueError, match="scale = 'rows'"):
        plots.map_grid(torch.rand(1, 28, 28), torch.rand(1, 1, 28, 28), ["0"], ["a"], scale="rows")


def test_film_strip_keeps_first_and_last_epoch():
    strips = [torch.rand(3, 28, 28) for _ in range(40)]
    words = texts(plots.film_strip(strips, torch.rand(3, 1, 28, 28), ["a", "b", "c"], most=5)).splitlines()
    assert "epoch 1" in words and "epoch 40" in words and sum(word.startswith("epoch") for word in words) == 5
    assert len(plots.film_strip([], torch.rand(3, 28, 28)).axes[0].images) == 3


def test_pictures_stand_upright_in_squares_of_their_own_with_their_outlines():
    images = torch.zeros(2, 28, 28)
    images[:, 3:9, 14:24] = 1.0  # above, to the right of the middle
    maps = images[:, None].repeat(1, 2, 1, 1)
    for figure in (plots.map_grid(images, maps, ["0", "1"], ["a", "b"]), plots.film_strip([images, images], images)):
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
    assert "validation 91.0%" in texts(plots.training_curves(history, epochs=30))
    assert "fc1  3.25" in texts(plots.clip_paths(history, start=10.0, epochs=30))


def test_figures_of_a_run_without_clips_and_before_the_first_epoch():
    assert "nothing is clipped" in texts(plots.clip_paths([entry(1)]))
    assert texts(plots.training_curves([], epochs=3)) and texts(plots.clip_paths([], epochs=3))


def test_figures_of_a_study_draw_every_setup(runs):
    for figure in (plots.accuracy_against(runs), plots.by_setup(runs), plots.by_setup(runs, "gini")):
        words = texts(figure)
        assert "fp32" in words and "w2a2" in words and "saliency-guided" in words
    two = pd.concat([runs, runs.assign(dataset="fashion_mnist", setup="own")])
    assert "Fashion" in texts(plots.accuracy_against(two, "dead_map_rate"))
    assert texts(plots.by_setup(runs[runs["seed"] == 0]))


def test_deletion_curves_say_where_a_run_is_missing():
    curve = {"fractions": [0, 0.5, 0.9], "deletion": [1, 0.4, 0.1], "random": [1, 0.9, 0.3]}
    results = [{"setup": s, "training": t, **curve} for s, t in (("fp32", "standard"), ("own", "saliency_guided"))]
    assert texts(plots.deletion_curves(results)).count("no run") == 2
    assert "no run" not in texts(plots.deletion_curves([results[0], results[0]]))


def test_agreement_with_and_without_a_ceiling():
    rows = [
        {"setup": s, "training": "standard", "seed": 0, "spearman": 0.5, "ssim": np.nan, "top_iou": 0.2} for s in "ab"
    ]
    assert "ceiling" not in texts(plots.agreement(pd.DataFrame(rows)))
    assert "ceiling" in texts(plots.agreement(pd.DataFrame(rows), {("standard", "spearman"): 0.6}))


def test_prediction_bars_and_methods():
    bars = plots.prediction_bars({"fp32": torch.eye(10)[3], "w2a2": torch.full((10,), 0.1)}, CLASSES, truth=3)
    assert "100%" in texts(bars) and len(bars.axes) == 2
    assert texts(plots.prediction_bars(np.eye(10)[9], CLASSES))
    maps = {"gradient": torch.rand(2, 28, 28), "grad_cam": torch.zeros(2, 28, 28)}
    assert "Grad-CAM" in texts(plots.saliency_methods(torch.rand(2, 28, 28), maps, ["1", "2"]))


def test_paired_differences(runs):
    assert plots.paired(runs, "gini", "w2a2", "standard", "fp32") == pytest.approx([-0.1, -0.2])
    guided = plots.paired(runs, "gini", "fp32", "saliency_guided", "fp32", "standard")
    assert guided == pytest.approx([0.1, 0.1])
    without = runs.drop(runs[(runs["setup"] == "fp32") & (runs["seed"] == 0)].index)
    assert plots.paired(without, "gini", "w2a2", "standard", "fp32") == pytest.approx([-0.2])
    assert len(plots.paired(runs, "gini", "absent", "standard", "fp32")) == 0


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([-0.1, -0.2], "lower by 0.15 (in all 2 seeds)"),
        ([0.3, -0.1], "higher by 0.10 (in 1 of 2 seeds)"),
        ([0.25], "higher by 0.25 (one seed)"),
        ([0.001, -0.002], "the same within 0.01"),
        ([0.001], "the same within 0.01 (one seed)"),
        ([], "not known (runs are missing)"),
    ],
)
def test_differences_in_words(differences, words):
    assert plots.in_words(differences) == words


def test_summary_has_mean_spread_and_paired_difference(runs):
    shown, long = plots.summary(runs, ["test_accuracy", "gini"], "fp32")
    row = shown[(shown["setup"] == "w2a2") & (shown["training"] == "standard")].iloc[0]
    assert row["Gini ↑"] == "0.450 ± 0.071 (−0.150)" and row["n"] == 2
    assert shown.iloc[0]["test accuracy, % ↑"] == "99.05 ± 0.07" and "network" not in shown
    value = long[(long["setup"] == "w2a2") & (long["training"] == "standard") & (long["measure"] == "gini")].iloc[0]
    assert (value["mean"], value["difference"], value["paired"]) == (pytest.approx(0.45), pytest.approx(-0.15), 2)
    one, _ = plots.summary(runs[runs["seed"] == 0], ["gini"], "fp32")
    assert one.iloc[0]["Gini ↑"] == "0.600"


def test_reference_is_the_unquantised_setup(study):
    assert plots.reference_setup(study) == "fp32"
    backwards = study.model_copy(update={"setups": study.setups[::-1]})
    assert plots.reference_setup(backwards) == "fp32"
    assert plots.reference_setup(study.model_copy(update={"setups": study.setups[1:]})) == study.setups[1].name


def test_reports_are_found_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    with pytest.raises(SqlibError, match="make smoke"):
        plots.find_reports()
    for name in ("smoke", "reference"):
        run = tmp_path / name / "runs/mnist/lenet/fp32/standard/seed0"
        run.mkdir(parents=True)
        (run / "result.json").touch()
        assert plots.find_reports().name == name
    (tmp_path / "paper").mkdir()  # begun, without any result
    assert plots.find_reports().name == "reference"
    assert plots.find_reports(tmp_path / "smoke").name == "smoke"


def test_study_of_a_folder(tmp_path, study):
    assert plots.study_of(tmp_path / "reference").name == "paper"
    stamps = tmp_path / "renamed" / "stamps"
    stamps.mkdir(parents=True)
    (stamps / "index.json").write_text(json.dumps({"study": study.model_dump(mode="json")}))
    assert plots.study_of(tmp_path / "renamed") == study
    shutil.rmtree(stamps)
    with pytest.raises(SqlibError, match="no such file"):
        plots.study_of(tmp_path / "renamed")


def test_runs_known_only_from_the_table_are_used_and_named(tmp_path, study, runs):
    results = tmp_path / "results"
    results.mkdir()
    runs.iloc[::-1].assign(seed=lambda df: df["seed"]).to_csv(results / "runs.csv", index=False)
    rows, missing, listed = plots.runs_of(study, tmp_path)
    assert len(rows) == len(listed) == 4  # seed 1 is not in the study
    assert list(rows["setup"]) == ["fp32", "fp32", "w2a2", "w2a2"]
    assert list(rows["training"])[:2] == ["standard", "saliency_guided"]
    assert len(missing) == len(study.runs()) - 4 and "mnist/lenet/w4a4/standard/seed0" in missing


def test_the_frames_of_a_film_share_the_scales_of_the_whole_strip():
    images = torch.rand(3, 28, 28)
    strips = [torch.full((3, 28, 28), 1.0), torch.full((3, 28, 28), 4.0)]
    frames = plots.film_frames(strips, images, labels=["a", "b", "c"])
    assert len(frames) == 2 and frames[0].get_size_inches().tolist() == frames[1].get_size_inches().tolist()

    def tops(fig):
        return [image.norm.vmax for axis in fig.axes for image in axis.images if image.norm.vmax not in (None, 1.0)]

    assert tops(frames[0]) == tops(frames[1]) != tops(plots.film_strip(strips[:1], images))
