"""The agents of a store: the ids of its shards, page by page, merged.

Separate from `unary_call`, which is compiled: an asynchronous generator cannot be.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from ...wire.protocol.limits import AGENT_ID_BYTES_MAX
from ..dispatch.router import Router
from ..dispatch.unary_call import scan_shard

__all__ = ["list_agents"]

_PAGE_AGENTS: Final = 1_000
"""Ids of one shard requested at once; 48 shards hold 48,000 ids, about 3 MB, while they are merged."""


async def list_agents(
    router: Router, stores: Sequence[str], page_deadline_s: float, prefix: bytes = b""
) -> AsyncGenerator[str, None]:
    """Yield the ids of all agents with an image in any of the stores, each once, in the byte order of their UTF-8.

    Only ids that begin with `prefix`. They come in order from each shard, page by page, and are merged; agents saved
    meanwhile may or may not be listed.

    Raises:
        ClusterUnavailable: a shard could not be listed; the ids yielded before are not all.
    """
    assert router.placement is not None
    streams = [
        _list_shard(router, store, shard, page_deadline_s, prefix)
        for store in stores
        for shard in range(len(router.placement.shards[store]))
    ]
    heads: list[tuple[bytes, int]] = []
    for number, first in enumerate(await asyncio.gather(*(anext(stream, None) for stream in streams))):
        if first is not None:
            heads.append((first, number))
    heapq.heapify(heads)
    before: bytes | None = None
    while heads:
        agent, number = heads[0]
        if agent != before:
            before = agent
            yield agent.decode(errors="surrogateescape")
        following = await anext(streams[number], None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following, number))


async def _list_shard(
    router: Router, store: str, shard: int, deadline_s: float, prefix: bytes
) -> AsyncGenerator[bytes, None]:
    position = _before(prefix)
    while True:
        scanned = await scan_shard(router, store, shard, position, _PAGE_AGENTS, deadline_s, prefix)
        for agent in scanned.agents:
            if not agent.startswith(prefix):
                return
            yield agent
        if scanned.last or not scanned.agents:
            return
        position = scanned.agents[-1]


def _before(prefix: bytes) -> bytes:
    """Return a position directly before the first id of this prefix: no other id is between them."""
    if not prefix or prefix[-1] == 0:
        return prefix[:-1]  # no id is between an id and the same with a zero byte appended
    before = prefix[:-1] + bytes([prefix[-1] - 1])
    # No byte of UTF-8 is 0xFF; and an id of the greatest length has no longer one behind it.
    return before + b"\xff" if len(before) < AGENT_ID_BYTES_MAX else before
