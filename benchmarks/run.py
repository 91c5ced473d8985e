"""Measure the ratios that say whether training is fast: `make bench`, or `python benchmarks/run.py --help`.

Each ratio is the median over repeats of (seconds of one side / seconds of the other), the two sides called in turn in this
process, each built anew a few times. A target is met, or missed, where all builds agree. Where a ratio is measured in
several cases (networks, setups), the one furthest from its target stands for it.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

import authors
import brevitas_net
import gemm
import steps
from sqlib.files import write_atomically
from sqlib.hardware import bfloat16_units, instructions, keep_memory
from sqlib.networks.network import build_model
from sqlib.quant.kernels import integers
from sqlib.study.origin import provenance
from sqlib.study.parameters import load_setup
from sqlib.workflow.readme import BENCHMARKS, markdown_table, revision, update_page
from timing import BUILDS, FEWEST_REPEATS, Step, alternate, summary

OUTPUT = Path(__file__).with_name("results.json")

TARGETS = {
    "quantised_over_float": ("at most", 1.25),
    "guided_over_standard": ("at most", 3.0),
    "authors_over_ours": ("at least", 6.0),
    "brevitas_over_ours_float32": ("at least", 1.3),
    "brevitas_over_ours_bfloat16": ("at least", 2.2),
    "gemm_fraction": ("at least", 0.8),
    "float32_over_bfloat16": ("at least", 1.0),
    "float_over_integers": ("at least", 1.0),
}


@dataclass(frozen=True)
class Size:
    """How large what is measured is: images a batch, rows and columns of the matrices."""

    batch: int = 512
    matrix: int = 2048


QUICK = Size(batch=4, matrix=32)


@dataclass(frozen=True)
class Case:
    """One measured ratio, `scale` x seconds of `over` / seconds of `under`; each side is its label and what builds it."""

    ratio: str
    name: str
    over: tuple[str, Callable[[], Step]]
    under: tuple[str, Callable[[], Step]]
    scale: float = 1.0
    arithmetic: tuple[float, str] | None = None
    """Of `under`, where the ratio has a ceiling: its matrix products' floating-point operations, and in what precision."""


def cases(size: Size) -> Iterator[Case]:
    """Everything that can be measured here, in the order of `TARGETS`."""

    def ours(precision, network, setup, training="standard", guidance=None):
        label = f"{network}/{setup}/{training}, {precision}"
        return label, lambda: steps.ours(network, setup, training, size.batch, guidance, precision)

    def brevitas(precision):
        return f"lenet, Brevitas, 4 bits, {precision}", lambda: brevitas_net.step(size.batch, precision)

    def flops(network, training="standard"):
        return gemm.step_flops(build_model(network, load_setup("w4a4")), size.batch, training, integers())

    precisions = steps.precisions()
    for precision in precisions:
        for network in ("lenet", "sgt_cnn"):
            quantised, floating = (ours(precision, network, setup) for setup in ("w4a4", "fp32"))
            yield Case("quantised_over_float", f"{network}, {precision}", quantised, floating)
    for precision in precisions:
        for network in ("lenet", "sgt_cnn"):
            for setup in ("fp32", "w4a4"):
                guided, standard = ours(precision, network, setup, "saliency_guided"), ours(precision, network, setup)
                yield Case("guided_over_standard", f"{network}/{setup}, {precision}", guided, standard)
    plain = "authors' procedure, float32", lambda: authors.step(size.batch)
    fastest = ours(precisions[-1], "sgt_cnn", "w4a4", "saliency_guided", authors.GUIDANCE)
    arithmetic = flops("sgt_cnn", "saliency_guided"), precisions[-1]
    yield Case("authors_over_ours", f"sgt_cnn, {precisions[-1]}", plain, fastest, arithmetic=arithmetic)
    if brevitas_net.why_not() is None:
        for precision in ("float32", "bfloat16") if native_bfloat16() else ("float32",):
            sides = brevitas(precision), ours(precision, "lenet", "w4a4")
            case = "lenet" if precision in precisions else "lenet (slower than float32 here, so not used)"
            yield Case(f"brevitas_over_ours_{precision}", case, *sides, arithmetic=(flops("lenet"), precision))
    product = f"float32 product {size.matrix}", lambda: gemm.product(size.matrix)
    for network in ("lenet", "sgt_cnn"):
        scale = gemm.step_flops(build_model(network, load_setup("fp32")), size.batch) / gemm.product_flops(size.matrix)
        yield Case("gemm_fraction", network, product, ours("float32", network, "fp32"), scale)
    if "bfloat16" in precisions:
        for network, setup, training in (("lenet", "w4a4", "standard"), ("lenet", "w4a4", "saliency_guided")):
            slow, fast = (ours(precision, network, setup, training) for precision in precisions)
            yield Case("float32_over_bfloat16", f"{network}/{setup}/{training}", slow, fast)
    if integers():
        for network, training in itertools.product(("lenet", "sgt_cnn"), ("standard", "saliency_guided")):
            label, build = ours(precisions[-1], network, "w4a4", training)
            slow = f"{label}, in floating point", lambda build=build: steps.without_integers(build())
            yield Case("float_over_integers", f"{network}/{training}", slow, (label, build))


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 at all, be it slower than float32."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(instructions())


def reasons() -> dict[str, str]:
    """Why a ratio has no case, by ratio."""
    missing = {}
    if not bfloat16_units():
        missing["float32_over_bfloat16"] = "not measured: this processor is not faster in bfloat16, so float32 is used"
    if not native_bfloat16():
        missing["brevitas_over_ours_bfloat16"] = "not measured: this processor does not multiply bfloat16"
    if not integers():
        missing["float_over_integers"] = "not measured: this processor has no units for 8-bit integers"
    if reason := brevitas_net.why_not():
        missing |= dict.fromkeys(("brevitas_over_ours_float32", "brevitas_over_ours_bfloat16"), reason)
    return missing


def measure(case: Case, repeats: int, warm_up: int, rates: dict[str, dict], builds: int = BUILDS) -> dict:
    """Median, n and spread of the case's ratio over `builds` x `repeats` pairs, and the median seconds of its two sides.

    `builds`: the median ratio of each build of the two sides. `ceiling`, where the case has one: the ratio if `under` took
    no longer than its matrix products at the rate in `rates`.
    """
    (over_label, over), (under_label, under) = case.over, case.under
    rounds = [alternate(over(), under(), repeats, warm_up) for _ in range(builds)]
    ratios = [[case.scale * a / b for a, b in zip(*sides, strict=True)] for sides in rounds]
    over_times, under_times = ([*itertools.chain(*side)] for side in zip(*rounds, strict=True))
    seconds = {over_label: statistics.median(over_times), under_label: statistics.median(under_times)}
    found = {
        **summary([*itertools.chain(*ratios)]),
        "builds": [statistics.median(part) for part in ratios],
        "seconds": seconds,
    }
    if case.arithmetic:
        flops, precision = case.arithmetic
        found["ceiling"] = seconds[over_label] * 1e9 * rates[f"{precision}_gflops"]["median"] / flops
    return found


def conclude(ratio: str, measured: dict[str, dict]) -> dict:
    """The entry of a ratio from its measured cases: the worst case's numbers, the target, whether it is met, every case.

    `met` is None where the builds of a case do not agree.
    """
    rule, value = TARGETS[ratio]

    def meets(case: dict) -> bool | None:
        said = {median <= value if rule == "at most" else median >= value for median in case["builds"]}
        return said.pop() if len(said) == 1 else None

    entry = {"target": {"rule": rule, "value": value}}
    if not measured:
        return {"median": None, "n": 0, "spread": None, **entry, "met": None, "reason": reasons()[ratio], "cases": {}}
    pick = max if rule == "at most" else min
    worst = pick(measured, key=lambda name: measured[name]["median"])
    numbers = {key: measured[worst][key] for key in ("median", "n", "spread")}
    by_case = {name: {**case, "met": meets(case)} for name, case in measured.items()}
    return {**numbers, **entry, "met": by_case[worst]["met"], "case": worst, "cases": by_case}


def gemm_rates(size: Size, repeats: int, warm_up: int) -> dict[str, dict]:
    """Measured GFLOP/s of a float32 and a bfloat16 matrix product."""
    sides = [gemm.product(size.matrix, dtype) for dtype in (torch.float32, torch.bfloat16)]
    gigaflops = gemm.product_flops(size.matrix) / 1e9
    names = ("float32_gflops", "bfloat16_gflops")
    return {
        name: summary([gigaflops / seconds for seconds in times])
        for name, times in zip(names, alternate(*sides, repeats, warm_up), strict=True)
    }


def benchmark(repeats: int, threads: int, size: Size, warm_up: int) -> dict:
    """Measure everything; what `results.json` holds."""
    torch.set_num_threads(threads)
    keep_memory()  # as in training; the other side of each ratio has the good of it, too
    started, load = datetime.now(UTC).timestamp(), os.getloadavg()
    rates = gemm_rates(size, repeats, warm_up)
    measured: dict[str, dict[str, dict]] = {ratio: {} for ratio in TARGETS}
    for case in cases(size):
        print(f"measuring {case.ratio}: {case.name}", file=sys.stderr, flush=True)
        measured[case.ratio][case.name] = measure(case, repeats, warm_up, rates)
    origin = provenance(started)
    machine = {key: origin[key] for key in ("cpu", "cores", "platform")}
    return {
        "machine": {**machine, "instructions": torch.backends.cpu.get_cpu_capability()},
        "ratios": {ratio: conclude(ratio, by_case) for ratio, by_case in measured.items()},
        "gemm": rates,
        "batch": size.batch,
        "repeats": repeats,
        "builds": BUILDS,
        "warm_up": warm_up,
        "threads": threads,
        "torch": str(torch.__version__),
        "python": origin["python"],
        "git": origin["git"],
        "date": origin["started"],
        "load_average": {"before": load, "after": os.getloadavg()},
    }


VERDICTS = {True: "yes", False: "**no**", None: "unclear"}


def range_of(builds: list[float]) -> str:
    """The smallest and the largest median of a build."""
    return f"{min(builds):.2f} to {max(builds):.2f}"


IDLE = 0.5
"""Load average of a minute below which a machine counts as idle."""


def wait_until_idle(most: float = 150, step: float = 5) -> None:
    """Wait until the load average has forgotten what has just ended, `most` seconds at most."""
    waited = 0.0
    while os.getloadavg()[0] > IDLE and waited < most:
        if not waited:
            print("waiting until the machine is idle ...", file=sys.stderr, flush=True)
        time.sleep(step)
        waited += step


def busy(results: dict) -> str:
    """A sentence where the machine had something else to do when this began, else ""."""
    load = results["load_average"]["before"][0]
    return f"The machine was busy before this began (load average {load:.1f}): measure again." if load > IDLE else ""


def table(results: dict) -> str:
    """The results for a reader: a row a case, then where and when."""
    rows = [("ratio", "case", "median", "quartiles", "builds", "n", "target", "met", "ceiling", "medians, ms")]
    for ratio, entry in results["ratios"].items():
        target = f"{entry['target']['rule']} {entry['target']['value']:g}"
        for name, case in entry["cases"].items():
            low, high = case["spread"]
            own = (f"{case['median']:.2f}", f"{low:.2f} to {high:.2f}", range_of(case["builds"]), str(case["n"]))
            ceiling = f"{case['ceiling']:.1f}" if "ceiling" in case else "-"
            sides = " / ".join(f"{1000 * seconds:.1f}" for seconds in case["seconds"].values())
            rows.append((ratio, name, *own, target, VERDICTS[case["met"]].strip("*"), ceiling, sides))
        if not entry["cases"]:
            rows.append((ratio, entry["reason"], "-", "-", "-", "0", target, "-", "-", "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if results["quick"]:
        lines.insert(0, "--quick: tiny batches, to see that it runs. No number below means anything, and no verdict.")
    float32, bfloat16 = (results["gemm"][name]["median"] for name in ("float32_gflops", "bfloat16_gflops"))
    lines += ["", f"Matrix products: float32 {float32:.0f} GFLOP/s, bfloat16 {bfloat16:.0f} GFLOP/s"]
    machine = results["machine"]
    lines.append(
        f"{machine['cpu']}, {results['threads']} threads of {machine['cores']} cores, torch {results['torch']}, "
        f"batch {results['batch']}, {revision(results['git'])}, {results['date']}"
    )
    if not results["quick"] and (said := busy(results)):
        lines.append(said)
    return "\n".join(lines)


MEANINGS = {
    "quantised_over_float": "w4a4 / fp32",
    "guided_over_standard": "guided / ordinary, the same network and setup",
    "authors_over_ours": "a plain implementation of the authors' procedure, float network in float32 / ours, guided w4a4",
    "brevitas_over_ours_float32": "Brevitas / ours, 4 bits, both in float32",
    "brevitas_over_ours_bfloat16": "Brevitas / ours, 4 bits, both in bfloat16",
    "gemm_fraction": "its arithmetic alone, at this machine's rate of matrix products / fp32 in float32",
    "float32_over_bfloat16": "float32 / bfloat16, w4a4",
    "float_over_integers": "convolutions of codes in floating point / in 8-bit integers, w4a4",
}


def page_table(results: dict) -> str:
    """The results as a Markdown table, a row a case."""
    rows = []
    for ratio, entry in results["ratios"].items():
        target = f"{entry['target']['rule']} {entry['target']['value']:g}"
        what = f"`{ratio}`: {MEANINGS[ratio]}"
        for name, case in entry["cases"].items():
            low, high = case["spread"]
            met = VERDICTS[case["met"]]
            ceiling = f"{case['ceiling']:.1f}" if "ceiling" in case else ""
            spreads = [f"{low:.2f} to {high:.2f}", range_of(case["builds"])]
            rows.append([what, name, f"{case['median']:.2f}", *spreads, target, met, ceiling])
            what = ""
        if not entry["cases"]:
            rows.append([what, entry["reason"], "", "", "", target, "", ""])
    kind = "ratio of the times of two training steps"
    lines = markdown_table([kind, "case", "median", "quartiles", "builds", "target", "met", "ceiling"], rows)
    rates = [f"{kind} {results['gemm'][f'{kind}_gflops']['median']:.0f} GFLOP/s" for kind in ("float32", "bfloat16")]
    machine = results["machine"]
    lines += [
        "",
        f"n = {results['repeats']} pairs in each of {results['builds']} builds, batch {results['batch']}, "
        f"{results['threads']} threads of {machine['cores']} cores of {machine['cpu']}, torch {results['torch']}, "
        f"{results['date'][:10]}, {revision(results['git'])}; matrix products: {', '.join(rates)}. Builds: the smallest and the "
        "largest median of a build; unclear: they lie on both sides of the target. Ceiling: the ratio if our step were nothing "
        f"but its floating-point matrix products, done directly, at that rate. {busy(results)}".rstrip(),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=FEWEST_REPEATS, help="timed pairs in each build (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny batches, 2 repeats: does it run? The numbers mean nothing"
    )
    parser.add_argument("--output", type=Path, help="where to write (benchmarks/results.json; with --quick nowhere)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error("--threads: expected at least 1")
    if options.quick:
        results = {**benchmark(2, options.threads, QUICK, warm_up=1), "quick": True}
    elif options.repeats < FEWEST_REPEATS:
        parser.error(f"--repeats: at least {FEWEST_REPEATS} are needed for a median with quartiles (or take --quick)")
    else:
        wait_until_idle()
        results = {**benchmark(options.repeats, options.threads, Size(), warm_up=2), "quick": False}
    output = options.output or (None if options.quick else OUTPUT)
    if output:
        write_atomically(output, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))
    if output == OUTPUT:
        update_page(BENCHMARKS, page_table(results))


if __name__ == "__main__":
    main()
