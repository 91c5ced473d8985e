"""What a result depends on: code that is reached by name counts, and how it is written, or where it stands, does not."""

import json
import shutil

import pytest

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.study import sources
from sqlib.workflow.pages import KINDS

LOOP = '''"""Doc."""
from sqlib import other
from sqlib.quant import bits as own_bits


def fit(x):
    """Doc."""
    return own_bits.levels(x) + other.STEP  # why


def measure(x):
    return x


load = measure
'''
BITS = "def levels(bits):\n    return 2**bits\n\n\ndef unused():\n    return 1\n"


TINY = {
    "train": ("2_train.ipynb", *(f"training.loop.{name}" for name in ("fit", "measure", "load"))),
    "page": ("2_train.ipynb",),
    "index": ("templates/",),
}
REAL = {kind.name: kind.sources for kind in KINDS}


def forget():
    for function in (sources.sources_of, sources._module, sources._definitions):
        function.cache_clear()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A tiny repository of three modules and one notebook in place of the real one."""
    (tmp_path / "sqlib/quant").mkdir(parents=True)
    (tmp_path / "sqlib/training").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "sqlib/training/loop.py").write_text(LOOP)
    (tmp_path / "sqlib/quant/bits.py").write_text(BITS)
    (tmp_path / "sqlib/other.py").write_text("STEP = 1\n")
    write_notebook(tmp_path, ["x = 1  # here"])
    monkeypatch.setattr(sources, "REPOSITORY", tmp_path)
    forget()
    yield tmp_path
    forget()


def write_notebook(repository, cells, **more):
    cells = [{"cell_type": "code", "source": source.splitlines(True), **more} for source in cells]
    (repository / "notebooks/2_train.ipynb").write_text(json.dumps({"cells": cells, "metadata": more}))


def now(kind="train", of=TINY):
    forget()
    return sources.sources_of(of[kind])


def test_comments_docstrings_and_formatting_change_no_digest(repository):
    before = now()
    loop = repository / "sqlib/training/loop.py"
    loop.write_text("# new\n" + LOOP.replace("def fit(x):", "def fit( x ):").replace("Doc.", "Another."))
    write_notebook(repository, ["x  =  1"], execution_count=3)
    assert now() == before


def test_a_definition_that_moves_changes_no_digest(repository):
    before = now()
    (repository / "sqlib/quant/bits.py").unlink()
    (repository / "sqlib/levels.py").write_text("def levels(bits):\n    return 2**bits\n")
    (repository / "sqlib/step.py").write_text("from sqlib.other import STEP as ONE_STEP\n")
    moved = LOOP.replace("from sqlib.quant import bits as own_bits", "from sqlib.levels import levels as of").replace(
        "own_bits.levels", "of"
    )
    (repository / "sqlib/training/loop.py").write_text(moved)
    assert now() == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("training/loop.py", "other.STEP", "2 * other.STEP"),
        ("training/loop.py", "def fit(x):", "def fit(x, y=None):"),
        ("quant/bits.py", "2**bits", "2**bits - 1"),
        ("other.py", "STEP = 1", "STEP = 2"),
    ],
)
def test_changed_code_that_is_reached_changes_the_digest(repository, file, old, new):
    before, path = now(), repository / "sqlib" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert now() != before


def test_changed_code_that_is_not_reached_changes_no_digest(repository):
    before, path = now(), repository / "sqlib/quant/bits.py"
    path.write_text(BITS.replace("return 1", "return 2"))
    assert now() == before


def test_a_changed_cell_changes_the_digest(repository):
    before = now()
    write_notebook(repository, ["x = 2"])
    assert now() != before
    write_notebook(repository, ["%matplotlib inline"])
    assert now() != before


def test_a_page_depends_on_what_its_notebook_imports(repository):
    write_notebook(repository, ["from sqlib.quant import bits", "bits.levels(2)"])
    before = now("page")
    (repository / "sqlib/quant/bits.py").write_text(BITS.replace("2**bits", "3**bits"))
    assert now("page") != before


def test_training_does_not_depend_on_how_pages_look(repository):
    before = now(), now("index")
    (repository / "sqlib/templates").mkdir()
    (repository / "sqlib/templates/style.css").write_text("p {}")
    assert now() == before[0]
    assert now("index") != before[1]


def test_a_root_that_is_not_there_is_named(repository):
    (repository / "sqlib/training/loop.py").write_text("def other():\n    pass\n")
    with pytest.raises(SqlibError, match="sqlib.training.loop has no 'fit'"):
        now()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The real package, to be edited."""
    for folder in ("sqlib", "notebooks"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "REPOSITORY", tmp_path)
    forget()
    yield tmp_path
    forget()


def test_runs_go_stale_with_what_decides_the_bits_of_a_layer(copied):
    before, path = {kind: now(kind, REAL) for kind in REAL}, copied / "sqlib/quant/bits.py"
    assert "[self.first] * (layer == names[0])" in path.read_text()
    path.write_text(
        path.read_text().replace("[self.first] * (layer == names[0])", "[self.first] * (layer == names[-1])")
    )
    changed = {kind for kind in before if now(kind, REAL) != before[kind]}
    assert {"train", "trial", "quality", "roar", "post_training", "deployed"} <= changed


def test_no_result_goes_stale_when_a_module_moves(copied):
    before = {kind: now(kind, REAL) for kind in REAL}
    (copied / "sqlib/quant/weights.py").rename(copied / "sqlib/quant/rounding.py")
    for path in [*copied.rglob("*.py"), *copied.rglob("*.ipynb")]:
        path.write_text(path.read_text().replace("sqlib.quant.weights", "sqlib.quant.rounding"))
    assert {kind: now(kind, REAL) for kind in REAL} == before


def test_what_a_prose_cell_names_counts_and_so_does_what_writes_it(repository):
    (repository / "sqlib/report").mkdir()
    (repository / "sqlib/report/cells.py").write_text("def load_ipython_extension(shell):\n    shell.add(written)\n")
    cells = ["from sqlib.training.loop import fit", "%%prose\nIt is {fit(2):.1f}."]
    write_notebook(repository, cells)
    found = [now("page")]
    for path, old, new in (("quant/bits.py", "2**bits", "3**bits"), ("report/cells.py", "add", "put")):
        path = repository / "sqlib" / path
        path.write_text(path.read_text().replace(old, new))
        found.append(now("page"))
    write_notebook(repository, [cells[0], cells[1].replace("It is", "There are")])
    assert len({*found, now("page")}) == 4
