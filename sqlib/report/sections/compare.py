"""The networks of one data set on the same images, from unquantised to the fewest bits: the numbers of notebook 4."""

import pandas as pd
import torch
from torch import Tensor

from sqlib.checked import SqlibError
from sqlib.maps.attribution import saliency_map
from sqlib.measures import family
from sqlib.measures.clarity import dead, gini
from sqlib.networks.passes import predict
from sqlib.report.runs_table import in_words, paired
from sqlib.report.sections import Report
from sqlib.report.words import training_title
from sqlib.study.claims import unit_of
from sqlib.study.jobs.quality import agreement
from sqlib.study.results import load_model, load_per_image, read_result
from sqlib.training.examples import Dataset, to_float

AGREEMENT = [row.name for row in family("agreement")]
Key = tuple[str, str, int]
"""Setup, training and seed of a network."""


class Networks:
    """The networks of a report whose folders are here, by setup, training and seed.

    `models`, deletion `curves` and `answers`, (images,) classes on the first `count` test `images`; `labels` are the true ones.
    """

    def __init__(self, report: Report, data: Dataset):
        self.report, self.count = report, min(run.evaluation.images for run in report.planned)
        self.images, self.labels = to_float(data.test_images[: self.count]), data.test_labels[: self.count]
        self.models, self.curves, self.answers = {}, {}, {}
        for run in report.planned:
            key, folder = (run.setup.name, run.training, run.seed), run.folder(report.folder)
            try:
                self.models[key], self.curves[key] = load_model(folder), read_result(folder)["curves"]
            except SqlibError:
                continue
            try:
                self.answers[key] = load_per_image(folder)["prediction"][: self.count]
            except SqlibError:
                self.answers[key] = predict(self.models[key], self.images).argmax(dim=1)

    @property
    def first_seed(self) -> list[Key]:
        """The networks of the smallest seed that is here, those of one training beside each other."""
        seed = min((key[2] for key in self.models), default=None)
        keys = [(setup, training, seed) for training in self.report.trainings for setup in self.report.setups]
        return [key for key in keys if key in self.models]

    def maps(self, keys: list[Key], at, targets: Tensor | None = None) -> Tensor:
        """(images, networks, 28, 28) gradient maps of the images `at`: of their labels, or of each network's own `answers`."""
        answers = [self.labels if targets is None else targets[key] for key in keys]
        every = [saliency_map(self.models[key], self.images[at], to[at]) for key, to in zip(keys, answers)]
        return torch.stack(every, dim=1)


def first_of_each_class(right: Tensor, labels: Tensor, classes: int) -> list[int]:
    """Of each class the first image that is right, where there is one. right: (images,) truth values."""
    return torch.cat([(right & (labels == c)).nonzero().flatten()[:1] for c in range(classes)]).tolist()


def right_under_all(nets: Networks, classes: int) -> list[int]:
    """Of each class the first test image that all networks of the first seed get right, where there is one."""
    if not nets.first_seed:
        return []
    right = torch.stack([nets.answers[key] == nets.labels for key in nets.first_seed]).all(dim=0)
    return first_of_each_class(right, nets.labels, classes)


def alive(maps: Tensor) -> str:
    """How many of the maps (images, networks, height, width) are dead, in a sentence."""
    empty = int(dead(maps.flatten(0, 1)).sum())
    return f"{empty} of these maps are dead, zero everywhere." if empty else "None of these maps is empty."


def clarity(maps: Tensor, keys: list[Key]) -> dict[tuple[str, str], float]:
    """Mean Gini index of each network's maps, by setup and training."""
    return {key[:2]: float(gini(maps[:, j]).nanmean()) for j, key in enumerate(keys)}


def clarity_ends(clarity: dict, report: Report) -> list[tuple[str, float, float, str]]:
    """(training, clarity at the reference, at the fewest bits, the change in words) of each training that has both."""
    found = []
    for training in report.trainings:
        before, after = clarity.get((report.reference, training)), clarity.get((report.fewest, training))
        if None not in (before, after) and report.reference != report.fewest:
            change = in_words([after - before], 3).removesuffix(" (one seed)")
            found.append((training_title(training), before, after, change))
    return found


def guided_sparser(clarity: dict, setups: list[str]) -> str:
    """For which setups guidance raises the clarity, and for which it does not; "" where no setup has both trainings."""
    both = [s for s in setups if all((s, t) in clarity for t in ("standard", "saliency_guided"))]
    raised = [s for s in both if clarity[s, "saliency_guided"] > clarity[s, "standard"]]
    others = [s for s in both if s not in raised]
    return (", ".join(raised) or "no setup") * bool(both) + (f" and not for {', '.join(others)}" if others else "")


def steps(report: Report, *quantities: str) -> list[tuple[str, ...]]:
    """(a step, what each of the quantities does in it, in words): under each training from the reference to the fewest bits,
    and at both from standard to guided training; differences are paired by seed."""

    def changes(name: str, *ends: str) -> tuple[str, ...]:
        found = []
        for quantity in quantities:
            factor, unit, decimals = unit_of(quantity)
            found.append(in_words(paired(report.runs, quantity, *ends), decimals, factor, unit))
        return name, *found

    here, there = report.reference, report.fewest
    trainings = report.trainings if here != there else []
    found = [changes(f"from {here} to {there}, {training_title(t)} training", there, t, here) for t in trainings]
    if {"standard", "saliency_guided"} <= set(report.trainings):
        title = "from standard to saliency-guided training at"
        found += [changes(f"{title} {s}", s, "saliency_guided", s, "standard") for s in dict.fromkeys([here, there])]
    return found


def agreements(nets: Networks) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(agreement of the quantised networks with the reference of their seed and training, of pairs of the reference's seeds).

    A row a pair: setup, training, seed (of the first), images, and the means of `AGREEMENT` over up to 200 of the images that
    both get right.
    """

    def compare(a: Key, b: Key) -> dict:
        right = (nets.answers[a] == nets.labels) & (nets.answers[b] == nets.labels)
        both = right.nonzero().flatten()[:200]
        values = agreement(nets.models[a], nets.models[b], nets.images[both], nets.labels[both])
        means = {measure: float(value.nanmean()) for measure, value in values.items()}
        return dict(zip(("setup", "training", "seed"), a)) | {"images": len(both)} | means

    reference, columns = nets.report.reference, ["setup", "training", "seed", "images", *AGREEMENT]
    keys = sorted(nets.models, key=lambda key: nets.report.setups.index(key[0]))
    pairs = [(key, (reference, *key[1:])) for key in keys if key[0] != reference]
    same = [key for key in keys if key[0] == reference]
    ceiling = [(a, b) for i, a in enumerate(same) for b in same[i + 1 :] if a[1] == b[1]]
    found = ([compare(a, b) for a, b in group if b in nets.models] for group in (pairs, ceiling))
    return tuple(pd.DataFrame(rows, columns=columns) for rows in found)


def held_to_ceiling(agreements: pd.DataFrame, ceiling: pd.DataFrame) -> list[tuple[str, str]]:
    """(training, its mean Spearman by setup, and which setups are below every pair of the ceiling with every seed) in words."""
    found = []
    for training, part in agreements.groupby("training", sort=False):
        rho = part.groupby("setup", sort=False)["spearman"]
        words = ", ".join(f"{setup} {value:.2f}" for setup, value in rho.mean().items())
        pairs = ceiling[ceiling["training"] == training]["spearman"]
        if len(pairs):
            below = [setup for setup, highest in rho.max().items() if highest < pairs.min()]
            words += f"; the ceiling is {pairs.mean():.2f} (pairs of seeds: {len(pairs)}), and "
            words += f"every seed of {', '.join(below)} is" if below else "no setup is"
            words += " below every such pair" + " with every seed" * (not below)
        found.append((training_title(training), words))
    return found


def useless(gap: pd.Series) -> str:
    """Which setups and trainings have a mean gap of 0 or less, in a sentence. gap: by training and setup."""
    names = [f"{setup} ({training_title(training)})" for (training, setup), value in gap.items() if value <= 0]
    if names:
        return f"No better than random order: {', '.join(names)}."
    return "In every setup the salient order hurts more than the random one."


CHANGES = ["different answers, %", "lost, %", "gained, %"]


def changes(nets: Networks) -> pd.DataFrame:
    """A row a quantised network: `CHANGES` in its answers against those of the reference of its seed and training."""
    rows = []
    for setup, training, seed in nets.models:
        before, after = nets.answers.get((nets.report.reference, training, seed)), nets.answers[setup, training, seed]
        if setup != nets.report.reference and before is not None:
            was, now = before == nets.labels, after == nets.labels
            shares = [100 * float(part.double().mean()) for part in (before != after, was & ~now, ~was & now)]
            rows.append([setup, training_title(training), 1, *shares])
    return pd.DataFrame(rows, columns=["setup", "training", "seeds", *CHANGES])


def lost(nets: Networks, keys: list[Key], most: int = 4) -> list[int]:
    """The first images that the reference among these networks gets right and another one does not."""
    base = next((key for key in keys if key[0] == nets.report.reference), None)
    if base is None or len(keys) < 2:
        return []
    wrong = torch.stack([nets.answers[key] != nets.labels for key in keys]).any(dim=0)
    return ((nets.answers[base] == nets.labels) & wrong).nonzero().flatten()[:most].tolist()
