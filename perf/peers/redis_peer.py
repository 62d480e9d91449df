"""Redis as the peer: a real redis-server of the harness's own on a unix socket, with the same agents asleep in it.

It is asked in three ways. `mget`: one key per fragment, one MGET per kind and batch of agents. `packed`: one blob per
agent, packed beforehand, and nothing counted for unpacking it. Both are best cases: redis-py with hiredis, keys written
out before the clock starts, and the best batch size of those tried, pipelined or not. `task_per_agent` is the program
that is written first: `asyncio.gather` over one task per agent, each with one MGET for its fragments, on redis.asyncio
with a pool of 64 connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..harness.progress import Progress
from ..harness.workload import Workload
from .redis_server import IN_MEMORY, redis_server
from .tuning import fastest

__all__ = ["BATCHES", "Batch", "RedisPeer", "redis_peer"]

BATCHES = (100, 250, 500, 1000, 2500, 5000, 10_000)
"""Agents per MGET that are tried. Beyond 1,000 the client waits for the server and then the server for the client."""

POOL_CONNECTIONS = 64
"""Connections of one task per agent; the tasks queue for them."""

FILL_AGENTS = 200
"""Agents per MSET when filling: 1,000 keys and about 1 MB with 512-byte values."""

_FRAGMENTS_DB = 0
_PACKED_DB = 1
_encode = msgspec.msgpack.Encoder().encode


class Batch(msgspec.Struct, frozen=True):
    """How many agents go into one MGET, and whether all are sent before the first reply is read."""

    agents: int
    pipelined: bool


class RedisPeer:
    """A filled Redis; methods take agent numbers or keys prepared by the method of similar name."""

    def __init__(self, socket_path: Path, workload: Workload) -> None:
        # Imported here: the harness works without these packages, and says that Redis was not measured.
        import redis
        import redis.asyncio

        self._workload = workload
        path = str(socket_path)
        # Any: redis-py declares its commands as answering now or later, in one type for both kinds of client.
        self._fragments_client: Any = redis.Redis(unix_socket_path=path, db=_FRAGMENTS_DB)
        self._packed_client: Any = redis.Redis(unix_socket_path=path, db=_PACKED_DB)
        # Waits for a free connection without a timer: one timer per task would slow Redis's side down.
        pool = redis.asyncio.BlockingConnectionPool(
            max_connections=POOL_CONNECTIONS,
            timeout=None,
            connection_class=redis.asyncio.UnixDomainSocketConnection,
            path=path,
            db=_FRAGMENTS_DB,
        )
        self._task_client: Any = redis.asyncio.Redis(connection_pool=pool)
        self.mget_choice = Batch(1000, pipelined=False)
        self.packed_choice = Batch(1000, pipelined=False)

    async def fill(self, progress: Progress) -> None:
        """Put every agent to sleep in it, once by fragment and once packed."""
        workload = self._workload
        total = len(workload.ids)
        for start in range(0, total, FILL_AGENTS):
            fragments: dict[str, bytes] = {}
            packed: dict[str, bytes] = {}
            for agent in range(start, min(start + FILL_AGENTS, total)):
                agent_id, values = workload.ids[agent], workload.encoded(agent)
                packed[agent_id] = _encode(values)
                for kind, value in values.items():
                    fragments[f"{agent_id}:{kind}"] = value
            if fragments:
                self._fragments_client.mset(fragments)
            self._packed_client.mset(packed)
            progress("fill Redis", min(start + FILL_AGENTS, total), total)
            await asyncio.sleep(0)

    def mget_keys(self, agents: Sequence[int]) -> list[str]:
        """Return the keys of all their fragments, kind by kind."""
        ids = self._workload.ids
        return [f"{ids[agent]}:{kind}" for kind in self._workload.kinds for agent in agents]

    def mget(self, keys: Sequence[str], agents: int) -> list[bytes | None]:
        """Return one value per key, in the keys' order; `agents` says how many they belong to."""
        return self._mget_as(self.mget_choice, keys, agents)

    def packed_keys(self, agents: Sequence[int]) -> list[str]:
        ids = self._workload.ids
        return [ids[agent] for agent in agents]

    def packed(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return one packed agent per key, in the keys' order."""
        return _fetch(self._packed_client, self.packed_choice, [keys])

    async def task_per_agent(self, agents: Sequence[int]) -> list[list[bytes | None]]:
        """Return the values of each agent, in the order of the agents and of the kinds."""
        ids, kinds = self._workload.ids, self._workload.kinds
        client = self._task_client

        async def wake(agent_id: str) -> list[bytes | None]:
            values: list[bytes | None] = await client.mget([f"{agent_id}:{kind}" for kind in kinds])
            return values

        return await asyncio.gather(*(wake(ids[agent]) for agent in agents))

    async def choose_batches(self, agents: Sequence[int], progress: Progress) -> None:
        """Try all batch sizes, the three fastest three times more, and keep the best for both ways."""
        fragment_keys, packed_keys = self.mget_keys(agents), self.packed_keys(agents)
        self.mget_choice = await _fastest(
            lambda choice: self._mget_as(choice, fragment_keys, len(agents)), len(agents), "tune Redis MGET", progress
        )
        self.packed_choice = await _fastest(
            lambda choice: _fetch(self._packed_client, choice, [packed_keys]),
            len(agents),
            "tune Redis packed",
            progress,
        )

    async def aclose(self) -> None:
        self._fragments_client.close()
        self._packed_client.close()
        await self._task_client.aclose(close_connection_pool=True)

    def _mget_as(self, choice: Batch, keys: Sequence[str], agents: int) -> list[bytes | None]:
        by_kind = [keys[start : start + agents] for start in range(0, len(keys), agents)]
        return _fetch(self._fragments_client, choice, by_kind)


def _fetch(client: Any, choice: Batch, key_lists: Sequence[Sequence[str]]) -> list[bytes | None]:
    """MGET each list of keys in batches; the values of all, in order."""
    batches = [
        keys[start : start + choice.agents] for keys in key_lists for start in range(0, len(keys), choice.agents)
    ]
    if choice.pipelined:
        pipeline = client.pipeline(transaction=False)
        for batch in batches:
            pipeline.mget(batch)
        replies: list[list[bytes | None]] = pipeline.execute()
    else:
        replies = [client.mget(batch) for batch in batches]
    return list(itertools.chain.from_iterable(replies))


async def _fastest(fetch: Callable[[Batch], object], agents: int, phase: str, progress: Progress) -> Batch:
    sizes = sorted({min(size, agents) for size in BATCHES})

    async def run(choice: Batch) -> None:
        fetch(choice)

    return await fastest(
        [Batch(size, pipelined) for size in sizes for pipelined in (False, True)], run, phase, progress
    )


@contextlib.asynccontextmanager
async def redis_peer(directory: Path, workload: Workload, program: str = "redis-server") -> AsyncGenerator[RedisPeer]:
    """Start an empty redis-server, reachable by a socket in `directory` alone and writing nothing to disk.

    Raises:
        PeerUnavailable: the server or its client library is not installed, or does not start.
    """
    async with redis_server(directory, program, IN_MEMORY) as socket_path:
        peer = RedisPeer(socket_path, workload)
        try:
            yield peer
        finally:
            await peer.aclose()
