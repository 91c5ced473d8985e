"""What the notebooks find in results: a module a notebook, of functions that return frames, numbers and words.

They decide which sentence is true; how it reads stands in the notebook. `Report` is what most notebooks start from.
"""

import copy
from functools import cached_property
from pathlib import Path

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import to_json, write_atomically
from sqlib.measures import row_of
from sqlib.report.cells import Points, figures_to, tables_to
from sqlib.report.runs_table import find_reports, reference_setup, runs_of, study_of
from sqlib.report.words import training_title

FULL = 55_000
"""Training images from which on a study's numbers are meant as an answer."""


class Report:
    """The finished runs of a study as a notebook reads them, and where it writes.

    reports: the folder. None, as in a notebook opened by hand: the first that is there, and nothing is written (`kept` is
    False). Else `figure` and `table` write beside the results from here on.

    `runs` has a row a run, `planned` are all that the study asks for; `missing` and `listed` are ids of those that are not
    there, and of those of which only the numbers are.
    """

    def __init__(self, reports: str | Path | None = None):
        self.kept, self.folder = reports is not None, find_reports(reports)
        self.study = study_of(self.folder)
        self.reference, self.planned = reference_setup(self.study), self.study.runs()
        figures_to(self.folder / "figures" if self.kept else None)
        tables_to(self.folder / "tables" if self.kept else None)

    @cached_property
    def _found(self) -> tuple:
        return runs_of(self.study, self.folder)

    runs = cached_property(lambda self: self._found[0])
    missing = cached_property(lambda self: self._found[1])
    listed = cached_property(lambda self: self._found[2])

    def at(self, dataset: str, network: str) -> "Report":
        """The part of it that one data set and network have; SqlibError where no run of theirs is finished."""
        planned = [run for run in self.planned if (run.dataset, run.network) == (dataset, network)]
        ids = {run.id for run in planned}
        runs = self.runs[(self.runs["dataset"] == dataset) & (self.runs["network"] == network)]
        if runs.empty:
            made = f"`make reproduce STUDY={self.study.name}` makes them"
            raise SqlibError(f"{self.folder}: no finished run of {dataset}/{network}; {made}")
        part = copy.copy(self)
        part.dataset, part.network, part.planned, part.runs = dataset, network, planned, runs
        part.missing, part.listed = ([i for i in found if i in ids] for found in (self.missing, self.listed))
        part.title = dataset_title(dataset) + f", {network}" * (len(self.study.networks) > 1)
        return part

    @property
    def places(self) -> list["Report"]:
        """The parts, one for each data set and network that has a finished run; SqlibError where none is."""
        found = set(zip(self.runs["dataset"], self.runs["network"]))
        places = [self.at(d, n) for d in self.study.datasets for n in self.study.networks if (d, n) in found]
        return places or [self.at(self.study.datasets[0], self.study.networks[0])]

    @property
    def setups(self) -> list[str]:
        """The setups of which a run is finished."""
        return [setup.name for setup in self.study.setups if setup.name in set(self.runs["setup"])]

    @property
    def trainings(self) -> list[str]:
        """The trainings of which a run is finished."""
        return [training for training in self.study.trainings if training in set(self.runs["training"])]

    @property
    def seeds(self) -> list[int]:
        """The seeds of which a run is finished."""
        return sorted(map(int, set(self.runs["seed"])))

    @property
    def fewest(self) -> str:
        """The setup whose weights take the fewest bytes."""
        return min(self.setups, key=lambda name: self.runs[self.runs["setup"] == name]["weight_bytes"].min())

    @property
    def caveats(self) -> Points:
        """What a reader must know of these runs before their numbers: what is missing, one seed only, a small budget."""
        found, images = Points(), self.study.training.images
        if self.missing:
            found.append(f"**Missing**, and left out: {', '.join(self.missing)}.")
        if self.listed:
            found.append(f"The folders of {len(self.listed)} runs are not here; their numbers are those in `runs.csv`.")
        if len(self.seeds) == 1:
            found.append(
                "**One seed**: nothing here says how much a result would change with another; differences may be chance."
            )
        if images < FULL:
            found.append(
                f"Trained on {images:,} images only: the numbers show that everything works, and answer nothing."
            )
        return found

    @property
    def most_dead(self) -> str:
        """The run with the largest share of dead maps, in a sentence; whether that is more than the study allows itself."""
        worst, (allowed, _) = self.runs.loc[self.runs["dead_map_rate"].idxmax()], row_of("dead_map_rate").resolution
        if worst["dead_map_rate"] == 0:
            return "No run has a dead map."
        where = f"{dataset_title(worst['dataset'])}, {worst['setup']}, {training_title(worst['training'])} training"
        text = f"The most dead maps are {worst['dead_map_rate']:.2%}, in {where}, seed {worst['seed']}."
        if worst["dead_map_rate"] > allowed:
            text += f" That is more than the {allowed:.1%} which this study allows itself."
        return text

    def keep(self, long, name: str) -> None:
        """Write a frame with all its digits, a row a value: `tables/<name>.csv` and `results/<name>.json`."""
        if self.kept:
            content = long.to_csv(index=False, lineterminator="\n").encode()
            write_atomically(self.folder / "tables" / f"{name}.csv", content)
            write_atomically(self.folder / "results" / f"{name}.json", to_json(long.to_dict("records")))
