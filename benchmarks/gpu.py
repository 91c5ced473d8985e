"""What training takes on an NVIDIA GPU: `make bench-gpu`, on a machine with one.

Epochs of `sqlib.training.loop.fit` on all of MNIST's training images, at the study's batch size and at the one of `make
bench`, once as the study computes them there (whole batches are one replayed CUDA graph) and once step by step. Before
that, three things are tried: that a step never waits for the GPU; that replaying gives the same weights, to the bit, as
computing step by step; and that the published networks answer there as they do here.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sqlib import hardware
from sqlib.checked import SqlibError
from sqlib.data.loading import load
from sqlib.files import write_atomically
from sqlib.hardware import device_name, prepare
from sqlib.networks.passes import predict
from sqlib.places import REPOSITORY
from sqlib.study.origin import provenance
from sqlib.study.parameters import Run, load_study
from sqlib.study.results import load_model
from sqlib.training import guided, loop
from sqlib.training.examples import Dataset, to_float
from sqlib.workflow.readme import GPU, markdown_table, revision, update_page
from timing import FEWEST_REPEATS, summary

OUTPUT = Path(__file__).with_name("gpu.json")
STUDY, LARGE = 64, 512
TARGETS = {("fp32", "standard"): 0.5, ("w4a4", "saliency_guided"): 1.0}
"""Seconds an epoch may take on a card like the H200."""

CASES = tuple((setup, training) for training in ("standard", "saliency_guided") for setup in ("fp32", "w4a4"))
OTHERS = {"float32": {"precision": "float32"}, "sgt_cnn": {"network": "sgt_cnn"}}
"""What is tried, not timed, of the last case besides: other arithmetic, and a network that drops."""


def make_run(
    setup: str,
    training: str,
    epochs: int,
    batch: int = STUDY,
    images: int = 55_000,
    network: str = "lenet",
    precision: str = "auto",
) -> Run:
    """The paper study's seed-0 run on MNIST, with this many epochs and images, this batch size, network and precision."""
    run = load_study("paper").run(f"mnist/lenet/{setup}/{training}/seed0")
    changed = {"batch_size": batch, "images": images, "precision": precision}
    parameters = run.parameters.model_copy(update=changed)
    return run.model_copy(update={"epochs": epochs, "network": network, "parameters": parameters})


@contextlib.contextmanager
def step_by_step() -> Iterator[None]:
    """Nothing is replayed inside."""
    before, hardware.replayed = hardware.replayed, lambda function, argument, generators: function
    try:
        yield
    finally:
        hardware.replayed = before


def fit(run: Run, data: Dataset, device: torch.device, replay: bool):
    with contextlib.nullcontext() if replay else step_by_step():
        return loop.fit(run, data, device=device)


def never_waits(run: Run, device: torch.device) -> None:
    """Raises RuntimeError, from torch, if a step of the run waits for the GPU."""
    model = loop.seeded_model(run, device)
    optimizer, schedule = loop.make_optimizer(model, run, steps=10)
    pixels = torch.randint(256, (run.parameters.batch_size, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (len(pixels),), device=device)
    noise = torch.Generator(device).manual_seed(0)
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            images = to_float(guided.shifted(pixels, run.parameters.shift, noise))
            loop.train_step(model, optimizer, images, labels, run, noise)
            schedule.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def furthest_weight(run: Run, data: Dataset, device: torch.device) -> float:
    """The largest difference between a weight from replayed and from step-by-step training."""
    (one, _), (other, _) = (fit(run, data, device, replay) for replay in (True, False))
    return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def answers(data: Dataset, device: torch.device) -> dict[str, dict]:
    """What the published seed-0 networks answer to MNIST's test images here and on the GPU: by setup, how many differ, and
    the largest difference of a logit."""
    study, images, found = load_study("paper"), to_float(data.test_images), {}
    for setup in study.setups:
        run = study.run(f"mnist/lenet/{setup.name}/standard/seed0")
        model = load_model(run.folder(REPOSITORY / "reports/reference"))
        here = predict(model, images)
        there = predict(model.to(device), images.to(device)).cpu()
        differ = int((here.argmax(dim=1) != there.argmax(dim=1)).sum())
        found[setup.name] = {"differ": differ, "furthest_logit": float((here - there).abs().max())}
    return found


def epochs(
    setup: str, training: str, batch: int, replay: bool, repeats: int, data: Dataset, device: torch.device
) -> dict:
    """Median, n and spread of an epoch's seconds after the first one, which chooses kernels and captures the graph."""
    run = make_run(setup, training, repeats + 1, batch)
    _, history = fit(run, data, device, replay)
    seconds = [entry["seconds"] for entry in history[1:]]
    return {
        "setup": setup,
        "training": training,
        "batch": batch,
        "replayed": replay,
        "precision": str(loop.precision(run, device)).removeprefix("torch."),
        "val_accuracy": history[-1]["val_accuracy"],
        **summary(seconds),
    }


def benchmark(repeats: int, slow_repeats: int, device: torch.device) -> dict:
    """Try and measure everything; what `gpu.json` holds. Step by step at the study's batch size: only `slow_repeats`."""
    started = time.time()
    prepare(1)
    data = load("mnist")
    for setup, training in CASES:
        never_waits(make_run(setup, training, 1), device)
    gaps = {}
    for setup, training in CASES:
        gaps[f"{setup}/{training}"] = furthest_weight(make_run(setup, training, 2, images=5000), data, device)
    for name, changed in OTHERS.items():
        run = make_run(*CASES[-1], 2, images=5000, **changed)
        never_waits(run, device)
        gaps[f"{'/'.join(CASES[-1])}, {name}"] = furthest_weight(run, data, device)
    found = []
    for batch in (STUDY, LARGE):
        for setup, training in CASES:
            for replay in (True, False):
                print(
                    f"measuring {setup}/{training}, batch {batch}, {'replayed' if replay else 'step by step'}",
                    file=sys.stderr,
                )
                times = repeats if replay or batch == LARGE else slow_repeats
                found.append(epochs(setup, training, batch, replay, times, data, device))
    origin = provenance(started)
    return {
        "device": device_name(device),
        "torch": str(torch.__version__),
        "git": origin["git"],
        "date": origin["started"],
        "furthest_weight": gaps,
        "answers": answers(data, device),
        "epochs": found,
    }


def table(results: dict) -> str:
    """Markdown: a row a kind of training, then what was tried."""
    rows = []
    by_case = {(e["setup"], e["training"], e["batch"], e["replayed"]): e for e in results["epochs"]}
    for (setup, training, batch, replayed), entry in by_case.items():
        if replayed:
            low, high = entry["spread"]
            slow = by_case[setup, training, batch, False]["median"]
            target = TARGETS.get((setup, training))
            met = "" if target is None else "yes" if entry["median"] <= target else "**no**"
            asked = "" if target is None else f"at most {target:g}"
            name = f"{setup}, {'guided' if training == 'saliency_guided' else 'ordinary'}"
            cells = [str(batch), f"{entry['median']:.2f}", f"{low:.2f} to {high:.2f}", f"{slow:.2f}"]
            rows.append([name, *cells, asked, met])
    kind = "an epoch of `lenet` on MNIST, seconds"
    lines = markdown_table([kind, "batch", "median", "quartiles", "step by step", "asked", "met"], rows)
    n, slow_n = (by_case["fp32", "standard", STUDY, replayed]["n"] for replayed in (True, False))
    gap = max(results["furthest_weight"].values())
    same = "the same weights to the bit" if gap == 0 else f"weights up to {gap:.2g} apart"
    tried = "; ".join(results["furthest_weight"])
    differ = ", ".join(
        f"{setup} {entry['differ']} "
        + (
            f"(logits up to {entry['furthest_logit']:.2g} apart)"
            if entry["furthest_logit"]
            else "(the same logits to the bit)"
        )
        for setup, entry in results["answers"].items()
    )
    lines += [
        "",
        f"n = {n} epochs each (step by step at batch {STUDY}: {slow_n}), {results['epochs'][0]['precision']}, "
        f"{results['device']}, torch {results['torch']}, {results['date'][:10]}, {revision(results['git'])}. Replayed and step "
        f"by step give {same} ({tried}). Of MNIST's 10,000 test images, the networks published then (ordinary training, seed 0) "
        f"answer differently there than on a processor: {differ}.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=FEWEST_REPEATS, help="timed epochs of each case (%(default)s)")
    parser.add_argument(
        "--slow-repeats", type=int, default=3, help="those that take ten times as long, step by step (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write (benchmarks/gpu.json)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("error: there is no NVIDIA GPU here, or torch cannot use it: nothing to measure")
    if min(options.repeats, options.slow_repeats) < 2:
        parser.error("--repeats and --slow-repeats: expected at least 2, for a median with quartiles")
    try:
        results = benchmark(options.repeats, options.slow_repeats, torch.device("cuda"))
    except SqlibError as error:
        sys.exit(f"error: {error}")
    write_atomically(options.output, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))
    if options.output == OUTPUT:
        update_page(GPU, table(results))


if __name__ == "__main__":
    main()
