"""Driving Snakemake: what is to be made, how long it takes, one line for each finished job, and an orderly end."""

import base64
import errno
import fcntl
import getpass
import glob
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlib import files, resources
from sqlib.checked import SqlibError, nearest
from sqlib.files import UNKNOWN_THERE, cannot_write, touch, write_atomically
from sqlib.places import REPOSITORY
from sqlib.report.words import about, count, duration, logged, logged_errors, shown
from sqlib.study import results, sources
from sqlib.study.parameters import Run, Study
from sqlib.study.sweeps import settle, trials_of
from sqlib.study.yaml import read_yaml
from sqlib.workflow.forkserver import die_with_parent
from sqlib.workflow.pages import RUN_FILES, Job, Kind, folder_of, jobs_of, write_stamps

# ---- how long it takes -------------------------------------------------------------------------------------------------


RUN_SECONDS = 5.0
IMAGE_SECONDS = 2e-3  # for each test image measured
FAITHFULNESS_SECONDS = 1e-2  # for each test image blanked step by step


def training_seconds(wanted: list[Run], measured: bool = True) -> list[float]:
    """Predicted seconds of each run: a few real training steps of every kind among them are timed here.

    measured: whether the trained network is also measured on the test images, in a notebook (as all but trials are).
    """
    from sqlib.training.loop import step_seconds

    steps: dict[tuple, float] = {}
    predicted = []
    for run in wanted:
        kind = (run.network, run.setup.name, run.training)
        if kind not in steps:
            try:
                steps[kind] = step_seconds(run)
            except Exception:  # a run that cannot work: its own job says why, and the others are made
                steps[kind] = max(steps.values(), default=0.0)
        seconds = run.epochs * math.ceil(run.parameters.images / run.parameters.batch_size) * steps[kind]
        if measured:
            evaluation = run.evaluation
            seconds += evaluation.images * IMAGE_SECONDS + evaluation.faithfulness_images * FAITHFULNESS_SECONDS
            seconds += RUN_SECONDS
        predicted.append(seconds)
    return predicted


RUN_BYTES = 1.2e6
"""Of a run beside its weights: values of 10,000 images, two notebooks and two pages, what its maps gave."""


def disk_bytes(wanted: list[Run]) -> float:
    """Predicted bytes of the runs: weights in float32 and at their bits, and what else each leaves."""
    from sqlib.networks.cost import cost
    from sqlib.networks.network import build_model

    models = {(run.network, run.setup.name): run for run in wanted}
    costs = {kind: cost(build_model(run.network, run.setup)) for kind, run in models.items()}
    weights = {kind: found["float_weight_bytes"] + found["weight_bytes"] for kind, found in costs.items()}
    return sum(RUN_BYTES + weights[run.network, run.setup.name] for run in wanted)


def up_to_date(run: Run, reports: Path) -> bool:
    """Whether a run's result belongs to the parameters and sources as they are now (its stamp may be older)."""
    folder = run.folder(reports)
    stamp, now = folder / "parameters.json", files.to_json(sources.run_stamp(run))
    return stamp.exists() and stamp.read_bytes() == now and results.fault(folder) is None


# ---- where it runs -----------------------------------------------------------------------------------------------------
def load_profile(name: str) -> tuple[Path, dict]:
    """The folder of a profile and what its config.yaml says; `name`: a folder in profiles/, or any other. SqlibError."""
    for folder in (REPOSITORY / "profiles" / name, Path(name)):
        if (folder / "config.yaml").is_file():
            return folder.resolve(), read_yaml(folder / "config.yaml")
    known = sorted(path.parent.name for path in (REPOSITORY / "profiles").glob("*/config.yaml"))
    raise SqlibError(f"unknown profile '{name}'{nearest(name, known)}")


@contextmanager
def as_pattern(folder: Path) -> Iterator[Path]:
    """A path of a profile's folder that Snakemake finds: it takes it for a pattern, and where `[`, `*` or `?` is in it, it
    would go on without the profile, and say nothing."""
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sqlib-") as place:
        link = Path(place) / "profile"
        link.symlink_to(folder)
        yield link


def side_by_side(cores: int, threads: int) -> tuple[int, str]:
    """(how many jobs of so many threads run at once here, why these are fewer than the cores allow or "")."""
    slots, fit = max(1, cores // threads), resources.jobs_that_fit()
    if slots <= fit:
        return slots, ""
    have, need = resources.memory() / 1e9, resources.JOB_BYTES / 1e9
    return fit, f" ({count(fit, 'job')} at once: memory is limited to {have:.1f} GB, a job may need {need:g} GB)"


def memory_limits(cores: int) -> list[str]:
    """Snakemake's options by which no more jobs run side by side than have room in memory; none where all cores may work."""
    fit, need = resources.jobs_that_fit(), resources.JOB_BYTES // 10**6
    return ["--resources", f"mem_mb={fit * need}", "--default-resources", f"mem_mb={need}"] if fit < cores else []


def job_prefix(reports: Path) -> str:
    """What the names of a study's SLURM jobs begin with: no other study, and no other copy of this one, has it."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", reports.name)[:30]
    return f"sqlib-{name}-{hashlib.sha256(os.fsencode(reports.resolve())).hexdigest()[:8]}"


def cancel_left_over(prefix: str, patience: float = 60) -> int:
    """Cancel the SLURM jobs that a killed driver left in the queue, so that none runs twice; returns how many.

    patience: seconds to wait for them to end; on a node that is gone they never do.
    """

    def left() -> list[str]:
        lines = slurm("squeue", "--noheader", "--user", getpass.getuser(), "--format=%A|%j").splitlines()
        return [line.split("|")[0] for line in lines if line.partition("|")[2].startswith(f"{prefix}_")]

    found, waited = left(), 0
    if found:
        slurm("scancel", *found)
        while left() and waited < patience:
            time.sleep(1)
            waited += 1
    return len(found)


def slurm(*command: str) -> str:
    """What one of SLURM's commands says; SqlibError if it cannot."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except FileNotFoundError:
        raise SqlibError(f"{command[0]} is not installed: profile slurm is used on a login node of a cluster") from None
    except subprocess.TimeoutExpired:
        raise SqlibError(f"{command[0]}: SLURM does not answer") from None
    except subprocess.CalledProcessError as error:
        raise SqlibError(f"{command[0]}: {last_words(error.stderr)}") from None


# ---- before it starts --------------------------------------------------------------------------------------------------
@contextmanager
def exclusive(reports: Path) -> Iterator[int]:
    """Hold the study's lock, a file descriptor; SqlibError if another process holds it.

    The system frees it when its last holder ends, so a lock that Snakemake left behind is stale, and is removed.
    """
    path = reports / ".lock"
    try:
        reports.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SqlibError(f"cannot write {shown(reports)}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise SqlibError(
                f"{shown(reports)} is being made by another process{f' ({holder})' if holder else ''}: "
                "wait for it, or stop it"
            ) from None
        except OSError as error:  # a mount without locks
            if error.errno not in {*UNKNOWN_THERE, errno.ENOLCK}:
                raise SqlibError(f"cannot lock {shown(path)}: {error.strerror}") from None
            tell(
                f"{shown(reports)}: no locks on this file system ({error.strerror}): do not start a study twice at once"
            )
        shutil.rmtree(reports / ".snakemake/locks", ignore_errors=True)
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()}".encode(), 0)
        except OSError as error:
            raise SqlibError(f"cannot write {shown(path)}: {error.strerror}") from None
        yield lock
    finally:
        os.close(lock)


def prepare(study: Study, reports: Path) -> list[str]:
    """Bring stamps and results in line, so that Snakemake sees what is to be made; returns what is worth saying.

    A result that is damaged or belongs to other parameters or code is taken away; one that is right but looks older
    than its stamp (files copied, clock moved back) is made to look new.
    """
    (reports / "logs").mkdir(parents=True, exist_ok=True)
    said = bring_to_now(reports)
    write_stamps(study, reports)
    for run in study.runs():
        folder = run.folder(reports)
        if not (folder / "result.json").exists():
            continue
        if fault := results.fault(folder) or page_lost(folder):
            (folder / "result.json").unlink()
            said.append(f"{run.id}: {fault.replace(str(folder) + '/', '')}; it is trained again")
        else:
            keep_finished(folder, reports)
        if not fault and (folder / "result.json").stat().st_mtime < (folder / "parameters.json").stat().st_mtime:
            for name in (*RUN_FILES, results.PACKED, "train.html"):
                if (folder / name).exists():
                    touch(folder / name)
        if not fault and not (results.is_packed(folder) and newer(folder / "train.html", folder / "notebook.ipynb")):
            (reports / "index.html").unlink(missing_ok=True)  # the job that writes it makes them, too
    for trial in trials_of(study):
        settle(trial, reports)
    if len(said) > 3:
        said = [*said[:2], f"... and {len(said) - 2} more runs are trained again, for the like reasons"]
    for run in study.quality_runs():
        if fault := maps_fault(run.folder(reports)):
            (run.folder(reports) / "quality.json").unlink(missing_ok=True)
            said.append(f"{run.id}: {fault}; its maps are measured again")
    return said


def bring_to_now(reports: Path) -> list[str]:
    """Date a study's files that are from the future (a clock was set back) to just before now, in their order; says so.

    Snakemake takes what is made now for older than they are: it would fail after the first job, and overlook new stamps.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=reports, prefix=".now.") as file:  # by the clock of the file system
            now = os.fstat(file.fileno()).st_mtime_ns
    except OSError as error:
        raise cannot_write(reports, error) from None
    future = []
    for folder, _, names in os.walk(reports):
        for path in (os.path.join(folder, name) for name in names):
            with suppress(OSError):  # a link to nowhere
                if (at := os.stat(path).st_mtime_ns) > now:
                    future.append((at, path))
    before = {at: now - 1000 * place for place, at in enumerate(sorted({at for at, _ in future}, reverse=True))}
    for at, path in sorted(future):
        touch(Path(path), before[at])
    if not future:
        return []
    ahead = duration((max(future)[0] - now) / 1e9)
    return [
        f"{count(len(future), 'file')} in {shown(reports)} from the future, up to {ahead} (a clock was set back): dated to now"
    ]


def keep_finished(folder: Path, reports: Path) -> None:
    """Take Snakemake's mark of an unfinished job from a run that was whole when its job was killed.

    So it is not trained again. The notebook is written last; without it there would be no page.
    """
    if newer(folder / "notebook.ipynb", folder / "result.json"):
        for name in RUN_FILES:
            path = (folder / name).relative_to(reports).as_posix()
            mark = base64.urlsafe_b64encode(path.encode()).decode()
            (reports / ".snakemake/incomplete" / mark).unlink(missing_ok=True)


def page_lost(folder: Path) -> str | None:
    """Why a finished run has no page and none can be made, in a few words; None if it has one, or its notebook is whole."""
    if newer(folder / "train.html", folder / "notebook.ipynb"):
        return None
    try:
        files.read_json(folder / "notebook.ipynb")
    except SqlibError:
        return "its page is not there, and its notebook is missing or damaged"
    return None


def newer(path: Path, than: Path) -> bool:
    """Whether a file is there, and not older than another that may be missing."""
    return path.exists() and (not than.exists() or path.stat().st_mtime >= than.stat().st_mtime)


def maps_fault(folder: Path) -> str | None:
    """Why what was measured on a run's maps cannot be believed, in a few words; None if it can, or is not there."""
    values, summary = folder / "quality.safetensors", folder / "quality.json"
    if not (values.exists() and summary.exists()):
        return None
    try:
        stated = files.read_json(summary).get("files")
    except SqlibError:
        return "quality.json is damaged"
    if not isinstance(stated, dict) or hashlib.sha256(values.read_bytes()).hexdigest() != stated.get(values.name):
        return "quality.safetensors is damaged (its SHA-256 is not the one in quality.json)"
    return None


def command_for(study: Study) -> list[str]:
    """Snakemake for a study, by whose events it is known what it does; where it runs comes behind it."""
    module, snakefile = "sqlib.workflow.snakemake_events", str(REPOSITORY / "Snakefile")
    return [sys.executable, "-m", module, "--snakefile", snakefile, "--directory", str(folder_of(study))]


def read_event(line: str) -> tuple[str, str, int | None, str | None]:
    """(words, event, job's number, its log) of a line of `sqlib.workflow.snakemake_events`; of any other, it and nothing more."""
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(line)
        return said["text"], said.get("event", ""), said.get("job"), said.get("log")
    return line.rstrip("\n"), "", None, None


def pending(snakemake: list[str], log: Path, study: Study) -> dict[int, Job]:
    """The jobs of a study that Snakemake would run now, by its number; SqlibError if it cannot tell."""
    done = subprocess.run(
        [*snakemake, "--dry-run"], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    events = [read_event(line) for line in done.stdout.splitlines()]
    if done.returncode:
        output = "".join(f"{text}\n" for text, *_ in events)
        write_atomically(log, output.encode())
        raise SqlibError(f"Snakemake cannot plan the study: {last_words(output)}; see {shown(log)}")
    known = {job.log: job for job in jobs_of(study)}
    return {number: known[log] for _, event, number, log in events if event == "job_info" and log in known}


def environment() -> dict[str, str]:
    """Of Snakemake and its jobs: sqlib is found whether or not it is installed."""
    # Its own entries, too, mean the folder in which the command was typed, which is not that of the jobs.
    given = os.environ.get("PYTHONPATH")
    path = [str(REPOSITORY), *(os.path.abspath(entry) for entry in (given.split(os.pathsep) if given else []))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def last_words(output: str) -> str:
    """The last line of a program's output that says something, or that names an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    # Snakemake: "NameError in file X, line 3:", and the cause on the next line. Python: "NameError: the cause".
    told = [after for line, after in itertools.pairwise(lines) if re.match(r"\w*(Error|Exception)( in .*)?:$", line)]
    errors = told or [line for line in lines if re.match(r"\w*(Error|Exception)\b.*: ?\S", line)]
    return (errors or lines)[-1][:300]


# ---- while it runs -----------------------------------------------------------------------------------------------------
@dataclass
class Progress:
    """Which jobs are done, and how long the rest takes, judged by the predictions and how they held so far."""

    jobs: dict[int, Job]
    slots: int
    reports: Path
    begun: float = field(default_factory=time.monotonic)
    predicted: dict[int, float] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    finished: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def predict(self) -> None:
        """Predict the seconds of every job: those of training by real steps, the others by what was measured elsewhere."""
        trained = {number: job for number, job in self.jobs.items() if job.kind.name in ("train", "trial")}
        for measured in (True, False):
            own = {n: job.about.runs for n, job in trained.items() if (job.kind.name == "train") == measured}
            parts = iter(training_seconds([run for runs in own.values() for run in runs], measured))
            for number, runs in own.items():
                self.predicted[number] = sum(next(parts) for _ in runs) + (0.0 if measured else 1.0)
        self.predicted |= {number: job.kind.seconds for number, job in self.jobs.items() if number not in trained}

    def left(self) -> float:
        """Seconds that the unfinished jobs will take on `slots` cores."""
        now, rest = time.monotonic(), []
        for number, job in self.jobs.items():
            if number not in self.finished and number not in self.failed:
                elapsed = now - self.started.get(number, now)
                rest.append(max(self._factor(job.kind) * self.predicted[number] - elapsed, 0.0))
        return max(sum(rest) / self.slots, max(rest, default=0.0))

    def _factor(self, kind: Kind) -> float:
        """How much longer than predicted the finished jobs of a kind took (1 while there are none)."""
        done = [number for number in self.finished if self.jobs[number].kind is kind]
        predicted = sum(self.predicted[number] for number in done)
        return sum(self.finished[number] for number in done) / predicted if predicted else 1.0

    def start(self, number: int) -> None:
        """Take note of a job that was started."""
        if number in self.jobs:
            self.started[number] = time.monotonic()

    def finish(self, number: int) -> str | None:
        """Take note of a finished job; the line to print."""
        if number not in self.jobs or number in self.finished:
            return None
        job = self.jobs[number]
        self.failed.pop(number, None)  # it failed, was tried again, and is done
        seconds = self.finished[number] = time.monotonic() - self.started.get(number, self.begun)
        unfinished = len(self.jobs) - len(self.finished) - len(self.failed)
        rest = f"; {about(self.left())} left" if unfinished else ""
        return f"{self._number()} {self._did(job)}, {duration(seconds)}{rest}"

    def fail(self, number: int) -> str | None:
        """Take note of a failed job; the line to print, with its error and its log. None if that is known already."""
        if number not in self.jobs or number in self.failed or number in self.finished:
            return None
        job = self.jobs[number]
        log = self.reports / job.log
        errors = logged_errors(log)
        # Of a group in which one job fails Snakemake says that all have failed.
        if job.kind.name == "train" and not errors and results.fault(self.reports / "runs" / job.target) is None:
            return self.finish(number)
        what = f"{job.kind.name} {job.target}".strip()
        self.failed[number] = f"{what}: {errors[-1] if errors else last_words(logged(log))} (log: {shown(log)})"
        return f"{self._number()} FAILED {self.failed[number]}"

    def _number(self) -> str:
        total = str(len(self.jobs))
        return f"[{len(self.finished) + len(self.failed):>{len(total)}}/{total}]"

    def _did(self, job: Job) -> str:
        said = job.done
        if job.kind.name == "train":
            with suppress(SqlibError, KeyError, TypeError):
                result = results.read_result(self.reports / "runs" / job.target)
                said += f": test {100 * result['metrics']['test_accuracy']:.2f}%"
        return said


def drive(
    snakemake: list[str],
    log: Path,
    lock: int,
    environment: dict[str, str],
    begin: Callable[[], None],
    progress: Progress,
) -> int:
    """Run Snakemake in the environment, print one line for each finished job, keep all it says in `log`; returns its exit code.

    begin: called while Snakemake reads its rules, before the first line is printed.

    Ctrl-C, and within `in_order` SIGTERM and SIGHUP, end Snakemake and its jobs and leave as exceptions.
    """

    def keep(text: str) -> None:
        try:
            file.write(f"{text}\n")
            file.flush()
        except OSError as error:
            raise SqlibError(f"cannot write {shown(log)}: {error.strerror}; stopped") from None

    own = os.getpid()
    process = subprocess.Popen(
        snakemake, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True, pass_fds=[lock],
        preexec_fn=lambda: as_child(own),
    )  # fmt: skip
    try:
        begin()
        with open(log, "w", encoding="utf-8") as file:
            for line in process.stdout:
                text, event, number, _ = read_event(line)
                keep(text)
                match event:
                    case "job_info":
                        progress.start(number)
                    case "job_finished":
                        tell(progress.finish(number))
                    case "job_error":
                        tell(progress.fail(number))
        return process.wait()
    except (KeyboardInterrupt, SystemExit):
        done = len(progress.finished)
        tell(f"\nstopped; {done} of {len(progress.jobs)} jobs are done and kept: type the same command to go on")
        raise
    finally:
        end(process)


@contextmanager
def in_order() -> Iterator[None]:
    """A `with` block that SIGTERM and SIGHUP end as an exception, so that it leaves nothing behind.

    What is ignored from the start, as with nohup, stays ignored.
    """

    def stop_on(number, _frame):
        raise SystemExit(128 + number)

    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in old.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop_on)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def as_child(parent: int) -> None:
    """Called in Snakemake's process before it starts: it ends with this one, and can be interrupted (not so behind &)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL, parent)


def tell(line: str | None) -> None:
    """Print a line (None: nothing). A reader who has gone (`| head -1`) stops no study: its log has all of it."""
    if line is not None:
        try:
            print(line, flush=True)
        except OSError:  # a closed pipe, or a terminal that is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end(process: subprocess.Popen) -> None:
    """End a process and the group it leads: asked, told, then killed."""
    for number, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def problems(study: Study, progress: Progress, code: int, log: Path) -> None:
    """Print what failed, what was therefore not made, and what can be done."""
    jobs = [progress.jobs[number] for number in progress.failed]
    waiting = len(progress.jobs) - len(progress.finished) - len(progress.failed)
    said = []
    if jobs:
        more = f" and {len(jobs) - 5} more" if len(jobs) > 5 else ""
        named = ", ".join(f"{job.kind.name} {job.target}".strip() for job in jobs[:5])
        said.append(f"failed: {count(len(jobs), 'job')}: {named}{more}")
    if waiting:
        said.append(f"not made, because they need what failed: {count(waiting, 'job')}")
    if not jobs:
        how = f"was killed by signal {-code}" if code < 0 else f"stopped: {last_words(log.read_text(errors='replace'))}"
        said.append(f"error: Snakemake {how}; see {shown(log)}")
    said.append(f"what there is: {shown(progress.reports / 'index.html')}; type the same command to try again")
    if any(job.kind.name == "train" for job in jobs):
        said.append(f"'make reports STUDY={study.name}' makes the tables and comparisons of the runs there are")
    print("\n".join(said), file=sys.stderr)
