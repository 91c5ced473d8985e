"""What a user or a file names is text on every page: never an element, an attribute or a script."""

import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nbformat.v4 as v4
import pandas
import pytest
from bs4 import BeautifulSoup
from nbformat import write
from planted import fake_result
from pydantic import ValidationError

from sqlib.checked import SqlibError
from sqlib.files import to_json, write_atomically
from sqlib.places import PARAMS
from sqlib.quant.bits import Setup
from sqlib.report import cells as notebook
from sqlib.report import html as pages
from sqlib.report.front_page import write_index
from sqlib.study.parameters import load_setup, load_study
from sqlib.study.results import read_result

EVIL = [
    "<script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><svg onload=alert(1)>",
    "</title></style><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<b onmouseover=alert(1)>b</b>",
    "<b\tonmouseover=alert(1)>b</b>",
    "<SCRIPT >alert(1)</SCRIPT >",
    "<iframe src=x>",
    "[a](javascript:alert(1))",
    "![a](javascript:alert(1))",
    "[a](JavaScript&colon;alert(1))",
    "<javascript:alert(1)>",
    "`</code><script>alert(1)</script>`",
    "<!-- <script>alert(1)</script>",
    "{{ 7 * 7 }}{% for x in y %}",
    "\x1b[31m<script>alert(1)</script>",
]


def assert_harmless(html):
    page = BeautifulSoup(html, "html.parser")
    for element in page.find_all(True):
        assert element.name not in ("script", "iframe", "svg", "object", "embed", "base", "form"), element
        for name, value in element.attrs.items():
            assert not name.startswith("on"), element
            if name in ("href", "src"):
                assert not re.match(r"\s*(javascript|vbscript|data:text)", str(value), re.IGNORECASE), element
    return page


@pytest.mark.parametrize("name", [*EVIL, "../../x", "a/b", "", ".", "..", "a\n", "a b"])
def test_names_are_refused(name):
    with pytest.raises(SqlibError, match="names folders"):
        load_study(name)
    with pytest.raises(SqlibError, match="names folders"):
        load_setup(name)
    content = load_setup("w2a2", PARAMS / "setups").model_dump()
    with pytest.raises(ValidationError, match="name"):
        Setup.model_validate({**content, "name": name})  # such as a result or a packed model may hold it


@pytest.mark.parametrize("evil", EVIL)
def test_pages_show_it_as_text(evil, tmp_path, monkeypatch):
    """Everything by which notebooks show something, in the page that is made of them."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    notebook.prose(f"Claim: {evil}")
    notebook.prose(f"**{evil}**\n\n- {evil}\n\n| a |\n| --- |\n| {evil} |\n")
    frame = pandas.DataFrame({evil: [evil, "x"]}, index=pandas.Index([evil, "y"], name=f"row {evil}"))
    notebook.table(frame, "t", evil, note=evil)
    notebook.figure(plt.figure(), "f", evil, evil)
    outputs = [v4.new_output("display_data", data=_data(value)) for value in shown]
    outputs += [v4.new_output("stream", name=name, text=evil) for name in ("stdout", "stderr")]
    outputs.append(v4.new_output("error", ename=evil, evalue=evil, traceback=[evil]))
    outputs.append(v4.new_output("display_data", data={"text/plain": evil}))
    cells = [
        v4.new_code_cell(f"title = {evil!r}", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(f"print({evil!r})", outputs=outputs),
    ]
    write(v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    link = (evil, "a.html")
    pages.render(tmp_path / "n.ipynb", tmp_path / "n.html", evil, [link, (evil, None)], {evil: evil}, link, link)
    page = assert_harmless((tmp_path / "n.html").read_text())
    plain = evil.replace("\x1b[31m", "")
    assert (
        (plain in page.title.text or evil in page.title.text)
        and plain in page.find("caption").text
        and plain in page.find("figcaption").text
    )


def _data(value):
    kind = "text/markdown" if type(value).__name__ == "Markdown" else "text/html"
    return {kind: value.data}


@pytest.mark.parametrize("evil", EVIL)
def test_the_index_shows_it_as_text(evil, tmp_path):
    study = load_study("smoke")
    setups = [setup.model_copy(update={"title": evil}) for setup in study.setups]
    study = study.model_copy(update={"title": evil, "setups": setups})
    *most, failed = study.runs()
    for run in most:
        fake_result(run, tmp_path)
    first = most[0].folder(tmp_path)
    origin = {
        **read_result(first)["provenance"],
        "cpu": evil,
        "python": evil,
        "started": evil,
        "git": {"revision": evil},
    }
    write_atomically(first / "result.json", to_json({**read_result(first), "provenance": origin}))
    write_atomically(tmp_path / "logs" / failed.id / "train.log", f"error: {evil}\n".encode())
    row = {"id": "a", "claim": evil, "dataset": evil, "quantity": evil, "effect": 1.0, "low": None, "high": None}
    write_atomically(tmp_path / "results/claims.json", to_json([{**row, "verdict": "supported"}]))
    write_atomically(tmp_path / "claims.html", b"page")
    write_index(study, tmp_path)
    page = assert_harmless((tmp_path / "index.html").read_text())
    assert page.h1.text == page.title.text == evil
    assert evil in page.select_one("#verdicts tbody th").text and evil in page.select_one("#failed td + td").text
