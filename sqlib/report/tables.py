"""A DataFrame as a table: in HTML for pages, in Markdown and in LaTeX for papers."""

import math
import re

from markupsafe import escape

from sqlib.checked import SqlibError, nearest


def table_html(df, name: str, caption: str, formats=None, note: str | None = None) -> str:
    """The HTML of `sqlib.report.cells.table`. A value with `__html__` (markupsafe.Markup, a link say) stands as it is."""
    header, rows, heads, numeric = table_cells(df, formats)
    kinds = [' class="n"' if number else "" for number in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(header, kinds, strict=True))
    body = []
    for row in rows:
        cells = []
        for i, (value, kind) in enumerate(zip(row, kinds, strict=True)):
            text = re.sub(r" (\[[^\[\]]+, [^\[\]]+\])", r' <span class="interval">\1</span>', str(escape(value)))
            cells.append(f'<th scope="row"{kind}>{text}</th>' if i < heads else f"<td{kind}>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    # A region that scrolls must be reachable by keyboard, and so needs a name.
    return (
        f'<div class="table" id="{escape(name)}" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>{below}</div>"
    )


def table_markdown(df, caption: str, formats=None, note: str | None = None) -> str:
    """A pipe table below its caption, the note under it."""
    header, rows, _, numeric = table_cells(df, formats)

    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "| " + " | ".join("---:" if number else ":---" for number in numeric) + " |"
    return "\n".join([f"**{caption}**", "", line(header), rule, *map(line, rows), *(["", note] if note else [])]) + "\n"


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
    | {"×": r"$\times$", "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
)


def table_latex(df, name: str, caption: str, formats=None, note: str | None = None) -> str:
    """A `table` environment with rules of booktabs, its label `tab:<name>`, the note in small letters under it."""
    import pandas

    header, rows, _, numeric = table_cells(df, formats)
    text = pandas.DataFrame(rows, columns=range(len(header))).map(lambda value: str(value).translate(_LATEX))
    table = text.style.hide(axis="index").format_index(lambda at: header[at].translate(_LATEX), axis=1)
    made = table.to_latex(
        column_format="".join("r" if number else "l" for number in numeric), hrules=True, position_float="centering",
        caption=caption.translate(_LATEX), label=f"tab:{name}",
    )  # fmt: skip
    below = rf"\par\smallskip\footnotesize {note.translate(_LATEX)}" if note else ""
    return made.replace("\\end{table}\n", f"{below}\n\\end{{table}}\n" if below else "\\end{table}\n")


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
