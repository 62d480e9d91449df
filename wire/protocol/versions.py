"""Versions: generation (24 bits) | sequence (40 bits), one growing number per shard.

Each committed write takes the shard's next sequence; each start of a node first takes a new generation from the
control store, durably. So versions grow, and none is used twice as long as the control store remembers.

It does not if data came back from a backup or a copy: two lives of one shard that begin at the same generation know
nothing of each other. So a start's sequence does not begin at 0 but at an origin that it draws at random, one of 2^31.
Two lives give the same version only if both generation and origin coincide (docs/decisions/0010).
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "GENERATION_MAX",
    "ORIGINS",
    "SEQUENCE_BITS",
    "begins_generation",
    "first_version",
    "generation_of",
    "sequence_of",
]

SEQUENCE_BITS: Final = 40
GENERATION_MAX: Final = (1 << 24) - 1
_SEQUENCE_MASK: Final = (1 << SEQUENCE_BITS) - 1

_ORIGIN_SHIFT: Final = 8
"""Origins are 256 versions apart, so that a generation's first write is known by its last byte."""

ORIGINS: Final = 1 << 31
"""Places where a generation's sequence may begin: all in the lower half, so that 2^39 writes, 17 years of a thousand a
second, always follow."""


def first_version(generation: int, origin: int = 0) -> int:
    """Return the version before the first write of a generation that begins at `origin`: no write takes it."""
    if not 0 < generation <= GENERATION_MAX:
        raise ValueError(f"generation {generation} is outside 1 to {GENERATION_MAX}")
    if not 0 <= origin < ORIGINS:
        raise ValueError(f"origin {origin} is outside 0 to {ORIGINS - 1}")
    return generation << SEQUENCE_BITS | origin << _ORIGIN_SHIFT


def begins_generation(version: int, writes: int = 1) -> bool:
    """Return whether a version can be that of the first write of its generation (`writes` 0: the one before it)."""
    return version & ((1 << _ORIGIN_SHIFT) - 1) == writes


def generation_of(version: int) -> int:
    """Return the generation that a version was written in."""
    return version >> SEQUENCE_BITS


def sequence_of(version: int) -> int:
    """Return a version's place within its generation: it grows by one with each write."""
    return version & _SEQUENCE_MASK
