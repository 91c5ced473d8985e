"""Post-training quantisation: a float network rounded to a setup's bits without training it again.

The baseline a practitioner tries first. Weights are rounded by the setup's own quantiser; each activation's clip is the one
that leaves the smallest mean squared error on a few hundred training images, layer after layer, so that a layer is
calibrated on what the rounded layers before it give.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.data.loading import load
from sqlib.files import write_atomically
from sqlib.maps.attribution import saliency_map
from sqlib.measures import clarity
from sqlib.networks.network import Network, build_model
from sqlib.networks.passes import evaluating, predict
from sqlib.quant.activations import pact
from sqlib.quant.bits import Setup
from sqlib.study import results
from sqlib.study.parameters import Run, Study
from sqlib.training.examples import stratified_indices, to_float

CALIBRATION_IMAGES = 500
CANDIDATES = 100
"""Clips tried for each activation: equal steps up to the largest value that enters it."""


def quantise(model: Network, setup: Setup, images: Tensor) -> Network:
    """A copy of a float network with the bits of `setup`, in eval mode.

    Args:
        model: network with float weights and activations.
        setup: the bits wanted.
        images: (N,C,28,28) in [0,1], training images to calibrate the clips on.

    Raises SqlibError when the network is quantised already.
    """
    if not model.setup.is_float:
        raise SqlibError(f"a network of setup '{model.setup.name}' is quantised already: expected a float one")
    with torch.random.fork_rng(devices=[]):
        first = model.get_submodule(model.layer_names[0])
        copy = build_model(
            model.name, setup, first.in_channels, model.get_submodule(model.layer_names[-1]).out_features
        )
    copy.load_state_dict(model.state_dict(), strict=False)  # all but the clips
    with evaluating(copy), torch.no_grad():
        for layer, clip in copy.clips().items():
            clip.alpha.fill_(best_clip(_entering(copy, layer, images), clip.bits))
    return copy.eval()


def best_clip(values: Tensor, bits: int) -> float:
    """The clip with the smallest mean squared error of `pact(values)` against ReLU, of `CANDIDATES` (1 if all <= 0)."""
    positive = values[values > 0].flatten()
    if not len(positive):
        return 1.0
    largest = positive.max()
    clips = [largest * k / CANDIDATES for k in range(1, CANDIDATES + 1)]
    errors = torch.stack([(pact(positive, clip, bits) - positive).square().mean() for clip in clips])
    return float(clips[int(errors.argmin())])


def _entering(model: Network, layer: str, images: Tensor) -> Tensor:
    """What enters the activation behind `layer` for these images."""
    seen = []
    hook = model.get_submodule(f"{layer}_act").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(images)
    finally:
        hook.remove()
    return seen[0]


def measure_rounded(study: Study, run: Run, folder: Path) -> dict[str, Any]:
    """A finished float run, rounded at every setup of the study and measured: a mapping by setup.

    Accuracy on validation (`val_accuracy`) and test images (`accuracy`; fractions), dead-map rate, Gini and entropy of the
    test maps (straight-through gradient of the predicted class), clips. SqlibError when the run is not there or not float.
    """
    torch.set_num_threads(run.threads)
    model, data = results.load_model(folder), load(run.dataset)
    calibration = to_float(data.train_images[stratified_indices(data.train_labels, CALIBRATION_IMAGES)])
    val = stratified_indices(data.validation_labels, run.parameters.validation_images)
    val_images, test_images = to_float(data.validation_images[val]), to_float(data.test_images[: run.evaluation.images])
    test_labels = data.test_labels[: run.evaluation.images]
    measured = {}
    for setup in study.setups:
        if setup.is_float:
            continue
        small = quantise(model, setup, calibration)
        logits = predict(small, test_images)
        maps = saliency_map(small, test_images, logits.argmax(dim=1))
        measured[setup.name] = {
            "val_accuracy": (predict(small, val_images).argmax(dim=1) == data.validation_labels[val])
            .double()
            .mean()
            .item(),
            "accuracy": (logits.argmax(dim=1) == test_labels).double().mean().item(),
            "dead_map_rate": clarity.dead(maps).double().mean().item(),
            "gini": clarity.gini(maps).nanmean().item(),
            "entropy": clarity.entropy(maps).nanmean().item(),
            "clips": {name: clip.alpha.item() for name, clip in small.clips().items()},
        }
    return measured


def round_float_runs(study: Study, dataset: str, reports: Path) -> dict[str, dict[str, Any]]:
    """`measure_rounded` of every float run on a data set, by its id; writes `results/post_training_<data set>.json`."""
    chosen = [run for run in study.runs() if run.dataset == dataset and run.setup.is_float]
    found = {run.id: measure_rounded(study, run, run.folder(reports)) for run in chosen}
    write_atomically(reports / "results" / f"post_training_{dataset}.json", files.to_json(found))
    return found
