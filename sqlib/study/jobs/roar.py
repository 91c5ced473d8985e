"""ROAR, remove and retrain: does a network still learn when the pixels that a map calls important are gone?

Deletion (`measures.faithfulness`) asks the explained network about images unlike any it has seen, so its accuracy may fall
for that alone. Hooker et al. 2019 ("A Benchmark for Interpretability Methods in Deep Neural Networks", section 3) remove
the pixels from the training *and* the evaluation images and train a new network on them: where accuracy still falls,
information was lost. A map is faithful when it falls further than under a random order of the pixels, which stands beside
every value.

What it cannot tell apart: the place of the removed pixels is visible and depends on the image, so it can carry the class
(Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods"). This lifts accuracy under a
map's order, never under the random one: a map may look less faithful here than it is.

Accuracy is measured on validation images; the test images are not looked at.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sqlib import files
from sqlib.checked import SqlibError, Strict
from sqlib.data.loading import load
from sqlib.files import write_atomically
from sqlib.maps.attribution import saliency_map
from sqlib.measures import clarity, faithfulness
from sqlib.networks.network import Network
from sqlib.networks.passes import predict
from sqlib.study import results
from sqlib.study.parameters import Run, Study, load_setup
from sqlib.training.examples import Dataset, stratified_indices, to_float
from sqlib.training.loop import fit


class Budget(Strict):
    """What is explained, what is removed and how much is trained: with these values 42 networks a data set.

    setups: of the explained runs; those that a study lacks are left out.
    fractions: of the pixels that are removed, each in networks of its own.
    seeds: of the retrained networks and of the random orders; not those of the study, so that no retrained network starts
        from the very weights that an explained one started from.
    images, epochs, validation_images: of the retrained networks, at most the study's own.
    """

    setups: tuple[str, ...] = ("fp32", "w2a2")
    fractions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.3, 0.5, 0.7, 0.9)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=2)] = (100, 101)
    images: Annotated[int, Field(ge=10, le=55_000)] = 5000
    epochs: Annotated[int, Field(ge=1, le=1000)] = 4
    validation_images: Annotated[int, Field(ge=10, le=5_000)] = 2500

    @field_validator("fractions", "seeds")
    @classmethod
    def _ascending(cls, values: tuple) -> tuple:
        if tuple(sorted(set(values))) != values:
            raise ValueError("expected ascending values, each only once")
        return values


# ---- the order of the pixels, and their removal ----------------------------------------------------------------------


def rank(maps: Tensor, chance: Tensor) -> Tensor:
    """(N, H*W) pixel indices by falling |map|; pixels of equal |map| stand in the order that `chance` has them in.

    A dead map (`clarity.dead`) is all ties: its order is `chance`, so that it is worth exactly what a random order is, and
    not what the place of its pixels in the image would make of it.

    Args:
        maps: (N,H,W), signed or not.
        chance: (N, H*W) a random order of the pixels of each image (`faithfulness.random_order`).
    """
    sizes = maps.abs().flatten(1).masked_fill(clarity.dead(maps)[:, None], 0.0)
    return chance.gather(1, sizes.gather(1, chance).argsort(dim=1, descending=True, stable=True))


def remove(images: Tensor, order: Tensor, fraction: float, fill: int) -> Tensor:
    """Copies of images (N,H,W) uint8 with the first pixels of `order` (N, H*W) replaced by `fill`, 0 to 255.

    fraction: of the pixels, 0 to 1; their number is rounded. Raises ValueError for a fraction outside, and for an order
    that does not fit the images.
    """
    pixels = images.flatten(1)
    if order.shape != pixels.shape:
        raise ValueError(f"order {tuple(order.shape)}: expected {tuple(pixels.shape)}, every pixel of every image")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction}: expected 0 to 1")
    count = round(fraction * pixels.shape[1])
    return pixels.scatter(1, order[:, :count], fill).view_as(images)


def mean_pixel(data: Dataset) -> int:
    """The mean pixel of the training images, 0 to 255, rounded: what is put in a removed pixel's place (Hooker et al.)."""
    return round(data.train_images.double().mean().item())


# ---- the retrained networks ------------------------------------------------------------------------------------------


def subset(data: Dataset, images: int, validation_images: int) -> Dataset:
    """A data set of so many training and validation images, equally many of each class, and of no test image."""
    train = stratified_indices(data.train_labels, images)
    validation = stratified_indices(data.validation_labels, validation_images)
    return dataclasses.replace(
        data,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train],
        validation_images=data.validation_images[validation],
        validation_labels=data.validation_labels[validation],
        test_images=data.test_images[:0],
        test_labels=data.test_labels[:0],
    )


def every_image(data: Dataset) -> Tensor:
    """(N,28,28) uint8: training images, then validation images; the rows of all maps and orders here."""
    return torch.cat([data.train_images, data.validation_images])


def removed_from(data: Dataset, order: Tensor, fraction: float) -> Dataset:
    """The data set without the first pixels of `order` (rows: `every_image`), the mean pixel in their place."""
    images = remove(every_image(data), order, fraction, mean_pixel(data))
    train, validation = images.split([len(data.train_images), len(data.validation_images)])
    return dataclasses.replace(data, train_images=train, validation_images=validation)


def retraining(study: Study, dataset: str, seed: int, budget: Budget) -> Run:
    """The run of a retrained network: float, trained the standard way with the study's recipe, on the budget.

    Images are not shifted: a shift would move the gaps that were made, in training images alone. `fit` gets ten validation
    images for its history; `retrained_accuracy` takes all of them, once.
    """
    base = study.model_copy(update={"setups": [load_setup("fp32")]})
    run = base.make_run(dataset, study.networks[0], "fp32", "standard", seed)
    epochs, images = min(budget.epochs, run.epochs), min(budget.images, run.parameters.images)
    own = {"epochs": epochs, "images": images, "validation_images": 10, "shift": 0}
    return run.model_copy(update={"epochs": epochs, "parameters": run.parameters.model_copy(update=own)})


def retrained_accuracy(run: Run, data: Dataset) -> float:
    """Accuracy, 0 to 1, on all validation images of `data`, of a network trained on its training images by `run`."""
    model, _ = fit(run, data)
    right = predict(model, to_float(data.validation_images)).argmax(dim=1) == data.validation_labels
    return right.double().mean().item()


def retrain_without(
    data: Dataset, maps: dict[str, Tensor], retrainings: list[Run], fractions: tuple[float, ...]
) -> tuple[list[float], list[list[float]], dict[str, list[list[float]]]]:
    """Retrained accuracies, 0 to 1: of the intact data set [seed], of a random order, and of each map's order [seed][fraction].

    Args:
        data: train and validation images, `subset`.
        maps: (N,28,28) by name, one for each of `every_image`.
        retrainings: one run a seed; its seed also draws the random order, which settles the ties of the maps too.
        fractions: of the pixels to remove.
    """
    intact, random, explained = [], [], {name: [] for name in maps}
    for run in retrainings:
        chance = faithfulness.random_order(*every_image(data).flatten(1).shape, seed=run.seed)
        intact.append(retrained_accuracy(run, data))
        random.append(_along(run, data, chance, fractions))
        for name, values in maps.items():
            explained[name].append(_along(run, data, rank(values, chance), fractions))
    return intact, random, explained


def _along(run: Run, data: Dataset, order: Tensor, fractions: tuple[float, ...]) -> list[float]:
    """The retrained accuracy at each fraction of one order."""
    return [retrained_accuracy(run, removed_from(data, order, fraction)) for fraction in fractions]


# ---- a study's runs --------------------------------------------------------------------------------------------------


def explained_runs(study: Study, dataset: str, budget: Budget) -> list[Run]:
    """The study's runs whose maps are judged: the budget's setups, every training, the first network and seed."""
    chosen = [
        study.make_run(dataset, study.networks[0], setup.name, training, study.seeds[0])
        for setup in study.setups
        if setup.name in budget.setups
        for training in study.trainings
    ]
    if not chosen:
        raise SqlibError(f"study '{study.name}' has none of the setups {', '.join(budget.setups)}: name others to ROAR")
    return chosen


def load_explained(study: Study, run: Run, reports: Path) -> Network:
    """The trained network of a run; SqlibError that says how to make it when it is not there."""
    folder = run.folder(reports)
    if not (results.finished(folder) and results.saved_model(folder)):
        raise SqlibError(
            f"{folder}: no trained model: make it first with `python -m sqlib train {study.name} {run.id}`"
        )
    return results.load_model(folder)


def maps_of(model: Network, images: Tensor, batch: int = 500) -> Tensor:
    """Straight-through gradient maps (N,28,28) of the predicted class for images (N,28,28) uint8."""
    parts = [to_float(part) for part in images.split(batch)]
    return torch.cat([saliency_map(model, part, predict(model, part).argmax(dim=1)) for part in parts])


def remove_and_retrain(study: Study, dataset: str, reports: Path, budget: Budget | None = None) -> dict[str, Any]:
    """ROAR of a study's runs on a data set; writes `results/roar_<data set>.json` under `reports` and returns its content.

    Needs the trained models of `explained_runs` under `reports/runs`. Deterministic: the same budget, the same numbers.

    The result: `intact[seed]`, `random[seed][fraction]` and `explained[run id]["accuracy"][seed][fraction]` are accuracies on
    validation images, 0 to 1. `gap[seed]` is random minus explained accuracy, the mean over the fractions: above 0, the map
    is more faithful than chance. `dead_map_rate`: of the maps of training and validation images together.
    SqlibError: a model is missing or damaged, the data cannot be had, the folder cannot be written.
    """
    budget = budget or Budget()
    torch.set_num_threads(study.threads)
    chosen = explained_runs(study, dataset, budget)
    models = {run.id: load_explained(study, run, reports) for run in chosen}
    retrainings = [retraining(study, dataset, seed, budget) for seed in budget.seeds]
    parameters = retrainings[0].parameters
    validation_images = min(budget.validation_images, study.training.validation_images)
    data = subset(load(dataset), parameters.images, validation_images)
    maps = {name: maps_of(model, every_image(data)) for name, model in models.items()}
    intact, random, accuracy = retrain_without(data, maps, retrainings, budget.fractions)
    found = {
        "dataset": dataset,
        "network": study.networks[0],
        "method": "gradient",
        "images": parameters.images,
        "epochs": retrainings[0].epochs,
        "validation_images": validation_images,
        "fill": mean_pixel(data),
        "fractions": list(budget.fractions),
        "seeds": list(budget.seeds),
        "intact": intact,
        "random": random,
        "explained": {run.id: _of_run(run, maps[run.id], accuracy[run.id], random) for run in chosen},
    }
    write_atomically(Path(reports) / "results" / f"roar_{dataset}.json", files.to_json(found))
    return found


def _of_run(run: Run, maps: Tensor, accuracy: list[list[float]], random: list[list[float]]) -> dict[str, Any]:
    gaps = torch.tensor(random, dtype=torch.float64) - torch.tensor(accuracy, dtype=torch.float64)
    return {
        "setup": run.setup.name,
        "training": run.training,
        "seed": run.seed,
        "dead_map_rate": clarity.dead(maps).double().mean().item(),
        "accuracy": accuracy,
        "gap": gaps.mean(dim=1).tolist(),
    }
