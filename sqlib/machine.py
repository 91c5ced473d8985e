"""What depends on the machine and not on the study: its units for bfloat16, and how its memory is handled."""

import ctypes
import functools
from pathlib import Path


@functools.cache
def bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 by itself, as Linux tells (x86: AVX-512 BF16 or AMX); elsewhere False."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


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
