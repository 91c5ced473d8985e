"""What notebooks show and save, as it arrives in the page and on disk."""

import base64
import errno
import hmac
import io
import json
import os
import pickle
import re
import zlib

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from PIL import Image

from sqlib.checked import SqlibError
from sqlib.report import cells
from sqlib.report.tables import table_html


@pytest.fixture
def shown(monkeypatch):
    """What is displayed while a test runs."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", outputs.append)
    return outputs


def draw():
    fig, ax = plt.subplots(figsize=(10, 3), layout="constrained")
    ax.imshow(np.arange(64).reshape(8, 8), cmap="magma", aspect="auto")
    return fig


def test_figure_carries_alt_and_caption_and_is_closed(shown):
    fig = draw()
    cells.figure(fig, "maps", "Maps <of> images", 'Clip "closes" gates')
    text = shown[0].data
    assert text.startswith('<figure id="maps"><img alt="Clip &quot;closes&quot; gates"')
    assert "<figcaption>Maps &lt;of&gt; images</figcaption>" in text
    assert not plt.fignum_exists(fig.number)


def test_figure_files_are_the_same_each_time(shown, tmp_path):
    contents = []
    for folder in ("a", "b"):
        cells.figure(draw(), "maps", "Caption", "Alt", tmp_path / folder)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["maps.drawing", "maps.png"]
        cells.draw(tmp_path / folder / "maps.drawing")
        contents.append(
            {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.suffix != ".drawing"}
        )
    assert sorted(contents[0]) == ["maps.pdf", "maps.png", "maps.svg"]
    assert contents[0] == contents[1]
    image = Image.open(io.BytesIO(contents[0]["maps.png"]))
    image.load()
    assert 1000 <= image.width <= 1400
    assert image.text == {"Title": "Caption", "Description": "Alt"}


def test_the_files_of_a_figure_show_the_same_box_with_all_words_in_it(shown, tmp_path):
    fig = draw()
    fig.text(1.2, 0.5, "beside the figure")
    cells.figure(fig, "maps", "Caption", "Alt", tmp_path)
    cells.draw(tmp_path / "maps.drawing")
    with Image.open(tmp_path / "maps.png") as image:
        width, height = image.size
    vector = (tmp_path / "maps.svg").read_text()
    points = [float(found) for found in re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', vector).groups()]
    page = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ([\d.]+)", (tmp_path / "maps.pdf").read_bytes()).groups()
    assert [float(side) for side in page] == pytest.approx(points, abs=0.1)
    assert [width, height] == pytest.approx([side * 120 / 72 for side in points], abs=1.5)
    assert points[0] > 1.2 * 10 * 72


def test_a_figure_takes_the_drawn_forms_of_the_one_it_replaces_away(shown, tmp_path):
    cells.figure(draw(), "maps", "Caption", "Alt", tmp_path)
    assert {path.suffix for path in cells.draw(tmp_path / "maps.drawing")} == {".svg", ".pdf"}
    assert cells.draw(tmp_path / "maps.drawing") == []  # what is there is not drawn again
    (tmp_path / "maps.pdf").unlink()
    assert cells.draw(tmp_path / "maps.drawing") == [tmp_path / "maps.pdf"]
    cells.figure(draw(), "maps", "Caption", "Alt", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.drawing", "maps.png"]


def test_only_a_drawing_with_this_checkouts_signature_is_opened(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "KEY", tmp_path / "key")
    ran = tmp_path / "ran"
    bad = zlib.compress(pickle.dumps(Runs(str(ran))))
    path = tmp_path / "f" / "maps.drawing"
    cells.figure(draw(), "maps", "Caption", "Alt", path.parent)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600 and len(cells.own_key()) == 32
    good = path.read_bytes()
    others = hmac.digest(b"x" * 32, bad, "sha256") + bad  # by somebody with another key
    for content in (b"", b"no figure", good[:-1], bytes(32) + bad, good[:32] + bad, others):
        path.write_bytes(content)
        with pytest.raises(SqlibError, match="maps.drawing: damaged, or drawn by another checkout"):
            cells.draw(path)
    assert not ran.exists() and not path.with_suffix(".svg").exists()
    path.write_bytes(good)
    assert len(cells.draw(path)) == 2
    monkeypatch.setattr(cells, "KEY", tmp_path / "no folder" / "key")  # it cannot be kept: then there is no drawing
    cells.figure(draw(), "maps", "Caption", "Alt", tmp_path / "without")
    assert [path.name for path in (tmp_path / "without").iterdir()] == ["maps.png"]


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_palette_saves_bytes_and_is_not_seen(shown, tmp_path):
    cells.figure(draw(), "maps", "Caption", "Alt", tmp_path)
    image = Image.open(tmp_path / "maps.png")
    assert image.mode == "P"
    buffer = io.BytesIO()
    draw().savefig(buffer, dpi=120, bbox_inches="tight", facecolor="white")
    plt.close("all")
    full = np.asarray(Image.open(buffer).convert("RGB"), int)
    assert np.abs(full - np.asarray(image.convert("RGB"), int)).mean() < 1


def test_figures_and_tables_go_to_the_chosen_folder(shown, tmp_path):
    cells.figures_to(tmp_path / "figures")
    cells.tables_to(str(tmp_path / "tables"))
    try:
        cells.figure(draw(), "maps", "Caption", "Alt")
        cells.table(pd.DataFrame({"a": [1]}), "numbers", "Caption")
    finally:
        cells.figures_to(None)
        cells.tables_to(None)
    assert {path.name for path in tmp_path.glob("*/*")} == {
        *("maps.png", "maps.drawing"),
        *("numbers.csv", "numbers.md", "numbers.tex"),
    }


@pytest.mark.parametrize(("name", "alt"), [("../maps", "alt"), ("maps", " "), ("1 2", "alt")])
def test_figure_refuses_bad_names_and_empty_alt(shown, name, alt):
    fig = draw()
    with pytest.raises(SqlibError):
        cells.figure(fig, name, "caption", alt)
    plt.close(fig)


FRAME = pd.DataFrame(
    {
        "setup": ["fp32", "<script>"],
        "accuracy": [0.99461, float("nan")],
        "bytes": [1234567, 2],
        "gini": ["0.7 ± 0.1"] * 2,
    }
)


def test_table_has_caption_scopes_alignment_and_escapes():
    text = table_html(FRAME, "t", "All & more", {"accuracy": lambda v: f"{100 * v:.2f}", "gini": "{}"}, note="a < b")
    assert "<caption><span>All &amp; more</span></caption>" in text
    assert text.count('<th scope="col"') == 4
    assert '<th scope="row">&lt;script&gt;</th>' in text
    assert "<script>" not in text
    assert '<td class="n">99.46</td>' in text
    assert '<td class="n">–</td>' in text
    assert '<td class="n">1,234,567</td>' in text
    assert '<td class="n">0.7 ± 0.1</td>' in text  # formatted numbers stand to the right too
    assert "a &lt; b" in text
    assert re.search(r'<div class="table" id="t" role="region" tabindex="0" aria-label="All &amp; more">', text)


def test_an_index_becomes_row_headers_and_markup_stands():
    frame = FRAME.assign(page=Markup('<a href="x.html">x</a>')).set_index(["setup", "gini"])
    text = table_html(frame, "t", "c")
    assert text.count('<th scope="row"') == 4
    assert '<td><a href="x.html">x</a></td>' in text


def test_unknown_format_column_names_the_nearest():
    with pytest.raises(SqlibError, match="did you mean 'accuracy'"):
        table_html(FRAME, "t", "c", {"acuracy": "{}"})


def test_table_files(shown, tmp_path):
    cells.table(FRAME, "t", "5% of_all", {"accuracy": "{:.2f}"}, note="n", folder=tmp_path)
    assert pd.read_csv(tmp_path / "t.csv")["accuracy"][0] == 0.99461  # every digit
    assert "| fp32 | 0.99 | 1,234,567 | 0.7 ± 0.1 |" in (tmp_path / "t.md").read_text()
    tex = (tmp_path / "t.tex").read_text()
    assert r"\toprule" in tex
    assert r"\caption{5\% of\_all}" in tex
    assert r"fp32 & 0.99 & 1,234,567 & 0.7 $\pm$ 0.1 \\" in tex


def test_prose_keeps_markdown_and_shows_foreign_html_as_text(shown):
    cells.prose("**1.2** points, 10<sup>3</sup>, a < b, <script>x</script>")
    assert shown[0].data == "**1.2** points, 10<sup>3</sup>, a &lt; b, &lt;script>x&lt;/script>"


def test_finish(tmp_path):
    cells.finish(None, {"a": 1})
    cells.finish(str(tmp_path / "new" / "r.json"), {"a": np.float32(0.5), "b": float("nan"), "c": (1, 2)})
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"a": 0.5, "b": None, "c": [1, 2]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]
    with pytest.raises(SqlibError, match=r"r\.json"):
        cells.finish(tmp_path / "r.json", {"a": object()})


def test_an_animation_waits_behind_a_control_and_shows_every_picture(shown):
    figs = []
    for height in (1, 2, 3):
        fig, axis = plt.subplots(figsize=(3, 2))
        axis.plot([0, height])
        axis.set_ylim(0, 3)
        figs.append(fig)
    cells.animation(figs, "film", "The <line> rises", 'It "rises"', seconds=0.5)
    text = shown[0].data
    assert text.startswith('<details class="animation"><summary>Watch it move (3 pictures, 2 s')
    assert 'alt="It &quot;rises&quot;"' in text and "The &lt;line&gt; rises" in text
    film = Image.open(io.BytesIO(base64.b64decode(text.split("base64,")[1].split('"')[0])))
    assert (film.format, film.n_frames, film.info["loop"]) == ("WEBP", 3, 0)
    assert f'width="{film.width}" height="{film.height}"' in text
    pictures = set()
    for k in range(3):
        film.seek(k)
        pictures.add(film.convert("RGB").tobytes())
    assert len(pictures) == 3
    assert not any(plt.fignum_exists(fig.number) for fig in figs)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_where_there_are_no_hard_links_the_key_is_kept_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cells, "KEY", tmp_path / "key")
    monkeypatch.setattr(os, "link", refuse)
    key = cells.own_key()
    assert len(key) == 32 and cells.own_key() == key == (tmp_path / "key").read_bytes()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == ["key"]


def test_a_key_that_is_half_written_signs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "KEY", tmp_path / "key")
    monkeypatch.setattr(cells.time, "sleep", lambda seconds: None)
    for content in (b"", bytes(31)):
        (tmp_path / "key").write_bytes(content)
        assert cells.own_key() is None
    waited = []
    monkeypatch.setattr(
        cells.time, "sleep", lambda seconds: waited.append(seconds) or (tmp_path / "key").write_bytes(bytes(32))
    )
    assert cells.own_key() == bytes(32) and len(waited) == 1  # another job was just writing it
