"""Settings of a process that receives many large replies at once: a node's, and, if its owner likes, an agent host's.

Both change the entire process, so a library does not do it unasked: nodes call it for themselves, hosts may.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

__all__ = ["tune_process"]

_GC_THRESHOLDS: Final = (50_000, 20, 100)
"""Storms make many small objects and no cycles: with 100,000 live agents in a host 10,000 tasks that each wake one took
238 ms with the default thresholds, 150 with these."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Parameters of mallopt(3), from glibc's malloc.h."""

_MMAP_THRESHOLD_BYTES: Final = 32 << 20
"""glibc's own maximum (mallopt(3), DEFAULT_MMAP_THRESHOLD_MAX on 64 bits): frames come from the heap, not from mmap."""

_TRIM_THRESHOLD_BYTES: Final = 256 << 20
"""Free memory at the heap's end that is kept: a storm of 10,000 agents of 20 KB. The memory of one storm then serves
the next; otherwise it is given back and its pages are cleared and mapped anew: 55 ms of CPU for a wake of 10,000, 42
with this."""


def tune_process() -> bool:
    """Let this process keep the memory of one storm for the next, and run the garbage collector less often.

    Returns whether both could be set: mallopt(3) is glibc's; elsewhere only the collector is. Call it once, early, from
    the main thread.
    """
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES))
