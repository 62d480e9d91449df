"""Nodes are killed at any moment, half of the times while a commit is under way: nothing acknowledged is lost.

Client processes (`tests.support.saving_client`) save, delete and check all the while. After each kill the dead node's
files are read as they are, before it is started again: every shard is intact, its log agrees with its images, and
every acknowledged write is in it, or a later one of that agent. DAWNCHORUS_FULL=1 kills 200 times, DAWNCHORUS_SEED
repeats a run's choices.
"""

import os
import random
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import pytest

from dawnchorus import connect
from dawnchorus.fragment_stores.engine import LogRow
from dawnchorus.fragment_stores.lmdb.check import open_copy, verify_environment
from dawnchorus.fragment_stores.shard_files import Verified
from dawnchorus.wire.protocol.image import decode_image, version_of
from dawnchorus.wire.protocol.shard_hash import shard_of
from tests.support.clusters import write_topology
from tests.support.raw_nodes import PATIENCE_S, NodeProcess
from tests.support.saving_client import COUNTERS, STORES, Acknowledged, Summary

KILLS = 200 if os.environ.get("DAWNCHORUS_FULL") else 30
CLIENTS = 3
SHARDS = 16 if os.environ.get("DAWNCHORUS_FULL") else 2
"""So many that no shard's log is trimmed within a run: it is read from its beginning."""
NODES = {"identity-1": ["identity"], "live-1": ["live"]}
KINDS = "".join(f'[fragments.{kind}]\nstore = "{store}"\n' for store, kinds in STORES.items() for kind in kinds)
ROOT = Path(__file__).parent.parent

_facts = msgspec.json.Decoder(Acknowledged | Summary)
_rows = msgspec.msgpack.Decoder(LogRow)


class ClientProcess:
    """A saving client, and what it has reported."""

    def __init__(self, topology: Path, number: int, seed: int) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.summary: Summary | None = None
        self.last_errors: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.saving_client", str(topology), str(number), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                fact = _facts.decode(line)
            except msgspec.DecodeError:
                self.last_errors.append(line.decode())
                continue
            if isinstance(fact, Acknowledged):
                self.acknowledged.append(fact)
            else:
                self.summary = fact

    def require_well(self) -> None:
        """Fail if it has found a contradiction."""
        if self.process.poll() is not None or self.last_errors:
            self._reader.join(PATIENCE_S)
            pytest.fail("a client ended:\n" + "".join(self.last_errors))

    def finish(self) -> Summary:
        """Let it come to an end; return what it did."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        while self.process.poll() is None:
            drain([self])
        self._reader.join(PATIENCE_S)
        assert not self.last_errors, "".join(self.last_errors)
        assert self.process.returncode == 0
        assert self.summary is not None
        return self.summary

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def drain(clients: list[ClientProcess], patience_s: float = 0.05) -> bool:
    """Read the clients' reports of their sendings; return whether any has just sent a save."""
    pipes = [client.process.stderr for client in clients if client.process.stderr is not None]
    ready, _, _ = select.select(pipes, [], [], patience_s)
    return any([os.read(pipe.fileno(), 1 << 16) for pipe in ready])


def wait_for_a_sending(clients: list[ClientProcess]) -> None:
    """Return right after one of the clients has begun to send a save."""
    while drain(clients, 0):
        pass
    while not drain(clients, 1.0):
        for client in clients:
            client.require_well()


def let_work(clients: list[ClientProcess], seconds: float) -> None:
    """Let the clients work for a while."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        drain(clients, left)


class Shards:
    """The files of all nodes, and what was acknowledged of the agents in them."""

    def __init__(self, data_directory: Path) -> None:
        self._data_directory = data_directory
        self._taken: dict[int, int] = {}
        self.newest: dict[tuple[str, str], Acknowledged] = {}
        """The newest acknowledged write of each store and agent."""
        self.versions: dict[tuple[str, int], set[int]] = {}
        """Every acknowledged version by store and shard."""
        self.verified = 0

    def take_over(self, clients: list[ClientProcess]) -> None:
        """Receive what was acknowledged since the last time; of each shard no version may come twice."""
        for number, client in enumerate(clients):
            acknowledged = client.acknowledged[self._taken.get(number, 0) :]
            self._taken[number] = self._taken.get(number, 0) + len(acknowledged)
            for fact in acknowledged:
                place = fact.store, shard_of(fact.agent.encode(), SHARDS)
                assert fact.version not in self.versions.setdefault(place, set()), f"given twice: {fact}"
                self.versions[place].add(fact.version)
                before = self.newest.get((fact.store, fact.agent))
                if before is None or fact.version > before.version:
                    self.newest[fact.store, fact.agent] = fact
                else:
                    assert fact.agent in COUNTERS, f"versions of an agent only grow: {fact} after {before}"

    def verify(self, node: str) -> None:
        """Read the files of a node that does not run."""
        for store in NODES[node]:
            for shard in range(SHARDS):
                self._verify_shard(self._data_directory / node / store / f"{shard:04d}" / "data.mdb", store, shard)

    def _verify_shard(self, path: Path, store: str, shard: int) -> None:
        where = f"{store}/{shard}"
        with open_copy(path) as environment:
            verified = Verified()
            findings = list(verify_environment(environment, verified))
            assert not findings, f"{where}: {findings}"
            assert verified.trimmed == 0, "the log was to reach back to the beginning"
            with environment.begin() as transaction:
                images = dict(transaction.cursor(environment.open_db(b"images", transaction, create=False)))
                log = transaction.cursor(environment.open_db(b"log", transaction, create=False))
                rows = [(int.from_bytes(key, "big"), _rows.decode(row)) for key, row in log]
        last = {row.agent: version for version, row in rows}
        write_ids = [row.write_id for _, row in rows]
        assert len(set(write_ids)) == len(write_ids), f"{where}: a write was applied twice"
        versions = {version for version, _ in rows}
        lost = self.versions.get((store, shard), set()) - versions
        assert not lost, f"{where}: acknowledged and not in the log: {lost}"
        for agent, image in images.items():
            values = {kind: part.value for kind, part in decode_image(image).items()}
            assert set(values) == set(STORES[store]), f"{where}: {agent!r} is torn: {values}"
            assert len(set(values.values())) == 1, f"{where}: {agent!r} is torn: {values}"
            assert version_of(image) == last[agent]
        for (of_store, agent_id), fact in self.newest.items():
            agent = agent_id.encode()
            if of_store != store or shard_of(agent, SHARDS) != shard:
                continue
            assert last[agent] >= fact.version, f"{where}: lost: {fact}"
            if last[agent] == fact.version:
                found = decode_image(images[agent])[STORES[store][0]].value if agent in images else b"\x00"
                assert msgspec.msgpack.decode(found) == fact.number, f"{where}: {fact} has {found!r}"
        self.verified += 1


class Nodes:
    """The node processes by name."""

    def __init__(self, topology: Path) -> None:
        self._topology = topology
        self._running: dict[str, NodeProcess] = {}

    def start(self, *names: str) -> None:
        """Start nodes; return when all serve."""
        for name in names:
            self._running[name] = NodeProcess(self._topology, name)
        for name in names:
            self._running[name].serving()

    def kill(self, name: str) -> None:
        """End one, and return when it is gone."""
        with self._running.pop(name) as node:
            node.process.kill()
            node.process.wait()

    def stop(self) -> None:
        """End all as they are asked to."""
        while self._running:
            _, node = self._running.popitem()
            with node:
                assert node.end() == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._running):
            self.kill(name)


@pytest.fixture
def seed() -> int:
    """The seed of this run's choices; shown if the test fails."""
    chosen = int(os.environ.get("DAWNCHORUS_SEED") or time.time_ns() % 1_000_000)
    print(f"DAWNCHORUS_SEED={chosen}")
    return chosen


async def test_nothing_acknowledged_is_lost_whenever_nodes_are_killed(
    seed: int, ipc_directory: object, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    topology = write_topology(tmp_path, shards=SHARDS, nodes=NODES, kinds=KINDS)
    shards = Shards(tmp_path / "data")
    with Nodes(topology) as nodes:
        nodes.start(*NODES)
        clients = [ClientProcess(topology, number, seed) for number in range(CLIENTS)]
        try:
            for _ in clients:
                wait_for_a_sending(clients)
            for kill in range(KILLS):
                name = chance.choice(list(NODES))
                if kill % 2:
                    wait_for_a_sending(clients)
                    let_work(clients, chance.uniform(0, 0.003))
                else:
                    let_work(clients, chance.uniform(0.02, 0.4))
                nodes.kill(name)
                for client in clients:
                    client.require_well()
                shards.take_over(clients)
                shards.verify(name)
                nodes.start(name)
            summaries = [client.finish() for client in clients]
        finally:
            for client in clients:
                with client:
                    pass
        shards.take_over(clients)
        await require_counters(topology, summaries)
        nodes.stop()
        for name in NODES:
            shards.verify(name)
    total = {
        field: sum(getattr(summary, field) for summary in summaries)
        for field in Summary.__struct_fields__
        if field != "added"
    }
    print(
        f"{KILLS} kills, {shards.verified} shards verified, {sum(map(len, shards.versions.values()))} acknowledged:",
        total,
    )
    # An idle run must not pass.
    assert sum(map(len, shards.versions.values())) > 20 * KILLS
    assert total["deletes"] > KILLS
    assert total["checks"] > 5 * KILLS
    assert total["expecting"] > 5 * KILLS
    assert total["conflicts"] > KILLS
    assert total["unknown"] > KILLS // 2, "too few saves were under way when nodes were killed"
    assert total["repeated"] > KILLS // 4


async def require_counters(topology: Path, summaries: list[Summary]) -> None:
    """Fail unless each counter is the sum of its additions: none lost, none counted twice."""
    async with connect(topology) as cluster:
        for counter in COUNTERS:
            state = await cluster.wake(counter, ["session", "context"], deadline_s=PATIENCE_S)
            added = sum(summary.added.get(counter, 0) for summary in summaries)
            assert state["session"] == state["context"] == added > 0
