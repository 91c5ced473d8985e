"""The smoke study from the first file to the last page, on real images, as a user runs it."""

import csv
import os
import re
import subprocess
import sys

import pytest

from sqlib import files
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.parameters import load_study

pytestmark = pytest.mark.end_to_end
STUDY = load_study("smoke")


def test_it_says_what_it_will_do_and_then_one_line_a_job(smoke):
    _, done = smoke
    lines = done.stdout.splitlines()
    plan = "smoke: 16 runs to train, 3 trials of sweeps, the maps of 8 runs to measure, 30 pages to make: about"
    assert lines[0].startswith(plan)
    assert [int(line[1:3]) for line in lines[1:-1]] == list(range(1, 58))
    assert sum(": test " in line for line in lines) == 16
    assert lines[-1].startswith("smoke: done in ")
    assert done.stderr == ""


def test_every_run_has_its_result_model_notebook_and_page(smoke):
    folder, _ = smoke
    for run in STUDY.runs():
        place = run.folder(folder)
        assert results.fault(place) is None
        assert results.run_of(place) == run
        assert results.load_model(place) is not None
        for name in ("notebook.ipynb", "train.html", "saliency.ipynb", "saliency.html"):
            assert (place / name).stat().st_size > 1000


def test_every_page_is_there(smoke):
    folder, _ = smoke
    for name in (
        "index",
        "tables",
        "claims",
        "data_mnist",
        "data_fashion_mnist",
        "compare_mnist",
        "compare_fashion_mnist",
        "explanations_mnist",
        "explanations_fashion_mnist",
        "sweep_quick",
    ):
        page = (folder / f"{name}.html").read_text()
        assert "<h1" in page
        assert "Traceback" not in page


def test_the_table_of_runs(smoke):
    folder, _ = smoke
    with open(folder / "results/runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(results.FIRST_COLUMNS)] == results.FIRST_COLUMNS
    assert len(rows) == 16
    for row in rows:
        assert 0.3 < float(row["test_accuracy"]) <= 1, row  # learned something: chance is 0.1
        assert 0 <= float(row["dead_map_rate"]) <= 1
        assert int(row["weight_bytes"]) > 0


def test_what_is_deployed_answers_as_what_was_trained(smoke):
    folder, _ = smoke
    for dataset in STUDY.datasets:
        found = files.read_json(folder / f"results/deployed_{dataset}.json")
        assert len(found) == 3 * 2  # setups without a float layer, both trainings
        for forms in found.values():
            assert forms["packed"]["same_predictions"] == forms["packed"]["images"] == STUDY.evaluation.images
            assert forms["packed"]["largest_relative"] <= 1e-4 and forms["onnx"]["largest_relative"] <= 1e-3


def test_the_post_training_baseline_stands_beside_the_quantised_runs(smoke):
    folder, _ = smoke
    with open(folder / "results/runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert (row["post_training_accuracy"] == "") == (row["setup"] == "fp32")
    assert "rounded afterwards" in (folder / "tables.html").read_text()


def test_the_maps_are_held_against_controls(smoke):
    folder, _ = smoke
    for run in STUDY.quality_runs():
        found = files.read_json(run.folder(folder) / "quality.json")
        assert found["parameters"]["images"] == STUDY.quality.images
        # One seed has no other float network to agree with; a quantised run has the float one.
        assert len(found["agreement"]) == (0 if run.setup.is_float else 1)
    for dataset in STUDY.datasets:
        found = files.read_json(folder / f"results/explanations_{dataset}.json")
        assert len(found["points"]) == len(found["runs"]) == 4
        assert len(found["changed"]["most"]) == len(found["changed"]["least"]) > 0
    page = (folder / "tables.html").read_text()
    assert all(f'id="table2_{name}"' in page for name in ("agreement", "fills", "sanity"))


def test_the_sweep_has_its_page_and_its_trials(smoke):
    folder, _ = smoke
    result = files.read_json(folder / "results/sweep_quick.json")
    assert len(result["trials"]) == 3
    assert result["defaults"] == {"clip_start": "10"}


def test_a_second_time_does_nothing(smoke, reproduce):
    folder, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if ".snakemake" not in path.parts}
    done = reproduce(folder.parent)
    assert done.returncode == 0
    assert done.stdout.startswith("smoke: everything is up to date")
    assert len(done.stdout.splitlines()) == 1
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if ".snakemake" not in path.parts}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {".lock"}


def test_a_missing_page_is_made_again_and_costs_no_training(smoke, reproduce):
    folder, _ = smoke
    place = STUDY.runs()[0].folder(folder)
    trained = (place / "result.json").stat().st_mtime_ns
    packed = (place / results.PACKED).read_bytes()
    for name in ("train.html", results.PACKED):
        (place / name).unlink()
    done = reproduce(folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 runs to train, 1 page to make" in done.stdout
    assert (place / "train.html").exists()
    assert (place / results.PACKED).read_bytes() == packed
    assert (place / "result.json").stat().st_mtime_ns == trained


def test_a_stale_page_about_the_data_hides_no_other_stale_page(smoke):
    folder, _ = smoke
    stamps = [folder / f"stamps/{name}.json" for name in ("data_mnist", "claims")]
    before = {path: (path.read_bytes(), path.stat()) for path in stamps}
    command = [
        "--snakefile",
        REPOSITORY / "Snakefile",
        "--profile",
        REPOSITORY / "profiles/local",
        "--directory",
        folder,
    ]
    command += ["--config", f"study={STUDY.name}", "--dry-run", "--nolock"]
    try:
        for path in stamps:
            path.write_text("{}")
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *map(str, command)],
            env={**os.environ, "SQLIB_REPORTS": str(folder.parent)},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
    finally:
        for path, (content, status) in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert done.returncode == 0, done.stderr
    planned = dict(
        re.findall(r"^(data|claims|index|train|total) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    )
    assert planned == {"data": "1", "claims": "1", "index": "1", "total": "4"}  # with `all`


def test_no_job_warned(smoke):
    folder, _ = smoke
    for log in (folder / "logs").rglob("*.log"):
        if log.name != "reproduce.log":
            assert "warning" not in log.read_text().lower(), log
