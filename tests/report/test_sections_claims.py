"""What the page of claims says: p values, verdicts data set by data set, and what was not tested beside them."""

import pytest

from sqlib.report.sections import claims
from sqlib.study.claims import load_claims

NAN = float("nan")
ROW = {
    "id": "", "dataset": "mnist", "network": "lenet", "quantity": "", "verdict": "supported", "why": "so", "margin": 0.005,
    "effect": -0.01, "low": -0.02, "high": -0.005, "n_seeds": 3, "n_images": 100, "p_holm": 0.0001, "overall": "inconclusive",
}  # fmt: skip


@pytest.fixture
def claim():
    return next(claim for claim in load_claims().claims if claim.quantity == "test_accuracy")


@pytest.fixture
def rows(claim):
    """The claim's tests on two data sets: one with an interval, one of a single seed without runs."""
    other = {
        "dataset": "fashion_mnist",
        "verdict": "inconclusive",
        "effect": NAN,
        "low": NAN,
        "high": NAN,
        "p_holm": NAN,
    }
    mine = {**ROW, "id": claim.id, "quantity": claim.quantity}
    beside = [{"label": "another fill", "effect": 0.01, "low": NAN, "high": NAN, "n_seeds": 1, "n_images": 0}]
    return [{**mine, "beside": beside}, {**mine, **other}]


def test_the_table_has_marks_points_and_dashes(rows):
    first, second = claims.table(rows).to_dict("records")
    assert first["verdict"] == "■ supported" and second["verdict"] == "○ inconclusive"
    assert first["difference"] == "−1.00 points [−2.00, −0.50]" and second["difference"] == "–"
    assert (first["margin"], first["p, none"], second["p, none"], first["p, margin"]) == ("0.5", "< 0.001", "–", "–")
    assert claims.p_value(0.0321) == "0.032"


def test_a_claim_is_told_data_set_by_data_set(claim, rows):
    told = claims.told(claim, [*rows, {**ROW, "id": "another"}], 0.95, networks=1)
    assert [row["dataset"] for row in told.rows] == ["mnist", "fashion_mnist"]
    assert told.verdicts[0].startswith(
        "MNIST: −1.00 points, 95% interval −2.00 to −0.50 (3 seeds, 100 images). **Supported**: so."
    )
    assert "not known: no seed has all the runs" in told.verdicts[1] and told.overall.startswith(
        "inconclusive: the data sets differ"
    )
    assert told.beside == ["MNIST, another fill: +1.00 points, no interval (1 seed, one number a run)."]
    assert told.differences.endswith("; Fashion-MNIST: –, inconclusive")
    assert claims.told(claim, rows, 0.95, networks=2).verdicts[0].startswith("MNIST, lenet: ")
    assert claims.told(claim, [], 0.95, networks=1).rows == []


def test_caveats_of_verdicts(report):
    assert len(claims.caveats(report, computed=True, seeds=2)) == 1  # the small budget
    report.missing = ["a", "b"]
    recorded, missing, seed, _ = claims.caveats(report, computed=False, seeds=1)
    assert "results/claims.json" in recorded and "2 runs" in missing and "every verdict is inconclusive" in seed
