"""Training, ordinary and saliency-guided: one step, and a run from its seed to its last epoch.

PACT adds `penalty * sum(alpha^2)` to the loss; its clips have their own parameter group and learning rate.
"""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sqlib.checked import SqlibError
from sqlib.hardware import bfloat16_units, prepare, replayed
from sqlib.maps.attribution import saliency_map
from sqlib.measures import clarity
from sqlib.networks.network import Network, build_model
from sqlib.networks.passes import computing_in, predict
from sqlib.quant.activations import SMALLEST_CLIP
from sqlib.quant.kernels import gradients_of
from sqlib.training.examples import Dataset, stratified_indices, to_float
from sqlib.training.guided import guided_loss, shifted
from sqlib.training.options import Recipe

MAP_IMAGES = 1000
"""Validation images, evenly from all classes, whose maps are looked at after each epoch."""


@dataclass
class Progress:
    """What `fit` hands to `on_epoch` after each epoch.

    `strip_images` and `strip_maps` (10,28,28): the same ten validation images each time, one of each class, and the
    signed gradient maps of the classes that the model predicts for them now.
    """

    model: Network
    history: list[dict]
    strip_images: Tensor
    strip_maps: Tensor
    epochs: int


class Diverged(ArithmeticError):
    """A training step that left the finite numbers; its text says where: a layer's weights, output or clip, or the loss."""


def seeded_model(run: Recipe, device: str | torch.device = "cpu") -> Network:
    """The run's network as its seed initialises it, clips at their start."""
    torch.manual_seed(run.seed)
    model = build_model(run.network, run.setup)
    with torch.no_grad():
        for clip in model.clips().values():
            clip.alpha.fill_(run.parameters.clip.start)
    return model.to(device)


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` that leaves torch's compiler alone: to import it takes as long as torch, and nothing is compiled here.

    Optimisers import it to have it keep off some of their methods. These are the methods without what asks it to.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)


def make_optimizer(model: Network, run: Recipe, steps: int, replayable: bool | None = None):
    """Adam with two parameter groups, weights and clips, and their schedule: `warm_cosine` over `steps`.

    The clips' penalty is their group's `weight_decay`: Adam adds `2 * penalty * alpha` to their gradient itself.
    replayable: keep the learning rates in tensors beside the weights, where a step that is replayed reads them; None: on
    a GPU.
    """
    p = run.parameters
    clips = [clip.alpha for clip in model.clips().values()]
    weights = [w for w in model.parameters() if all(w is not alpha for alpha in clips)]
    groups = [{"params": weights, "lr": p.learning_rate, "weight_decay": p.weight_decay}]
    if clips:
        groups.append({"params": clips, "lr": p.clip.learning_rate, "weight_decay": 2 * p.clip.penalty})
    replayable = weights[0].is_cuda if replayable is None else replayable
    if replayable:
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=weights[0].device)
    optimizer = Adam(groups, betas=(0.9, p.beta2), fused=True, capturable=weights[0].is_cuda)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    return optimizer, schedule


def warm_cosine(step: int, steps: int, warm: float = 0.15) -> float:
    """Share of the peak learning rate at `step`: up in a straight line over the first `warm` of the steps, down in a cosine."""
    rise = max(1, round(warm * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / max(1, steps + 1 - rise)))


def train_step(
    model: Network, optimizer, images: Tensor, labels: Tensor, run: Recipe, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One optimiser step on images (N,1,28,28) and labels (N,); `(loss, number right)`, still on the device.

    Raises Diverged, before the step is taken, where the loss is not finite, and after it for a clip that is not: on the
    CPU. On a GPU looking would stall every step; there `fit` looks once an epoch.
    """
    with computing_in(model.train(), precision(run, images.device)):
        loss, logits = _step(model, optimizer, images, labels, run, generator)
    return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()


def _step(model, optimizer, images, labels, run, generator) -> tuple[Tensor, Tensor]:
    if run.training == "saliency_guided":
        loss, logits = guided_loss(model, images, labels, run.parameters.guidance, generator)
    else:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
    if loss.is_cpu and not loss.isfinite():
        raise Diverged(not_finite(model, images))
    clips = model.clips()
    optimizer.zero_grad(set_to_none=True)
    with gradients_of("parameters"):
        loss.backward()
    optimizer.step()
    for layer, clip in clips.items():
        clip.project_()
        if loss.is_cpu and not clip.alpha.isfinite():
            raise Diverged(f"the clip of {layer}")
    return loss, logits


@torch.no_grad()
def not_finite(model: Network, images: Tensor) -> str:
    """The first thing in the network that is not finite for these images: a layer's weights, clip or output, or the loss."""
    clips = model.clips()
    for layer in model.layer_names:
        module = model.get_submodule(layer)
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            return f"the weights of {layer}"
        if layer in clips and not clips[layer].alpha.isfinite():
            return f"the clip of {layer}"
    outputs: dict[str, bool] = {}

    def look(layer: str) -> Callable:
        def hook(module, inputs, output) -> None:
            outputs[layer] = bool(output.isfinite().all())

        return hook

    hooks = [model.get_submodule(layer).register_forward_hook(look(layer)) for layer in model.layer_names]
    try:
        model(images.detach())
    finally:
        for hook in hooks:
            hook.remove()
    return next((f"the output of {layer}" for layer, finite in outputs.items() if not finite), "the loss")


def precision(run: Recipe, device: str | torch.device = "cpu") -> torch.dtype:
    """In what a run's training computes its convolutions: its `precision`, with `auto` decided for this machine.

    bfloat16 products are faster than float32's on some processors, slower on others (`sqlib.hardware.bfloat16_units`). They round
    sums and gradients to 8 bits, but no code. The gradients that guided training ranks pixels by are among them; a trained
    network is evaluated, explained and packed in float32.
    """
    asked = run.parameters.precision
    if asked == "auto":
        on_gpu = torch.device(device).type == "cuda"
        asked = "bfloat16" if (torch.cuda.is_bf16_supported() if on_gpu else bfloat16_units()) else "float32"
    return getattr(torch, asked)


def fit(
    run: Recipe,
    data: Dataset,
    on_epoch: Callable[[Progress], None] | None = None,
    on_batch: Callable[[int, int, int], None] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Network, list[dict]]:
    """Train one run; `(model in eval mode, history with one entry an epoch)`. The test images are not looked at.

    Everything random comes from the run's seed: on one machine the same run gives the same bytes. The data are put on the
    device once; nothing in a step waits for it, and on a GPU steps on whole batches are replayed (`sqlib.hardware.Replayed`).

    Args:
        on_epoch: called after each epoch, with what there is to see.
        on_batch: called before each step with (epoch, step, steps an epoch), counted from 1.
        device: where to train; the model returned is there, too.

    Raises SqlibError, with epoch, batch and layer, when training leaves the finite numbers or a clip closes.
    """
    prepare(run.threads)
    p = run.parameters
    model = seeded_model(run, device)
    chosen = stratified_indices(data.train_labels, p.images)
    images, labels = data.train_images[chosen].to(device), data.train_labels[chosen].to(device)
    val = stratified_indices(data.validation_labels, p.validation_images)
    val_images, val_labels = to_float(data.validation_images[val]).to(device), data.validation_labels[val].to(device)
    few = stratified_indices(val_labels.cpu(), min(MAP_IMAGES, len(val_labels)))
    strip = torch.stack([(val_labels == c).nonzero()[0, 0] for c in range(10)])

    steps_an_epoch = math.ceil(len(images) / p.batch_size)
    optimizer, schedule = make_optimizer(model, run, steps_an_epoch * run.epochs)
    shuffle = torch.Generator().manual_seed(run.seed)
    noise = torch.Generator(device).manual_seed(run.seed + 1)
    places = torch.Generator(device).manual_seed(run.seed + 2)

    def step(batch: Tensor) -> tuple[Tensor, Tensor]:
        seen = to_float(shifted(images[batch], p.shift, places))
        return train_step(model, optimizer, seen, labels[batch], run, noise)

    whole = replayed(step, torch.zeros(p.batch_size, dtype=torch.int64, device=device), (noise, places))
    history = []
    for epoch in range(1, run.epochs + 1):
        start = time.perf_counter()
        losses, right, sizes = [], [], []
        for batch in torch.randperm(len(images), generator=shuffle).to(device).split(p.batch_size):
            if on_batch is not None:
                on_batch(epoch, len(losses) + 1, steps_an_epoch)
            try:
                loss, correct = (whole if len(batch) == p.batch_size else step)(batch)
            except Diverged as where:
                raise _diverged(run, epoch, len(losses) + 1, where) from None
            schedule.step()
            losses.append(loss)
            right.append(correct)
            sizes.append(len(batch))
        losses = torch.stack(losses) * torch.tensor(sizes, device=device)
        finite = bool(losses.isfinite().all())  # here a GPU is waited for
        seconds = time.perf_counter() - start
        if not finite:
            first = int((~losses.isfinite()).nonzero()[0, 0]) + 1
            raise _diverged(run, epoch, first, not_finite(model, to_float(images[batch])))
        for layer, clip in model.clips().items():
            if clip.alpha <= SMALLEST_CLIP:
                raise _diverged(run, epoch, len(losses), f"the clip of {layer}, which has closed")
        logits = predict(model, val_images)
        if not logits.isfinite().all():  # the last step of an epoch can still break what its loss did not show
            raise _diverged(run, epoch, len(losses), not_finite(model, val_images[:1]))
        predicted = logits.argmax(dim=1)
        maps = saliency_map(model, val_images[few], predicted[few])
        history.append(
            {
                "epoch": epoch,
                "train_loss": float(losses.sum() / len(images)),
                "train_accuracy": float(torch.stack(right).sum() / len(images)),
                "val_loss": float(F.cross_entropy(logits, val_labels)),
                "val_accuracy": float((predicted == val_labels).double().mean()),
                "val_dead_map_rate": float(clarity.dead(maps).double().mean()),
                "val_gini": float(clarity.gini(maps).nanmean()),
                "clips": {name: clip.alpha.item() for name, clip in model.clips().items()},
                "seconds": seconds,
            }
        )
        if on_epoch is not None:
            with torch.random.fork_rng():  # whatever the callback draws, dropout's numbers stay the run's own
                strip_maps = saliency_map(model, val_images[strip], predicted[strip])
                on_epoch(Progress(model, history, val_images[strip, 0].cpu(), strip_maps.cpu(), run.epochs))
    return model.eval(), history


def _diverged(run: Recipe, epoch: int, batch: int, where: object) -> SqlibError:
    return SqlibError(
        f"{run.id}: training diverged in epoch {epoch}, batch {batch}, at {where}; "
        "lower training.learning_rate or training.clip.learning_rate"
    )


def step_seconds(run: Recipe, repeats: int = 3) -> float:
    """Seconds that one training step of the run takes here (median of `repeats` after a first one), on random pixels."""
    prepare(run.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(run.parameters.batch_size, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (run.parameters.batch_size,), generator=generator)
    with torch.random.fork_rng():
        model = seeded_model(run)
    optimizer, _ = make_optimizer(model, run, repeats + 2)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        train_step(model, optimizer, images, labels, run, generator)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]
