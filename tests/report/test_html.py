"""Pages from executed notebooks: nothing lost, nothing remote, nothing unescaped, and fit for a phone."""

import re

import nbformat
import nbformat.v4 as v4
import pandas as pd
import pytest
from markup import Elements, assert_held, assert_offline, fits, loose_parts

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.report import html
from sqlib.report.html import check_size, render
from sqlib.report.tables import table_html
from sqlib.workflow.notebooks import execute

SHOW = """
import sys
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Javascript, display
from sqlib.report.cells import figure, prose, table

fig, axes = plt.subplots(1, 4, figsize=(10, 2.5))
figure(fig, "axes", "Four empty axes.", "Four axes, all of them empty")
wide = {f"a long column {i}": [i] for i in range(12)}
table(pd.DataFrame({"setup": ["<script>alert(1)</script>"], **wide}), "t", "Wide")
prose("computed: **7.25**")
print("\\x1b[31mred\\x1b[0m <tag>")
print("a warning", file=sys.stderr)
display(Javascript("alert(2)"))
display({"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntSlider(value=3)"}, raw=True)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(page of a good run, page of a failed run), really executed."""
    folder = tmp_path_factory.mktemp("pages")
    cells = [
        v4.new_markdown_cell("# What does a bit cost?\n\nWhy *this* is asked.\n\n## First"),
        v4.new_code_cell("fail = False\nfolder = None", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(SHOW),
        v4.new_code_cell("if fail:\n    raise ValueError('no <such> thing')\n6 * 7"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), folder / "n.ipynb")
    for name, fail in (("good", False), ("bad", True)):
        parameters = {"fail": fail, "folder": html.REPOSITORY / "reports" / "smoke"}
        try:
            execute(folder / "n.ipynb", folder / f"{name}.ipynb", parameters, 120)
            assert not fail
        except SqlibError:
            assert fail
        render(
            folder / f"{name}.ipynb",
            folder / f"{name}.html",
            "A <b>title</b>",
            [("Study", "index.html"), ("Run", None)],
            {"Run it again": "make 'x' <y>", "Machine": "two cores"},
            ("Before", "a.html"),
            ("After", "b.html"),
        )
    return folder / "good.html", folder / "bad.html"


def test_page_says_what_it_is(made):
    text, page = made[0].read_text(), Elements(made[0])
    assert page.all("html") == [{"lang": "en"}]
    assert "<title>A &lt;b&gt;title&lt;/b&gt; · Study</title>" in text
    assert len(page.all("h1")) == 1
    assert 'What does a bit cost? <span class="subject">A &lt;b&gt;title&lt;/b&gt;</span></h1>' in text
    assert "Run it again</dt><dd><code>make &#39;x&#39; &lt;y&gt;</code></dd>" in text
    assert {"rel": "prev", "href": "a.html"} in page.all("a")
    assert {"rel": "next", "href": "b.html"} in page.all("a")
    assert '<a href="index.html">Study</a>' in text
    assert '<span aria-current="page">Run</span>' in text


def test_page_keeps_what_the_notebook_shows(made):
    text, page = made[0].read_text(), Elements(made[0])
    assert [image["alt"] for image in page.all("img")] == ["Four axes, all of them empty"]
    assert "<figcaption>Four empty axes.</figcaption>" in text
    assert {th.get("scope") for th in page.all("th")} == {"col", "row"}
    assert "computed: <strong>7.25</strong>" in text
    assert '<span class="ansi-red-fg">red</span> &lt;tag&gt;' in text
    assert re.search(r'<pre class="output" tabindex="0">42</pre>', text)
    assert "<summary>Show the code of cell" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def changed(page, change, *arguments):
    tree = html.parse(page)
    change(tree, *arguments)
    return html.as_html(tree)


def test_a_page_of_many_parts_lists_them():
    parts = ["A <em>first</em>, &amp; last", "Again", "Again", "?"]
    page = "<h1>Title</h1>" + "".join(f"<h2>{part}</h2><p>text</p>" for part in parts)
    listed = changed(page + '<h2 id="own">Own</h2><p id="again-2">taken</p>', html.list_parts)
    assert listed.index("<h1>") < listed.index("<nav") < listed.index("<h2")
    assert re.findall(r'<h2 id="([^"]+)"', listed) == ["a-first-last", "again", "again-3", "part", "own"]
    assert re.findall(r'href="#([^"]+)"', listed) == ["a-first-last", "again", "again-3", "part", "own"]
    assert '<a href="#a-first-last">A first, &amp; last</a>' in listed
    assert "<nav" not in changed("<h2>One</h2><h2>Two</h2><h2>Three</h2>", html.list_parts)


def test_page_leaves_out_what_readers_do_not_need(made):
    text = made[0].read_text()
    assert ">a warning" not in text
    assert "IntSlider" not in re.sub(r"<details class=\"code\">.*?</details>", "", text, flags=re.DOTALL)
    assert "mathjax" not in text.lower()
    body, footer = text.split("<footer>")
    assert "fail = False" not in re.sub("<[^>]*>", "", body)  # parameters stand at the end, resolved, paths shortened
    assert "<dt><code>folder</code></dt><dd><code>&#39;reports/smoke&#39;</code></dd>" in footer
    assert str(html.REPOSITORY) not in text


def test_a_failed_run_shows_its_traceback(made):
    text = made[1].read_text()
    assert "This cell failed: ValueError" in text
    assert "no &lt;such&gt; thing" in text
    assert ">a warning" in text


def test_pages_are_offline_and_small(made):
    for page in made:
        assert_offline(page)
        assert check_size(page) < 100_000
    assert (html.TEMPLATES / "style.css").stat().st_size < 12_000


def test_figures_and_tables_link_the_files_that_lie_beside_the_page(tmp_path):
    page = '<figure id="a"><img><figcaption>A.</figcaption></figure><div class="table" id="b"><table></table></div>'
    assert changed(page, html.link_files, tmp_path) == page
    for name in ("figures/a.svg", "figures/a.pdf", "tables/b.csv", "tables/b.tex", "figures/b.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    linked = changed(page, html.link_files, tmp_path)
    assert re.findall('href="([^"]*)"', linked) == ["figures/a.svg", "figures/a.pdf", "tables/b.csv", "tables/b.tex"]
    assert '>A. <span class="files"><a href="figures/a.svg" aria-label="SVG of a">SVG</a> · ' in linked
    assert linked.endswith(' aria-label="LaTeX of b">LaTeX</a></span></p></div>')


def test_a_pages_tables_have_their_links_whatever_makes_the_page_does_to_them(tmp_path):
    table = v4.new_output("display_data", data={"text/html": table_html(pd.DataFrame({"x": [1]}), "b", "B")})
    wide = '<figure id="f"><img alt="F" width="700" height="9" src=""><figcaption>F</figcaption></figure>'
    figure = v4.new_output("display_data", data={"text/html": wide})
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("show", outputs=[table, figure])]), tmp_path / "page.ipynb")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/b.csv").write_text("x\n1\n")
    render(tmp_path / "page.ipynb", tmp_path / "page.html", "Page")
    page = (tmp_path / "page.html").read_text()
    assert 'href="tables/b.csv"' in page and html.parse(page).figure.has_attr("data-wide")


def test_every_published_table_that_has_files_links_to_them():
    reference, linked = REPOSITORY / "reports/reference", 0
    for page in reference.glob("*.html"):
        text = page.read_text()
        for name in set(re.findall(r'<div (?=[^>]*class="table")[^>]*\bid="([^"]+)"', text)):
            for file in reference.glob(f"tables/{name}.*"):
                assert f'href="tables/{file.name}"' in text, f"{page.name}: {file.name}"
                linked += 1
        wide = [figure.has_attr("data-wide") for figure in html.parse(text).find_all("figure")]
        assert any(wide) == bool(wide), page.name  # all figures here are wider than a phone
    assert linked > 30


def test_a_figure_wider_than_a_phone_is_marked():
    page = '<figure id="a"><img alt="x" width="778" height="9"></figure><figure tabindex="0"><img width="300"></figure><figure>'
    wide, narrow, empty = html.parse(changed(page, html.mark_wide_figures)).find_all("figure")
    assert wide.has_attr("data-wide") and not narrow.has_attr("data-wide") and not empty.has_attr("data-wide")
    assert wide["tabindex"] == narrow["tabindex"] == "0"


def test_a_large_page_is_noticed(made):
    with pytest.warns(UserWarning, match=r"good\.html: \d+ kB, more than the 1 kB"):
        check_size(made[0], limit=1000)


def test_render_refuses_what_is_no_notebook(tmp_path):
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(SqlibError, match=r"cut\.ipynb: not a readable notebook"):
        render(tmp_path / "cut.ipynb", tmp_path / "x.html", "t")
    assert not (tmp_path / "x.html").exists()


def test_a_notebook_without_heading_gets_its_title(tmp_path):
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("text")]), tmp_path / "n.ipynb")
    render(tmp_path / "n.ipynb", tmp_path / "n.html", "The title")
    assert "<h1>The title</h1>" in (tmp_path / "n.html").read_text()


def test_formulas_are_mathml_and_need_no_script():
    shown = html.markdown_html("A clip $\\alpha$ of\n\n$$y = \\frac{\\alpha}{n}$$\n\nfor `$5`.")
    assert shown.count("<math ") == 2 and "<mfrac>" in shown and 'display="block"' in shown
    assert "frac{" not in shown and "<code>$5</code>" in shown


def test_a_table_or_an_image_that_nothing_holds_is_found():
    page = "<main><table></table><img><figure><img></figure><div class='table'><table></table></div></main>"
    assert loose_parts(page)[0] == ["table", "img"]


def test_what_is_wide_on_a_page_is_held(made):
    for page in made:
        assert_held(page)


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_scrolls_sideways(made, width):
    for page in made:
        assert fits(page, width)


@pytest.mark.browser
def test_a_page_that_scrolls_sideways_would_be_seen(tmp_path):
    page = tmp_path / "wide.html"
    page.write_text("<!DOCTYPE html><div style='width: 800px'>wide</div>")
    assert fits(page, 1280) and not fits(page, 360)
