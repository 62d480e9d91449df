"""Wakes of one agent each, brought together: those of one turn of the loop, and those of the same agent.

A turn's first wake begins a batch; when the turn is over, each batch (one for each choice of kinds) becomes one fetch.
A large one goes off before: the nodes are at work on it while the rest of the turn's wakes are still asked for. A wake
of an agent whose fetch is under way joins it, unless that agent was saved since: that fetch may have read it before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from .fetching import Fetching
from .kinds import Reading
from .parts import Group
from .state import AgentState
from .wakes import WakeBatch

__all__ = ["Choice", "Coalescer", "Fetch"]

_BATCH_AGENTS: Final = 512
"""Agents of a turn's first batch. A loop of 1,024 workers then has two batches under way, one at the nodes and one with
its callers: 195,000 wakes/s of three stores instead of 150,000, 370,000 to 390,000 of one instead of 350,000 (with 342:
194,000, with 256: 168,000, with 640: 180,000)."""

_BATCH_GROWTH: Final = 4
"""How much larger each further batch of a turn is: ten thousand wakes in one turn are three. (Equal batches: the loop
the same, ten thousand at once of three stores 77 to 79 ms instead of 72 to 76.)"""


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
        self._batch_agents = 0  # how many go off at once; 0 before this turn's first wake
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
            if not self._batch_agents:
                self._batch_agents = _BATCH_AGENTS
                self._loop.call_soon(self._end_turn)
            self._pending[choice] = batch
        future = batch.add(agent_id, agent, budget_s)
        if len(batch.agents) >= self._batch_agents:
            self._batch_agents *= _BATCH_GROWTH
            self._send(choice, self._pending.pop(choice))
        return future

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

    def _end_turn(self) -> None:
        pending, self._pending = self._pending, {}
        self._batch_agents = 0
        for choice, batch in pending.items():
            self._send(choice, batch)

    def _send(self, choice: Choice, batch: WakeBatch) -> None:
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
