"""Files whose pages are not in memory: dropped (posix_fadvise(2)), and looked at (mincore(2)).

Neither needs a right beyond that to the files. Pages that a process has mapped stay, and so does everything on a file
system that is in memory: whoever measures cold data looks at `resident_share` first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["PAGE_BYTES", "drop", "resident_pages", "resident_share"]

PAGE_BYTES = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)


def drop(files: Iterable[Path]) -> None:
    """Write these files to the disk, and let their pages go from memory."""
    for file in files:
        descriptor = os.open(file, os.O_RDWR)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_pages(file: Path) -> bytes:
    """Return a byte for each page of a file: 1 if it is in memory, 0 if it has to be read."""
    with file.open("r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        if not size:
            return b""
        with mmap.mmap(opened.fileno(), size) as mapped:
            pages = -(-size // PAGE_BYTES)
            residency = (ctypes.c_ubyte * pages)()
            beginning = ctypes.c_char.from_buffer(mapped)
            try:
                failed = _libc.mincore(ctypes.byref(beginning), ctypes.c_size_t(size), residency)
            finally:
                del beginning  # or the map could not be closed
            if failed:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(file))
            return bytes([page & 1 for page in residency])


def resident_share(files: Sequence[Path]) -> float:
    """Return how much of these files is in memory, from 0 to 1."""
    pages = [resident_pages(file) for file in files]
    return sum(map(sum, pages)) / max(1, sum(map(len, pages)))
