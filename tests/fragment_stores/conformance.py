"""Every rule of the FragmentStore protocol as a test. An engine is run through it by one subclass with its name:

    class TestAnEngine(SavesConformance):  # of conformance_saves, which begins with these
        engine = "dawnchorus.fragment_stores.an_engine:AnEngine"

What the name stands for is called with a folder, a ShardIdentity and `create`, and opens a shard.
"""

import itertools
import pkgutil
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dawnchorus.fragment_stores.engine import FORMAT, FragmentStore, LogRow, ShardIdentity, Snapshot
from dawnchorus.wire.errors import DataFolderError, InvalidRequestError, StoreDamaged
from dawnchorus.wire.protocol.image import Fragment, decode_image, version_of
from dawnchorus.wire.protocol.limits import AGENT_ID_BYTES_MAX, FRAGMENT_BYTES_MAX
from dawnchorus.wire.protocol.messages import Drop, Erase, Operation, Put, Refusal, Write
from dawnchorus.wire.protocol.versions import GENERATION_MAX, first_version, generation_of, sequence_of
from dawnchorus.wire.protocol.write_digest import operations_digest

IDENTITY = ShardIdentity(FORMAT, "ab" * 16, "live", 3, 16, 1)

# A process that commits until it is killed. Every agent of a group gets the group's number, every acknowledged group is
# told. Arguments: engine, folder, generation, seed.
WRITER = """
import pkgutil, random, sys
from pathlib import Path
from dawnchorus.fragment_stores.engine import FORMAT, ShardIdentity
from dawnchorus.wire.protocol.messages import Erase, Put, Write

engine, folder, generation, seed = sys.argv[1:]
store = pkgutil.resolve_name(engine)(Path(folder), ShardIdentity(FORMAT, "ab" * 16, "live", 3, 16, 1), create=False)
store.begin_generation(int(generation))
source = random.Random(int(seed))
number = int(generation) * 1_000_000
while True:
    number += 1
    agents = source.sample(range(40), source.randrange(1, 6))
    value = b"%d " % number + bytes(source.choice([10, 500, 20_000]))
    writes = [
        Write(b"agent-%d" % agent, b"%d %d" % (number, agent), 0, [Erase(), Put("session", 0, 0, value)])
        for agent in agents
    ]
    results = store.commit(writes, 1_000)
    assert all(isinstance(result, int) for result in results)
    print(number, *agents, flush=True)
"""


_write_numbers = itertools.count(1)


def new_write_id() -> bytes:
    """An id that no other write of this process has."""
    return b"write-%d" % next(_write_numbers)


def put(agent: bytes | str, value: bytes = b"v", kind: str = "session", write_id: bytes | None = None) -> Write:
    """A write of one kind, under an id of its own where none is given."""
    named = new_write_id() if write_id is None else write_id
    return Write(agent if isinstance(agent, bytes) else agent.encode(), named, 0, [Put(kind, 0, 0, value)])


def write(agent: bytes, *operations: Operation) -> Write:
    return Write(agent, new_write_id(), 0, list(operations))


def value_of(image: bytes | memoryview, kind: str = "session") -> bytes | None:
    """A kind's value in an image, None where the agent has none."""
    return decode_image(image)[kind].value if len(image) else None


def versions(results: Sequence[int | Refusal]) -> list[int]:
    assert not [result for result in results if isinstance(result, Refusal)]
    return [result for result in results if isinstance(result, int)]


def values(snapshot: Snapshot, agents: Sequence[bytes]) -> list[bytes | None]:
    return [value_of(image) for image in snapshot.images(agents)]


class FragmentStoreConformance:
    """The rules; `engine` is a subclass's."""

    engine: ClassVar[str]

    @classmethod
    def open(
        cls, path: Path, *, create: bool = False, generation: int = 0, identity: ShardIdentity = IDENTITY
    ) -> FragmentStore:
        """Open the shard, and take its versions from a generation where one is given."""
        made: FragmentStore = pkgutil.resolve_name(cls.engine)(path, identity, create=create)
        if generation:
            made.begin_generation(generation)
        return made

    @classmethod
    @contextmanager
    def opened(
        cls, path: Path, *, create: bool = False, generation: int = 0, identity: ShardIdentity = IDENTITY
    ) -> Generator[FragmentStore]:
        """Open the shard for a block."""
        store = cls.open(path, create=create, generation=generation, identity=identity)
        try:
            yield store
        finally:
            store.close()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """The shard's folder, not yet made."""
        return tmp_path / "node" / "live" / "0003"

    @pytest.fixture
    def store(self, path: Path) -> Iterator[FragmentStore]:
        """A new shard in its first generation."""
        with self.opened(path, create=True, generation=1) as made:
            yield made

    # --- reading and writing ---

    def test_a_new_shard_is_empty(self, path: Path) -> None:
        with self.opened(path, create=True) as store:
            assert (store.version, store.identity) == (0, IDENTITY)
            assert (store.statistics().agents, store.statistics().log_rows) == (0, 0)
            with store.snapshot() as snapshot:
                assert snapshot.version == 0
                assert list(map(len, snapshot.images([b"a", b"b"]))) == [0, 0]
                assert snapshot.agents_after(b"", 10) == []
                assert snapshot.log_after(0, 10) == []

    def test_what_was_committed_is_read_in_the_order_asked_for(self, store: FragmentStore) -> None:
        store.commit([put("a", b"1"), put("b", b"2"), put("ä/1", b"3")], 1_000)
        with store.snapshot() as snapshot:
            asked = [b"b", b"nobody", "ä/1".encode(), b"a", b"b"]
            assert values(snapshot, asked) == [b"2", None, b"3", b"1", b"2"]
            assert snapshot.images([]) == []

    def test_an_image_says_version_time_and_everything_that_was_put(self, store: FragmentStore) -> None:
        [version] = versions(store.commit([write(b"a", Put("session", 7, 1, b"s"), Put("context", 0, 0, b""))], 1_234))
        with store.snapshot() as snapshot:
            [image] = snapshot.images([b"a"])
            assert version_of(image) == version
            assert decode_image(image) == {
                "session": Fragment(version, 7, 1, 1_234, 0, b"s"),
                "context": Fragment(version, 0, 0, 1_234, 0, b""),
            }

    def test_writes_to_one_agent_in_one_commit_are_applied_in_order(self, store: FragmentStore) -> None:
        writes = [put("a", b"1"), put("a", b"2"), write(b"a", Drop("session")), put("a", b"3", "context")]
        found = versions(store.commit(writes, 1))
        with store.snapshot() as snapshot:
            [image] = snapshot.images([b"a"])
            assert decode_image(image) == {"context": Fragment(found[3], 0, 0, 1, 0, b"3")}

    def test_a_deleted_agent_is_gone_and_stands_in_the_log(self, store: FragmentStore) -> None:
        store.commit([put("a"), put("b")], 1)
        [gone] = versions(store.commit([Write(b"a", b"w", 0, [Erase()])], 2))
        assert store.statistics().agents == 1
        with store.snapshot() as snapshot:
            assert values(snapshot, [b"a", b"b"]) == [None, b"v"]
            assert snapshot.agents_after(b"", 10) == [b"b"]
            [(version, row)] = snapshot.log_after(gone - 1, 10)
            assert (version, row) == (gone, LogRow(b"a", b"w", [(3, "")], row.digest, ["session"]))

    @pytest.mark.parametrize("size", [0, 1, 511, 2_000, 4_096, 100_000, FRAGMENT_BYTES_MAX])
    def test_values_of_any_size_come_back(self, store: FragmentStore, size: int) -> None:
        value = random.Random(size).randbytes(size)
        store.commit([put("a", value), put("b", b"beside")], 1)
        with store.snapshot() as snapshot:
            assert values(snapshot, [b"a", b"b"]) == [value, b"beside"]

    @pytest.mark.parametrize("agent", [b"\x00", b"a" * AGENT_ID_BYTES_MAX, "ä/1 \U0001f600".encode(), b"a\x00"])
    def test_agents_of_any_permitted_id_come_back(self, store: FragmentStore, agent: bytes) -> None:
        store.commit([put(b"a", b"other"), put(agent, b"mine")], 1)
        with store.snapshot() as snapshot:
            assert values(snapshot, [agent, b"a"]) == [b"mine", b"other"]
            assert sorted([agent, b"a"]) == snapshot.agents_after(b"", 10)

    def test_asking_for_ids_outside_the_limits_is_the_askers_mistake(self, store: FragmentStore) -> None:
        store.commit([put("a")], 1)
        with store.snapshot() as snapshot:
            with pytest.raises(InvalidRequestError):
                snapshot.images([b"a", b""])
            with pytest.raises(InvalidRequestError):
                snapshot.agents_after(b"a" * 600, 10)
            assert values(snapshot, [b"a" * 257, b"a" * 600]) == [None, None]
            assert values(snapshot, [b"a"]) == [b"v"]

    # --- versions ---

    def test_versions_grow_by_one_within_a_generation(self, store: FragmentStore) -> None:
        found = versions(store.commit([put("a"), put("b"), put("a")], 1)) + versions(store.commit([put("c")], 1))
        assert found == [first_version(1) + sequence for sequence in (1, 2, 3, 4)]
        assert store.version == found[-1]

    def test_a_new_generation_begins_above_every_version_before(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            [before] = versions(store.commit([put("a")], 1))
        with self.opened(path, generation=2) as store:
            assert store.version == first_version(2) > before
            [after] = versions(store.commit([put("a")], 1))
            assert (generation_of(after), sequence_of(after)) == (2, 1)
        with self.opened(path) as store:
            assert store.version == after

    def test_a_generation_without_a_write_leaves_no_trace(self, path: Path) -> None:
        with self.opened(path, create=True, generation=5):
            pass
        with self.opened(path) as store:
            assert store.version == 0
            store.begin_generation(6)

    @pytest.mark.parametrize("generation", [1, 2])
    def test_a_generation_that_is_not_newer_than_the_data_is_refused(self, path: Path, generation: int) -> None:
        with self.opened(path, create=True, generation=2) as store:
            store.commit([put("a")], 1)
        with self.opened(path) as store:
            with pytest.raises(StoreDamaged, match=f"newer than generation {generation}"):
                store.begin_generation(generation)
            store.begin_generation(3)
            with pytest.raises(StoreDamaged, match="newer than generation 3"):
                store.begin_generation(3)

    def test_the_largest_version_comes_back(self, path: Path) -> None:
        with self.opened(path, create=True, generation=GENERATION_MAX) as store:
            [version] = versions(store.commit([put("a")], 1))
        with self.opened(path) as store, store.snapshot() as snapshot:
            assert version_of(snapshot.images([b"a"])[0]) == version == store.version
            assert [row[0] for row in snapshot.log_after(0, 10)] == [version]

    def test_the_shards_clock_never_goes_back(self, path: Path) -> None:
        def updated_ms(store: FragmentStore, agent: bytes) -> int:
            with store.snapshot() as snapshot:
                return decode_image(snapshot.images([agent])[0])["session"].updated_ms

        with self.opened(path, create=True, generation=1) as store:
            store.commit([put("a")], 5_000)
            store.commit([put("b")], 4_000)
            assert updated_ms(store, b"b") == 5_000
        with self.opened(path, generation=2) as store:
            store.commit([put("c")], 3_000)
            store.commit([put("d")], 6_000)
            assert (updated_ms(store, b"c"), updated_ms(store, b"d")) == (5_000, 6_000)

    # --- snapshots ---

    def test_a_snapshot_stays_as_it_is_while_others_commit(self, store: FragmentStore) -> None:
        store.commit([put("a", b"old"), put("b", b"old" * 5_000), put("c", b"old")], 1)
        with store.snapshot() as snapshot:
            images = snapshot.images([b"a", b"b"])
            version = snapshot.version
            for number in range(50):
                store.commit([put("a", b"%d" % number), put("b", b"new" * 5_000), write(b"c", Erase()), put("d")], 2)
            assert [value_of(image) for image in images] == [b"old", b"old" * 5_000]
            assert values(snapshot, [b"a", b"c", b"d"]) == [b"old", b"old", None]
            assert snapshot.agents_after(b"", 10) == [b"a", b"b", b"c"]
            assert len(snapshot.log_after(0, 1_000)) == 3
            assert snapshot.version == version
        with store.snapshot() as snapshot:
            assert values(snapshot, [b"a", b"c", b"d"]) == [b"49", None, b"v"]

    def test_a_snapshot_includes_every_commit_that_returned_before(self, store: FragmentStore) -> None:
        for number in range(20):
            [version] = versions(store.commit([put("a", b"%d" % number)], 1))
            with store.snapshot() as snapshot:
                assert snapshot.version >= version
                assert values(snapshot, [b"a"]) == [b"%d" % number]

    def test_several_snapshots_each_keep_their_moment(self, store: FragmentStore) -> None:
        snapshots: list[Snapshot] = []
        for number in range(20):
            store.commit([put("a", b"%d" % number)], 1)
            snapshots.append(store.snapshot())
        assert [values(snapshot, [b"a"]) for snapshot in snapshots] == [[b"%d" % number] for number in range(20)]
        for snapshot in snapshots:
            snapshot.close()

    def test_snapshots_see_whole_commits_while_another_thread_writes(self, store: FragmentStore) -> None:
        agents = [b"agent-%d" % number for number in range(10)]
        store.commit([put(agent, b"0 " + bytes(3_000)) for agent in agents], 1)
        failures: list[BaseException] = []
        ended = threading.Event()

        def commit() -> None:
            try:
                for number in range(1, 150):
                    store.commit([put(agent, b"%d " % number + bytes(number * 20)) for agent in agents], 1)
            except BaseException as error:
                failures.append(error)
            finally:
                ended.set()

        writer = threading.Thread(target=commit)
        writer.start()
        last, moments = 0, 0
        try:
            while not (ended.is_set() and last == 149) and not failures:
                with store.snapshot() as snapshot:
                    version = snapshot.version
                    images = snapshot.images(agents)
                    numbers = {int((value_of(image) or b"").split()[0]) for image in images}
                    assert len(numbers) == 1, "a torn commit"
                    assert max(map(version_of, images)) >= version, "older than it says"
                assert min(numbers) >= last, "older than a snapshot before it"
                last = min(numbers)
                moments += 1
        finally:
            writer.join()
        assert not failures
        assert moments > 1

    # --- refusals and writes without effect ---

    def test_a_refused_write_fails_alone(self, store: FragmentStore) -> None:
        writes = [
            put("a", b"1"),
            put(b"", b"2"),
            put(b"x" * 600, b"3"),
            put(b"\xff", b"4"),
            put("a", bytes(FRAGMENT_BYTES_MAX + 1)),
            write(b"b", Put("session", 0, 0, b"5"), Put("context", 0, 0, bytes(FRAGMENT_BYTES_MAX + 1))),
            put("c", b"6"),
        ]
        results = store.commit(writes, 1)
        assert [isinstance(result, Refusal) for result in results] == [False, True, True, True, True, True, False]
        assert [result for result in results if isinstance(result, int)] == [first_version(1) + 1, first_version(1) + 2]
        with store.snapshot() as snapshot:
            assert values(snapshot, [b"a", b"b", b"c"]) == [b"1", None, b"6"]
            assert [row.agent for _, row in snapshot.log_after(0, 10)] == [b"a", b"c"]

    def test_writes_without_effect_take_no_version(self, store: FragmentStore) -> None:
        store.commit([put("a")], 1)
        before = store.version
        assert store.commit([], 2) == []
        assert store.commit([write(b"nobody", Erase()), write(b"a", Drop("context")), write(b"a")], 2) == [0, 0, 0]
        assert (store.version, store.statistics().log_rows) == (before, 1)
        results = store.commit([write(b"nobody", Erase()), put("b"), write(b"nobody", Drop("session"))], 2)
        assert results == [0, before + 1, 0]
        with store.snapshot() as snapshot:
            assert [version for version, _ in snapshot.log_after(0, 10)] == [before, before + 1]

    def test_refusals_alone_change_nothing(self, store: FragmentStore) -> None:
        [result] = store.commit([put(b"")], 1)
        assert isinstance(result, Refusal)
        assert store.version == first_version(1)
        assert versions(store.commit([put("a")], 1)) == [first_version(1) + 1]

    # --- scans and the log ---

    def test_agents_are_listed_in_byte_order_page_by_page(self, store: FragmentStore) -> None:
        source = random.Random(1)
        agents = {source.randbytes(source.randrange(1, 20)).hex().encode() for _ in range(300)}
        agents |= {b"a", b"a\x00", b"a\x00\x00", b"aa", "ä".encode(), b"~", b"x" * 256, b"x" * 255 + b"y"}
        store.commit([put(agent) for agent in agents], 1)
        assert store.statistics().agents == len(agents)
        with store.snapshot() as snapshot:
            assert snapshot.agents_after(b"", 1_000) == sorted(agents)
            for page in (1, 7, 308, 1_000):
                found: list[bytes] = []
                while listed := snapshot.agents_after(found[-1] if found else b"", page):
                    assert len(listed) <= page
                    found += listed
                assert found == sorted(agents)

    def test_a_scan_goes_on_behind_a_position_that_is_no_agent(self, store: FragmentStore) -> None:
        store.commit([put("a"), put("c"), put("e")], 1)
        with store.snapshot() as snapshot:
            assert snapshot.agents_after(b"b", 10) == [b"c", b"e"]
            assert snapshot.agents_after(b"c", 10) == [b"e"]
            assert snapshot.agents_after(b"e", 10) == []
            assert snapshot.agents_after(b"x" * AGENT_ID_BYTES_MAX, 10) == []
            assert snapshot.agents_after(b"", 10, b"c") == []
            assert snapshot.agents_after(b"b\xff", 10, b"c") == [b"c"]

    def test_the_log_says_what_each_write_did(self, store: FragmentStore) -> None:
        writes = [
            Write(b"a", b"id-1", 0, [Put("session", 0, 0, b"v"), Put("context", 0, 0, b"v"), Drop("session")]),
            Write(b"a", b"", 0, [Erase()]),
        ]
        first, second = versions(store.commit(writes, 1))
        with store.snapshot() as snapshot:
            digest = operations_digest(writes[0].operations)
            assert snapshot.log_after(0, 10) == [
                (first, LogRow(b"a", b"id-1", [(1, "session"), (1, "context"), (2, "session")], digest, [])),
                (second, LogRow(b"a", b"", [(3, "")])),
            ]

    def test_the_log_is_read_page_by_page(self, path: Path) -> None:
        found: list[int] = []
        for generation in (1, 2, 3):
            with self.opened(path, create=generation == 1, generation=generation) as store:
                found += versions(store.commit([put(f"agent-{number}") for number in range(10)], 1))
        with self.opened(path) as store, store.snapshot() as snapshot:
            assert [version for version, _ in snapshot.log_after(0, 100)] == found
            assert [version for version, _ in snapshot.log_after(found[4], 7)] == found[5:12]
            assert [version for version, _ in snapshot.log_after(found[9] + 1, 1)] == [found[10]]
            assert snapshot.log_after(found[-1], 100) == []

    # --- opening again ---

    def test_everything_is_there_after_reopening(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            store.commit([put(f"agent-{number}", b"%d" % number * 100) for number in range(200)], 1)
            version = store.version
        with self.opened(path) as store, store.snapshot() as snapshot:
            assert store.version == snapshot.version == version
            assert store.statistics().agents == store.statistics().log_rows == 200
            assert store.statistics().disk_bytes > 0
            agents = [b"agent-%d" % number for number in range(200)]
            assert values(snapshot, agents) == [b"%d" % number * 100 for number in range(200)]

    def test_creating_what_is_there_already_opens_it(self, path: Path) -> None:
        # A node that died between making its shards and taking a generation does so.
        with self.opened(path, create=True, generation=1) as store:
            store.commit([put("a")], 1)
        with self.opened(path, create=True) as store, store.snapshot() as snapshot:
            assert values(snapshot, [b"a"]) == [b"v"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("format", FORMAT + 1),
            ("cluster_uuid", "cd" * 16),
            ("store", "identity"),
            ("shard", 4),
            ("shards", 32),
            ("epoch", 2),
        ],
    )
    @pytest.mark.parametrize("create", [False, True])
    def test_data_of_another_shard_is_refused_and_not_touched(
        self, path: Path, field: str, value: int | str, create: bool
    ) -> None:
        with self.opened(path, create=True, generation=1) as store:
            store.commit([put("a")], 1)
        other: ShardIdentity = msgspec.structs.replace(IDENTITY, **{field: value})
        with pytest.raises(DataFolderError, match=f"{field} .*{value!r}"):
            self.open(path, create=create, identity=other)
        with self.opened(path) as store, store.snapshot() as snapshot:
            assert values(snapshot, [b"a"]) == [b"v"]

    def test_data_that_should_be_there_and_is_not_is_told(self, path: Path) -> None:
        with pytest.raises(StoreDamaged, match="missing"):
            self.open(path)
        assert not path.exists(), "nothing is made in its place"

    def test_a_folder_that_cannot_be_made_is_told(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a file in the folder's place")
        with pytest.raises(DataFolderError, match="cannot be made"):
            self.open(path, create=True)
        assert path.read_bytes() == b"a file in the folder's place"

    def test_warming_up_changes_nothing(self, store: FragmentStore) -> None:
        store.warm_up()
        store.commit([put("a")], 1)
        store.warm_up()
        with store.snapshot() as snapshot:
            assert values(snapshot, [b"a"]) == [b"v"]

    # --- against a model ---

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_row_of_commits_ends_as_mappings_would(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        kind = st.sampled_from(["session", "context"])
        sized = st.sampled_from([b"", b"v", b"v" * 700, b"v" * 9_000])
        operation = st.one_of(
            st.builds(Put, kind, st.integers(0, 9), st.integers(0, 1), sized), st.builds(Drop, kind), st.builds(Erase)
        )
        agent = st.sampled_from([b"a", b"b", b"c" * 256, "ä".encode(), b"", b"\xff"])
        some_writes = st.lists(
            st.builds(Write, agent, st.builds(new_write_id), st.just(0), st.lists(operation, max_size=3))
        )
        path = tmp_path_factory.mktemp("model") / "shard"
        model: dict[bytes, dict[str, bytes]] = {}
        logged = 0
        for generation in range(1, data.draw(st.integers(2, 4))):
            with self.opened(path, create=generation == 1, generation=generation) as store:
                for writes in data.draw(st.lists(some_writes, max_size=4)):
                    results = store.commit(writes, 1)
                    logged += apply(model, writes, results)
            with self.opened(path) as store, store.snapshot() as snapshot:
                assert snapshot.agents_after(b"", 100) == sorted(model)
                for known in model:
                    [image] = snapshot.images([known])
                    assert {name: part.value for name, part in decode_image(image).items()} == model[known]
                found = [version for version, _ in snapshot.log_after(0, 1_000)]
                assert len(found) == len(set(found)) == store.statistics().log_rows == logged
                assert found == sorted(found)

    # --- sudden ends ---

    def test_every_acknowledged_commit_is_there_after_kill_9(self, path: Path) -> None:
        with self.opened(path, create=True):
            pass
        acknowledged: dict[int, int] = {}
        for generation, lines_before_the_kill in enumerate([0, 1, 17, 60, 200], 1):
            groups = kill_writer(self.engine, path, generation, lines_before_the_kill)
            for number, *agents in groups:
                acknowledged.update(dict.fromkeys(agents, number))
            with self.opened(path) as store, store.snapshot() as snapshot:
                self.check_groups(snapshot, acknowledged)
                assert store.version == max([version for version, _ in snapshot.log_after(0, 100_000)], default=0)
            assert lines_before_the_kill <= len(groups)

    def check_groups(self, snapshot: Snapshot, acknowledged: dict[int, int]) -> None:
        """Fail where an acknowledged group is missing, or a group is there in part; take over what is there."""
        groups: dict[int, set[bytes]] = {}
        for _, row in snapshot.log_after(0, 100_000):
            groups.setdefault(int(row.write_id.split()[0]), set()).add(row.agent)
        for agent in range(40):
            key = b"agent-%d" % agent
            value = value_of(snapshot.images([key])[0])
            number = int(value.split()[0]) if value is not None else 0
            assert number >= acknowledged.get(agent, 0), f"agent {agent} lost its acknowledged save"
            # The newest group in the log that names the agent is the one whose value it has: groups are whole.
            assert number == max([group for group, agents in groups.items() if key in agents], default=0)
            if number:
                acknowledged[agent] = number


def apply(model: dict[bytes, dict[str, bytes]], writes: Sequence[Write], results: Sequence[int | Refusal]) -> int:
    """Apply writes to a mapping of mappings; fail where a result differs; return how many took a version."""
    taken = 0
    assert len(results) == len(writes)
    for each, result in zip(writes, results, strict=True):
        if each.agent in (b"", b"\xff"):
            assert isinstance(result, Refusal)
            continue
        before = model.get(each.agent, {})
        after, changed = dict(before), False
        for operation in each.operations:
            if isinstance(operation, Put):
                after[operation.kind], changed = operation.value, True
            elif isinstance(operation, Drop):
                changed |= after.pop(operation.kind, None) is not None
            else:
                changed |= bool(after)
                after.clear()
        effective = changed and bool(before or after)
        assert isinstance(result, int)
        assert bool(result) == effective
        taken += effective
        if after:
            model[each.agent] = after
        else:
            model.pop(each.agent, None)
    return taken


def kill_writer(engine: str, path: Path, generation: int, lines: int) -> list[list[int]]:
    """Let a process commit until it has told of so many groups, kill it; return all groups that it told of."""
    command = [sys.executable, "-c", WRITER, engine, str(path), str(generation), str(generation)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            told = [process.stdout.readline() for _ in range(lines)]
        finally:
            process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [list(map(int, line.split())) for line in told if line.endswith(b"\n")]
