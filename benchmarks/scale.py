"""How cost grows with the work: `make scale`, or `python benchmarks/scale.py --help`.

Four parts. `steps`: a training step against the size of its batch and the width of the network. `graph`: what the graph
itself takes, nothing trained, for ever more runs: writing stamps, planning, collecting the results into one table (of
copies of one published result). `studies`: whole small studies, of ever more runs, on one core and on two. `maps`: all
measures of the gradient maps of one data set's runs, on two cores; needs the finished paper study.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml

import steps
from sqlib.config import PARAMS, REPOSITORY, digest, load_setup, load_study
from sqlib.driver import pending
from sqlib.files import write_atomically
from sqlib.machine import bfloat16_units, keep_memory
from sqlib.models import ARCHITECTURES, Architecture, Conv, Network
from sqlib.runs import collect, provenance, reports_root, to_json
from sqlib.stamps import write_stamps
from sqlib.train import make_optimizer, train_step

OUTPUT = Path(__file__).with_name("scale.json")
REPEATS = 9
BATCHES = (16, 32, 64, 128, 256, 512, 1024)
WIDTHS = (0.25, 0.5, 1, 2)
RUNS = (100, 1_000, 10_000)
SEEDS = (1, 2, 4)


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_step(step: Callable[[], object], repeats: int) -> float:
    """Median seconds of a step, after two that are not counted."""
    return statistics.median([seconds(step) for _ in range(repeats + 2)][2:])


def widened(width: float) -> Architecture:
    """`lenet` with `width` times the channels and hidden units."""
    lenet = ARCHITECTURES["lenet"]
    convs = tuple(Conv(int(conv.channels * width), conv.kernel, conv.padding, conv.pool) for conv in lenet.convs)
    return Architecture(convs, tuple(int(hidden * width) for hidden in lenet.hidden))


def wide_step(width: float, precision: str, batch: int) -> tuple[Callable[[], object], int]:
    """(an ordinary w4a4 step of the widened network, its multiply-accumulates an image)."""
    run = steps.make_run("lenet", "w4a4", "standard", batch, precision=precision)
    model = Network(widened(width), "lenet", load_setup("w4a4"), 1, 10)
    optimizer, _ = make_optimizer(model, run, steps=1000)
    images, labels = steps.random_batch(batch)
    return lambda: train_step(model, optimizer, images, labels, run), sum(model.macs.values())


def measure_steps(repeats: int) -> dict:
    """Milliseconds of w4a4 steps, on one thread as in the study."""
    torch.set_num_threads(1)
    keep_memory()
    precision = "bfloat16" if bfloat16_units() else "float32"
    by_batch, by_width = [], []
    for batch in BATCHES:
        row = {"batch": batch}
        for training in ("standard", "saliency_guided"):
            row[training] = 1e3 * median_step(steps.ours("lenet", "w4a4", training, batch, None, precision), repeats)
        by_batch.append(row)
    for width in WIDTHS:
        step, macs = wide_step(width, precision, 64)
        by_width.append({"width": width, "macs": macs, "standard": 1e3 * median_step(step, repeats)})
    return {"precision": precision, "batch": by_batch, "width": by_width, "n": repeats}


def study_file(folder: Path, name: str, base: str = "smoke", **changes) -> None:
    """A copy of params/ in `folder` with a study more: the smoke study (or another), changed."""
    shutil.copytree(PARAMS, folder, dirs_exist_ok=True)
    content = yaml.safe_load((PARAMS / f"{base}.yaml").read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**content, **changes}))


def measure_graph(count: int, scratch: Path) -> dict:
    """Seconds of stamps, planning and collecting for about `count` runs: the grid of params/large.yaml with more seeds."""
    large = load_study("large")
    kinds = len(large.runs()) // len(large.seeds)
    quality = {"setups": ["fp32", "w2a2"], "every_method": ["fp32", "w2a2"]}  # as in the paper study
    seeds = list(range(max(1, count // kinds)))
    study_file(scratch / "params", "grid", "large", seeds=seeds, quality=quality, sweeps=[])
    study, reports = load_study("grid", scratch / "params"), scratch / "reports/grid"
    stamps = seconds(lambda: write_stamps(study, reports))
    environment = {**os.environ, "SQLIB_PARAMS": str(scratch / "params"), "SQLIB_REPORTS": str(reports.parent)}
    old = dict(os.environ)
    os.environ.update(environment)
    try:
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--nocolor"]
        snakemake += ["--directory", str(reports), "--cores", "2", "--config", "study=grid"]
        planning = seconds(lambda: pending(snakemake, scratch / "plan.log"))
    finally:
        os.environ.clear()
        os.environ.update(old)
    published = next((REPOSITORY / "reports/reference/runs").glob("*/*/*/*/*/result.json"))
    result = json.loads(published.read_text())
    for run in study.runs():
        copy = {**result, "id": run.id, "run": run.model_dump(mode="json"), "digest": digest(run)}
        write_atomically(run.folder(reports) / "result.json", to_json(copy))
    table = []
    collecting = seconds(lambda: table.append(collect(study, reports)))
    return {"runs": len(table[0]), "stamps": stamps, "planning": planning, "collecting": collecting}


def measure_study(seeds: int, cores: int, scratch: Path) -> dict:
    """Seconds of a whole study of 2 x `seeds` runs, pages included; its data are there already."""
    grid = {"datasets": ["mnist"], "setups": ["fp32", "w4a4"], "trainings": ["standard"], "seeds": list(range(seeds))}
    study_file(scratch / "params", "small", **grid, sweeps=[], quality={"images": 20, "setups": ["w4a4"]})
    environment = {**os.environ, "SQLIB_PARAMS": str(scratch / "params"), "SQLIB_REPORTS": str(scratch / "reports")}
    command = [sys.executable, "-m", "sqlib", "reproduce", "small", "--cores", str(cores)]
    took = seconds(lambda: subprocess.run(command, env=environment, check=True, capture_output=True))
    return {"runs": 2 * seeds, "cores": cores, "seconds": took}


def measure_maps(dataset: str, scratch: Path) -> dict | None:
    """Seconds for all measures of the gradient maps of the paper study's runs on a data set, in jobs as the study's own.

    On copies of the runs, two jobs at a time. None where the study is not finished.
    """
    study, reports = load_study("paper"), reports_root() / "paper"
    wanted = [run for run in study.runs() if run.dataset == dataset]
    if not all((run.folder(reports) / "result.json").exists() for run in wanted):
        return None
    shutil.copytree(PARAMS, scratch / "params")
    content = yaml.safe_load((PARAMS / "paper.yaml").read_text())
    content["quality"]["every_method"] = []
    (scratch / "params/paper.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(reports / "runs" / dataset, scratch / "reports/paper/runs" / dataset)
    environment = {**os.environ, "SQLIB_PARAMS": str(scratch / "params"), "SQLIB_REPORTS": str(scratch / "reports")}
    jobs: dict[str, list[str]] = {}
    for run in wanted:
        jobs.setdefault(run.id.rsplit("/", 1)[0], []).append(run.id)

    def job(ids: list[str]) -> None:
        command = [sys.executable, "-m", "sqlib", "quality", "paper", *ids]
        subprocess.run(command, env=environment, check=True, capture_output=True)

    with ThreadPoolExecutor(2) as workers:
        took = seconds(lambda: list(workers.map(job, jobs.values())))
    return {"dataset": dataset, "runs": len(wanted), "images": study.quality.images, "seconds": took}


def table(results: dict) -> str:
    """What was measured, for a reader."""
    lines = []
    if found := results.get("steps"):
        lines += [
            f"lenet, w4a4, one thread, {found['precision']}, medians of {found['n']}",
            "batch  standard     guided",
        ]
        lines += [
            f"{row['batch']:5}  {row['standard']:5.1f} ms  {row['saliency_guided']:6.1f} ms"
            f"  ({1e3 * row['standard'] / row['batch']:.0f} and {1e3 * row['saliency_guided'] / row['batch']:.0f} us an image)"
            for row in found["batch"]
        ]
        lines += ["width  million MACs  standard step of 64"]
        lines += [
            f"{row['width']:5}  {row['macs'] / 1e6:12.2f}  {row['standard']:5.1f} ms"
            f"  ({row['standard'] / row['macs'] * 1e6:.1f} ms for a million MACs)"
            for row in found["width"]
        ]
    if found := results.get("graph"):
        lines += ["   runs    stamps  planning  collecting"]
        lines += [
            f"{row['runs']:7,}  {row['stamps']:6.1f} s  {row['planning']:6.1f} s    {row['collecting']:6.1f} s"
            for row in found
        ]
    if found := results.get("studies"):
        lines += ["runs  cores  whole study"]
        lines += [f"{row['runs']:4}  {row['cores']:5}  {row['seconds']:9.0f} s" for row in found]
    if found := results.get("maps"):
        what = f"{found['runs']} runs of {found['dataset']}, {found['images']:,} images each, two jobs at a time"
        lines += [f"all measures of gradient maps: {what}: {found['seconds']:.0f} s"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("steps", "graph", "studies", "maps")
    parser.add_argument("parts", nargs="*", choices=parts, default=list(parts), help="which (all)")
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS, help="sizes of the graph (100 1000 10000)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write (benchmarks/scale.json)")
    options = parser.parse_args(arguments)
    started = time.time()
    results: dict = json.loads(options.output.read_text()) if options.output.exists() else {}
    if "steps" in options.parts:
        results["steps"] = measure_steps(REPEATS)
    with tempfile.TemporaryDirectory() as scratch:
        if "graph" in options.parts:
            results["graph"] = [measure_graph(count, Path(scratch) / f"g{count}") for count in options.runs]
        if "studies" in options.parts:
            sizes = [(seeds, cores) for seeds in SEEDS for cores in (1, 2)]
            results["studies"] = [measure_study(*size, Path(scratch) / "s{}c{}".format(*size)) for size in sizes]
        if "maps" in options.parts:
            results["maps"] = measure_maps("fashion_mnist", Path(scratch) / "maps")
            if results["maps"] is None:
                print("maps: not measured: the paper study is not finished (`make reproduce`)", file=sys.stderr)
    results["provenance"] = provenance(started)
    write_atomically(options.output, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))


if __name__ == "__main__":
    main()
