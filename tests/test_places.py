"""Folders of any name, named relative to any other: where a study's files are, and the commands that are built from paths."""

import glob
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sqlib.data.datasets import default_root
from sqlib.places import PARAMS, REPOSITORY
from sqlib.workflow import snakemake

TINY = {
    "title": "tiny",
    "datasets": ["mnist"],
    "setups": ["w2a2"],
    "trainings": ["standard"],
    "training": {"epochs": 1, "batch_size": 100, "images": 500, "validation_images": 100},
    "evaluation": {"images": 100, "faithfulness_images": 20},
}


def params_at(folder):
    shutil.copytree(PARAMS, folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))


def copy_to(root):
    """A copy of the repository in which the study `tiny` can be made."""
    for name in ("sqlib", "notebooks", "profiles"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", root)
    params_at(root / "params")
    (root / "data").symlink_to(default_root().resolve())


def python(*arguments, repository=REPOSITORY, executable=sys.executable, cwd=None, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SQLIB_")}
    own = {"PYTHONPATH": str(repository), **{name: str(value) for name, value in environment.items()}}
    command = [str(executable), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**kept, **own}, capture_output=True, text=True, timeout=600)


WHERE = (
    "from sqlib import places; from sqlib.data.datasets import default_root; "
    "print(default_root(), places.PARAMS, places.reports_root(), sep='\\n')"
)


# ---- relative to the caller's folder -----------------------------------------------------------------------------------


def test_relative_places_mean_the_callers_folder_also_for_what_it_starts(tmp_path):
    script = (
        f"import subprocess, sys\n{WHERE}\n"
        f"print(subprocess.run([sys.executable, '-c', {WHERE!r}], cwd='/', capture_output=True, text=True).stdout)"
    )
    given = {"SQLIB_DATA": "mydata", "SQLIB_PARAMS": "./here/../params", "SQLIB_REPORTS": "reports"}
    done = python("-c", script, cwd=tmp_path, **given)
    assert done.stdout.split() == 2 * [str(tmp_path / name) for name in ("mydata", "params", "reports")], done.stderr


def test_a_tilde_is_the_users_own_folder(tmp_path):
    given = {"SQLIB_DATA": "~/d", "SQLIB_PARAMS": "~/p", "SQLIB_REPORTS": "~/r", "HOME": tmp_path}
    done = python("-c", WHERE, cwd="/", **given)
    assert done.stdout.split() == [str(tmp_path / name) for name in "dpr"], done.stderr


def test_in_a_notebook_opened_by_hand_they_mean_the_folder_where_jupyter_was_started(tmp_path):
    from jupyter_client.manager import start_new_kernel

    done = python(
        "-c",
        "from jupyter_client.manager import start_new_kernel as start\n"
        f"manager, client = start(kernel_name='python3', cwd={str(REPOSITORY / 'notebooks')!r})\n"
        f"client.execute_interactive({WHERE!r}, output_hook=lambda m: print(m['content'].get('text', ''), end=''))\n"
        "client.stop_channels(); manager.shutdown_kernel(now=True)",
        cwd=tmp_path, PWD=tmp_path, SQLIB_DATA="d", SQLIB_PARAMS="p", SQLIB_REPORTS="r",
    )  # fmt: skip
    assert start_new_kernel and done.stdout.split() == [str(tmp_path / name) for name in "dpr"], done.stderr


def test_entries_of_the_module_path_mean_the_callers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["own", "/other"]))
    assert snakemake.environment()["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), str(tmp_path / "own"), "/other"]


@pytest.mark.end_to_end
def test_a_study_is_planned_with_parameters_and_reports_named_relatively(tmp_path):
    params_at(tmp_path / "own params")
    plan = (
        "from sqlib.workflow import commands; commands.drive = lambda *a: print(len(a[-1].jobs)) or 0; commands.main()"
    )
    given = {"SQLIB_PARAMS": "own params", "SQLIB_REPORTS": "own reports"}
    done = python("-c", plan, "reproduce", "tiny", cwd=tmp_path, **given)
    assert done.returncode == 0 and int(done.stdout.split()[0]) > 5, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own params", "own reports"]


# ---- any printable character ---------------------------------------------------------------------------------------------

ODD = 'o\'brien {b} {{c}} $HOME `x` %d #1 "q" \\n & ;*?[a] ~ ü é'
PRINTABLE = st.text(st.characters(exclude_categories=("C",), exclude_characters="/"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(PRINTABLE)
@example(ODD)
@example("a{b}c")
@example("o'brien")
def test_the_command_of_a_job_starts_this_python_whatever_its_folder_is_called(name):
    source = (REPOSITORY / "Snakefile").read_text()
    (line,) = re.findall(r"^JOB = .*$", source, flags=re.M)
    path = f"/home/{name}/.venv/bin/python"
    known = {"shlex": __import__("shlex"), "sys": type("sys", (), {"executable": path})}
    exec(line, known)
    command = known["JOB"].format().replace("exec ", "printf '%s\\n' ")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.split("\n") == [path, "-m", "sqlib", ""]


@pytest.mark.parametrize("name", ["conda's own {x}", "a b", "a&b;c", "plain"])
def test_make_calls_a_python_whatever_its_folder_and_what_it_is_told_are_called(tmp_path, name):
    executable = tmp_path / name / "bin/python"
    executable.parent.mkdir(parents=True)
    executable.write_text(
        '#!/bin/sh\nif [ "$2" = sqlib.workflow.locked ]; then exit 0; else printf \'<%s>\' "$@"; fi\n'
    )
    executable.chmod(0o755)
    done = subprocess.run(
        ["make", "reproduce", "STUDY=it's", "PROFILE=/my profiles/$$x"], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "CONDA_PREFIX": str(tmp_path / name)},
    )  # fmt: skip
    assert done.stdout == "<-m><sqlib><reproduce><it's><--profile></my profiles/$x>", done.stderr


@pytest.fixture
def odd_copy(tmp_path):
    """Function (name) -> (a copy of the repository in a folder of this name, a Python in it)."""

    def make(name):
        root = tmp_path / name
        copy_to(root)
        executable = root / ".venv/bin/python"
        executable.parent.mkdir(parents=True)
        executable.symlink_to(sys.executable)  # as a venv does it
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", root / ".venv")
        for part in ("lib", "share", "etc"):
            if (Path(sys.prefix) / part).exists():
                (root / ".venv" / part).symlink_to(Path(sys.prefix) / part)
        return root, executable

    return make


@pytest.mark.parametrize("name", ["plain", "a[b]c", "a*", "what?", ODD])
def test_the_profile_is_found_where_its_path_looks_like_a_pattern(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.yaml").write_text("cores: 1\n")
    with snakemake.as_pattern(tmp_path / name) as folder:
        (found,) = glob.glob(str(folder / "config.yaml"))
        assert Path(found).read_text() == "cores: 1\n"
    assert (tmp_path / name / "config.yaml").exists()


@pytest.mark.end_to_end
def test_a_study_is_planned_in_a_folder_of_any_name(odd_copy):
    root, executable = odd_copy(ODD)
    plan = (
        "from sqlib.workflow import commands; commands.drive = lambda *a: print(len(a[-1].jobs)) or 0; commands.main()"
    )
    more = {"repository": root, "executable": executable, "cwd": root, "SQLIB_REPORTS": f"reports {ODD}"}
    done = python("-c", plan, "reproduce", "tiny", **more)
    assert done.returncode == 0 and int(done.stdout.split()[0]) == 9, done.stderr
    (root / "params/tiny.yaml").write_text("title: 1\n")
    done = python("-m", "snakemake", "--snakefile", root / "Snakefile", "--dry-run", "--config", "study=tiny", **more)
    assert "title = 1: should be a valid string" in snakemake.last_words(done.stdout + done.stderr)


@pytest.mark.end_to_end
def test_a_study_is_made_in_a_folder_of_any_name_and_again_after_the_clock_was_set_back(odd_copy):
    name = ODD
    root, executable = odd_copy(name)
    reports = root / f"reports {name}/tiny"
    more = {"repository": root, "executable": executable, "cwd": root, "SQLIB_REPORTS": reports.parent.name}
    more["SQLIB_DATA"] = "data"
    done = python("-m", "sqlib", "reproduce", "tiny", **more)
    assert done.returncode == 0 and (reports / "index.html").exists(), done.stdout + done.stderr
    assert not (root / "notebooks/data").exists() and not (reports / "data").exists()
    (reports / "results/tables.json").unlink()
    ahead = time.time() + 86_400
    for path in reports.rglob("*"):
        if path.is_file():
            os.utime(path, (ahead, ahead))
    done = python("-m", "sqlib", "reproduce", "tiny", **more)
    assert done.returncode == 0 and "24 h 00 min (a clock was set back)" in done.stdout, done.stdout + done.stderr
    assert "trained" not in done.stdout and "made the tables" in done.stdout
