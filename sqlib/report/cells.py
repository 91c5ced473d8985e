"""What notebooks call to show and to save things: figure, table, prose, finish.

Everything shown is plain HTML or Markdown, so that `sqlib.report.html` keeps alt texts, captions and headers.
"""

import base64
import hmac
import html
import io
import os
import pickle
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sqlib.checked import SqlibError
from sqlib.files import to_json, write_atomically
from sqlib.places import REPOSITORY
from sqlib.report.figures.style import own_look
from sqlib.report.tables import flat_table, table_html, table_latex, table_markdown

_folders: dict[str, Path | None] = {"figures": None, "tables": None}


def figures_to(folder: str | Path | None) -> None:
    """From here on `figure` also writes its files to `folder` (None: nowhere)."""
    _folders["figures"] = None if folder is None else Path(folder)


def tables_to(folder: str | Path | None) -> None:
    """From here on `table` also writes its files to `folder` (None: nowhere)."""
    _folders["tables"] = None if folder is None else Path(folder)


@own_look()
def figure(fig, name: str, caption: str, alt: str, folder: str | Path | None = None) -> None:
    """Shows a matplotlib figure as <figure> with its caption and closes it.

    `alt` states the finding for those who cannot see it. With `folder` (or after `figures_to`) the figure is also
    written there as `<name>.png`, and as `<name>.drawing`, from which `draw` makes the forms that print needs.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display

    _check_name(name)
    if not alt.strip() or not caption.strip():
        raise SqlibError(f"figure '{name}': caption and alt text are both needed")
    caption, alt = (
        re.sub(r"\s*\n\s*", " ", words).strip() for words in (caption, alt)
    )  # a kept text may go over several lines
    shown = _laid_out(fig)
    image = png(fig, caption, alt, shown)
    folder = _folders["figures"] if folder is None else Path(folder)
    if folder is not None:
        for suffix in (DRAWING, *(f".{kind}" for kind in FORMS)):  # of what this figure replaces
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        if key := own_key():
            content = zlib.compress(pickle.dumps((fig, shown)), 1)
            write_atomically(folder / f"{name}{DRAWING}", hmac.digest(key, content, "sha256") + content)
        write_atomically(folder / f"{name}.png", image)
    plt.close(fig)
    width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
    across = round(width * 96 / _dpi(fig))
    display(HTML(_figure_html(name, "png", image, (across, round(height * across / width)), caption, alt)))


def _figure_html(name: str, kind: str, image: bytes, size: tuple[int, int], caption: str, alt: str) -> str:
    return (
        f'<figure id="{html.escape(name)}"><img alt="{html.escape(alt)}" width="{size[0]}" height="{size[1]}" '
        f'src="data:image/{kind};base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


FORMS = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What `draw` writes, with what is left out of the file's own description: so it is the same bytes each time."""
DRAWING = ".drawing"
KEY = REPOSITORY / ".drawing-key"
KEY_BYTES = 32


def own_key() -> bytes | None:
    """What this checkout signs its drawings with, made when it is first asked for; None where it cannot be kept."""
    try:
        if not KEY.exists():
            with tempfile.NamedTemporaryFile(
                dir=KEY.parent, prefix=".drawing-key."
            ) as file:  # for its owner's eyes only
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                try:
                    os.link(file.name, KEY)
                except FileExistsError:  # another job was first
                    pass
                except OSError:  # no hard links there (FAT, many network mounts): whole but for an instant
                    with suppress(FileExistsError), open(KEY, "xb", opener=_for_its_owner) as own:
                        own.write(Path(file.name).read_bytes())
        for patience in (0.01, 0.1, 1, 0):
            key = KEY.read_bytes()
            if len(key) == KEY_BYTES:
                return key
            time.sleep(patience)  # another job is just writing it
    except OSError:
        pass
    return None


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@own_look()
def draw(drawing: Path) -> list[Path]:
    """Write the SVG and the PDF beside a figure's `<name>.drawing` that are not there; returns them.

    A drawing is a pickled figure, which can run code when it is opened: so only those are that this checkout has signed.
    SqlibError for any other, for a damaged one, and for one of another matplotlib.
    """
    import matplotlib.pyplot as plt

    missing = {path: path.suffix[1:] for kind in FORMS if not (path := drawing.with_suffix(f".{kind}")).exists()}
    if not missing:
        return []
    stored = drawing.read_bytes()
    signature, content = stored[:32], stored[32:]
    if not hmac.compare_digest(hmac.digest(own_key() or os.urandom(32), content, "sha256"), signature):
        raise SqlibError(f"{drawing}: damaged, or drawn by another checkout: make its page again, here")
    try:
        fig, shown = pickle.loads(zlib.decompress(content))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SqlibError(f"{drawing}: cannot be drawn ({reason}): make its page again") from None
    for path, kind in missing.items():
        buffer = io.BytesIO()
        with plt.rc_context({"svg.hashsalt": drawing.stem, "pdf.fonttype": 42}):
            fig.savefig(buffer, format=kind, metadata=FORMS[kind], bbox_inches=shown, facecolor="white")
        write_atomically(path, buffer.getvalue())
    return list(missing)


@own_look()
def animation(figs: Sequence, name: str, caption: str, alt: str, seconds: float = 0.8) -> None:
    """Shows matplotlib figures of one size one after the other, `seconds` each, again and again, and closes them.

    Behind a control that opens it: nothing moves unless a reader asks for it, and closing it stops it. What it shows must
    stand still elsewhere on the page. No file is written.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display
    from PIL import Image

    _check_name(name)
    frames = []
    for fig in figs:
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=90, facecolor="white")
        frames.append(Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).convert("RGB"))
        plt.close(fig)
    moving = io.BytesIO()
    frames[0].save(
        moving, "webp", save_all=True, append_images=frames[1:], duration=round(1000 * seconds), lossless=True
    )
    shown = _figure_html(name, "webp", moving.getvalue(), frames[0].size, caption, alt)
    duration = f"{len(frames)} pictures, {len(frames) * seconds:.0f} s, again and again until closed"
    display(HTML(f'<details class="animation"><summary>Watch it move ({duration})</summary>{shown}</details>'))


def table(
    df,
    name: str,
    caption: str,
    formats: Mapping[str, str | Callable] | None = None,
    note: str | None = None,
    folder: str | Path | None = None,
) -> None:
    """Shows a DataFrame as an accessible HTML table: caption, scoped headers, numbers to the right, values escaped.

    An index that is not just 0, 1, 2... becomes the row headers, otherwise the first column does. `formats` maps a
    column to a format string ("{:.1f}") or function. With `folder` (or after `tables_to`) it also writes `<name>.csv`
    (all digits), `.md` and `.tex` (booktabs) there.
    """
    from IPython.display import HTML, display

    _check_name(name)
    display(HTML(table_html(df, name, caption, formats, note)))
    folder = _folders["tables"] if folder is None else Path(folder)
    if folder is not None:
        written = {
            "csv": flat_table(df)[0].to_csv(index=False, lineterminator="\n"),
            "md": table_markdown(df, caption, formats, note),
            "tex": table_latex(df, name, caption, formats, note),
        }
        for kind, content in written.items():
            write_atomically(folder / f"{name}.{kind}", content.encode())


def prose(markdown: str) -> None:
    """Shows text computed by the notebook, in Markdown: numbers in it come from the results.

    Of HTML only bare <sub>, <sup>, <br>, <em>, <strong>, <b>, <i> and <code> count; anything else appears as text.
    """
    from IPython.display import Markdown, display

    display(Markdown(re.sub(r"<(?!/?(?:sub|sup|br|em|strong|b|i|code)\s*/?>)", "&lt;", markdown)))


class Points(list):
    """Texts that stand in a sentence as a list, a point each."""

    def __format__(self, _: str) -> str:
        return "\n".join(f"- {text}" for text in self)


def load_ipython_extension(shell) -> None:
    """Gives a notebook that says `%load_ext sqlib.report.cells` the cell magic `%%prose` (see `written`)."""

    def cell(line: str, text: str) -> None:
        name, found = written(line, text, shell.user_ns)
        if name:
            shell.user_ns[name] = found
        elif found:
            prose("\n".join(found) if isinstance(found, Points) else found)

    shell.register_magic_function(cell, "cell", "prose")


def written(line: str, text: str, names: dict) -> tuple[str, str | Points]:
    """(name under which a `%%prose` cell keeps its text, "" if it is to be shown; the text with its values in it).

    `{expression}` stands for a value among `names`, as in an f-string. What may stand behind `%%prose`: `if CONDITION`,
    without which the text is empty; `for NAME in VALUES`, which writes it for each of them; and in front of either, `NAME =`,
    for a text that captions need, too. Raises what the expressions raise, and SqlibError for another line.
    """
    found = re.fullmatch(r"(?:(\w+)\s*=)?\s*(?:(if)\s+(.+)|(for\s+.+))?", line.strip())
    if not found:
        raise SqlibError(
            f"%%prose {line}: expected nothing, 'if CONDITION' or 'for NAME in VALUES', behind 'NAME =' or not"
        )
    name, _, condition, loop = found.groups()
    code = f'rf"""{text.rstrip()}\n"""[:-1]'  # the line's end keeps a last quotation mark from ending the string
    if loop:
        code = f"[{code} {loop}]"
    elif condition:
        code = f'{code} if {condition} else ""'
    value = eval(code, names)
    return name or "", Points(value) if loop else value


def finish(result_file: str | Path | None, result: dict) -> None:
    """Writes `result` as JSON, the last act of a notebook and its proof of success (None: does nothing)."""
    if result_file is not None:
        try:
            content = to_json(result)
        except (TypeError, ValueError) as error:
            raise SqlibError(f"{result_file}: cannot be written as JSON: {error}") from None
        write_atomically(Path(result_file), content)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise SqlibError(f"name '{name}': a letter, then letters, digits, '_' and '-' (it names a file and an anchor)")


def _dpi(fig) -> float:
    # 1,200 pixels across, but for very small and very wide figures.
    return min(200.0, max(100.0, 1200 / fig.get_figwidth()))


def _laid_out(fig):
    """Lay the figure out, once for all its files: the box of what is drawn on it, with a margin, in inches."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    return fig.get_tightbbox().padded(0.1)


@own_look()
def png(fig, caption: str, alt: str, box=None) -> bytes:
    """The figure as PNG on white, its words inside; with 256 colours, a third of the bytes or less, where nobody sees it.

    box: what of it is shown, in inches (all that is drawn).
    """
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    box = _laid_out(fig) if box is None else box
    buffer = io.BytesIO()
    fig.savefig(
        buffer, format="png", dpi=_dpi(fig), bbox_inches=box, facecolor="white", pil_kwargs={"compress_level": 0}
    )
    image = Image.open(buffer).convert("RGB")
    few = image.quantize(256, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(image, np.int16) - np.asarray(few.convert("RGB"), np.int16))
    words = PngInfo()
    words.add_itxt("Title", caption)
    words.add_itxt("Description", alt)
    unseen = error.mean() < 1 and (error > 16).mean() <= 0.001
    made = io.BytesIO()
    (few if unseen else image).save(made, "png", optimize=True, pnginfo=words)
    return made.getvalue()
