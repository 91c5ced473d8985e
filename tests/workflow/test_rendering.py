"""A page of a study: what it is told, what it says of its origin, and what happens when its notebook fails."""

import hashlib
import threading

import pytest
from planted import fake_result

from sqlib import files
from sqlib.checked import SqlibError, digest
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.origin import provenance
from sqlib.study.parameters import load_study
from sqlib.workflow import rendering
from sqlib.workflow.pages import job_of
from sqlib.workflow.rendering import facts, make


def test_a_failed_notebook_still_gives_its_page(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    page = job_of(load_study("smoke"), "tables")
    page.notebook.parent.mkdir(parents=True)
    page.result.parent.mkdir()
    csv = page.result.with_name("runs.csv")
    rendered = []

    def fails(source, output, *_, **__):  # as when the kernel is killed after its last act
        output.write_text("{}")
        page.result.write_text("{}")
        csv.write_text("a")
        raise SqlibError("cell 3: no")

    monkeypatch.setattr("sqlib.workflow.notebooks.execute", fails)
    monkeypatch.setattr(rendering, "render", lambda page: rendered.append(page.html))
    with pytest.raises(SqlibError, match="cell 3"):
        make(page)
    assert rendered == [page.html]
    assert not page.result.exists() and not csv.exists(), "or the failed page would be taken for finished"


def test_a_page_says_what_it_was_made_from_also_when_it_is_rendered_later(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    study = load_study("smoke")
    page = job_of(study, "tables")
    for run in study.runs()[:2]:
        fake_result(run, page.reports)

    def writes(source, output, parameters, **_):
        page.result.parent.mkdir()
        for path in (page.result, page.result.with_name("runs.csv")):
            path.write_text("{}")

    monkeypatch.setattr("sqlib.workflow.notebooks.execute", writes)
    monkeypatch.setattr(rendering, "render", lambda page: None)
    make(page)
    recorded = files.read_json(tmp_path / "smoke/provenance/tables.json")
    notebook = hashlib.sha256((REPOSITORY / "notebooks/5_tables.ipynb").read_bytes()).hexdigest()
    assert recorded["made"] == dict.fromkeys(
        ("results/runs.csv", "results/tables.json"), hashlib.sha256(b"{}").hexdigest()
    )
    assert recorded["notebook"] == {"name": "5_tables.ipynb", "sha256": notebook}
    assert recorded["parameters"] == study.model_dump(mode="json") and recorded["digest"] == digest(study)
    assert recorded["started"] <= recorded["ended"] and recorded["packages"]["torch"] and recorded["cpu"]
    now = provenance()
    monkeypatch.setattr(
        "sqlib.workflow.rendering.provenance", lambda: {**now, "git": {"revision": "f" * 40, "dirty": True}}
    )
    found = facts(page)
    assert "ffff" not in found["Code"] and found["Code"].startswith(recorded["git"]["revision"][:12])
    assert found["Parameters, digest"] == digest(study) and found["Seed"] == "0"
    assert found["Notebook, SHA-256"] == f"5_tables.ipynb, {notebook[:12]}"
    assert "Origin" not in found
    changes = [
        {"digest": 1},
        {"data": {"mnist": 1}},
        {"data": {"x": {}}},
        {"seeds": 0},
        {"git": {"dirty": 1}},
        {"packages": {}},
    ]
    changed = [{**recorded, **change} for change in changes]
    lacking = [
        {k: v for k, v in recorded.items() if k != key} for key in ("git", "cpu", "started", "data", "precision")
    ]
    for damaged in (b"{", b"[]", *map(files.to_json, [*changed, *lacking])):
        (tmp_path / "smoke/provenance/tables.json").write_bytes(damaged)
        found = facts(page)
        assert "was not written down" in found["Origin"] and "ffff" in found["Code"], damaged


def test_a_page_says_only_what_its_own_runs_say(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    study = load_study("paper")
    run = study.run("mnist/lenet/w2a2/standard/seed0")
    fake_result(run, tmp_path / "paper")
    other = study.run("fashion_mnist/lenet/w2a2/standard/seed1")
    (other.folder(tmp_path / "paper")).mkdir(parents=True)
    (other.folder(tmp_path / "paper") / "result.json").write_text("{")  # damaged, and none of its business

    def made(page):
        def writes(source, output, parameters, **_):
            page.result.parent.mkdir(parents=True, exist_ok=True)
            page.result.write_text("{}")

        monkeypatch.setattr("sqlib.workflow.notebooks.execute", writes)
        monkeypatch.setattr(rendering, "render", lambda page: None)
        make(page)
        return results.read_origin(results.origin_path(page.reports, page.name))

    of_run, of_data = made(job_of(study, "saliency", run_id=run.id)), made(job_of(study, "data", dataset="mnist"))
    assert list(of_run["data"]) == list(of_data["data"]) == ["mnist"]
    assert of_run["seeds"] == [0] and of_data["seeds"] == study.seeds
    assert [run.dataset for run in job_of(study, "compare", dataset="mnist", network="lenet").about.runs] == [
        "mnist"
    ] * 24
    assert job_of(study, "tables").about.runs == study.runs()


def test_the_time_limit_of_a_notebook_can_be_set(monkeypatch):
    monkeypatch.delenv("SQLIB_TIME_LIMIT", raising=False)
    assert rendering.time_limit("train") > rendering.time_limit("page") == 3600
    monkeypatch.setenv("SQLIB_TIME_LIMIT", "90")
    assert rendering.time_limit("train") == rendering.time_limit("page") == 90
    for wrong in ("an hour", "0", "-1", "inf", "nan", "1e10", "1e308", "9" * 400):
        monkeypatch.setenv("SQLIB_TIME_LIMIT", wrong)
        with pytest.raises(SqlibError, match=f"SQLIB_TIME_LIMIT={wrong[:80]}.*: expected a number of seconds"):
            rendering.time_limit("page")
    monkeypatch.setenv("SQLIB_TIME_LIMIT", f"{threading.TIMEOUT_MAX:.0f}")  # the longest that a timer can wait
    timer = threading.Timer(rendering.time_limit("page"), lambda: None)
    timer.start()
    timer.join(0.05)
    assert timer.is_alive()
    timer.cancel()


def test_a_page_names_the_python_it_was_made_with(monkeypatch):
    monkeypatch.setattr(rendering.sys, "prefix", str(REPOSITORY / ".venv"))
    assert rendering._python() == ".venv/bin/python"
    monkeypatch.setattr(rendering.sys, "prefix", "/opt/conda/envs/saliency")
    assert rendering._python() == "python"
