"""Results planted where a study would have made them."""

from pathlib import Path

import nbformat
import nbformat.v4 as v4

from sqlib.checked import digest
from sqlib.files import to_json, write_atomically
from sqlib.study.origin import provenance


def fake_result(run, reports):
    """Numbers known by hand: two bits cost 0.5 points at seed 0 and 0.7 at seed 1, guidance costs 0.1 more."""
    accuracy = 0.99 - 0.01 * run.seed
    if run.setup.name == "w2a2":
        accuracy -= 0.005 + 0.002 * run.seed
    if run.training == "saliency_guided":
        accuracy -= 0.001
    metrics = {
        "val_accuracy": accuracy, "test_accuracy": accuracy, "dead_map_rate": 0.001, "gini": 0.7, "entropy": 0.8,
        "deletion_auc": 0.4, "random_auc": 0.6, "faithfulness_gap": 0.15 if run.setup.name == "w4a4" else 0.2,
        "train_seconds": 60.0, "weight_bytes": 1000,
    }  # fmt: skip
    result = {
        "format": 1, "id": run.id, "run": run.model_dump(mode="json"), "digest": digest(run), "metrics": metrics,
        "curves": {}, "history": [], "provenance": {**provenance(1.7e9), "seconds": 60.0},
    }  # fmt: skip
    write_atomically(run.folder(reports) / "result.json", to_json(result))


def make(folder: Path, *sources: str) -> Path:
    """A notebook with the parameters `x` and `out`, then a cell for each source."""
    cells = [v4.new_code_cell("x = 1\nout = None", metadata={"tags": ["parameters"]}), *map(v4.new_code_cell, sources)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), folder / "tiny.ipynb")
    return folder / "tiny.ipynb"
