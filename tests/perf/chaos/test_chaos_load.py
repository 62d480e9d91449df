"""The open-loop load against a client in memory: the wakes that it offers, and the counts of their results."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dawnchorus import ClusterUnavailable, Outcome, WakeIncomplete
from dawnchorus.perf.chaos import load as load_module
from dawnchorus.perf.chaos.load import Load
from dawnchorus.perf.harness.measure import WrongResult
from dawnchorus.perf.harness.workload import SyntheticAgents

AGENTS = SyntheticAgents(50, 10)


class MemoryState:
    """The part of an `AgentState` that a load looks at."""

    def __init__(self, agent_id: str, **outcomes: Outcome) -> None:
        self.agent_id = agent_id
        self._outcomes = outcomes
        self.changed: dict[str, object] = {}

    @property
    def degraded(self) -> tuple[str, ...]:
        """Kinds that could not be read."""
        return tuple(self._outcomes)

    def outcome(self, kind: str) -> Outcome:
        """Return how the reading of a kind ended."""
        return self._outcomes.get(kind, Outcome.OK)

    def __getitem__(self, kind: str) -> object:
        return self.changed.get(kind, AGENTS.fragments(AGENTS.ids.index(self.agent_id))[kind])


Answer = Callable[[str, "asyncio.Future[Any]"], None]


class MemoryClient:
    """A client that answers each wake, in turn, in one of the ways given to it."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.asked: list[str] = []
        self.turns: list[float] = []
        self.deadlines: set[float] = set()

    def wake(self, agent_id: str, /, *, deadline_s: float) -> "asyncio.Future[Any]":
        """Return a future that the next answer completes."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        answer = self._answers[len(self.asked) % len(self._answers)]
        self.asked.append(agent_id)
        self.deadlines.add(deadline_s)
        answer(agent_id, future)
        return future


def complete(agent_id: str, future: "asyncio.Future[Any]") -> None:
    """Answer with everything, soon."""
    asyncio.get_running_loop().call_soon(future.set_result, MemoryState(agent_id))


def degraded(agent_id: str, future: "asyncio.Future[Any]") -> None:
    """Answer without one kind."""
    future.set_result(MemoryState(agent_id, history=Outcome.TIMEOUT))


def shed(agent_id: str, future: "asyncio.Future[Any]") -> None:
    """Answer with one kind shed and another late."""
    future.set_result(MemoryState(agent_id, history=Outcome.TIMEOUT, session=Outcome.SHED))


def failed(agent_id: str, future: "asyncio.Future[Any]") -> None:
    """Answer with the required kind shed."""
    future.set_exception(WakeIncomplete(MemoryState(agent_id, profile=Outcome.SHED), ("profile",)))


def broken(_agent_id: str, future: "asyncio.Future[Any]") -> None:
    """Answer with another error."""
    future.set_exception(ClusterUnavailable("closed"))


def rejected(_agent_id: str, _future: "asyncio.Future[Any]") -> None:
    """Raise in the call itself."""
    raise ClusterUnavailable("closed")


def cancelled(_agent_id: str, future: "asyncio.Future[Any]") -> None:
    """Cancel the future."""
    future.cancel()


def never(_agent_id: str, _future: "asyncio.Future[Any]") -> None:
    """Never answer."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing count as stuck because the machine is busy."""
    monkeypatch.setattr(load_module, "DRAIN_SECONDS", 20.0)


def load_of(order: Sequence[int] = range(50)) -> Load:
    """Return a load of all agents."""
    return Load(AGENTS, order, 0.05)


async def test_load_offers_plan_and_counts_every_end() -> None:
    client = MemoryClient(complete, degraded, shed, failed, broken, rejected, cancelled)
    run = await load_of().run(client, 700, 0.1)
    found = run.counts.counts(run.unsent)
    assert found.offered == len(client.asked) == 70
    assert client.deadlines == {0.05}
    assert (found.complete, found.degraded, found.failed) == (10, 20, 40)
    assert (found.shed, found.stuck, found.unsent) == (20, 0, 0)
    assert found.latency_ms is not None and found.latency_ms.max > 0
    assert run.memory_peak > 1 << 20
    assert run.end_ns - run.begin_ns >= 99_000_000


async def test_late_wake_with_strict_deadline_has_less_time() -> None:
    client = MemoryClient(complete)
    await load_of().run(client, 700, 0.1, strict=True)
    assert max(client.deadlines) < 0.05, "no wake starts the very nanosecond it was planned for"


async def test_agents_are_woken_in_turn_over_several_runs() -> None:
    client = MemoryClient(complete)
    load = load_of([3, 1, 2])
    await load.run(client, 100, 0.05)
    await load.run(client, 100, 0.02)
    assert client.asked == [AGENTS.ids[agent] for agent in (3, 1, 2, 3, 1, 2, 3)]


async def test_wake_that_never_ends_counts_as_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "DRAIN_SECONDS", 0.0)
    run = await load_of().run(MemoryClient(never), 100, 0.05)
    found = run.counts.counts(run.unsent)
    assert (found.offered, found.stuck, found.latency_ms) == (5, 5, None)


async def test_wake_ending_after_stuck_stays_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "DRAIN_SECONDS", 0.0)
    futures: list[asyncio.Future[Any]] = []
    client = MemoryClient(lambda _agent_id, future: futures.append(future))
    run = await load_of().run(client, 100, 0.02)
    for future in futures:
        future.set_result(MemoryState(AGENTS.ids[0]))
    await asyncio.sleep(0)
    assert run.counts.counts().stuck == 2


async def test_a_slow_cluster_gets_no_rest() -> None:
    # A closed loop would wait for the first answer; an open one has asked for all before any has come.
    waiting: list[asyncio.Future[Any]] = []

    def wait_for_all(agent_id: str, future: "asyncio.Future[Any]") -> None:
        waiting.append(future)
        if len(waiting) == 20:
            for each in waiting:
                each.set_result(MemoryState(agent_id))

    run = await load_of().run(MemoryClient(wait_for_all), 1_000, 0.02)
    assert run.counts.counts().complete == 20


async def test_wakes_of_one_tick_start_in_one_turn() -> None:
    turns: list[int] = []
    fresh = True

    def note(agent_id: str, future: "asyncio.Future[Any]") -> None:
        nonlocal fresh

        def end_turn() -> None:
            nonlocal fresh
            fresh = True

        if fresh:
            turns.append(0)
            asyncio.get_running_loop().call_soon(end_turn)
        fresh = False
        turns[-1] += 1
        future.set_result(MemoryState(agent_id))

    await load_of().run(MemoryClient(note), 1_000, 0.03, tick_ms=10.0)
    assert sum(turns) == 30
    assert all(starts % 10 == 0 for starts in turns)


async def test_a_wrong_value_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_CHECKED_EVERY", 1)

    def wrong(agent_id: str, future: "asyncio.Future[Any]") -> None:
        state = MemoryState(agent_id)
        state.changed["context"] = b"somebody else's"
        future.set_result(state)

    with pytest.raises(WrongResult, match="context is not what was saved"):
        await load_of().run(MemoryClient(wrong), 100, 0.02)
    await load_of().run(MemoryClient(complete), 100, 0.02)
