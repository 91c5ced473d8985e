"""Claims given verdicts: `params/claims.yaml` (what is claimed, what would show it) against the runs of a study.

A claim is one paired comparison of one quantity, tested once on every data set. The rule stands in `RULE` and in the
YAML; `evaluate` applies it.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from sqlib.checked import Recorded, SqlibError, Strict, check_recorded, nearest, validate
from sqlib.data.datasets import dataset_title
from sqlib.measures import MEASURES, row_of
from sqlib.places import PARAMS
from sqlib.statistics import Interval, bootstrap, holm
from sqlib.study.parameters import Study
from sqlib.study.results import finished, load_per_image, load_quality, read_result
from sqlib.study.yaml import read_yaml

RULE = (
    "supported: significantly different from 0 in the claimed direction after Holm, the estimate at least the margin, and "
    "setups in the claimed order where one is given; contradicted: an effect of the margin or more in the claimed "
    "direction is ruled out after Holm; inconclusive: neither"
)
MEASURED = {"faithfulness_gap": "gradient/straight_through/deletion_corner_gap"}
"""Quantities with a value for each image where `sqlib.study.jobs.quality` has measured all runs, and their names there."""


def quantities() -> list[str]:
    """What a claim may be about: each measure of every run that is no cost. Those without values per image have one a run."""
    return [row.name for row in MEASURES.values() if row.every_run and row.family not in ("cost", "time")]


def beside(quantity: str) -> dict[str, str]:
    """What is shown beside a test, without a verdict: the same difference measured otherwise (`quality.safetensors`)."""
    row = row_of(quantity)
    if quantity not in MEASURED and row.family != "clarity":
        return {}
    on_gradients = MEASURED.get(quantity, f"gradient/straight_through/{row.per_image}")
    found = {"with the unclipped surrogate": on_gradients.replace("/straight_through/", "/unclipped/")}
    if "_corner_" in on_gradients:
        found["with the image's mean as fill"] = on_gradients.replace("_corner_", "_mean_")
        found["with the blurred image as fill"] = on_gradients.replace("_corner_", "_blurred_")
    return found


def on_maps(quantity: str) -> bool:
    """Whether a quantity is a name in `quality.safetensors`, `<method>/<surrogate>/<measure>`, and not a metric of the run."""
    return "/" in quantity


class Side(Strict):
    """One side of a comparison: a setup, or several to average, under one training."""

    setup: str | list[str]
    training: Literal["standard", "saliency_guided"]

    @field_validator("setup")
    @classmethod
    def _setup(cls, value: str | list[str]) -> str | list[str]:
        if not value or (isinstance(value, list) and len(set(value)) != len(value)):
            raise ValueError("needs at least one setup, and each only once")
        return value

    @property
    def setups(self) -> list[str]:
        return [self.setup] if isinstance(self.setup, str) else self.setup


class Comparison(Strict):
    """a minus b."""

    a: Side
    b: Side


class Claim(Strict):
    """One claim: see the head of `params/claims.yaml`."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    claim: str
    quantity: str
    comparison: Comparison
    direction: Literal["fall", "rise"]
    margin: Annotated[float, Field(gt=0)]
    order: list[str] = Field(default_factory=list)

    @field_validator("quantity")
    @classmethod
    def _quantity(cls, value: str) -> str:
        if value not in quantities():
            raise ValueError(f"unknown quantity{nearest(value, quantities())}")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "Claim":
        if self.order and len(self.order) < 2:
            raise ValueError("order: needs at least two setups")
        if self.comparison.a == self.comparison.b:
            raise ValueError("comparison: a and b are the same")
        return self


class NotTested(Strict):
    """A claim that the study cannot test, and why."""

    id: str
    claim: str
    why: str


class Claims(Strict):
    """The whole of `params/claims.yaml`."""

    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=5000, le=100_000)] = 5000
    seed: Annotated[int, Field(ge=0)] = 0
    claims: list[Claim]
    not_tested: list[NotTested] = Field(default_factory=list)


def load_claims(path: Path | None = None) -> Claims:
    """The claims in `path` (default `params/claims.yaml`); SqlibError (one line a fault) for anything amiss."""
    path = Path(path or PARAMS / "claims.yaml")
    content = read_yaml(path)
    parts: dict[str, list] = {}
    for key, model in (("claims", Claim), ("not_tested", NotTested)):
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise SqlibError(f"{path}: {key}: expected a list of 'key: value' blocks")
        parts[key] = [_entry(model, entry, path, f"{key}[{i}]") for i, entry in enumerate(entries)]
    claims = validate(Claims, {**content, **parts}, path)
    ids = [entry.id for entry in (*claims.claims, *claims.not_tested)]
    for name in ids:
        if ids.count(name) > 1:
            raise SqlibError(f"{path}: id '{name}' is given twice")
    if not claims.claims:
        raise SqlibError(f"{path}: claims: needs at least one")
    return claims


def _entry(model: type, content: dict, path: Path, place: str):
    try:
        return validate(model, content, path)
    except SqlibError as error:
        name = " ".join(str(content.get("id", "no id")).split())[:60]
        lines = (line.replace(": ", f": {place} ({name}): ", 1) for line in str(error).splitlines())
        raise SqlibError("\n".join(lines)) from None


# ---- the numbers ---------------------------------------------------------------------------------------------------
class Values:
    """Values of a study's runs, read once each: `of(...)` is (images,), or (1,) for a quantity of the run."""

    def __init__(self, study: Study, reports: Path):
        self.study, self.reports = study, Path(reports)
        self._kept: dict[tuple[str, str], np.ndarray | None] = {}
        done = [folder for run in study.runs() if finished(folder := run.folder(self.reports))]
        self.measured = bool(done) and all((folder / "quality.safetensors").exists() for folder in done)

    def of(self, run_id: str, quantity: str) -> np.ndarray | None:
        """None when the run is not made. SqlibError when a file of a finished run is missing or damaged."""
        key = (run_id, quantity)
        if key not in self._kept:
            self._kept[key] = self._read(self.reports / "runs" / run_id, quantity)
        return self._kept[key]

    def _read(self, folder: Path, quantity: str) -> np.ndarray | None:
        if not finished(folder):
            return None
        if self.measured and (name := MEASURED.get(quantity, quantity if on_maps(quantity) else None)):
            tensors = load_quality(folder)
            # A float network has no clip: its maps are the same under both surrogates, and kept once.
            values = tensors.get(name, tensors.get(name.replace("/unclipped/", "/straight_through/")))
            return None if values is None else values.astype(np.float64)
        if name := row_of(quantity).per_image:
            tensors = load_per_image(folder)
            if name not in tensors:
                raise SqlibError(f"{folder}/per_image.safetensors: holds no '{name}'; make the run again")
            values = tensors[name].double().numpy()
            if "dead" in tensors and quantity not in ("test_accuracy", "dead_map_rate"):
                values = np.where(tensors["dead"].bool().numpy(), np.nan, values)
            return values
        metrics = read_result(folder)["metrics"]
        value = metrics.get(quantity)
        return np.array([math.nan if value is None else float(value)])

    def side(self, dataset: str, network: str, side: Side, seed: int, quantity: str) -> np.ndarray | None:
        """The mean over the side's setups, image by image; None when one of its runs is not there."""
        parts = [self.of(f"{dataset}/{network}/{setup}/{side.training}/seed{seed}", quantity) for setup in side.setups]
        if any(part is None for part in parts):
            return None
        few = min(map(len, parts)) if on_maps(quantity) else None
        return np.mean([part[:few] for part in parts], axis=0)

    def differences(self, dataset: str, network: str, comparison: Comparison, quantity: str) -> np.ndarray:
        """(seeds, images) a - b over the seeds that have all of the comparison's runs; (0, 0) when none has."""
        rows = []
        for seed in self.study.seeds:
            a = self.side(dataset, network, comparison.a, seed, quantity)
            b = self.side(dataset, network, comparison.b, seed, quantity)
            if a is not None and b is not None:
                if on_maps(quantity):  # the first images of both: other surrogates are measured on fewer
                    few = min(len(a), len(b))
                    a, b = a[:few], b[:few]
                if a.shape != b.shape:
                    raise SqlibError(f"{dataset}, seed {seed}: runs measured on different numbers of images")
                rows.append(a - b)
        return np.stack(rows) if rows else np.empty((0, 0))


NOTHING = Interval(math.nan, math.nan, math.nan, 0, 0, math.nan, math.nan)


def evaluate(claims: Claims, study: Study, reports: Path) -> list[dict[str, Any]]:
    """One row a claim, data set and network: `results/claims.json`. Runs not made yet are left out, seed by seed.

    Keys: id, claim, dataset, network, quantity, comparison (words), direction, margin, effect, low, high, n_seeds,
    n_images, p (two-sided, of no difference), p_holm, p_margin_holm (of an effect just as large as the margin), ordered,
    verdict, overall (over all data sets), why, parts (its single setups, for the picture), beside (the same difference
    measured otherwise, not tested: label, effect, low, high, n_seeds, n_images), rule. Unknown values are NaN.
    SqlibError when the values of a finished run are not there (published results hold them for no or few runs).
    """
    values = Values(study, reports)
    places = [(dataset, network) for dataset in study.datasets for network in study.networks]
    rows = [_row(claims, claim, values, *place) for claim in claims.claims for place in places]
    for name in ("p", "p_margin"):
        for row, adjusted in zip(rows, holm([row[name] for row in rows])):
            row[f"{name}_holm"] = adjusted
    for row in rows:
        row["verdict"], row["why"] = judge(row, 1 - claims.level)
    for row in rows:
        found = {other["verdict"] for other in rows if other["id"] == row["id"]}
        row["overall"] = found.pop() if len(found) == 1 else "inconclusive"
    return rows


def _row(claims: Claims, claim: Claim, values: Values, dataset: str, network: str) -> dict[str, Any]:
    """A row of `evaluate` as far as it stands for itself: before the correction for the number of tests."""

    def interval(comparison: Comparison, quantity: str = claim.quantity) -> Interval:
        found = values.differences(dataset, network, comparison, quantity)
        return bootstrap(found, claims.resamples, claims.seed, claims.level) if found.size else NOTHING

    def ends(found: Interval) -> dict[str, float]:
        return {"effect": found.effect, "low": found.low, "high": found.high}

    found, sign = interval(claim.comparison), 1 if claim.direction == "rise" else -1
    compared = {*claim.comparison.a.setups, *claim.comparison.b.setups}
    clipped = any(setup.name in compared and not setup.is_float for setup in values.study.setups)
    otherwise = {
        label: interval(claim.comparison, name)
        for label, name in beside(claim.quantity).items()
        if values.measured and (clipped or "/unclipped/" not in name)
    }
    return {
        "id": claim.id,
        "claim": claim.claim,
        "dataset": dataset,
        "network": network,
        "quantity": claim.quantity,
        "comparison": in_words(claim.comparison),
        "direction": claim.direction,
        "margin": claim.margin,
        **ends(found),
        "n_seeds": found.n_seeds,
        "n_images": found.n_images if found.n_images > 1 else 0,
        "p": found.p_value(),
        "p_margin": found.p_value(sign * claim.margin),
        "ordered": _ordered(claim, values, dataset, network),
        "parts": [{"label": label, **ends(interval(part))} for label, part in _parts(claim.comparison)],
        "beside": [
            {"label": label, **ends(other), "n_seeds": other.n_seeds, "n_images": other.n_images}
            for label, other in otherwise.items()
            if other.n_seeds
        ],
        "rule": RULE,
    }


def judge(row: dict[str, Any], alpha: float = 0.05) -> tuple[str, str]:
    """(verdict, why) of a row with effect, direction, margin, p, p_holm, p_margin_holm, n_seeds, ordered."""
    if row["n_seeds"] == 0:
        return "inconclusive", "no seed has all the runs that are compared"
    if row["n_seeds"] == 1 or math.isnan(row["p"]):
        return "inconclusive", "one seed gives no interval over seeds"
    towards = row["effect"] * (1 if row["direction"] == "rise" else -1)
    if towards < row["margin"] and row["p_margin_holm"] < alpha:
        return "contradicted", f"a {row['direction']} of the margin or more is ruled out"
    if towards > 0 and row["p_holm"] < alpha:
        if towards < row["margin"]:
            return "inconclusive", f"there is a {row['direction']}, but it is estimated smaller than the margin"
        if row["ordered"] is False:
            return "inconclusive", "the ends differ as claimed, but the setups between are not in the claimed order"
        return (
            "supported",
            f"a {row['direction']} of at least the margin is estimated, different from 0 after Holm's correction",
        )
    if row["p"] < alpha:
        side = "in the claimed direction" if towards > 0 else "against the claimed direction"
        return "inconclusive", f"the interval excludes 0 {side}, but not after Holm's correction"
    return "inconclusive", "the interval includes both no effect and one that matters" if (
        towards + (row["high"] - row["low"]) / 2 >= row["margin"]
    ) else "the interval rules out the margin, but not after Holm's correction"


def _ordered(claim: Claim, values: Values, dataset: str, network: str) -> bool | None:
    """Whether the means of each setup of `order` and the next go the claimed way; None without an order or runs."""
    if not claim.order:
        return None
    training, sign = claim.comparison.a.training, 1 if claim.direction == "rise" else -1
    for before, after in zip(claim.order, claim.order[1:]):
        step = Comparison(a=Side(setup=after, training=training), b=Side(setup=before, training=training))
        found = values.differences(dataset, network, step, claim.quantity)
        if not found.size or np.isnan(found).all():
            return None
        if not sign * float(np.nanmean(found)) > 0:
            return False
    return True


def _parts(comparison: Comparison) -> list[tuple[str, Comparison]]:
    """The single comparisons whose average is tested, one for each setup of `a`; none where it is only one."""
    a, b = comparison.a, comparison.b
    if len(a.setups) == 1 or not (len(b.setups) == 1 or a.setups == b.setups):
        return []
    single = zip(a.setups, b.setups if len(b.setups) > 1 else b.setups * len(a.setups))
    return [
        (one, Comparison(a=Side(setup=one, training=a.training), b=Side(setup=other, training=b.training)))
        for one, other in single
    ]


def in_words(comparison: Comparison) -> str:
    """ "mean of w4a4, mixed and w2a2 minus fp32, standard training"."""
    a, b = comparison.a, comparison.b

    def named(side: Side) -> str:
        names = side.setups
        return names[0] if len(names) == 1 else f"mean of {', '.join(names[:-1])} and {names[-1]}"

    training = {"standard": "standard", "saliency_guided": "saliency-guided"}
    if a.training == b.training:
        return f"{named(a)} minus {named(b)}, {training[a.training]} training"
    if a.setups == b.setups:
        return f"{named(a)}, {training[a.training]} minus {training[b.training]} training"
    return f"{named(a)} ({training[a.training]}) minus {named(b)} ({training[b.training]})"


def complete(study: Study, reports: Path) -> bool:
    """Whether a run is finished here, and every finished run has its values per image: else nothing can be computed."""
    done = [folder for run in study.runs() if finished(folder := run.folder(reports))]
    return bool(done) and all((folder / "per_image.safetensors").exists() for folder in done)


class _Effect(Recorded):
    effect: float | None
    low: float | None
    high: float | None


class _Part(_Effect):
    label: str


class _Row(_Effect):
    """What readers of `results/claims.json` rely on in each row; null is a value that is not known."""

    id: str
    claim: str
    dataset: str
    quantity: str
    verdict: Literal["supported", "contradicted", "inconclusive"]
    network: str = ""
    parts: list[_Part] = []
    beside: list[_Part] = []


def read_claims(path: Path) -> list[dict[str, Any]]:
    """The rows of a `results/claims.json`, null as NaN; SqlibError when there is none or it is not such a list."""
    try:
        rows = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise SqlibError(f"{path}: no such file, and the values per image to make it are not here either") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SqlibError(f"{path}: cannot be read: {error}") from None
    check_recorded(list[_Row], rows, path)
    numbers = ("effect", "low", "high", "p", "p_margin", "p_holm", "p_margin_holm")

    def known(row: dict) -> dict:
        return {**row, **{k: math.nan for k in numbers if k in row and row[k] is None}}

    lists = ("parts", "beside")
    return [{**known(row), **{key: [known(part) for part in row.get(key, [])] for key in lists}} for row in rows]


def over_all(rows: list[dict[str, Any]]) -> str:
    """The verdict over all data sets in words, from a claim's rows: where they differ, how."""
    found = rows[0]["overall"]
    if len({row["verdict"] for row in rows}) < 2:
        return found
    return (
        f"{found}: the data sets differ ({', '.join(dataset_title(r['dataset']) + ' ' + r['verdict'] for r in rows)})"
    )


def unit_of(quantity: str) -> tuple[float, str, int]:
    """(factor, unit, decimals) to show differences of a quantity with: accuracies and rates in points."""
    row = row_of(quantity)
    return row.factor, f" {row.change_unit}".rstrip(), row.decimals


def change_in_words(row: dict[str, Any]) -> str:
    """ "−0.41 points [−0.60, −0.22]"; without an interval the effect alone, nothing where it is not known."""
    factor, unit, digits = unit_of(row["quantity"])
    if math.isnan(row["effect"]):
        return ""
    effect, low, high = (signed(row[key] * factor, digits) for key in ("effect", "low", "high"))
    return effect + unit + ("" if math.isnan(row["low"]) else f" [{low}, {high}]")


def effect_in_words(row: dict[str, Any], level: float = 0.95) -> str:
    """ "−0.41 points, 95% interval −0.60 to −0.22 (3 seeds, 10,000 images)"; says why where there is no interval."""
    factor, unit, digits = unit_of(row["quantity"])
    if math.isnan(row["effect"]):
        return "not known: no seed has all the runs"
    n_seeds, n_images = row.get("n_seeds", 0), row.get("n_images", 0)
    counts = f"{n_seeds} seed{'s' * (n_seeds != 1)}" + (f", {n_images:,} images" if n_images else ", one number a run")
    words = f"{signed(row['effect'] * factor, digits)}{unit}"
    if math.isnan(row["low"]):
        return f"{words}, no interval ({counts})"
    low, high = signed(row["low"] * factor, digits), signed(row["high"] * factor, digits)
    return f"{words}, {level:.0%} interval {low} to {high} ({counts})"


def signed(value: float, digits: int) -> str:
    """A difference with its sign, with a true minus; zero has none."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")
