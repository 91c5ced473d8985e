"""Which pages a study has: the notebook behind each, where it is kept, and the HTML made of it."""

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sqlib import places
from sqlib.checked import SqlibError, short
from sqlib.data.datasets import dataset_title
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.origin import provenance
from sqlib.study.parameters import Run, Study
from sqlib.study.results import origin_path, read_origin, write_origin
from sqlib.study.sweeps import load_sweep

TIME_LIMITS = {"train": 24 * 3600, "page": 3600}  # seconds for a notebook: far more than it needs, but an end


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


def _python() -> str:
    """How a user calls this Python from the top of the repository: conda users have no `.venv`."""
    return ".venv/bin/python" if Path(sys.prefix) == REPOSITORY / ".venv" else "python"


def _run_words(study: Study, run: Run) -> str:
    network = f", {run.network}" if len(study.networks) > 1 else ""
    training = run.training.replace("_", "-")
    return f"{dataset_title(run.dataset)}{network}, {run.setup.name}, {training}, seed {run.seed}"


@dataclass
class Page:
    """One page of a study: the notebook it comes from, where that is kept when executed, and the HTML made of it."""

    study: Study
    kind: str  # a key of runs.SOURCES
    source: str  # in notebooks/
    notebook: Path
    html: Path
    result: Path | None  # what the notebook writes as its last act; None: it gets no `result_file`
    title: str
    command: str  # what makes it, behind `python -m sqlib`
    run: Run | None = None
    dataset: str | None = None  # that it is about; None: a run's own, or all of the study
    network: str | None = None

    @classmethod
    def _plain(cls, study: Study, kind: str, source: str, name: str, title: str, command: str, **about) -> "Page":
        reports = places.reports_root() / study.name
        executed, result = reports / "notebooks" / f"{name}.ipynb", reports / "results" / f"{name}.json"
        return cls(study, kind, source, executed, reports / f"{name}.html", result, title, command, **about)

    @classmethod
    def data(cls, study: Study, dataset: str) -> "Page":
        command = f"data {dataset} --study {study.name}"
        title = f"The data: {dataset_title(dataset)}"
        return cls._plain(study, "data", "1_data.ipynb", f"data_{dataset}", title, command, dataset=dataset)

    @classmethod
    def compare(cls, study: Study, dataset: str, network: str) -> "Page":
        name = results.compare_page(study, dataset, network)
        more = f", {network}" if len(study.networks) > 1 else ""
        title, command = (
            f"Comparison: {dataset_title(dataset)}{more}",
            f"compare {study.name} {dataset} --network {network}",
        )
        about = {"dataset": dataset, "network": network}
        return cls._plain(study, "compare", "4_compare.ipynb", name, title, command, **about)

    @classmethod
    def tables(cls, study: Study) -> "Page":
        return cls._plain(study, "tables", "5_tables.ipynb", "tables", "Tables", f"tables {study.name}")

    @classmethod
    def claims(cls, study: Study) -> "Page":
        return cls._plain(study, "claims", "6_claims.ipynb", "claims", "Claims", f"claims {study.name}")

    @classmethod
    def explanations(cls, study: Study, dataset: str) -> "Page":
        name, command = f"explanations_{dataset}", f"explanations {study.name} {dataset}"
        title = f"The explanations: {dataset_title(dataset)}"
        return cls._plain(study, "explanations", "8_explanations.ipynb", name, title, command, dataset=dataset)

    @classmethod
    def sweep(cls, study: Study, name: str) -> "Page":
        title = load_sweep(name).title
        return cls._plain(study, "sweep", "7_parameters.ipynb", f"sweep_{name}", title, f"sweep {study.name} {name}")

    @classmethod
    def train(cls, study: Study, run: Run) -> "Page":
        folder = run.folder(places.reports_root() / study.name)
        paths = folder / "notebook.ipynb", folder / "train.html"
        words = f"Training: {_run_words(study, run)}", f"train {study.name} {run.id}"
        return cls(study, "train", "2_train.ipynb", *paths, None, *words, run)

    @classmethod
    def saliency(cls, study: Study, run: Run) -> "Page":
        folder = run.folder(places.reports_root() / study.name)
        paths = folder / "saliency.ipynb", folder / "saliency.html", folder / "saliency.json"
        words = f"Saliency maps: {_run_words(study, run)}", f"saliency {study.name} {run.id}"
        return cls(study, "saliency", "3_saliency.ipynb", *paths, *words, run)

    @classmethod
    def all(cls, study: Study) -> list["Page"]:
        """Every page of a study but its index, in reading order."""
        all_runs = study.runs()
        return [
            cls.claims(study),
            cls.tables(study),
            *(cls.compare(study, dataset, network) for dataset in study.datasets for network in study.networks),
            *(cls.explanations(study, dataset) for dataset in study.datasets if study.quality),
            *(cls.sweep(study, name) for name in study.sweeps),
            *(cls.data(study, dataset) for dataset in study.datasets),
            *(cls.train(study, run) for run in all_runs),
            *(cls.saliency(study, run) for run in all_runs if run.seed == study.seeds[0]),
        ]

    @property
    def reports(self) -> Path:
        return places.reports_root() / self.study.name

    def execute(self, parameters: dict, required: list[Path], threads: int = 1, limit: float | None = None) -> None:
        """Execute the notebook; if it fails, its page shows how far it came. SqlibError as `notebook.execute`.

        Then nothing of `required`, and no result, is left, not even where the notebook wrote it before it failed (its kernel
        can be killed in between): these files and a page are what says that a job is done.
        """
        from sqlib.workflow.notebooks import execute

        parameters = {key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()}
        if self.result is not None:
            parameters["result_file"] = str(self.result)
            required = [*required, self.result]
        source = REPOSITORY / "notebooks" / self.source
        limit = time_limit("page") if limit is None else limit
        started = time.time()
        origin_path(self.reports, self._name).unlink(missing_ok=True)
        try:
            execute(source, self.notebook, parameters, timeout=limit, required=required, threads=threads)
        except SqlibError:
            for path in required:
                path.unlink(missing_ok=True)
            if self.notebook.exists():
                self.render()
            raise
        if self.kind != "train":  # what a run leaves says it itself
            write_origin(self.study, self.reports, self._name, started, required, self.about(), self.source)

    def about(self) -> list[Run]:
        """The runs of the study that the page is about."""
        if self.run is not None:
            return [self.run]
        chosen = self.study.runs()
        if self.dataset is not None:
            chosen = [run for run in chosen if run.dataset == self.dataset]
        return [run for run in chosen if self.network in (None, run.network)]

    def render(self) -> None:
        """Make the HTML from the executed notebook."""
        from sqlib.report.html import render

        index = (self.study.title, os.path.relpath(self.reports / "index.html", self.html.parent))
        crumbs = [index, (self.title, None)]
        if self.run is not None:
            crumbs.insert(1, self._link(Page.compare(self.study, self.run.dataset, self.run.network)))
        before, after = self._neighbours()
        before = before or (index if self.run is None else None)
        render(self.notebook, self.html, self.title, crumbs, self.facts(), before, after, self._related())

    def _neighbours(self) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
        """The pages before and after in reading order: those about the whole study, its sweeps, or runs of the same kind.

        The sweeps stand for themselves: not every study makes them, and no page waits for them.
        """
        alone = self.run is not None or self.kind == "sweep"
        order = [
            page
            for page in Page.all(self.study)
            if (page.kind == self.kind if alone else page.run is None and page.kind != "sweep")
        ]
        at = [page.html for page in order].index(self.html) if self.html in [page.html for page in order] else None
        before = self._link(order[at - 1]) if at else None
        after = self._link(order[at + 1]) if at is not None and at + 1 < len(order) else None
        return before, after

    def _related(self) -> tuple[str, list[tuple[str, list[tuple[str, str]]]]] | None:
        """(heading, [(what, links)]) of pages about the same runs: a comparison's runs, a run's comparison and other page."""
        if self.run is not None:
            others = [Page.train(self.study, self.run)]
            if self.run.seed == self.study.seeds[0]:
                others.append(Page.saliency(self.study, self.run))
            same = [self._link(page) for page in others if page.kind != self.kind]
            beside = self._link(Page.compare(self.study, self.run.dataset, self.run.network))
            return "Related pages", [("The same run", same)] * bool(same) + [("Beside the other setups", [beside])]
        if self.kind != "compare":
            return None
        found: dict[str, list[tuple[str, str]]] = {}
        for run in self.study.runs():
            page, compared = Page.train(self.study, run), Page.compare(self.study, run.dataset, run.network)
            if compared.html == self.html and page.html.exists():
                what = f"{run.setup.name}, {run.training.replace('_', '-')}"
                found.setdefault(what, []).append((f"seed {run.seed}", self._link(page)[1]))
        return ("The runs compared here", list(found.items())) if found else None

    def _link(self, other: "Page") -> tuple[str, str]:
        return other.title, os.path.relpath(other.html, self.html.parent)

    @property
    def _name(self) -> str:
        return self.html.relative_to(self.reports).with_suffix("").as_posix()

    def _origin(self) -> dict:
        """Where what is on the page comes from, as it was written down when the notebook ran; else as things are now."""
        recorded = origin_path(self.reports, self._name)
        if self.kind == "train" and (self.html.parent / "result.json").exists():
            result = results.read_result(self.html.parent)
            own = result["provenance"]
            of_run = {"digest": result["digest"], "seeds": [self.run.seed], "data": {self.run.dataset: own.get("data")}}
            notebook = {"name": self.source, "sha256": own.get("notebook")}
            origin = {**dict.fromkeys(provenance()), **own, **of_run, "notebook": notebook}
        else:
            try:
                origin = read_origin(recorded)
            except SqlibError:  # made by older code, or the file was damaged: the page itself may be right
                unknown = {"unknown": "when this was made was not written down; what follows is of the rendering"}
                origin = {**provenance(), **unknown}
        return origin

    def facts(self) -> dict[str, str]:
        """What stands at the foot of the page: which run, the command that makes it, from what, when, on what."""
        facts = {"Study": self.study.name, "Run it again": f"{_python()} -m sqlib {self.command}"}
        origin = self._origin()
        if self.run is not None:
            facts["Run"] = self.run.id
        if "unknown" in origin:
            facts["Origin"] = origin["unknown"]
        if "digest" in origin:
            facts["Parameters, digest"] = origin["digest"]
        if origin.get("seeds"):
            facts["Seed" if len(origin["seeds"]) == 1 else "Seeds"] = ", ".join(map(str, origin["seeds"]))
        if (origin.get("notebook") or {}).get("sha256"):
            facts["Notebook, SHA-256"] = f"{origin['notebook']['name']}, {origin['notebook']['sha256'][:12]}"
        for dataset, sums in (origin.get("data") or {}).items():
            if sums:
                short = ", ".join(f"{name} {stated[:12]}" for name, stated in sums.items())
                facts[f"{dataset_title(dataset)}, SHA-256"] = short
        git = origin["git"]
        facts["Code"] = f"{git['revision'][:12]}{' with changes' if git['dirty'] else ''}" if git else "not in git"
        facts["Made (UTC)"] = " to ".join(
            str(t)[:16].replace("T", " ") for t in (origin["started"], origin["ended"]) if t
        )
        facts["Machine"] = (
            f"{origin['cpu']}, {origin['cores']} cores, {self.study.threads} thread{'s' * (self.study.threads > 1)} a run"
        )
        if origin.get("device", "cpu") != "cpu":
            facts["Trained on"] = origin["device"]
        if precision := origin.get("precision"):
            facts["Convolutions in training"] = precision if isinstance(precision, str) else ", ".join(precision)
        packages = origin["packages"]
        facts["Versions"] = f"Python {origin['python']}, torch {packages['torch']}, captum {packages['captum']}"
        return facts
