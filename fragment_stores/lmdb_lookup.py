"""Many images looked up at once: by lmdb_lookup.c, where it could be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["LOOK_UP_MIN", "LookUp", "look_up"]

LookUp: TypeAlias = Callable[[memoryview, int, list[bytes]], list[bytes | memoryview] | None]

LOOK_UP_MIN: Final = 16
"""Fewer keys are looked up one by one: finding the map costs as much as three of them."""

look_up: LookUp | None
"""`_lmdb_lookup.look_up`; None where the package was installed without a C compiler."""

try:
    from . import _lmdb_lookup
except ImportError:
    look_up = None
else:
    look_up = _lmdb_lookup.look_up
