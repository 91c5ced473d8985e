"""Where things are: the repository, and the folders of data, parameters and reports, which the environment may name."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PLACES = ("SQLIB_DATA", "SQLIB_PARAMS", "SQLIB_REPORTS")
"""Environment variables that name the folders of the data, of the parameters and of the reports."""


def place(name: str, default: Path) -> Path:
    """The folder that one of `PLACES` names (`~` is the user's own), else `default`; absolute."""
    chosen = os.environ.get(name)
    return Path(os.path.realpath(os.path.expanduser(chosen))) if chosen else default


def fix_places() -> None:
    """Make `PLACES` absolute in the environment, so that for all that is started they mean what they mean here.

    A relative one means the folder in which the command was typed. Snakemake, its jobs and their kernels work in others. So
    does the kernel of a notebook opened by hand, whose environment says where Jupyter was started.
    """
    started = os.environ.get("PWD", "") if "JPY_PARENT_PID" in os.environ else ""
    for name in PLACES:
        if chosen := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.join(started, os.path.expanduser(chosen)))


fix_places()
PARAMS = place("SQLIB_PARAMS", REPOSITORY / "params")
REPORTS = REPOSITORY / "reports"


def shown_path(path: Path) -> str:
    try:
        return os.fspath(path.resolve().relative_to(REPOSITORY))
    except ValueError:
        return os.fspath(path)


def reports_root() -> Path:
    """The folder of all reports: `$SQLIB_REPORTS` if set, else `reports/` in the repository."""
    return place("SQLIB_REPORTS", REPORTS)
