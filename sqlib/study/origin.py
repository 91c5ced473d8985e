"""Where results come from: code, data, packages, machine and time, written down beside what was made."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlib import resources
from sqlib.places import REPOSITORY

PACKAGES = (
    "torch", "torchvision", "captum", "numpy", "scipy", "scikit-image", "pandas", "matplotlib", "safetensors",
    "papermill", "nbconvert", "nbclient", "ipykernel", "snakemake",
)  # fmt: skip


# ---- provenance ----------------------------------------------------------------------------------------------------
def provenance(started: float | None = None) -> dict[str, Any]:
    """Where a result comes from: code revision, versions, hardware, threads, times (UTC), peak memory of this process.

    What cannot be found out (no git, say) is null; nothing here fails.
    """
    end, start = datetime.now(UTC), None if started is None else datetime.fromtimestamp(started, UTC)
    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "git": git_state(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_version": cpu_version(),
        "cores": resources.cores(),
        "threads": torch.get_num_threads() if torch else None,
        "started": start.isoformat(timespec="seconds") if start else None,
        "ended": end.isoformat(timespec="seconds"),
        "seconds": round((end - start).total_seconds(), 1) if start else None,
        "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
    }


def notebook_sum(name: str) -> str | None:
    """SHA-256 of a file in `notebooks/`; None if it is not there (an installed package)."""
    path = REPOSITORY / "notebooks" / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def git_state() -> dict[str, Any] | None:
    """{"revision": commit, "dirty": whether tracked files differ from it}, or None outside git."""

    # Where git is told by variables to look (in a hook, say), it would speak of another repository, wherever it is started.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True
        )
        return os.fsdecode(done.stdout).removesuffix("\n")

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return None  # a copy without .git inside some other repository
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str | None]:
    """Installed version of each of `PACKAGES` (None: not installed)."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_model() -> str | None:
    """The processor's name as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or None


def cpu_version() -> str | None:
    """Such as 'family 25, model 17, stepping 1': a rented machine's name for its processor may not say more than the maker."""
    told = _cpuinfo()
    parts = {"family": told.get("cpu family"), "model": told.get("model"), "stepping": told.get("stepping")}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value) or None


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor, by its own words; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def data_sums(dataset: str) -> dict[str, str]:
    """SHA-256 of each file of a data set, as `sqlib.data.fetch` demands it."""
    from sqlib.data.datasets import source_of

    return dict(source_of(dataset).sha256)
