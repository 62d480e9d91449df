"""Redis as the peer of saves: every command synced to the same disk before it is answered (`appendfsync always`).

It is given the agents in two ways: `save_fragments`, one key and one SET per fragment, pipelined; and `save_packed`,
one blob per agent, packed beforehand, many in one MSET. Both are best cases: redis-py with hiredis, the lowest call
that it offers, keys and values laid out before the clock starts, the best batch size of those tried. (Redis syncs once
for all that it read from its sockets at once: about every 16 KiB of a pipeline, and once for an MSET, however large.)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ..harness.progress import Progress
from ..harness.workload import Workload
from .redis_peer import Batch
from .redis_server import SYNC_ALWAYS, redis_server
from .tuning import fastest

__all__ = ["PreparedSets", "RedisSaves", "prepare_packed", "prepare_sets", "redis_saves"]

BATCHES: Final = (100, 500, 1000, 2500, 5000, 10_000)
"""Agents per pipeline or MSET that are tried."""

_FRAGMENTS_DB = 0
_PACKED_DB = 1
_encode = msgspec.msgpack.Encoder().encode


class PreparedSets(NamedTuple):
    """Keys and values, alternating, and how many of both together belong to one agent."""

    words: Sequence[str | bytes]
    words_per_agent: int


def prepare_sets(workload: Workload, agents: Sequence[int]) -> PreparedSets:
    """Lay out one SET per fragment of these agents."""
    words: list[str | bytes] = []
    for agent in agents:
        agent_id, values = workload.ids[agent], workload.encoded(agent)
        for kind in workload.kinds:
            words += [f"{agent_id}:{kind}", values[kind]]
    return PreparedSets(words, 2 * len(workload.kinds))


def prepare_packed(workload: Workload, agents: Sequence[int]) -> PreparedSets:
    """Lay out one blob per agent."""
    words: list[str | bytes] = []
    for agent in agents:
        words += [workload.ids[agent], _encode(workload.encoded(agent))]
    return PreparedSets(words, 2)


class RedisSaves:
    """A Redis that syncs always, and its clients."""

    def __init__(self, socket_path: Path) -> None:
        # Imported here: the harness works without these packages, and says that Redis was not measured.
        import redis

        path = str(socket_path)
        # Any: redis-py declares its commands as answering now or later, in one type for both kinds of client.
        self._fragments_client: Any = redis.Redis(unix_socket_path=path, db=_FRAGMENTS_DB)
        self._packed_client: Any = redis.Redis(unix_socket_path=path, db=_PACKED_DB)
        self.sets_choice = Batch(1000, pipelined=True)
        self.packed_choice = Batch(1000, pipelined=False)

    def save_fragments(self, prepared: PreparedSets) -> None:
        """Send one SET per fragment, a pipeline per batch of agents; return when all are synced."""
        words, step = prepared.words, self.sets_choice.agents * prepared.words_per_agent
        for start in range(0, len(words), step):
            pipeline = self._fragments_client.pipeline(transaction=False)
            for place in range(start, min(start + step, len(words)), 2):
                pipeline.execute_command("SET", words[place], words[place + 1])
            pipeline.execute()

    def save_packed(self, prepared: PreparedSets) -> None:
        """Send one MSET per batch of agents; return when all are synced."""
        words, step = prepared.words, self.packed_choice.agents * prepared.words_per_agent
        batches = [words[start : start + step] for start in range(0, len(words), step)]
        if self.packed_choice.pipelined:
            pipeline = self._packed_client.pipeline(transaction=False)
            for batch in batches:
                pipeline.execute_command("MSET", *batch)
            pipeline.execute()
        else:
            for batch in batches:
                self._packed_client.execute_command("MSET", *batch)

    def stored_fragments(self, prepared: PreparedSets) -> list[bytes | None]:
        """Return what it has under the keys of what was saved."""
        values: list[bytes | None] = self._fragments_client.mget(prepared.words[::2])
        return values

    def stored_packed(self, prepared: PreparedSets) -> list[bytes | None]:
        """Return what it has under the ids of what was saved."""
        values: list[bytes | None] = self._packed_client.mget(prepared.words[::2])
        return values

    async def settings(self) -> dict[str, str]:
        """Return what the server says of its own durability."""
        settings: dict[str, str] = {}
        for name in ("appendonly", "appendfsync"):
            settings |= self._fragments_client.config_get(name)
        return settings

    async def choose_batches(self, sets: PreparedSets, packed: PreparedSets, progress: Progress) -> None:
        """Try all batch sizes, and keep the best for both ways."""
        agents = len(packed.words) // packed.words_per_agent
        sizes = sorted({min(size, agents) for size in BATCHES})

        async def try_sets(choice: Batch) -> None:
            self.sets_choice = choice
            self.save_fragments(sets)

        async def try_packed(choice: Batch) -> None:
            self.packed_choice = choice
            self.save_packed(packed)

        self.sets_choice = await fastest(
            [Batch(size, pipelined=True) for size in sizes], try_sets, "tune Redis SETs", progress, finals=1
        )
        self.packed_choice = await fastest(
            [Batch(size, pipelined) for size in sizes for pipelined in (False, True)],
            try_packed,
            "tune Redis MSET",
            progress,
            finals=1,
        )

    def close(self) -> None:
        """Close its connections."""
        self._fragments_client.close()
        self._packed_client.close()


@contextlib.asynccontextmanager
async def redis_saves(sockets: Path, data: Path, program: str = "redis-server") -> AsyncGenerator[RedisSaves]:
    """Start an empty redis-server that syncs every command to a log in `data`; its socket is in `sockets`.

    Raises:
        PeerUnavailable: the server or its client library is not installed, or does not start.
    """
    async with redis_server(sockets, program, SYNC_ALWAYS, data) as socket_path:
        with contextlib.closing(RedisSaves(socket_path)) as peer:
            yield peer
