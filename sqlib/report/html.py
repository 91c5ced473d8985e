"""Pages: executed notebooks and tables as HTML that opens anywhere, with no script and nothing remote."""

import ast
import html as entities
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from sqlib.checked import SqlibError, nearest
from sqlib.files import write_atomically
from sqlib.places import REPOSITORY

TEMPLATES = Path(__file__).parent / "templates"
PAGE_LIMIT = 600_000
"""The largest page in bytes, images included (DESIGN.md)."""

# Outputs that need a script to be seen.
_DROPPED = {"application/vnd.jupyter.widget-view+json", "application/javascript", "text/vnd.mermaid"}


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

    `title` becomes <title>; the first heading of the notebook is the page's own. `crumbs`, `previous` and `next` are
    (text, relative address), a crumb without address is this page; `related` is a heading and such links by what joins them.
    `facts` stands at the end: which run, the command to run it again, when, on what. A failed run's page shows its
    traceback. Raises SqlibError for an unreadable notebook.
    """
    import nbformat

    notebook = Path(notebook)
    try:
        content = nbformat.read(notebook, as_version=4)
    except Exception as error:
        raise SqlibError(f"{notebook}: not a readable notebook: {' '.join(str(error).split())}") from None
    parameters = take_parameters(content)
    failed = False
    for cell in content.cells:
        for output in cell.get("outputs", []):
            failed |= output.output_type == "error"
        if cell.cell_type == "code":
            cell.outputs = _joined([o for o in cell.outputs if _shown(o)])
    body, _ = _exporter().from_notebook_node(content, resources={"failed": failed})
    body = _ADDRESS.sub(_plain_address, body)
    # A wide figure scrolls on a narrow screen, so the keyboard must reach it.
    body = re.sub(r"<figure\b(?![^>]*tabindex)", '<figure tabindex="0"', body)
    body = with_contents(with_file_links(with_wide_figures_marked(body), Path(html).parent))
    body = with_subject(body, title)
    page = render_page(
        "page.html.j2",
        title=title,
        crumbs=crumbs,
        facts=facts or {},
        parameters=parameters,
        previous=previous,
        next=next,
        related=related,
        body=body,
        has_heading=re.search(r"<h1\b", body) is not None,
    )
    write_atomically(Path(html), page.encode())
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


def with_subject(page: str, title: str) -> str:
    """The page with its title in its heading, behind the question that other pages may ask, too."""
    from markupsafe import escape

    return page.replace("</h1>", f' <span class="subject">{escape(title)}</span></h1>', 1)


_KINDS = {"figures": ("svg", "pdf"), "tables": ("csv", "md", "tex")}
_KIND_TITLES = {"svg": "SVG", "pdf": "PDF", "csv": "CSV", "md": "Markdown", "tex": "LaTeX"}


def file_links(folder: Path, name: str, where: str) -> str:
    """Links to the files of a figure or a table in `folder`/figures or /tables, as HTML; "" where there are none."""
    from markupsafe import escape

    there = [kind for kind in _KINDS[where] if (Path(folder) / where / f"{name}.{kind}").exists()]
    links = (
        f'<a href="{where}/{escape(name)}.{kind}" aria-label="{_KIND_TITLES[kind]} of {escape(name)}">{_KIND_TITLES[kind]}</a>'
        for kind in there
    )
    return f' <span class="files">{" · ".join(links)}</span>' if there else ""


PHONE = 340
"""Pixels across that a figure may have to be seen whole on a phone (its stylesheet shows wider ones as wide as 40rem)."""


def with_wide_figures_marked(page: str) -> str:
    """The page with `data-wide` on each figure that a phone shows only a part of: its caption says so there."""

    def mark(found: re.Match) -> str:
        return "<figure data-wide" if int(found[1]) > PHONE else "<figure"

    return re.sub(r'<figure\b(?=[^>]*>\s*<img\b[^>]*\bwidth="(\d+)")', mark, page)


def with_file_links(page: str, folder: Path) -> str:
    """The page with links under each figure and table to its files, as far as they lie beside the page in `folder`."""

    def figure(found: re.Match) -> str:
        return f"{found[1]}{file_links(folder, found[2], 'figures')}{found[3]}"

    def table(found: re.Match) -> str:
        links = file_links(folder, found[2], "tables")
        return f'{found[1]}<p class="note">{links.strip()}</p></div>' if links else found[0]

    page = re.sub(r'(<figure [^>]*?id="([^"]+)".*?)(</figcaption></figure>)', figure, page, flags=re.DOTALL)
    # Whatever the order of their attributes, which what makes pages safe sorts.
    return re.sub(r'(<div (?=[^>]*\bclass="table")(?=[^>]*\bid="([^"]+)").*?)</div>', table, page, flags=re.DOTALL)


CONTENTS_FROM = 4
"""How many parts a page has before it gets a list of them."""


def with_contents(page: str) -> str:
    """The page with a list of its parts (h2) before the first one, where there are `CONTENTS_FROM` or more of them.

    Each gets an id made of its words to link to; one that has an id keeps it.
    """
    parts, used = [], set(re.findall(r'\sid="([^"]*)"', page))

    def with_id(found: re.Match) -> str:
        own = re.search(r'\sid="([^"]*)"', found[1])
        words = re.sub(r"<[^>]+>", "", found[2]).strip()
        if own:
            name = own[1]
        else:
            stem = name = re.sub(r"[^a-z0-9]+", "-", entities.unescape(words).lower()).strip("-") or "part"
            number = 1
            while name in used:
                number += 1
                name = f"{stem}-{number}"
            used.add(name)
        parts.append(f'<li><a href="#{name}">{words}</a></li>')
        return found[0] if own else f'<h2 id="{name}"{found[1]}>{found[2]}</h2>'

    marked = re.sub(r"<h2\b([^>]*)>(.*?)</h2>", with_id, page, flags=re.DOTALL)
    if len(parts) < CONTENTS_FROM:
        return marked
    contents = f'<nav class="contents" aria-label="On this page"><ul>{"".join(parts)}</ul></nav>'
    return re.sub(r"<h2\b", lambda found: contents + found[0], marked, count=1)


_ADDRESS = re.compile(r'(<[a-z][^<>]*?\s(?:href|src)=")([^"]*)"', re.IGNORECASE)


def _plain_address(found: re.Match) -> str:
    """An address in a page, unless it is code (`javascript:`), as a Markdown link in the words of a claim could be."""
    address = re.sub(r"[\s\x00-\x1f]", "", entities.unescape(found[2])).lower()
    scheme = re.match(r"[a-z][a-z0-9+.-]*:", address)
    harmless = scheme is None or scheme[0] in ("http:", "https:", "mailto:") or address.startswith("data:image/")
    return found[0] if harmless else f'{found[1]}#"'


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
    from markupsafe import Markup

    made = _environment().get_template(template)
    return made.render(body=Markup(body), style=Markup(_stylesheet()), **{"related": None, **values})


def check_size(page: Path, limit: int = PAGE_LIMIT) -> int:
    """The size of a page in bytes, with a warning when it is over the limit."""
    size = Path(page).stat().st_size
    if size > limit:
        warnings.warn(f"{page}: {size / 1000:,.0f} kB, more than the {limit / 1000:,.0f} kB of a page", stacklevel=2)
    return size


def take_parameters(content) -> dict[str, str]:
    """Takes the cells with parameters out of a notebook; returns name -> value as Python writes it, paths shortened."""
    found: dict[str, str] = {}
    kept = []
    for cell in content.cells:
        if not {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            kept.append(cell)
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                found[ast.unparse(target)] = ast.unparse(node.value).replace(f"{REPOSITORY}/", "")
    content.cells = kept
    return found


def _shown(output) -> bool:
    # A widget's or a figure's text form ("IntSlider(value=3)", "<Figure size ...>") says nothing to a reader.
    data = output.get("data")
    if data is None:
        return True
    text_only = set(data) == {"text/plain"}
    return not set(data) & _DROPPED and not (text_only and "".join(data["text/plain"]).startswith("<Figure size"))


def _joined(outputs: list) -> list:
    # Streams arrive in pieces; a page shows one block for each run of pieces.
    joined: list = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


@cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(
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


# ---- tables ------------------------------------------------------------------------------------------------------


def table_html(df, name: str, caption: str, formats=None, note: str | None = None) -> str:
    """The HTML of `table`. A value with `__html__` (markupsafe.Markup, a link say) stands as it is."""
    from markupsafe import escape

    header, rows, heads, numeric = table_cells(df, formats)
    kind = [' class="n"' if n else "" for n in numeric]
    head = "".join(f'<th scope="col"{k}>{escape(text)}</th>' for text, k in zip(header, kind, strict=True))
    body = []
    for row in rows:
        cells = []
        for i, (value, k) in enumerate(zip(row, kind, strict=True)):
            tag, end = (f'th scope="row"{k}', "th") if i < heads else (f"td{k}", "td")
            text = re.sub(r" (\[[^\[\]]+, [^\[\]]+\])", r' <span class="interval">\1</span>', str(escape(value)))
            cells.append(f"<{tag}>{text}</{end}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    # A region that scrolls must be reachable by keyboard, and so needs a name.
    return (
        f'<div class="table" id="{escape(name)}" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>{below}</div>"
    )


def flat_table(df):
    """(the frame with its row headers as ordinary leading columns, how many of those there are)."""
    import pandas as pd

    plain = isinstance(df.index, pd.RangeIndex) and df.index.name is None
    flat = df if plain else df.reset_index(names=[n or "" for n in df.index.names])
    if isinstance(flat.columns, pd.MultiIndex):
        flat = flat.set_axis([", ".join(str(p) for p in column if str(p)) for column in flat.columns], axis=1)
    return flat, 1 if plain else df.index.nlevels


def table_cells(df, formats):
    """(header, rows of formatted values, number of leading header columns, whether each column is numeric)."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    flat, heads = flat_table(df)
    formats = dict(formats or {})
    header = [str(column) for column in flat.columns]
    for key in formats:
        if str(key) not in header:
            raise SqlibError(f"formats: no column '{key}'{nearest(key, header)}")
    rows = [
        [_text(value, formats.get(column)) for column, value in zip(flat.columns, row, strict=True)]
        for row in flat.itertuples(index=False, name=None)
    ]
    numeric = []
    for i, column in enumerate(flat.columns):
        dtype = flat.iloc[:, i].dtype
        numbers = [re.match(r"[−+-]?\d|–$", str(row[i])) is not None for row in rows]
        numeric.append(
            (is_numeric_dtype(dtype) and not is_bool_dtype(dtype))
            or (column in formats and bool(rows) and all(numbers))
        )
    return header, rows, heads, numeric


def _text(value, form):
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        return "–"
    if callable(form):
        return form(value)
    if form is not None:
        return form.format(value)
    if hasattr(value, "__html__"):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
