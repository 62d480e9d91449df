"""The complete storm: on a cluster in memory, where it can be made to fail, and on one of real processes."""

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from dawnchorus.perf.harness.measure import WrongResult
from dawnchorus.perf.harness.progress import Progress, no_progress
from dawnchorus.perf.harness.sleeping_cluster import fill
from dawnchorus.perf.harness.topologies import TOPOLOGY_NAMES, TopologyName
from dawnchorus.perf.harness.workload import GivenAgents, Workload, WorkloadError
from dawnchorus.perf.storm import storm as storm_module
from dawnchorus.perf.storm.storm import StormOptions, storm
from tests.perf.memory_cluster import MemoryCluster, MemoryState
from tests.support.children import children_left

HAS_REDIS = shutil.which("redis-server") is not None


class MemorySleepers:
    """A stand-in for the storm's cluster."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()

    @contextlib.asynccontextmanager
    async def __call__(
        self, _topology: TopologyName, workload: Workload, _directory: Path, progress: Progress
    ) -> AsyncGenerator["MemorySleepers"]:
        await fill(self.cluster, workload, progress)
        yield self


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> MemorySleepers:
    """The storm's cluster is in memory."""
    sleepers = MemorySleepers()
    monkeypatch.setattr(storm_module, "sleeping_cluster", sleepers)
    return sleepers


def small(directory: Path, **changes: Any) -> StormOptions:
    """Return options of a storm of a few seconds at most."""
    settings: dict[str, Any] = {
        "agents": 300,
        "value_bytes": 50,
        "wake": 100,
        "runs": 2,
        "singles": 20,
        "closed_loop_s": 0.05,
        "directory": directory,
    }
    return StormOptions(**(settings | changes))


def assert_nothing_is_left(directory: Path) -> None:
    """Assert that no process and no file is left."""
    assert not children_left()
    assert not list(directory.iterdir())


async def test_a_storm_measures_everything_and_leaves_nothing(sleepers: MemorySleepers, tmp_path: Path) -> None:
    phases: list[str] = []
    report = await storm(small(tmp_path), lambda phase, done, total: phases.append(phase))
    assert_nothing_is_left(tmp_path)
    assert len(sleepers.cluster.agents) == report.agents == 300
    assert (report.wake, report.fragments, report.value_bytes, report.runs) == (100, 5, 50, 2)
    assert 0 < report.wake_many_ms.min <= report.wake_many_ms.p50 <= report.wake_many_ms.max
    assert report.closed_loop_per_s > 0
    assert report.peers.raw_zmq_ms is not None and report.peers.raw_echo_us is not None
    assert phases[-1] == "measure"
    assert (report.peers.redis_task_per_agent_ms is not None) == HAS_REDIS
    assert any(note.startswith("Redis") for note in report.notes) != HAS_REDIS


async def test_storm_without_redis_says_so(sleepers: MemorySleepers, tmp_path: Path) -> None:
    report = await storm(small(tmp_path, redis_server="no-such-redis"))
    assert [note for note in report.notes if note.startswith("Redis")] == [
        "Redis was not measured: no-such-redis is not installed (on Debian: apt install redis-server)"
    ]
    assert report.peers.redis_mget_ms is None and report.ratios.wake_many_to_redis_packed is None
    assert report.ratios.wake_many_to_raw is not None
    assert_nothing_is_left(tmp_path)


@pytest.mark.usefixtures("sleepers")
async def test_given_agents_with_own_kinds_are_woken(tmp_path: Path) -> None:
    agents: list[tuple[str, dict[str, object]]] = [
        (f"agent-{number}/ü", {"notes": {"number": number}, "photo": b"\0" * number}) for number in range(20)
    ]
    agents.append(("without photo", {"notes": None}))
    report = await storm(small(tmp_path, workload=GivenAgents(agents, 3), topology="one-store", wake=63))
    assert (report.agents, report.fragments) == (63, 2)


async def test_wrong_value_ends_storm_without_leftovers(sleepers: MemorySleepers, tmp_path: Path) -> None:
    def spoil(phase: str, done: int, total: int) -> None:
        if phase == "measure":
            for fragments in sleepers.cluster.agents.values():
                fragments["session"] = b"another"

    with pytest.raises(WrongResult, match="session is not what was saved"):
        await storm(small(tmp_path), spoil)
    assert_nothing_is_left(tmp_path)


async def test_wake_many_out_of_order_ends_the_storm(sleepers: MemorySleepers, tmp_path: Path) -> None:
    class Shuffled(MemoryCluster):
        async def wake_many(self, agent_ids: Sequence[str]) -> list[MemoryState]:
            return (await super().wake_many(agent_ids))[::-1]

    sleepers.cluster = Shuffled()
    with pytest.raises(WrongResult, match="in the place of"):
        await storm(small(tmp_path, redis_server="no-such-redis"))


@pytest.mark.usefixtures("sleepers")
@pytest.mark.parametrize("changes", [{"wake": 301}, {"wake": 0}, {"runs": 0}, {"singles": 0}, {"closed_loop_s": 0}])
async def test_options_that_cannot_be_are_rejected(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WorkloadError):
        await storm(small(tmp_path, **changes))


@pytest.mark.parametrize("topology", TOPOLOGY_NAMES)
async def test_a_storm_on_a_cluster_of_real_processes(topology: TopologyName, tmp_path: Path) -> None:
    report = await storm(small(tmp_path, topology=topology, redis_server="no-such-redis"), no_progress)
    assert report.topology == topology and report.wake_many_ms.min > 0
    assert_nothing_is_left(tmp_path)


STORM_PROGRAM = """
import pathlib, sys, uvloop
from dawnchorus.perf.storm.storm import StormOptions, storm

def tell(phase, done, total):
    if phase == "measure":
        print("measuring", flush=True)

directory = pathlib.Path(sys.argv[1])
options = StormOptions(agents=300, wake=100, runs=1000, singles=20, closed_loop_s=0.05, directory=directory)
uvloop.run(storm(options, tell))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_storm_that_is_stopped_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STORM_PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"measuring\n", process.communicate(timeout=10)[1].decode()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.communicate(timeout=20)
    # Three nodes, three raw servers, the echo; and Redis.
    assert len(children) == 7 + HAS_REDIS
    _, left = psutil.wait_procs(children, timeout=10)
    for child in left:
        child.kill()
    assert not left
    if number is signal.SIGINT:
        assert not list(tmp_path.iterdir())
