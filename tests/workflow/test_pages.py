"""Every page of a study has its place and command; stamps move only with content, and only those of what is affected."""

import shutil

import pytest

from sqlib.places import REPOSITORY
from sqlib.study import sources
from sqlib.study.parameters import load_study
from sqlib.workflow import pages
from sqlib.workflow.commands import app, page_command
from sqlib.workflow.pages import KIND, Kind, jobs_of, pages_of, write_stamps


@pytest.fixture(scope="module")
def study():
    return load_study("smoke")


def test_every_job_has_its_own_place_and_command():
    study = load_study("smoke").model_copy(update={"networks": ["lenet", "sgt_cnn"], "seeds": [0, 1]})
    jobs, made = jobs_of(study), pages_of(study)
    for each in (jobs, made):
        assert len({job.command for job in each}) == len({job.log for job in each}) == len(each)
    assert len({page.html for page in made}) == len({page.notebook for page in made}) == len(made)
    outputs = [path for job in jobs for path in job.outputs]
    assert len(set(outputs)) == len(outputs)
    known = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    assert {job.command.split()[0] for job in jobs} <= known
    assert sum(page.kind.name == "saliency" for page in made) == 2 * 2 * 4 * 2


def test_a_page_more_is_a_row(study, tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    row = Kind(
        "mistakes", pages.datasets, "9_mistakes.ipynb", title="Mistakes: {}", help="Show them.", needs=pages.run_results
    )
    page, other = jobs_of(study, [row])
    assert (page.title, page.command, page.done) == (
        "Mistakes: MNIST",
        "mistakes smoke mnist",
        "made the page Mistakes: MNIST",
    )
    assert page.outputs == ["results/mistakes_mnist.json", "mistakes_mnist.html"] and page.html != other.html
    assert page.stamp == "stamps/mistakes_mnist.json" and page.stamped["inputs"] == page.needs
    assert page.needs == [f"runs/{run.id}/result.json" for run in study.runs() if run.dataset == "mnist"]
    made = []
    monkeypatch.setattr("sqlib.workflow.commands.make", made.append)
    monkeypatch.setitem(KIND, "mistakes", row)
    page_command(row)("smoke", "fashion_mnist")
    assert made == [other]


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


def forget():
    """Have digests computed anew, though the process is the same."""
    for function in (sources.sources_of, sources._module, sources._definitions):
        function.cache_clear()


PAGES = {"data_mnist", "data_fashion_mnist", "compare_mnist", "compare_fashion_mnist"}
EXPLAINED = {"explanations_mnist", "explanations_fashion_mnist"}


@pytest.mark.parametrize(
    ("file", "old", "new", "moved"),
    [
        ("README.md", "# ", "# Another ", set()),
        ("sqlib/quant/layers.py", "import ", "# a comment\nimport ", set()),
        ("sqlib/report/html.py", "PAGE_LIMIT = 600_000", "PAGE_LIMIT = 1", {"index"}),
        ("notebooks/3_saliency.ipynb", '"source": [', '"source": [\n    "# More\\n",', {"saliency"}),
        ("sqlib/study/claims.py", "alpha: float = 0.05", "alpha: float = 0.01", {"claims"}),
        (
            "sqlib/report/figures/style.py",
            "WIDTH = 8.0",
            "WIDTH = 9.0",
            {*PAGES, *EXPLAINED, "saliency", "tables", "claims", "sweep_quick"},
        ),
        ("sqlib/training/loop.py", "import ", "ANOTHER = 1\nimport ", set()),
    ],
)
def test_a_changed_source_moves_exactly_what_is_made_of_it(
    study, tmp_path, monkeypatch, request, file, old, new, moved
):
    repository = tmp_path / "repository"
    for folder in ("sqlib", "notebooks"):
        shutil.copytree(REPOSITORY / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "README.md", repository)
    monkeypatch.setattr(sources, "REPOSITORY", repository)
    forget()
    request.addfinalizer(forget)
    write_stamps(study, tmp_path / "reports")
    text = (repository / file).read_text()
    assert old in text
    (repository / file).write_text(text.replace(old, new, 1))
    forget()
    changed = write_stamps(study, tmp_path / "reports")
    kinds = {"parameters.json": "train"}
    found = {"trial" if "sweeps" in path.parts else kinds.get(path.name, path.stem) for path in changed}
    assert found == moved
    assert len([path for path in changed if path.name == "parameters.json"]) in (0, len(study.runs()))
