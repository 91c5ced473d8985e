"""The fault campaign: whatever happens to a study, the same command makes it whole again, with the numbers of an undisturbed one.

`make test-faults` runs all of it over a micro study of two runs on a few hundred real images; FAULTS=3 limits the kills,
SAMPLE=yes takes a fault of each kind, and RECORD=yes writes what was tried and survived into docs/reproducing.md (`conftest.py`).
Expected of every fault: nothing that was finished is lost, nothing that is damaged is believed, nothing has to be
cleaned by hand, and the error, where there is one, is a line.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from processes import below

from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.parameters import load_study
from sqlib.workflow.snakemake import newer

pytestmark = pytest.mark.faults
sample = pytest.mark.sample
COMMAND = (sys.executable, "-m", "sqlib", "reproduce", "micro")
KILLS = int(os.environ.get("FAULTS", "20"))
MICRO = {
    "title": "A study of seconds",
    "datasets": ["mnist"],
    "networks": ["lenet"],
    "setups": ["fp32", "w2a2"],
    "trainings": ["standard"],
    "seeds": [0],
    "training": {"epochs": 2, "batch_size": 32, "images": 400, "validation_images": 100},
    "evaluation": {"images": 100, "faithfulness_images": 20},
}


class Study:
    """The micro study in a folder of its own, with parameters of its own."""

    def __init__(self, root: Path):
        self.root, self.params = root, root / "params"
        shutil.copytree(REPOSITORY / "params", self.params)
        self.write(MICRO)
        self.folder = root / "reports/micro"
        self.environment = {
            **os.environ,
            "SQLIB_PARAMS": str(self.params),
            "SQLIB_REPORTS": str(root / "reports"),
        }

    def write(self, content: dict) -> None:
        (self.params / "micro.yaml").write_text(yaml.safe_dump(content))

    def start(self, command: tuple[str, ...] = COMMAND, folder: Path = REPOSITORY, **more) -> subprocess.Popen:
        return subprocess.Popen(
            command, env={**self.environment, **more}, cwd=folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def make(self, **more) -> subprocess.CompletedProcess:
        process = self.start(**more)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def finished_runs(self) -> dict[Path, bytes]:
        """The results of the runs that are finished, with all that stands in them, the time when each was made too."""
        folders = [run.folder(self.folder) for run in load_study("micro", self.params).runs()]
        folders = [folder for folder in folders if newer(folder / "notebook.ipynb", folder / "result.json")]
        return {folder: (folder / "result.json").read_bytes() for folder in folders if results.fault(folder) is None}

    def whole(self) -> dict[str, str]:
        """Everything that must be equal after whatever happened: metrics and weights of every run, every result, verdicts."""
        study = load_study("micro", self.params)
        found = {}
        for run in study.runs():
            folder = run.folder(self.folder)
            assert results.fault(folder) is None
            metrics = {k: v for k, v in results.read_result(folder)["metrics"].items() if k != "train_seconds"}
            found[run.id] = json.dumps(metrics, sort_keys=True)
            found[f"{run.id} model"] = results.read_result(folder)["files"]["model.safetensors"]
            found[f"{run.id} packed"] = (folder / results.PACKED).read_bytes().hex()
        for path in sorted((self.folder / "results").glob("*.json")):
            found[path.name] = re.sub(r'("train_seconds"): [0-9.e-]+', r"\1", path.read_text())
        index = (self.folder / "index.html").read_text()
        assert 'id="failed"' not in index and index.count("train.html") >= len(study.runs())
        return found


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(a finished micro study that nobody changes, what must be equal)."""
    study, started = Study(tmp_path_factory.mktemp("undisturbed")), time.monotonic()
    done = study.make()
    study.seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    return study, study.whole()


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of the finished study to be damaged."""
    study = Study(tmp_path / "copy")
    shutil.copytree(undisturbed[0].folder, study.folder, copy_function=shutil.copy2)
    return study


def heals(study: Study, expected: dict[str, str]) -> subprocess.CompletedProcess:
    """The same command makes the study whole, with the same numbers, and has nothing left to do afterwards."""
    done = study.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert study.whole() == expected
    again = study.make()
    assert again.stdout.startswith("micro: everything is up to date"), again.stdout
    return done


@sample
def test_kill_9_at_any_moment(undisturbed, tmp_path, record_property):
    """Of make, of sqlib, of Snakemake, of a job or of a notebook's kernel, again and again until the study is finished.

    As long as a start goes on, the next one is killed within a quarter of the time that the whole study takes. What was
    finished before a start is not made again by it.
    """
    expected = undisturbed[1]
    chance = random.Random(0)
    study, killed, before = Study(tmp_path / "0"), Counter(), {}
    while killed.total() < KILLS:
        process = study.start(("make", "reproduce", "STUDY=micro"))
        while killed.total() < KILLS:
            try:
                process.wait(chance.uniform(0.5, undisturbed[0].seconds / 4))
                break
            except subprocess.TimeoutExpired:
                victim = chance.choice([process.pid, *below(process.pid)])
            try:
                kind = kind_of(victim)
                os.kill(victim, signal.SIGKILL)
                killed[kind] += 1
            except (ProcessLookupError, FileNotFoundError):
                pass
        out, err = process.communicate(timeout=900)
        assert "Traceback" not in out + err and "another process" not in err, out + err
        after = study.finished_runs()
        assert before.items() <= after.items()
        before = after
        if process.returncode == 0:  # it was finished, or got over it
            assert study.whole() == expected
            shutil.rmtree(study.root)
            study, before = Study(tmp_path / str(killed.total())), {}
    record_property("faults", killed.total())
    record_property("of", ", ".join(f"{number} of {kind}" for kind, number in killed.most_common()))
    heals(study, expected)


def called(pid: int) -> str:
    """A process's command line behind its name: a fork has the command line of the fork server, and a name of its own."""
    place = Path(f"/proc/{pid}")
    return (place / "comm").read_text() + (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def kind_of(pid: int) -> str:
    """What a process of a study is, in a word."""
    command = called(pid)
    words = {
        "sqlib kernel": "a kernel",
        "ipykernel": "a kernel",
        "sqlib forks": "the fork server",
        "forkserver": "a forked job",
        "snakemake": "Snakemake",
        "sqlib reproduce": "sqlib",
        "-m sqlib": "a job's go-between",
        "make": "make",
    }
    return next((kind for word, kind in words.items() if word in command), "another")


def child_with(process: subprocess.Popen, word: str, patience: float = 120, of: int | None = None) -> int:
    """The first process below this one (below its process `of`) whose name or command line holds the word, once there is one."""
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        for child in below(of or process.pid):
            try:
                command = called(child)
            except OSError:
                continue
            if word in command:
                return child
        time.sleep(0.05)
    raise AssertionError(f"no process with {word} came up")


@sample
def test_a_kernel_killed_in_mid_cell_is_one_failed_job(undisturbed, tmp_path):
    study = Study(tmp_path / "study")
    process = study.start()
    kernel = child_with(process, "sqlib kernel")
    time.sleep(2)
    os.kill(kernel, signal.SIGKILL)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 1
    failed = [line for line in out.splitlines() if "FAILED" in line]
    assert len(failed) == 1 and "the kernel died" in failed[0] and "log: " in failed[0]
    assert "failed: 1 job" in err and "Traceback" not in out + err
    heals(study, undisturbed[1])


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, id="killed", marks=sample), pytest.param(signal.SIGSTOP, id="starved")]
)
def test_without_its_fork_server_a_study_goes_on(number, undisturbed, tmp_path):
    """In the midst of a job, which goes on; the next ones are processes of their own, and say so in their logs."""
    study = Study(tmp_path / "study")
    process = study.start()
    server = child_with(process, "sqlib forks")
    child_with(process, "sqlib kernel")
    os.kill(server, number)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0 and "FAILED" not in out, out + err
    assert study.whole() == undisturbed[1]
    assert "not forked, in a process of its own: it does not answer" in (study.folder / "logs/tables.log").read_text()
    assert not Path(f"/proc/{server}").exists()
    assert study.make().stdout.startswith("micro: everything is up to date")


def test_a_fork_server_left_over_from_an_earlier_start_is_not_asked(undisturbed, tmp_path):
    """Its start was killed; it stands still, so that it does not even notice."""
    study = Study(tmp_path / "study")
    process = study.start()
    server = child_with(process, "sqlib forks")
    child_with(process, "sqlib kernel")
    os.kill(server, signal.SIGSTOP)
    process.kill()
    process.communicate()
    heals(study, undisturbed[1])
    assert "not forked" not in (study.folder / "logs/tables.log").read_text()
    assert not Path(f"/proc/{server}").exists()


@sample
def test_a_fork_server_with_other_code_than_is_there_now_is_not_used(undisturbed, tmp_path):
    """Code that means the same (a file is saved again while the study runs), so the results must be the same."""
    study, copy = Study(tmp_path / "study"), tmp_path / "repository"
    for name in ("sqlib", "notebooks", "profiles", "params"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", copy)
    data = os.environ.get("SQLIB_DATA", str(REPOSITORY / "data"))
    process = study.start(folder=copy, PYTHONPATH=str(copy), SQLIB_DATA=data)
    server = child_with(process, "sqlib forks")
    child_with(process, "", of=server)  # so it has imported, answered and forked
    os.utime(copy / "sqlib/report/runs_table.py")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    assert study.whole() == undisturbed[1]
    said = "not forked, in a process of its own: the code was changed since the fork server was started"
    logs = {path.name: path.read_text() for path in sorted((study.folder / "logs").rglob("*.log"))}
    assert said in logs["tables.log"], logs


def test_a_job_over_its_time_limit_is_stopped_and_named(undisturbed, tmp_path):
    study = Study(tmp_path / "study")
    done = study.make(SQLIB_TIME_LIMIT="1")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "stopped after 1 s, the time limit of this notebook" in done.stdout
    heals(study, undisturbed[1])


def test_ctrl_c_at_any_moment(undisturbed, tmp_path, record_property):
    study, chance = Study(tmp_path / "study"), random.Random(1)
    for tried in range(1, 4):
        process = study.start()
        time.sleep(chance.uniform(3, 20))
        jobs = below(process.pid)
        os.kill(process.pid, signal.SIGINT)
        record_property("faults", tried)
        out, err = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == 130 and "Traceback" not in out + err
        assert not [job for job in jobs if Path(f"/proc/{job}").exists()]
    heals(study, undisturbed[1])


@sample
def test_half_written_files_that_a_power_cut_leaves(finished, undisturbed):
    # What `os.replace` had not put in place yet lies about, and what Snakemake had begun says that it is incomplete.
    folder = load_study("micro", finished.params).runs()[0].folder(finished.folder)
    for name in ("result.json", "notebook.ipynb", "model.safetensors"):
        data = (folder / name).read_bytes()
        (folder / f".{name}.abc123").write_bytes(data[: len(data) // 3])
    (finished.folder / ".snakemake/locks").mkdir(parents=True, exist_ok=True)
    (finished.folder / ".snakemake/locks/0.input.lock").write_text(str(folder / "result.json"))
    (finished.folder / "tables.html").unlink()
    heals(finished, undisturbed[1])


def test_a_notebook_half_written_in_place_is_no_page(finished, undisturbed):
    folder = load_study("micro", finished.params).runs()[0].folder(finished.folder)
    for notebook in (folder / "notebook.ipynb", finished.folder / "notebooks/tables.ipynb"):
        notebook.write_bytes(notebook.read_bytes()[: notebook.stat().st_size // 2])
    for page in (folder / "train.html", finished.folder / "tables.html"):
        page.unlink()
    heals(finished, undisturbed[1])
    assert (folder / "train.html").exists()


DAMAGES = {
    "result truncated": ("result.json", lambda data: data[: len(data) // 2]),
    "result empty": ("result.json", lambda data: b""),
    "result with another accuracy's run": ("result.json", lambda data: data.replace(b'"seed": 0', b'"seed": 1', 1)),
    "bit flipped in the model": ("model.safetensors", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
    "model truncated": ("model.safetensors", lambda data: data[:-100]),
    "bit flipped in the packed model": (
        "packed.safetensors",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ),
    "values truncated": ("per_image.safetensors", lambda data: data[:-1]),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[sample] if kind.startswith("bit flipped") else []) for kind in DAMAGES]
)
def test_a_damaged_file_is_noticed_and_made_again(kind, finished, undisturbed):
    name, damage = DAMAGES[kind]
    run = load_study("micro", finished.params).runs()[1]
    path = run.folder(finished.folder) / name
    path.write_bytes(damage(path.read_bytes()))
    heals(finished, undisturbed[1])


@pytest.mark.parametrize(
    "name", ["result.json", "model.safetensors", "train.html", "packed.safetensors", "notebook.ipynb"]
)
def test_a_file_that_is_gone_is_made_again(name, finished, undisturbed):
    (load_study("micro", finished.params).runs()[0].folder(finished.folder) / name).unlink()
    if name == "notebook.ipynb":  # only the page is made from it, and that is there
        assert finished.make().stdout.startswith("micro: everything is up to date")
    else:
        heals(finished, undisturbed[1])


def test_parameters_changed_and_changed_back(finished, undisturbed):
    finished.write({**MICRO, "training": {**MICRO["training"], "learning_rate": 1e-3}})
    done = finished.make()
    assert done.returncode == 0 and "2 runs to train" in done.stdout
    assert finished.whole() != undisturbed[1]
    finished.write(MICRO)
    heals(finished, undisturbed[1])


def test_parameters_edited_while_it_runs_are_not_mixed(undisturbed, tmp_path):
    study = Study(tmp_path / "study")
    process = study.start((*COMMAND, "--cores", "1"))  # so one run is trained after the other
    child_with(process, "sqlib train")
    study.write({**MICRO, "training": {**MICRO["training"], "learning_rate": 1e-3}})
    out, err = process.communicate(timeout=900)
    assert process.returncode == 1 and "were changed since the study was started: start it again" in out
    assert "Traceback" not in out + err
    study.write(MICRO)
    heals(study, undisturbed[1])


@sample
def test_training_that_diverges_is_reported_and_stays_to_be_looked_at(finished, undisturbed):
    """Both runs: their index has the table of what failed, with cell, error and log; the other jobs are made."""
    finished.write({**MICRO, "training": {**MICRO["training"], "learning_rate": 1.0}})
    done = finished.make()
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    index = (finished.folder / "index.html").read_text()
    assert 'id="failed"' in index
    for run in load_study("micro", finished.params).runs():
        folder = run.folder(finished.folder)
        said = r"training diverged in epoch 1, batch \d+, at [^<]*|training has failed: after epoch \d+ [^<]*"
        assert re.search(rf"FAILED train {run.id}: [^\n]*({said})", done.stdout)
        assert re.search(said, index) and f'"logs/{run.id}/train.log"' in index
        assert not (folder / "result.json").exists()
        assert '"output_type": "error"' in (folder / "notebook.ipynb").read_text()
        assert "Traceback" in (folder / "train.html").read_text() or "SqlibError" in (folder / "train.html").read_text()
    finished.write(MICRO)
    heals(finished, undisturbed[1])


def test_a_damaged_data_file_is_fetched_again(undisturbed, tmp_path):
    study = Study(tmp_path / "study")
    copy = tmp_path / "data"
    shutil.copytree(os.environ.get("SQLIB_DATA", REPOSITORY / "data"), copy)
    study.environment["SQLIB_DATA"] = str(copy)
    victim = next((copy / "mnist").glob("train*images*.idx"), None) or next((copy / "mnist").glob("*.idx"))
    data = bytearray(victim.read_bytes())
    data[1000] ^= 255
    victim.write_bytes(data)
    heals(study, undisturbed[1])


def test_the_clock_moved_back(finished, undisturbed):
    # Results that look as if they were made in the past, and stamps from the future.
    for path in finished.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 10_000, time.time() - 10_000))
    for path in (finished.folder / "stamps").glob("*.json"):
        os.utime(path, (time.time() + 3600, time.time() + 3600))
    heals_or_does_nothing(finished, undisturbed[1])


def heals_or_does_nothing(study: Study, expected: dict[str, str]) -> None:
    done = study.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert study.whole() == expected


@sample
def test_two_at_once(undisturbed, tmp_path):
    study = Study(tmp_path / "study")
    first = study.start()
    time.sleep(4)
    second = study.make()
    assert second.returncode == 2 and "another process" in second.stderr and len(second.stderr.splitlines()) == 1
    out, err = first.communicate(timeout=900)
    assert first.returncode == 0, out + err
    assert study.whole() == undisturbed[1]


@sample
def test_a_full_disk_is_named_and_survived(undisturbed, tmp_path):
    """On a file system of 3 MB that is then made larger; it lives in a namespace of its own, so nobody need be root."""
    study, place = Study(tmp_path / "study"), tmp_path / "study/reports/micro"
    place.mkdir(parents=True)
    make = f"'{sys.executable}' -m sqlib reproduce micro"
    script = (
        f"mount -t tmpfs -o size=3m tmpfs '{place}' || exit 99; {make} && exit 98; "
        f"mount -o remount,size=500m '{place}' || exit 97; {make} || exit 96; cp -a '{place}' '{tmp_path}/after'"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=study.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{done.returncode}: {said}"  # 99: no mounting here, 98: it fitted, 96: not healed
    assert "No space left" in said and "Traceback" not in said
    study.folder = tmp_path / "after"
    assert study.whole() == undisturbed[1]


def test_a_read_only_folder_is_one_line_and_nothing_is_lost(finished, undisturbed, tmp_path):
    """A read-only file system, which stops root, too: in a namespace of its own."""
    place, make = finished.folder, f"'{sys.executable}' -m sqlib reproduce micro"
    script = (
        f"mount --bind '{place}' '{place}' && mount -o remount,ro,bind '{place}' || exit 99; {make} && exit 98; exit 0"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=finished.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout + done.stderr}"
    assert len(done.stderr.splitlines()) == 1 and "Read-only file system" in done.stderr
    heals_or_does_nothing(finished, undisturbed[1])


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    study = Study(tmp_path / "study")
    (study.root / "reports").write_text("a file where the folder should be")
    done = study.make()
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot write" in done.stderr
