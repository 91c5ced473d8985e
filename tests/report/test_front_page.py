"""The index of a study: from no results, from some, from all."""

import re
from html import unescape
from types import SimpleNamespace

import matplotlib
from planted import fake_result

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
from bs4 import BeautifulSoup
from markup import Elements, assert_held, assert_offline, fits

from sqlib.files import to_json, write_atomically
from sqlib.report import front_page
from sqlib.report.cells import draw, figure
from sqlib.study.parameters import load_study
from sqlib.workflow.pages import listed


def write_index(study, reports):
    """The index, with the study's own pages."""
    front_page.write_index(study, reports, listed(study))


@pytest.fixture
def study():
    return load_study("paper").model_copy(update={"seeds": [0, 1], "title": "How many <bits>?"})


@pytest.fixture
def full(study, tmp_path, monkeypatch):
    """(study, its reports with every run but one, the elements of its index)."""
    monkeypatch.setattr("IPython.display.display", lambda value: None)
    fig, _ = plt.subplots()
    figure(fig, "compare_mnist_maps", "The caption.", "What the maps show", tmp_path / "figures")
    draw(tmp_path / "figures/compare_mnist_maps.drawing")
    for name in ("data_mnist.html", "compare_mnist.html", "tables.html"):
        (tmp_path / name).write_text("page")
    *most, last = study.runs()
    for run in most:
        fake_result(run, tmp_path)
        (run.folder(tmp_path) / "train.html").write_text("page")
        if run.seed == 0:
            (run.folder(tmp_path) / "saliency.html").write_text("page")
    write_index(study, tmp_path)
    page = tmp_path / "index.html"
    return SimpleNamespace(study=study, reports=tmp_path, page=page, text=page.read_text(), last=last)


def test_question_and_answer_come_from_the_results(full):
    assert "<h1>How many &lt;bits&gt;?</h1>" in full.text
    plain = " ".join(unescape(re.sub("<[^>]*>", "", full.text)).split())
    assert (
        "32 networks are trained and explained for this: on MNIST and Fashion-MNIST, with four choices of bits" in plain
    )
    assert "From fp32 to w2a2 (2-bit weights and activations), accuracy on MNIST goes from 98.50 to 97.90 %" in plain
    assert (
        "97.90 % and the faithfulness gap of the saliency maps from 0.200 to 0.200 (0.000 ± 0.000); on Fashion" in plain
    )
    assert (
        "is not where the bits are fewest: w4a4 on MNIST (0.150), w4a4 on Fashion-MNIST (0.150). How much of it"
        in plain
    )
    assert "the pages about explanations show three fills" in plain
    assert "test accuracy by −0.60 ± 0.14 points (98.50 → 97.90 %)" in plain  # paired: −0.5 and −0.7
    assert "Gini index of the saliency maps by 0.000 ± 0.000 (0.700 → 0.700)" in plain
    assert "a further −0.10 ± 0.00 points, 0.000 ± 0.000 and 0.000 ± 0.000" in plain
    assert "31 of 32 runs are finished" in plain


def test_headline_table_picture_and_facts(full):
    assert '<td class="n">98.50 ± 0.71</td>' in full.text
    assert [image["alt"] for image in Elements(full.page).all("img")] == ["What the maps show"]
    caption = BeautifulSoup(full.text, "html.parser").figcaption
    assert caption.text.split() == ["The", "caption.", "SVG", "·", "PDF"]
    assert [a["href"] for a in caption.find_all("a")] == [
        f"figures/compare_mnist_maps.{kind}" for kind in ("svg", "pdf")
    ]
    assert "make reproduce STUDY=paper" in full.text
    assert "<dt>Revision</dt>" in full.text
    assert "31 minutes" in full.text


def test_every_link_resolves_and_every_page_is_linked(full):
    links = {a["href"] for a in Elements(full.page).all("a")}
    ids = {attributes.get("id") for _, attributes in Elements(full.page).found}
    for link in links:
        assert link[1:] in ids if link.startswith("#") else (full.reports / link).exists(), link
    made = {path.relative_to(full.reports).as_posix() for path in full.reports.rglob("*.html")} - {"index.html"}
    assert made <= links
    assert ">99.00\u00a0%</a>" in full.text  # on a phone the sign stays with its number


CLAIM = {
    "id": "a",
    "claim": "The abstract says that bits <cost> accuracy.",
    "network": "lenet",
    "quantity": "test_accuracy",
    "low": None,
    "high": None,
}


def test_verdicts_stand_on_the_index_once_their_page_is_there(full):
    assert 'id="verdicts"' not in full.text
    rows = [
        {**CLAIM, "dataset": "mnist", "effect": -0.006, "low": -0.009, "high": -0.003, "verdict": "supported"},
        {**CLAIM, "dataset": "fashion_mnist", "effect": None, "verdict": "inconclusive"},
    ]
    write_atomically(full.reports / "results/claims.json", to_json(rows))
    (full.reports / "claims.html").write_text("the page")
    write_index(full.study, full.reports)
    text = full.page.read_text()
    assert "Bits &lt;cost&gt; accuracy." in text
    cells = [cell.text for cell in BeautifulSoup(text, "html.parser").select("#verdicts td")]
    assert cells == ["■ supported −0.60 points [−0.90, −0.30]", "○ inconclusive no difference known"]
    plain = " ".join(re.sub("<[^>]*>", "", text).split())
    assert (
        "abstract, the verdict is supported for 1, contradicted for 0 and inconclusive for 1: 2 seeds show there"
        in plain
    )
    assert text.index('id="verdicts"') < text.index('id="pages"') < text.index('href="claims.html"')
    write_atomically(full.reports / "results/claims.json", b"{")
    write_index(full.study, full.reports)
    assert 'id="verdicts"' not in full.page.read_text()


def test_pages_that_answer_come_first(full):
    for name in ("data_mnist", "tables", "explanations_mnist"):
        (full.reports / f"{name}.html").write_text("a page")
    write_index(full.study, full.reports)
    text = full.page.read_text()
    assert text.index('"tables.html"') < text.index('"explanations_mnist.html"') < text.index('"data_mnist.html"')


def failures(page):
    """{run or job: (cell, error, {word: address})} of the index's table of failed and missing runs."""
    rows = BeautifulSoup(page.read_text(), "html.parser").select("#failed tbody tr")
    return {
        row.th.text: (*(cell.text for cell in row.find_all("td")[:2]), {a.text: a["href"] for a in row.find_all("a")})
        for row in rows
    }


def test_missing_and_failed_runs_are_named(full):
    assert failures(full.page) == {full.last.id: ("–", "not run yet", {})}
    folder = full.last.folder(full.reports)
    log = full.reports / "logs" / full.last.id / "train.log"
    write_atomically(log, b"some words\nerror: the data is not there\n")
    write_index(full.study, full.reports)
    assert failures(full.page)[full.last.id][:2] == ("–", "the data is not there")
    write_atomically(log, b"")
    write_index(full.study, full.reports)
    assert failures(full.page)[full.last.id][:2] == ("–", "stopped before its end")
    write_atomically(
        folder / "notebook.ipynb",
        b'{"cells": [{"cell_type": "markdown", "metadata": {}, "source": "x", "id": "b"}, '
        b'{"cell_type": "code", "execution_count": 1, "metadata": {}, "source": "# why\\nfit(run)", "id": "a", "outputs": '
        b'[{"output_type": "error", "ename": "ValueError", "evalue": "<b>ad\\nand more", "traceback": []}]}], '
        b'"metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    )
    write_index(full.study, full.reports)
    addresses = {"log": f"logs/{full.last.id}/train.log", "notebook": f"runs/{full.last.id}/notebook.ipynb"}
    assert failures(full.page) == {full.last.id: ("2: fit(run)", "ValueError: <b>ad", addresses)}
    assert "<b>ad" not in full.page.read_text()
    assert all((full.reports / address).exists() for address in addresses.values())


def test_jobs_that_failed_are_named_when_all_runs_are_there(full):
    fake_result(full.last, full.reports)
    write_atomically(full.reports / "logs/data_mnist.log", b"mnist: complete\n")
    write_atomically(full.reports / "logs/reproduce.log", b"error: of Snakemake\n")
    write_index(full.study, full.reports)
    assert failures(full.page) == {} and "could not be made" not in full.page.read_text()
    write_atomically(full.reports / "logs/tables.log", b"error: no results\n")
    write_index(full.study, full.reports)
    assert failures(full.page) == {"tables": ("–", "no results", {"log": "logs/tables.log"})}
    assert "Some pages could not be made" in full.page.read_text()


def test_index_is_offline_and_holds_what_is_wide(full):
    assert_offline(full.page)
    assert_held(full.page)
    figures = BeautifulSoup(full.page.read_text(), "html.parser").find_all("figure")
    wide = [int(figure.img["width"]) > 340 for figure in figures]
    assert any(wide) and [figure.has_attr("data-wide") for figure in figures] == wide


@pytest.mark.browser
def test_index_fits_a_phone(full):
    assert fits(full.page, 360)


def test_index_of_nothing(study, tmp_path):
    write_index(study, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "0 of 32 runs are finished" in text
    assert 'id="the-answer"' not in text
    assert len(failures(tmp_path / "index.html")) == text.count("not run yet") == 32


def test_one_seed_says_so_and_a_small_grid_too(tmp_path):
    study = load_study("smoke")
    for run in study.runs():
        fake_result(run, tmp_path)
    write_index(study, tmp_path)
    text = " ".join(re.sub("<[^>]*>", "", (tmp_path / "index.html").read_text()).split())
    assert "one seed, so no spread can be given" in text
    assert "its numbers do not answer the question" in text
