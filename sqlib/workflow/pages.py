"""THE list of a study's jobs and pages: a row of `KINDS` for each kind, and what follows from it for a single job.

The Snakefile's rules, the stamps, the commands of `python -m sqlib` that make a page, the estimates, and the list of pages on the
index come from here. A page more is a notebook and a row.
"""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlib import files, places
from sqlib.checked import SqlibError, nearest
from sqlib.data.datasets import dataset_title
from sqlib.files import write_atomically
from sqlib.places import PARAMS
from sqlib.study.parameters import Run, Study
from sqlib.study.results import compare_page, compared_with
from sqlib.study.sources import TRAIN, TRIAL, run_stamp, sources_of
from sqlib.study.sweeps import Trial, load_sweep, runs_in, trials_of

RUN_FILES = ("model.safetensors", "per_image.safetensors", "result.json")
"""What costs training time. The page and the packed model are no outputs: Snakemake deletes a job's outputs before it runs again
and when it fails, and a page that is missing must not cost the run. `index` makes them where they are missing."""
SEEDS_A_JOB = 8
"""Runs of a kind whose maps one job measures: to start a job takes as long as a third of a run."""


# ---- what a job is about, of a study and every run of it ---------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What one job is about. target: its name in files; words: in titles; runs: those of the study that it is about.

    arguments: behind the study on the command line, where they are not the target. told: what its notebook may ask for.
    """

    target: str
    words: str = ""
    runs: Sequence[Run] = ()
    arguments: str = ""
    told: Mapping[str, str] = field(default_factory=dict)
    trial: Trial | None = None


def whole(study: Study, every: Sequence[Run]) -> list[Subject]:
    """The study as a whole."""
    return [Subject("", runs=every)]


def datasets(study: Study, every: Sequence[Run]) -> list[Subject]:
    """Each data set."""
    return [
        Subject(name, dataset_title(name), [run for run in every if run.dataset == name], told={"dataset": name})
        for name in study.datasets
    ]


def networks(study: Study, every: Sequence[Run]) -> list[Subject]:
    """Each network on each data set."""
    found, several = [], len(study.networks) > 1
    for about, network in itertools.product(datasets(study, every), study.networks):
        own = [run for run in about.runs if run.network == network]
        target = compare_page(study, about.target, network).removeprefix("compare_")
        words, told = f"{about.words}{f', {network}' * several}", {**about.told, "network": network}
        found.append(Subject(target, words, own, f"{about.target} --network {network}", told))
    return found


def runs(study: Study, every: Sequence[Run]) -> list[Subject]:
    """Each run."""
    return [of_run(study, run) for run in every]


def of_run(study: Study, run: Run) -> Subject:
    """One run."""
    network = f", {run.network}" if len(study.networks) > 1 else ""
    training = run.training.replace("_", "-")
    words = f"{dataset_title(run.dataset)}{network}, {run.setup.name}, {training}, seed {run.seed}"
    return Subject(run.id, words, [run], told={"run_id": run.id})


def parts(study: Study, every: Sequence[Run]) -> list[Subject]:
    """The runs whose maps are measured, up to `SEEDS_A_JOB` seeds of a kind together."""
    kinds = [list(own) for _, own in itertools.groupby(study.quality_runs(), key=lambda run: run.id.rsplit("/", 1)[0])]
    chosen = [kind[start : start + SEEDS_A_JOB] for kind in kinds for start in range(0, len(kind), SEEDS_A_JOB)]
    return [
        Subject(own[0].id, own[0].id.rsplit("/", 1)[0], own, " ".join(run.id for run in own), {"part": str(number)})
        for number, own in enumerate(chosen)
    ]


def sweeps(study: Study, every: Sequence[Run]) -> list[Subject]:
    """Each sweep that chose the study's parameters."""
    return [Subject(name, load_sweep(name).title, every, told={"sweep": name}) for name in study.sweeps]


def trials(study: Study, every: Sequence[Run]) -> list[Subject]:
    """Each trial of the sweeps."""
    return [Subject(trial.id, runs=trial.runs, trial=trial) for trial in trials_of(study)]


# ---- what a job needs ------------------------------------------------------------------------------------------------


def files_of(own: Iterable[Run], *names: str) -> list[str]:
    """These files of runs, below the study's folder."""
    return [f"runs/{run.id}/{name}" for run in own for name in names]


def nothing(study: Study, about: Subject) -> list[str]:
    """No file at all."""
    return []


def run_results(study: Study, about: Subject) -> list[str]:
    """The results of its runs."""
    return files_of(about.runs, "result.json")


def models(study: Study, about: Subject) -> list[str]:
    """Its runs, trained and measured."""
    return files_of(about.runs, *RUN_FILES)


def first_models(study: Study, about: Subject) -> list[str]:
    """The same of the first seed, for jobs that look at no other: they need not wait for all training."""
    return files_of([run for run in about.runs if run.seed == study.seeds[0]], *RUN_FILES)


def maps(study: Study, about: Subject) -> list[str]:
    """The models whose maps it measures: its own, and the float ones that they are compared with."""
    together = {run.id: run for own in about.runs for run in [own, *compared_with(study, own)]}
    return files_of(together.values(), "model.safetensors", "result.json")


def measured(study: Study, about: Subject, *names: str) -> list[str]:
    """What was measured on the maps of its runs."""
    own = {run.id for run in about.runs}
    names = names or ("quality.json", "quality.safetensors")
    return files_of([run for run in study.quality_runs() if run.id in own], *names)


def judged(study: Study, about: Subject) -> list[str]:
    """What was measured on its maps, and on networks that were trained without the pixels that they call important."""
    retrained = about.target in (study.quality.retrain if study.quality else [])
    return [*measured(study, about), *[f"results/roar_{about.target}.json"] * retrained]


def tabled(study: Study, about: Subject) -> list[str]:
    """All that is counted and measured."""
    others = [f"results/{kind}_{name}.json" for kind in ("post_training", "deployed") for name in study.datasets]
    return [*run_results(study, about), *measured(study, about), *others]


def claimed(study: Study, about: Subject) -> list[str]:
    """Values of single images, from which differences and their intervals come."""
    values = files_of(about.runs, "result.json", "per_image.safetensors")
    return [*values, *measured(study, about, "quality.safetensors")]


def tried(study: Study, about: Subject) -> list[str]:
    """The trials of a sweep."""
    return [f"sweeps/{trial.id}.json" for trial in trials_of(study) if trial.sweep == about.target]


def linked(study: Study, about: Subject) -> list[str]:
    """Every page that the index links to. (Those of sweeps only where they are wanted: the Snakefile adds them.)"""
    pages = [job.html for job in pages_of(study) if job.kind.name not in ("train", "sweep")]
    return [*(html.relative_to(folder_of(study)).as_posix() for html in pages), *run_results(study, about)]


def sha256(path: Path) -> str:
    """Of a file of parameters."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the list --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of job: all that is known of it. Of a page, most can be left out.

    name: its command, its rule and how its files are called. each: what its jobs are about. notebook: in notebooks/, of a page.
    help: of its command. title: of its pages, `{}` for what they are about; on_index: another there, and answers: what
    stands behind it. said: when it is done, likewise. needs: its inputs. seconds: a job of it on two cores, in a process that
    is forked ready to work; the estimate starts there and then follows the measured times.

    only: which of the jobs there can be a study has. also: outputs of a page beside its own. place: of its files, where that
    is not its name. run_files: files that it leaves with each of its runs. roots: what its digest starts from, where that is not
    its notebook. states: what its stamp holds beside that; shared: one stamp for all its jobs. priority; parallel: takes the
    study's threads; local: no job for a cluster; rules: the end of its rule's name, where it has more than one.
    """

    name: str
    each: Callable[[Study, Sequence[Run]], list[Subject]]
    notebook: str = ""
    help: str = ""
    title: str = ""
    on_index: str = ""
    answers: str = ""
    said: str = ""
    needs: Callable[[Study, Subject], list[str]] = nothing
    seconds: float = 10.0
    only: Callable[[Study, Subject], bool] = lambda study, about: True
    also: tuple[str, ...] = ()
    place: str = ""
    run_files: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    states: Callable[[Study, Subject], dict[str, Any]] | None = None
    shared: bool = False
    priority: Callable[[Study, Subject], int] = lambda study, about: 0
    parallel: bool = True
    local: bool = False
    rules: Callable[[Subject], str] = lambda about: ""

    @property
    def sources(self) -> tuple[str, ...]:
        """What the digest of its jobs starts from, see `sources_of`."""
        return self.roots or (self.notebook,)


def after_pages_of_runs(study: Study, about: Subject) -> int:
    """They take longer than the pages of single runs, and the study is not to end on one of them."""
    return 1


def longest_first(study: Study, about: Subject) -> int:
    """Long training first, so that the study does not end on it: a guided step costs about three ordinary ones."""
    return about.runs[0].epochs * (3 if about.runs[0].training == "saliency_guided" else 1)


# In the order in which a reader is shown them.
KINDS = (
    Kind(
        "claims", whole, "6_claims.ipynb", title="Claims", seconds=6, said="gave the claims their verdicts",
        help="Give the claims of params/claims.yaml their verdicts.", needs=claimed, parallel=False, local=True,
        on_index="The claims and their verdicts", answers="what the abstract says, held against the evidence",
        states=lambda study, about: {"claims": sha256(PARAMS / "claims.yaml")},
    ),
    Kind(
        "tables", whole, "5_tables.ipynb", title="Tables", seconds=4, said="made the tables",
        help="Make the tables and results/runs.csv.", needs=tabled, parallel=False, local=True,
        on_index="All tables", answers="accuracy, quality of the maps, cost of deployment", also=("results/runs.csv",),
    ),
    Kind(
        "compare", networks, "4_compare.ipynb", title="Comparison: {}", seconds=15, said="compared: {}",
        help="Make the page that compares all setups on one data set.", needs=run_results,
        answers="the same images under every setup", priority=after_pages_of_runs,
        roots=("4_compare.ipynb", "measures:agreement"),
    ),
    Kind(
        "explanations", datasets, "8_explanations.ipynb", title="The explanations: {}", seconds=11,
        help="Make the page that judges the maps of one data set.", needs=judged, said="judged the explanations: {}",
        answers="can the maps be trusted?", priority=after_pages_of_runs, only=lambda study, about: bool(study.quality),
    ),
    Kind(
        "sweep", sweeps, "7_parameters.ipynb", title="{}", seconds=3, said="judged the sweep {}",
        help="Make the page of a sweep: which parameters its rule picks.", needs=tried, parallel=False, local=True,
        answers="how the study's parameters were chosen", priority=after_pages_of_runs,
        states=lambda study, about: {"sweep": sha256(PARAMS / "sweeps" / f"{about.target}.yaml")},
    ),
    Kind(
        "data", datasets, "1_data.ipynb", title="The data: {}", seconds=7, said="checked and described the data: {}",
        parallel=False, priority=lambda study, about: 10_000, answers="the images, their source and their split",
    ),
    Kind(
        "train", runs, "2_train.ipynb", title="Training: {}", said="trained {}", roots=TRAIN, run_files=RUN_FILES,
        place="runs/{}/train", rules=lambda about: f"_{about.runs[0].dataset}_{about.runs[0].training}",
        priority=longest_first,
    ),
    Kind(
        "saliency", runs, "3_saliency.ipynb", title="Saliency maps: {}", said="explained {}", place="runs/{}/saliency",
        help="Make the page of saliency maps of one trained run.", shared=True,
        needs=lambda study, about: files_of(about.runs, "model.safetensors", "result.json"),
        only=lambda study, about: about.runs[0].seed == study.seeds[0],
    ),
    # Snakemake tries every pattern on every file of runs/: a rule for each job, with the names of its files. Those with every
    # method take longest, so they go first.
    Kind(
        "quality", parts, place="runs/{}/quality", run_files=("quality.json", "quality.safetensors"), needs=maps,
        roots=("study.jobs.quality.measure_quality", "measures:clarity", "measures:agreement"), seconds=26,
        said="measured the maps of {}", shared=True,
        states=lambda study, about: {"quality": study.quality.model_dump(mode="json")},
        rules=lambda about: f"_{about.told['part']}",
        priority=lambda study, about: 2 if about.runs[0].setup.name in study.quality.every_method else 1,
    ),
    # The longest job that is no training, and a page waits for it: it starts as soon as it can.
    Kind(
        "roar", datasets, place="results/roar_{}", needs=first_models, roots=("study.jobs.roar.remove_and_retrain",), seconds=400,
        said="retrained without salient pixels: {}", shared=True,
        only=lambda study, about: about.target in (study.quality.retrain if study.quality else []),
        priority=lambda study, about: 1_000,
    ),
    Kind(
        "post_training", datasets, place="results/post_training_{}", needs=models, seconds=26, shared=True,
        roots=("study.jobs.post_training.round_float_runs",), said="quantised without training {}",
        states=lambda study, about: {"setups": [setup.model_dump(mode="json") for setup in study.setups]},
    ),
    Kind(
        "deployed", datasets, place="results/deployed_{}", needs=first_models, seconds=20, shared=True,
        roots=("study.jobs.deployed.check_deployment",), said="compared what is deployed: {}",
    ),
    Kind("trial", trials, place="sweeps/{}", said="tried {}", roots=TRIAL, priority=after_pages_of_runs),
    Kind(
        "index", whole, seconds=2, said="wrote the index", needs=linked, parallel=False, local=True,
        roots=("report.front_page.write_index", "report.html.render", "report/templates"),
        states=lambda study, about: {"study": study.model_dump(mode="json"), "pages": listed(study)},
    ),
)  # fmt: skip
KIND = {kind.name: kind for kind in KINDS}


# ---- a job -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One job of a study: where its files are, what they are made of, what it is called."""

    kind: Kind
    study: Study
    about: Subject

    @property
    def target(self) -> str:
        """What it is about, in messages."""
        return self.about.words if self.kind.each is parts else self.about.target

    @property
    def name(self) -> str:
        """How its files are called below the study's folder, without their endings."""
        plain = self.kind.name + "_{}" * bool(self.about.target)
        return (self.kind.place or plain).format(self.about.target)

    @property
    def reports(self) -> Path:
        return folder_of(self.study)

    @property
    def run(self) -> Run | None:
        """The run that it is about, where it is about a single one."""
        return self.about.runs[0] if self.kind.each is runs else None

    @property
    def title(self) -> str:
        return self.kind.title.format(self.about.words)

    @property
    def done(self) -> str:
        """What is said when it is done."""
        return self.kind.said.format(self.target) or f"made the page {self.title}"

    @property
    def command(self) -> str:
        """What makes it, behind `python -m sqlib`."""
        arguments = self.about.arguments or self.about.target
        if self.kind.name == "data":
            return f"data {arguments} --study {self.study.name}"
        return f"{self.kind.name.replace('_', '-')} {self.study.name} {arguments}".strip()

    @property
    def log(self) -> str:
        return f"logs/{re.sub('^(runs|results)/', '', self.name)}.log"

    @property
    def html(self) -> Path:
        return self.reports / f"{self.name}.html"

    @property
    def notebook(self) -> Path:
        """The executed notebook of a page."""
        if self.kind.name == "train":
            return self.html.with_name("notebook.ipynb")
        return self.reports / f"{'' if self.kind.place else 'notebooks/'}{self.name}.ipynb"

    @property
    def result(self) -> Path | None:
        """What the notebook of a page writes as its last act; None: it gets no `result_file`."""
        if self.kind.name == "train":
            return None
        return self.reports / f"{'' if self.kind.place else 'results/'}{self.name}.json"

    @property
    def stamp(self) -> str:
        if self.kind.name == "train":
            return f"runs/{self.about.target}/parameters.json"
        return f"stamps/{self.kind.name if self.kind.shared else self.name}.json"

    @property
    def stamped(self) -> dict[str, Any]:
        """What its stamp holds: parameters, and the digest of the sources that decide its results."""
        if self.kind.name == "train":
            return run_stamp(self.about.runs[0])
        if self.about.trial is not None:
            return self.about.trial.stamp()
        states = {} if self.kind.shared or self.kind.name == "index" else {"inputs": self.needs}
        states |= self.kind.states(self.study, self.about) if self.kind.states else {}
        return {**states, "sources": sources_of(self.kind.sources)}

    @property
    def needs(self) -> list[str]:
        return self.kind.needs(self.study, self.about)

    @property
    def before(self) -> list[str]:
        """What must be there first, however old it is.

        Of training, the page about the data where there is none yet: what checks the files comes first. Later it is no input:
        with a job pending so far up, Snakemake overlooks what else is stale. Of a trial, also the study's runs that are in it.
        """
        if self.kind.name not in ("train", "trial"):
            return []
        data = f"results/data_{self.about.runs[0].dataset}.json"
        own = runs_in(self.study, self.about.trial) if self.about.trial else []
        return [*[data] * (not (self.reports / data).exists()), *(f"runs/{run_id}/result.json" for run_id in own)]

    @property
    def outputs(self) -> list[str]:
        """By which Snakemake knows that it is done."""
        if self.kind.name == "index":
            return ["index.html"]
        if self.kind.run_files:
            folders = [f"runs/{run.id}" for run in self.about.runs[1:]]
            return [f"{at}/{name}" for at in (str(Path(self.name).parent), *folders) for name in self.kind.run_files]
        result = self.result.relative_to(self.reports).as_posix()
        return [result, *self.kind.also, *[f"{self.name}.html"] * bool(self.kind.notebook)]


def folder_of(study: Study) -> Path:
    """Where all of a study is kept."""
    return places.reports_root() / study.name


def jobs_of(study: Study, kinds: Iterable[Kind] = KINDS) -> list[Job]:
    """Every job of a study, or every one of some kinds, in the order of the list."""
    every = study.runs()
    return [Job(kind, study, about) for kind in kinds for about in kind.each(study, every) if kind.only(study, about)]


def pages_of(study: Study) -> list[Job]:
    """Every page of a study but its index, in reading order."""
    return jobs_of(study, [kind for kind in KINDS if kind.notebook])


def job_of(study: Study, kind: str, **told: str) -> Job:
    """The job of a kind about what is told (`dataset`, `network`, `run_id`, `sweep`); SqlibError if the study lacks it."""
    if "run_id" in told:
        return Job(KIND[kind], study, of_run(study, study.run(told["run_id"])))
    subjects = KIND[kind].each(study, study.runs())
    for key, value in told.items():
        known = list(dict.fromkeys(about.told[key] for about in subjects))
        if value not in known:
            word = {"dataset": "data set"}.get(key, key)
            raise SqlibError(f"study '{study.name}' has no {word} '{value}'{nearest(value, known)}")
        subjects = [about for about in subjects if about.told[key] == value]
    return Job(KIND[kind], study, subjects[0])


def listed(study: Study) -> list[tuple[str, str, str]]:
    """(title, file, what it answers) of each page that the index lists, those that answer the question first."""
    pages = [job for job in pages_of(study) if job.run is None]
    return [(job.kind.on_index or job.title, job.html.name, job.kind.answers) for job in pages]


# ---- what Snakemake is told ------------------------------------------------------------------------------------------


def write_stamps(study: Study, reports_folder: Path) -> list[Path]:
    """Write the input stamps of every job of a study, but touch only files whose content changes; return those.

    So content, not time, decides what is made again: Snakemake compares their times with those of the outputs.
    """
    stamps = {job.stamp: job for job in jobs_of(study)}
    changed = []
    for name, job in stamps.items():
        path, data = Path(reports_folder) / name, files.to_json(job.stamped)
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
            changed.append(path)
    return changed


@dataclass
class Rule:
    """One of Snakemake's rules, with its jobs by their targets. In the names of files `{target}` stands for these, if several."""

    name: str
    jobs: dict[str, Job]

    @functools.cached_property
    def pattern(self) -> Job:
        """A job like its own, with the wildcard as its target."""
        (job, *more) = self.jobs.values()
        return replace(job, about=replace(job.about, target="{target}")) if more else job

    @property
    def constraints(self) -> dict[str, str]:
        """What the wildcard may stand for: part by part, what occurs there."""
        if len(self.jobs) == 1:
            return {}
        columns = zip(*(target.split("/") for target in self.jobs), strict=True)
        return {"target": "/".join(f"(?:{'|'.join(map(re.escape, dict.fromkeys(column)))})" for column in columns)}

    @property
    def logs(self) -> dict[str, str]:
        page = self.pattern.kind.notebook
        notebook = {"notebook": self.pattern.notebook.relative_to(self.pattern.reports).as_posix()} if page else {}
        return {**notebook, "text": self.pattern.log}

    @property
    def priority(self) -> int:
        first = next(iter(self.jobs.values()))
        return first.kind.priority(first.study, first.about)

    def job(self, wildcards) -> Job:
        """The job that Snakemake's wildcards mean."""
        return self.jobs[wildcards.target] if len(self.jobs) > 1 else self.pattern


def rules_of(jobs: Iterable[Job]) -> list[Rule]:
    """The rules of the Snakefile for these jobs: one for each kind, or (`Kind.rules`) several."""
    rules: dict[str, Rule] = {}
    for job in jobs:
        name = job.kind.name + job.kind.rules(job.about)
        rules.setdefault(name, Rule(name, {})).jobs[job.about.target] = job
    return list(rules.values())
