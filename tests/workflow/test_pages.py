"""Every page of a study: its place, its command, and what happens when its notebook fails."""

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
from sqlib.workflow import pages as study_pages
from sqlib.workflow.commands import app
from sqlib.workflow.pages import Page


def test_every_page_has_its_own_place_and_command():
    study = load_study("smoke").model_copy(update={"networks": ["lenet", "sgt_cnn"], "seeds": [0, 1]})
    pages = Page.all(study)
    assert len({page.html for page in pages}) == len({page.command for page in pages}) == len(pages)
    assert all(
        page.command.split()[0] in {command.name or command.callback.__name__ for command in app.registered_commands}
        for page in pages
    )
    assert sum(page.kind == "saliency" for page in pages) == 2 * 2 * 4 * 2


def test_a_failed_notebook_still_gives_its_page(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    page = Page.tables(load_study("smoke"))
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
    monkeypatch.setattr(Page, "render", lambda self: rendered.append(self.html))
    with pytest.raises(SqlibError, match="cell 3"):
        page.execute({}, [csv])
    assert rendered == [page.html]
    assert not page.result.exists() and not csv.exists(), "or the failed page would be taken for finished"


def test_a_page_says_what_it_was_made_from_also_when_it_is_rendered_later(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    study = load_study("smoke")
    page = Page.tables(study)
    for run in study.runs()[:2]:
        fake_result(run, page.reports)

    def writes(source, output, parameters, **_):
        page.result.parent.mkdir()
        page.result.write_text("{}")

    monkeypatch.setattr("sqlib.workflow.notebooks.execute", writes)
    page.execute({}, [])
    recorded = files.read_json(tmp_path / "smoke/provenance/tables.json")
    notebook = hashlib.sha256((REPOSITORY / "notebooks/5_tables.ipynb").read_bytes()).hexdigest()
    assert recorded["made"] == {"results/tables.json": hashlib.sha256(b"{}").hexdigest()}
    assert recorded["notebook"] == {"name": "5_tables.ipynb", "sha256": notebook}
    assert recorded["parameters"] == study.model_dump(mode="json") and recorded["digest"] == digest(study)
    assert recorded["started"] <= recorded["ended"] and recorded["packages"]["torch"] and recorded["cpu"]
    now = provenance()
    monkeypatch.setattr(
        "sqlib.workflow.pages.provenance", lambda: {**now, "git": {"revision": "f" * 40, "dirty": True}}
    )
    facts = page.facts()
    assert "ffff" not in facts["Code"] and facts["Code"].startswith(recorded["git"]["revision"][:12])
    assert facts["Parameters, digest"] == digest(study) and facts["Seed"] == "0"
    assert facts["Notebook, SHA-256"] == f"5_tables.ipynb, {notebook[:12]}"
    assert "Origin" not in facts
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
        facts = page.facts()
        assert "was not written down" in facts["Origin"] and "ffff" in facts["Code"], damaged


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
        page.execute({}, [])
        return results.read_origin(results.origin_path(page.reports, page._name))

    of_run, of_data = made(Page.saliency(study, run)), made(Page.data(study, "mnist"))
    assert list(of_run["data"]) == list(of_data["data"]) == ["mnist"]
    assert of_run["seeds"] == [0] and of_data["seeds"] == study.seeds
    assert [page.dataset for page in Page.compare(study, "mnist", "lenet").about()] == ["mnist"] * 24
    assert Page.tables(study).about() == study.runs()


def test_the_time_limit_of_a_notebook_can_be_set(monkeypatch):
    monkeypatch.delenv("SQLIB_TIME_LIMIT", raising=False)
    assert study_pages.time_limit("train") > study_pages.time_limit("page") == 3600
    monkeypatch.setenv("SQLIB_TIME_LIMIT", "90")
    assert study_pages.time_limit("train") == study_pages.time_limit("page") == 90
    for wrong in ("an hour", "0", "-1", "inf", "nan", "1e10", "1e308", "9" * 400):
        monkeypatch.setenv("SQLIB_TIME_LIMIT", wrong)
        with pytest.raises(SqlibError, match=f"SQLIB_TIME_LIMIT={wrong[:80]}.*: expected a number of seconds"):
            study_pages.time_limit("page")
    monkeypatch.setenv("SQLIB_TIME_LIMIT", f"{threading.TIMEOUT_MAX:.0f}")  # the longest that a timer can wait
    timer = threading.Timer(study_pages.time_limit("page"), lambda: None)
    timer.start()
    timer.join(0.05)
    assert timer.is_alive()
    timer.cancel()


def test_a_page_names_the_python_it_was_made_with(monkeypatch):
    monkeypatch.setattr(study_pages.sys, "prefix", str(REPOSITORY / ".venv"))
    assert study_pages._python() == ".venv/bin/python"
    monkeypatch.setattr(study_pages.sys, "prefix", "/opt/conda/envs/saliency")
    assert study_pages._python() == "python"
