"""Many images looked up at once: by _lookup.c, where it could be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["FIND_MIN", "Values", "find", "join", "join_views"]

Values: TypeAlias = "bytes | list[bytes | memoryview]"
"""Values of a database: their places, as `find` returned them, or themselves; valid until their transaction ends."""

FIND_MIN: Final = 16
"""Fewer keys are looked up one by one: finding the map takes 2 us, as long as eight of them with warm caches."""

find: Callable[[memoryview, int, list[bytes]], tuple[list[int], bytes] | None] | None
"""`_lookup.find`; None where the package was installed without a C compiler."""

join: Callable[[bytes, list[Values]], bytes]
"""`_lookup.join`; without it there are no places, and bytes.join does the same."""


def join_views(head: bytes, batches: list[Values]) -> bytes:
    """Return the head and, one after another, the values of batches that are lists."""
    parts: list[bytes | memoryview] = [head]
    for batch in batches:
        assert isinstance(batch, list), "places are `find`'s, which is not there"
        parts += batch
    return b"".join(parts)


try:
    from . import _lookup
except ImportError:
    find, join = None, join_views
else:
    find, join = _lookup.find, _lookup.join
