"""What other thread counts, precisions and processors change in a run's numbers: `make elsewhere`.

The study's w2a2 runs on Fashion-MNIST with ordinary training, every seed, are trained again as they were, with two threads,
in float32, and as a processor without AVX-512 would train them; each is held against the same seed's as it was.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sqlib.data.loading import load
from sqlib.files import write_atomically
from sqlib.places import REPOSITORY
from sqlib.study.jobs.train import measure_trained
from sqlib.study.origin import provenance
from sqlib.study.parameters import Run, load_study
from sqlib.study.results import read_result
from sqlib.training.loop import fit
from sqlib.workflow.readme import ELSEWHERE, markdown_table, revision, update_page

OUTPUT = Path(__file__).with_name("elsewhere.json")
GROUP = "fashion_mnist/lenet/w2a2/standard"
OLDER_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AS_IT_WAS = "as it was"
VARIANTS: dict[str, tuple[dict, dict]] = {
    AS_IT_WAS: ({}, {}),
    "two threads": ({"threads": 2}, {}),
    "float32": ({"precision": "float32"}, {}),
    "float32 with AVX2 only": ({"precision": "float32"}, OLDER_PROCESSOR),
}
"""What is changed of the run, and of the environment."""

METRICS = {
    "test_accuracy": ("test accuracy, points", 100, 2),
    "gini": ("Gini index", 1, 3),
    "faithfulness_gap": ("faithfulness gap", 1, 3),
}


def runs() -> list[Run]:
    """The runs that are trained again, a seed each."""
    return [run for run in load_study("paper").runs() if run.id.startswith(f"{GROUP}/")]


def train(variant: str, seed: int, output: Path) -> None:
    """Train and measure one run in a variant; its weights, predictions and metrics to `output`."""
    (run,) = (run for run in runs() if run.seed == seed)
    changes = dict(VARIANTS[variant][0])
    threads = changes.pop("threads", run.threads)
    run = run.model_copy(update={"threads": threads, "parameters": run.parameters.model_copy(update=changes)})
    data = load(run.dataset)
    model, history = fit(run, data)
    found = measure_trained(run, model, history, data)
    weights = {f"weight.{name}": tensor for name, tensor in model.state_dict().items()}
    metrics = json.dumps({name: found.metrics[name] for name in METRICS})
    save_file({**weights, "prediction": found.per_image["prediction"]}, output, metadata={"metrics": metrics})


def read(folder: Path, variant: str, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(weights and predictions, metrics) that `train` wrote."""
    path = folder / f"{variant}-{seed}.safetensors"
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["metrics"])  # noqa: SIM118


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Share of the test images that two networks answer differently."""
    return float((a["prediction"] != b["prediction"]).double().mean())


def compare(folder: Path, seeds: list[int]) -> dict:
    """What each variant changed, an entry a seed; how far the metrics as they were are from the published ones; and how far
    seeds are apart."""
    was = {seed: read(folder, AS_IT_WAS, seed) for seed in seeds}
    variants: dict[str, list[dict]] = {}
    for variant in [name for name in VARIANTS if name != AS_IT_WAS]:
        for seed, (before, old) in was.items():
            after, new = read(folder, variant, seed)
            entry = {
                "seed": seed,
                "same_weights": all(torch.equal(before[k], after[k]) for k in before if k.startswith("weight.")),
                "answers_that_differ": differ(before, after),
                "change": {name: new[name] - old[name] for name in METRICS},
            }
            variants.setdefault(variant, []).append(entry)
    published = {run.seed: read_result(run.folder(REPOSITORY / "reports/reference"))["metrics"] for run in runs()}
    pairs = list(itertools.combinations(was, 2))
    return {
        "variants": variants,
        "as_published": {seed: all(was[seed][1][name] == published[seed][name] for name in METRICS) for seed in seeds},
        "seeds": {
            "answers_that_differ": [differ(was[a][0], was[b][0]) for a, b in pairs],
            "change": {name: [was[b][1][name] - was[a][1][name] for a, b in pairs] for name in METRICS},
        },
    }


def table(results: dict) -> str:
    """Markdown: a row a variant, then how far seeds alone are apart, and on what it was measured."""
    rows = []
    for variant, entries in results["variants"].items():
        cells = [
            f"{sum(entry['same_weights'] for entry in entries)} of {len(entries)}",
            ", ".join(f"{100 * entry['answers_that_differ']:.1f}" for entry in entries),
        ]
        for name, (_, factor, digits) in METRICS.items():
            cells.append(", ".join(f"{factor * entry['change'][name]:+.{digits}f}" for entry in entries))
        rows.append([variant, *cells])
    seeds = results["seeds"]
    cells = ["", ", ".join(f"{100 * share:.1f}" for share in seeds["answers_that_differ"])]
    for name, (_, factor, digits) in METRICS.items():
        cells.append(", ".join(f"{factor * change:+.{digits}f}" for change in seeds["change"][name]))
    rows.append(["another seed", *cells])
    lines = markdown_table(["", "same weights", "other answers, %", *(title for title, _, _ in METRICS.values())], rows)
    same, machine = results["as_published"], results["provenance"]
    lines += [
        "",
        f"`{GROUP}`, each change a seed (or a pair of seeds). Trained as it was, {sum(same.values())} of {len(same)} gave the "
        f"published numbers to the last bit. {machine['cpu']}, torch {machine['packages']['torch']}, {revision(machine['git'])}.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--jobs", type=int, default=2, help="threads that train at a time, in runs of one or more (%(default)s)"
    )
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "SEED", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        variant, seed, output = options.one
        train(variant, int(seed), Path(output))
        return
    started, seeds = time.time(), [run.seed for run in runs()]
    with tempfile.TemporaryDirectory() as scratch:

        def job(variant: str, seed: int) -> None:
            print(f"training: {variant}, seed {seed}", file=sys.stderr, flush=True)
            output = Path(scratch) / f"{variant}-{seed}.safetensors"
            command = [sys.executable, __file__, "--one", variant, str(seed), str(output)]
            subprocess.run(command, env={**os.environ, **VARIANTS[variant][1]}, check=True)

        by_threads: dict[int, list[str]] = {}
        for variant, (changes, _) in VARIANTS.items():
            by_threads.setdefault(changes.get("threads", 1), []).append(variant)
        for threads, variants in by_threads.items():  # more threads than cores wait for each other
            with ThreadPoolExecutor(max(1, options.jobs // threads)) as workers:
                jobs = [workers.submit(job, variant, seed) for variant in variants for seed in seeds]
                for each in jobs:
                    each.result()
        results = {**compare(Path(scratch), seeds), "provenance": provenance(started)}
    write_atomically(OUTPUT, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))
    update_page(ELSEWHERE, table(results))


if __name__ == "__main__":
    main()
