"""Which pages a study has: the notebook behind each, where it is kept, and the HTML made of it."""

import os
from dataclasses import dataclass
from pathlib import Path

from sqlib import runs
from sqlib.config import REPOSITORY, Run, SqlibError, Study, dataset_title
from sqlib.sweeps import load_sweep

TIME_LIMITS = {"train": 24 * 3600, "page": 3600}  # seconds for a notebook: far more than it needs, but an end


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

    @classmethod
    def _plain(cls, study: Study, kind: str, source: str, name: str, title: str, command: str) -> "Page":
        reports = runs.reports_root() / study.name
        executed, result = reports / "notebooks" / f"{name}.ipynb", reports / "results" / f"{name}.json"
        return cls(study, kind, source, executed, reports / f"{name}.html", result, title, command)

    @classmethod
    def data(cls, study: Study, dataset: str) -> "Page":
        command = f"data {dataset} --study {study.name}"
        return cls._plain(
            study, "data", "1_data.ipynb", f"data_{dataset}", f"The data: {dataset_title(dataset)}", command
        )

    @classmethod
    def compare(cls, study: Study, dataset: str, network: str) -> "Page":
        name = runs.compare_page(study, dataset, network)
        more = f", {network}" if len(study.networks) > 1 else ""
        title, command = (
            f"Comparison: {dataset_title(dataset)}{more}",
            f"compare {study.name} {dataset} --network {network}",
        )
        return cls._plain(study, "compare", "4_compare.ipynb", name, title, command)

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
        return cls._plain(study, "explanations", "8_explanations.ipynb", name, title, command)

    @classmethod
    def sweep(cls, study: Study, name: str) -> "Page":
        title = load_sweep(name).title
        return cls._plain(study, "sweep", "7_parameters.ipynb", f"sweep_{name}", title, f"sweep {study.name} {name}")

    @classmethod
    def train(cls, study: Study, run: Run) -> "Page":
        folder = run.folder(runs.reports_root() / study.name)
        paths = folder / "notebook.ipynb", folder / "train.html"
        words = f"Training {run.id}", f"train {study.name} {run.id}"
        return cls(study, "train", "2_train.ipynb", *paths, None, *words, run)

    @classmethod
    def saliency(cls, study: Study, run: Run) -> "Page":
        folder = run.folder(runs.reports_root() / study.name)
        paths = folder / "saliency.ipynb", folder / "saliency.html", folder / "saliency.json"
        words = f"Saliency of {run.id}", f"saliency {study.name} {run.id}"
        return cls(study, "saliency", "3_saliency.ipynb", *paths, *words, run)

    @classmethod
    def all(cls, study: Study) -> list["Page"]:
        """Every page of a study but its index, in reading order."""
        all_runs = study.runs()
        return [
            *(cls.compare(study, dataset, network) for dataset in study.datasets for network in study.networks),
            cls.tables(study),
            cls.claims(study),
            *(cls.explanations(study, dataset) for dataset in study.datasets if study.quality),
            *(cls.sweep(study, name) for name in study.sweeps),
            *(cls.data(study, dataset) for dataset in study.datasets),
            *(cls.train(study, run) for run in all_runs),
            *(cls.saliency(study, run) for run in all_runs if run.seed == study.seeds[0]),
        ]

    @property
    def reports(self) -> Path:
        return runs.reports_root() / self.study.name

    def execute(
        self, parameters: dict, required: list[Path], threads: int = 1, limit: float = TIME_LIMITS["page"]
    ) -> None:
        """Execute the notebook; if it fails, its page shows how far it came. SqlibError as `notebook.execute`."""
        from sqlib.execution import execute

        parameters = {key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()}
        if self.result is not None:
            parameters["result_file"] = str(self.result)
            required = [*required, self.result]
        source = REPOSITORY / "notebooks" / self.source
        try:
            execute(source, self.notebook, parameters, timeout=limit, required=required, threads=threads)
        except SqlibError:
            if self.notebook.exists():
                self.render()
            raise

    def render(self) -> None:
        """Make the HTML from the executed notebook."""
        from sqlib.pages import render

        here = os.path.relpath(self.reports / "index.html", self.html.parent)
        crumbs = [(self.study.title, here), (self.title, None)]
        same = [page for page in Page.all(self.study) if page.kind == self.kind]
        at = [page.html for page in same].index(self.html) if self.html in [page.html for page in same] else None
        before = self._link(same[at - 1]) if at else None
        after = self._link(same[at + 1]) if at is not None and at + 1 < len(same) else None
        render(self.notebook, self.html, self.title, crumbs, self.facts(), previous=before, next=after)

    def _link(self, other: "Page") -> tuple[str, str]:
        return other.title, os.path.relpath(other.html, self.html.parent)

    def facts(self) -> dict[str, str]:
        """What stands at the foot of the page: which run, the command that makes it, when, on what."""
        facts = {"Study": self.study.name, "Made by": f"python -m sqlib {self.command}"}
        origin = runs.provenance()
        if self.run is not None:
            facts["Run"] = self.run.id
            result_file = self.html.parent / "result.json"
            if result_file.exists():
                result = runs.read_result(self.html.parent)
                origin = {**origin, **result["provenance"]}
                facts["Parameters, digest"] = result["digest"]
        git = origin["git"]
        facts["Code"] = f"{git['revision'][:12]}{' with changes' if git['dirty'] else ''}" if git else "not in git"
        facts["Made (UTC)"] = " to ".join(
            str(t)[:16].replace("T", " ") for t in (origin["started"], origin["ended"]) if t
        )
        facts["Machine"] = f"{origin['cpu']}, {origin['cores']} cores, {self.study.threads} thread(s) a run"
        if origin.get("device", "cpu") != "cpu":
            facts["Trained on"] = origin["device"]
        if "precision" in origin:
            facts["Convolutions in training"] = origin["precision"]
        packages = origin["packages"]
        facts["Versions"] = f"Python {origin['python']}, torch {packages['torch']}, captum {packages['captum']}"
        return facts
