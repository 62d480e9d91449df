"""The rules for engines that keep shards as files: directories, sudden ends, copies; subclassed as `conformance`'s."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import Shard, ShardCopy, ShardWarmUp
from dawnchorus.fragment_stores.registry import file_engine
from dawnchorus.wire.errors import DataDirectoryError
from dawnchorus.wire.protocol.messages import DeleteAgent, Put, Write
from tests.fragment_stores.conformance import ShardConformance, commit, ids_after, put, read, value_of, values, versions

__all__ = ["FileConformance"]

# A process that commits until it is killed. Every agent of a group gets the group's number, every acknowledged group is
# printed. Arguments: engine, directory, generation, seed.
WRITER = """
import random, sys
from pathlib import Path
from dawnchorus.fragment_stores.engine import FORMAT, ShardIdentity
from dawnchorus.fragment_stores.registry import engine_factory
from dawnchorus.wire.protocol.messages import DeleteAgent, Put, Write

engine, directory, generation, seed = sys.argv[1:]
identity = ShardIdentity(FORMAT, "ab" * 16, "live", 3, 16, 1)
store = engine_factory(engine)({}).open(Path(directory), identity, create=False)
store.begin_generation(int(generation))
source = random.Random(int(seed))
number = int(generation) * 1_000_000
while True:
    number += 1
    agents = source.sample(range(40), source.randrange(1, 6))
    value = b"%d " % number + bytes(source.choice([10, 500, 20_000]))
    writes = [
        Write(b"agent-%d" % agent, b"%d %d" % (number, agent), 0, [DeleteAgent(), Put("session", 0, 0, value)])
        for agent in agents
    ]
    results = store.commit(writes, 1_000, 1)
    assert all(isinstance(result, int) for result in results)
    print(number, *agents, flush=True)
"""


def write_number(number: int, agent: bytes = b"a", size: int = 10) -> Write:
    return Write(agent, b"id-%d" % number, 0, [Put("session", 0, 0, bytes(size))])


class FileConformance(ShardConformance):
    """The rules; `engine` is a subclass's."""

    @classmethod
    def open_copy(cls, directory: Path, pieces: list[bytes]) -> Shard:
        """Open the shard that a copy's pieces make."""
        files = file_engine(cls.engine)
        assert files is not None
        directory.mkdir()
        assert not files.has_data(directory)
        (directory / files.data_file).write_bytes(b"".join(pieces))
        assert files.has_data(directory)
        return cls.open(directory, generation=2)

    # --- directories ---

    def test_shard_reports_its_bytes_on_disk(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            commit(store, [put(f"agent-{number}", bytes(1_000)) for number in range(200)], 1)
        with self.opened(path) as store:
            assert store.statistics().disk_bytes > 0

    def test_directory_that_cannot_be_made_is_an_error(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a file in the directory's place")
        with pytest.raises(DataDirectoryError, match="cannot be made"):
            self.open(path, create=True)
        assert path.read_bytes() == b"a file in the directory's place"

    def test_warming_up_changes_nothing(self, store: Shard) -> None:
        assert isinstance(store, ShardWarmUp)
        store.warm_up()
        commit(store, [put("a")], 1)
        store.warm_up()
        assert values(store, [b"a"]) == [b"v"]

    # --- sudden ends ---

    def test_every_acknowledged_commit_survives_kill_9(self, path: Path) -> None:
        with self.opened(path, create=True):
            pass
        acknowledged: dict[int, int] = {}
        for generation, lines_before_the_kill in enumerate([0, 1, 17, 60, 200], 1):
            groups = kill_writer(self.engine, path, generation, lines_before_the_kill)
            for number, *agents in groups:
                acknowledged.update(dict.fromkeys(agents, number))
            with self.opened(path) as store:
                self.check_groups(store, acknowledged)
                assert store.version == max([version for version, _ in store.log_after(0, 100_000)], default=0)
            assert lines_before_the_kill <= len(groups)

    def check_groups(self, store: Shard, acknowledged: dict[int, int]) -> None:
        """Fail if an acknowledged group is missing, or a group is there in part; update what is acknowledged."""
        groups: dict[int, set[bytes]] = {}
        for _, row in store.log_after(0, 100_000):
            groups.setdefault(int(row.write_id.split()[0]), set()).add(row.agent)
        for agent in range(40):
            key = b"agent-%d" % agent
            value = value_of(read(store, [key])[0])
            number = int(value.split()[0]) if value is not None else 0
            assert number >= acknowledged.get(agent, 0), f"agent {agent} lost its acknowledged save"
            # The newest group in the log that names the agent is the one whose value it has: groups are complete.
            assert number == max([group for group, agents in groups.items() if key in agents], default=0)
            if number:
                acknowledged[agent] = number

    # --- copies ---

    def test_copy_is_one_moment_and_opens_as_shard(self, store: Shard, tmp_path: Path) -> None:
        commit(store, [write_number(number, b"agent-%d" % number, 2_000) for number in range(200)], 1)
        commit(store, [Write(b"agent-7", b"gone", 0, [DeleteAgent()])], 1)
        version = store.version
        pieces: list[bytes] = []

        def take(piece: bytes) -> None:
            if not pieces:  # saves during the copy are not in it
                commit(store, [write_number(1_000, b"late")], 2)
            pieces.append(piece)

        assert isinstance(store, ShardCopy)
        copied = store.write_copy(take)
        assert (copied.version, copied.agents) == (version, 199)
        copy = self.open_copy(tmp_path / "copy", pieces)
        assert ids_after(copy, b"agent-6~", 1) == [b"agent-70"]
        assert read(copy, [b"late"]) == [b""]
        assert copy.log_after(copy.log_trimmed(), 100_000)[-1][0] == version
        assert copy.statistics().agents == 199
        copy.close()

    def test_copy_reports_its_version_during_concurrent_saves(self, store: Shard, tmp_path: Path) -> None:
        assert isinstance(store, ShardCopy)
        stopping = threading.Event()

        def write_on() -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                commit(store, [write_number(number)], 1)

        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            for number in range(30):
                pieces: list[bytes] = []
                copied = store.write_copy(pieces.append)
                copy = self.open_copy(tmp_path / f"copy-{number}", pieces)
                rows = copy.log_after(copy.log_trimmed(), 100_000)
                copy.close()
                assert copied.version == (rows[-1][0] if rows else 0)
        finally:
            stopping.set()
            writer.join()

    def test_error_of_sink_ends_the_copy(self, store: Shard) -> None:
        commit(store, [write_number(number, b"agent-%d" % number, 20_000) for number in range(500)], 1)

        class EnoughError(Exception):
            pass

        def reject(_piece: bytes) -> None:
            raise EnoughError

        assert isinstance(store, ShardCopy)
        for _ in range(3):
            with pytest.raises(EnoughError):
                store.write_copy(reject)
        assert store.write_copy(lambda piece: None).agents == 500
        assert versions(commit(store, [write_number(1_000)], 2))


def kill_writer(engine: str, path: Path, generation: int, lines: int) -> list[list[int]]:
    """Let a process commit until it has printed so many groups, kill it; return all groups that it printed."""
    command = [sys.executable, "-c", WRITER, engine, str(path), str(generation), str(generation)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            printed = [process.stdout.readline() for _ in range(lines)]
        finally:
            process.send_signal(signal.SIGKILL)
        printed += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [list(map(int, line.split())) for line in printed if line.endswith(b"\n")]
