"""MEASURES: each row is whole, reading the table costs nothing, and a new measure of maps is one function and one row."""

import importlib
import json
import shutil
import subprocess
import sys

import pytest
import torch

from sqlib.measures import MEASURES, family, row_of
from sqlib.places import REPOSITORY

FUNCTION = '''

def mass_in_top(maps: Tensor, share: float = 0.1) -> Tensor:
    """Share of |map| on its most salient tenth of the pixels; NaN for dead maps."""
    m = _magnitudes(maps)
    return _alive_only(m.topk(round(share * m.shape[1]), dim=1).values.sum(dim=1) / m.sum(dim=1), maps).float()
'''
ROW = """    Measure("mass_in_top", "mass in the top 10%", "clarity", "maps", "higher", function="clarity.mass_in_top"),
    Measure("entropy","""
PLANTED = """
import json, sys
from pathlib import Path

import torch

from sqlib.explorer.explain import Trained, explain_image
from sqlib.measures import family
from sqlib.report import runs_table
from sqlib.report.front_page import headline_frame
from sqlib.study import claims, results
from sqlib.study.jobs import quality, train
from sqlib.study.parameters import Evaluation, Run, Training, load_study
from sqlib.training.examples import Dataset
from sqlib.training.loop import seeded_model
from sqlib.workflow.check import tolerances

reports, published = Path(sys.argv[1]), Path(sys.argv[2])
pixels, labels = torch.randint(0, 255, (40, 28, 28), dtype=torch.uint8), torch.arange(40) % 10
data = Dataset("mnist", "noise", tuple("0123456789"), *[pixels, labels] * 3, {})
study = load_study("smoke").model_copy(update={
    "datasets": ["mnist"], "seeds": [0, 1], "trainings": ["standard"],
    "training": Training(epochs=1, validation_images=10),
    "evaluation": Evaluation(images=20, faithfulness_images=10),
})
study = study.model_copy(update={"setups": study.setups[:1]})
found = {}
for run in study.runs():
    model, history = seeded_model(run), [{"epoch": 1, "val_accuracy": 1.0, "seconds": 1.0}]
    measured = train.measure_trained(run, model, history, data)
    found["per_image"] = "mass_in_top" in measured.per_image
    results.save_run(run.folder(reports), run, model, history, measured, 0.0)
found["quality"] = list(quality.measure_maps_of(model, data, 0, 10, ("gradient",))[0]["gradient"]["straight_through"]["clarity"])
rows, *_ = runs_table.runs_of(study, reports)
found["column"] = rows["mass_in_top"].notna().all().item()
shown, _ = runs_table.summary(rows, [row.name for row in family("clarity")], "fp32")
found["heading"] = list(shown.columns)
found["claim"] = "mass_in_top" in claims.quantities() and claims.beside("mass_in_top")
found["values"] = len(claims.Values(study, reports).of(run.id, "mass_in_top"))
found["check"] = ("mnist", "mass_in_top") in tolerances(study, reports)
_, entries = explain_image([Trained(run, model, reports, "0")], pixels[0].numpy(), "gradient", "straight_through")
found["explorer"] = entries[0]["map"]["mass_in_top"]
old, _, listed = runs_table.runs_of(load_study("paper"), published)
shown, _ = runs_table.summary(old, ["mass_in_top"], "fp32")
found["published"] = sorted(set(shown["mass in the top 10% ↑"]))
print(json.dumps(found))
"""
JOBS = ("train", "quality", "post_training", "deployed", "roar")
DIGESTS = """
import json
from sqlib.study.sources import sources_of
from sqlib.workflow.pages import KINDS
print(json.dumps({kind.name: sources_of(kind.sources) for kind in KINDS}))
"""


@pytest.mark.parametrize("name", MEASURES)
def test_each_row_names_itself_its_better_direction_and_a_function_that_is_there(name):
    row = MEASURES[name]
    assert row.name == name and row.title and row.family
    assert row.heading.endswith({"higher": "↑", "lower": "↓", None: row.label}[row.better])
    assert (row.unit == "%") == (row.factor == 100)
    if row.needs in ("maps", "images", "pair"):
        assert row.function
    if row.function:
        module, function = row.function.split(".")
        assert callable(getattr(importlib.import_module(f"sqlib.measures.{module}"), function))


def test_a_row_gives_what_its_function_gives():
    maps, images = torch.rand(3, 8, 8), torch.rand(3, 1, 8, 8).sub(0.5).relu()
    for row in family("clarity") + family("agreement"):
        module, function = row.function.split(".")
        given = (maps,) if row.needs == "maps" else (maps, images if row.needs == "images" else maps.flip(0))
        expected = getattr(importlib.import_module(f"sqlib.measures.{module}"), function)(*given)
        assert torch.equal(row.of(maps, given[-1]), expected)
        assert expected.shape == (3,)


def test_what_has_no_row_is_called_by_its_name():
    assert row_of("val_gini") is MEASURES["gini"] and row_of("val_accuracy") is MEASURES["val_accuracy"]
    assert row_of("of_old_times").heading == "of old times"


def test_reading_the_table_imports_no_torch():
    code = "import sys, sqlib.study.claims, sqlib.study.sweeps, sqlib.measures; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
def test_a_measure_of_maps_is_one_function_and_one_row(tmp_path):
    repository = tmp_path / "repository"
    for name in ("sqlib", "params", "notebooks"):
        shutil.copytree(REPOSITORY / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(code):
        command = [sys.executable, "-c", code, str(tmp_path / "reports"), str(REPOSITORY / "reports/reference")]
        done = subprocess.run(command, cwd=repository, env={"PYTHONPATH": "."}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    table, functions = repository / "sqlib/measures/__init__.py", repository / "sqlib/measures/clarity.py"
    functions.write_text(functions.read_text() + FUNCTION)
    table.write_text(table.read_text().replace('    Measure("entropy",', ROW, 1))
    changed = [
        path.relative_to(repository).as_posix()
        for path in repository.rglob("*.*")
        if path.is_file() and path.read_bytes() != (REPOSITORY / path.relative_to(repository)).read_bytes()
    ]
    assert sorted(changed) == ["sqlib/measures/__init__.py", "sqlib/measures/clarity.py"]
    found = run(PLANTED)
    assert found["per_image"] and found["column"] and found["check"] and found["values"] == 20
    assert found["quality"] == ["dead", "gini", "mass_in_top", "entropy", "total_variation", "foreground_lift"]
    assert "mass in the top 10% ↑" in found["heading"]
    assert found["claim"] == {"with the unclipped surrogate": "gradient/unclipped/mass_in_top"}
    assert 0.1 < found["explorer"] <= 1
    assert found["published"] == ["–"]  # published before there was this measure

    first = run(DIGESTS)
    table.write_text(table.read_text().replace("mass in the top 10%", "mass at the top"))
    renamed = run(DIGESTS)
    assert renamed["tables"] != first["tables"]
    assert {kind: renamed[kind] for kind in JOBS} == {kind: first[kind] for kind in JOBS}  # no reason to train again
    functions.write_text(
        functions.read_text().replace("sum(dim=1) / m.sum(dim=1), maps", "sum(1) / m.sum(dim=1), maps")
    )
    mended = run(DIGESTS)
    assert mended["train"] != first["train"] and mended["quality"] != first["quality"]
    assert mended["roar"] == first["roar"] and mended["post_training"] == first["post_training"]
