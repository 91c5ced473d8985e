# The study as a graph: data -> train (one job a run) -> saliency, compare, post_training -> tables -> index; and beside
# it the sweeps, data -> trial (one job a variant and data set) -> sweep.
# `make reproduce` starts it through `python -m sqlib reproduce`, which first writes the stamps (parameters.json and
# stamps/*.json: parameters and digests of the sources) that are the inputs here. So content, not time, decides what is
# made again. All paths are relative to the study's own folder, reports/<study>/, which also holds Snakemake's state:
# studies do not lock each other.
import itertools
import shlex
import sys

from sqlib.study.parameters import load_study
from sqlib.places import reports_root
from sqlib.study.results import compare_page, compared_with
from sqlib.study.sweeps import runs_in, trials_of

STUDY = load_study(config.get("study", "paper"))
RUNS = [run.id for run in STUDY.runs()]
# What costs training time. The page and the packed model are left out: Snakemake deletes a job's outputs before it runs
# again and when it fails, and a page that is missing must not cost the run. `index` makes them where they are missing.
RUN_FILES = ["model.safetensors", "per_image.safetensors", "result.json"]
EXPLAINED = [run.id for run in STUDY.runs() if run.seed == STUDY.seeds[0]]
# The sweeps that chose the study's parameters are wanted only where they are asked for: `make sweeps`.
SWEEPS = STUDY.sweeps if config.get("sweeps") else []
TRIALS = {name: [trial.id for trial in trials_of(STUDY) if trial.sweep == name] for name in STUDY.sweeps}
OWN_RUNS = {trial.id: runs_in(STUDY, trial) for trial in trials_of(STUDY)}
DATA = [f"data_{dataset}" for dataset in STUDY.datasets]
MEASURED = [run.id for run in STUDY.quality_runs()]
RETRAINED = STUDY.quality.retrain if STUDY.quality else []
EXPLANATIONS = [f"explanations_{dataset}" for dataset in STUDY.datasets if MEASURED]
COMPARISONS = {compare_page(STUDY, d, n): (d, n) for d in STUDY.datasets for n in STUDY.networks}
# exec: a stopped Snakemake takes its jobs with it, without a shell in between. What a job prints goes to its log.
# Braces are doubled for Snakemake, which puts wildcards in their place; all else that a path may hold is quoted for the shell.
JOB = f"SQLIB_JOB=1 exec {shlex.quote(sys.executable).replace('{', '{{').replace('}', '}}')} -m sqlib"


def epochs(dataset):
    """How many epochs a run on this data set takes."""
    given = STUDY.training.epochs
    return given[dataset] if isinstance(given, dict) else given


def data_first(dataset):
    """The page about the data where there is none yet: what checks the files comes before all training.

    Later it is no input, not even an `ancient` one: with a job pending so far up, Snakemake overlooks what else is stale.
    """
    result = reports_root() / STUDY.name / f"results/data_{dataset}.json"
    return [] if result.exists() else [f"results/data_{dataset}.json"]


def keep_going(wildcards):
    """No input: a failed job does not stop the others of its group.

    On a cluster a group of jobs is made by a Snakemake of its own. It reads no profile, is not told, and has settings only
    when it has read this file; so they are set as soon as it asks for inputs. (A dry run has none.)
    """
    if workflow.execution_settings:
        workflow.execution_settings.keep_going = True
    return []


workdir: reports_root() / STUDY.name


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    page="|".join(COMPARISONS),
    trial=r"[^/]+/[^/]+/[^/]+",


localrules:
    all,
    tables,
    claims,
    index,
    sweep,


# Every output by name, since Snakemake looks no further back than a file that is there and new, and there is an index,
# and pages, also of a study in which jobs have failed.
rule all:
    default_target: True
    input:
        "index.html",
        expand("{name}.html", name=["tables", "claims", *DATA, *COMPARISONS, *EXPLANATIONS]),
        expand("results/{name}", name=["runs.csv", "tables.json", "claims.json", *(f"{page}.json" for page in [*DATA, *COMPARISONS, *EXPLANATIONS])]),
        expand("runs/{run}/quality.{kind}", run=MEASURED, kind=["json", "safetensors"]),
        expand("results/{kind}_{dataset}.json", kind=["post_training", "deployed"], dataset=STUDY.datasets),
        expand("runs/{run}/{name}", run=RUNS, name=RUN_FILES),
        expand("runs/{run}/saliency.{kind}", run=EXPLAINED, kind=["json", "html"]),
        expand("sweeps/{trial}.json", trial=[trial for sweep in SWEEPS for trial in TRIALS[sweep]]),
        expand("sweep_{sweep}.html", sweep=SWEEPS),
        expand("results/sweep_{sweep}.json", sweep=SWEEPS),


rule data:
    input:
        "stamps/data_{dataset}.json",
    output:
        "results/data_{dataset}.json",
        "data_{dataset}.html",
    log:
        notebook="notebooks/data_{dataset}.ipynb",
        text="logs/data_{dataset}.log",
    priority: 10_000
    shell:
        JOB + " data {wildcards.dataset} --study {STUDY.name} > {log.text:q} 2>&1"


# One rule for each data set and training, so that long jobs can go first and the study does not end on one of them:
# a guided step costs about three ordinary ones.
for dataset, training in itertools.product(STUDY.datasets, STUDY.trainings):

    rule:
        name:
            f"train_{dataset}_{training}"
        input:
            "runs/{run}/parameters.json",
            keep_going,
            lambda wildcards, dataset=dataset: ancient(data_first(dataset)),
        output:
            expand("runs/{{run}}/{name}", name=RUN_FILES),
        log:
            notebook="runs/{run}/notebook.ipynb",
            text="logs/{run}/train.log",
        wildcard_constraints:
            run=rf"{dataset}/[^/]+/[^/]+/{training}/seed\d+",
        threads: STUDY.threads
        priority: epochs(dataset) * (3 if training == "saliency_guided" else 1)
        shell:
            JOB + " train {STUDY.name} {wildcards.run} > {log.text:q} 2>&1"


rule saliency:
    input:
        "stamps/saliency.json",
        keep_going,
        "runs/{run}/model.safetensors",
        "runs/{run}/result.json",
    output:
        "runs/{run}/saliency.json",
        "runs/{run}/saliency.html",
    log:
        notebook="runs/{run}/saliency.ipynb",
        text="logs/{run}/saliency.log",
    threads: STUDY.threads
    shell:
        JOB + " saliency {STUDY.name} {wildcards.run} > {log.text:q} 2>&1"


def maps_of(together):
    """The runs whose maps a job needs: its own, and the float ones that they are compared with."""
    return dict.fromkeys(run.id for own in together for run in [own, *compared_with(STUDY, own)])


def runs_on(wildcards):
    """The files of the runs on a data set that tell whether they are finished."""
    return [f"runs/{run}/{name}" for run in RUNS if run.startswith(f"{wildcards.dataset}/") for name in RUN_FILES]


def first_seed_on(wildcards):
    """The same of the first seed alone, for jobs that look at no other: they need not wait for all training."""
    return [f"runs/{run}/{name}" for run in EXPLAINED if run.startswith(f"{wildcards.dataset}/") for name in RUN_FILES]


# What a practitioner tries first: the float networks rounded as they are.
rule post_training:
    input:
        "stamps/post_training.json",
        runs_on,
    output:
        "results/post_training_{dataset}.json",
    log:
        text="logs/post_training_{dataset}.log",
    threads: STUDY.threads
    shell:
        JOB + " post-training {STUDY.name} {wildcards.dataset} > {log.text:q} 2>&1"


# The packed integer models and the ONNX files against the trained models, on every test image.
rule deployed:
    input:
        "stamps/deployed.json",
        first_seed_on,
    output:
        "results/deployed_{dataset}.json",
    log:
        text="logs/deployed_{dataset}.log",
    threads: STUDY.threads
    shell:
        JOB + " deployed {STUDY.name} {wildcards.dataset} > {log.text:q} 2>&1"


# Faithfulness, agreement, robustness and sanity of maps, with their controls. Up to eight seeds of a kind of run in one job:
# starting one takes as long as a third of a run. A rule for each job, with the names of its files: Snakemake tries every
# pattern on every file of `runs/`, and there would be one for each seed.
SEEDS_A_JOB = 8
KINDS = [list(runs) for _, runs in itertools.groupby(STUDY.quality_runs(), key=lambda run: run.id.rsplit("/", 1)[0])]
PARTS = [kind[start : start + SEEDS_A_JOB] for kind in KINDS for start in range(0, len(kind), SEEDS_A_JOB)]
for number, together in enumerate(PARTS):

    rule:
        name:
            f"quality_{number}"
        input:
            "stamps/quality.json",
            [f"runs/{run}/{name}" for run in maps_of(together) for name in ("model.safetensors", "result.json")],
        output:
            [f"runs/{run.id}/quality.{suffix}" for run in together for suffix in ("json", "safetensors")],
        log:
            text=f"logs/{together[0].id}/quality.log",
        threads: STUDY.threads
        # Those with every method take longest, so they go first.
        priority: 2 if together[0].setup.name in STUDY.quality.every_method else 1
        params:
            runs=[run.id for run in together],
        shell:
            JOB + " quality {STUDY.name} {params.runs} > {log.text:q} 2>&1"


# Networks trained again without the pixels that the maps of the first seed call important. The longest job that is no
# training, and a page waits for it: it starts as soon as it can.
rule roar:
    input:
        "stamps/roar_{dataset}.json",
        first_seed_on,
    output:
        "results/roar_{dataset}.json",
    log:
        text="logs/roar_{dataset}.log",
    threads: STUDY.threads
    priority: 1_000
    shell:
        JOB + " roar {STUDY.name} {wildcards.dataset} > {log.text:q} 2>&1"


rule explanations:
    input:
        "stamps/{page}.json",
        lambda wildcards: [
            f"runs/{run}/quality.{kind}"
            for run in MEASURED
            for kind in ("json", "safetensors")
            if run.startswith(f"{wildcards.page.removeprefix('explanations_')}/")
        ],
        lambda wildcards: [
            f"results/roar_{dataset}.json" for dataset in RETRAINED if wildcards.page == f"explanations_{dataset}"
        ],
    output:
        "results/{page}.json",
        "{page}.html",
    wildcard_constraints:
        page="explanations_.*",
    log:
        notebook="notebooks/{page}.ipynb",
        text="logs/{page}.log",
    threads: STUDY.threads
    priority: 1  # they take longer than the pages of single runs, and the study is not to end on one of them
    params:
        dataset=lambda wildcards: wildcards.page.removeprefix("explanations_"),
    shell:
        JOB + " explanations {STUDY.name} {params.dataset} > {log.text:q} 2>&1"


rule trial:
    input:
        "stamps/sweeps/{trial}.json",
        keep_going,
        lambda wildcards: ancient(data_first(wildcards.trial.split("/")[1])),
        lambda wildcards: ancient(expand("runs/{run}/result.json", run=OWN_RUNS[wildcards.trial])),
    output:
        "sweeps/{trial}.json",
    log:
        text="logs/sweeps/{trial}.log",
    threads: STUDY.threads
    priority: 1  # pages wait for them
    shell:
        JOB + " trial {STUDY.name} {wildcards.trial} > {log.text:q} 2>&1"


rule sweep:
    input:
        "stamps/sweep_{sweep}.json",
        lambda wildcards: expand("sweeps/{trial}.json", trial=TRIALS[wildcards.sweep]),
    output:
        "results/sweep_{sweep}.json",
        "sweep_{sweep}.html",
    log:
        notebook="notebooks/sweep_{sweep}.ipynb",
        text="logs/sweep_{sweep}.log",
    priority: 1
    shell:
        JOB + " sweep {STUDY.name} {wildcards.sweep} > {log.text:q} 2>&1"


def results_of(page):
    """The results of the runs that a comparison page is about."""
    prefix = "/".join(COMPARISONS[page]) + "/"
    return [f"runs/{run}/result.json" for run in RUNS if run.startswith(prefix)]


rule compare:
    input:
        "stamps/{page}.json",
        lambda wildcards: results_of(wildcards.page),
    output:
        "results/{page}.json",
        "{page}.html",
    log:
        notebook="notebooks/{page}.ipynb",
        text="logs/{page}.log",
    threads: STUDY.threads
    priority: 1  # they take longer than the pages of single runs, and the study is not to end on one of them
    params:
        what=lambda wildcards: "{} --network {}".format(*COMPARISONS[wildcards.page]),
    shell:
        JOB + " compare {STUDY.name} {params.what} > {log.text:q} 2>&1"


rule tables:
    input:
        "stamps/tables.json",
        expand("runs/{run}/result.json", run=RUNS),
        expand("runs/{run}/quality.{kind}", run=MEASURED, kind=["json", "safetensors"]),
        expand("results/{kind}_{dataset}.json", kind=["post_training", "deployed"], dataset=STUDY.datasets),
    output:
        "results/tables.json",
        "results/runs.csv",
        "tables.html",
    log:
        notebook="notebooks/tables.ipynb",
        text="logs/tables.log",
    shell:
        JOB + " tables {STUDY.name} > {log.text:q} 2>&1"


rule claims:
    input:
        "stamps/claims.json",
        expand("runs/{run}/{name}", run=RUNS, name=["result.json", "per_image.safetensors"]),
        expand("runs/{run}/quality.safetensors", run=MEASURED),
    output:
        "results/claims.json",
        "claims.html",
    log:
        notebook="notebooks/claims.ipynb",
        text="logs/claims.log",
    shell:
        JOB + " claims {STUDY.name} > {log.text:q} 2>&1"


rule index:
    input:
        "stamps/index.json",
        "tables.html",
        "claims.html",
        expand("{page}.html", page=DATA),
        expand("{page}.html", page=COMPARISONS),
        expand("{page}.html", page=EXPLANATIONS),
        expand("sweep_{sweep}.html", sweep=SWEEPS),
        expand("runs/{run}/result.json", run=RUNS),
        expand("runs/{run}/saliency.html", run=EXPLAINED),
    output:
        "index.html",
    log:
        text="logs/index.log",
    shell:
        JOB + " index {STUDY.name} > {log.text:q} 2>&1"
