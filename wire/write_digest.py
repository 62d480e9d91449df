"""The digest of a write: 64 bits beside its id in the log, so that an id used again for another write is found out.

Versions and lifetimes are no part of it: whoever repeats a save may expect, and say of its lifetime, something new.

XXH3 of 64 bits (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md); the hashes of operations are summed,
so that their order does not count. Logs on disk hold digests: what is computed here can never change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xxhash import xxh3_64_intdigest

from .messages import Drop, Operation, Put

__all__ = ["operations_digest"]

_DROP: Final = 1 << 32
_ERASE: Final = 1 << 33
_MASK: Final = (1 << 64) - 1

_SEEDS_MAX: Final = 4_096
"""Kinds whose hash is kept: a cluster has 64 at most, and what a peer makes up is refused."""

_seeds: dict[str, int] = {}


def operations_digest(operations: Iterable[Operation]) -> int:
    """Return the digest of some operations, never 0; 0.15 us each of 512 bytes."""
    total = 0
    for operation in operations:
        if isinstance(operation, Put):
            kind = operation.kind
            seed = _seeds.get(kind)
            if seed is None:
                seed = _seed(kind)
            total += xxh3_64_intdigest(operation.value, seed ^ operation.encoding)
        elif isinstance(operation, Drop):
            total += xxh3_64_intdigest(operation.kind.encode(), _DROP)
        else:
            total += xxh3_64_intdigest(b"", _ERASE)
    return total & _MASK or 1


def _seed(kind: str) -> int:
    if len(_seeds) >= _SEEDS_MAX:
        _seeds.clear()
    seed = _seeds[kind] = xxh3_64_intdigest(kind.encode())
    return seed
