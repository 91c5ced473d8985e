"""Everything that is measured on the saliency maps of one finished run, method by method: `measure_quality`.

Four families on the maps of the class that the model predicts (clarity, faithfulness, sanity, robustness), and the
agreement of its maps with those of other runs. A measure is one value an image; `quality.safetensors` holds these
values, `quality.json` their means. Every `mean` stands beside its `n`, the images that have a value: dead maps do not.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sqlib import files
from sqlib.data.loading import load
from sqlib.files import write_atomically
from sqlib.hardware import keep_memory
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.maps.surrogates import SURROGATES
from sqlib.measures import faithfulness, family, robustness, sanity
from sqlib.measures.clarity import dead
from sqlib.networks.network import Network
from sqlib.networks.passes import predict
from sqlib.study import results
from sqlib.study.parameters import Quality, Run, Study
from sqlib.training.examples import Dataset, to_float

FEWER = {"clarity": 500, "faithfulness": 200, "sanity": 100, "robustness": 100}
"""Test images for the maps that are not straight-through gradients: one core does all of a run in a minute or two."""
FEWEST = {"clarity": 200, "faithfulness": 200, "sanity": 30, "robustness": 20}
"""Those for methods with `COSTLY` or more passes a map. Without a gradient, at 169 passes, robustness is left out."""
COSTLY = 16

Means = dict[str, Any]


def measure_quality(study: Study, run: Run, folder: Path) -> dict[str, Any]:
    """Measure a finished run; writes `quality.safetensors`, then `quality.json`, into its folder, and returns the latter.

    Needs `result.json` and the model of the run in `folder` (`<reports>/runs/<run id>`), and, beside it, those of the
    float runs it is compared with (see `agreement_with`). `study.quality` says on how many images, and whether for all
    methods.

    The result: `methods[method][surrogate]` holds `clarity`, `faithfulness`, `sanity` and `robustness`; `unclipped` is
    there where it differs (a quantised network, a method with a gradient). `random_curves[fill][direction]` are the
    controls over all images, `agreement` is `agreement_with`. The tensors are called `<method>/<surrogate>/<measure>`
    and `agreement/<run id>/<surrogate>/<measure>`, one value an image.
    Errors (SqlibError): the run is not there or damaged, the data cannot be had, the folder cannot be written.
    """
    wanted = study.quality or Quality()
    torch.set_num_threads(run.threads)
    keep_memory()
    model, data = results.load_model(folder), load(run.dataset)
    methods = METHODS if run.setup.name in wanted.every_method else ("gradient",)
    measured, random_curves, per_image = measure_maps_of(model, data, run.seed, wanted.images, methods)
    images, labels = to_float(data.test_images[: wanted.images]), data.test_labels[: wanted.images]
    reports = Path(folder).parents[len(Path(run.id).parts)]
    agreement, alike = agreement_with(study, run, reports, model, images, labels)
    tensors = save({name: values.float().contiguous() for name, values in (per_image | alike).items()})
    result = {
        "run": run.id,
        "result": results.read_result(folder)["files"],
        "files": {"quality.safetensors": hashlib.sha256(tensors).hexdigest()},
        "fractions": list(faithfulness.FRACTIONS),
        "parameters": {
            "images": wanted.images,
            "blur": faithfulness.BLUR,
            "radius": robustness.RADIUS,
            "samples": robustness.SAMPLES,
            "unmoved": sanity.UNMOVED,
        },
        "methods": measured,
        "random_curves": random_curves,
        "agreement": agreement,
    }
    write_atomically(Path(folder) / "quality.safetensors", tensors)
    write_atomically(Path(folder) / "quality.json", files.to_json(result))
    return result


def mean_and_count(values: Tensor) -> Means:
    """`mean` and `n` of the values that are numbers; the mean of none is NaN (null in JSON)."""
    return {"mean": float(values.double().nanmean()), "n": int((~values.isnan()).sum())}


def surrogates(model: Network, method: str) -> tuple[str, ...]:
    """The surrogates that give a method different maps: both for gradients of a network with PACT, else one."""
    return SURROGATES if model.clips() and METHODS[method].uses_gradient else SURROGATES[:1]


# ---- one model -----------------------------------------------------------------------------------------------------


def images_for(method: str, surrogate: str, images: int) -> dict[str, int]:
    """How many test images each family uses: all of `images` for the straight-through gradient, else fewer."""
    if (method, surrogate) == ("gradient", SURROGATES[0]):
        return dict.fromkeys(FEWER, images)
    few = FEWEST if METHODS[method].passes >= COSTLY else FEWER
    return {family: min(images, count) for family, count in few.items()}


def measure_maps_of(
    model: Network, data: Dataset, seed: int, count: int, methods: Iterable[str] = METHODS
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """`(methods, random_curves, per_image)` of `measure_quality` for a model, on the first `count` test images.

    seed: of all that is drawn at random.
    """
    images, labels = to_float(data.test_images[:count]), data.test_labels[:count]
    targets = predict(model, images).argmax(dim=1)
    controls = random_controls(model, images, labels, seed)
    measured: dict[str, Any] = {}
    per_image: dict[str, Tensor] = {}
    for method in methods:
        for surrogate in surrogates(model, method):
            how, number = (method, surrogate), images_for(method, surrogate, count)
            few = number["clarity"]
            maps = saliency_map(model, images[:few], targets[:few], *how)
            values = {row.per_image: row.of(maps, images[:few]).float() for row in family("clarity")}
            means: dict[str, Any] = {"clarity": {name: mean_and_count(v) for name, v in values.items()}}

            few = number["faithfulness"]
            means["faithfulness"], faithful = follow(model, images[:few], labels[:few], maps[:few], controls)
            values |= faithful

            few = number["sanity"]
            means["sanity"], similar = reaction(
                model, images[:few], targets[:few], *how, seed, first(maps, few, method)
            )
            values |= similar

            means["robustness"] = None
            if METHODS[method].uses_gradient:
                few = number["robustness"]
                values["sensitivity"] = robustness.sensitivity(
                    model, images[:few], targets[:few], *how, seed=seed, maps=first(maps, few, method)
                )
                means["robustness"] = {"sensitivity": mean_and_count(values["sensitivity"])}
            measured.setdefault(method, {})[surrogate] = means
            per_image |= {f"{method}/{surrogate}/{name}": v for name, v in values.items()}
    curves: dict[str, Any] = {}
    for (fill, direction), right in controls.items():
        curves.setdefault(fill, {})[direction] = right.double().mean(dim=1).tolist()
    return measured, curves, per_image


def first(maps: Tensor, few: int, method: str) -> Tensor | None:
    """The maps of the first images, which are those of these images alone; None for SmoothGrad, whose noise depends on others."""
    return None if method == "smoothgrad" and few < len(maps) else maps[:few]


def random_controls(model: Network, images: Tensor, labels: Tensor, seed: int) -> dict[tuple[str, str], Tensor]:
    """`faithfulness.still_right` in a random order, for each (fill, direction): the same for every method of a model.

    What is shown after inserting a share of the pixels is what is left after deleting the others, and the others of a
    random order come in a random order, too. So one pass of deletions gives both controls.
    """
    order = faithfulness.random_order(len(images), images[0, 0].numel(), seed)
    whole = predict(model, images).argmax(dim=1) == labels  # with nothing deleted yet, whatever the fill
    controls = {}
    for fill in faithfulness.FILLS:
        later = faithfulness.still_right(
            model, images, labels, order, fill, "deletion", (*faithfulness.FRACTIONS[1:], 1.0)
        )
        right = torch.cat([whole[None], later])
        controls[fill, "deletion"], controls[fill, "insertion"] = right[:-1], right[1:].flip(0)
    return controls


def follow(
    model: Network, images: Tensor, labels: Tensor, maps: Tensor, controls: dict[tuple[str, str], Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Faithfulness of maps: means `[fill][direction]` of `auc`, `random_auc`, `gap`, with the `curve`, and per-image values.

    Images with a dead map are left out of all of them, the random order's area included.
    """
    order, alive = faithfulness.salient_order(maps), ~dead(maps)
    means: dict[str, Any] = {}
    values: dict[str, Tensor] = {}
    for (fill, direction), random in controls.items():
        later = faithfulness.still_right(model, images, labels, order, fill, direction, faithfulness.FRACTIONS[1:])
        right = torch.cat([random[:1, : len(images)], later])  # where a curve starts, no order counts yet
        area, random_area = (
            faithfulness.areas_under(part.T).masked_fill(~alive, torch.nan)
            for part in (right, random[:, : len(images)])
        )
        gap = faithfulness.gap(area, random_area, direction)
        means.setdefault(fill, {})[direction] = {
            "auc": mean_and_count(area),
            "random_auc": mean_and_count(random_area),
            "gap": mean_and_count(gap),
            "curve": right[:, alive].double().mean(dim=1).tolist(),
        }
        values |= {f"{direction}_{fill}_auc": area, f"{direction}_{fill}_gap": gap}
    return means, values


def reaction(
    model: Network, images: Tensor, targets: Tensor, method: str, surrogate: str, seed: int, maps: Tensor | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sanity of a method: means after full randomisation, at each depth, and the flags of `sanity.Cascade`; per-image values.

    maps: of the images, where they are known.
    """
    cascade = sanity.randomisation(model, images, targets, method, surrogate, seed, maps)
    by_depth = {
        "spearman": cascade.spearman,
        "spearman_foreground": cascade.foreground,
        "ssim": cascade.ssim,
        "dead": cascade.dead.float(),
    }
    means = {name: mean_and_count(values[-1]) for name, values in by_depth.items()}
    depths = [
        {"layer": layer, **{name: mean_and_count(values[depth]) for name, values in by_depth.items()}}
        for depth, layer in enumerate(cascade.layers)
    ]
    flags = {"flagged": cascade.flagged, "flagged_foreground": cascade.flagged_foreground}
    values = {f"sanity_{name}": values[-1] for name, values in by_depth.items()}
    return {**means, **flags, "depths": depths}, values


# ---- agreement between models --------------------------------------------------------------------------------------


def agreement(
    model_a: Network, model_b: Network, images: Tensor, labels: Tensor, surrogate: str = "straight_through"
) -> dict[str, Tensor]:
    """Likeness of two models' gradient maps of the true label, (N,) for each measure of agreement; 1 is the same.

    NaN where one of the models is wrong, and where either map is dead.
    """
    right = (predict(model_a, images).argmax(dim=1) == labels) & (predict(model_b, images).argmax(dim=1) == labels)
    values = {row.name: images.new_full((len(images),), torch.nan) for row in family("agreement")}
    if right.any():
        maps = [saliency_map(model, images[right], labels[right], surrogate=surrogate) for model in (model_a, model_b)]
        for row in family("agreement"):
            values[row.name][right] = row.of(*maps).to(images)
    return values


def agreement_with(
    study: Study, run: Run, reports: Path, model: Network, images: Tensor, labels: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Agreement of a run's gradient maps with the float run's of the same seed; of a float run's with the other seeds'.

    The second is the *ceiling* of the first: how much two networks agree that differ in nothing but their seed. A float run
    that is not made, or whose model is not there, is left out, and the result names what was compared: a job needs all of
    them as its inputs.

    Args:
        study: its first float setup and its seeds say which runs to compare with, see `results.compared_with`.
        reports: where these runs are, of the same data set, network and training.
        model: the run's own.
        images, labels: (N,C,28,28) in [0,1] and (N,), on which they are compared.

    Returns ({run id: {surrogate: {measure: {mean, n}}}}, {`agreement/<run id>/<surrogate>/<measure>`: (N,) values}).
    Errors (SqlibError): a run that is there is damaged.
    """
    means: dict[str, Any] = {}
    per_image: dict[str, Tensor] = {}
    for other in results.compared_with(study, run):
        folder = other.folder(reports)
        if not (results.finished(folder) and results.saved_model(folder)):
            continue
        means[other.id], other_model = {}, results.load_model(folder)
        for surrogate in surrogates(model, "gradient"):
            values = agreement(model, other_model, images, labels, surrogate)
            means[other.id][surrogate] = {name: mean_and_count(v) for name, v in values.items()}
            per_image |= {f"agreement/{other.id}/{surrogate}/{name}": v for name, v in values.items()}
    return means, per_image
