"""The environment of everything that is started: what of the user's is kept, what is dropped, and why.

`settle` puts this process's environment right, before a library is imported that reads it; jobs, kernels, Snakemake and
JupyterLab inherit it. Everything is kept but what is named here: where things are (PATH, HOME, proxies, `SQLIB_*`), GPUs
(`CUDA_*`), and three variables by which `make elsewhere` has a processor do as an older one does (ONEDNN_MAX_CPU_ISA,
ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS). The Makefile does the same for pip and uv.
"""

import os
import tempfile
from pathlib import Path

from sqlib.workflow.forkserver import limits

DROPPED = {
    # These would change numbers or pictures.
    "PYTHONSTARTUP": "code that each kernel would run first",
    "PYTHONOPTIMIZE": "takes assertions away",
    "PYTHONWARNINGS": "could make an error of a warning",
    "MATPLOTLIBRC": "how figures look",
    "MKL_CBWR": "which instructions products take",
    "ONEDNN_DEFAULT_FPMATH_MODE": "would round float32 to bfloat16",
    "DNNL_DEFAULT_FPMATH_MODE": "the same",
    "CUBLAS_WORKSPACE_CONFIG": "the order of sums on a GPU",
    "NVIDIA_TF32_OVERRIDE": "rounds products on a GPU",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "the same",
    # These would put all processes on the same core, or stop one that has nothing to do with them.
    "OMP_": "threads and where they run; a job says itself how many it takes",
    "GOMP_": "the same",
    "KMP_": "the same",
    "MKL_NUM_THREADS": "the same",
    "MKL_DYNAMIC": "the same",
    "OPENBLAS_NUM_THREADS": "the same",
    "NUMEXPR_": "the same",
    # These would have others' settings, or another interpreter's packages, read.
    "PYTHONHOME": "another interpreter's library",
    "PYTHONUSERBASE": "packages beside the locked ones",
    "SNAKEMAKE_": "profiles and caches of other workflows",
    "GIT_DIR": "another repository, whose revision would be noted down",
    "GIT_WORK_TREE": "the same",
    "GIT_INDEX_FILE": "the same",
    "GIT_COMMON_DIR": "the same",
}
"""What is dropped, by its name or, with `_` at its end, by how its name begins; and why."""

_SOCKET_PATH = 90
"""Letters that the path of a folder of sockets may have: a socket's own path has 107 at most."""


def settle() -> None:
    """Drop what is in `DROPPED` from this process's environment, and have caches kept where they can be.

    A home that is missing or cannot be written is replaced by a folder of the project's own, or a temporary one; a user
    without an entry in the system's list gets a name, which libraries ask for.
    """
    own = limits(1) if os.environ.get("SQLIB_JOB") else {}  # Snakemake has set a job's threads
    for name in os.environ.keys() - own.keys():
        if any(name == dropped or (dropped.endswith("_") and name.startswith(dropped)) for dropped in DROPPED):
            del os.environ[name]
    os.environ["PYTHONNOUSERSITE"] = "1"
    if not _usable(os.environ.get("HOME", "")):
        os.environ["HOME"] = str(_home())
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "MPLCONFIGDIR"):
            if not _usable(os.environ.get(name, "")):
                os.environ.pop(name, None)
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")) and not _known():
        os.environ["USER"] = f"user{os.getuid()}"


def _usable(folder: str) -> bool:
    """Whether a file can be made in a folder: tried, since root is told that it may anywhere."""
    try:
        with tempfile.TemporaryFile(dir=folder or "/nonexistent"):
            return True
    except OSError:
        return False


def _known() -> bool:
    """Whether the system's list has an entry for this user."""
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _home() -> Path:
    for place in (
        Path(__file__).resolve().parents[2] / "build/home",
        Path(tempfile.gettempdir(), f"sqlib-{os.getuid()}"),
    ):
        try:
            place.mkdir(parents=True, exist_ok=True)
            if _usable(str(place)) and place.stat().st_uid == os.getuid():
                return place
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="sqlib-home-"))


def short_folder() -> str:
    """A new folder, only for this user, whose path is short enough for sockets in it: where temporary files go, else /tmp.

    Raises OSError, which names TMPDIR, where there is none.
    """
    for place in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]):
        if len(os.fsencode(place)) < _SOCKET_PATH and _usable(place):
            return tempfile.mkdtemp(prefix="sqlib-", dir=place)
    raise OSError(
        f"the path of TMPDIR ({tempfile.gettempdir()}) is too long for sockets, and /tmp cannot be written: set TMPDIR"
    )
