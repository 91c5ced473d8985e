"""What goes to reports/reference: complete, small enough, without links that lead nowhere."""

import errno
import os
import re

import pytest

from sqlib.checked import SqlibError
from sqlib.files import to_json, write_atomically
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.parameters import load_study
from sqlib.study.sweeps import trials_of
from sqlib.workflow import commands, publish


@pytest.fixture
def study():
    return load_study("smoke")


@pytest.fixture
def reports(tmp_path, study):
    """The files of a finished study, their content made up: publishing only copies."""
    reports = tmp_path / "reports" / "smoke"
    for run in study.runs():
        folder = run.folder(reports)
        folder.mkdir(parents=True)
        for name in (
            "result.json",
            "parameters.json",
            "model.safetensors",
            results.PACKED,
            "train.html",
            "saliency.html",
        ):
            (folder / name).write_text(f"<p>{run.id} {name}</p>")
    for name in (
        "tables/table1.csv",
        "figures/compare_mnist_maps.png",
        "figures/a.png",
        "results/runs.csv",
        "results/claims.json",
    ):
        (reports / name).parent.mkdir(exist_ok=True)
        (reports / name).write_text(name)
    first = study.runs()[0].id
    (reports / "index.html").write_text(
        f'<a class="x" href="runs/{first}/train.html">run</a> <a href="gone.html#part">lost</a> <a href="https://a.example">far</a>'
    )
    return reports


def test_models_are_packed_but_float_ones_and_links_lead_somewhere(study, reports):
    target = reports.parent / "reference"
    size, left_out = publish.publish_study(study, reports, target)
    assert left_out == []
    assert size == sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    for run in study.runs():
        models = {path.name for path in run.folder(target).glob("*.safetensors")}
        assert models == {"model.safetensors" if run.setup.is_float else results.PACKED}
    index = (target / "index.html").read_text()
    assert f'href="runs/{study.runs()[0].id}/train.html"' in index
    assert "gone.html" not in index and "lost" in index and "https://a.example" in index
    assert [path.name for path in (target / "figures").iterdir()] == ["compare_mnist_maps.png"]


def test_publishing_again_replaces_the_old_reference(study, reports):
    target = reports.parent / "reference"
    target.mkdir()
    (target / "old.html").write_text("old")
    publish.publish_study(study, reports, target)
    assert not (target / "old.html").exists()
    assert sorted(path.name for path in reports.parent.iterdir()) == ["reference", "smoke"]


def test_pages_are_left_out_before_the_limit_and_too_much_is_refused(study, reports, monkeypatch):
    target = reports.parent / "reference"
    size, _ = publish.publish_study(study, reports, target)
    monkeypatch.setattr(publish, "LIMIT_BYTES", size - 1)
    _, left_out = publish.publish_study(study, reports, target)
    (left,) = left_out  # of a setup in the middle: the first and the last one tell the most
    assert left.split("/")[2] not in (study.setups[0].name, study.setups[-1].name)
    monkeypatch.setattr(publish, "LIMIT_BYTES", 10)
    with pytest.raises(SqlibError, match="MB to publish"):
        publish.publish_study(study, reports, target)
    assert (target / "index.html").exists()  # the one before is still there


def test_a_sweep_that_is_missing_or_of_other_code_is_not_published(study, reports, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(reports.parent))
    monkeypatch.setattr(commands, "up_to_date", lambda run, reports: True)
    monkeypatch.setattr(commands, "pages_of", lambda study: [])
    with pytest.raises(
        SqlibError, match="sweep quick is missing or was made by other code: run 'make sweeps STUDY=smoke'"
    ):
        commands.publish("smoke", force=True)
    for trial in trials_of(study):
        write_atomically(trial.path(reports), to_json({"stamp": trial.stamp()}))
    commands.publish("smoke", force=True)
    copies = [trial.path(reports.parent / "reference") for trial in trials_of(study)]
    assert all(copy.exists() for copy in copies)
    write_atomically(
        trials_of(study)[0].path(reports), to_json({"stamp": {**trials_of(study)[0].stamp(), "sources": "other"}})
    )
    with pytest.raises(SqlibError, match="made by other code"):
        commands.publish("smoke", force=True)
    assert copies[0].exists()
    commands.publish("smoke", force=True, older_sweeps=True)  # the same parameters, and it is said
    write_atomically(
        trials_of(study)[0].path(reports), to_json({"stamp": {**trials_of(study)[0].stamp(), "runs": ["other"]}})
    )
    with pytest.raises(SqlibError, match="made by other code"):
        commands.publish("smoke", force=True, older_sweeps=True)


def test_nothing_is_left_of_steps_and_files_that_are_not_published(tmp_path):
    (tmp_path / "there.html").write_text("")
    page = tmp_path / "page.html"
    page.write_text(
        '<h2 id="runs">Runs</h2><a href="there.html">there</a>, <a href="gone.html">seed 1</a>'
        'A. <span class="files"><a href="figures/a.svg">SVG</a> · <a href="figures/a.pdf">PDF</a></span>'
        'T<p class="note"><span class="files"><a href="tables/t.csv">CSV</a> · <a href="tables/t.md">Markdown</a></span></p>'
        'U<p class="note"><span class="files"><a href="there.html">CSV</a></span></p>'
        '<nav class="steps" aria-label="x">\n<a rel="next" href="gone.html"><span>Next</span> gone</a>\n</nav>'
    )
    publish.drop_dead_links(tmp_path)
    assert page.read_text() == (
        f'<h2 id="runs">Runs</h2>{publish._ABSENT}<a href="there.html">there</a>, <span class="absent">seed 1</span>A. '
        'TU<p class="note"><span class="files"><a href="there.html">CSV</a></span></p>'
    )


def test_no_published_page_names_files_that_are_not_published():
    pages = list((REPOSITORY / "reports/reference").rglob("*.html"))
    for page in pages:
        for files in re.findall(r'<span class="files">(.*?)</p>', page.read_text(), re.DOTALL):
            assert "absent" not in files, page
    assert len(pages) > 20


def test_where_no_mode_can_be_set_it_is_published_all_the_same(study, reports, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    target = reports.parent / "reference"
    assert publish.publish_study(study, reports, target)[0] > 0 and (target / "index.html").exists()
