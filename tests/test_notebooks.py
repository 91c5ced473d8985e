"""Every notebook as a reader opens it: top to bottom, with the parameters it has, on the published results."""

import shutil

import nbformat
import pytest

from sqlib.config import REPOSITORY
from sqlib.execution import execute

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
