"""docs/extending.md: every block of it, done in a copy of the repository as a reader would do it, in the order of the page."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sqlib.data.datasets import OFFICIAL_NAMES, default_root, idx_header
from sqlib.data.fetch import fetch
from sqlib.data.loading import read_idx
from sqlib.places import REPOSITORY

PAGE = (REPOSITORY / "docs/extending.md").read_text()
SECTIONS = {
    part.split("\n", 1)[0]: re.findall(r"^```(\w+)\n(.*?)^```$", part, flags=re.M | re.S)
    for part in PAGE.split("\n## ")[1:]
}
SETUP, MEASURE, METHOD, NETWORK, PAGE_OF_ITS_OWN, DATA, TOGETHER = SECTIONS
FILES = {kind: int(count) for kind, count in re.findall(r"^\| \[([\w ]+)\].* \| (\d) \|$", PAGE, flags=re.M)}
"""How many files a new thing takes, as the table at the top of the page says."""
pytestmark = pytest.mark.end_to_end


class Reader:
    """A copy of the repository in which a reader of the page works; `read` does a section's blocks."""

    def __init__(self, root: Path):
        self.root, self.printed = root, ""
        for name in ("sqlib", "params", "notebooks", "profiles"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "Snakefile", root)
        for name in ("reports", "data", ".venv/bin", "downloads/KMNIST/raw"):
            (root / name).mkdir(parents=True)
        (root / "reports/reference").symlink_to(REPOSITORY / "reports/reference")
        (root / "data/mnist").symlink_to(fetch("mnist").resolve())
        python = root / ".venv/bin/python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        # What is downloaded, but for its content: MNIST with rows and columns exchanged.
        for key, name in OFFICIAL_NAMES.items():
            values = read_idx(default_root() / "mnist" / f"{key}.idx")
            values = values.transpose(-1, -2).contiguous() if values.ndim == 3 else values
            (root / "downloads/KMNIST/raw" / name).write_bytes(
                idx_header(tuple(values.shape)) + values.numpy().tobytes()
            )

    def files(self) -> dict[Path, bytes]:
        """What is in the repository, without what commands make."""
        folders = (self.root / name for name in ("sqlib", "params", "notebooks"))
        paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in paths if "__pycache__" not in path.parts}

    def run(self, *command: str, **more) -> str:
        own = {"PYTHONPATH": str(self.root), "GIT_CEILING_DIRECTORIES": str(self.root.parent)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SQLIB_")}
        done = subprocess.run(
            command, cwd=self.root, env={**kept, **own}, capture_output=True, text=True, timeout=1800, **more
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def read(self, section: str) -> None:
        for language, code in SECTIONS[section]:
            file = re.match(r"# (\S+\.(?:yaml|py))\n", code)
            if file:
                (self.root / file[1]).write_text(code)
            elif language == "diff":
                sums = iter(re.findall(r': ("[0-9a-f]{64}")', self.printed))  # what the reader pastes
                code = re.sub(r'"\.\.\."', lambda _, sums=sums: next(sums), code)
                self.run("git", "apply", "-", input=code)
            elif language == "sh":
                self.printed = self.run("bash", "-ec", code)
            elif language == "python":
                self.printed = self.run(sys.executable, "-c", code)
            else:
                assert language == "text" and self.printed == code


@pytest.fixture
def reader(tmp_path):
    return Reader(tmp_path / "sqlib")


def test_the_page_has_its_examples():
    languages = {section: {language for language, _ in blocks} for section, blocks in SECTIONS.items()}
    assert languages[SETUP] == languages[TOGETHER] == {"yaml", "sh"}
    assert languages[MEASURE] == languages[METHOD] == languages[NETWORK] == {"diff", "python", "text"}
    assert languages[PAGE_OF_ITS_OWN] == {"python", "sh", "diff"}
    assert languages[DATA] == {"python", "sh", "diff"}
    assert PAGE.count("```") == 2 * sum(map(len, SECTIONS.values()))


def test_a_setup_in_a_study(reader):
    reader.read(SETUP)
    result = (reader.root / "reports/own/runs/mnist/lenet/first8/standard/seed0/result.json").read_text()
    assert '"first8"' in result


@pytest.mark.parametrize(
    "kind, section", {"measure": MEASURE, "attribution method": METHOD, "network": NETWORK}.items()
)
def test_a_change_to_the_code_does_what_the_page_prints_in_as_many_files_as_it_says(reader, kind, section):
    before = reader.files()
    reader.read(section)
    assert len(reader.files().items() - before.items()) == FILES[kind] <= 2


def test_a_page(reader):
    reader.read(SETUP)
    before = reader.files()
    reader.read(PAGE_OF_ITS_OWN)
    assert len(reader.files().items() - before.items()) == FILES["page"] == 2
    assert "The worst and the best seed" in (reader.root / "reports/own/seeds.html").read_text()


def test_a_data_set(reader):
    before = reader.files()
    reader.read(DATA)
    assert len(reader.files().items() - before.items()) == FILES["data set"] == 1
    assert reader.printed == ""
    assert len(list((reader.root / "data/kmnist").glob("*.idx"))) == 4
    upright = read_idx(default_root() / "mnist/t10k-images.idx")
    turned = read_idx(reader.root / "data/turned/t10k-images-idx3-ubyte")
    assert torch.equal(turned, upright.rot90(dims=(1, 2)))


def test_all_of_it_in_one_study(reader):
    for section in SECTIONS:
        reader.read(section)
    reports = reader.root / "reports/own"
    (row,) = csv.DictReader((reports / "results/runs.csv").read_text().splitlines())
    assert (row["dataset"], row["network"], row["setup"]) == ("kmnist", "deep", "first8")
    assert 0.1 < float(row["mass_in_top"]) <= 1
    assert "mass in the top 10% ↑" in (reports / "tables.html").read_text()
    assert (reports / "seeds.html").exists()
    assert '"patches"' in (reports / "runs/kmnist/deep/first8/standard/seed0/quality.json").read_text()
