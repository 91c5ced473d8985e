"""How cost grows with the work: `make scale`, or `python benchmarks/scale.py --help`.

Four parts. `steps`: a training step against the size of its batch and the width of the network. `graph`: what the graph
itself takes, nothing trained, for ever more runs: writing stamps, planning, collecting the results into one table (of
copies of one published result). `studies`: whole small studies, of ever more runs, on one core and on two. `maps`: all
measures of the gradient maps of one data set's runs, on two cores; needs the finished paper study.

Parts that are not named keep what was measured before; each says when.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml

import steps
from sqlib.checked import digest
from sqlib.files import to_json, write_atomically
from sqlib.hardware import keep_memory
from sqlib.networks.architectures import ARCHITECTURES, Architecture, Conv
from sqlib.networks.network import Network
from sqlib.places import PARAMS, REPOSITORY, reports_root
from sqlib.study.origin import git_state, provenance
from sqlib.study.parameters import load_setup, load_study
from sqlib.study.results import collect
from sqlib.training.loop import make_optimizer, train_step
from sqlib.workflow.pages import write_stamps
from sqlib.workflow.readme import SCALE, markdown_table, revision, update_page
from sqlib.workflow.snakemake import pending
from timing import BUILDS, FEWEST_REPEATS, Step, steadily, summary

OUTPUT = Path(__file__).with_name("scale.json")
PARTS = ("steps", "graph", "studies", "maps")
BATCHES = (16, 32, 64, 128, 256, 512, 1024)
WIDTHS = (0.25, 0.5, 1, 2)
RUNS = (100, 1_000, 10_000)
SEEDS = (1, 2, 4)
WIDE_BATCH = 64
"""Images in a batch of the widened networks: the study's."""
ASKED = {"planning": 120, "collecting": 60}
"""At most this many seconds for a graph of the largest size of `RUNS`."""


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def milliseconds(build: Callable[[], Step], repeats: int) -> dict:
    """`timing.summary` of a step's milliseconds, for a second at least in each of `timing.BUILDS` builds of it."""
    return summary([1e3 * took for _ in range(BUILDS) for took in steadily(build(), repeats)])


def widened(width: float) -> Architecture:
    """`lenet` with `width` times the channels and hidden units."""
    lenet = ARCHITECTURES["lenet"]
    convs = tuple(Conv(int(conv.channels * width), conv.kernel, conv.padding, conv.pool) for conv in lenet.convs)
    return Architecture(convs, tuple(int(hidden * width) for hidden in lenet.hidden))


def wide_step(width: float, precision: str, batch: int) -> tuple[Callable[[], object], int]:
    """(an ordinary w4a4 step of the widened network, its multiply-accumulates an image)."""
    run = steps.make_run("lenet", "w4a4", "standard", batch, precision=precision)
    torch.manual_seed(run.seed)
    model = Network(widened(width), "lenet", load_setup("w4a4"), 1, 10)
    optimizer, _ = make_optimizer(model, run, steps=1000)
    images, labels = steps.random_batch(batch)
    return lambda: train_step(model, optimizer, images, labels, run), sum(model.macs.values())


def measure_steps(repeats: int) -> dict:
    """Milliseconds of w4a4 steps, on one thread as in the study."""
    torch.set_num_threads(1)
    keep_memory()
    precision = steps.precisions()[-1]
    by_batch, by_width = [], []
    for batch in BATCHES:
        row = {"batch": batch}
        for training in ("standard", "saliency_guided"):
            build = functools.partial(steps.ours, "lenet", "w4a4", training, batch, None, precision)
            row[training] = milliseconds(build, repeats)
        by_batch.append(row)
    for width in WIDTHS:
        _, macs = wide_step(width, precision, WIDE_BATCH)
        build = functools.partial(lambda width: wide_step(width, precision, WIDE_BATCH)[0], width)
        by_width.append({"width": width, "macs": macs, "standard": milliseconds(build, repeats)})
    return {"precision": precision, "batch": by_batch, "width": by_width}


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
        snakemake = [
            sys.executable,
            "-m",
            "sqlib.workflow.snakemake_events",
            "--snakefile",
            str(REPOSITORY / "Snakefile"),
        ]
        snakemake += ["--directory", str(reports), "--cores", "2", "--config", "study=grid"]
        planning = seconds(lambda: pending(snakemake, scratch / "plan.log", study))
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


def carry_out(command: list[str], environment: dict[str, str]) -> None:
    """Run a command silently; SystemExit with all it said if it fails."""
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)} failed: nothing was measured")


def measure_study(seeds: int, cores: int, scratch: Path) -> dict:
    """Seconds of a whole study of 2 x `seeds` runs, pages included; its data are there already."""
    grid = {"datasets": ["mnist"], "setups": ["fp32", "w4a4"], "trainings": ["standard"], "seeds": list(range(seeds))}
    study_file(scratch / "params", "small", **grid, sweeps=[], quality={"images": 20, "setups": ["w4a4"]})
    environment = {**os.environ, "SQLIB_PARAMS": str(scratch / "params"), "SQLIB_REPORTS": str(scratch / "reports")}
    command = [sys.executable, "-m", "sqlib", "reproduce", "small", "--cores", str(cores)]
    took = seconds(lambda: carry_out(command, environment))
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
        carry_out([sys.executable, "-m", "sqlib", "quality", "paper", *ids], environment)

    with ThreadPoolExecutor(2) as workers:
        took = seconds(lambda: list(workers.map(job, jobs.values())))
    return {"dataset": dataset, "runs": len(wanted), "images": study.quality.images, "seconds": took}


def rows_of(head: str, rows: list[list[str]]) -> list[str]:
    """A Markdown table, after an empty line; the columns of `head` are set apart by ` | `."""
    return ["", *markdown_table(head.split(" | "), rows)]


def step_cells(times: dict, images: int) -> list[str]:
    """Milliseconds with quartiles, and microseconds an image."""
    lower, upper = times["spread"]
    return [f"{times['median']:.1f} ({lower:.1f} to {upper:.1f})", f"{1e3 * times['median'] / images:.0f}"]


def table(results: dict) -> str:
    """Markdown of what was measured."""
    lines = []
    if found := results.get("steps"):
        head = "images in a batch | ordinary step, ms | μs an image | guided step, ms | μs an image"
        cells = [
            [
                str(row["batch"]),
                *(c for kind in ("standard", "saliency_guided") for c in step_cells(row[kind], row["batch"])),
            ]
            for row in found["batch"]
        ]
        lines += rows_of(head, cells)
        head = "width of `lenet` | million MACs an image | ordinary step of 64 images, ms | μs an image"
        cells = [
            [f"{row['width']:g}", f"{row['macs'] / 1e6:.2f}", *step_cells(row["standard"], WIDE_BATCH)]
            for row in found["width"]
        ]
        lines += rows_of(head, cells)
        n = min(
            times["n"] for row in found["batch"] + found["width"] for times in row.values() if isinstance(times, dict)
        )
        lines += [
            "",
            f"w4a4, one thread, {found['precision']}; medians with quartiles, n = {n} or more in {BUILDS} builds.",
        ]
    if found := results.get("graph"):
        head = "runs in the graph | writing its stamps, s | planning, s | asked | collecting results, s | asked"
        cells = [
            [f"{row['runs']:,}", f"{row['stamps']:.1f}", f"{row['planning']:.1f}", "", f"{row['collecting']:.1f}", ""]
            for row in found
        ]
        if found[-1]["runs"] > 0.99 * RUNS[-1]:  # whole grids only, so a few less
            cells[-1][3], cells[-1][5] = (
                f"at most {limit}: {'yes' if found[-1][part] <= limit else '**no**'}" for part, limit in ASKED.items()
            )
        lines += rows_of(head, cells)
        lines += ["", "n = 1 each, after a graph of the smallest size that is not counted."]
    if found := results.get("studies"):
        head = "runs of a small study | on one core, s | on two cores, s | ratio"
        took = {(row["runs"], row["cores"]): row["seconds"] for row in found}
        cells = [
            [str(runs), f"{took[runs, 1]:.0f}", f"{took[runs, 2]:.0f}", f"{took[runs, 1] / took[runs, 2]:.2f}"]
            for runs in sorted({runs for runs, _ in took})
        ]
        lines += rows_of(head, cells)
        lines += ["", "Whole studies, pages included: MNIST, fp32 and w4a4 with ordinary training; n = 1 each."]
    if found := results.get("maps"):
        lines += [
            "",
            f"All measures of the gradient maps of {found['runs']} runs ({found['dataset']}, {found['images']:,} images each), "
            f"two jobs at a time: {found['seconds']:.0f} s (n = 1).",
        ]
    origins = {part: origin for part, origin in results["provenance"].items() if results.get(part)}
    where = {
        part: f"{o['cpu']}, {o['cores']} cores, torch {o['packages']['torch']}, {o['ended'][:10]}, {revision(o['git'])}"
        for part, o in origins.items()
    }
    if len(set(where.values())) == 1:
        where = {"": next(iter(where.values()))}
    lines += ["", "; ".join(f"{part}: {text}" if part else text for part, text in where.items()) + "."]
    return "\n".join(lines[1:])


def measure(part: str, graphs: Sequence[int], scratch: Path) -> dict | list | None:
    """One part; graphs: sizes of the graph."""
    if part == "steps":
        return measure_steps(FEWEST_REPEATS)
    if part == "graph":
        measure_graph(min(graphs), scratch / "first")  # imports and caches: what the first graph of a process pays
        return [measure_graph(count, scratch / f"graph{count}") for count in graphs]
    if part == "studies":
        sizes = [(seeds, cores) for seeds in SEEDS for cores in (1, 2)]
        return [measure_study(*size, scratch / "studies{}on{}".format(*size)) for size in sizes]
    return measure_maps("fashion_mnist", scratch / "maps")


def known_part(name: str) -> str:
    """A part by its name. (argparse's `choices` refuses the default of all parts.)"""
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"'{name}': expected one of {', '.join(PARTS)}")
    return name


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", type=known_part, default=list(PARTS), help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS, help="sizes of the graph (100 1000 10000)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write (benchmarks/scale.json)")
    options = parser.parse_args(arguments)
    results: dict = json.loads(options.output.read_text()) if options.output.exists() else {}
    code = git_state()  # now: each part that is written changes this file
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts:
            print(f"measuring {part} ...", file=sys.stderr)
            started = time.time()
            found = measure(part, options.runs, Path(scratch))
            if found is None:  # what was measured before stays
                print(f"{part}: not measured: the paper study is not finished (`make reproduce`)", file=sys.stderr)
                continue
            results[part] = found
            results.setdefault("provenance", {})[part] = {**provenance(started), "git": code}
            write_atomically(options.output, (json.dumps(results, indent=1) + "\n").encode())  # what is measured stays
    print(table(results))
    if options.output == OUTPUT:
        update_page(SCALE, table(results))


if __name__ == "__main__":
    main()
