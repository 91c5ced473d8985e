"""A page of a study made: its notebook executed, and the HTML of it with its way through the study and its origin."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sqlib.checked import SqlibError, short
from sqlib.data.datasets import dataset_title
from sqlib.places import REPOSITORY
from sqlib.study.origin import provenance
from sqlib.study.results import origin_path, read_origin, read_result, write_origin
from sqlib.workflow.pages import KIND, Job, job_of, of_run, pages_of

TIME_LIMITS = {"train": 24 * 3600, "page": 3600}  # seconds for a notebook: far more than it needs, but an end
Link = tuple[str, str | None]
"""A title and an address."""


def time_limit(kind: str) -> float:
    """Seconds that a notebook may take: `$SQLIB_TIME_LIMIT`, or that of `TIME_LIMITS`. SqlibError for what is no time."""
    asked = os.environ.get("SQLIB_TIME_LIMIT")
    if not asked:
        return TIME_LIMITS[kind]
    try:
        seconds = float(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        longest = f"at most {threading.TIMEOUT_MAX:.0f}"
        raise SqlibError(
            f"SQLIB_TIME_LIMIT={short(asked, 80)}: expected a number of seconds, more than 0 and {longest}"
        )
    return seconds


def make(page: Job, required: Sequence[Path] = ()) -> None:
    """Execute the notebook of a page and render it; if it fails, the page shows how far it came. SqlibError as `execute`.

    The notebook is told what its cell of parameters names: the study and its folder, and what the page is about. If it fails,
    nothing of `required`, and no result, is left, not even where the notebook wrote it before (its kernel can be killed in
    between): these files and a page are what says that a job is done.
    """
    from sqlib.workflow.notebooks import execute, parameters_of

    source, started = REPOSITORY / "notebooks" / page.kind.notebook, time.time()
    required = [*required, *(page.reports / name for name in page.kind.also)]
    folder = str(page.html.parent)  # that of a run, where it is about one
    told = {"study": page.study.name, "reports": str(page.reports), "folder": folder, "run_folder": folder}
    told |= page.about.told
    if page.result is not None:
        told["result_file"] = str(page.result)
        required.append(page.result)
    wanted = {key: value for key, value in told.items() if key in parameters_of(source)}
    limit = time_limit("train" if page.kind.name == "train" else "page")
    threads = page.study.threads if page.kind.parallel else 1
    origin_path(page.reports, page.name).unlink(missing_ok=True)
    try:
        execute(source, page.notebook, wanted, timeout=limit, required=required, threads=threads)
    except SqlibError:
        for path in required:
            path.unlink(missing_ok=True)
        if page.notebook.exists():
            render(page)
        raise
    if page.kind.name != "train":  # what a run leaves says it itself
        write_origin(page.study, page.reports, page.name, started, required, page.about.runs, page.kind.notebook)
    render(page)


def render(page: Job) -> None:
    """Make the HTML of a page from its executed notebook."""
    from sqlib.report.html import render as to_html

    index = (page.study.title, os.path.relpath(page.reports / "index.html", page.html.parent))
    crumbs: list[Link] = [index, (page.title, None)]
    before, after = _neighbours(page)
    if page.run is not None:
        crumbs.insert(1, _link(page, _comparison(page)))
    elif before is None:
        before = index
    to_html(page.notebook, page.html, page.title, crumbs, facts(page), before, after, _related(page))


def _link(page: Job, other: Job) -> Link:
    return other.title, os.path.relpath(other.html, page.html.parent)


def _comparison(page: Job) -> Job:
    """The page that compares a run with the other setups."""
    return job_of(page.study, "compare", dataset=page.run.dataset, network=page.run.network)


def _neighbours(page: Job) -> tuple[Link | None, Link | None]:
    """The pages before and after in reading order: those about the whole study, its sweeps, or runs of the same kind.

    The sweeps stand for themselves: not every study makes them, and no page waits for them.
    """
    alone = page.run is not None or page.kind.name == "sweep"
    order = [
        other
        for other in pages_of(page.study)
        if (other.kind is page.kind if alone else other.run is None and other.kind.name != "sweep")
    ]
    at = next((number for number, other in enumerate(order) if other.html == page.html), None)
    before = _link(page, order[at - 1]) if at else None
    after = _link(page, order[at + 1]) if at is not None and at + 1 < len(order) else None
    return before, after


def _related(page: Job) -> tuple[str, list[tuple[str, list[Link]]]] | None:
    """(heading, [(what, links)]) of pages about the same runs: a comparison's runs, a run's comparison and other page."""
    if page.run is not None:
        first = page.run.seed == page.study.seeds[0]
        others = [kind for kind in ["train", *["saliency"] * first] if kind != page.kind.name]
        same = [_link(page, job_of(page.study, kind, run_id=page.run.id)) for kind in others]
        beside = [_link(page, _comparison(page))]
        return "Related pages", [*[("The same run", same)] * bool(same), ("Beside the other setups", beside)]
    if page.kind.name != "compare":
        return None
    found: dict[str, list[Link]] = {}
    for run in page.about.runs:
        own = Job(KIND["train"], page.study, of_run(page.study, run))
        if own.html.exists():
            what = f"{run.setup.name}, {run.training.replace('_', '-')}"
            found.setdefault(what, []).append((f"seed {run.seed}", _link(page, own)[1]))
    return ("The runs compared here", list(found.items())) if found else None


def _python() -> str:
    """How a user calls this Python from the top of the repository: conda users have no `.venv`."""
    return ".venv/bin/python" if Path(sys.prefix) == REPOSITORY / ".venv" else "python"


def _origin(page: Job) -> dict:
    """Where what is on the page comes from, as it was written down when the notebook ran; else as things are now."""
    if page.kind.name == "train" and (page.html.parent / "result.json").exists():
        result = read_result(page.html.parent)
        own = result["provenance"]
        of_run = {"digest": result["digest"], "seeds": [page.run.seed], "data": {page.run.dataset: own.get("data")}}
        notebook = {"name": page.kind.notebook, "sha256": own.get("notebook")}
        return {**dict.fromkeys(provenance()), **own, **of_run, "notebook": notebook}
    try:
        return read_origin(origin_path(page.reports, page.name))
    except SqlibError:  # made by older code, or the file was damaged: the page itself may be right
        unknown = {"unknown": "when this was made was not written down; what follows is of the rendering"}
        return {**provenance(), **unknown}


def facts(page: Job) -> dict[str, str]:
    """What stands at the foot of a page: which run, the command that makes it, from what, when, on what."""
    found = {"Study": page.study.name, "Run it again": f"{_python()} -m sqlib {page.command}"}
    origin = _origin(page)
    if page.run is not None:
        found["Run"] = page.run.id
    if "unknown" in origin:
        found["Origin"] = origin["unknown"]
    if "digest" in origin:
        found["Parameters, digest"] = origin["digest"]
    if origin.get("seeds"):
        found["Seed" if len(origin["seeds"]) == 1 else "Seeds"] = ", ".join(map(str, origin["seeds"]))
    if (origin.get("notebook") or {}).get("sha256"):
        found["Notebook, SHA-256"] = f"{origin['notebook']['name']}, {origin['notebook']['sha256'][:12]}"
    for dataset, sums in (origin.get("data") or {}).items():
        if sums:
            stated = ", ".join(f"{name} {digits[:12]}" for name, digits in sums.items())
            found[f"{dataset_title(dataset)}, SHA-256"] = stated
    git, packages, threads = origin["git"], origin["packages"], page.study.threads
    found["Code"] = f"{git['revision'][:12]}{' with changes' if git.get('dirty') else ''}" if git else "not in git"
    times = [str(t)[:16].replace("T", " ") for t in (origin["started"], origin["ended"]) if t]
    found["Made (UTC)"] = " to ".join(times)
    found["Machine"] = f"{origin['cpu']}, {origin['cores']} cores, {threads} thread{'s' * (threads > 1)} a run"
    if origin.get("device", "cpu") != "cpu":
        found["Trained on"] = origin["device"]
    if precision := origin.get("precision"):
        found["Convolutions in training"] = precision if isinstance(precision, str) else ", ".join(precision)
    found["Versions"] = f"Python {origin['python']}, torch {packages['torch']}, captum {packages['captum']}"
    return found
