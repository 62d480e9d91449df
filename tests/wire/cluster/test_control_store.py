"""The control store: one winner per revision, nothing torn by a crash, and no placement computed twice."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from dawnchorus.wire.cluster import control_store
from dawnchorus.wire.cluster.control_store import ControlStore, establish_placement, take_generation
from dawnchorus.wire.cluster.file_control_store import FileControlStore
from dawnchorus.wire.cluster.placement import Placement, decode_placement, initial_placement
from dawnchorus.wire.cluster.topology import KindSpec, StoreSpec
from dawnchorus.wire.errors import PlacementError
from dawnchorus.wire.protocol.versions import GENERATION_MAX
from tests.support.clusters import eventually
from tests.support.control import FIRST, make_topology, no_shards

# The program of the processes of the tests below. Arguments: the data directory, and what to do.
WORKER = """
import asyncio, os, signal, sys
from dawnchorus.wire.cluster.control_store import establish_placement, take_generation
from dawnchorus.wire.cluster.file_control_store import FileControlStore
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology

directory, action = sys.argv[1:]
control = FileControlStore.in_directory(directory)
topology = Topology(name="dev", data_dir=directory, stores={"live": StoreSpec(shards=2)},
                    kinds={"session": KindSpec("live")}, nodes={"a": NodeSpec("a", "tcp://127.0.0.1:1", ("live",))})
marker = os.path.join(directory, "written")

def die_in(function):
    def dying(*arguments):
        if action.startswith("after"):
            function(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    return dying

async def main():
    if action == "establish":
        placement = await establish_placement(topology, control, lambda: marker if os.path.exists(marker) else None)
        open(marker, "w").close()
        print(placement.cluster_uuid, (await take_generation(control, "identity-1")).generation)
        return
    if action != "forever":
        function = action.split()[1]
        setattr(os, function, die_in(getattr(os, function)))
    while True:
        print((await take_generation(control, "identity-1")).generation, flush=True)

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


StartWorker = Callable[[Path, str], subprocess.Popen[str]]


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Start a process that waits, ready, for `go`; whatever becomes of the test, it does not outlive it."""
    workers: list[subprocess.Popen[str]] = []

    def start(directory: Path, action: str) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory), action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        workers.append(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    yield start
    for worker in workers:
        with worker:
            worker.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


async def test_new_cluster_gets_random_uuid(control: FileControlStore, tmp_path: Path) -> None:
    topology = make_topology()
    placement = await establish_placement(topology, control, no_shards)
    assert placement == await control.read()
    assert placement == msgspec.structs.replace(initial_placement(topology, placement.cluster_uuid), revision=1)
    other = await establish_placement(topology, FileControlStore.in_directory(tmp_path / "other"), no_shards)
    assert other.cluster_uuid != placement.cluster_uuid


async def test_an_established_placement_is_left_as_it_is(control: FileControlStore) -> None:
    placement = await establish_placement(make_topology(), control, no_shards)

    def never() -> NoReturn:
        raise AssertionError("asked for shards on disk, though there is a placement")

    before = control.path.read_bytes()
    assert await establish_placement(make_topology(), control, never) == placement
    assert control.path.read_bytes() == before


async def test_a_grown_topology_is_added(control: FileControlStore) -> None:
    placement = await establish_placement(make_topology(), control, no_shards)
    grown = make_topology(kinds={"session": KindSpec("live"), "context": KindSpec("live")})
    assert await establish_placement(grown, control, no_shards) == msgspec.structs.replace(
        placement, revision=2, kinds={"session": "live", "context": "live"}
    )


async def test_contradicting_topology_is_rejected_with_data_directory(control: FileControlStore) -> None:
    await establish_placement(make_topology(), control, no_shards)
    before = control.path.read_bytes()
    with pytest.raises(
        PlacementError, match=r"^data directory /srv/dev: store 'live' has 2 shards, the topology says 3"
    ):
        await establish_placement(make_topology(stores={"live": StoreSpec(shards=3)}), control, no_shards)
    assert control.path.read_bytes() == before


async def test_a_lost_placement_is_never_computed_again(control: FileControlStore) -> None:
    await establish_placement(make_topology(), control, no_shards)
    control.path.unlink()
    with pytest.raises(PlacementError) as caught:
        await establish_placement(make_topology(), control, lambda: "/srv/dev/a/live/0")
    message = str(caught.value)
    assert message.startswith("/srv/dev: there is no placement, but a shard has been written: /srv/dev/a/live/0; ")
    assert "restore placement.json from a backup" in message
    assert not control.path.exists()
    with pytest.raises(PlacementError, match=r"there is no placement .*; restore placement\.json from a backup"):
        await take_generation(control, "identity-1")


class ScriptedControlStore:
    """A control store in memory, where others change the placement right before this caller's next swaps."""

    def __init__(self, current: Placement | None, rivals: list[Placement]) -> None:
        self.current = current
        self.rivals = rivals

    async def read(self) -> Placement | None:
        return self.current

    async def compare_and_swap(self, expected_revision: int, placement: Placement) -> bool:
        if self.rivals:
            self.current = self.rivals.pop(0)
        if (0 if self.current is None else self.current.revision) != expected_revision:
            return False
        self.current = msgspec.structs.replace(placement, revision=expected_revision + 1)
        return True

    async def watch(self) -> AsyncIterator[Placement]:
        if self.current is not None:
            yield self.current


async def test_loser_of_first_swap_takes_winners_placement() -> None:
    winner = msgspec.structs.replace(FIRST, revision=1)
    scripted: ControlStore = ScriptedControlStore(None, [winner])
    assert await establish_placement(make_topology(), scripted, no_shards) == winner


async def test_loser_of_generation_takes_the_next() -> None:
    rivals = [msgspec.structs.replace(FIRST, revision=1 + n, generation=n) for n in range(1, 6)]
    scripted = ScriptedControlStore(msgspec.structs.replace(FIRST, revision=1), rivals)
    placement = await take_generation(scripted, "identity-1")
    assert placement == scripted.current
    assert (placement.generation, placement.revision) == (6, 7)


async def test_shard_written_by_winner_is_no_loss() -> None:
    winner = msgspec.structs.replace(FIRST, revision=1)
    scripted = ScriptedControlStore(None, [])

    def written_meanwhile() -> str:
        scripted.current = winner
        return "/srv/dev/a/live/0"

    assert await establish_placement(make_topology(), scripted, written_meanwhile) == winner


async def test_swaps_that_are_never_won_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_store, "SWAP_ATTEMPTS_MAX", 20)
    rivals = [msgspec.structs.replace(FIRST, revision=n) for n in range(2, 100)]
    scripted = ScriptedControlStore(msgspec.structs.replace(FIRST, revision=1), rivals)
    with pytest.raises(PlacementError, match="something changes it all the time"):
        await take_generation(scripted, "identity-1")
    grown = make_topology(kinds={"session": KindSpec("live"), "context": KindSpec("live")})
    with pytest.raises(PlacementError, match="something changes it all the time"):
        await establish_placement(grown, scripted, no_shards)


async def test_used_up_generations_change_nothing(control: FileControlStore) -> None:
    await control.compare_and_swap(0, msgspec.structs.replace(FIRST, generation=GENERATION_MAX))
    with pytest.raises(PlacementError, match="are used up"):
        await take_generation(control, "identity-1")
    placement = await control.read()
    assert placement is not None
    assert placement.revision == 1


async def test_tasks_of_one_process_take_distinct_generations(control: FileControlStore) -> None:
    await control.compare_and_swap(0, FIRST)
    taken = await asyncio.gather(*(take_generation(control, "identity-1") for _ in range(20)))
    assert sorted(placement.generation for placement in taken) == list(range(1, 21))


def test_concurrent_starts_agree_on_distinct_generations(tmp_path: Path, start_worker: StartWorker) -> None:
    directory = tmp_path / "dev"
    workers = [start_worker(directory, "establish") for _ in range(8)]
    for worker in workers:
        go(worker)
    answers = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8
    assert len({uuid for uuid, _ in answers}) == 1
    assert sorted(int(generation) for _, generation in answers) == list(range(1, 9))
    placement = decode_placement((directory / "placement.json").read_bytes())
    assert (placement.generation, placement.revision) == (8, 9)


async def test_killed_process_leaves_complete_placement(control: FileControlStore, start_worker: StartWorker) -> None:
    await control.compare_and_swap(0, FIRST)
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    taken: list[int] = []
    for _round in range(5):
        workers = [start_worker(control.path.parent, "forever") for _ in range(3)]
        for worker in workers:
            go(worker)
        await eventually(lambda: decode_placement(control.path.read_bytes()).generation > max(taken, default=0))
        await asyncio.sleep(choose.uniform(0.02, 0.1))
        for worker in workers:
            worker.kill()
        for worker in workers:
            # The last line may be cut: that process did not get to use its generation.
            output = worker.communicate(timeout=60)[0]
            taken.extend([int(line) for line in output.splitlines(keepends=True) if line.endswith("\n")])
        taken.append((await take_generation(control, "identity-1")).generation)
        assert taken[-1] == max(taken), f"seed {seed}"
    assert len(set(taken)) == len(taken), f"seed {seed}"
    assert len(taken) > 5


@pytest.mark.parametrize(
    ("moment", "kept"),
    [("before fsync", 0), ("after fsync", 0), ("before replace", 0), ("after replace", 1)],
)
async def test_process_killed_at_step_leaves_either_placement(
    control: FileControlStore, start_worker: StartWorker, moment: str, kept: int
) -> None:
    await control.compare_and_swap(0, FIRST)
    worker = start_worker(control.path.parent, moment)
    go(worker)
    assert worker.communicate(timeout=60)[0] == ""
    assert worker.returncode == -signal.SIGKILL
    assert await control.read() == msgspec.structs.replace(FIRST, revision=1 + kept, generation=kept)
    assert (await take_generation(control, "identity-1")).generation == kept + 1
