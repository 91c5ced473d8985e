"""Tests of sqlib.report.quality_table on planted values: means, intervals, ceilings, dead maps and missing runs."""

import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from sqlib import files
from sqlib.measures import MEASURES
from sqlib.places import REPOSITORY
from sqlib.report import quality_table
from sqlib.study.parameters import Quality, load_study

GINI = MEASURES["gini"]
STUDY = load_study("smoke").model_copy(
    update={"seeds": [0, 1, 2], "quality": Quality(images=10, setups=["fp32", "w2a2"])}
)


@pytest.fixture
def reports(tmp_path):
    """MNIST, standard training: the Gini index is 0.6 + seed / 100 in float and 0.1 less at 2 bits; one map is dead."""
    for run in STUDY.quality_runs():
        if run.dataset == "mnist" and run.training == "standard":
            gini = np.full(10, 0.6 + run.seed / 100 - 0.1 * (run.setup.name == "w2a2"), np.float32)
            gini[4] = math.nan
            tensors = {"gradient/straight_through/gini": gini}
            others = [0] if run.setup.name == "w2a2" else range(run.seed + 1, 3)
            for other in others:
                level = 0.5 if run.setup.name == "w2a2" else 0.8
                name = f"agreement/mnist/lenet/fp32/standard/seed{other}/straight_through/spearman"
                tensors[name] = np.full(10, level, np.float32)
            folder = run.folder(tmp_path)
            folder.mkdir(parents=True)
            save_file(tensors, folder / "quality.safetensors")
            sane = {"spearman": {"mean": 0.9, "n": 9}, "spearman_foreground": {"mean": 0.1, "n": 9}}
            sane |= {"flagged": True, "flagged_foreground": False}
            content = {"methods": {"gradient": {"straight_through": {"sanity": sane}}}}
            (folder / "quality.json").write_bytes(files.to_json(content))
    return tmp_path


def test_a_cell_is_the_mean_over_seeds_and_living_maps_with_its_interval(reports):
    values = quality_table.QualityValues(STUDY, reports)
    shown, long = quality_table.family(values, [GINI])
    assert list(shown["setup"]) == ["fp32", "w2a2"]  # runs that are not measured have no line
    assert list(shown["n"]) == ["3 × 9", "3 × 9"]
    assert shown["Gini index ↑"][0].startswith("0.610 [0.5")
    row = long.iloc[1]
    assert row["mean"] == pytest.approx(0.51) and row["measure"] == "gradient/straight_through/gini"
    assert row["low"] < 0.51 < row["high"] and (row["n_seeds"], row["n_images"]) == (3, 9)


def test_the_ceiling_comes_from_the_pairs_of_float_networks(reports):
    values = quality_table.QualityValues(STUDY, reports)
    shown, long = quality_table.family(values, [MEASURES["spearman"]], "agreement")
    assert list(shown["setup"]) == ["fp32: the ceiling", "w2a2"]
    assert list(long["mean"]) == pytest.approx([0.8, 0.5])
    assert list(long["n_seeds"]) == [3, 3]  # three pairs of seeds; three quantised networks
    assert shown["Spearman ↑"][0] == "0.800 (0.800 to 0.800)"  # pairs share seeds: their range, no interval
    assert math.isnan(long["low"][0]) and not math.isnan(long["low"][1])


def test_n_counts_living_maps_seed_by_seed():
    nan = math.nan
    assert quality_table.counted([np.array([1, nan, nan]), np.array([nan, 1, 2])]) == "2 × 1 to 2"
    assert quality_table.counted([np.ones(1500), np.ones(1500)]) == "2 × 1,500"
    assert quality_table.counted([]) == "–"


def test_one_nearly_dead_map_does_not_make_the_sensitivity_of_all(reports):
    values = quality_table.QualityValues(STUDY, reports)
    run = values.measured()[0]
    values.tensors(run)["gradient/straight_through/sensitivity"] = np.array([0.5, 764.0, math.nan], np.float32)
    (row,) = values.rows([run], "gradient/straight_through/sensitivity")
    assert row[:2].tolist() == [0.5, 2.0] and math.isnan(row[2])


def test_published_models_can_be_measured_on_the_spot_and_nothing_is_written():
    reference = REPOSITORY / "reports/reference"
    study = load_study("paper")
    before = sorted(reference.rglob("*"))
    values = quality_table.QualityValues(study, reference)
    run = study.run("fashion_mnist/lenet/w2a2/standard/seed0")
    assert not values.tensors(run)
    values.measure(run, 12)
    assert values.tensors(run)["gradient/straight_through/gini"].shape == (12,)
    assert values.interval([run], "gradient/straight_through/gini").n_images == 12
    assert 0 < values.agreement([run], "spearman").effect < 1
    assert set(values.summary(run)["methods"]) == {"gradient"}
    assert sorted(reference.rglob("*")) == before


def test_nothing_measured_is_an_empty_table_and_not_an_error(tmp_path):
    values = quality_table.QualityValues(STUDY, tmp_path)
    assert values.measured() == [] and len(quality_table.family(values, [GINI])[0]) == 0


def test_cells_of_what_is_not_known():
    one = quality_table._interval([np.array([0.25, 0.75])])
    assert quality_table.cell(one) == "0.500"  # one seed has no interval
    assert quality_table.cell(quality_table._interval([])) == "–"
    below = quality_table._interval([np.full(5, -0.5), np.full(5, -0.5)])
    assert quality_table.cell(below, 2) == "−0.50 [−0.50, −0.50]"


def test_flags_are_told_run_by_run(reports):
    flags = quality_table.flagged(quality_table.QualityValues(STUDY, reports))
    assert len(flags) == 6 and flags["flagged"].all() and not flags["flagged_foreground"].any()
