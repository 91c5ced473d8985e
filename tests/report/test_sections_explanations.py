"""What the page about explanations says, on planted measurements: fronts, verdicts, retraining, methods, classes, images."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sqlib.checked import SqlibError
from sqlib.files import to_json
from sqlib.report.quality_table import QualityValues
from sqlib.report.sections import explanations

NAN = float("nan")


def likeness(*values):
    """The depths of `quality.json` for a network of two layers."""
    return {"depths": [{"layer": f"l{i}", "spearman_foreground": {"mean": v}} for i, v in enumerate(values)]}


@pytest.fixture
def maps(report):
    """The measured maps of one seed of fp32 and w2a2: four images, two methods at w2a2, of which one also unclipped."""
    place = report.at("mnist", "lenet")
    made = explanations.Maps.__new__(explanations.Maps)
    values = QualityValues(report.study, report.folder)
    made.report, made.values, made.images = place, values, 4
    made.groups = {
        (run.setup.name, run.training): [run]
        for run in place.planned
        if run.setup.name in ("fp32", "w2a2") and run.training == "standard"
    }
    made.setups, made.trainings, made.training = ["fp32", "w2a2"], ["standard"], "standard"
    made.reference, made.fewest, made.ends = "fp32", "w2a2", ["fp32", "w2a2"]
    accuracy = {"fp32": 0.99, "w2a2": 0.97}
    made.metric = lambda run, name: accuracy[run.setup.name]
    for (setup, _), (run,) in made.groups.items():
        kinds = ["gradient/straight_through"] + ["gradient/unclipped", "occlusion/straight_through"] * (setup == "w2a2")
        tensors = {}
        for i, kind in enumerate(kinds):
            for name in explanations.QUALITIES:
                tensors[f"{kind}/{name}"] = (
                    np.array([0.4, 0.6, NAN, 0.5], np.float32) + 0.1 * (setup == "w2a2") + 0.2 * i
                )
            tensors[f"{kind}/dead"] = np.array([0, 0, 1, 0], np.float32)
        if setup == "w2a2":
            tensors["agreement/mnist/lenet/fp32/standard/seed0/straight_through/spearman"] = np.array(
                [0.9, 0.1, 0.5, NAN]
            )
        values._tensors[run.id] = tensors
        values._summaries[run.id] = {
            "methods": {"gradient": {"straight_through": {"sanity": likeness(0.5, -0.2)}},
                        "occlusion": {"straight_through": {"sanity": likeness(None, None)}}}
        }  # fmt: skip
    return made


def test_nothing_measured_is_an_error(report):
    place = report.at("mnist", "lenet")
    with pytest.raises(SqlibError, match="the maps of no run on mnist have been measured; see `quality:`"):
        explanations.Maps(place)


def test_the_front_holds_what_nothing_beats(maps):
    points = explanations.points(maps)
    assert points["gini"].tolist() == pytest.approx([0.5, 0.6]) and points["test_accuracy"].tolist() == [0.99, 0.97]
    fronts = explanations.fronts(points)
    assert fronts["gini"] == ["fp32 standard", "w2a2 standard"]  # one is clearer, the other more accurate
    assert fronts["sensitivity"] == ["fp32 standard"]  # there less is better, and it is more accurate, too


@pytest.mark.parametrize(
    ("low", "words"),
    [
        ([NAN, NAN], "One seed gives no interval"),
        ([0.1, 0.2], "Every gap is above 0"),
        ([0.1, -0.1], "1 of 2 gaps are not above 0 with their whole interval: w2a2 standard (deletion corner gap)."),
        ([-0.1] * 5 + [0.1], "5 of 6 gaps are not above 0 with their whole interval: fp32 3, w2a2 2."),
    ],
)
def test_the_verdict_about_gaps(low, words):
    setups = (["fp32", "w2a2"] * 3)[: len(low)]
    rows = {"setup": setups, "training": "standard", "measure": "gradient/x/deletion_corner_gap", "low": low}
    assert explanations.faithfulness_verdict(pd.DataFrame(rows)).startswith(words)


def roar_of(**gaps):
    explained = {
        s: {"setup": s, "training": "standard", "seed": 0, "accuracy": [[0.9, 0.5], [0.8, 0.5]], "gap": gap}
        for s, gap in gaps.items()
    }
    return {"fractions": [0.3, 0.9], "explained": explained, "random": [[0.8, 0.6]] * 2, "dataset": "mnist"}


def test_retraining_tells_faithful_maps_from_others(maps, tmp_path):
    assert explanations.read_roar(maps.report) is None
    roar = roar_of(fp32=[-0.02, -0.01], w2a2=[0.03, 0.01], w4a4=[-0.01, 0.01])
    (tmp_path / "results").mkdir()
    (tmp_path / "results/roar_mnist.json").write_bytes(to_json(roar))
    assert explanations.read_roar(maps.report) == roar
    table = explanations.roar_table(roar)
    assert table["30% removed"].tolist() == pytest.approx([85, 85, 85, 80])
    assert table["smallest and largest"][0] == "−2.0, −1.0" and table["gap, points ↑"][:3].tolist() == pytest.approx(
        [-1.5, 2, 0]
    )
    assert explanations.roar_sides(roar, table) == ("w2a2, standard, seed 0", "fp32, standard, seed 0")
    even = roar_of(fp32=[-0.01, 0.01])
    assert explanations.roar_sides(even, explanations.roar_table(even)) == ("none", "none")


def test_retraining_and_deletion_agree_or_not_or_cannot_be_compared(maps):
    def gaps(fp32, w2a2):
        rows = {"setup": ["fp32", "w2a2"], "training": "standard", "measure": "gradient/x/deletion_corner_gap"}
        return pd.DataFrame({**rows, "mean": [fp32, w2a2]})

    roar = roar_of(fp32=[-0.02], w2a2=[0.03])
    assert explanations.retraining_agrees(maps, roar, gaps(0.1, 0.2)) == ("+5.0", "+10.0", "agree in direction")
    assert explanations.retraining_agrees(maps, roar, gaps(0.2, 0.1))[1:] == ("−10.0", "**contradict each other**")
    assert explanations.retraining_agrees(maps, roar_of(fp32=[0.1]), gaps(0.1, 0.2)) is None
    maps.fewest = "fp32"
    assert explanations.retraining_agrees(maps, roar, gaps(0.1, 0.2)) is None


def flags_of(rows):
    columns = ["setup", "training", "method", "surrogate", "flagged", "flagged_foreground"]
    return pd.DataFrame(rows, columns=columns)


def test_methods_are_tabled_where_more_than_gradients_are_measured(maps):
    flags = flags_of(
        [
            ["w2a2", "standard", "gradient", "straight_through", True, False],
            ["w2a2", "standard", "occlusion", "straight_through", True, True],
        ]
    )
    tables, long = explanations.methods(maps, flags)
    (frame,) = tables.values()
    assert list(tables) == [("w2a2", "standard")] and "surrogate" not in frame
    assert frame["method"].tolist() == ["gradient", "gradient", "occlusion"]
    assert frame["flagged"].tolist() == ["1 / 0 of 1", "0 / 0 of 0", "1 / 1 of 1"] and frame["dead, %"][0] == "25.0"
    assert (
        frame.columns[3] == "Gini index ↑"
        and frame["Gini index ↑"].tolist() == ["0.60", "0.80", "1.00"]
        and frame["n"][0] == "1 × 3"
    )
    assert explanations.best_methods(maps, long) == [("w2a2", "occlusion", "occlusion", "gradient")]
    assert explanations.best_methods(maps, long[:0]) == [] and explanations.what_the_clip_hides(maps, long[:0]) == ""
    assert explanations.what_the_clip_hides(maps, long) == ""  # of the reference only gradients are measured
    more = long[(long["kind"] == "gradient/straight_through") & long["measure"].isin(["gini", "deletion_corner_gap"])]
    hidden = explanations.what_the_clip_hides(maps, pd.concat([long, more.assign(setup="fp32", mean=0.5)]))
    assert hidden.startswith(
        "Gini 0.500 at fp32, 0.600 at w2a2 with the straight-through surrogate, 0.800 unclipped; del"
    )
    assert explanations.flagged_by_method(flags, "flagged") == "gradient (1), occlusion (1)"
    assert explanations.flagged_by_method(flags[:1], "flagged_foreground") == "none"


def test_methods_that_are_not_told_apart_are_named():
    rows = [("gradient", 0.5, 0.4, 0.6), ("occlusion", 0.55, 0.45, 0.65), ("smoothgrad", 0.1, 0.0, 0.2)]
    frame = pd.DataFrame(
        [{"kind": f"{m}/straight_through", "measure": "gini", "mean": v, "low": a, "high": b} for m, v, a, b in rows]
    )
    assert explanations.best_method(frame, "gini") == "occlusion (not told apart from gradient)"
    assert explanations.best_method(frame, "gini", lower=True) == "SmoothGrad"
    assert explanations.best_method(frame.assign(mean=NAN), "gini") == "none"


def test_what_is_left_when_all_layers_are_random(maps):
    depths, layers = explanations.sanity_depths(maps)
    assert layers == ["l0", "l1"] and list(depths["w2a2"]) == ["gradient"]  # occlusion's maps are dead
    assert explanations.fully_random(depths) == [("fp32", "−0.20", "−0.20"), ("w2a2", "−0.20", "−0.20")]
    assert explanations.fully_random({"fp32": {}}) == []


def test_classes_and_images_by_how_much_their_maps_changed(maps):
    alike = pd.DataFrame(maps.values.agreements(maps.of("w2a2"), "spearman"), columns=range(4))
    frame = explanations.classes(maps, alike, ("a", "b", "c"), np.array([0, 0, 1, 1]))
    column = "agreement of w2a2 with fp32 ↑"
    assert frame[column].tolist()[:2] == pytest.approx([0.5, 0.5]) and pd.isna(frame[column][2])
    assert frame["n of agreement"].tolist() == [2, 1, 0] and frame["Gini, w2a2 ↑"].tolist()[:2] == pytest.approx(
        [0.6, 0.6]
    )
    ends = explanations.class_ends(frame.assign(**{column: [0.9, 0.1, 0.5]}), column)
    assert ends == ("*b* (0.10) and *c* (0.50)", "*a* (0.90) and *c* (0.50)")
    assert explanations.class_ends(frame.assign(**{column: NAN}), column) is None
    assert explanations.changed_images(maps, alike) == {"most": [1], "least": [0]}
    assert explanations.changed_images(maps, alike.mask(alike > 0.4)) == {}
    assert explanations.changed_images(SimpleNamespace(ends=["fp32"], of=None), alike) == {}
