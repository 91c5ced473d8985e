"""Every job of a study as a command: `python -m sqlib --help` lists them.

Snakemake runs the small ones (`train`, `saliency`, `compare`, ...; each may be repeated without harm), `reproduce` runs
Snakemake. An error the user can act on is one line on stderr and exit code 2.
"""

import ctypes
import fcntl
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from sqlib import runs
from sqlib.config import DATASET_NAMES, REPOSITORY, Run, SqlibError, Study, load_study, nearest
from sqlib.files import write_atomically
from sqlib.sweeps import Trial, load_sweep, touch_if_current

# --help lists the commands in this order. torch, and what imports it, is imported inside them, so that it is quick.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

StudyName = Annotated[str, typer.Argument(help="Name of a file in params/, such as paper or smoke.", metavar="STUDY")]
RunId = Annotated[str, typer.Argument(help="Such as mnist/lenet/w2a2/standard/seed0.", metavar="RUN_ID")]
Cores = Annotated[int | None, typer.Option(min=1, help="Cores to use (default: all this process may use).")]

PROFILES = ("local", "slurm", "kubernetes")
TIME_LIMITS = {"train": 24 * 3600, "page": 3600}  # seconds for a notebook: far more than it needs, but an end


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 some jobs failed, 2 an error, 130 stopped by the user."""
    if os.environ.get("SQLIB_JOB"):
        die_with_parent(signal.SIGTERM)
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("interrupted", file=sys.stderr)
        raise
    except SqlibError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: {error.filename or 'file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def die_with_parent(number: int) -> None:
    """Have the system send this process a signal when its parent ends, however that ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # 1 = PR_SET_PDEATHSIG


# ---- jobs ----------------------------------------------------------------------------------------------------------


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="mnist or fashion_mnist (default: both).")] = None,
    study: Annotated[str | None, typer.Option(help="Also make the page about the data in this study.")] = None,
) -> None:
    """Fetch and check the data sets."""
    from sqlib.data import fetch

    if name is not None and name not in DATASET_NAMES:
        raise SqlibError(f"unknown data set '{name}'{nearest(name, DATASET_NAMES)}")
    for dataset in [name] if name else DATASET_NAMES:
        folder = fetch(dataset)
        print(f"{dataset}: complete and checked in {shown(folder)}")
        if study is not None:
            page = Page.data(load_study(study), dataset)
            page.execute({"dataset": dataset, "study": study}, [])
            page.render()


@app.command()
def train(name: StudyName, run_id: RunId) -> None:
    """Train and measure one run, unless its result is there already."""
    study = load_study(name)
    page = Page.train(study, study.run(run_id))
    folder = page.notebook.parent
    stamp, now = folder / "parameters.json", runs.to_json(runs.run_stamp(study.run(run_id)))
    if os.environ.get("SQLIB_JOB") and stamp.exists() and stamp.read_bytes() != now:
        raise SqlibError("parameters or code were changed since the study was started: start it again")
    if not stamp.exists() or stamp.read_bytes() != now:
        write_atomically(stamp, now)
    if runs.fault(folder) is None:
        runs.load_model(folder)
        runs.pack_run(folder)
        print(f"{run_id}: already trained, nothing done")
    else:
        (folder / "result.json").unlink(missing_ok=True)
        files = ["model.safetensors", "per_image.safetensors", "result.json"]
        parameters = {"study": name, "run_id": run_id, "folder": folder}
        page.execute(parameters, [folder / name for name in files], study.threads, TIME_LIMITS["train"])
        if broken := runs.fault(folder):
            raise SqlibError(f"the notebook left no valid result: {broken}")
    page.render()


@app.command()
def trial(name: StudyName, trial_id: Annotated[str, typer.Argument(metavar="TRIAL_ID")]) -> None:
    """Train one trial of a sweep, such as quantisation/mnist/clip_start=3, unless its result is there already."""
    from sqlib import sweeps

    study = load_study(name)
    wanted = sweeps.trial_of(study, trial_id)
    made = sweeps.run_trial(wanted, wanted.path(runs.reports_root() / study.name))
    networks = count(len(wanted.runs), "network")
    print(f"{trial_id}: {f'trained {networks}' if made else 'already trained, nothing done'}")


@app.command()
def sweep(name: StudyName, sweep_name: Annotated[str, typer.Argument(metavar="SWEEP")]) -> None:
    """Make the page of a sweep: which parameters its rule picks."""
    study = load_study(name)
    if sweep_name not in study.sweeps:
        raise SqlibError(f"study '{name}' has no sweep '{sweep_name}'{nearest(sweep_name, study.sweeps)}")
    page = Page.sweep(study, sweep_name)
    page.execute({"reports": page.reports, "sweep": sweep_name}, [])
    page.render()


@app.command()
def post_training(name: StudyName, run_id: RunId) -> None:
    """Quantise a float run without training it again, at every setup of the study."""
    from sqlib import post_training as after

    study = load_study(name)
    run = study.run(run_id)
    after.measure_run(study, run, run.folder(runs.reports_root() / study.name))


@app.command()
def deployed(name: StudyName, run_id: RunId) -> None:
    """Compare a quantised run with its packed and ONNX forms, on every test image."""
    from sqlib import deployed as forms

    study = load_study(name)
    run = study.run(run_id)
    found = forms.measure_run(run, run.folder(runs.reports_root() / study.name))
    for form in ("packed", "onnx"):
        part = found[form]
        same = f"{part['same_predictions']:,} of {part['images']:,} predictions are the trained model's"
        print(f"{run_id}: {form}, {part['bytes']:,} bytes: {same}, logits within {part['largest_relative']:.1e}")


@app.command()
def saliency(name: StudyName, run_id: RunId) -> None:
    """Make the page of saliency maps of one trained run."""
    study = load_study(name)
    page = Page.saliency(study, study.run(run_id))
    page.execute({"run_folder": page.notebook.parent}, [], study.threads)
    page.render()


@app.command()
def compare(
    name: StudyName,
    dataset: Annotated[str, typer.Argument(help="mnist or fashion_mnist.")],
    network: Annotated[str | None, typer.Option(help="Default: the study's first.")] = None,
) -> None:
    """Make the page that compares all setups on one data set."""
    study = load_study(name)
    network = network or study.networks[0]
    for kind, value, known in (("data set", dataset, study.datasets), ("network", network, study.networks)):
        if value not in known:
            raise SqlibError(f"study '{name}' has no {kind} '{value}'{nearest(value, known)}")
    page = Page.compare(study, dataset, network)
    page.execute({"reports": page.reports, "dataset": dataset, "network": network}, [], study.threads)
    page.render()


@app.command()
def tables(name: StudyName) -> None:
    """Make the tables and results/runs.csv."""
    page = Page.tables(load_study(name))
    page.execute({"reports": page.reports}, [page.reports / "results/runs.csv"])
    page.render()


@app.command()
def claims(name: StudyName) -> None:
    """Give the claims of params/claims.yaml their verdicts."""
    page = Page.claims(load_study(name))
    page.execute({"reports": page.reports}, [])
    page.render()


@app.command()
def index(name: StudyName) -> None:
    """Write the index, and what is missing of finished runs.

    That is packed models, and pages that are not there or have old looks.
    """
    study = load_study(name)
    reports = runs.reports_root() / study.name
    for run in study.runs():
        if runs.fault(run.folder(reports)) is None:
            runs.pack_run(run.folder(reports))
    stamp = reports / "stamps/index.json"
    newest = stamp.stat().st_mtime if stamp.exists() else 0
    for page in Page.all(study):
        if page.notebook.exists() and not (page.html.exists() and page.html.stat().st_mtime >= newest):
            page.render()
    write_index(study)


@app.command("reports")
def render_reports(name: StudyName) -> None:
    """Make all pages again from the results there are."""
    study = load_study(name)
    reports = runs.reports_root() / study.name
    finished = [run for run in study.runs() if (run.folder(reports) / "result.json").exists()]
    if not finished:
        raise SqlibError(f"{shown(reports)} holds no results yet: run 'make reproduce STUDY={name}' first")
    with exclusive(reports):
        for page in Page.all(study):
            if page.notebook.exists() and page.kind in ("data", "train", "saliency"):
                page.render()
        for dataset in study.datasets:
            for network in study.networks:
                if any((run.dataset, run.network) == (dataset, network) for run in finished):
                    compare(name, dataset, network)
        tables(name)
        claims(name)
        for sweep_name in study.sweeps:
            if any(t.path(reports).exists() for t in runs.trials_of(study) if t.sweep == sweep_name):
                sweep(name, sweep_name)
        write_index(study)
    missing = len(study.runs()) - len(finished)
    note = f"; {missing} of {len(study.runs())} runs are not there yet" if missing else ""
    print(f"{name}: pages made from {len(finished)} runs{note}: {shown(reports / 'index.html')}")


def write_index(study: Study) -> None:
    """Write `index.html` of a study."""
    from sqlib import index

    index.write_index(study, runs.reports_root() / study.name)


# ---- pages ---------------------------------------------------------------------------------------------------------


@dataclass
class Page:
    """One page of a study: the notebook it comes from, where that is kept when executed, and the HTML made of it."""

    study: Study
    kind: str  # a key of runs.SOURCES
    source: str  # in notebooks/
    notebook: Path
    html: Path
    result: Path | None  # what the notebook writes as its last act; None: it gets no `result_file`
    title: str
    command: str  # what makes it, behind `python -m sqlib`
    run: Run | None = None

    @classmethod
    def _plain(cls, study: Study, kind: str, source: str, name: str, title: str, command: str) -> "Page":
        reports = runs.reports_root() / study.name
        executed, result = reports / "notebooks" / f"{name}.ipynb", reports / "results" / f"{name}.json"
        return cls(study, kind, source, executed, reports / f"{name}.html", result, title, command)

    @classmethod
    def data(cls, study: Study, dataset: str) -> "Page":
        command = f"data {dataset} --study {study.name}"
        return cls._plain(study, "data", "1_data.ipynb", f"data_{dataset}", f"The data: {dataset}", command)

    @classmethod
    def compare(cls, study: Study, dataset: str, network: str) -> "Page":
        name = runs.compare_page(study, dataset, network)
        title, command = f"Comparison: {dataset}, {network}", f"compare {study.name} {dataset} --network {network}"
        return cls._plain(study, "compare", "4_compare.ipynb", name, title, command)

    @classmethod
    def tables(cls, study: Study) -> "Page":
        return cls._plain(study, "tables", "5_tables.ipynb", "tables", "Tables", f"tables {study.name}")

    @classmethod
    def claims(cls, study: Study) -> "Page":
        return cls._plain(study, "claims", "6_claims.ipynb", "claims", "Claims", f"claims {study.name}")

    @classmethod
    def sweep(cls, study: Study, name: str) -> "Page":
        title = load_sweep(name).title
        return cls._plain(study, "sweep", "7_parameters.ipynb", f"sweep_{name}", title, f"sweep {study.name} {name}")

    @classmethod
    def train(cls, study: Study, run: Run) -> "Page":
        folder = run.folder(runs.reports_root() / study.name)
        paths = folder / "notebook.ipynb", folder / "train.html"
        words = f"Training {run.id}", f"train {study.name} {run.id}"
        return cls(study, "train", "2_train.ipynb", *paths, None, *words, run)

    @classmethod
    def saliency(cls, study: Study, run: Run) -> "Page":
        folder = run.folder(runs.reports_root() / study.name)
        paths = folder / "saliency.ipynb", folder / "saliency.html", folder / "saliency.json"
        words = f"Saliency of {run.id}", f"saliency {study.name} {run.id}"
        return cls(study, "saliency", "3_saliency.ipynb", *paths, *words, run)

    @classmethod
    def all(cls, study: Study) -> list["Page"]:
        """Every page of a study but its index, in reading order."""
        all_runs = study.runs()
        return [
            *(cls.compare(study, dataset, network) for dataset in study.datasets for network in study.networks),
            cls.tables(study),
            cls.claims(study),
            *(cls.sweep(study, name) for name in study.sweeps),
            *(cls.data(study, dataset) for dataset in study.datasets),
            *(cls.train(study, run) for run in all_runs),
            *(cls.saliency(study, run) for run in all_runs if run.seed == study.seeds[0]),
        ]

    @property
    def reports(self) -> Path:
        return runs.reports_root() / self.study.name

    def execute(
        self, parameters: dict, required: list[Path], threads: int = 1, limit: float = TIME_LIMITS["page"]
    ) -> None:
        """Execute the notebook; if it fails, its page shows how far it came. SqlibError as `notebook.execute`."""
        from sqlib.execution import execute

        parameters = {key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()}
        if self.result is not None:
            parameters["result_file"] = str(self.result)
            required = [*required, self.result]
        source = REPOSITORY / "notebooks" / self.source
        try:
            execute(source, self.notebook, parameters, timeout=limit, required=required, threads=threads)
        except SqlibError:
            if self.notebook.exists():
                self.render()
            raise

    def render(self) -> None:
        """Make the HTML from the executed notebook."""
        from sqlib.pages import render

        here = os.path.relpath(self.reports / "index.html", self.html.parent)
        crumbs = [(self.study.title, here), (self.title, None)]
        same = [page for page in Page.all(self.study) if page.kind == self.kind]
        at = [page.html for page in same].index(self.html) if self.html in [page.html for page in same] else None
        before = self._link(same[at - 1]) if at else None
        after = self._link(same[at + 1]) if at is not None and at + 1 < len(same) else None
        render(self.notebook, self.html, self.title, crumbs, self.facts(), previous=before, next=after)

    def _link(self, other: "Page") -> tuple[str, str]:
        return other.title, os.path.relpath(other.html, self.html.parent)

    def facts(self) -> dict[str, str]:
        """What stands at the foot of the page: which run, the command that makes it, when, on what."""
        facts = {"Study": self.study.name, "Made by": f"python -m sqlib {self.command}"}
        origin = runs.provenance()
        if self.run is not None:
            facts["Run"] = self.run.id
            result_file = self.html.parent / "result.json"
            if result_file.exists():
                result = runs.read_result(self.html.parent)
                origin = {**origin, **result["provenance"]}
                facts["Parameters, digest"] = result["digest"]
        git = origin["git"]
        facts["Code"] = f"{git['revision'][:12]}{' with changes' if git['dirty'] else ''}" if git else "not in git"
        facts["Made (UTC)"] = " to ".join(
            str(t)[:16].replace("T", " ") for t in (origin["started"], origin["ended"]) if t
        )
        facts["Machine"] = f"{origin['cpu']}, {origin['cores']} cores, {self.study.threads} thread(s) a run"
        packages = origin["packages"]
        facts["Versions"] = f"Python {origin['python']}, torch {packages['torch']}, captum {packages['captum']}"
        return facts


# ---- how long it takes ---------------------------------------------------------------------------------------------

# Seconds for what is not training: starting a kernel, importing, measuring on the test images, drawing. Measured on two
# cores; they only start the estimate, which then follows the measured times.
PAGE_SECONDS = {
    "data": 15.0, "saliency": 20.0, "compare": 25.0, "tables": 10.0, "claims": 15.0, "sweep": 10.0, "index": 6.0,
    "post_training": 30.0, "deployed": 25.0,
}  # fmt: skip
RUN_SECONDS = 12.0
IMAGE_SECONDS = 2e-3  # for each test image measured
FAITHFULNESS_SECONDS = 1e-2  # for each test image blanked step by step


def training_seconds(wanted: list[Run], measured: bool = True) -> list[float]:
    """Predicted seconds of each run: a few real training steps of every kind among them are timed here.

    measured: whether the trained network is also measured on the test images, in a notebook (as all but trials are).
    """
    from sqlib.train import step_seconds

    steps: dict[tuple, float] = {}
    predicted = []
    for run in wanted:
        kind = (run.network, run.setup.name, run.training)
        if kind not in steps:
            steps[kind] = step_seconds(run)
        seconds = run.epochs * math.ceil(run.parameters.images / run.parameters.batch_size) * steps[kind]
        if measured:
            evaluation = run.evaluation
            seconds += evaluation.images * IMAGE_SECONDS + evaluation.faithfulness_images * FAITHFULNESS_SECONDS
            seconds += RUN_SECONDS
        predicted.append(seconds)
    return predicted


def duration(seconds: float) -> str:
    """Such as '8 s', '1 min 12 s', '34 min', '2 h 05 min'."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def about(seconds: float) -> str:
    """A duration as rough as an estimate is: 'less than a minute', 'about 34 min', 'about 2 h 10 min'."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        minutes = 10 * round(minutes / 10)
    return f"about {duration(60 * minutes) if minutes >= 60 else f'{minutes} min'}" if minutes else "less than a minute"


@app.command()
def plan(name: StudyName, cores: Cores = None) -> None:
    """Say how many runs there are to train, and how long that takes."""
    study = load_study(name)
    reports = runs.reports_root() / study.name
    cores = cores or runs.usable_cores()
    wanted = [run for run in study.runs() if not up_to_date(run, reports)]
    seconds = sum(training_seconds(wanted))
    slots = max(1, cores // study.threads)
    print(f"{name}: {len(study.runs())} runs, {len(wanted)} of them to train")
    print(f"core hours: {seconds * study.threads / 3600:.1f}; on {cores} cores {about(seconds / slots)}")
    print(f"disk: about {len(wanted) * 3:,} MB")  # 1.8 MB of weights, 0.4 MB of values, a notebook and a page


def up_to_date(run: Run, reports: Path) -> bool:
    """Whether a run's result belongs to the parameters and sources as they are now (its stamp may be older)."""
    folder = run.folder(reports)
    stamp = folder / "parameters.json"
    return stamp.exists() and stamp.read_bytes() == runs.to_json(runs.run_stamp(run)) and runs.fault(folder) is None


# ---- reproduce -----------------------------------------------------------------------------------------------------


@app.command()
def reproduce(
    name: StudyName = "paper",
    profile: Annotated[str, typer.Option(help="Where it runs: local, slurm or kubernetes.")] = "local",
    cores: Cores = None,
) -> None:
    """Make everything of a study that is missing or out of date."""
    if profile not in PROFILES:
        raise SqlibError(f"unknown profile '{profile}'{nearest(profile, PROFILES)}")
    study = load_study(name)
    reports = runs.reports_root() / study.name
    cores = cores or runs.usable_cores()
    with exclusive(reports) as lock:
        for line in prepare(study, reports):
            print(line)
        snakemake = [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")),
            *("--profile", str(REPOSITORY / "profiles" / profile), "--directory", str(reports), "--nocolor"),
            *("--cores", str(cores), "--config", f"study={name}"),
        ]
        log = reports / "logs/reproduce.log"
        jobs = pending(snakemake, log)
        page = shown(reports / "index.html")
        if not jobs:
            print(f"{name}: everything is up to date: {page}")
            return
        wanted = [study.run(job.target) for job in jobs.values() if job.rule == "train"]
        known = {trial.id: trial for trial in runs.trials_of(study)}
        tried = [known[job.target] for job in jobs.values() if job.rule == "trial"]
        predict_jobs(jobs, wanted, tried)
        slots = max(1, cores // study.threads)
        progress = Progress(jobs, slots, reports)
        trials = f"{count(len(tried), 'trial')} of sweeps, " if tried else ""
        where = f"on {cores} core{'s' * (cores > 1)}" if profile == "local" else f"with profile {profile}"
        print(
            f"{name}: {count(len(wanted), 'run')} to train, {trials}"
            f"{count(len(jobs) - len(wanted) - len(tried), 'page')} to make: "
            f"{about(progress.left())} {where}; log: {shown(log)}",
            flush=True,
        )
        code = drive(snakemake, log, progress, lock)
        if progress.failed or code:
            write_index(study)
            problems(progress, code, log)
            print(f"what there is: {page}; type the same command to try again", file=sys.stderr)
            raise typer.Exit(1)
        print(f"{name}: done in {duration(time.monotonic() - progress.started)}: {page}")


def predict_jobs(jobs: dict[int, "Job"], wanted: list[Run], tried: list[Trial]) -> None:
    """Set the predicted seconds of every job; `wanted` and `tried` are what jobs train, in their order."""
    seconds = dict(zip([run.id for run in wanted], training_seconds(wanted), strict=True))
    every = [run for trial in tried for run in trial.runs]
    parts = iter(training_seconds(every, measured=False))
    seconds |= {trial.id: 4.0 + sum(next(parts) for _ in trial.runs) for trial in tried}
    for job in jobs.values():
        trains = job.rule in ("train", "trial")
        job.predicted = seconds[job.target] if trains else PAGE_SECONDS.get(job.rule, 10.0)


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")],
    output: Annotated[Path | None, typer.Option(help="File to write (default: packed.safetensors in RUN).")] = None,
) -> None:
    """Write a run's model with its weights at their real bits."""
    from sqlib import deploy

    path = folder / runs.PACKED if output is None else output
    size = deploy.pack(runs.load_model(folder), path)
    floats = runs.read_result(folder)["metrics"].get("float_weight_bytes", 0)
    print(f"{shown(path)}: {size:,} bytes; in float32 the weights take {floats:,} ({floats / size:.1f} times as many)")


@app.command()
def predict(
    packed: Annotated[Path, typer.Argument(help="A packed model, see `pack`.", metavar="PACKED")],
    images: Annotated[
        list[Path], typer.Argument(help="Images, bright on black; not 28 x 28: resized.", metavar="IMAGE...")
    ],
    invert: Annotated[bool, typer.Option("--invert", help="The images are dark on bright.")] = False,
) -> None:
    """Classify images with a packed model, in integer arithmetic."""
    import numpy as np

    from sqlib import deploy

    model = deploy.IntegerModel.load(packed)
    pixels = np.stack([deploy.read_image(path, invert, lambda line: print(line, file=sys.stderr)) for path in images])
    logits = model.logits(pixels)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for path, row in zip(images, probabilities, strict=True):
        print(f"{path}: class {row.argmax()} ({row.max():.1%})")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")],
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, the only format there is.")] = True,
    output: Annotated[Path | None, typer.Option(help="File to write (default: model.onnx in RUN).")] = None,
) -> None:
    """Write a run's model as an ONNX file."""
    from sqlib.onnx_export import export_onnx

    path = folder / "model.onnx" if output is None else output
    print(f"{shown(path)}: {export_onnx(runs.load_model(folder), path):,} bytes")


@app.command()
def unlock(name: StudyName) -> None:
    """Remove a stale lock (reproduce does so by itself)."""
    study = load_study(name)
    with exclusive(runs.reports_root() / study.name):
        print(f"{name}: not locked")


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
    said = []
    (reports / "logs").mkdir(parents=True, exist_ok=True)
    runs.write_stamps(study, reports)
    for run in study.runs():
        folder = run.folder(reports)
        if not (folder / "result.json").exists():
            continue
        if fault := runs.fault(folder):
            (folder / "result.json").unlink()
            said.append(f"{run.id}: {fault.replace(str(folder) + '/', '')}; it is trained again")
        elif (folder / "result.json").stat().st_mtime < (folder / "parameters.json").stat().st_mtime:
            for name in ("model.safetensors", "per_image.safetensors", "result.json", runs.PACKED, "train.html"):
                if (folder / name).exists():
                    os.utime(folder / name)
        if not fault and not all((folder / name).exists() for name in (runs.PACKED, "train.html")):
            (reports / "index.html").unlink(missing_ok=True)  # the job that writes it makes them, too
    for trial in runs.trials_of(study):
        touch_if_current(trial, reports)
    if len(said) > 3:
        said = [*said[:2], f"... and {len(said) - 2} more runs are trained again, for the like reasons"]
    return said


@dataclass
class Job:
    """One job as Snakemake lists it. rule: train, data, ...; target: the run, data set or page it is about."""

    rule: str
    target: str
    log: str
    predicted: float = 10.0
    started: float | None = None


class Listing:
    """Reads Snakemake's output line by line; `feed` returns ("started" | "finished" | "failed", job number, Job)."""

    def __init__(self) -> None:
        self._block: dict[str, str] = {}
        self._kind = ""

    def feed(self, line: str) -> tuple[str, int, Job | None] | None:
        """One line; an event when it completes one."""
        if found := re.match(r"Finished job ?id: (\d+)", line):
            return "finished", int(found[1]), None
        if found := re.match(r"(?:local)?rule (\S+):", line) or re.match(r"Error in rule (\S+):", line):
            self._kind = "failed" if line.startswith("Error") else "started"
            self._block = {"rule": found[1]}
        elif self._block and (found := re.match(r"    (\w+): (.*)", line)):
            self._block[found[1]] = found[2].strip()
            if self._kind == "failed" and found[1] == "jobid":
                self._block, block = {}, self._block
                return "failed", int(block["jobid"]), None
            if found[1] == "resources":
                self._block, block = {}, self._block
                return "started", int(block["jobid"]), self._job(block)
        return None

    @staticmethod
    def _job(block: dict[str, str]) -> Job:
        rule = re.sub(r"^train_.*", "train", block["rule"])
        wildcards = dict(part.split("=", 1) for part in block.get("wildcards", "").split(", ") if "=" in part)
        log = block.get("log", "").split(" (")[0].split(", ")[-1]
        return Job(rule, next(iter(wildcards.values()), ""), log)


def pending(snakemake: list[str], log: Path) -> dict[int, Job]:
    """The jobs Snakemake would run now, by its number; SqlibError if it cannot tell."""
    done = subprocess.run(
        [*snakemake, "--dry-run"], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    if done.returncode:
        write_atomically(log, output.encode())
        raise SqlibError(f"Snakemake cannot plan the study: {last_words(output)}; see {shown(log)}")
    listing = Listing()
    events = [event for line in output.splitlines() if (event := listing.feed(line))]
    return {number: job for kind, number, job in events if kind == "started" and job and job.rule != "all"}


def environment() -> dict[str, str]:
    """Of Snakemake and its jobs: sqlib is found whether or not it is installed."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def last_words(output: str) -> str:
    """The last line of a program's output that says something, or that names an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    errors = [line for line in lines if re.match(r"\w*(Error|Exception)\b.*: ?\S", line)]
    return (errors or lines)[-1][:300]


@dataclass
class Progress:
    """Which jobs are done, and how long the rest takes, judged by the predictions and how they held so far."""

    jobs: dict[int, Job]
    slots: int
    reports: Path
    started: float = field(default_factory=time.monotonic)
    finished: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that the unfinished jobs will take on `slots` cores."""
        now, rest = time.monotonic(), []
        for number, job in self.jobs.items():
            if number not in self.finished and number not in self.failed:
                elapsed = now - job.started if job.started is not None else 0.0
                rest.append(max(self._factor(job.rule) * job.predicted - elapsed, 0.0))
        return max(sum(rest) / self.slots, max(rest, default=0.0))

    def _factor(self, rule: str) -> float:
        """How much longer than predicted the finished jobs of a rule took (1 while there are none)."""
        done = [number for number in self.finished if self.jobs[number].rule == rule]
        predicted = sum(self.jobs[number].predicted for number in done)
        return sum(self.finished[number] for number in done) / predicted if predicted else 1.0

    def start(self, number: int) -> None:
        """Take note of a job that was started."""
        if number in self.jobs:
            self.jobs[number].started = time.monotonic()

    def finish(self, number: int) -> str | None:
        """Take note of a finished job; the line to print."""
        if number not in self.jobs:
            return None
        job = self.jobs[number]
        seconds = self.finished[number] = time.monotonic() - (job.started or self.started)
        unfinished = len(self.jobs) - len(self.finished) - len(self.failed)
        rest = f"; {about(self.left())} left" if unfinished else ""
        return f"{self._number()} {self._did(job)}, {duration(seconds)}{rest}"

    def fail(self, number: int) -> str | None:
        """Take note of a failed job; the line to print, with its error and its log. None if that is known already."""
        if number not in self.jobs or number in self.failed:
            return None
        job = self.jobs[number]
        log = self.reports / job.log
        try:
            said = log.read_text(errors="replace")
        except OSError:
            said = "it left no log"
        errors = re.findall(r"^error: (.*)$", said, flags=re.MULTILINE)
        what = f"{job.rule} {job.target}".strip()
        self.failed[number] = f"{what}: {errors[-1] if errors else last_words(said)} (log: {shown(log)})"
        return f"{self._number()} FAILED {self.failed[number]}"

    def _number(self) -> str:
        total = str(len(self.jobs))
        return f"[{len(self.finished) + len(self.failed):>{len(total)}}/{total}]"

    def _did(self, job: Job) -> str:
        if job.rule == "train":
            try:
                result = runs.read_result(self.reports / "runs" / job.target)
                return f"trained {job.target}: test {100 * result['metrics']['test_accuracy']:.2f}%"
            except (SqlibError, KeyError, TypeError):
                return f"trained {job.target}"
        words = {"data": "checked and described the data: ", "saliency": "explained ", "compare": "compared: "}
        words |= {"deployed": "compared what is deployed: "}
        words |= {"trial": "tried ", "sweep": "judged the sweep ", "post_training": "quantised without training "}
        names = {"tables": "made the tables", "claims": "gave the claims their verdicts", "index": "wrote the index"}
        return names.get(job.rule) or words.get(job.rule, f"{job.rule} ") + job.target.removeprefix("compare_")


def drive(snakemake: list[str], log: Path, progress: Progress, lock: int) -> int:
    """Run Snakemake, print one line for each finished job, keep all it says in `log`; returns its exit code.

    Ctrl-C, SIGTERM and SIGHUP end Snakemake and its jobs, and leave as KeyboardInterrupt or SystemExit.
    """

    def stop_on(number, _frame):
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, stop_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    process = subprocess.Popen(
        snakemake, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True, pass_fds=[lock],
        preexec_fn=as_child,
    )  # fmt: skip
    listing = Listing()
    try:
        with open(log, "w", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                match listing.feed(line):
                    case "started", number, _:
                        progress.start(number)
                    case "finished", number, _:
                        tell(progress.finish(number))
                    case "failed", number, _:
                        tell(progress.fail(number))
        return process.wait()
    except OSError as error:
        raise SqlibError(f"cannot write {shown(log)}: {error.strerror}; stopped") from None
    except (KeyboardInterrupt, SystemExit):
        done = len(progress.finished)
        print(f"\nstopped; {done} of {len(progress.jobs)} jobs are done and kept: type the same command to go on")
        raise
    finally:
        end(process)
        for number, handler in old.items():
            signal.signal(number, handler)


def as_child() -> None:
    """Called in Snakemake's process before it starts: it ends with this one, and can be interrupted (not so behind &)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)


def tell(line: str | None) -> None:
    if line is not None:
        print(line, flush=True)


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


def problems(progress: Progress, code: int, log: Path) -> None:
    """Print what failed, and what was therefore not made."""
    failed = [f"{progress.jobs[number].rule} {progress.jobs[number].target}".strip() for number in progress.failed]
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        print(f"failed: {count(len(failed), 'job')}: {', '.join(failed[:5])}{more}", file=sys.stderr)
    waiting = len(progress.jobs) - len(progress.finished) - len(progress.failed)
    if waiting:
        print(f"not made, because they need what failed: {count(waiting, 'job')}", file=sys.stderr)
    if not progress.failed:
        text = log.read_text(errors="replace")
        how = f"was killed by signal {-code}" if code < 0 else f"stopped: {last_words(text)}"
        print(f"error: Snakemake {how}; see {shown(log)}", file=sys.stderr)


# ---- publish -------------------------------------------------------------------------------------------------------


@app.command()
def publish(
    name: StudyName = "paper",
    force: Annotated[bool, typer.Option("--force", help="Publish a study other than paper.")] = False,
) -> None:
    """Copy a complete study to reports/reference.

    Its pages, results, tables and figures, and the models of its first seed; the main table goes into README.md.
    """
    from sqlib.publish import LIMIT_BYTES, publish_study
    from sqlib.readme import results_block, update_readme

    study = load_study(name)
    if name != "paper" and not force:
        raise SqlibError(f"the reference is the paper study; '{name}' is published only with --force")
    root = runs.reports_root()
    reports, target = root / study.name, root / "reference"
    missing = [run.id for run in study.runs() if not up_to_date(run, reports)]
    missing += [page.html.name for page in Page.all(study) if not page.html.exists()]
    missing += [name for name in ("index.html", "results/runs.csv") if not (reports / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SqlibError(f"{shown(reports)} is not complete ({missing[0]}{more}): run 'make reproduce STUDY={name}'")
    with exclusive(reports):
        size, left_out = publish_study(study, reports, target)
    if name == "paper" and target.is_relative_to(REPOSITORY):
        pictures = f"{target.relative_to(REPOSITORY)}/figures"
        update_readme(REPOSITORY / "README.md", results_block(study, reports, pictures))
    print(f"{shown(target)}: {size / 1e6:.1f} MB from study {name}")
    if left_out:
        print(f"left out to stay under {LIMIT_BYTES / 1e6:.0f} MB: {', '.join(left_out)}")


# ---- words ---------------------------------------------------------------------------------------------------------


def shown(path: Path) -> str:
    """A path relative to the working folder where that is shorter."""
    short = os.path.relpath(path)
    return short if not short.startswith("../..") else str(path)


def count(number: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    main()
