"""Stamps move only with content, and only those of what is affected."""

import functools
import shutil

import pytest

from sqlib.places import REPOSITORY
from sqlib.study import sources
from sqlib.study.parameters import load_study
from sqlib.workflow.stamps import write_stamps


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


PAGES = {"data_mnist", "data_fashion_mnist", "compare_mnist", "compare_fashion_mnist"}
EXPLAINED = {"explanations_mnist", "explanations_fashion_mnist"}


@pytest.mark.parametrize(
    ("file", "old", "new", "moved"),
    [
        ("README.md", "# ", "# Another ", set()),
        ("sqlib/quant/layers.py", "import ", "# a comment\nimport ", set()),
        ("sqlib/report/html.py", "PAGE_LIMIT = 600_000", "PAGE_LIMIT = 1", {"index"}),
        ("notebooks/3_saliency.ipynb", '"source": [', '"source": [\n    "# More\\n",', {"saliency"}),
        ("sqlib/study/claims.py", "alpha: float = 0.05", "alpha: float = 0.01", {"claims", "index"}),
        (
            "sqlib/report/figures/style.py",
            "WIDTH = 8.0",
            "WIDTH = 9.0",
            {*PAGES, *EXPLAINED, "saliency", "tables", "claims", "sweep_quick"},
        ),
        ("sqlib/training/loop.py", "import ", "ANOTHER = 1\nimport ", set()),
    ],
)
def test_a_changed_source_moves_exactly_what_is_made_of_it(study, tmp_path, monkeypatch, file, old, new, moved):
    repository = tmp_path / "repository"
    for folder in ("sqlib", "notebooks"):
        shutil.copytree(REPOSITORY / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "README.md", repository)
    monkeypatch.setattr(sources, "REPOSITORY", repository)
    for function in (sources.sources_of, sources._module, sources._definitions):
        monkeypatch.setattr(sources, function.__name__, functools.cache(function.__wrapped__))
    write_stamps(study, tmp_path / "reports")
    text = (repository / file).read_text()
    assert old in text
    (repository / file).write_text(text.replace(old, new, 1))
    for function in (sources.sources_of, sources._module, sources._definitions):
        function.cache_clear()
    changed = write_stamps(study, tmp_path / "reports")
    kinds = {"parameters.json": "train"}
    found = {"trial" if "sweeps" in path.parts else kinds.get(path.name, path.stem) for path in changed}
    assert found == moved
    assert len([path for path in changed if path.name == "parameters.json"]) in (0, len(study.runs()))
