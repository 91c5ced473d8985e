"""One set of packages for everybody: make, conda, Binder and Colab install what requirements.lock says."""

import json
import os
import re
import subprocess
import sys
import tomllib
import types

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sqlib.places import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCK = (REPOSITORY / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, flags=re.M))
MINORS = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])]


def test_everybody_asks_for_the_same_python():
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    (python,) = (entry.split()[1] for entry in conda if str(entry).startswith("python "))
    assert SpecifierSet(python) == SpecifierSet(PROJECT["requires-python"])
    makefile = (REPOSITORY / "Makefile").read_text()
    first, last = re.search(r"\((3, \d+)\) <= v < \((3, \d+)\)", makefile).groups()
    assert SpecifierSet(">={},<{}".format(*(end.replace(", ", ".") for end in (first, last)))) == SpecifierSet(python)
    assert f"--python-version {MINORS[0]} " in makefile  # what the lock is made for
    assert (REPOSITORY / "binder/runtime.txt").read_text().strip() in [f"python-{minor}" for minor in MINORS]
    for name in ("Makefile", "README.md", "docs/commands.md", "docs/reproducing.md"):
        assert f"Python {MINORS[0]} to {MINORS[-1]}" in (REPOSITORY / name).read_text()


def test_the_lock_has_every_dependency_and_a_hash_for_each_package():
    direct = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, direct):
        assert requirement.specifier.contains(LOCKED[requirement.name], prereleases=True), requirement
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.M)[1:]
    assert len(entries) >= len(LOCKED) > 100
    assert all("--hash=sha256:" in entry for entry in entries)


def included(file):
    """The lines of a requirements file that are not comments."""
    return [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]


def test_conda_and_binder_install_the_lock_and_nothing_else():
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    (packages,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert packages == ["-r requirements.lock"]
    assert {str(entry).split()[0] for entry in conda["dependencies"][:-1]} == {"python", "pip", "make", "git"}
    (line,) = included(REPOSITORY / "binder/requirements.txt")
    assert (REPOSITORY / "binder" / line.removeprefix("-r ")).resolve() == REPOSITORY / "requirements.lock"


def test_binder_then_makes_the_package_and_fetches_the_images(tmp_path):
    post = REPOSITORY / "binder/postBuild"
    assert os.access(post, os.X_OK)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([post], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "-m pip install --no-deps --no-build-isolation --editable .",
        "-m sqlib data",
    ]
    assert {"setuptools", "jupyterlab", "ipywidgets"} <= LOCKED.keys()  # it builds without isolation, and shows the lab


# ---- Colab ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def colab(monkeypatch):
    """Function (address) -> (the commands that the explorer's first code cell runs, whether widgets were switched on)."""
    cells = json.loads((REPOSITORY / "notebooks/explore.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert source.startswith('REPOSITORY = ""')
    commands, switched = [], []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(address=None, on_colab=True):
        if on_colab:
            place = types.ModuleType("google.colab")
            place.output = types.SimpleNamespace(enable_custom_widget_manager=lambda: switched.append(True))
            monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
            monkeypatch.setitem(sys.modules, "google.colab", place)
        exec(source if address is None else source.replace('""', repr(address), 1), {})
        return commands, bool(switched)

    return run


def test_outside_colab_the_cell_does_nothing(colab):
    before, modules = list(sys.path), set(sys.modules)
    assert colab(on_colab=False) == ([], False)
    assert sys.path == before and set(sys.modules) == modules


def test_on_colab_it_asks_where_to_clone_from(colab):
    with pytest.raises(ValueError, match="REPOSITORY"):
        colab()


def test_on_colab_it_clones_and_installs_what_is_missing_as_locked(colab):
    (clone, install), switched = colab("/somewhere/study.git")
    assert clone[:2] == ["git", "clone"] and "/somewhere/study.git" in clone
    packages = dict(word.split("==") for word in install if "==" in word)
    assert {"captum", "anywidget", "psygnal", "ruamel-yaml"} == packages.keys()
    assert packages.items() <= LOCKED.items() and "--no-deps" in install
    assert switched and sys.path[0] == "/content/study"
