"""Wakes while several clients save: each fragment is a linearizable register, as docs/consistency.md says.

Fake nodes answer late, in another order and with faults, as each example decides. The values of an agent's kind grow by
one with each save. A wake that begins after any client learned a value (by a save's acknowledgement, a conflict, or a
wake) shows that value or a newer one, and none older than its own client learned by a save before the wake ended.
"""

import asyncio
import contextlib
import copy
from typing import Any, ClassVar, NamedTuple, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from dawnchorus import AgentState, Cluster, VersionConflict
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import Fetch
from dawnchorus.wire.protocol.status_codes import FaultCode
from tests.support.fake_nodes import FakeNodes, connect, fake_cluster, fake_topology, rejecting
from tests.support.virtual_time import VirtualLoop

KINDS = {"profile": KindSpec("id"), "session": KindSpec("live"), "mood": KindSpec("live"), "history": KindSpec("old")}
LONG_S = 60.0
CLIENTS = 3
AGENTS = ("hot", "cold")
Key = tuple[str, str]


class Bench:
    """Nodes and clients that all examples share, each with agents of its own."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.stack = contextlib.AsyncExitStack()
        self.nodes: FakeNodes
        self.clients: list[Cluster] = []
        self.examples = 0
        self.run(self._open())

    async def _open(self) -> None:
        topology = fake_topology(kinds=KINDS)
        self.nodes = await self.stack.enter_async_context(fake_cluster(topology))
        for node in self.nodes.values():
            node.expects = True
        self.clients = [await self.stack.enter_async_context(connect(topology)) for _ in range(CLIENTS)]

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()


class Asked(NamedTuple):
    """A wake or a fill under way."""

    client: int
    agent_id: str
    kinds: tuple[str, ...]
    at_least: dict[str, int]
    """The least version that it may show, by kind."""
    future: "asyncio.Future[Any]"


class Clients(RuleBasedStateMachine):
    """Several clients, and the values that each was shown or acknowledged."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.bench.examples += 1
        self.agents = [f"{name}-{self.bench.examples}" for name in AGENTS]
        self.saved = {(agent_id, kind): 0 for agent_id in self.agents for kind in KINDS}
        self.known = dict(self.saved)
        """The least value that any client was shown or acknowledged."""
        self.known_to = [dict(self.saved) for _ in range(CLIENTS)]
        self.under_way: list[Asked] = []
        self.degraded: list[tuple[int, AgentState]] = []
        self.states: list[AgentState] = []
        self.wrong: list[str] = []
        for agent_id in self.agents:
            self.bench.nodes.put(agent_id, **dict.fromkeys(KINDS, 0))

    def run(self, work: Any) -> Any:
        answer = self.bench.run(work)
        assert not self.wrong, self.wrong
        return answer

    # --- what the clients do ---

    @rule(
        client=st.integers(0, CLIENTS - 1),
        agent=st.sampled_from((0, 0, 1)),
        kinds=st.sampled_from([("session",), ("session", "mood"), ("profile", "history"), tuple(KINDS)]),
    )
    def save(self, client: int, agent: int, kinds: tuple[str, ...]) -> None:
        agent_id = self.agents[agent]
        values = {kind: self.saved[agent_id, kind] + 1 for kind in kinds}
        for kind, value in values.items():
            self.saved[agent_id, kind] = value
        self.run(self.bench.clients[client].save(agent_id, values, deadline_s=LONG_S))
        self.learn(client, agent_id, values)

    @rule(client=st.integers(0, CLIENTS - 1), agent=st.sampled_from((0, 1)))
    def meet_a_conflict(self, client: int, agent: int) -> None:
        agent_id = self.agents[agent]
        with pytest.raises(VersionConflict):
            self.run(self.bench.clients[client].save(agent_id, {"session": -1}, expect=0, deadline_s=LONG_S))
        self.learn(client, agent_id, {kind: self.saved[agent_id, kind] for kind in ("session", "mood")})

    @rule(
        client=st.integers(0, CLIENTS - 1),
        agent=st.sampled_from((0, 0, 0, 1)),
        kinds=st.sampled_from([None, None, ("session",), ("profile", "mood")]),
        many=st.booleans(),
    )
    def wake(self, client: int, agent: int, kinds: tuple[str, ...] | None, many: bool) -> None:
        agent_id = self.agents[agent]

        async def begin() -> asyncio.Future[Any]:
            cluster = self.bench.clients[client]
            if not many:
                return cluster.wake(agent_id, kinds, LONG_S)
            waking = asyncio.ensure_future(cluster.wake_many([agent_id], kinds, LONG_S))
            await asyncio.sleep(0)  # it begins
            return waking

        self.follow(client, agent_id, kinds or tuple(KINDS), begin())

    @rule(number=st.integers(0, 11))
    def settle(self, number: int) -> None:
        if not self.degraded:
            return  # no precondition: what has ended by now is not the machine's choice
        client, state = self.degraded[number % len(self.degraded)]

        async def begin() -> asyncio.Future[Any]:
            return state.settle(LONG_S)

        self.follow(client, state.agent_id, state.degraded, begin())

    def follow(self, client: int, agent_id: str, kinds: tuple[str, ...], begin: Any) -> None:
        at_least = {kind: self.known[agent_id, kind] for kind in kinds}
        future = self.run(begin)
        asked = Asked(client, agent_id, kinds, at_least, future)
        self.under_way.append(asked)

        def handle_done(_: asyncio.Future[Any]) -> None:
            self.handle_ended(asked)

        future.add_done_callback(handle_done)

    def handle_ended(self, asked: Asked) -> None:
        result = asked.future.result()
        state: AgentState = cast("list[AgentState]", result)[0] if isinstance(result, list) else result
        self.under_way.remove(asked)
        if all(state is not before for before in self.states):
            self.states.append(state)
            if state.degraded:
                self.degraded.append((asked.client, state))
        elif not state.degraded:
            self.degraded = [(client, one) for client, one in self.degraded if one is not state]
        missing = state.degraded
        copied = copy.copy(state)  # a look at it would let it stay as it is
        shown: dict[str, int] = {kind: copied[kind] for kind in asked.kinds if kind not in missing}
        for kind, value in shown.items():
            key = asked.agent_id, kind
            least = max(asked.at_least[kind], self.known_to[asked.client][key])
            if not least <= value <= self.saved[key]:
                self.wrong.append(f"{asked.agent_id}: {kind} {value}, known {least}, saved {self.saved[key]}")
        self.learn(None, asked.agent_id, shown)

    def learn(self, client: int | None, agent_id: str, values: dict[str, int]) -> None:
        """Note values that a client has learned; the client of a wake may still end older ones."""
        for known in (self.known, *([] if client is None else [self.known_to[client]])):
            for kind, value in values.items():
                known[agent_id, kind] = max(known[agent_id, kind], value)

    # --- what the nodes do ---

    @rule(store=st.sampled_from(["id", "live", "old"]))
    def hold(self, store: str) -> None:
        self.bench.nodes[store].hold.add(Fetch)

    @rule(store=st.sampled_from(["id", "live", "old"]), number=st.sampled_from([None, 1, 2]))
    def release(self, store: str, number: int | None) -> None:
        async def release() -> None:
            self.bench.nodes[store].release(number)

        self.run(release())

    @rule(store=st.sampled_from(["id", "live", "old"]), faulty=st.booleans())
    def fault(self, store: str, faulty: bool) -> None:
        node = self.bench.nodes[store]
        node.answer = node.serve
        if faulty:
            reject = rejecting(FaultCode.INTERNAL, Fetch)
            node.answer = lambda request: reject(request) if isinstance(request, Fetch) else node.serve(request)

    @rule(turns=st.integers(1, 4))
    def let_time_pass(self, turns: int) -> None:
        async def wait() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.0005)

        self.run(wait())

    def teardown(self) -> None:
        async def finish() -> None:
            for node in self.bench.nodes.values():
                node.answer = node.serve
                node.release()
            await asyncio.gather(*[asked.future for asked in self.under_way])
            await asyncio.sleep(0)

        self.run(finish())
        assert not self.under_way


def test_wakes_are_linearizable_despite_faults_and_clients() -> None:
    Clients.bench = Bench()
    try:
        run_state_machine_as_test(Clients, settings=settings(max_examples=60, stateful_step_count=30))
    finally:
        Clients.bench.close()
