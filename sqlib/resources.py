"""What this process may use of the machine: not the host's cores and memory, but those of its container or SLURM job.

Linux keeps such limits in control groups, a tree of folders: a limit holds for all below it. Version 1 has a tree for each
kind of limit, version 2 one for all. A container sees its own group at the top, whatever /proc calls it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

JOB_BYTES = 2 * 10**9
"""Memory that a job of a study may need: kernel, torch, a data set, and what training and drawing take."""


def cores(root: Path = Path("/")) -> int:
    """Number of cores this process may use: those it may run on, or, if that is less, its quota of their time, rounded up.

    root: where `proc` and `sys` are (for tests).
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(own, _quota(root))))


def _quota(root: Path) -> float:
    """The smallest quota above this process, in cores; infinity if there is none."""
    found = [math.inf]
    for folder in groups("cpu", root):
        limit = _numbers(folder / "cpu.max")  # version 2: quota and period in one file
        limit = limit or [*_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us")]
        if len(limit) == 2 and None not in limit and min(limit) > 0:  # a quota of `max`, or -1, is none
            found.append(limit[0] / limit[1])
    return min(found)


def memory(root: Path = Path("/")) -> float:
    """Bytes that the groups of this process may use together; infinity if nothing limits them."""
    limits = [
        number
        for folder in groups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        for number in _numbers(folder / name)
    ]
    return min(
        (limit for limit in limits if limit and 0 < limit < 2**60), default=math.inf
    )  # version 1: no limit is a huge one


def jobs_that_fit(root: Path = Path("/")) -> float:
    """How many jobs have room in memory side by side, at least 1; infinity if nothing limits it."""
    limit = memory(root)
    return max(1, int(limit // JOB_BYTES)) if math.isfinite(limit) else limit


def groups(kind: str, root: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, from the top down, of a kind of limit (`cpu`, `memory`)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for kinds, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if kinds and kind not in kinds.split(","):
            continue
        # Version 2 has no kinds; beside version 1 it has a folder of its own.
        names = {kinds, kind} if kinds else {".", "unified"}
        below = [part for part in path.split("/") if part]
        if ".." in below:  # seen from another name space: only the top is there
            below = []
        for name in names:
            yield from ((root / "sys/fs/cgroup" / name).joinpath(*below[:depth]) for depth in range(len(below) + 1))


def _numbers(path: Path) -> list[int | None]:
    """The numbers in a file, None for a word such as `max`; [] if it is not there."""
    try:
        return [int(word) if word.lstrip("-").isdecimal() else None for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
