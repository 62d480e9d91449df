"""Wakes of one agent each, brought together: those of one turn of the loop, and those of the same agent.

A turn's first wake begins a batch; when the turn is over, each batch (one for each choice of kinds) becomes one fetch.
A wake of an agent whose fetch is under way joins it, unless that agent was saved since: that fetch may have read it
before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from .fetching import Fetching
from .kinds import Reading
from .parts import Group
from .state import AgentState
from .wakes import WakeBatch

__all__ = ["Choice", "Coalescer", "Fetch"]


class Choice(NamedTuple):
    """Which kinds a wake asks for, None for all; and whether it fails where what is required is missing."""

    kinds: tuple[str, ...] | None
    raises: bool = True


class Fetch(Protocol):
    """Makes the fetch of some agents, not sent yet."""

    def __call__(
        self,
        reading: Reading,
        ids: Sequence[str],
        agents: Sequence[bytes],
        deadline: float,
        handle_groups: Callable[[list[Group]], None],
    ) -> Fetching:
        """Return it."""
        ...


class Coalescer:
    """Batches of wakes, waiting for the end of the turn or under way."""

    def __init__(self, reading: Callable[[Choice], Reading], fetch: Fetch) -> None:
        self._loop = asyncio.get_running_loop()
        self._reading = reading
        self._fetch = fetch
        self._pending: dict[Choice, WakeBatch] = {}
        self._under_way: dict[Choice, dict[str, WakeBatch]] = {}

    def wake(self, agent_id: str, agent: bytes, choice: Choice, budget_s: float) -> asyncio.Future[AgentState]:
        """Return the future of an agent's state; `agent` is the UTF-8 of its id, the deadline `budget_s` from now."""
        under_way = self._under_way.get(choice)
        if under_way and (joined := under_way.get(agent_id)) is not None:
            now = time.monotonic()
            future = joined.join(agent_id, now + budget_s, now)
            if future is not None:
                return future
        batch = self._pending.get(choice)
        if batch is None:
            batch = WakeBatch(self._reading(choice), time.monotonic())
            if not self._pending:
                self._loop.call_soon(self._send)
            self._pending[choice] = batch
        return batch.add(agent_id, agent, budget_s)

    def forget(self, agents: Sequence[bytes]) -> None:
        """Let no wake join what is under way for these agents: they were saved meanwhile."""
        for under_way in self._under_way.values():
            if under_way:
                for agent in agents:
                    under_way.pop(agent.decode(), None)

    def close(self, error: Exception) -> None:
        """Fail every wake that waits."""
        batches = {id(batch): batch for under_way in self._under_way.values() for batch in under_way.values()}
        for batch in [*self._pending.values(), *batches.values()]:
            batch.close(error)
        self._pending.clear()

    def _send(self) -> None:
        pending, self._pending = self._pending, {}
        for choice, batch in pending.items():
            under_way = self._under_way.setdefault(choice, {})
            ids = list(batch.ids)
            fetching = self._fetch(batch.reading, ids, batch.agents, batch.deadline, batch.handle_groups)
            batch.start(fetching, partial(_hand_over, under_way, ids))
            under_way.update(dict.fromkeys(ids, batch))


def _hand_over(under_way: dict[str, WakeBatch], ids: list[str], ended: WakeBatch) -> None:
    """Take a batch that is over out of what can be joined."""
    for agent_id in ids:
        if under_way.get(agent_id) is ended:
            del under_way[agent_id]
