"""The work of `perf save` on a cluster, tried on one in memory, which can be made to fail."""

import pytest

from dawnchorus.perf.harness.measure import WrongResult
from dawnchorus.perf.saves.savers import (
    SAVED_KIND,
    FreshValues,
    check_saved,
    check_shown,
    concurrent_saves,
    single_saves,
)
from dawnchorus.wire.errors import ClusterUnavailable
from tests.perf.memory_cluster import MemoryCluster

IDS = ["a", "b", "c"]


@pytest.mark.parametrize("value_bytes", [8, 9, 512])
def test_fresh_values_differ_and_have_their_size(value_bytes: int) -> None:
    fresh = FreshValues(value_bytes, b"filling")
    values = [fresh() for _ in range(1000)]
    assert {len(value) for value in values} == {value_bytes}
    assert len(set(values)) == 1000


async def test_single_saves_are_timed_each() -> None:
    cluster = MemoryCluster()
    times, saved = await single_saves(cluster, [*IDS, "a"], FreshValues(16, b"x"))
    assert len(times) == 4 and min(times) > 0
    assert {agent_id: cluster.agents[agent_id][SAVED_KIND] for agent_id in IDS} == saved
    await check_shown(cluster, saved)


async def test_concurrent_savers_save_until_the_time_is_over() -> None:
    cluster = MemoryCluster()
    rate, saved = await concurrent_saves(cluster, IDS, FreshValues(16, b"x"), 0.2)
    assert rate > 0 and list(saved) == IDS
    await check_shown(cluster, saved)


async def test_a_save_that_fails_ends_the_measurement() -> None:
    cluster = MemoryCluster()
    cluster.rejected.add("b")
    with pytest.raises(ClusterUnavailable):
        await concurrent_saves(cluster, IDS, FreshValues(16, b"x"), 5.0)


async def test_missing_acknowledged_save_is_wrong_result() -> None:
    cluster = MemoryCluster()
    await concurrent_saves(cluster, IDS, FreshValues(16, b"x"), 0.2)
    cluster.forgotten.add("b")
    _, saved = await concurrent_saves(cluster, IDS, FreshValues(16, b"y"), 0.2)
    with pytest.raises(WrongResult, match="agent b: context is not what was acknowledged"):
        await check_shown(cluster, saved)


def test_every_result_of_save_many_is_checked() -> None:
    check_saved({"a": object()})
    with pytest.raises(WrongResult, match="agent b could not be saved: full"):
        check_saved({"a": object(), "b": OSError("full")})
