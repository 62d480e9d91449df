"""The wakes of one cluster, from their arguments to their fetches.

It owns how a choice of kinds is read under the current placement, the wakes of one agent each that travel together
(`wake_coalescer`), and the fetcher. A wake of many agents (`wake_many`), a batch of wakes of one agent each
(`wake_batch`) and a stream (`wake_stream`) are sinks of its fetches. Its callers check arguments first; a deadline is
in seconds of the monotonic clock here, or a budget from now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Final

from ...wire.protocol.limits import AGENT_ID_BYTES_MAX
from ..arguments import Seconds, exact_id, exact_text
from ..dispatch.router import Router
from ..ids import check_agent_id, slices, valid_ids
from .agent_state import AgentState
from .fetcher import Fetcher
from .outcomes import Outcome
from .read_spec import Readable, ReadSpec
from .wake_coalescer import Choice, WakeCoalescer
from .wake_context import Again, WakeContext
from .wake_many import WakeMany
from .wake_stream import WakeStream

__all__ = ["WakeEngine"]

_ALL_KINDS: Final = Choice(None)

_CHOICES_MAX: Final = 256
"""Choices of kinds, and ways to name one, that are kept; a program has a handful, and each costs some 3 KiB."""


class WakeEngine:
    """The wakes of one router."""

    def __init__(
        self,
        router: Router,
        kinds: Readable,
        wake_budget: Callable[[Seconds | None], float],
        *,
        state_type: type[AgentState] = AgentState,
        again: Again | None = None,
    ) -> None:
        """`wake_budget` gives the seconds that a wake with this deadline has, and raises if the cluster is closed.

        `state_type` is the type of states; `again` is how they ask for more, None: by `wake_again`.
        """
        self._router = router
        self.clock = router.clock
        """Seconds of the clock that deadlines are of."""
        self._kinds = kinds
        self._wake_budget = wake_budget
        self.fetcher = Fetcher(router, state_type, again or self.wake_again)
        self._streams: set[WakeStream] = set()
        self._choices: dict[tuple[str, ...], Choice] = {}  # by the names as given
        self._specs: dict[Choice, ReadSpec] = {}
        self._specs_revision = -1
        self.coalescer = WakeCoalescer(self._spec_of, self.fetcher)

    def wake(self, agent_id: str, kinds: Iterable[str] | None, budget_s: float) -> asyncio.Future[AgentState]:
        """Return the future of an agent's state.

        Raises:
            InvalidRequestError, UnknownKindError: no agent has this id, or the kinds cannot be asked for.
        """
        if type(agent_id) is not str:
            agent_id = exact_id(agent_id)
        try:
            agent = str.encode(agent_id)  # not by a call of check_agent_id: 0.1 us for each wake
        except UnicodeEncodeError:
            agent = b""
        if not 0 < len(agent) <= AGENT_ID_BYTES_MAX:
            check_agent_id(agent_id)  # says what is wrong with it
        return self.coalescer.wake(agent_id, agent, _ALL_KINDS if kinds is None else self._choice(kinds), budget_s)

    async def wake_many(self, asked: list[str], kinds: Iterable[str] | None, deadline: float) -> list[AgentState]:
        """Return the states of agents, in the order of their ids; of a cluster that is closed meanwhile not all."""
        spec = self._spec_of(_ALL_KINDS if kinds is None else self._choice(kinds))
        waiting = WakeMany(self.fetcher, spec, deadline)
        try:
            for wanted in slices(asked):
                valid, agents = valid_ids(wanted)
                if valid:
                    waiting.add(valid, agents)
        except BaseException:
            waiting.abandon()
            raise
        states = await waiting.run()
        if len(states) == len(asked):
            return states
        # Some ids were asked for twice, or no agent can have them.
        by_id = {state.agent_id: state for state in states}
        context = self.fetcher.context(spec)
        given: set[str] = set()
        shown: list[AgentState] = []
        for agent_id in asked:
            state = by_id.get(agent_id)
            if state is None:
                state = by_id[agent_id] = _faulty_state(agent_id, spec, context)
            shown.append(state.twin() if agent_id in given else state)
            given.add(agent_id)
        return shown

    async def wake_stream(
        self, asked: list[str], kinds: Iterable[str] | None, deadline: float
    ) -> AsyncGenerator[AgentState, None]:
        """Yield each agent's state once, as it becomes usable."""
        spec = self._spec_of(_ALL_KINDS if kinds is None else self._choice(kinds))
        once = list(dict.fromkeys(asked))
        valid, agents = valid_ids(once)
        if len(valid) != len(once):
            known = set(valid)
            for agent_id in once:
                if agent_id not in known:
                    yield _faulty_state(agent_id, spec, self.fetcher.context(spec))
        if valid:
            waiting = WakeStream(self.fetcher, spec, valid, agents, deadline)
            self._streams.add(waiting)
            try:
                async with aclosing(waiting.run()) as states:
                    async for state in states:
                        yield state
            finally:
                self._streams.discard(waiting)

    def wake_again(
        self, agent_id: str, kinds: tuple[str, ...], deadline_s: Seconds | None
    ) -> asyncio.Future[AgentState]:
        """Wake an agent for the kinds that a state of it lacks; never fails for missing ones."""
        budget_s = self._wake_budget(deadline_s)
        return self.coalescer.wake(
            agent_id, check_agent_id(agent_id), Choice(self._kinds.choose(kinds), raises=False), budget_s
        )

    def handle_acknowledged(self, store: str, acknowledged: list[tuple[bytes, int]]) -> None:
        """Note durable saves: no wake that ends from now on may show older values."""
        noted = self.fetcher.acknowledged
        if noted.are_needed:  # for 10,000 agents 3 ms, which a save_many by itself need not spend
            now = self.clock()
            for agent, version in acknowledged:
                noted.note(store, agent, version, now)
        for stream in self._streams:
            stream.note(store, acknowledged)

    def close(self, error: Exception) -> None:
        """Fail every wake of one agent that waits."""
        self.coalescer.close(error)

    # --- internals ---

    def handle_grown(self, kinds: Readable) -> None:
        """Accept the kinds of a cluster that has grown, for wakes that begin from now on."""
        self._kinds = kinds
        self._choices.clear()
        self._specs.clear()

    def _choice(self, kinds: Iterable[str]) -> Choice:
        try:
            given = tuple(kinds)
            known = None if isinstance(kinds, str) else self._choices.get(given)
        except TypeError:
            return Choice(self._kinds.choose(kinds))  # which says what is wrong with it
        if known is not None:
            return known
        choice = Choice(self._kinds.choose(kinds if isinstance(kinds, str) else given))
        if len(self._choices) >= _CHOICES_MAX:
            del self._choices[next(iter(self._choices))]
        self._choices[tuple(map(exact_text, given))] = choice
        return choice

    def _spec_of(self, choice: Choice) -> ReadSpec:
        placement = self._router.placement
        assert placement is not None
        if placement.revision != self._specs_revision:
            self._specs.clear()
            self._specs_revision = placement.revision
        spec = self._specs.get(choice)
        if spec is None:
            spec = self._kinds.read_spec(placement, choice.kinds)._replace(raises=choice.raises)
            if len(self._specs) >= _CHOICES_MAX:
                del self._specs[next(iter(self._specs))]
            self._specs[choice] = spec
        return spec


def _faulty_state(agent_id: str, spec: ReadSpec, context: WakeContext) -> AgentState:
    state: AgentState = context.state_type(agent_id, context, _images=(Outcome.FAULT,) * len(spec.routes.stores))
    return state
