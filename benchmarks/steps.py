"""Training steps of sqlib (`train.train_step`), on one fixed batch of random pixels: nothing is gathered or shifted."""

import torch
from torch import Tensor

from sqlib.hardware import bfloat16_units
from sqlib.quant import kernels
from sqlib.study.parameters import Evaluation, Run, Training, load_setup
from sqlib.training.examples import to_float
from sqlib.training.loop import make_optimizer, seeded_model, train_step
from sqlib.training.options import Guidance
from timing import Step

PRECISIONS = ("float32", "bfloat16")


def precisions() -> tuple[str, ...]:
    """Those that are worth a measurement on this machine; the last one is what the study trains in (`auto`)."""
    return PRECISIONS if bfloat16_units() else PRECISIONS[:1]


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    """Images (size,1,28,28) of random 8-bit pixels and labels (size,); the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size, 28, 28), generator=generator, dtype=torch.uint8)
    return to_float(pixels), torch.randint(10, (size,), generator=generator)


def make_run(
    network: str, setup: str, training: str, batch: int, guidance: Guidance | None = None, precision: str = "float32"
) -> Run:
    """A run with the default parameters, whose values cost no time, but this batch size, precision and `guidance`."""
    return Run(
        dataset="mnist",
        network=network,
        setup=load_setup(setup),
        training=training,
        seed=0,
        epochs=1,
        threads=torch.get_num_threads(),
        parameters=Training(batch_size=batch, precision=precision, guidance=guidance or Guidance()),
        evaluation=Evaluation(),
    )


def ours(
    network: str, setup: str, training: str, batch: int, guidance: Guidance | None = None, precision: str = "float32"
) -> Step:
    """One `sqlib.training.loop.train_step`, optimiser included."""
    run = make_run(network, setup, training, batch, guidance, precision)
    images, labels = random_batch(batch)
    model = seeded_model(run)
    optimizer, _ = make_optimizer(model, run, steps=1000)
    noise = torch.Generator().manual_seed(1)
    return lambda: train_step(model, optimizer, images, labels, run, noise)


def without_integers(step: Step) -> Step:
    """The same step with its convolutions of codes computed in floating point."""

    def call() -> None:
        before, kernels.integers = kernels.integers, lambda: False
        try:
            step()
        finally:
            kernels.integers = before

    return call
