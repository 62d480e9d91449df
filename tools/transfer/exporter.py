"""`export`: agent ids in order, woken a chunk at a time, one line each; an agent is whole on its line or not there.

The next chunk is woken while the last one is written. A chunk is as large as the size of the agents before it suggests,
so that memory stays near CHUNK_BYTES whether agents have a hundred bytes or megabytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from ...wire.errors import FragmentUndecodable
from ..console.async_runner import in_thread
from ..console.output import Problems, ProgressBar
from .json_values import NotJson
from .ndjson import format_line
from .streams import OutputFile

__all__ = ["Exporter", "Totals", "Waker"]

CHUNK_BYTES: Final = 8 << 20
"""Bytes of JSON that a chunk aims at."""

CHUNK_AGENTS_FIRST: Final = 64
CHUNK_AGENTS_MAX: Final = 2_000

WAKE_DEADLINE_S: Final = 30.0
"""Deadline of one chunk: cold data of a slow disk is no reason to leave agents out."""

ATTEMPTS_MAX: Final = 3
ATTEMPT_PAUSE_S: Final = 1.0
"""A node that died is back within about a second."""


class State(Protocol):
    """The part of `AgentState` that an export needs."""

    @property
    def agent_id(self) -> str: ...

    @property
    def degraded(self) -> Sequence[str]: ...

    def outcome(self, kind: str, /) -> Any: ...

    def get(self, kind: str, default: Any = None, /) -> Any: ...

    def expires_at(self, kind: str, /) -> datetime | None: ...


class Waker(Protocol):
    """The part of `Cluster` that an export needs."""

    async def wake_many(self, ids: Sequence[str], /, *, deadline_s: float | None = None) -> Sequence[State]: ...


@dataclass
class Totals:
    """Totals of an export: agents, fragments, and bytes of NDJSON."""

    agents: int = 0
    fragments: int = 0
    bytes: int = 0
    seconds: float = 0.0


_ABSENT: Final = object()


class Exporter:
    """One export: writes the agents that it is given; `totals` and the problems say what became of them."""

    def __init__(self, cluster: Waker, kinds: Sequence[str], expiring: Collection[str], problems: Problems) -> None:
        """`expiring`: the kinds whose fragments expire if nothing else is said; of these, "never" is written down."""
        self._cluster = cluster
        self._kinds = tuple(kinds)
        self._expiring = frozenset(expiring)
        self._problems = problems
        self._writing: asyncio.Task[None] | None = None
        self._seen = 0
        self.totals = Totals()

    async def export(self, ids: AsyncIterator[str], output: OutputFile, bar: ProgressBar, total: int | None) -> None:
        """Write every agent, in the order of `ids`; `total` is their number, if somebody knows it, for the bar.

        Raises:
            OSError: the output cannot be written.
            DawnchorusError: the ids could not be read to their end.
        """
        started_s = time.monotonic()
        try:
            chunk: list[str] = []
            async for agent_id in ids:
                chunk.append(agent_id)
                if len(chunk) >= self._chunk_agents():
                    await self._export_chunk(chunk, output)
                    chunk = []
                    bar.show(f"{self.totals.agents:,} agents", self._seen, total)
            await self._export_chunk(chunk, output)
            await self._written()
        finally:
            if self._writing is not None:
                self._writing.cancel()
            self.totals.seconds = time.monotonic() - started_s

    async def _written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    def _chunk_agents(self) -> int:
        if not self.totals.agents:
            return CHUNK_AGENTS_FIRST
        return max(1, min(CHUNK_AGENTS_MAX, CHUNK_BYTES * self.totals.agents // self.totals.bytes))

    async def _export_chunk(self, ids: list[str], output: OutputFile) -> None:
        self._seen += len(ids)
        lines = [line for state in await self._wake(ids) if (line := self._format(state)) is not None]
        await self._written()
        self._writing = asyncio.create_task(in_thread(output.write, b"".join(lines)))

    async def _wake(self, ids: list[str]) -> list[State]:
        """Return the agents' states, in order; name and leave out those that stay incomplete after some attempts."""
        states: dict[str, State] = {}
        waiting = ids
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(ATTEMPT_PAUSE_S * attempt)
            states |= {
                state.agent_id: state for state in await self._cluster.wake_many(waiting, deadline_s=WAKE_DEADLINE_S)
            }
            waiting = [agent_id for agent_id in waiting if states[agent_id].degraded]
            if not waiting:
                break
        for agent_id in waiting:
            state = states.pop(agent_id)
            outcomes = ", ".join(f"{kind} {state.outcome(kind).name}" for kind in state.degraded)
            self._problems.add(f"agent {agent_id!r} is left out: {outcomes}", agent_id=agent_id)
        return [states[agent_id] for agent_id in ids if agent_id in states]

    def _format(self, state: State) -> bytes | None:
        try:
            # The times first: a fragment that expires in between is absent then, and not one that never expires.
            times = {kind: state.expires_at(kind) for kind in self._kinds}
            values = {kind: state.get(kind, _ABSENT) for kind in self._kinds}
            fragments = {kind: value for kind, value in values.items() if value is not _ABSENT}
            if not fragments:
                return None  # Deleted or expired since its id was listed.
            expires = {kind: times[kind] for kind in fragments if times[kind] is not None or kind in self._expiring}
            line = format_line(state.agent_id, fragments, expires)
        except (FragmentUndecodable, NotJson) as error:
            self._problems.add(f"agent {state.agent_id!r} is left out: {error}", agent_id=state.agent_id)
            return None
        self.totals.agents += 1
        self.totals.fragments += len(fragments)
        self.totals.bytes += len(line)
        return line
