"""Every page of a study: its place, its command, and what happens when its notebook fails."""

import pytest

from sqlib import study_pages
from sqlib.__main__ import app
from sqlib.config import SqlibError, load_study
from sqlib.study_pages import Page


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
    page = Page.tables(load_study("smoke"))
    page.notebook, page.html = tmp_path / "tables.ipynb", tmp_path / "tables.html"
    rendered = []

    def fails(source, output, *_, **__):
        output.write_text("{}")
        raise SqlibError("cell 3: no")

    monkeypatch.setattr("sqlib.execution.execute", fails)
    monkeypatch.setattr(Page, "render", lambda self: rendered.append(self.html))
    with pytest.raises(SqlibError, match="cell 3"):
        page.execute({}, [])
    assert rendered == [page.html]


def test_the_time_limit_of_a_notebook_can_be_set(monkeypatch):
    monkeypatch.delenv("SQLIB_TIME_LIMIT", raising=False)
    assert study_pages.time_limit("train") > study_pages.time_limit("page") == 3600
    monkeypatch.setenv("SQLIB_TIME_LIMIT", "90")
    assert study_pages.time_limit("train") == study_pages.time_limit("page") == 90
    for wrong in ("an hour", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("SQLIB_TIME_LIMIT", wrong)
        with pytest.raises(SqlibError, match=f"SQLIB_TIME_LIMIT={wrong}: expected a number of seconds"):
            study_pages.time_limit("page")
