# The study as a graph: data -> train (one job a run) -> saliency, compare, post_training -> tables -> index; and beside
# it the sweeps, data -> trial (one job a variant and data set) -> sweep. What jobs there are, of what and of which files, says
# `sqlib.workflow.pages`.
# `make reproduce` starts it through `python -m sqlib reproduce`, which first writes the stamps (parameters.json and
# stamps/*.json: parameters and digests of the sources) that are the inputs here. So content, not time, decides what is
# made again. All paths are relative to the study's own folder, reports/<study>/, which also holds Snakemake's state:
# studies do not lock each other.
import shlex
import sys

from sqlib.study.parameters import load_study
from sqlib.workflow.pages import folder_of, jobs_of, rules_of

STUDY = load_study(config.get("study", "paper"))
# The sweeps that chose the study's parameters are wanted only where they are asked for: `make sweeps`.
UNWANTED = () if config.get("sweeps") else ("trial", "sweep")
JOBS = jobs_of(STUDY)
WANTED = [path for job in JOBS if job.kind.name not in UNWANTED for path in job.outputs]
# exec: a stopped Snakemake takes its jobs with it, without a shell in between. What a job prints goes to its log.
# Braces are doubled for Snakemake, which puts wildcards in their place; all else that a path may hold is quoted for the shell.
JOB = f"SQLIB_JOB=1 exec {shlex.quote(sys.executable).replace('{', '{{').replace('}', '}}')} -m sqlib"


def keep_going(wildcards):
    """No input: a failed job does not stop the others of its group.

    On a cluster a group of jobs is made by a Snakemake of its own. It reads no profile, is not told, and has settings only
    when it has read this file; so they are set as soon as it asks for inputs. (A dry run has none.)
    """
    if workflow.execution_settings:
        workflow.execution_settings.keep_going = True
    return []


workdir: folder_of(STUDY)


# Every output by name, since Snakemake looks no further back than a file that is there and new, and there is an index,
# and pages, also of a study in which jobs have failed.
rule all:
    default_target: True
    input:
        WANTED,


for each in rules_of(JOBS):

    rule:
        name:
            each.name
        input:
            keep_going,
            lambda wildcards, each=each: [each.job(wildcards).stamp, *each.job(wildcards).needs],
            lambda wildcards, each=each: ancient(each.job(wildcards).before),
            [path for path in WANTED if each.name == "index" and path.startswith("sweep_")],
        output:
            each.pattern.outputs,
        log:
            **each.logs,
        wildcard_constraints:
            **each.constraints,
        threads: STUDY.threads if each.pattern.kind.parallel else 1
        priority: each.priority
        localrule: each.pattern.kind.local
        params:
            command=lambda wildcards, each=each: each.job(wildcards).command,
        shell:
            JOB + " {params.command} > {log.text:q} 2>&1"
