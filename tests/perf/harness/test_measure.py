"""Measuring: the statistics of times, and the checks that no wrong result passes for a wake."""

import asyncio
import gc
import sys

import pytest

from dawnchorus.perf.harness.measure import (
    WrongResult,
    check_encoded,
    check_states,
    closed_loop,
    milliseconds,
    notes_on_process,
    settled_memory,
    single_wakes,
    spread_of,
    tail_of,
    task_per_agent,
    wake_many,
)
from dawnchorus.perf.harness.sleeping_cluster import fill
from dawnchorus.perf.harness.workload import SyntheticAgents
from dawnchorus.wire.errors import ClusterUnavailable
from tests.perf.memory_cluster import MemoryCluster

AGENTS = SyntheticAgents(50, 16)


@pytest.fixture
async def cluster() -> MemoryCluster:
    """All agents asleep."""
    cluster = MemoryCluster()
    await fill(cluster, AGENTS, lambda phase, done, total: None)
    return cluster


async def test_fill_saves_every_agent_and_shows_progress(cluster: MemoryCluster) -> None:
    seen: list[tuple[str, int, int]] = []
    await fill(cluster, AGENTS, lambda phase, done, total: seen.append((phase, done, total)))
    assert cluster.agents == {agent_id: AGENTS.fragments(agent) for agent, agent_id in enumerate(AGENTS.ids)}
    assert seen[-1] == ("put agents to sleep", 50, 50)


async def test_fill_with_failed_agent_ends() -> None:
    cluster = MemoryCluster()
    cluster.rejected = {AGENTS.ids[3]}
    with pytest.raises(WrongResult, match="no room"):
        await fill(cluster, AGENTS, lambda phase, done, total: None)


async def test_every_way_wakes_the_agents_given(cluster: MemoryCluster) -> None:
    sample = [7, 3, 49]
    ids = [AGENTS.ids[agent] for agent in sample]
    check_states(await wake_many(cluster, ids), sample, AGENTS)
    check_states(await task_per_agent(cluster, ids), sample, AGENTS)
    times, states = await single_wakes(cluster, ids)
    assert len(times) == 3 and min(times) > 0
    check_states(states, sample, AGENTS)
    rate, last_states = await closed_loop(cluster, ids, 0.05)
    assert rate > 0
    check_states([last_states[agent_id] for agent_id in ids], sample, AGENTS)


async def test_an_incomplete_wake_is_seen(cluster: MemoryCluster) -> None:
    ids = list(AGENTS.ids[:5])
    cluster.broken = {ids[2]}
    with pytest.raises(WrongResult, match=f"{ids[2]} came back incomplete"):
        check_states(await wake_many(cluster, ids), range(5), AGENTS)


async def test_closed_loop_ends_with_wakes_error(cluster: MemoryCluster) -> None:
    cluster.unavailable = True
    with pytest.raises(ClusterUnavailable):
        await closed_loop(cluster, AGENTS.ids, 5.0)


async def test_wrong_states_are_seen(cluster: MemoryCluster) -> None:
    ids = list(AGENTS.ids[:3])
    states = await wake_many(cluster, ids)
    check_states(states, [0, 1, 2], AGENTS)
    with pytest.raises(WrongResult, match="in the place of"):
        check_states(states, [0, 2, 1], AGENTS)
    with pytest.raises(WrongResult, match="3 states for 2"):
        check_states(states, [0, 1], AGENTS)
    cluster.agents[ids[1]]["context"] = b"another"
    with pytest.raises(WrongResult, match="context is not what was saved"):
        check_states(await wake_many(cluster, ids), [0, 1, 2], AGENTS)
    with pytest.raises(WrongResult, match="Redis"):
        check_encoded([b"a", None], [b"a", b"b"], "Redis")


def test_spread_and_tail() -> None:
    spread = spread_of([3.0, 1.0, 2.0])
    assert (spread.min, spread.p50, spread.max) == (1.0, 2.0, 3.0)
    tail = tail_of([number * 1000 for number in range(1, 101)])
    assert (tail.p50, tail.p99) == (50.5, 99.0)
    assert tail_of([5000]).p99 == 5.0


async def test_milliseconds_of_a_pause_and_its_result() -> None:
    elapsed, result = await milliseconds(lambda: asyncio.sleep(0.01, "woken"))
    assert elapsed >= 9 and result == "woken"


def test_settled_memory_leaves_the_collector_as_it_was() -> None:
    gc.unfreeze()  # what conftest.py froze
    before = gc.get_threshold()
    with settled_memory():
        assert gc.get_threshold() != before
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_it_is_noted_where_nothing_is_compiled() -> None:
    is_compiled = "dawnchorus.compiled__mypyc" in sys.modules
    assert [note for note in notes_on_process() if "interpreted" in note] == (
        []
        if is_compiled
        else ["all of dawnchorus was interpreted, nothing compiled: one wake then takes a fifth longer"]
    )


def test_another_event_loop_is_noted() -> None:
    async def notes() -> list[str]:
        return notes_on_process()

    with asyncio.Runner() as runner:
        assert runner.run(notes())[:1] == ["the clients ran on asyncio's event loop, not on uvloop"]
