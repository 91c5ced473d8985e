"""The driver reads Snakemake rightly, tells how far it is, and makes again what does not belong."""

import base64
import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.report import words
from sqlib.study.parameters import load_study
from sqlib.study.sweeps import trials_of
from sqlib.workflow import snakemake
from sqlib.workflow.pages import KIND, job_of, jobs_of

SNAKEFILE = """\
rule all:
    input: "a", "b", "c"
rule made:
    output: "{name,[ab]}"
    log: notebook="{name}.ipynb", text="logs/{name}.log"
    group: "together"
    shell: "touch {output}"
rule failing:
    output: "c"
    log: text="logs/c.log"
    shell: "false"
"""


def run_snakemake(folder, *more):
    """(exit code, [(event, number, log)], all its words) of Snakemake on `SNAKEFILE`."""
    (folder / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "sqlib.workflow.snakemake_events", "--cores", "2", "--keep-going", *more]
    done = subprocess.run(
        command, cwd=folder, env=snakemake.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found = [snakemake.read_event(line) for line in done.stdout.splitlines()]
    return done.returncode, [tuple(rest) for _, *rest in found], "\n".join(text for text, *_ in found)


def test_what_snakemake_does_is_read_from_its_events_and_its_words_are_kept(tmp_path):
    code, planned, _ = run_snakemake(tmp_path, "--dry-run")
    logs = {log: number for event, number, log in planned if event == "job_info" and log}
    assert code == 0 and logs.keys() == {"logs/a.log", "logs/b.log", "logs/c.log"}
    code, done, words = run_snakemake(tmp_path)
    assert code == 1
    numbers = {
        kind: {number for event, number, _ in done if event == kind}
        for kind in ("job_info", "job_finished", "job_error")
    }
    assert numbers["job_info"] == set(logs.values())
    assert numbers["job_finished"] == {logs["logs/a.log"], logs["logs/b.log"]}  # each of a group
    assert numbers["job_error"] == {logs["logs/c.log"]}
    assert "failing" in words and "None" not in words.splitlines() and not words.startswith("{")


@pytest.mark.parametrize("line", ["a warning\n", "1\n", "[]\n", "{}\n", '{"text"\n', ""])
def test_a_line_that_is_no_event_is_words(line):
    assert snakemake.read_event(line) == (line.rstrip("\n"), "", None, None)


def test_progress_says_one_line_a_job(tmp_path):
    study = load_study("paper")
    jobs = {7: job_of(study, "train", run_id="mnist/lenet/w4a4/standard/seed1"), 9: job_of(study, "tables")}
    progress = snakemake.Progress(jobs, slots=1, reports=tmp_path, predicted={7: 10.0, 9: 10.0})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/tables.log").write_text("some words\nerror: no results\n")
    progress.start(7)
    assert progress.finish(7).startswith("[1/2] trained mnist/lenet/w4a4/standard/seed1, 0 s; less than a minute left")
    assert "FAILED tables: no results (log: " in progress.fail(9)
    assert progress.fail(9) is None
    assert progress.finish(1) is None


def test_the_estimate_follows_the_measured_times(tmp_path):
    jobs = dict(enumerate(jobs_of(load_study("paper"), [KIND["train"]])[:5]))
    progress = snakemake.Progress(jobs, slots=2, reports=tmp_path, predicted=dict.fromkeys(jobs, 10.0))
    assert progress.left() == pytest.approx(25)
    progress.started[0] = time.monotonic() - 20
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
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(20, "less than a minute"), (100, "about 2 min"), (4000, "about 1 h 10 min")]
)
def test_estimates_are_rough(seconds, text):
    assert words.about(seconds) == text


def test_the_disk_that_runs_take_follows_from_their_weights(make_run):
    small, large = make_run(network="lenet5"), make_run(network="sgt_cnn")
    weights = 6 * 25 + 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10  # of lenet5, without padding
    one = snakemake.disk_bytes([small])
    assert 4 * weights < one - snakemake.RUN_BYTES < 2 * 4 * weights
    assert snakemake.disk_bytes([small, small, large]) == pytest.approx(2 * one + snakemake.disk_bytes([large]))
    assert snakemake.disk_bytes([large]) > 3 * one and snakemake.disk_bytes([]) == 0


def test_a_result_that_does_not_belong_is_made_again(tmp_path):
    study = load_study("smoke")
    folder = study.runs()[0].folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    said = snakemake.prepare(study, tmp_path)
    assert not (folder / "result.json").exists()
    assert len(said) == 1
    assert study.runs()[0].id in said[0]
    assert snakemake.prepare(study, tmp_path) == []


def test_measured_maps_that_are_damaged_are_measured_again(tmp_path):
    study = load_study("smoke")
    folder = study.quality_runs()[0].folder(tmp_path)
    folder.mkdir(parents=True)
    values, summary = folder / "quality.safetensors", folder / "quality.json"

    def write(content=b"values"):
        values.write_bytes(content)
        summary.write_text(json.dumps({"files": {values.name: hashlib.sha256(b"values").hexdigest()}}))

    write()
    assert snakemake.prepare(study, tmp_path) == []
    assert summary.exists()
    for content, word in ((b"walues", "SHA-256"), (b"", "SHA-256")):
        write(content)
        (said,) = snakemake.prepare(study, tmp_path)
        assert study.quality_runs()[0].id in said and word in said
        assert not summary.exists()
    write()
    summary.write_text("{")
    assert "quality.json is damaged" in snakemake.prepare(study, tmp_path)[0]


def test_a_run_that_cannot_work_does_not_keep_the_others_from_being_planned(monkeypatch):
    study = load_study("smoke")
    some = [run for run in study.runs() if run.dataset == "mnist" and run.training == "standard"]

    def step_seconds(run):
        if run.setup.name == "w2a2":
            raise ValueError("alpha = nan")
        return 1.0

    monkeypatch.setattr("sqlib.training.loop.step_seconds", step_seconds)
    assert len(snakemake.training_seconds(some)) == len(some)


# ---- what Snakemake would make ---------------------------------------------------------------------------------------


def dry_run(reports, *config):
    """{rule: targets} of the jobs that a dry run of `smoke` plans."""
    study = load_study("smoke")
    snakemake.prepare(study, reports / "smoke")
    command = [
        *(sys.executable, "-m", "sqlib.workflow.snakemake_events", "--snakefile", REPOSITORY / "Snakefile"),
        *("--profile", REPOSITORY / "profiles/local", "--directory", reports / "smoke", "--nocolor", "--nolock"),
        *("--cores", "1", "--config", "study=smoke", *config),
    ]
    planned = {}
    for job in snakemake.pending([str(part) for part in command], reports / "log", study).values():
        planned.setdefault(job.kind.name, []).append(job.target)
    return planned


def test_the_slurm_profile_knows_the_rules_by_their_names_and_groups_all_that_train(tmp_path, monkeypatch):
    """Snakemake says nothing of a group for a rule that there is not: its jobs would be submitted one by one."""
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--list-rules"]
    done = subprocess.run([*command, "--config", "study=paper"], capture_output=True, text=True, check=True)
    rules = set(done.stdout.split())
    grouped = {group.split("=")[0] for group in snakemake.load_profile("slurm")[1]["groups"]}
    assert grouped == {rule for rule in rules if rule.startswith("train_")} | {"saliency", "trial"}


def test_sweeps_are_planned_only_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    without, asked = dry_run(tmp_path), dry_run(tmp_path, "sweeps=true")
    assert "trial" not in without and "sweep" not in without
    assert sorted(asked.pop("trial")) == sorted(trial.id for trial in trials_of(load_study("smoke")))
    assert asked.pop("sweep") == ["quick"]
    assert {rule: sorted(targets) for rule, targets in asked.items()} == {
        rule: sorted(targets) for rule, targets in without.items()
    }
    assert len(without["train"]) == len(load_study("smoke").runs())


def test_a_job_that_succeeds_at_last_has_not_failed(tmp_path):
    job = job_of(load_study("paper"), "train", run_id="mnist/lenet/w4a4/standard/seed1")
    progress = snakemake.Progress({7: job}, slots=1, reports=tmp_path, predicted={7: 10.0})
    progress.start(7)
    assert "FAILED" in progress.fail(7) and progress.failed
    assert "trained" in progress.finish(7) and not progress.failed


def test_a_run_that_is_whole_has_not_failed_with_its_group(tmp_path, monkeypatch):
    jobs = dict(enumerate(jobs_of(load_study("paper"), [KIND["train"]])[:3], start=1))
    progress = snakemake.Progress(jobs, slots=1, reports=tmp_path, predicted=dict.fromkeys(jobs, 10.0))
    texts = ("", "error: training diverged\n", "error: the page could not be written\n")
    for job, text in zip(jobs.values(), texts, strict=True):
        (tmp_path / job.log).parent.mkdir(parents=True)
        (tmp_path / job.log).write_text(text)
    one, two, three = (job.target for job in jobs.values())
    unmade = tmp_path / "runs" / two
    monkeypatch.setattr(snakemake.results, "fault", lambda folder: "not made yet" if folder == unmade else None)
    assert f"trained {one}" in progress.fail(1)
    assert f"FAILED train {two}: training diverged" in progress.fail(2)
    assert f"FAILED train {three}: the page" in progress.fail(3)
    assert list(progress.finished) == [1] and list(progress.failed) == [2, 3]
    assert progress.finish(1) is None and progress.fail(1) is None


def test_a_run_that_was_whole_when_its_job_was_killed_is_not_trained_again(tmp_path):
    folder, marks = tmp_path / "runs/mnist/lenet/fp32/standard/seed0", tmp_path / ".snakemake/incomplete"
    folder.mkdir(parents=True)
    marks.mkdir(parents=True)
    mark = marks / base64.urlsafe_b64encode(b"runs/mnist/lenet/fp32/standard/seed0/result.json").decode()
    other = marks / base64.urlsafe_b64encode(b"tables.html").decode()
    for path in (mark, other, folder / "result.json"):
        path.write_text("{}")
    snakemake.keep_finished(folder, tmp_path)
    assert mark.exists()  # its notebook was not written yet, so there would be no page
    (folder / "notebook.ipynb").write_text("{}")
    snakemake.keep_finished(folder, tmp_path)
    assert not mark.exists() and other.exists()


def test_a_run_whose_page_is_lost_for_good_is_trained_again(tmp_path):
    page, notebook = tmp_path / "train.html", tmp_path / "notebook.ipynb"
    notebook.write_text("{}")
    assert snakemake.page_lost(tmp_path) is None  # it can be made
    notebook.write_text('{"cells": [')
    assert "damaged" in snakemake.page_lost(tmp_path)
    notebook.unlink()
    assert "missing" in snakemake.page_lost(tmp_path)
    page.write_text("a page")
    assert snakemake.page_lost(tmp_path) is None


def test_only_the_studys_own_left_over_jobs_are_cancelled(tmp_path, monkeypatch):
    queue = tmp_path / "queue"
    own = snakemake.job_prefix(tmp_path / "a.b")
    queue.write_text(f"11|{own}_1f\n12|{own}0_1f\n13|another\n")
    for name, script in {
        "squeue": f"cat '{queue}'",
        "scancel": f"echo \"$@\" >> '{tmp_path}/cancelled'; grep -v '^11' '{queue}' > '{queue}.new'; mv '{queue}.new' '{queue}'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert snakemake.cancel_left_over(own) == 1
    assert (tmp_path / "cancelled").read_text() == "11\n"
    assert snakemake.cancel_left_over(own) == 0
    assert snakemake.job_prefix(tmp_path / "other/a.b") != own


def test_without_slurm_it_says_so_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SqlibError, match="squeue is not installed"):
        snakemake.cancel_left_over("x")


# ---- clocks, and file systems that refuse ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=8))
def test_files_from_the_future_are_dated_to_now_in_their_order(offsets):
    with tempfile.TemporaryDirectory() as folder:
        reports, start = Path(folder), time.time()
        paths = [reports / f"runs/{number}" for number in range(len(offsets))]
        (reports / "runs").mkdir()
        for path, offset in zip(paths, offsets, strict=True):
            path.write_text("")
            at = start + 3600 * offset + (10 if offset >= 0 else 0)
            os.utime(path, (at, at))
        before = [path.stat().st_mtime_ns for path in paths]
        said = snakemake.bring_to_now(reports)
        after = [path.stat().st_mtime_ns for path in paths]
        ahead = sum(offset >= 0 for offset in offsets)
        assert len(said) == bool(ahead) and (not ahead or said[0].startswith(f"{words.count(ahead, 'file')} in "))
        for number, offset in enumerate(offsets):
            assert after[number] <= time.time_ns() and (offset >= 0 or after[number] == before[number])
            for other in range(len(offsets)):
                assert (after[number] < after[other]) == (before[number] < before[other])
        assert snakemake.bring_to_now(reports) == []


def test_a_stamp_that_changes_is_newer_than_results_from_the_future(tmp_path):
    study = load_study("smoke")
    snakemake.prepare(study, tmp_path)
    stamp, result = tmp_path / "stamps/tables.json", tmp_path / "results/tables.json"
    result.parent.mkdir()
    result.write_text("{}")
    ahead = time.time() + 7200
    for path in (stamp, result):
        os.utime(path, (ahead, ahead))
    stamp.write_text("of other code")
    os.utime(stamp, (1, 1))
    (said,) = snakemake.prepare(study, tmp_path)
    assert "1 file in" in said and "2 h 00 min" in said and "clock" in said
    assert result.stat().st_mtime_ns < stamp.stat().st_mtime_ns <= time.time_ns()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(snakemake.fcntl, "flock", refuse)
    with snakemake.exclusive(tmp_path):
        assert "no locks on this file system" in capsys.readouterr().out


def test_a_lock_that_fails_otherwise_is_one_sentence(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(snakemake.fcntl, "flock", fail)
    with pytest.raises(SqlibError, match="cannot lock .*: Input/output error"), snakemake.exclusive(tmp_path):
        pass


@pytest.mark.parametrize(
    "output, cause",
    [
        ("SqlibError in file \"/r/Snakefile\", line 14:\n/p/tiny.yaml: no such file\n  File \"x\", line 1, in <module>\n"
         "Using profile p for setting default command line arguments.\n", "/p/tiny.yaml: no such file"),
        ("Building DAG of jobs...\nWorkflowError:\nno room\n", "no room"),
        ("Traceback (most recent call last):\n  File \"x\"\nValueError: nothing in:\n\t/a\n\t/b\n", "ValueError: nothing in:"),
        ("KeyError: 'x'\nfollowed by words", "KeyError: 'x'"),
        ("one\ntwo\n\n", "two"),
        ("NameError in file x, line 3:", "NameError in file x, line 3:"),
        ("", "it said nothing"),
    ],
)  # fmt: skip
def test_the_last_words_are_the_cause(output, cause):
    assert snakemake.last_words(output) == cause
