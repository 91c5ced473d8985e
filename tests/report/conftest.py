"""What the tests of reports share: a study, and the numbers of its runs."""

import pandas as pd
import pytest

from sqlib.report.sections import Report
from sqlib.study.parameters import load_study


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


@pytest.fixture
def report(tmp_path, study, runs):
    """The report of two setups and trainings with two seeds on MNIST; seed 1 is not the study's."""
    made = Report.__new__(Report)
    made.kept, made.folder, made.study, made.reference = True, tmp_path, study, "fp32"
    made.planned, made.runs, made.missing, made.listed = (
        study.runs(),
        runs.assign(weight_bytes=[4] * 4 + [1] * 4),
        [],
        [],
    )
    return made
