"""What of a user's environment is kept and what is dropped, in processes that are started as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlib.places import REPOSITORY
from sqlib.workflow import locked, snakemake, surroundings

TELL = """
import json, os, sys
from sqlib.workflow.surroundings import settle
settle()
print(json.dumps(dict(os.environ)))
"""


def settled(**environment) -> dict[str, str]:
    """The environment of a process that has settled its own, which was this one."""
    environment = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(
        [sys.executable, "-c", TELL], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_what_would_change_results_is_dropped_and_the_rest_is_kept(tmp_path):
    dropped = {
        "PYTHONSTARTUP": "/x.py", "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "7", "KMP_AFFINITY": "compact",
        "GOMP_CPU_AFFINITY": "0", "MATPLOTLIBRC": "/x", "SNAKEMAKE_PROFILE": "mine", "GIT_DIR": "/x/.git",
    }  # fmt: skip
    kept = {
        "HOME": str(tmp_path), "http_proxy": "http://p", "SQLIB_DATA": "/d", "CUDA_VISIBLE_DEVICES": "1", "LANG": "C",
        "ONEDNN_MAX_CPU_ISA": "AVX2", "GITHUB_ACTIONS": "true", "OPENBLAS_CORETYPE": "Haswell", "USER": "me",
    }  # fmt: skip
    found = settled(**dropped, **kept)
    assert not dropped.keys() & found.keys()
    assert kept.items() <= found.items()
    assert found["PYTHONNOUSERSITE"] == "1"


def test_a_job_keeps_the_threads_that_snakemake_gave_it(tmp_path):
    found = settled(HOME=str(tmp_path), SQLIB_JOB="1", OMP_NUM_THREADS="2", OMP_PROC_BIND="true")
    assert found["OMP_NUM_THREADS"] == "2" and "OMP_PROC_BIND" not in found


@given(
    st.dictionaries(
        st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=12), st.text("abc", max_size=3), max_size=6
    )
)
@settings(deadline=None, max_examples=30)
def test_nothing_is_dropped_that_is_not_named(tmp_path_factory, environment):
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update({"USER": "me", **environment, "HOME": str(REPOSITORY)})
        surroundings.settle()
        for name in environment.keys() - {"HOME", "PYTHONNOUSERSITE"}:
            named = [d for d in surroundings.DROPPED if name == d or (d.endswith("_") and name.startswith(d))]
            assert (name in os.environ) != bool(named)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("home", [None, "", "/nonexistent", "/proc"])
def test_a_home_that_cannot_be_written_is_replaced(home):
    found = settled(**({} if home is None else {"HOME": home}), MPLCONFIGDIR="/nonexistent")
    assert os.access(found["HOME"], os.W_OK) and found["HOME"] != home
    assert "MPLCONFIGDIR" not in found


def test_a_user_without_an_entry_gets_a_name_and_a_home_of_its_own(tmp_path):
    """Root becomes such a user; whoever cannot is no longer known to the system."""
    tmp_path.chmod(0o777)
    code = """
import getpass, json, os, pwd
from sqlib.workflow.surroundings import settle
if os.getuid() == 0:
    os.setgid(54321)
    os.setuid(54321)
else:
    def nobody_there(uid):
        raise KeyError(uid)
    pwd.getpwuid = nobody_there
settle()
print(json.dumps([getpass.getuser(), os.environ["HOME"], os.getuid()]))
"""
    environment = {"PATH": os.environ["PATH"], "HOME": "/root", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    user, home, uid = json.loads(done.stdout)
    assert uid != 0 and user == f"user{uid}" and home != "/root" and os.stat(home).st_uid == uid


def test_a_folder_for_sockets_is_short_wherever_temporary_files_go(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = surroundings.short_folder()
    try:
        assert len(folder) < 60 and os.stat(folder).st_mode & 0o777 == 0o700
    finally:
        os.rmdir(folder)
    monkeypatch.setattr(surroundings, "_usable", lambda place: False)
    with pytest.raises(OSError, match="TMPDIR"):
        surroundings.short_folder()


def test_what_nobody_reads_any_more_stops_nothing():
    code = (
        "import sys\nfrom sqlib.workflow.snakemake import tell\n"
        "for number in range(100_000): tell(f'line {number}')\nsys.exit(7)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), error) == (7, b"")


def test_a_command_whose_reader_has_gone_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sqlib", "--help"], cwd=REPOSITORY, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")  # typer's own answer


@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(tmp_path, ignored):
    """As with `nohup`: the driver, which otherwise ends its study in order when the terminal is closed."""
    code = """
import os, signal, sys, time
from pathlib import Path
from sqlib.workflow import snakemake
progress = snakemake.Progress({}, 1, Path("."))
lock = os.open(sys.argv[1] + "/lock", os.O_CREAT | os.O_RDWR)
command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(3)"]
with snakemake.in_order():
    log = Path(sys.argv[1]) / "log"
    code = snakemake.drive(command, log, lock, dict(os.environ), lambda: print("on", flush=True), progress)
print("ended with", code)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "on\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, "ended with 0" in out) == ((0, True) if ignored else (129, False))


def test_only_an_environment_with_the_locked_versions_is_used():
    lock = (REPOSITORY / "requirements.lock").read_text()
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert locked.differences(lock, project) == []
    other = lock.replace("torch==", "torch==9.").replace("typer==", "typer==0.")
    assert [found.split()[0] for found in locked.differences(other, project)] == ["torch", "typer"]
    more = project.replace("dependencies = [", 'dependencies = [\n    "not-there-at-all>=1",', 1)
    assert locked.differences(lock + "\nnot-there-at-all==1.0 \\\n", more) == ["not-there-at-all missing (locked: 1.0)"]


def test_a_conda_environment_without_the_study_is_passed_over_and_named(tmp_path):
    python = tmp_path / "my env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without its packages
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "-n", "plan"], cwd=REPOSITORY, env={**os.environ, "CONDA_PREFIX": str(tmp_path / "my env")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "'.venv/bin/python' -m sqlib plan" in done.stdout
    assert "is not used: anywidget missing" in done.stderr and "; .venv is" in done.stderr


def test_make_installs_whatever_pip_is_told_elsewhere():
    told = {"PIP_USER": "1", "PIP_TARGET": "/x", "UV_SYSTEM_PYTHON": "1", "PYTHONHOME": "/x"}
    done = subprocess.run(
        ["make", "-f", "-", "show"], input=f"include {REPOSITORY}/Makefile\nshow:\n\t@env\n", cwd=REPOSITORY,
        env={**os.environ, **told}, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "PIP_USER=0" in lines and not any(
        line.startswith(("PIP_TARGET", "UV_SYSTEM", "PYTHONHOME")) for line in lines
    )


RC = "text.usetex: True\nfont.size: 30\nlines.linewidth: 9\nsavefig.facecolor: red\nfigure.dpi: 30\naxes.grid: True\n"


@pytest.mark.slow
def test_figures_do_not_depend_on_a_users_matplotlibrc(tmp_path):
    code = """
import sys, hashlib, torch
from pathlib import Path
from sqlib.networks.network import build_model
from sqlib.report import cells, figures
from sqlib.study.parameters import load_setup
torch.manual_seed(0)
history = [{"epoch": k, "train_loss": 1 / k, "val_loss": 1 / k, "train_accuracy": .5, "val_accuracy": .5} for k in (1, 2)]
for fig in (figures.training_curves(history), figures.weight_levels(build_model("lenet5", load_setup("w2a2")))):
    print(hashlib.sha256(cells.png(fig, "a", "b")).hexdigest())
"""
    place = tmp_path / "config/matplotlib/matplotlibrc"
    place.parent.mkdir(parents=True)
    place.write_text(RC)
    made = []
    for own in ({}, {"XDG_CONFIG_HOME": str(tmp_path / "config")}):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **own}, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        made.append(done.stdout)
    assert made[0] == made[1] and len(made[0].split()) == 2


def test_numbers_do_not_depend_on_a_start_up_file():
    import torch

    from sqlib.hardware import prepare

    torch.set_default_dtype(torch.float64)
    try:
        prepare(1)
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_driver_says_where_it_looked():
    assert snakemake.environment()["PYTHONPATH"].split(os.pathsep)[0] == str(REPOSITORY)
