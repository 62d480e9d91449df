"""Wakes of one agent each, brought together: those of one turn of the loop, and those of an agent woken over and over.

A turn's first wake begins a batch; when the turn ends, each batch (one for each choice of kinds) becomes one fetch. A
large one is sent before: the nodes work on it while the rest of the turn's wakes are still asked for.

A wake joins a batch that is not sent yet, and nothing else: a fetch sent before it was asked for may have read before a
save that was acknowledged in between, to any client (docs/consistency.md). So an agent woken again while its fetch is
under way is fetched once more. An agent for which that goes on (one slow store keeps each fetch open, and wakes of
it come in every turn) must not have a fetch for every turn: while two of its fetches are under way, further wakes of
it are gathered; they are sent together when one of the two ends, or after a small share of their own time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from .agent_state import AgentState
from .fetcher import Fetcher
from .read_spec import ReadSpec
from .wake_batch import WakeBatch

__all__ = ["Choice", "WakeCoalescer"]

_BATCH_AGENTS: Final = 512
"""Agents of a turn's first batch. A loop of 1,024 workers then has two batches under way, one at the nodes and one with
its callers: 195,000 wakes/s of three stores instead of 150,000, 370,000 to 390,000 of one instead of 350,000 (with 342:
194,000, with 256: 168,000, with 640: 180,000)."""

_BATCH_GROWTH: Final = 4
"""How much larger each further batch of a turn is: ten thousand wakes in one turn are three. (Equal batches: the loop
the same, ten thousand at once of three stores 77 to 79 ms instead of 72 to 76.)"""


_FETCHES_AT_ONCE: Final = 2
"""Fetches of one agent that may be under way before further wakes of it are gathered: one that is answered, and the
next behind it."""

_PATIENCE_SHARE: Final = 1 / 16
"""The share of a wake's time that it is gathered at most, if the fetches before it are stuck. Wakes of one length then
have at most 18 fetches of their agent open, however many they are."""

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """The kinds that a wake asks for, None for all; and whether it fails if a required kind is missing."""

    kinds: tuple[str, ...] | None
    raises: bool = True


class _Gathered(NamedTuple):
    """A wake that waits for its fetch to be sent."""

    future: asyncio.Future[AgentState]
    deadline: float
    patience_s: float
    due: float


class _HotAgent:
    """An agent with more than one fetch under way, and the wakes of it that wait to be sent."""

    __slots__ = ("agent", "due", "fetches", "gathered", "timer")

    def __init__(self, agent: bytes) -> None:
        self.agent = agent
        self.fetches = 1
        """How many of it are under way."""
        self.gathered: list[_Gathered] = []
        self.due = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Set no timer any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _UnderWay:
    """The batches and agents under way of one choice of kinds."""

    __slots__ = ("batches", "hot", "latest")

    def __init__(self) -> None:
        self.batches: set[WakeBatch] = set()
        self.latest: dict[str, WakeBatch] = {}
        """The batch that was sent last, by agent."""
        self.hot: dict[str, _HotAgent] = {}


class WakeCoalescer:
    """Batches of wakes, waiting for the end of the turn or under way."""

    def __init__(self, spec_of: Callable[[Choice], ReadSpec], fetcher: Fetcher) -> None:
        """`spec_of` gives the present read spec of a choice of kinds."""
        self._loop = asyncio.get_running_loop()
        self._clock = fetcher.clock
        self._spec_of = spec_of
        self._fetcher = fetcher
        self._pending: dict[Choice, WakeBatch] = {}
        self._batch_agents = 0  # how many are sent at once; 0 before this turn's first wake
        self._under_way: dict[Choice, _UnderWay] = {}

    def wake(self, agent_id: str, agent: bytes, choice: Choice, budget_s: float) -> asyncio.Future[AgentState]:
        """Return the future of an agent's state; `agent` is the UTF-8 of its id, the deadline `budget_s` from now."""
        batch = self._pending.get(choice)
        under_way = self._under_way.get(choice)
        if under_way is not None and agent_id in under_way.latest and (batch is None or agent_id not in batch.ids):
            hot = under_way.hot.get(agent_id)
            if hot is None:
                under_way.hot[agent_id] = _HotAgent(agent)
            elif hot.fetches >= _FETCHES_AT_ONCE:
                return self._gather(choice, agent_id, hot, budget_s)
        if batch is None:
            batch = self._begin(choice)
        future = batch.add(agent_id, agent, budget_s)
        if len(batch.agents) >= self._batch_agents:
            self._batch_agents *= _BATCH_GROWTH
            self._send(choice, self._pending.pop(choice))
        return future

    def close(self, error: Exception) -> None:
        """Fail every wake that waits."""
        pending, self._pending = self._pending, {}
        under_way, self._under_way = self._under_way, {}
        for of_choice in under_way.values():
            for hot in of_choice.hot.values():
                hot.stop()
                for gathered in hot.gathered:
                    if not gathered.future.done():
                        gathered.future.set_exception(error)
        batches = [batch for of_choice in under_way.values() for batch in of_choice.batches]
        for batch in [*pending.values(), *batches]:
            batch.close(error)

    # --- batches ---

    def _begin(self, choice: Choice) -> WakeBatch:
        batch = WakeBatch(self._spec_of(choice), self._clock)
        if not self._batch_agents:
            self._batch_agents = _BATCH_AGENTS
            self._loop.call_soon(self._end_turn)
        self._pending[choice] = batch
        return batch

    def _end_turn(self) -> None:
        pending, self._pending = self._pending, {}
        self._batch_agents = 0
        for choice, batch in pending.items():
            self._send(choice, batch)

    def _send(self, choice: Choice, batch: WakeBatch) -> None:
        under_way = self._under_way.get(choice)
        if under_way is None:
            under_way = self._under_way[choice] = _UnderWay()
        under_way.batches.add(batch)
        ids = list(batch.ids)  # compiled, going over a list costs a fifth of going over a dict
        under_way.latest.update(dict.fromkeys(ids, batch))
        if under_way.hot:
            for agent_id in ids:
                hot = under_way.hot.get(agent_id)
                if hot is not None:
                    hot.fetches += 1
        try:
            batch.start(self._fetcher, ids, lambda ended: self._handle_ended(choice, ended, ids))
        except Exception as error:  # a bug: no caller may wait for ever because of it
            _log.exception("a fetch could not be sent", extra={"agents": len(batch.ids)})
            batch.close(error)
            self._handle_ended(choice, batch, ids)

    def _handle_ended(self, choice: Choice, ended: WakeBatch, ids: list[str]) -> None:
        """Forget a batch that has ended, and send the wakes that were gathered meanwhile."""
        under_way = self._under_way.get(choice)
        if under_way is None or ended not in under_way.batches:
            return
        under_way.batches.discard(ended)
        latest = under_way.latest
        for agent_id in ids:
            if latest.get(agent_id) is ended:
                del latest[agent_id]
        if under_way.hot:
            for agent_id in ids:
                hot = under_way.hot.get(agent_id)
                if hot is not None:
                    self._cool(choice, under_way, agent_id, hot)
        if not under_way.batches and not under_way.hot:
            del self._under_way[choice]  # or every choice of kinds ever made would leave one

    # --- agents woken again and again ---

    def _gather(self, choice: Choice, agent_id: str, hot: _HotAgent, budget_s: float) -> asyncio.Future[AgentState]:
        future: asyncio.Future[AgentState] = self._loop.create_future()
        now = self._clock()
        patience_s = budget_s * _PATIENCE_SHARE
        hot.gathered.append(_Gathered(future, now + budget_s, patience_s, now + patience_s))
        if hot.timer is None or now + patience_s < hot.due:
            self._schedule(choice, agent_id, hot, now + patience_s)
        return future

    def _schedule(self, choice: Choice, agent_id: str, hot: _HotAgent, due: float) -> None:
        hot.stop()
        hot.due = due
        hot.timer = self._loop.call_at(due, self._lose_patience, choice, agent_id, hot)

    def _lose_patience(self, choice: Choice, agent_id: str, hot: _HotAgent) -> None:
        """Send the wakes that have waited long enough, and with them those that would before long."""
        hot.timer = None
        least_s = min([gathered.patience_s for gathered in hot.gathered if gathered.due <= hot.due], default=0.0)
        # Not all of them: a wake of a day would keep open fetches that wakes of a tenth of a second send every few ms.
        gone = [gathered for gathered in hot.gathered if gathered.patience_s <= 2 * least_s]
        hot.gathered = [gathered for gathered in hot.gathered if gathered.patience_s > 2 * least_s]
        self._let_go(choice, agent_id, hot.agent, gone)
        if hot.gathered:
            self._schedule(choice, agent_id, hot, min([gathered.due for gathered in hot.gathered]))

    def _cool(self, choice: Choice, under_way: _UnderWay, agent_id: str, hot: _HotAgent) -> None:
        """Count off a fetch of the agent; send its gathered wakes if few others are under way."""
        hot.fetches -= 1
        if hot.gathered and hot.fetches < _FETCHES_AT_ONCE:
            gone, hot.gathered = hot.gathered, []
            hot.stop()
            if self._let_go(choice, agent_id, hot.agent, gone):
                return
        if not hot.fetches and not hot.gathered:
            del under_way.hot[agent_id]

    def _let_go(self, choice: Choice, agent_id: str, agent: bytes, gone: Iterable[_Gathered]) -> bool:
        """Put gathered wakes into this turn's batch; return whether anybody still waits for one."""
        waiting = [gathered for gathered in gone if not gathered.future.done()]
        if not waiting:
            return False
        try:
            batch = self._pending.get(choice)
            if batch is None:
                batch = self._begin(choice)
            for gathered in waiting:
                batch.adopt(agent_id, agent, gathered.future, gathered.deadline)
        except Exception as error:  # a bug: no caller may wait for ever because of it
            _log.exception("wakes that were gathered could not be sent", extra={"agent_id": agent_id})
            for gathered in waiting:
                if not gathered.future.done():
                    gathered.future.set_exception(error)
            return False
        return True
