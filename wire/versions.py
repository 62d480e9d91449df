"""Versions: generation (24 bits) | sequence (40 bits), one growing number per shard.

Each committed write takes the shard's next sequence; each start of a node first takes a new generation from the
control store, durably. So no version is ever used twice, whatever was lost.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GENERATION_MAX", "SEQUENCE_BITS", "first_version", "generation_of", "sequence_of"]

SEQUENCE_BITS: Final = 40
GENERATION_MAX: Final = (1 << 24) - 1
_SEQUENCE_MASK: Final = (1 << SEQUENCE_BITS) - 1


def first_version(generation: int) -> int:
    """Return the version before the first write of a generation: its sequence is 0, which no write takes."""
    if not 0 < generation <= GENERATION_MAX:
        raise ValueError(f"generation {generation} is outside 1 to {GENERATION_MAX}")
    return generation << SEQUENCE_BITS


def generation_of(version: int) -> int:
    """Return the generation that a version was written in."""
    return version >> SEQUENCE_BITS


def sequence_of(version: int) -> int:
    """Return a version's place within its generation, from 1."""
    return version & _SEQUENCE_MASK
