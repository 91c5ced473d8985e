"""PROFILE=slurm on a cluster of two nodes (`cluster.py`): a node is lost, the driver is killed, and the study is completed.

`make test-cluster`. Where there can be no cluster it fails, and says why. CLUSTER_STUDY=smoke takes the smoke study
instead of one of seconds.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import below

from cluster import Cluster, missing
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.parameters import load_study
from sqlib.workflow.snakemake import job_prefix

pytestmark = pytest.mark.cluster
NAME = os.environ.get("CLUSTER_STUDY", "micro")
LOCAL = {"all", "tables", "claims", "index", "sweep"}
MICRO = {
    "title": "A study of seconds",
    "datasets": ["mnist"],
    "networks": ["lenet"],
    "setups": ["fp32", "w2a2"],
    "trainings": ["standard"],
    "seeds": [0, 1, 2],
    "training": {"epochs": 3, "batch_size": 32, "images": 400, "validation_images": 100},
    "evaluation": {"images": 100, "faithfulness_images": 20},
}


class Study:
    """A study with parameters and reports of its own, made on a cluster."""

    def __init__(self, root: Path, cluster: Cluster, name: str = NAME, **changes):
        self.cluster, self.name = cluster, name
        self.params, self.reports = root / "params", root / "reports" / name
        shutil.copytree(REPOSITORY / "params", self.params)
        (self.params / "micro.yaml").write_text(yaml.safe_dump({**MICRO, **changes}))
        self.environment = {**os.environ, "SQLIB_PARAMS": str(self.params), "SQLIB_REPORTS": str(root / "reports")}

    def start(self, profile: str = "slurm") -> subprocess.Popen:
        command = [sys.executable, "-m", "sqlib", "reproduce", self.name, "--profile", profile, "--cores", "1"]
        return subprocess.Popen(
            [*self.cluster.inside(), *command], env=self.environment, cwd=REPOSITORY, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def assert_whole(self) -> None:
        for run in load_study(self.name, self.params).runs():
            folder = run.folder(self.reports)
            assert results.fault(folder) is None
            assert (folder / "train.html").exists() and (folder / results.PACKED).exists()
            assert (self.reports / "logs" / run.id / "train.log").exists()
        for name in ("index.html", "tables.html", "claims.html", "results/runs.csv"):
            assert (self.reports / name).exists(), name

    def unmake(self) -> Path:
        """Take away one run's result; its log."""
        run = load_study(self.name, self.params).runs()[0]
        (run.folder(self.reports) / "result.json").unlink()
        return self.reports / "logs" / run.id / "train.log"


def until(happened, process: subprocess.Popen):
    """Wait for what must happen before the process ends; what `happened` then says."""
    while not (found := happened()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := missing():
        pytest.fail(f"no cluster can be started here: {why}")
    with Cluster(tmp_path_factory.mktemp("cluster") / "slurm") as cluster:
        yield cluster
    assert not [pid for part in cluster.parts.values() for pid in below(part.pid)]
    there = [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in there if str(cluster.folder) in line]


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory):
    """The study, made while a node was lost."""
    study = Study(tmp_path_factory.mktemp("study"), cluster)
    process = study.start()
    (study.lost,) = until(lambda: running(cluster, "train", "n2") and running(cluster, "train", "n1"), process)
    log = study.reports / "logs"
    until(lambda: any("sqlib train" in command for command in cluster.commands("n1")), process)
    assert cluster.switch_off("n1") > 3, "nothing ran there"
    until(lambda: cluster.job(study.lost["id"])["state"] != "RUNNING", process)
    cluster.switch_on("n1")
    study.said = process.communicate(timeout=1500)[0]
    assert process.returncode == 0, study.said
    study.log = (log / "reproduce.log").read_text()
    return study


def running(cluster: Cluster, rule: str, node: str = "") -> list[dict[str, str]]:
    jobs = [job for job in cluster.jobs() if job["state"] == "RUNNING" and job["comment"].startswith(f"rule_{rule}")]
    return [job for job in jobs if job["node"] == (node or job["node"])]


def test_a_study_survives_the_loss_of_a_node(study, cluster):
    study.assert_whole()
    assert "failed" not in study.said.lower()
    done = [line for line in (cluster.folder / "jobs.txt").read_text().splitlines() if "JobState=COMPLETED" in line]
    assert all(any(f"NodeList={node} " in line for line in done) for node in ("n1", "n2")), "one node did everything"
    assert cluster.job(study.lost["id"])["state"] == "COMPLETED"
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", study.lost["id"])


def test_only_what_is_small_runs_on_the_login_node(study):
    here = set(re.findall(r"^localrule (\S+):", study.log, flags=re.MULTILINE))
    there = set(re.findall(r"^ *rule (\S+):", study.log, flags=re.MULTILINE))
    assert here == LOCAL - {"sweep"} and not there & LOCAL
    numbers = re.findall(r"^Job \S+ has been submitted", study.log, flags=re.MULTILINE)
    groups = re.findall(r"Group job \S+ \(jobs", study.log)
    alone = re.findall(r"^rule (\S+):", study.log, flags=re.MULTILINE)
    assert len(numbers) == len(groups) + len(alone)
    trained = re.findall(r"^ +rule train_", study.log, flags=re.MULTILINE)
    assert len(trained) == len(load_study(study.name, study.params).runs()), "the runs were not grouped"


def test_the_same_command_goes_on_after_the_driver_was_killed(study, cluster):
    log = study.unmake()
    log.unlink()
    process = study.start()
    until(log.exists, process)
    os.kill(below(process.pid)[0], signal.SIGKILL)
    process.communicate()
    left = [job for job in cluster.jobs() if job["state"] == "RUNNING"]
    assert len(left) == 1 and left[0]["name"].startswith(job_prefix(study.reports)), "it is not left over at all"
    process = study.start()
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert "1 SLURM job of an earlier start was still there: cancelled" in said
    assert cluster.job(left[0]["id"])["state"] == "CANCELLED"
    study.assert_whole()


def test_a_stopped_driver_takes_its_jobs_along_and_a_gpu_is_asked_for_where_one_is_configured(study, cluster, tmp_path):
    profile = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**profile, "set-resources": ["train_mnist_standard:gpu=1"]})
    )  # as the profile's last lines say
    log = study.unmake()
    log.unlink()
    process = study.start(str(tmp_path))
    until(log.exists, process)
    (job,) = [job for job in cluster.jobs() if job["state"] == "RUNNING"]
    # TresPerJob=gres:gpu:1, or gres/gpu=1 in newer SLURM and where GPUs are accounted for.
    assert re.search(r"gres[:/]gpu[:=]1\b", cluster.run("scontrol", "show", "job", job["id"]))
    os.kill(below(process.pid)[0], signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert "stopped; " in said
    assert not [job for job in cluster.jobs() if job["state"] in ("RUNNING", "PENDING")]


def test_a_run_that_fails_does_not_take_along_the_others_of_its_group(cluster, tmp_path):
    """Behind a clip of 10,000 every activation rounds to 0, and nothing is learned at 2 bits; fp32 has no clip."""
    profile = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**profile, "retries": 0}))
    training = {**MICRO["training"], "clip": {"start": 1e4}}
    study = Study(tmp_path / "study", cluster, "micro", setups=["w2a2", "fp32"], seeds=[0], training=training)
    said = study.start(str(tmp_path)).communicate(timeout=600)[0]
    bad, good = load_study(study.name, study.params).runs()
    assert f"FAILED train {bad.id}: " in said and "training has failed: after epoch" in said
    assert "failed: 1 job" in said and f"FAILED train {good.id}" not in said
    assert results.fault(good.folder(study.reports)) is None
    index = (study.reports / "index.html").read_text()
    assert f'"logs/{bad.id}/train.log"' in index and f'"logs/{good.id}/train.log"' not in index
