"""What depends on the machine and not on the study: its GPU, its arithmetic units, and how its memory is handled."""

import ctypes
import functools
import os
from pathlib import Path

import torch

from sqlib.config import SqlibError


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
    keep_memory()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


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
