"""What depends on the machine and not on the study: its GPU, its arithmetic units, and how its memory is handled."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sqlib.checked import SqlibError


def device() -> torch.device:
    """Where to train: an NVIDIA GPU where there is one, else the CPU, or what `$SQLIB_DEVICE` says (`cpu`, `cuda:1`).

    Raises SqlibError for a GPU that is asked for and not there.
    """
    asked = os.environ.get("SQLIB_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(asked)
        known = chosen.type == "cpu" or (chosen.type == "cuda" and (chosen.index or 0) < torch.cuda.device_count())
    except RuntimeError:
        known = False
    if not known:
        raise SqlibError(f"SQLIB_DEVICE={asked}: there is no such device here; unset it, or take cpu")
    return chosen


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name as its driver gives it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prepare(threads: int) -> None:
    """Before anything is computed: as many threads as the run may have, memory kept, and float32 that is float32.

    On a GPU convolutions would otherwise round their inputs to 10 bits (TF32), and pick their algorithm by its speed.
    """
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)  # in JupyterLab a user's start-up file may have changed it
    keep_memory()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


@functools.cache
def constant(value: float, device: torch.device) -> Tensor:
    """A number as a 0-d float32 tensor, to divide (by) it as a processor does, to the bit.

    On a GPU torch divides by a number by multiplying with its reciprocal, which rounds twice; and of the codes that come
    after it some then round the other way.
    """
    return torch.tensor(float(value), dtype=torch.float32, device=device)


class Replayed:
    """A function of one tensor on a GPU: computed step by step `warm` times, then captured as a CUDA graph and replayed.

    A training step is hundreds of small kernels, and to launch them one by one takes longer than to compute them.
    The function is given the same tensor each time, with other values; what it computes must depend on nothing else that
    changes but tensors, and it must not wait for the GPU. Replaying gives the same bits (`make bench-gpu` tries it).
    """

    def __init__(
        self,
        function: Callable[[Tensor], tuple[Tensor, ...]],
        argument: Tensor,
        generators: Sequence[torch.Generator],
        warm: int = 3,
    ):
        """generators: those of the GPU that the function draws from, besides the default one."""
        self.function, self.argument, self.generators, self.warm = function, argument, generators, warm
        self.graph = None

    def __call__(self, argument: Tensor) -> tuple[Tensor, ...]:
        """The function of `argument`, which has the shape and type of the first one; the results are the caller's to keep."""
        self.argument.copy_(argument)
        if self.warm > 0:  # in these the libraries choose their kernels and take their memory
            self.warm -= 1
            with aside(self.argument.device):
                return self.function(self.argument)
        if self.graph is None:
            device = self.argument.device
            self.graph, self.results = capture(lambda: self.function(self.argument), self.generators, device)
        self.graph.replay()
        return tuple(result.clone() for result in self.results)


def replayed(function: Callable, argument: Tensor, generators: Sequence[torch.Generator]) -> Callable:
    """The function as it is fastest where its argument is: `Replayed` on a GPU, as it is on a processor.

    `$SQLIB_REPLAY=no` leaves it as it is on a GPU, too. Raises SqlibError for another value than `yes` and `no`.
    """
    asked = os.environ.get("SQLIB_REPLAY") or "yes"
    if asked not in ("yes", "no"):
        raise SqlibError(f"SQLIB_REPLAY={asked}: expected yes (which is the default) or no")
    return Replayed(function, argument, generators) if argument.is_cuda and asked == "yes" else function


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a GPU beside its default one. Each stream costs cuBLAS a workspace of its own, for good."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On the side stream, as what is captured later must not have been on the default one."""
    now, side = torch.cuda.current_stream(device), side_stream(device)
    side.wait_stream(now)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        now.wait_stream(side)


def capture(function: Callable[[], tuple[Tensor, ...]], generators: Sequence[torch.Generator], device: torch.device):
    """(graph, where its results will be): what the function launches on the device, recorded and not computed.

    Raises SqlibError where that cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream(device)
    try:
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=side_stream(device)):
            results = function()
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # which the recording does not do where its own end fails
        first = error
        while isinstance(first.__context__, RuntimeError):  # that end says only that something went wrong before it
            first = first.__context__
        reason = " ".join(str(first).split())
        raise SqlibError(
            f"a training step could not be recorded as a CUDA graph ({reason[:200]}); SQLIB_REPLAY=no computes it step by step"
        ) from error
    return graph, results


@functools.cache
def instructions() -> frozenset[str]:
    """What this processor can do, in Linux's words (`avx512_bf16`, ...), and who made it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    told = dict(line.split(":", 1) for line in reversed(lines) if line.startswith(("flags\t", "vendor_id\t")))
    return frozenset(word for words in told.values() for word in words.split())


def bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32: with AMX, or AMD's with AVX-512 BF16.

    Intel's AVX-512 BF16 without AMX is slower than its float32: `make bench` prints both rates of matrix products.
    """
    has = instructions()
    return "amx_bf16" in has or {"avx512_bf16", "AuthenticAMD"} <= has


def int8_units() -> bool:
    """Whether this processor adds up products of 8-bit integers in 32 bits (VNNI), in one instruction and without overflow."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(instructions())


def keep_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system after every step; elsewhere, do nothing.

    A step allocates the same few large tensors each time. Fetching fresh zeroed pages for them each time is slow.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
