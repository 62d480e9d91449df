"""The hash that gives an agent its shard: `xxh3_64(agent id) % shards`, unseeded.

xxHash specification: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md (XXH3, 64 bits).
Data on disk depends on it: it can never change.
"""

from __future__ import annotations

from collections.abc import Callable

import xxhash

__all__ = ["hash_agent", "shard_of"]

hash_agent: Callable[[bytes], int] = xxhash.xxh3_64_intdigest
"""The 64-bit hash of an agent id's UTF-8 bytes."""


def shard_of(agent: bytes, shards: int) -> int:
    """Return the shard (0 to shards - 1) of the agent with these UTF-8 bytes as its id."""
    return hash_agent(agent) % shards
