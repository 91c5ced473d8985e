"""Every job of a study as a command: `python -m sqlib --help` lists them.

Snakemake runs the small ones (`train`, `saliency`, `compare`, ...; each may be repeated without harm), `reproduce` runs
Snakemake. An error the user can act on is one line on stderr and exit code 2.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sqlib import places, resources
from sqlib.checked import SqlibError
from sqlib.data.datasets import DATASET_NAMES
from sqlib.files import to_json, write_atomically
from sqlib.places import REPOSITORY
from sqlib.report.words import about, count, duration, shown
from sqlib.study import results
from sqlib.study.parameters import Study, load_study
from sqlib.study.sweeps import trials_of
from sqlib.workflow import forkserver, pages
from sqlib.workflow.pages import Kind, folder_of, job_of, pages_of
from sqlib.workflow.rendering import make, render, time_limit
from sqlib.workflow.snakemake import (
    Progress,
    as_pattern,
    cancel_left_over,
    command_for,
    disk_bytes,
    drive,
    environment,
    exclusive,
    in_order,
    job_prefix,
    load_profile,
    memory_limits,
    newer,
    pending,
    prepare,
    problems,
    side_by_side,
    tell,
    training_seconds,
    up_to_date,
)
from sqlib.workflow.surroundings import settle

# jsonschema, behind every notebook that is read, compiles a grammar of web addresses where it can import this one (0.9 s
# in each job), to check what no notebook has.
sys.modules.setdefault("rfc3987_syntax", None)

# --help lists the commands in this order. torch, and what imports it, is imported inside them, so that it is quick.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

StudyName = Annotated[str, typer.Argument(help="Name of a file in params/, such as paper or smoke.", metavar="STUDY")]
DatasetName = Annotated[str, typer.Argument(help="mnist or fashion_mnist.", metavar="DATASET")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")]
Images = Annotated[
    list[Path], typer.Argument(help="Pictures of one digit or garment each, of any size and kind.", metavar="IMAGE...")
]
Invert = Annotated[
    bool | None,
    typer.Option("--invert/--no-invert", help="They are dark on bright, or bright on black (default: as each looks)."),
]
RunId = Annotated[str, typer.Argument(help="Such as mnist/lenet/w2a2/standard/seed0.", metavar="RUN_ID")]
Cores = Annotated[
    int | None, typer.Option(min=1, max=100_000, help="Cores to use (default: all this process may use).")
]


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 some jobs or images failed, 2 an error, 130 stopped by the user."""
    settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot say it shows as escapes
            stream.reconfigure(errors="backslashreplace")
    if not os.environ.get("SQLIB_JOB") and os.environ.pop("SQLIB_MADE_BY_MAKE", None):
        forkserver.die_with_parent(signal.SIGKILL)  # a killed make leaves nothing that holds the study's lock
    try:
        app(prog_name="python -m sqlib")
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("interrupted", file=sys.stderr)
        raise
    except SqlibError as error:
        say_error(error)
        sys.exit(2)
    except BrokenPipeError:  # its reader has seen enough
        if os.environ.get("SQLIB_JOB"):
            raise  # a job writes to its log
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: {error.filename or 'file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def say_error(error: SqlibError) -> None:
    """Print an error to stderr, each of its lines as one."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)


# ---- jobs ----------------------------------------------------------------------------------------------------------


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="mnist or fashion_mnist (default: both).")] = None,
    study: Annotated[str | None, typer.Option(help="Also make the page about the data in this study.")] = None,
) -> None:
    """Fetch and check the data sets."""
    from sqlib.data.fetch import fetch

    for dataset in [name] if name else DATASET_NAMES:
        folder = fetch(dataset)
        print(f"{dataset}: complete and checked in {shown(folder)}")
        if study is not None:
            make(job_of(load_study(study), "data", dataset=dataset))


@app.command()
def train(name: StudyName, run_id: RunId) -> None:
    """Train and measure one run, unless it is there already."""
    page = job_of(load_study(name), "train", run_id=run_id)
    folder = page.notebook.parent
    stamp, now = page.reports / page.stamp, as_planned(page.reports / page.stamp, page.stamped)
    if not stamp.exists() or stamp.read_bytes() != now:
        write_atomically(stamp, now)
    if results.fault(folder) is None:
        results.load_model(folder)
        results.pack_run(folder)
        print(f"{run_id}: already trained, nothing done")
        render(page)
        return
    (folder / "result.json").unlink(missing_ok=True)
    make(page, [folder / name for name in page.kind.run_files])
    if broken := results.fault(folder):
        raise SqlibError(f"the notebook left no valid result: {broken}")


def as_planned(path: Path, stamp: dict) -> bytes:
    """A job's stamp as it is now. SqlibError in the midst of a study if another was planned."""
    now = to_json(stamp)
    if os.environ.get("SQLIB_JOB") and path.exists() and path.read_bytes() != now:
        raise SqlibError("parameters or code were changed since the study was started: start it again")
    return now


@app.command()
def trial(name: StudyName, trial_id: Annotated[str, typer.Argument(metavar="TRIAL_ID")]) -> None:
    """Train one trial of a sweep, unless it is there already.

    TRIAL_ID: such as quantisation/mnist/clip_start=3.
    """
    from sqlib.study import sweeps

    study = load_study(name)
    reports = folder_of(study)
    wanted = sweeps.trial_of(study, trial_id)
    as_planned(wanted.stamp_path(reports), wanted.stamp())
    made = sweeps.run_trial(wanted, reports)
    networks = count(len(wanted.runs), "network")
    print(f"{trial_id}: {f'trained {networks}' if made else 'already trained, nothing done'}")


def page_command(kind: Kind) -> Callable[..., None]:
    """The command that makes a page of this kind: it takes a study, and what of it the page is about."""

    def of_study(name: StudyName) -> None:
        make(job_of(load_study(name), kind.name))

    def of_dataset(name: StudyName, dataset: DatasetName) -> None:
        make(job_of(load_study(name), kind.name, dataset=dataset))

    def of_network(
        name: StudyName,
        dataset: DatasetName,
        network: Annotated[str | None, typer.Option(help="Default: the study's first.")] = None,
    ) -> None:
        study = load_study(name)
        make(job_of(study, kind.name, dataset=dataset, network=network or study.networks[0]))

    def of_run(name: StudyName, run_id: RunId) -> None:
        make(job_of(load_study(name), kind.name, run_id=run_id))

    def of_sweep(name: StudyName, sweep_name: Annotated[str, typer.Argument(metavar="SWEEP")]) -> None:
        make(job_of(load_study(name), kind.name, sweep=sweep_name))

    takes = {
        pages.whole: of_study, pages.datasets: of_dataset, pages.networks: of_network, pages.runs: of_run,
        pages.sweeps: of_sweep,
    }  # fmt: skip
    return takes[kind.each]


for _kind in pages.KINDS:
    if _kind.notebook and _kind.name not in ("data", "train"):  # these do more than a page
        app.command(_kind.name, help=_kind.help)(page_command(_kind))


def result_of(name: str, kind: str, dataset: str) -> dict:
    """Do a job about a data set that has no page, and note where its result comes from; returns the result."""
    started, job = time.time(), job_of(load_study(name), kind, dataset=dataset)
    module, function = job.kind.roots[0].rsplit(".", 1)
    found = getattr(importlib.import_module(f"sqlib.{module}"), function)(job.study, dataset, job.reports)
    of = [run for run in job.about.runs if f"runs/{run.id}/result.json" in job.needs]
    results.write_origin(job.study, job.reports, job.name, started, [job.reports / f"{job.name}.json"], of)
    return found


@app.command()
def post_training(name: StudyName, dataset: DatasetName) -> None:
    """Round the float runs to every setup without training them."""
    found = result_of(name, "post_training", dataset)
    print(f"{dataset}: {count(len(found), 'float run')} rounded and measured")


@app.command()
def deployed(name: StudyName, dataset: DatasetName) -> None:
    """Compare quantised runs with their packed and ONNX forms."""
    for run_id, found in result_of(name, "deployed", dataset).items():
        for form, part in found.items():
            same = f"{part['same_predictions']:,} of {part['images']:,} predictions are the trained model's"
            print(f"{run_id}: {form}, {part['bytes']:,} bytes: {same}, logits within {part['largest_relative']:.1e}")


@app.command()
def roar(name: StudyName, dataset: DatasetName) -> None:
    """Train networks again without the most salient pixels."""
    found = result_of(name, "roar", dataset)
    print(f"{dataset}: networks retrained on the maps of {count(len(found['explained']), 'run')}")


@app.command()
def quality(name: StudyName, run_ids: Annotated[list[str], typer.Argument(metavar="RUN_ID...")]) -> None:
    """Measure the maps of trained runs, with their controls."""
    from sqlib.study.jobs.quality import measure_quality

    study = load_study(name)
    reports = folder_of(study)
    for run in [study.run(run_id) for run_id in run_ids]:
        started = time.time()
        found = measure_quality(study, run, run.folder(reports))
        made = f"runs/{run.id}/quality"
        results.write_origin(study, reports, made, started, [reports / f"{made}.json"], [run])
        images = f"{found['parameters']['images']:,} images"
        print(f"{run.id}: maps of {count(len(found['methods']), 'method')} measured, gradient maps on {images}")


@app.command()
def index(name: StudyName) -> None:
    """Write the index, and what is missing of finished runs.

    That is packed models, and pages that are not there or have old looks.
    """
    study = load_study(name)
    reports = folder_of(study)
    for run in study.runs():
        if results.fault(run.folder(reports)) is None:
            results.pack_run(run.folder(reports))
    stamp = reports / "stamps/index.json"
    for page in pages_of(study):
        if page.notebook.exists() and not all(newer(page.html, older) for older in (stamp, page.notebook)):
            render(page)
    write_index(study)


@app.command("reports")
def render_reports(name: StudyName) -> None:
    """Make all pages again from the results there are."""
    study = load_study(name)
    reports = folder_of(study)
    finished = [run for run in study.runs() if (run.folder(reports) / "result.json").exists()]
    if not finished:
        raise SqlibError(f"{shown(reports)} holds no results yet: run 'make reproduce STUDY={name}' first")
    current = {trial.id for trial in trials_of(study) if trial.is_current(reports)}
    with exclusive(reports):
        for page in reversed(pages_of(study)):  # those of runs first: others link to them
            if page.run is not None or page.kind.name == "data":
                if page.notebook.exists():
                    render(page)
            elif page.kind.name == "sweep":
                if all(trial.id in current for trial in trials_of(study) if trial.sweep == page.target):
                    make(page)
                else:
                    print(f"sweep {page.target}: not all of its trials are there, so its page is not made")
            elif any((reports / need).exists() for need in page.needs if not need.startswith("results/roar_")):
                make(page)
        write_index(study)
    missing = len(study.runs()) - len(finished)
    note = f"; {missing} of {len(study.runs())} runs are not there yet" if missing else ""
    print(f"{name}: pages made from {len(finished)} runs{note}: {shown(reports / 'index.html')}")


@app.command("figures")
def draw_figures(name: StudyName) -> None:
    """Draw the figures that are there as SVG and PDF, too.

    The pages then link to them. Jobs draw PNG alone, which is what pages show.
    """
    from sqlib.report.cells import DRAWING, KEY, draw, own_key

    study = load_study(name)
    reports = folder_of(study)
    drawings = sorted(path for path in reports.rglob(f"*{DRAWING}") if path.parent.name == "figures")
    if not drawings:
        raise SqlibError(
            f"{shown(reports)} holds no figures that can be drawn: run 'make reproduce STUDY={name}' first"
            f"{'' if own_key() else f' (where {shown(KEY)} can be written: it signs them)'}"
        )
    with exclusive(reports):
        drawn = sum(len(draw(path)) for path in drawings)
        for page in pages_of(study):
            if page.notebook.exists():
                render(page)
        write_index(study)
    print(f"{name}: {count(len(drawings), 'figure')}, {count(drawn, 'file')} drawn: {shown(reports / 'index.html')}")


def write_index(study: Study) -> None:
    """Write `index.html` of a study."""
    from sqlib.report import front_page

    front_page.write_index(study, folder_of(study), pages.listed(study))


@app.command()
def plan(name: StudyName, cores: Cores = None) -> None:
    """Say what is still to be trained, and how long it takes."""
    study = load_study(name)
    reports = folder_of(study)
    cores = cores or resources.cores()
    wanted = [run for run in study.runs() if not up_to_date(run, reports)]
    tried = [trial for trial in trials_of(study) if not trial.is_current(reports)]
    seconds = sum(training_seconds(wanted))
    slots, lowered = side_by_side(cores, study.threads)
    print(f"{name}: {len(study.runs())} runs, {len(wanted)} of them to train")
    print(
        f"core hours: {seconds * study.threads / 3600:.1f}; on {count(cores, 'core')}{lowered} {about(seconds / slots)}"
    )
    if tried:
        more = sum(training_seconds([run for trial in tried for run in trial.runs], measured=False))
        print(f"sweeps, with `make sweeps`: {count(len(tried), 'trial')}, {about(more / slots)} more")
    print(f"disk: about {disk_bytes(wanted) / 1e6:,.0f} MB")


@app.command()
def reproduce(
    name: StudyName = "paper",
    profile: Annotated[str, typer.Option(help="Where it runs: a folder in profiles/, or any other.")] = "local",
    cores: Cores = None,
    sweeps: Annotated[bool, typer.Option("--sweeps", help="Also try the parameters of the study's sweeps.")] = False,
) -> None:
    """Make everything of a study that is missing or out of date."""
    time_limit("page")  # before anything is made, where it is none
    folder, settings = load_profile(profile)
    study = load_study(name)
    reports, executor = folder_of(study), settings.get("executor", "local")
    log, page = reports / "logs/reproduce.log", shown(reports / "index.html")
    # On a cluster it is the profile that says how many cores a job may have; here it is this process's own number.
    cores = cores or (resources.cores() if executor == "local" else None)
    with in_order(), exclusive(reports) as lock, contextlib.ExitStack() as stack:
        more = ["--cores", str(cores)] if cores else []
        if executor == "local":
            more += memory_limits(cores)
        elif executor == "slurm":
            prefix = job_prefix(reports)
            more += ["--slurm-jobname-prefix", prefix]
            if stale := cancel_left_over(prefix):
                were = "was" if stale == 1 else "were"
                tell(f"{count(stale, 'SLURM job')} of an earlier start {were} still there: cancelled")
        for line in prepare(study, reports):
            tell(line)

        def surroundings() -> dict[str, str]:
            if executor != "local":  # elsewhere there is no fork server: each job is a process of its own
                return environment()
            return stack.enter_context(forkserver.started(environment(), reports / "logs/forkserver.log"))

        # Where there surely is something to do, imports are made while Snakemake finds out what.
        early = None if (reports / "index.html").exists() else surroundings()
        more += ["--profile", str(stack.enter_context(as_pattern(folder)))]
        snakemake = [*command_for(study), *more, *["--config", f"study={name}", *["sweeps=true"] * sweeps]]
        jobs = pending(snakemake, log, study)
        if not jobs:
            tell(f"{name}: everything is up to date: {page}")
            return
        if executor == "local":
            slots, lowered = side_by_side(cores, study.threads)
            where = f"on {count(cores, 'core')}{lowered}"
        else:
            slots, where = settings.get("jobs"), "if the cluster starts all at once"
        slots = slots if isinstance(slots, int) else len(jobs)  # of a cluster it may be 'unlimited'
        progress = Progress(jobs, slots, reports)
        if executor == "slurm":
            stack.callback(cancel_left_over, prefix, patience=0)

        def begin() -> None:
            progress.predict()
            say_plan(study, progress, where, log)

        code = drive(snakemake, log, lock, early or surroundings(), begin, progress)
        if progress.failed or code:
            write_index(study)
            problems(study, progress, code, log)
            raise typer.Exit(1)
        tell(f"{name}: done in {duration(time.monotonic() - progress.begun)}: {page}")


def say_plan(study: Study, progress: Progress, where: str, log: Path) -> None:
    """Say what is to be made of a study, and how long that takes."""
    jobs = list(progress.jobs.values())
    counted = Counter(job.kind.name for job in jobs)
    measured = sum(len(job.about.runs) for job in jobs if job.kind.name == "quality")
    parts = f"{count(counted['trial'], 'trial')} of sweeps, " if counted["trial"] else ""
    parts += f"the maps of {count(measured, 'run')} to measure, " if measured else ""
    others = len(jobs) - counted["train"] - counted["trial"] - counted["quality"]
    tell(
        f"{study.name}: {count(counted['train'], 'run')} to train, {parts}{count(others, 'page')} to make: "
        f"{about(progress.left())} {where}; log: {shown(log)}"
    )


def replaces_only_its_own(path: Path, own: Callable[[Path], bool]) -> None:
    """SqlibError where a file would be lost that this command has not written (`own` says whether it has)."""
    if path.exists() and not own(path):
        raise SqlibError(
            f"{shown(path)} is there already, and this command has not written it: choose another --output"
        )


@app.command()
def lab() -> None:
    """Open the notebooks in JupyterLab."""
    # It asks for no news and looks for no updates: nothing here needs a network.
    own = [str(REPOSITORY / "notebooks/.jupyter"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(own)
    command = [sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={REPOSITORY / 'notebooks'}"]
    os.execv(command[0], command)


@app.command()
def pack(
    folder: RunFolder,
    output: Annotated[Path | None, typer.Option(help="File to write (default: packed.safetensors in RUN).")] = None,
) -> None:
    """Write a run's model with its weights at their real bits."""
    from sqlib.deploy import packed

    path = folder / results.PACKED if output is None else output
    replaces_only_its_own(path, packed.is_packed)
    size = packed.pack(results.load_model(folder), path, results.class_names(results.run_of(folder)))
    floats = results.read_result(folder)["metrics"].get("float_weight_bytes", 0)
    print(f"{shown(path)}: {size:,} bytes; in float32 the weights take {floats:,} ({floats / size:.1f} times as many)")


class Refused:
    """Called with the error of an image that cannot be used, says it; `end` ends with exit code 1 if there was one."""

    count = 0

    def __call__(self, error: SqlibError) -> None:
        self.count += 1
        say_error(error)

    def end(self) -> None:
        if self.count:
            raise typer.Exit(1)


@app.command()
def predict(
    packed: Annotated[
        Path, typer.Argument(help="A packed model, see `pack`, or the folder of a run.", metavar="PACKED")
    ],
    images: Images,
    invert: Invert = None,
) -> None:
    """Classify images with a packed model, in integer arithmetic.

    Exit code 1 if an image cannot be used; the others are classified.
    """
    import numpy as np

    from sqlib.data.images import printable, read_images
    from sqlib.deploy import integer

    file = packed / results.PACKED if packed.is_dir() else packed
    model = integer.IntegerModel.load(file)
    classes = model.classes
    if classes is None and (file.parent / "result.json").exists():  # packed before packed models knew their classes
        try:
            classes = results.class_names(results.run_of(file.parent))
        except (SqlibError, ImportError) as error:  # the data sets need torch
            print(f"the classes have numbers alone: {error}", file=sys.stderr)
    refused = Refused()
    for path, picture in read_images(images, invert, refused):
        for line in picture.notes:
            print(line, file=sys.stderr)
        (logits,) = model.logits(picture.pixels[None])
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        number = int(probabilities.argmax())
        print(f"{printable(str(path))}: {integer.answer(number, probabilities[number], classes)}")
    refused.end()


@app.command()
def explain(
    folder: RunFolder,
    images: Images,
    method: Annotated[str, typer.Option(help="Saliency method, such as gradient or grad_cam.")] = "gradient",
    surrogate: Annotated[str, typer.Option(help="straight_through or unclipped.")] = "straight_through",
    compared: Annotated[
        list[str] | None,
        typer.Option("--compare", help="Also the same run of this setup; may be repeated.", metavar="SETUP"),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by number or name (default: the prediction).", metavar="CLASS")
    ] = None,
    invert: Invert = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
) -> None:
    """Explain images: a picture and a JSON file for each.

    Exit code 1 if an image cannot be used; the others are explained.
    """
    from sqlib.explorer import explain as own

    refused = Refused()
    explained = own.explain_files(folder, images, method, surrogate, compared or (), target, invert, refused)
    for record, _ in explained:
        for line in record["image"]["notes"]:
            print(line, file=sys.stderr)
    for line in own.save(explained, output):
        print(line)
    refused.end()


@app.command()
def export(
    folder: RunFolder,
    opset: Annotated[
        int | None,
        typer.Option(help="ONNX version, with the smallest types it has (default: the one with the smallest of all)."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", hidden=True)] = True,
    output: Annotated[Path | None, typer.Option(help="File to write (default: model.onnx in RUN).")] = None,
) -> None:
    """Write a run's model as an ONNX file."""
    from sqlib.deploy.onnx_export import export_onnx, exported

    path = folder / "model.onnx" if output is None else output
    replaces_only_its_own(path, exported)
    print(f"{shown(path)}: {export_onnx(results.load_model(folder), path, opset):,} bytes")


@app.command()
def unlock(name: StudyName) -> None:
    """Remove a stale lock (reproduce does so by itself)."""
    study = load_study(name)
    with exclusive(folder_of(study)):
        print(f"{name}: not locked")


# ---- publish -------------------------------------------------------------------------------------------------------


@app.command()
def check(name: StudyName = "paper") -> None:
    """Hold a study's results against the published ones.

    Exit code 1 if they differ, or if runs are missing.
    """
    from sqlib.workflow import check as against

    study = load_study(name)
    root = places.reports_root()
    report = against.compare_studies(study, root / study.name, REPOSITORY / "reports/reference")
    print(against.describe(report))
    if report.different or report.missing:
        raise typer.Exit(1)


@app.command()
def publish(
    name: StudyName = "paper",
    force: Annotated[bool, typer.Option("--force", help="Publish a study other than paper.")] = False,
    older_sweeps: Annotated[
        bool, typer.Option("--older-sweeps", help="Publish sweeps with these parameters made by older code, too.")
    ] = False,
) -> None:
    """Copy a complete study to reports/reference.

    Its pages, results, tables and figures, and the models of its first seed; the answer goes into README.md, what to
    expect elsewhere into docs/reproducing.md.
    """
    from sqlib.workflow.publish import LIMIT_BYTES, publish_study
    from sqlib.workflow.readme import EXPECTED, RESULTS, expected_block, results_block, update_page

    study = load_study(name)
    if name != "paper" and not force:
        raise SqlibError(f"the reference is the paper study; '{name}' is published only with --force")
    root = places.reports_root()
    reports, target = root / study.name, root / "reference"
    missing = [run.id for run in study.runs() if not up_to_date(run, reports)]
    missing += [page.html.name for page in pages_of(study) if not page.html.exists()]
    missing += [name for name in ("index.html", "results/runs.csv") if not (reports / name).exists()]
    trials = trials_of(study)
    stale = [trial.sweep for trial in trials if not trial.is_current(reports)]
    if older_sweeps and stale and all(trial.is_made(reports) for trial in trials):
        print(f"made by older code: {', '.join(f'sweep {name}' for name in dict.fromkeys(stale))}")
        stale = []
    if not missing and stale:
        raise SqlibError(f"sweep {stale[0]} is missing or was made by other code: run 'make sweeps STUDY={name}'")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SqlibError(f"{shown(reports)} is not complete ({missing[0]}{more}): run 'make sweeps STUDY={name}'")
    with exclusive(reports):
        size, left_out = publish_study(study, reports, target)
    if name == "paper" and target.is_relative_to(REPOSITORY):
        pictures = f"{target.relative_to(REPOSITORY)}/figures"
        update_page(RESULTS, results_block(study, reports, pictures))
        update_page(EXPECTED, expected_block(study, reports))
    print(f"{shown(target)}: {size / 1e6:.1f} MB from study {name}")
    if left_out:
        print(f"left out to stay under {LIMIT_BYTES / 1e6:.0f} MB: {', '.join(left_out)}")
