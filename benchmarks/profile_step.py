"""Where the time of a training step goes: `make profile` writes benchmarks/profile.txt, the costliest operations of each kind."""

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import authors
import brevitas_net
import steps
from sqlib.files import write_atomically
from sqlib.hardware import keep_memory
from timing import Step

OUTPUT = Path(__file__).with_name("profile.txt")
TOP = 15


def kinds(batch: int, precision: str) -> dict[str, Step]:
    """A step of each kind, by what it is; Brevitas's if it is installed. The authors' procedure is in float32."""
    found = {
        f"{network}/{setup}/{training}": steps.ours(network, setup, training, batch, precision=precision)
        for network in ("lenet", "sgt_cnn")
        for setup in ("fp32", "w4a4")
        for training in ("standard", "saliency_guided")
    }
    found["sgt_cnn, the authors' procedure, float32"] = authors.step(batch)
    if brevitas_net.why_not() is None:
        found["lenet, Brevitas, 4 bits"] = brevitas_net.step(batch, precision)
    return found


def operations(step: Step, warm_up: int = 3) -> str:
    """The step's costliest operations by their own time, after `warm_up` calls that are not recorded."""
    for _ in range(warm_up):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    return record.key_averages().table(sort_by="self_cpu_time_total", row_limit=TOP, max_name_column_width=45)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="of torch (%(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="images a step (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=steps.PRECISIONS,
        default=steps.precisions()[-1],
        help="of the convolutions (%(default)s: the study's on this machine)",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write (benchmarks/profile.txt)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_memory()
    heading = f"One step of {options.batch} images, {options.precision}, threads: {options.threads}, torch {torch.__version__}\n"
    steps_of = kinds(options.batch, options.precision)
    parts = [f"\n== {kind} ==\n{operations(step)}" for kind, step in steps_of.items()]
    write_atomically(options.output, (heading + "".join(parts)).encode())
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
