"""Cores and memory are those of the container: control groups of both versions, made up in a folder."""

import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlib import resources
from sqlib.study import origin
from sqlib.workflow import snakemake

GB = 10**9


def machine(root, groups, **files):
    """A root folder with this /proc/self/cgroup, and files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


V1 = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"


def v1(folder, quota, period=100_000):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    "groups, files, expected",
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 8),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "10000 100000"}, 1),
        ("0::/kubepods/pod1/host/path\n", {"cpu.max": "200000 100000\n"}, 2),  # what is mounted is the container's own
        ("0::/../../other\n", {"cpu.max": "200000 100000\n"}, 2),
        (V1, v1("cpu,cpuacct/docker/abc", 150_000), 2),
        (V1, v1("cpu/docker/abc", 150_000), 2),
        (V1, v1("cpu", 100_000), 1),  # in the container
        (V1, v1("cpu", -1), 8),
        (V1, {**v1("cpu", -1), **v1("cpu/docker", 400_000), **v1("cpu/docker/abc", 50_000, 10_000)}, 4),
        ("4:cpu:/\n0::/x\n", {**v1("cpu", -1), "unified/x/cpu.max": "100000 100000"}, 1),  # both versions
        ("0::/\n", {"cpu.max": "\n"}, 8),
        ("0::/\n", {"cpu.max": "0 0\n"}, 8),
        ("0::/\n", {"cpu.max": "rubbish of another kind\n"}, 8),
        (V1, {"cpu/cpu.cfs_quota_us": "100000"}, 8),  # the period is missing
        ("rubbish\n", {"cpu.max": "max 100000\n"}, 8),
    ],
)
def test_cores_are_those_of_the_quota_rounded_up(tmp_path, groups, files, expected):
    assert resources.cores(machine(tmp_path, groups, **files)) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=4), st.integers(1000, 1_000_000), st.booleans())
def test_of_nested_groups_the_smallest_quota_counts_in_both_versions(quotas, period, second):
    names = ["/".join("abcd"[:depth]) for depth in range(len(quotas))]
    path = "/" + names[-1]
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, quota in zip(names, quotas, strict=True):
            files |= {f"{name or '.'}/cpu.max": f"{quota} {period}\n"} if second else v1(f"cpu/{name}", quota, period)
        root = machine(Path(folder), f"0::{path}\n" if second else f"2:cpu:{path}\n", **files)
        assert resources.cores(root) == max(1, min(8, math.ceil(min(quotas) / period)))


def test_without_control_groups_they_are_those_it_may_run_on(tmp_path):
    assert resources.cores(tmp_path) == 8 and resources.memory(tmp_path) == math.inf
    assert resources.jobs_that_fit(tmp_path) == math.inf


@pytest.mark.parametrize(
    "groups, files, expected, fit",
    [
        ("0::/\n", {"memory.max": "max\n"}, math.inf, math.inf),
        ("0::/\n", {"memory.max": f"{4 * GB}\n"}, 4 * GB, 2),
        ("0::/a\n", {"memory.max": f"{4 * GB}\n", "a/memory.max": "max\n"}, 4 * GB, 2),
        ("0::/a\n", {"memory.max": "max\n", "a/memory.max": f"{GB}\n"}, GB, 1),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, math.inf, math.inf),
        (V1, {"memory/memory.limit_in_bytes": f"{5 * GB}\n"}, 5 * GB, 2),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": f"{7 * GB}\n"}, 7 * GB, 3),
    ],
)
def test_memory_is_the_smallest_limit(tmp_path, groups, files, expected, fit):
    root = machine(tmp_path, groups, **files)
    assert resources.memory(root) == expected and resources.jobs_that_fit(root) == fit


def test_the_study_asks_for_the_cores_that_there_are(monkeypatch):
    monkeypatch.setattr(resources, "_quota", lambda root: 2.5)
    assert origin.provenance()["cores"] == 3


def test_no_more_jobs_at_once_than_have_room_and_the_plan_says_why(monkeypatch):
    assert snakemake.side_by_side(8, 2)[0] <= 4
    monkeypatch.setattr(resources, "memory", lambda root=None: 3.9 * GB)
    assert snakemake.side_by_side(4, 1) == (1, " (1 job at once: memory is limited to 3.9 GB, a job may need 2 GB)")
    assert snakemake.memory_limits(4) == ["--resources", "mem_mb=2000", "--default-resources", "mem_mb=2000"]
    monkeypatch.setattr(resources, "memory", lambda root=None: 64.0 * GB)
    assert snakemake.side_by_side(4, 1) == (4, "") and snakemake.memory_limits(4) == []
    monkeypatch.setattr(resources, "memory", lambda root=None: math.inf)
    assert snakemake.side_by_side(4, 8) == (1, "") and snakemake.memory_limits(4) == []
