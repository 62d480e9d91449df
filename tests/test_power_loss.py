"""Shard files as a machine's death may leave them, as close as it can be tested without one: docs/consistency.md.

A node works under strace(1), which records each write and sync of its data files. The files are then rebuilt as they
may look after a crash at many moments, each opened and verified, and held against what was acknowledged before.
"""

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from dawnchorus import Cluster, connect
from dawnchorus.fragment_stores.lmdb.check import open_copy, verify_environment
from dawnchorus.fragment_stores.lmdb.identity import read_identity
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.fragment_stores.shard_files import Verified
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.errors import StoreError
from dawnchorus.wire.protocol.shard_hash import shard_of
from tests.support.clusters import write_topology
from tests.support.raw_nodes import NodeProcess
from tests.support.recorded_writes import STRACE, Disk, FileEvent, directory_syncs, read_events

FULL = bool(os.environ.get("DAWNCHORUS_FULL"))
SHARDS = 2
SAVERS = 12
ROUNDS = 100 if FULL else 25
MOMENTS = 10_000 if FULL else 600
"""How many crashes are tried, over all shards."""

LONG_S = 60.0


class Acknowledged(NamedTuple):
    """A write of an agent, and when its client had the answer, in seconds since 1970."""

    at: float
    shard: int
    agent: bytes
    version: int


def require_strace(directory: Path) -> None:
    """Skip if system calls cannot be recorded here."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: writes and syncs cannot be recorded")
    tried = subprocess.run([*STRACE, "--output", str(directory / "tried"), "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace cannot trace here: {tried.stderr.decode().strip()}")


async def save_on(cluster: Cluster, chance: random.Random, number: int) -> list[Acknowledged]:
    """Save and delete an agent's kinds, one write after the other; return each with the time of its answer."""
    acknowledged: list[Acknowledged] = []
    agent_id = f"agent-{number}"
    for _ in range(ROUNDS):
        if chance.random() < 0.15:
            saved = await cluster.delete(agent_id, ["session"], deadline_s=LONG_S)
        else:
            size = chance.choice([10, 500, 3_000, 20_000])
            ttl_s = chance.choice([None, 3_600.0])
            saved = await cluster.save(agent_id, {"session": chance.randbytes(size)}, ttl_s=ttl_s, deadline_s=LONG_S)
        if version := saved.versions["session"]:
            agent = agent_id.encode()
            acknowledged.append(Acknowledged(time.time(), shard_of(agent, SHARDS), agent, version))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.uniform(0, 0.005))
    return acknowledged


async def record(directory: Path, kinds: str) -> tuple[list[FileEvent], list[Acknowledged], float]:
    """Let a node work under strace; return what it wrote, what it acknowledged, and when it had begun to serve."""
    require_strace(directory)
    topology = write_topology(directory, shards=SHARDS, nodes={"live-1": ["live"]}, kinds=kinds)
    prefix = directory / "trace"
    with NodeProcess(topology, "live-1", under=[*STRACE, "--output", str(prefix)]) as node:
        node.serving()
        serving = time.time()
        async with connect(load_topology(topology)) as cluster:
            acknowledged = await asyncio.gather(
                *(save_on(cluster, random.Random(number), number) for number in range(SAVERS))
            )
        assert node.close_input() == 0
    return read_events(prefix), [write for some in acknowledged for write in some], serving


def crash(directory: Path, disk: Disk, during: FileEvent, chance: random.Random) -> Path:
    """Write a shard's file as a crash during an event may leave it; return its directory."""
    shard = directory / "shard"
    shutil.rmtree(shard, ignore_errors=True)
    shard.mkdir(parents=True)
    (shard / "data.mdb").write_bytes(disk.after_crash(during, chance))
    return shard


def problems(shard: Path, expected: Sequence[Acknowledged]) -> list[str]:
    """Return what is wrong with a shard after a crash: nothing may be, and all acknowledged writes have to be there."""
    try:
        identity = read_identity(shard)
    except StoreError as error:
        return [str(error)]
    if identity is None:
        return ["it does not say whose shard it is"]
    try:
        store = LMDBStore(shard, identity, create=False)
    except StoreError as error:
        return [str(error)]
    try:
        versions = {version for version, _ in store.log_after(0, 1_000_000)}
    finally:
        store.close()
    with open_copy(shard / "data.mdb") as environment:
        found = [f"{finding.where}: {finding.detail}" for finding in verify_environment(environment, Verified())]
    return found + [f"lost: {write}" for write in expected if write.version not in versions]


def try_crashes(
    directory: Path, events: list[FileEvent], acknowledged: list[Acknowledged], serving: float, moments: int
) -> tuple[int, list[str]]:
    """Crash at random moments; return how many files had lost something, and what was wrong with any."""
    seed = int(os.environ.get("DAWNCHORUS_SEED") or time.time_ns() % 1_000_000)
    print(f"DAWNCHORUS_SEED={seed}")
    chance = random.Random(seed)
    paths = sorted({event.path for event in events})
    assert len(paths) == SHARDS
    torn, wrong = 0, list[str]()
    for path in paths:
        number = int(Path(path).parent.name)
        of_shard = [event for event in events if event.path == path]
        expected = sorted(write for write in acknowledged if write.shard == number)
        begun = next(index for index, event in enumerate(of_shard) if event.at > serving)
        candidates = range(begun, len(of_shard))
        chosen = sorted(chance.choices(candidates, k=moments // SHARDS))
        disk, taken = Disk(), 0
        for moment in chosen:
            for event in of_shard[taken:moment]:
                disk.take(event)
            taken = moment
            during = of_shard[moment]
            torn += bool(disk.pending)
            shard = crash(directory, disk, during, chance)
            before = [write for write in expected if write.at < during.at]
            wrong += [f"shard {number}, event {moment}: {problem}" for problem in problems(shard, before)]
    return torn, wrong


KINDS = '[fragments.session]\nstore = "live"\n'


async def test_no_moment_of_power_loss_costs_anything_acknowledged(ipc_directory: object, tmp_path: Path) -> None:
    events, acknowledged, serving = await record(tmp_path, KINDS)
    syncs = sum(event.content is None for event in events)
    assert syncs > ROUNDS
    assert len(acknowledged) > SAVERS * ROUNDS // 2
    torn, wrong = try_crashes(tmp_path / "crashed", events, acknowledged, serving, MOMENTS)
    print(
        f"{len(acknowledged)} acknowledged, {len(events)} events, {syncs} syncs; {MOMENTS} crashes, {torn} with losses"
    )
    assert not wrong, "\n".join(wrong[:20])
    assert torn > MOMENTS // 10, "hardly any crash had something to lose"


async def test_shard_is_on_disk_before_its_node_serves(ipc_directory: object, tmp_path: Path) -> None:
    events, _, serving = await record(tmp_path, KINDS)
    for path in {event.path for event in events}:
        disk = Disk()
        for event in events:
            if event.path == path and event.at < serving:
                disk.take(event)
        assert not disk.pending
        synced = directory_syncs(tmp_path / "trace")
        shard = Path(path).parent
        assert {str(shard), str(shard.parent), str(shard.parent.parent)} <= synced, "a directory's entry was not synced"


async def test_method_finds_losses_of_store_that_syncs_less(ipc_directory: object, tmp_path: Path) -> None:
    # As if the meta page were synced with the next commit only (MDB_NOMETASYNC): intact, and the last saves are gone.
    events, acknowledged, serving = await record(tmp_path, KINDS)
    lazy = [event._replace(durable=event.content is None or event.at < serving) for event in events]
    _, wrong = try_crashes(tmp_path / "crashed", lazy, acknowledged, serving, MOMENTS)
    assert wrong
    assert all("lost: " in problem for problem in wrong)
