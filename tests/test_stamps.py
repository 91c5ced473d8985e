"""Stamps move only with content, and only those of what is affected."""

import pytest

from sqlib.config import load_study
from sqlib.stamps import write_stamps


@pytest.fixture(scope="module")
def study():
    return load_study("smoke")


def test_stamps_are_written_once(study, tmp_path):
    first = write_stamps(study, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first}
    assert len([path for path in first if path.name == "parameters.json"]) == len(study.runs())
    names = {path.stem for path in first if path.parent.name == "stamps"}
    assert names == {
        "data_mnist", "data_fashion_mnist", "compare_mnist", "compare_fashion_mnist", "saliency", "tables", "claims", "index",
        "post_training", "deployed", "sweep_quick", "quality", "explanations_mnist", "explanations_fashion_mnist",
    }  # fmt: skip
    assert len([path for path in first if "sweeps" in path.parts]) == 3
    assert write_stamps(study, tmp_path) == []
    assert times == {path: path.stat().st_mtime_ns for path in first}


def test_a_changed_parameter_moves_exactly_the_runs_it_is_in(study, tmp_path):
    def with_epochs(**epochs):
        return study.model_copy(update={"training": study.training.model_copy(update={"epochs": epochs})})

    write_stamps(with_epochs(mnist=1, fashion_mnist=1), tmp_path)
    changed = write_stamps(with_epochs(mnist=1, fashion_mnist=2), tmp_path)
    moved = {path.relative_to(tmp_path / "runs").parts[0] for path in changed if path.name == "parameters.json"}
    assert moved == {"fashion_mnist"}


def test_a_new_seed_moves_no_run_that_is_there(study, tmp_path):
    before = set(write_stamps(study, tmp_path))
    changed = write_stamps(study.model_copy(update={"seeds": [0, 1]}), tmp_path)
    assert not {path for path in changed if path.name == "parameters.json"} & before
    assert {path.stem for path in changed if path in before} == {
        "compare_mnist", "compare_fashion_mnist", "explanations_mnist", "explanations_fashion_mnist", "tables", "claims", "index",
    }  # fmt: skip
