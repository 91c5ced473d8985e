"""The job of a training run: what is measured of it when it has finished."""

import math

import torch
from torch import Tensor

from sqlib.checked import SqlibError
from sqlib.hardware import prepare
from sqlib.maps.attribution import saliency_map
from sqlib.measures import faithfulness, family
from sqlib.networks.cost import cost
from sqlib.networks.network import Network
from sqlib.networks.passes import predict
from sqlib.study.parameters import Run
from sqlib.study.results import Measurements
from sqlib.training.examples import Dataset, to_float


def check_learned(run: Run, history: list[dict]) -> None:
    """Raises SqlibError for a network that has learned nothing: its last validation accuracy is what guessing gives.

    By guessing one in ten is right; four standard deviations more than that come up once in 30,000 tries.
    """
    images = run.parameters.validation_images
    guessing = 0.1 + 4 * math.sqrt(0.1 * 0.9 / images)
    found = history[-1]["val_accuracy"]
    if found <= guessing:
        raise SqlibError(
            f"{run.id}: training has failed: after epoch {history[-1]['epoch']} it is right about {found:.1%} of "
            f"{images:,} validation images, and guessing is right about up to {guessing:.1%}; lower "
            f"training.learning_rate{'' if run.setup.is_float else ', or start the clips lower (training.clip.start)'}"
        )


def measure_trained(run: Run, model: Network, history: list[dict], data: Dataset) -> Measurements:
    """The finished run's measurements on the test images, on the model's device: the only place where they are used.

    Maps: gradient of the predicted class. Faithfulness: deletion on the first `faithfulness_images` test images.
    Raises SqlibError, before it looks at them, for a run that has learned nothing (`check_learned`).
    """
    check_learned(run, history)
    prepare(run.threads)
    device = next(model.parameters()).device
    images = to_float(data.test_images[: run.evaluation.images]).to(device)
    labels = data.test_labels[: run.evaluation.images].to(device)
    predicted = predict(model, images).argmax(dim=1)
    maps = saliency_map(model, images, predicted)
    # A thousand at a time: all of them, sorted in float64, would take more memory than everything else.
    parts = list(zip(maps.split(1000), images.split(1000), strict=True))
    each = {row: torch.cat([row.of(*part) for part in parts]) for row in family("clarity")}

    few = min(run.evaluation.faithfulness_images, len(images))
    deletion, random = (
        faithfulness.deletion_curve(model, images[:few], labels[:few], order.to(device))
        for order in (
            faithfulness.salient_order(maps[:few]),
            faithfulness.random_order(few, maps[0].numel(), seed=run.seed),
        )
    )
    deletion_auc, random_auc = faithfulness.area_under(deletion), faithfulness.area_under(random)
    return Measurements(
        metrics={
            "val_accuracy": history[-1]["val_accuracy"],
            "test_accuracy": float((predicted == labels).double().mean()),
            **{row.name: float(_mean(values)) for row, values in each.items()},
            "deletion_auc": deletion_auc,
            "random_auc": random_auc,
            "faithfulness_gap": random_auc - deletion_auc,
            "train_seconds": sum(entry["seconds"] for entry in history),
            **cost(model),
        },
        curves={"fractions": list(faithfulness.FRACTIONS), "deletion": deletion.tolist(), "random": random.tolist()},
        per_image={
            "prediction": predicted.cpu(),
            "correct": (predicted == labels).to(torch.uint8).cpu(),
            **{row.per_image: values.to(_stored(values)).cpu() for row, values in each.items()},
        },
    )


def _mean(values: Tensor) -> Tensor:
    """The mean of the values that are numbers; of truth values their share, in float64, since float32 does not hold it."""
    return values.double().mean() if values.dtype == torch.bool else values.nanmean()


def _stored(values: Tensor) -> torch.dtype:
    return torch.uint8 if values.dtype == torch.bool else values.dtype
