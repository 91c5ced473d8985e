"""Pages: executed notebooks as HTML that opens anywhere, with no script and nothing remote."""

import ast
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup
from bs4.formatter import EntitySubstitution, HTMLFormatter
from markupsafe import Markup, escape

from sqlib.checked import SqlibError
from sqlib.files import write_atomically
from sqlib.places import REPOSITORY

TEMPLATES = Path(__file__).parent / "templates"
PAGE_LIMIT = 600_000
"""The largest page in bytes, images included."""
PHONE = 340
"""Pixels across that a figure may have to be seen whole on a phone (its stylesheet shows wider ones as wide as 40rem)."""
CONTENTS_FROM = 4
"""How many parts a page has before it gets a list of them."""
KINDS = {
    "figures": {"svg": "SVG", "pdf": "PDF"},
    "tables": {"csv": "CSV", "md": "Markdown", "tex": "LaTeX"},
}
"""The files of a figure and of a table, by the folder that they lie in."""
_DROPPED = {"application/vnd.jupyter.widget-view+json", "application/javascript", "text/vnd.mermaid"}
"""Outputs that need a script to be seen."""
_PARAMETERS = {"parameters", "injected-parameters"}


def render(
    notebook: Path,
    html: Path,
    title: str,
    crumbs: Sequence[tuple[str, str | None]] = (),
    facts: Mapping[str, object] | None = None,
    previous: tuple[str, str] | None = None,
    next: tuple[str, str] | None = None,
    related: tuple[str, Sequence[tuple[str, Sequence[tuple[str, str]]]]] | None = None,
) -> None:
    """Writes the executed `notebook` as the page `html`.

    `title` becomes <title>, and stands in the first heading of the notebook, behind the question that other pages may ask,
    too. `crumbs`, `previous` and `next` are (text, relative address), a crumb without address is this page; `related` is a
    heading and such links by what joins them. `facts` stands at the end: which run, the command to run it again, when, on
    what. A failed run's page shows its traceback. Raises SqlibError for an unreadable notebook.
    """
    import nbformat

    try:
        content = nbformat.read(notebook, as_version=4)
    except Exception as error:
        raise SqlibError(f"{notebook}: not a readable notebook: {' '.join(str(error).split())}") from None
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shown(output)]
    failed = any(output.output_type == "error" for cell in content.cells for output in cell.get("outputs", []))
    body, _ = _exporter().from_notebook_node(content, resources={"failed": failed})
    page = parse(body)
    make_harmless(page)
    mark_wide_figures(page)
    link_files(page, Path(html).parent)
    list_parts(page)
    if page.h1:
        page.h1.append(parse(f' <span class="subject">{escape(title)}</span>'))
    made = render_page(
        "page.html.j2", body=as_html(page), title=title, crumbs=crumbs, facts=facts or {},
        parameters=parameters_of(content), previous=previous, next=next, related=related,
        has_heading=page.h1 is not None,
    )  # fmt: skip
    write_atomically(Path(html), made.encode())
    check_size(html)


def rehearse() -> None:
    """Make a small page and throw it away, for the patterns, schemas and templates that a process compiles with its first."""
    import tempfile

    import nbformat.v4 as v4

    shown = v4.new_output("display_data", {"text/html": '<figure id="a"><img alt="" width="9" src="data:"></figure>'})
    cells = [
        v4.new_markdown_cell("# A $x$\n\n| a |\n|---|\n| &amp; |"),
        v4.new_code_cell("import a  # b", outputs=[shown]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.ipynb"
        path.write_text(json.dumps(v4.new_notebook(cells=cells)))
        render(path, path.with_suffix(".html"), "small")


# ---- a page's HTML -----------------------------------------------------------------------------------------------------


class _AsWritten(HTMLFormatter):
    """HTML as people write it: no `/` in <img>, attributes in their order."""

    def __init__(self):
        super().__init__(EntitySubstitution.substitute_xml, void_element_close_prefix="")

    def attributes(self, tag):
        return tag.attrs.items()


def parse(html: str) -> BeautifulSoup:
    """HTML as a tree."""
    return BeautifulSoup(html, "html.parser")


def as_html(page: BeautifulSoup) -> str:
    """A tree as HTML."""
    return page.decode(formatter=_AsWritten())


def make_harmless(page: BeautifulSoup) -> None:
    """Take away addresses that are code (`javascript:`), as a Markdown link in the words of a claim could be."""
    for element in page.find_all(lambda tag: tag.has_attr("href") or tag.has_attr("src")):
        for name in ("href", "src"):
            address = re.sub(r"[\s\x00-\x1f]", "", element.get(name, "")).lower()
            scheme = re.match(r"[a-z][a-z0-9+.-]*:", address)
            if scheme and scheme[0] not in ("http:", "https:", "mailto:") and not address.startswith("data:image/"):
                element[name] = "#"


def mark_wide_figures(page: BeautifulSoup) -> None:
    """`data-wide` on each figure that a phone shows only a part of: its caption says so there.

    It scrolls there, so the keyboard must reach it.
    """
    for figure in page.find_all("figure"):
        figure["tabindex"] = "0"
        if figure.img and int(figure.img.get("width", 0)) > PHONE:
            figure["data-wide"] = ""


def link_files(page: BeautifulSoup, folder: Path) -> None:
    """Links under each figure and table to its files, as far as they lie beside the page in `folder`."""
    for caption in page.select("figure[id] > figcaption"):
        if links := _file_links(folder, caption.parent["id"], "figures"):
            caption.append(parse(f" {links}"))
    for table in page.select("div.table[id]"):
        if links := _file_links(folder, table["id"], "tables"):
            table.append(parse(f'<p class="note">{links}</p>'))


def _file_links(folder: Path, name: str, where: str) -> str:
    links = [
        f'<a href="{where}/{escape(name)}.{kind}" aria-label="{title} of {escape(name)}">{title}</a>'
        for kind, title in KINDS[where].items()
        if (Path(folder) / where / f"{name}.{kind}").exists()
    ]
    return f'<span class="files">{" · ".join(links)}</span>' if links else ""


def list_parts(page: BeautifulSoup) -> None:
    """A list of the page's parts (h2) before the first one, where there are `CONTENTS_FROM` or more of them.

    Each gets an id made of its words to link to; one that has an id keeps it.
    """
    parts, used = page.find_all("h2"), {element["id"] for element in page.find_all(id=True)}
    for part in parts:
        if not part.get("id"):
            stem = re.sub(r"[^a-z0-9]+", "-", part.get_text().lower()).strip("-") or "part"
            names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
            part.attrs = {"id": next(name for name in names if name not in used), **part.attrs}
            used.add(part["id"])
    if len(parts) >= CONTENTS_FROM:
        links = (f'<li><a href="#{escape(h2["id"])}">{escape(h2.get_text().strip())}</a></li>' for h2 in parts)
        contents = f'<nav class="contents" aria-label="On this page"><ul>{"".join(links)}</ul></nav>'
        parts[0].insert_before(parse(contents))


def markdown_html(text: str) -> str:
    """Markdown as HTML; its formulas, $...$ and $$...$$, as MathML, which browsers show without a script."""
    return _markdown()(text)


@cache
def _markdown():
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return convert(body)

        def block_math(self, body: str) -> str:
            formula = convert(body, display="block")
            return f'<span class="formula" tabindex="0" role="group" aria-label="formula">{formula}</span>'

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render


def render_page(template: str, body: str = "", **values) -> str:
    """A page from `template`; every value is escaped but `body`, which is HTML already."""
    made = _environment().get_template(template)
    return made.render(body=Markup(body), style=Markup(_stylesheet()), **{"related": None, **values})


def check_size(page: Path, limit: int = PAGE_LIMIT) -> int:
    """The size of a page in bytes, with a warning when it is over the limit."""
    size = Path(page).stat().st_size
    if size > limit:
        warnings.warn(f"{page}: {size / 1000:,.0f} kB, more than the {limit / 1000:,.0f} kB of a page", stacklevel=2)
    return size


# ---- a notebook --------------------------------------------------------------------------------------------------------


def parameters_of(content) -> dict[str, str]:
    """The parameters of an executed notebook: name -> value as Python writes it, paths shortened."""
    found: dict[str, str] = {}
    for cell in content.cells:
        if _PARAMETERS & set(cell.metadata.get("tags", [])):
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    found[ast.unparse(target)] = ast.unparse(node.value).replace(f"{REPOSITORY}/", "")
    return found


def _shown(output) -> bool:
    # A widget's or a figure's text form ("IntSlider(value=3)", "<Figure size ...>") says nothing to a reader.
    data = output.get("data")
    if data is None:
        return True
    text_only = set(data) == {"text/plain"}
    return not set(data) & _DROPPED and not (text_only and "".join(data["text/plain"]).startswith("<Figure size"))


@cache
def _exporter():
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    return HTMLExporter(
        config=Config(
            TagRemovePreprocessor={"enabled": True, "remove_cell_tags": _PARAMETERS},
            CoalesceStreamsPreprocessor={"enabled": True},
        ),
        template_name="cells",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        mermaid_js_url="",
        filters={"markdown2html": markdown_html},
    )


@cache
def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _stylesheet() -> str:
    text = re.sub(r"/\*.*?\*/", "", (TEMPLATES / "style.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).strip()
