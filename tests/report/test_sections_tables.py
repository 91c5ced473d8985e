"""What the tables' page says: the ends of a study, the dearest setup, the ceiling, what bits save and guidance takes."""

import pandas as pd
import pytest

from sqlib.report.sections import tables


def test_from_the_reference_to_the_fewest_bits(report):
    report.runs["faithfulness_gap"] = report.runs["random_auc"] - report.runs["deletion_auc"]
    assert tables.from_to(report) == pytest.approx((0.9905, 0.9705, 0.2, 0.2))
    report.runs = report.runs[report.runs["setup"] == "w2a2"]
    assert tables.from_to(report) is None


def test_the_lowest_accuracy_and_what_training_with_the_bits_is_worth(report):
    first, second = tables.lowest_accuracy(report)
    assert first == ("standard", "w2a2", "lower by 2.00 points (in all 2 seeds)") and second[0] == "saliency-guided"
    assert tables.worth_of_training(report) == []
    afterwards = report.runs["test_accuracy"].where(report.runs["setup"] == "w2a2") - 0.05
    report.runs["post_training_accuracy"] = afterwards
    (_, gain), _ = tables.worth_of_training(report)
    assert gain.to_dict() == {"w2a2": pytest.approx(5)}
    report.runs = report.runs[report.runs["setup"] == "fp32"]
    assert tables.lowest_accuracy(report) == []


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"fp32": 0.7, "w2a2": 0.5}, "w2a2 0.50; the ceiling is 0.70"),
        ({"fp32": float("nan"), "w2a2": 0.5}, "w2a2 0.50"),
        ({"fp32": 0.7}, None),
    ],
)
def test_agreement_is_told_with_its_ceiling_where_there_is_one(report, known, words):
    place = report.at("mnist", "lenet")
    rows = [
        {
            "dataset": d,
            "network": "lenet",
            "setup": s,
            "training": "standard",
            "measure": "agreement/spearman",
            "mean": v,
        }
        for d in ("mnist", "fashion_mnist")
        for s, v in known.items()
    ]
    assert tables.agreement(place, pd.DataFrame(rows)) == ([("standard", words)] if words else [])


def test_flags_are_counted_row_by_row():
    shown = pd.DataFrame({"dataset": ["MNIST"] * 2, "setup": ["w2a2", "fp32"], "training": ["saliency-guided"] * 2})
    flags = pd.DataFrame({"dataset": "mnist", "setup": ["fp32", "fp32", "w2a2"], "training": "saliency_guided",
                          "flagged": [True, True, False], "flagged_foreground": [True, False, False]})  # fmt: skip
    assert tables._flagged_of(shown, flags) == ["0 / 0 of 1", "2 / 1 of 2"]


def test_cost_is_a_row_a_setup_with_units(report):
    half = [4.0] * 4 + [2.0] * 4
    report.runs = report.runs.assign(
        float_weight_bytes=4000, weight_bytes=[4000] * 4 + [1000] * 4, macs=2e6, bit_operations=half,
        peak_activation_bytes=500, train_seconds=[10, 12, 40, 36] * 2,
    )  # fmt: skip
    shown, formats, long = tables.cost(report)
    assert shown.columns[0] == "setup" and "packed file, kB" not in shown and list(formats) == list(shown.columns[1:])
    two = shown.iloc[1]
    assert (two["weights, kB"], two["times smaller than float"], two["MACs, M"]) == (1.0, 4.0, 2.0)
    assert two["training s, MNIST standard"] == 11 and two["training s, MNIST guided"] == 38
    assert pd.isna(two["training s, Fashion-MNIST standard"]) and formats["training s, MNIST guided"] == "{:,.0f}"
    assert tables.fewer_operations(long.iloc[1], long, "fp32") == 2
    assert tables.fewer_operations(long.iloc[1], long[1:], "fp32") is None
    assert tables.guided_seconds(report.runs).tolist() == [4, 3, 4, 3]
    assert len(tables.guided_seconds(report.runs[report.runs["training"] == "standard"])) == 0
