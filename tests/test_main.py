"""The command line: every job is listed, every mistake is one line, the driver reads Snakemake rightly."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from sqlib import __main__ as command
from sqlib import runs
from sqlib.config import REPOSITORY, SqlibError, load_study

JOBS = (
    "data", "train", "saliency", "compare", "tables", "claims", "index", "reports", "plan", "reproduce",
    "pack", "predict", "export", "unlock", "publish",
)  # fmt: skip


def sqlib(*arguments, **environment):
    """Run `python -m sqlib ...`; its CompletedProcess."""
    return subprocess.run(
        [sys.executable, "-m", "sqlib", *arguments],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(done, *words):
    """The process ended with exit code 2 and one line on stderr that has all `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_help_lists_every_job():
    done = sqlib("--help", COLUMNS="100")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert sorted(listed) == sorted(JOBS)
    assert "..." not in done.stdout.split("Commands:")[1]


def test_help_needs_no_heavy_import():
    code = "import sys, sqlib.__main__; print({'torch', 'pandas', 'matplotlib', 'papermill'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("job", ["train", "reproduce"])
def test_a_mistyped_study_names_the_nearest(job, tmp_path):
    more = ["mnist/lenet/fp32/standard/seed0"] if job == "train" else []
    assert_one_line(sqlib(job, "smoek", *more, SQLIB_REPORTS=tmp_path), "params/smoek.yaml", "'smoke'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "smoke", "mnist/lenet/w2a3/standard/seed0"], ["no run", "'mnist/lenet/w2a2/standard/seed0'"]),
        (["compare", "smoke", "fashion"], ["no data set 'fashion'", "fashion_mnist"]),
        (["compare", "smoke", "mnist", "--network", "lenet6"], ["no network 'lenet6'"]),
        (["data", "fasion_mnist"], ["unknown data set", "'fashion_mnist'"]),
        (["reproduce", "smoke", "--profile", "slrum"], ["unknown profile", "'slurm'"]),
        (["reports", "smoke"], ["no results yet"]),
        (["publish", "smoke"], ["--force"]),
        (["publish", "paper"], ["not complete", "make reproduce"]),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path):
    assert_one_line(sqlib(*arguments, SQLIB_REPORTS=tmp_path), *words)


def test_an_unknown_job_names_the_nearest():
    done = sqlib("trian")
    assert done.returncode == 2
    assert "'train'" in done.stderr
    assert "Traceback" not in done.stderr


def test_reports_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(sqlib("reproduce", "smoke", SQLIB_REPORTS=tmp_path / "file"), "cannot write")


def test_a_study_being_made_is_not_made_twice(tmp_path):
    (tmp_path / "smoke").mkdir()
    with open(tmp_path / "smoke/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1")
        file.flush()
        assert_one_line(sqlib("reproduce", "smoke", SQLIB_REPORTS=tmp_path), "another process (process 1)")


def test_a_stale_lock_of_snakemake_is_removed(tmp_path):
    locks = tmp_path / "smoke/.snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("x")
    done = sqlib("unlock", "smoke", SQLIB_REPORTS=tmp_path)
    assert done.returncode == 0
    assert not locks.exists()


# ---- the driver ----------------------------------------------------------------------------------------------------

OUTPUT = """\
Building DAG of jobs...
[Mon Nov 23 12:00:00 2026]
rule train_mnist_standard:
    input: runs/mnist/lenet/w4a4/standard/seed1/parameters.json, results/data_mnist.json
    output: runs/mnist/lenet/w4a4/standard/seed1/result.json
    log: runs/mnist/lenet/w4a4/standard/seed1/notebook.ipynb, logs/mnist/lenet/w4a4/standard/seed1/train.log
    jobid: 7
    reason: Missing output files: runs/mnist/lenet/w4a4/standard/seed1/result.json
    wildcards: run=mnist/lenet/w4a4/standard/seed1
    priority: 3
    resources: tmpdir=/tmp
[Mon Nov 23 12:00:00 2026]
localrule tables:
    output: tables.html
    log: notebooks/tables.ipynb, logs/tables.log
    jobid: 9
    reason: Missing output files: tables.html
    resources: tmpdir=/tmp
Finished jobid: 7 (Rule: train_mnist_standard)
1 of 3 steps (33%) done
Error in rule tables:
    message: None
    jobid: 9
    log: notebooks/tables.ipynb, logs/tables.log (check log file(s) for error details)
"""


def events():
    listing = command.Listing()
    return [event for line in OUTPUT.splitlines() if (event := listing.feed(line))]


def test_the_driver_reads_what_snakemake_says():
    found = events()
    assert [(kind, number) for kind, number, _ in found] == [
        ("started", 7), ("started", 9), ("finished", 7), ("failed", 9),
    ]  # fmt: skip
    job = found[0][2]
    assert (job.rule, job.target) == ("train", "mnist/lenet/w4a4/standard/seed1")
    assert job.log == "logs/mnist/lenet/w4a4/standard/seed1/train.log"
    assert (found[1][2].rule, found[1][2].target) == ("tables", "")


def test_progress_says_one_line_a_job(tmp_path):
    jobs = {number: job for kind, number, job in events() if kind == "started"}
    progress = command.Progress(jobs, slots=1, reports=tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/tables.log").write_text("some words\nerror: no results\n")
    progress.start(7)
    assert progress.finish(7).startswith("[1/2] trained mnist/lenet/w4a4/standard/seed1, 0 s; less than a minute left")
    assert "FAILED tables: no results (log: " in progress.fail(9)
    assert progress.fail(9) is None
    assert progress.finish(1) is None


def test_the_estimate_follows_the_measured_times(tmp_path):
    jobs = {number: command.Job("train", str(number), "", predicted=10.0) for number in range(5)}
    progress = command.Progress(jobs, slots=2, reports=tmp_path)
    assert progress.left() == pytest.approx(25)
    jobs[0].started = time.monotonic() - 20
    progress.finish(0)
    assert progress.left() == pytest.approx(40, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 00 s"),
        (72, "1 min 12 s"),
        (2040, "34 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds, text):
    assert command.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(20, "less than a minute"), (100, "about 2 min"), (4000, "about 1 h 10 min")]
)
def test_estimates_are_rough(seconds, text):
    assert command.about(seconds) == text


def test_a_result_that_does_not_belong_is_made_again(tmp_path):
    study = load_study("smoke")
    folder = study.runs()[0].folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    said = command.prepare(study, tmp_path)
    assert not (folder / "result.json").exists()
    assert len(said) == 1
    assert study.runs()[0].id in said[0]
    assert command.prepare(study, tmp_path) == []


def test_every_page_has_its_own_place_and_command():
    study = load_study("smoke").model_copy(update={"networks": ["lenet", "sgt_cnn"], "seeds": [0, 1]})
    pages = command.Page.all(study)
    assert len({page.html for page in pages}) == len({page.command for page in pages}) == len(pages)
    assert all(page.command.split()[0] in JOBS for page in pages)
    assert sum(page.kind == "saliency" for page in pages) == 2 * 2 * 4 * 2


def test_a_failed_notebook_still_gives_its_page(tmp_path, monkeypatch):
    page = command.Page.tables(load_study("smoke"))
    page.notebook, page.html = tmp_path / "tables.ipynb", tmp_path / "tables.html"
    rendered = []

    def fails(source, output, *_, **__):
        output.write_text("{}")
        raise SqlibError("cell 3: no")

    monkeypatch.setattr("sqlib.execution.execute", fails)
    monkeypatch.setattr(command.Page, "render", lambda self: rendered.append(self.html))
    with pytest.raises(SqlibError, match="cell 3"):
        page.execute({}, [])
    assert rendered == [page.html]


def test_reports_go_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    assert runs.reports_root() == tmp_path
    monkeypatch.delenv("SQLIB_REPORTS")
    assert runs.reports_root() == REPOSITORY / "reports"
