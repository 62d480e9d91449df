"""Many images looked up at once: by _lookup.c, if it could be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["FIND_MIN", "Values", "find", "join", "join_views", "views", "warm"]

Values: TypeAlias = "bytes | list[bytes | memoryview]"
"""Values of a database: their places, as `find` returned them, or themselves; valid until their transaction ends."""

FIND_MIN: Final = 16
"""Fewer keys are looked up one by one: finding the map takes 2 us, as long as eight of them with warm caches."""

find: Callable[[memoryview, int, list[bytes], int], tuple[list[int], bytes] | None] | None
"""`_lookup.find`; None, as what follows, if the package was installed without a C compiler."""

warm: Callable[[memoryview, int, list[bytes]], bool] | None
"""`_lookup.warm`."""

views: Callable[[bytes], list[bytes | memoryview]] | None
"""`_lookup.views`."""

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

    # One that was built from an earlier source, and has not all of them, counts as none.
    find, warm, views, join = _lookup.find, _lookup.warm, _lookup.views, _lookup.join
except (ImportError, AttributeError):
    find, warm, views, join = None, None, None, join_views
