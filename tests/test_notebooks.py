"""Every notebook as a reader opens it: top to bottom, with the parameters it has, on the published results."""

import shutil

import nbformat
import pytest

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.workflow.notebooks import execute

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_is_and_writes_nothing(notebook, tmp_path, monkeypatch):
    reports = tmp_path / "reports"
    shutil.copytree(REPOSITORY / "reports/reference", reports / "reference")
    before = {path: path.stat().st_mtime_ns for path in reports.rglob("*")}
    monkeypatch.setenv("SQLIB_REPORTS", str(reports))
    execute(notebook, tmp_path / "executed.ipynb", {}, timeout=600)
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    assert any("figure" in str(cell.get("outputs")) for cell in executed.cells)  # it showed something
    assert {path: path.stat().st_mtime_ns for path in reports.rglob("*")} == before


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_git_holds_no_outputs(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def code_of(notebook):
    """The lines of code of each cell: without imports, blank lines and the text of `%%prose`, and without the cell for Colab."""
    cells = nbformat.read(notebook, as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == "code" and not cell.metadata.get("jupyter")]
    codes = [cell.source.splitlines() for cell in cells if not cell.source.startswith("%%prose")]
    return [[line for line in code if line and not line.startswith(("import ", "from "))] for code in codes]


def test_notebooks_are_text_and_short_calls():
    for notebook in NOTEBOOKS:
        assert max(map(len, code_of(notebook))) <= 15, notebook
    assert sum(len(code) for notebook in NOTEBOOKS for code in code_of(notebook)) <= 700


def test_prose_cells_stand_behind_the_extension_and_hold_expressions():
    for notebook in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        magic = [cell.startswith("%%prose") for cell in cells]
        assert not any(magic) or "%load_ext sqlib.report.cells" in cells[: magic.index(True)], notebook
        for cell in (cell for cell, is_prose in zip(cells, magic) if is_prose):
            line, text = cell.removeprefix("%%prose").split("\n", 1)
            compile(f'rf"""{text}\n"""', line, "eval")  # every expression is one


def interrupted_in(epoch, says, tmp_path):
    """2_train as executed when it is interrupted in this epoch: it ends in an error that `says` so, and saves nothing."""
    # The interruption itself, in the kernel: a cell put before the training has the epoch's first batch raise it.
    content = nbformat.read(REPOSITORY / "notebooks/2_train.ipynb", as_version=4)
    at = next(i for i, cell in enumerate(content.cells) if cell.source.startswith("live = LiveTraining"))
    content.cells.insert(at, nbformat.v4.new_code_cell(INTERRUPT.replace("EPOCH", str(epoch))))
    notebook, executed, folder = (tmp_path / name for name in ("2_train.ipynb", "executed.ipynb", "run"))
    nbformat.write(content, notebook)
    with pytest.raises(SqlibError, match=says):
        execute(notebook, executed, {"folder": str(folder)}, timeout=600)
    assert not folder.exists()
    return nbformat.read(executed, as_version=4)


def test_training_interrupted_before_an_epoch_has_ended_says_so(tmp_path):
    executed = interrupted_in(1, "Interrupted before the first epoch ended: there is nothing to show yet", tmp_path)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    (traceback,) = (output.traceback for output in outputs if output.output_type == "error")
    assert len(traceback) == 1 and "train_step" not in traceback[0]


def test_training_interrupted_by_hand_shows_the_epochs_there_are_and_saves_nothing(tmp_path):
    shown = str(interrupted_in(2, "interrupted after epoch 1 of 2: nothing is saved", tmp_path).cells)
    assert "<strong>interrupted</strong>. What follows is the network after epoch 1 of 2" in shown
    assert "After 1 epoch (" in shown and 'id="film_strip"' in shown and "Test accuracy **" in shown


INTERRUPT = """
class LiveTraining(LiveTraining):
    def batch(self, epoch, batch, batches):
        if epoch == EPOCH:
            raise KeyboardInterrupt
"""
