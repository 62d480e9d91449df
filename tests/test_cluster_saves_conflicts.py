"""Many clients add to one counter, each by wake, save(expect=), and again: no addition is lost, none counts twice.

DAWNCHORUS_FULL=1 lets each add 100 times, as often as the claim says; without it a few times.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from pathlib import Path

import pytest

from dawnchorus import (
    AgentState,
    Cluster,
    DeadlineExceeded,
    Saved,
    SaveIncomplete,
    SaveRejected,
    VersionConflict,
    WakeIncomplete,
    connect,
)
from tests.support.clusters import RunningCluster, eventually, running, write_topology
from tests.support.internals import ReplyDropper, drop_replies, leftovers

FULL = bool(os.environ.get("DAWNCHORUS_FULL"))
CLIENTS = 64
CONNECTIONS = 16
TIMES = 100 if FULL else 8
LONG_S = 60.0


@pytest.fixture(scope="module")
async def nodes(ipc_directory: object, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningCluster]:
    """A cluster whose nodes may be killed; they come again."""
    async with running(write_topology(tmp_path_factory.mktemp("conflicts"), shards=2)) as nodes:
        yield nodes


class Adders:
    """CLIENTS tasks over CONNECTIONS connections that each add 1 to the same counter `times` times."""

    def __init__(self, clusters: Sequence[Cluster], agent_id: str, times: int, *, deadline_s: float = LONG_S) -> None:
        self.clusters = clusters
        self.agent_id = agent_id
        self.times = times
        self.deadline_s = deadline_s
        self.added = 0
        self.conflicts = 0
        self.unknown = 0
        """Saves whose outcome was not known at first."""

    def have(self, enough: int) -> bool:
        """Return whether so many were added."""
        return self.added >= enough

    async def run(self) -> None:
        async with asyncio.TaskGroup() as adders:
            for number in range(CLIENTS):
                adders.create_task(self._add_on(self.clusters[number % len(self.clusters)], random.Random(number)))

    async def _add_on(self, cluster: Cluster, chance: random.Random) -> None:
        mine = 0
        while mine < self.times:
            if await self._add_once(cluster):
                mine += 1
                self.added += 1
            else:
                # A client that begins again at once meets the same others again.
                await asyncio.sleep(chance.uniform(0, 0.005))

    async def _add_once(self, cluster: Cluster) -> bool:
        """Try to add 1; return whether it was added, which is certain then."""
        state = await self._wake(cluster)
        count = state.get("session", 0)
        try:
            await cluster.save(
                self.agent_id, {"session": count + 1, "context": count + 1}, expect=state, deadline_s=self.deadline_s
            )
        except VersionConflict as conflict:
            self.conflicts += 1
            if conflict.found["session"] == state.version("session"):
                raise AssertionError(f"rejected though it expected what is there: {conflict}") from conflict
            return False
        except SaveRejected:
            return False
        except DeadlineExceeded as error:
            self.unknown += 1
            return await self._repeat(error)
        return True

    async def _repeat(self, error: DeadlineExceeded) -> bool:
        """Repeat a save until it is known what became of it."""
        while True:
            try:
                assert isinstance(await error.retry(), Saved)
            except VersionConflict:
                return False
            except DeadlineExceeded as again:
                error = again
            else:
                return True

    async def _wake(self, cluster: Cluster) -> AgentState:
        while True:
            with contextlib.suppress(WakeIncomplete):
                state = await cluster.wake(self.agent_id, ["session", "context"], deadline_s=self.deadline_s)
                if state.complete:
                    assert state.get("session", 0) == state.get("context", 0), "a torn image"
                    return state


@contextlib.asynccontextmanager
async def connections(path: Path) -> AsyncGenerator[list[Cluster]]:
    """CONNECTIONS clients, each with connections of its own; at the end nothing is left in them."""
    async with contextlib.AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(connect(path)) for _ in range(CONNECTIONS)]
        yield clusters
        assert [leftovers(cluster) for cluster in clusters] == [{}] * CONNECTIONS


async def require_sum(path: Path, adders: Adders) -> None:
    """Fail unless the counter is the sum of the additions: none lost, none counted twice."""
    assert adders.added == CLIENTS * adders.times
    async with connect(path) as fresh:
        state = await fresh.wake(adders.agent_id, ["session", "context"], deadline_s=LONG_S)
        assert (state["session"], state["context"]) == (adders.added, adders.added)


async def test_no_addition_of_64_clients_is_lost(nodes: RunningCluster) -> None:
    async with connections(nodes.path) as clusters:
        adders = Adders(clusters, "counter", TIMES)
        await adders.run()
    await require_sum(nodes.path, adders)
    assert adders.conflicts > CLIENTS, "they were to get into each other's way"
    assert adders.unknown == 0


async def test_additions_count_once_while_the_node_is_killed(nodes: RunningCluster) -> None:
    async with connections(nodes.path) as clusters:
        # Half the saves do not wait for the node to come again: their outcome is unknown, and they are repeated.
        adders = Adders(clusters, "counter across kills", TIMES, deadline_s=0.3)
        adding = asyncio.ensure_future(adders.run())
        kills = 0
        for share in (1, 2, 3):
            enough = share * CLIENTS * TIMES // 5
            await eventually(partial(adders.have, enough), LONG_S * TIMES)
            starts = nodes.states("live-1").count("serving")
            kills += not adding.done()
            await nodes.kill("live-1")
            await nodes.served_again("live-1", starts + 1)
        await adding
    await require_sum(nodes.path, adders)
    assert kills == 3
    assert adders.unknown, "no save was under way when the node was killed"


async def test_additions_count_once_when_answers_are_lost(nodes: RunningCluster) -> None:
    async with connections(nodes.path) as clusters:
        droppers: list[ReplyDropper] = [
            drop_replies(cluster, random.Random(number), share=0.02) for number, cluster in enumerate(clusters)
        ]
        adders = Adders(clusters, "counter without answers", TIMES, deadline_s=0.25)
        await adders.run()
    await require_sum(nodes.path, adders)
    assert sum(dropper.dropped for dropper in droppers) > 5
    assert adders.unknown, "no answer to a save was lost"


async def test_of_two_stores_each_says_whether_it_conflicts(nodes: RunningCluster) -> None:
    async with connect(nodes.path) as cluster:
        before = await cluster.save("two stores", {"profile": 1, "session": 1}, deadline_s=LONG_S)
        state = await cluster.wake("two stores", deadline_s=LONG_S)
        other = await cluster.save("two stores", {"session": 2}, deadline_s=LONG_S)
        with pytest.raises(SaveIncomplete) as raised:
            await cluster.save("two stores", {"profile": 3, "session": 3}, expect=state, deadline_s=LONG_S)
        assert raised.value.conflicting == {"session": other.versions["session"]}
        assert raised.value.saved["profile"] > before.versions["profile"]
        assert not raised.value.unknown
        with pytest.raises(VersionConflict) as conflict:
            await cluster.save("two stores", {"profile": 4, "session": 4}, expect=state, deadline_s=LONG_S)
        assert conflict.value.found == {
            "profile": raised.value.saved["profile"],
            "session": other.versions["session"],
        }
        now = await cluster.wake("two stores", deadline_s=LONG_S)
        assert (now["profile"], now["session"]) == (3, 2)
        with pytest.raises(VersionConflict):
            await cluster.delete("two stores", ["session"], expect=state, deadline_s=LONG_S)
        deleted = await cluster.delete("two stores", ["session"], expect=now, deadline_s=LONG_S)
        assert deleted.versions["session"] > other.versions["session"]
        with pytest.raises(VersionConflict):
            await cluster.save("two stores", {"profile": 5}, expect=0, deadline_s=LONG_S)
        await cluster.save("two stores", {"session": 5}, expect=0, deadline_s=LONG_S)
