"""What the comparison of setups says: whose maps are clearer, who keeps the order of pixels, which answers change."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from sqlib.report.sections import compare

FLOAT, TWO = ("fp32", "standard", 0), ("w2a2", "standard", 0)


@pytest.fixture
def nets(report):
    """Two networks and their answers on six images: the second one loses two and gains one."""
    found = compare.Networks.__new__(compare.Networks)
    found.report, found.models, found.labels = report, {FLOAT: None, TWO: None}, torch.tensor([0, 0, 1, 1, 2, 2])
    found.answers = {FLOAT: torch.tensor([0, 0, 1, 1, 2, 0]), TWO: torch.tensor([2, 0, 0, 1, 2, 2])}
    return found


def test_the_first_image_of_each_class_that_all_get_right(nets):
    assert nets.first_seed == [FLOAT, TWO]
    assert compare.right_under_all(nets, 3) == [1, 3, 4]
    nets.answers[TWO] = torch.zeros(6, dtype=torch.int64)
    assert compare.right_under_all(nets, 3) == [0]
    nets.models = {}
    assert compare.right_under_all(nets, 3) == []


def test_dead_maps_among_those_drawn_are_counted():
    maps = torch.rand(2, 3, 28, 28)
    assert compare.alive(maps) == "None of these maps is empty."
    maps[0, 1] = 0
    assert compare.alive(maps) == "1 of these maps are dead, zero everywhere."


def test_clarity_goes_from_the_reference_to_the_fewest_bits(report):
    clarity = {("fp32", "standard"): 0.6, ("w2a2", "standard"): 0.5, ("w2a2", "saliency_guided"): 0.7}
    assert compare.clarity_ends(clarity, report) == [("standard", 0.6, 0.5, "lower by 0.100")]
    report.reference = "w2a2"
    assert compare.clarity_ends(clarity, report) == []


@pytest.mark.parametrize(
    ("guided", "words"),
    [
        ({"fp32": 0.7, "w2a2": 0.8}, "fp32, w2a2"),
        ({"fp32": 0.5, "w2a2": 0.8}, "w2a2 and not for fp32"),
        ({"fp32": 0.5, "w2a2": 0.5}, "no setup and not for fp32, w2a2"),
        ({}, ""),
    ],
)
def test_guidance_makes_maps_sparser_or_not(guided, words):
    clarity = {(s, "standard"): 0.6 for s in ("fp32", "w2a2")} | {(s, "saliency_guided"): v for s, v in guided.items()}
    assert compare.guided_sparser(clarity, ["fp32", "w2a2"]) == words


def test_each_step_is_told_for_each_quantity(report):
    steps = compare.steps(report, "test_accuracy", "gini")
    assert steps[0] == ("from fp32 to w2a2, standard training", "lower by 2.00 points (in all 2 seeds)",
                        "lower by 0.150 (in all 2 seeds)")  # fmt: skip
    assert [step for step, *_ in steps[2:]] == [
        "from standard to saliency-guided training at fp32", "from standard to saliency-guided training at w2a2"
    ]  # fmt: skip
    assert steps[3][1:] == ("the same within 0.01 points", "higher by 0.100 (in all 2 seeds)")
    report.runs = report.runs[report.runs["training"] == "standard"]
    assert len(compare.steps(report, "gini")) == 1


def test_pairs_of_networks_are_compared_on_what_both_get_right(nets, monkeypatch):
    asked = []

    def alike(a, b, images, labels):
        asked.append(labels.tolist())
        return {name: torch.tensor([0.5, float("nan")]) for name in compare.AGREEMENT}

    monkeypatch.setattr(compare, "agreement", alike)
    nets.images, second = torch.zeros(6, 1), ("fp32", "standard", 1)
    nets.models[second], nets.answers[second] = None, nets.labels
    agreements, ceiling = compare.agreements(nets)
    assert agreements[["setup", "images", "spearman"]].values.tolist() == [["w2a2", 3, 0.5]]
    assert ceiling["seed"].tolist() == [0] and asked == [[0, 1, 2], [0, 0, 1, 1, 2]]
    nets.models = {TWO: None}
    assert all(len(frame) == 0 for frame in compare.agreements(nets))


@pytest.mark.parametrize(
    ("ceiling", "tail"),
    [
        ([], ""),
        ([0.6, 0.8], "; the ceiling is 0.70 (pairs of seeds: 2), and every seed of w2a2 is below every such pair"),
        ([0.2], "; the ceiling is 0.20 (pairs of seeds: 1), and no setup is below every such pair with every seed"),
    ],
)
def test_agreement_is_held_to_the_ceiling(ceiling, tail):
    rows = pd.DataFrame({"setup": ["w4a4", "w4a4", "w2a2"], "training": "saliency_guided", "spearman": [0.5, 0.7, 0.3]})
    pairs = pd.DataFrame({"training": ["saliency_guided"] * len(ceiling), "spearman": ceiling})
    assert compare.held_to_ceiling(rows, pairs) == [("saliency-guided", f"w4a4 0.60, w2a2 0.30{tail}")]


def test_a_map_that_knows_no_more_than_chance_is_named():
    gap = pd.Series({("standard", "fp32"): 0.1, ("saliency_guided", "w2a2"): 0.0})
    assert compare.useless(gap) == "No better than random order: w2a2 (saliency-guided)."
    assert compare.useless(gap[:1]).startswith("In every setup the salient order hurts more")


def test_answers_that_change_are_lost_gained_or_neither(nets):
    (row,) = compare.changes(nets).to_dict("records")
    assert [row[name] for name in compare.CHANGES] == pytest.approx([50, 100 / 3, 100 / 6])
    assert compare.lost(nets, [FLOAT, TWO]) == [0, 2] and compare.lost(nets, [FLOAT, TWO], most=1) == [0]
    assert compare.lost(nets, [TWO]) == [] and compare.lost(nets, [FLOAT]) == []
    nets.models, nets.report = {TWO: None}, SimpleNamespace(reference="fp32")
    del nets.answers[FLOAT]
    assert len(compare.changes(nets)) == 0
