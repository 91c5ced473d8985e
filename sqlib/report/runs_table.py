"""What the runs of a study measured, gathered into tables: means with their spread, and paired differences in words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sqlib.checked import SqlibError
from sqlib.data.datasets import dataset_title
from sqlib.files import read_json, reading
from sqlib.measures import Measure, row_of
from sqlib.report.words import training_title
from sqlib.study.parameters import Study, load_study
from sqlib.study.results import any_reports_folder, collect

if TYPE_CHECKING:
    import pandas


def find_reports(reports: str | Path | None = None) -> Path:
    """The folder of a study's reports: the given one, else `runs.any_reports_folder`. SqlibError when it has no results."""
    folder = any_reports_folder() if reports is None else Path(reports)
    if (folder / "results/runs.csv").exists() or next(folder.glob("runs/*/*/*/*/seed*/result.json"), None):
        return folder.resolve()
    raise SqlibError(f"no finished run in {folder}: make some with `make smoke` or `make reproduce`")


def study_of(reports: Path) -> Study:
    """The study that a folder of reports belongs to: as its index stamp says, else `params/<folder's name>.yaml`
    (`params/paper.yaml` for `reference`). Raises SqlibError."""
    stamp = Path(reports) / "stamps" / "index.json"
    if stamp.exists():
        try:
            return Study.model_validate_json(json.dumps(read_json(stamp)["study"]))
        except (KeyError, ValueError):
            pass  # written by an older version: the file in params/ is next
    name = Path(reports).name
    return load_study("paper" if name == "reference" else name)


def runs_of(study: Study, reports: Path) -> "tuple[pandas.DataFrame, list[str], list[str]]":
    """(one row a run as `sqlib.study.results.collect`, ids of the runs that are missing, ids known only from `runs.csv`).

    Published results hold the folders of some runs only; the numbers of the others are in `results/runs.csv`.
    """
    import pandas

    rows = collect(study, reports)
    keys = ["dataset", "network", "setup", "training", "seed"]
    found = {tuple(row) for row in rows[keys].itertuples(index=False, name=None)}
    table = Path(reports) / "results" / "runs.csv"
    listed = []
    wanted = {(r.dataset, r.network, r.setup.name, r.training, r.seed): r.id for r in study.runs()}
    if table.exists():
        with reading(table):
            known = pandas.read_csv(table)
            at = [tuple(row) for row in known[keys].itertuples(index=False, name=None)]
        only = [key in wanted and key not in found for key in at]
        listed = [wanted[key] for key, chosen in zip(at, only, strict=True) if chosen]
        if listed:
            every = list(dict.fromkeys([*rows.columns, *known.columns]))  # a measure that is new is missing there
            known = known[only].reindex(columns=every)
            rows = pandas.concat([rows, known], ignore_index=True) if len(rows) else known
            found |= {key for key, chosen in zip(at, only, strict=True) if chosen}
    place = {key: i for i, key in enumerate(wanted)}
    order = sorted(range(len(rows)), key=lambda i: place[tuple(rows.iloc[i][keys])])
    missing = [run_id for key, run_id in wanted.items() if key not in found]
    return rows.iloc[order].reset_index(drop=True), missing, listed


def deployed_of(study: Study, reports: Path):
    """One row a run whose packed and ONNX forms were compared with it (`sqlib.study.jobs.deployed`): a table to show."""
    import pandas

    rows, measured = [], {}
    for dataset in study.datasets:
        path = Path(reports) / "results" / f"deployed_{dataset}.json"
        measured |= read_json(path) if path.exists() else {}
    for run in study.runs():
        if run.id in measured:
            found = measured[run.id]
            row = {
                "data set": dataset_title(run.dataset),
                "setup": run.setup.name,
                "training": f"{training_title(run.training)}, seed {run.seed}",
            }
            with reading(Path(reports) / "results" / f"deployed_{run.dataset}.json"):
                for form, words in (("packed", "integer model"), ("onnx", "ONNX")):
                    part = found[form]
                    row[f"{words}, same predictions"] = f"{part['same_predictions']:,} of {part['images']:,}"
                    row[f"{words}, logits"] = f"{part['largest_relative']:.1e}" if part["largest_relative"] else "0"
                    row[f"{words}, file, kB"] = f"{part['bytes'] / 1000:,.1f}"
            rows.append(row)
    return pandas.DataFrame(rows)


def reference_setup(study: Study) -> str:
    """The setup that the others are compared with: the first that is not quantised, else the study's first."""
    return next((setup.name for setup in study.setups if setup.is_float), study.setups[0].name)


def paired(df, column: str, setup: str, training: str, reference: str, other_training: str | None = None) -> np.ndarray:
    """Differences (one a seed that both have) of a column: `setup` minus `reference`; with `other_training`, `setup`
    under `training` minus `reference` under that one. `df`: rows of one data set and network."""

    def column_of(name: str, kind: str):
        rows = df[(df["setup"] == name) & (df["training"] == kind)]
        return dict(zip(rows["seed"], rows[column].astype(float), strict=True))

    new, old = column_of(setup, training), column_of(reference, other_training or training)
    return np.array([new[seed] - old[seed] for seed in new if seed in old and np.isfinite(new[seed] - old[seed])])


def in_words(differences: np.ndarray, decimals: int = 2, factor: float = 1, unit: str = "") -> str:
    """Paired differences as words: "lower by 0.12 (in all 3 seeds)", "(in 2 of 3 seeds)"; honest about one seed."""
    differences = np.asarray(differences, dtype=float) * factor
    if not len(differences):
        return "not known (runs are missing)"
    mean = differences.mean()
    if round(abs(mean), decimals) == 0:
        words = f"the same within {10.0**-decimals:.{decimals}f}{unit}"
    else:
        words = f"{'higher' if mean > 0 else 'lower'} by {abs(mean):.{decimals}f}{unit}"
    if len(differences) == 1:
        return f"{words} (one seed)"
    same = int((np.sign(differences) == np.sign(mean)).sum())
    if round(abs(mean), decimals) == 0:
        return words
    return f"{words} (in {'all' if same == len(differences) else f'{same} of'} {len(differences)} seeds)"


def summary(df, columns: Sequence[str], reference: str, interval: bool = False):
    """(table to show, table to compute with) of some measures by data set, network, setup and training.

    Shown: "mean ± standard deviation over the seeds (mean paired difference to `reference`)"; with `interval` its 95%
    interval over the seeds (Student's t) in place of the deviation. The other one has a row a group and measure: `n, mean,
    sd, low, high, paired, difference, difference_sd`, in the units of runs.csv.
    """
    import pandas
    from scipy.special import stdtrit

    keys = ["dataset", "network", "setup", "training"]
    shown, long = [], []
    for group, rows in df.groupby(keys, sort=False):
        group = dict(zip(keys, group, strict=True))
        same = df[(df["dataset"] == group["dataset"]) & (df["network"] == group["network"])]
        words = {"dataset": dataset_title(group["dataset"]), "training": training_title(group["training"])}
        line = {**group, **words, "n": len(rows)}
        for column in columns:
            measure, values = row_of(column), rows[column].dropna().to_numpy(dtype=float)
            differences = paired(same, column, group["setup"], group["training"], reference)
            mean, sd = mean_sd(values)
            difference, difference_sd = mean_sd(differences)
            half = float("nan") if np.isnan(sd) else stdtrit(len(values) - 1, 0.975) * sd / len(values) ** 0.5
            ends = {"low": mean - half, "high": mean + half}
            spread = {"difference": difference, "difference_sd": difference_sd, "paired": len(differences)}
            long.append({**group, "measure": column, "n": len(values), "mean": mean, "sd": sd, **ends, **spread})
            text = with_spread(values, measure, tuple(ends.values()) if interval else None)
            if group["setup"] != reference and not np.isnan(difference):
                text += f" ({measure.factor * difference:+.{measure.decimals}f})"
            line[measure.heading] = text.replace("-", "−")
        shown.append(line)
    return to_show(shown), pandas.DataFrame(long)


def to_show(lines: list[dict]) -> "pandas.DataFrame":
    """The lines as a table, without the network where all have the same."""
    import pandas

    table = pandas.DataFrame(lines)
    return table.drop(columns="network") if len(table) and table["network"].nunique() == 1 else table


def with_spread(values: np.ndarray, measure: Measure, ends: tuple[float, float] | None = None) -> str:
    """'mean ± standard deviation' of a measure's values, or 'mean [low, high]'; the mean of a single one, '–' of none."""
    mean, sd = (f"{measure.factor * value:.{measure.decimals}f}" for value in mean_sd(values))
    if len(values) < 2:
        return mean if len(values) else "–"
    low, high = (f"{measure.factor * end:.{measure.decimals}f}" for end in ends or (0, 0))
    return f"{mean} [{low}, {high}]" if ends else f"{mean} ± {sd}"


def mean_sd(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (of a sample); NaN for what there are too few values for."""
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan")
