"""The rules of the engine roles, each as a test. An engine is run through them by one subclass with its name:

    class TestAnEngine(SavesConformance):  # of conformance_saves, which begins with these
        engine = "an_engine.engine:AnEngine"  # as in topology.toml

`file_conformance` has the rules for engines that keep shards as files.
"""

import itertools
import random
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dawnchorus.fragment_stores.engine import FORMAT, LogRow, Shard, ShardIdentity
from dawnchorus.fragment_stores.image_batch import ImageBatch
from dawnchorus.fragment_stores.registry import engine_factory
from dawnchorus.wire.errors import DataDirectoryError, EpochMismatch, InvalidRequestError, StoreCorrupt
from dawnchorus.wire.protocol.image import Fragment, decode_image, version_of
from dawnchorus.wire.protocol.limits import AGENT_ID_BYTES_MAX, FRAGMENT_BYTES_MAX
from dawnchorus.wire.protocol.messages import UNCHANGED, DeleteAgent, DeleteKind, Operation, Put, Rejection, Write
from dawnchorus.wire.protocol.versions import GENERATION_MAX, first_version, generation_of, sequence_of
from dawnchorus.wire.protocol.write_digest import operations_digest

PATIENCE_S = 60.0

# Each engine's subclass runs the same properties, and their fixtures keep nothing between two examples.
PERMITTED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]

IDENTITY = ShardIdentity(FORMAT, "ab" * 16, "live", 3, 16, 1)

_write_numbers = itertools.count(1)


def new_write_id() -> bytes:
    """Return an id that no other write of this process has."""
    return b"write-%d" % next(_write_numbers)


def put(agent: bytes | str, value: bytes = b"v", kind: str = "session", write_id: bytes | None = None) -> Write:
    """Return a write of one kind, under an id of its own if none is given."""
    named = new_write_id() if write_id is None else write_id
    return Write(agent if isinstance(agent, bytes) else agent.encode(), named, 0, [Put(kind, 0, 0, value)])


def write(agent: bytes, *operations: Operation) -> Write:
    return Write(agent, new_write_id(), 0, list(operations))


def value_of(image: bytes | memoryview, kind: str = "session") -> bytes | None:
    """Return a kind's value in an image, None if the agent has none."""
    return decode_image(image)[kind].value if len(image) else None


def versions(results: Sequence[int | Rejection]) -> list[int]:
    assert not [result for result in results if isinstance(result, Rejection)]
    return [result for result in results if isinstance(result, int)]


def commit(store: Shard, writes: Sequence[Write], now_ms: int) -> list[int | Rejection]:
    """Commit under the shard's own epoch."""
    return store.commit(writes, now_ms, store.identity.epoch)


def images_of(store: Shard, batch: ImageBatch) -> list[bytes]:
    """Return the images of an open batch as the node gets them: out of a frame."""
    sizes = batch.sizes
    frame = store.join(b"head", [batch])
    assert frame[:4] == b"head"
    ends = list(itertools.accumulate([max(size, 0) for size in sizes], initial=4))
    assert len(frame) == ends[-1]
    return [frame[start:end] for start, end in itertools.pairwise(ends)]


def read_batch(
    store: Shard, agents: Sequence[bytes], kinds: frozenset[str] | None = None, known: Sequence[int] | None = None
) -> ImageBatch:
    """Return a batch, once it is there."""
    while True:
        batch = store.read(agents, kinds, known)
        if not isinstance(batch, Future):
            return batch
        late = batch.result(PATIENCE_S)
        if late is not None:
            return late


def ids_after(store: Shard, position: bytes, agents_max: int, prefix: bytes = b"") -> list[bytes]:
    """Return ids, once they are there."""
    listed = store.agents_after(position, agents_max, prefix)
    return listed.result(PATIENCE_S) if isinstance(listed, Future) else listed


def read(store: Shard, agents: Sequence[bytes]) -> list[bytes]:
    """Return the images that these agents have now."""
    batch = read_batch(store, agents)
    try:
        return images_of(store, batch)
    finally:
        batch.close()


def values(store: Shard, agents: Sequence[bytes]) -> list[bytes | None]:
    return [value_of(image) for image in read(store, agents)]


class ShardConformance:
    """The rules; `engine` is a subclass's."""

    engine: ClassVar[str]

    @classmethod
    def open(
        cls, path: Path, *, create: bool = False, generation: int = 0, identity: ShardIdentity = IDENTITY
    ) -> Shard:
        """Open the shard, and take its versions from a generation if one is given."""
        made = engine_factory(cls.engine)({}).open(path, identity, create=create)
        if generation:
            made.begin_generation(generation)
        return made

    @classmethod
    @contextmanager
    def opened(
        cls, path: Path, *, create: bool = False, generation: int = 0, identity: ShardIdentity = IDENTITY
    ) -> Generator[Shard]:
        """Open the shard for a block."""
        store = cls.open(path, create=create, generation=generation, identity=identity)
        try:
            yield store
        finally:
            store.close()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """The shard's directory, not yet made."""
        return tmp_path / "node" / "live" / "0003"

    @pytest.fixture
    def store(self, path: Path) -> Iterator[Shard]:
        """A new shard in its first generation."""
        with self.opened(path, create=True, generation=1) as made:
            yield made

    # --- reading and writing ---

    def test_new_shard_is_empty(self, path: Path) -> None:
        with self.opened(path, create=True) as store:
            assert (store.version, store.identity) == (0, IDENTITY)
            assert (store.statistics().agents, store.statistics().log_rows) == (0, 0)
            batch = read_batch(store, [b"a"])
            assert batch.version == 0
            batch.close()
            assert list(map(len, read(store, [b"a", b"b"]))) == [0, 0]
            assert ids_after(store, b"", 10) == []
            assert store.log_after(0, 10) == []

    def test_read_returns_committed_values_in_requested_order(self, store: Shard) -> None:
        commit(store, [put("a", b"1"), put("b", b"2"), put("ä/1", b"3")], 1_000)
        asked = [b"b", b"nobody", "ä/1".encode(), b"a", b"b"]
        assert values(store, asked) == [b"2", None, b"3", b"1", b"2"]
        assert read(store, []) == []

    def test_image_holds_version_time_and_all_put_fields(self, store: Shard) -> None:
        [version] = versions(commit(store, [write(b"a", Put("session", 7, 1, b"s"), Put("context", 0, 0, b""))], 1_234))
        [image] = read(store, [b"a"])
        assert version_of(image) == version
        assert decode_image(image) == {
            "session": Fragment(version, 7, 1, 1_234, 0, b"s"),
            "context": Fragment(version, 0, 0, 1_234, 0, b""),
        }

    def test_one_commit_applies_an_agents_writes_in_order(self, store: Shard) -> None:
        writes = [put("a", b"1"), put("a", b"2"), write(b"a", DeleteKind("session")), put("a", b"3", "context")]
        found = versions(commit(store, writes, 1))
        [image] = read(store, [b"a"])
        assert decode_image(image) == {"context": Fragment(found[3], 0, 0, 1, 0, b"3")}

    def test_deleted_agent_is_gone_and_logged(self, store: Shard) -> None:
        commit(store, [put("a"), put("b")], 1)
        [gone] = versions(commit(store, [Write(b"a", b"w", 0, [DeleteAgent()])], 2))
        assert store.statistics().agents == 1
        assert values(store, [b"a", b"b"]) == [None, b"v"]
        assert ids_after(store, b"", 10) == [b"b"]
        [(version, row)] = store.log_after(gone - 1, 10)
        assert (version, row) == (gone, LogRow(b"a", b"w", [(3, "")], row.digest, ["session"]))

    @pytest.mark.parametrize("size", [0, 1, 511, 2_000, 4_096, 100_000, FRAGMENT_BYTES_MAX])
    def test_values_of_any_size_are_read_back(self, store: Shard, size: int) -> None:
        value = random.Random(size).randbytes(size)
        commit(store, [put("a", value), put("b", b"beside")], 1)
        assert values(store, [b"a", b"b"]) == [value, b"beside"]

    @pytest.mark.parametrize("agent", [b"\x00", b"a" * AGENT_ID_BYTES_MAX, "ä/1 \U0001f600".encode(), b"a\x00"])
    def test_agents_of_any_permitted_id_are_read_back(self, store: Shard, agent: bytes) -> None:
        commit(store, [put(b"a", b"other"), put(agent, b"mine")], 1)
        assert values(store, [agent, b"a"]) == [b"mine", b"other"]
        assert sorted([agent, b"a"]) == ids_after(store, b"", 10)

    def test_reading_ids_outside_limits_is_invalid_or_absent(self, store: Shard) -> None:
        commit(store, [put("a")], 1)
        with pytest.raises(InvalidRequestError):
            read(store, [b"a", b""])
        with pytest.raises(InvalidRequestError):
            ids_after(store, b"a" * 600, 10)
        assert values(store, [b"a" * 257, b"a" * 600]) == [None, None]
        assert values(store, [b"a"]) == [b"v"]

    # --- versions ---

    def test_versions_grow_by_one_within_a_generation(self, store: Shard) -> None:
        found = versions(commit(store, [put("a"), put("b"), put("a")], 1)) + versions(commit(store, [put("c")], 1))
        assert found == [first_version(1) + sequence for sequence in (1, 2, 3, 4)]
        assert store.version == found[-1]

    def test_new_generation_begins_above_every_earlier_version(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            [before] = versions(commit(store, [put("a")], 1))
        with self.opened(path, generation=2) as store:
            assert store.version == first_version(2) > before
            [after] = versions(commit(store, [put("a")], 1))
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
    def test_generation_not_newer_than_data_is_rejected(self, path: Path, generation: int) -> None:
        with self.opened(path, create=True, generation=2) as store:
            commit(store, [put("a")], 1)
        with self.opened(path) as store:
            with pytest.raises(StoreCorrupt, match=f"newer than generation {generation}"):
                store.begin_generation(generation)
            store.begin_generation(3)
            with pytest.raises(StoreCorrupt, match="newer than generation 3"):
                store.begin_generation(3)

    def test_largest_version_is_read_back(self, path: Path) -> None:
        with self.opened(path, create=True, generation=GENERATION_MAX) as store:
            [version] = versions(commit(store, [put("a")], 1))
        with self.opened(path) as store:
            assert version_of(read(store, [b"a"])[0]) == version == store.version
            assert [row[0] for row in store.log_after(0, 10)] == [version]

    def test_the_shards_clock_never_goes_back(self, path: Path) -> None:
        def updated_ms(store: Shard, agent: bytes) -> int:
            return decode_image(read(store, [agent])[0])["session"].updated_ms

        with self.opened(path, create=True, generation=1) as store:
            commit(store, [put("a")], 5_000)
            commit(store, [put("b")], 4_000)
            assert updated_ms(store, b"b") == 5_000
        with self.opened(path, generation=2) as store:
            commit(store, [put("c")], 3_000)
            commit(store, [put("d")], 6_000)
            assert (updated_ms(store, b"c"), updated_ms(store, b"d")) == (5_000, 6_000)

    # --- moments ---

    def test_batch_stays_unchanged_while_others_commit(self, store: Shard) -> None:
        commit(store, [put("a", b"old"), put("b", b"old" * 5_000), put("c", b"old")], 1)
        batch = read_batch(store, [b"a", b"b", b"c", b"d"])
        version = batch.version
        for number in range(50):
            commit(store, [put("a", b"%d" % number), put("b", b"new" * 5_000), write(b"c", DeleteAgent()), put("d")], 2)
        found = [value_of(image) for image in images_of(store, batch)]
        assert found == [b"old", b"old" * 5_000, b"old", None]
        assert batch.version == version
        batch.close()
        assert values(store, [b"a", b"c", b"d"]) == [b"49", None, b"v"]
        assert ids_after(store, b"", 10) == [b"a", b"b", b"d"]

    def test_read_includes_every_commit_that_returned_before(self, store: Shard) -> None:
        for number in range(20):
            [version] = versions(commit(store, [put("a", b"%d" % number)], 1))
            batch = read_batch(store, [b"a"])
            assert batch.version >= version
            assert [value_of(image) for image in images_of(store, batch)] == [b"%d" % number]
            batch.close()

    def test_several_batches_each_keep_their_moment(self, store: Shard) -> None:
        batches: list[ImageBatch] = []
        for number in range(20):
            commit(store, [put("a", b"%d" % number)], 1)
            batches.append(read_batch(store, [b"a"]))
        found = [value_of(image) for batch in batches for image in images_of(store, batch)]
        assert found == [b"%d" % number for number in range(20)]
        joined = store.join(b"", batches)
        assert joined == b"".join([image for batch in batches for image in images_of(store, batch)])
        for batch in batches:
            batch.close()

    @pytest.mark.parametrize("agents_max", [3, 40])
    def test_cut_batch_keeps_its_first_images(self, store: Shard, agents_max: int) -> None:
        agents = [b"agent-%d" % number for number in range(agents_max)]
        commit(store, [put(agent, b"%d" % number * 50) for number, agent in enumerate(agents)], 1)
        batch = read_batch(store, agents)
        complete = images_of(store, batch)
        batch.cut(2)
        assert images_of(store, batch) == complete[:2]
        assert batch.sizes == list(map(len, complete[:2]))
        batch.cut(0)
        assert store.join(b"h", [batch]) == b"h"
        batch.close()

    @pytest.mark.parametrize("count", [1, 40])
    def test_read_returns_only_requested_kinds(self, store: Shard, count: int) -> None:
        agents = [b"agent-%d" % number for number in range(count)]
        commit(store, [write(agent, Put("session", 7, 1, b"s"), Put("context", 0, 0, b"c")) for agent in agents], 1)
        batch = read_batch(store, [*agents, b"nobody"], frozenset(["context", "other"]))
        *found, nobody = images_of(store, batch)
        batch.close()
        assert nobody == b""
        for image, complete in zip(found, read(store, agents), strict=True):
            assert version_of(image) == version_of(complete)
            assert decode_image(image) == {"context": decode_image(complete)["context"]}

    @pytest.mark.parametrize("count", [1, 40])
    def test_image_of_known_version_is_left_out(self, store: Shard, count: int) -> None:
        agents = [b"agent-%d" % number for number in range(count)]
        made = versions(commit(store, [put(agent) for agent in agents], 1))
        batch = read_batch(store, [*agents, b"a", b"nobody"], None, [*made, made[0], 9])
        assert batch.sizes == [UNCHANGED] * count + [0, 0]
        assert store.join(b"h", [batch]) == b"h"
        batch.close()
        batch = read_batch(store, agents, None, [0] + [version + 1 for version in made[1:]])
        assert images_of(store, batch) == read(store, agents)
        batch.close()

    def test_reads_see_complete_commits_while_another_thread_writes(self, store: Shard) -> None:
        agents = [b"agent-%d" % number for number in range(10)]
        commit(store, [put(agent, b"0 " + bytes(3_000)) for agent in agents], 1)
        failures: list[BaseException] = []
        ended = threading.Event()

        def commit_on() -> None:
            try:
                for number in range(1, 150):
                    commit(store, [put(agent, b"%d " % number + bytes(number * 20)) for agent in agents], 1)
            except BaseException as error:
                failures.append(error)
            finally:
                ended.set()

        writer = threading.Thread(target=commit_on)
        writer.start()
        last, moments = 0, 0
        try:
            while not (ended.is_set() and last == 149) and not failures:
                batch = read_batch(store, agents)
                version = batch.version
                images = images_of(store, batch)
                batch.close()
                numbers = {int((value_of(image) or b"").split()[0]) for image in images}
                assert len(numbers) == 1, "a torn commit"
                assert max(map(version_of, images)) >= version, "older than it says"
                assert min(numbers) >= last, "older than a read before it"
                last = min(numbers)
                moments += 1
        finally:
            writer.join()
        assert not failures
        assert moments > 1

    # --- rejections and writes without effect ---

    @pytest.mark.parametrize("epoch", [0, 2])
    def test_writes_under_another_epoch_are_all_rejected(self, store: Shard, epoch: int) -> None:
        before = store.version
        with pytest.raises(EpochMismatch):
            store.commit([put("a")], 1, epoch)
        assert (store.version, read(store, [b"a"])) == (before, [b""])

    def test_rejected_write_fails_alone(self, store: Shard) -> None:
        writes = [
            put("a", b"1"),
            put(b"", b"2"),
            put(b"x" * 600, b"3"),
            put(b"\xff", b"4"),
            put("a", bytes(FRAGMENT_BYTES_MAX + 1)),
            write(b"b", Put("session", 0, 0, b"5"), Put("context", 0, 0, bytes(FRAGMENT_BYTES_MAX + 1))),
            put("c", b"6"),
        ]
        results = commit(store, writes, 1)
        assert [isinstance(result, Rejection) for result in results] == [False, True, True, True, True, True, False]
        assert [result for result in results if isinstance(result, int)] == [first_version(1) + 1, first_version(1) + 2]
        assert values(store, [b"a", b"b", b"c"]) == [b"1", None, b"6"]
        assert [row.agent for _, row in store.log_after(0, 10)] == [b"a", b"c"]

    def test_writes_without_effect_take_no_version(self, store: Shard) -> None:
        commit(store, [put("a")], 1)
        before = store.version
        assert commit(store, [], 2) == []
        assert commit(store, [write(b"nobody", DeleteAgent()), write(b"a", DeleteKind("context")), write(b"a")], 2) == [
            0,
            0,
            0,
        ]
        assert (store.version, store.statistics().log_rows) == (before, 1)
        results = commit(store, [write(b"nobody", DeleteAgent()), put("b"), write(b"nobody", DeleteKind("session"))], 2)
        assert results == [0, before + 1, 0]
        assert [version for version, _ in store.log_after(0, 10)] == [before, before + 1]

    def test_rejections_alone_change_nothing(self, store: Shard) -> None:
        [result] = commit(store, [put(b"")], 1)
        assert isinstance(result, Rejection)
        assert store.version == first_version(1)
        assert versions(commit(store, [put("a")], 1)) == [first_version(1) + 1]

    # --- scans and the log ---

    def test_agents_are_listed_in_byte_order_by_page(self, store: Shard) -> None:
        source = random.Random(1)
        agents = {source.randbytes(source.randrange(1, 20)).hex().encode() for _ in range(300)}
        agents |= {b"a", b"a\x00", b"a\x00\x00", b"aa", "ä".encode(), b"~", b"x" * 256, b"x" * 255 + b"y"}
        commit(store, [put(agent) for agent in agents], 1)
        assert store.statistics().agents == len(agents)
        assert ids_after(store, b"", 1_000) == sorted(agents)
        for page in (1, 7, 308, 1_000):
            found: list[bytes] = []
            while listed := ids_after(store, found[-1] if found else b"", page):
                assert len(listed) <= page
                found += listed
            assert found == sorted(agents)

    def test_scan_continues_after_position_without_agent(self, store: Shard) -> None:
        commit(store, [put("a"), put("c"), put("e")], 1)
        assert ids_after(store, b"b", 10) == [b"c", b"e"]
        assert ids_after(store, b"c", 10) == [b"e"]
        assert ids_after(store, b"e", 10) == []
        assert ids_after(store, b"x" * AGENT_ID_BYTES_MAX, 10) == []
        assert ids_after(store, b"", 10, b"c") == []
        assert ids_after(store, b"b\xff", 10, b"c") == [b"c"]

    def test_log_row_describes_its_write(self, store: Shard) -> None:
        writes = [
            Write(b"a", b"id-1", 0, [Put("session", 0, 0, b"v"), Put("context", 0, 0, b"v"), DeleteKind("session")]),
            Write(b"a", b"", 0, [DeleteAgent()]),
        ]
        first, second = versions(commit(store, writes, 1))
        digest = operations_digest(writes[0].operations)
        assert store.log_after(0, 10) == [
            (first, LogRow(b"a", b"id-1", [(1, "session"), (1, "context"), (2, "session")], digest, [])),
            (second, LogRow(b"a", b"", [(3, "")])),
        ]

    def test_the_log_is_read_page_by_page(self, path: Path) -> None:
        found: list[int] = []
        for generation in (1, 2, 3):
            with self.opened(path, create=generation == 1, generation=generation) as store:
                found += versions(commit(store, [put(f"agent-{number}") for number in range(10)], 1))
        with self.opened(path) as store:
            assert [version for version, _ in store.log_after(0, 100)] == found
            assert [version for version, _ in store.log_after(found[4], 7)] == found[5:12]
            assert [version for version, _ in store.log_after(found[9] + 1, 1)] == [found[10]]
            assert store.log_after(found[-1], 100) == []

    # --- opening again ---

    def test_everything_is_there_after_reopening(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            commit(store, [put(f"agent-{number}", b"%d" % number * 100) for number in range(200)], 1)
            version = store.version
        with self.opened(path) as store:
            assert store.version == version
            assert store.statistics().agents == store.statistics().log_rows == 200
            agents = [b"agent-%d" % number for number in range(200)]
            assert values(store, agents) == [b"%d" % number * 100 for number in range(200)]

    def test_creating_existing_shard_opens_it(self, path: Path) -> None:
        # As a node does that died after it made its shards and before it took a generation.
        with self.opened(path, create=True, generation=1) as store:
            commit(store, [put("a")], 1)
        with self.opened(path, create=True) as store:
            assert values(store, [b"a"]) == [b"v"]

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
    def test_data_of_another_shard_is_rejected_untouched(
        self, path: Path, field: str, value: int | str, create: bool
    ) -> None:
        with self.opened(path, create=True, generation=1) as store:
            commit(store, [put("a")], 1)
        other: ShardIdentity = msgspec.structs.replace(IDENTITY, **{field: value})
        with pytest.raises(DataDirectoryError, match=f"{field} .*{value!r}"):
            self.open(path, create=create, identity=other)
        with self.opened(path) as store:
            assert values(store, [b"a"]) == [b"v"]

    def test_missing_data_is_an_error_and_stays_missing(self, path: Path) -> None:
        with pytest.raises(StoreCorrupt, match="missing"):
            self.open(path)
        assert not path.exists(), "nothing is made in its place"

    # --- against a model ---

    @settings(max_examples=30, suppress_health_check=PERMITTED)
    @given(data=st.data())
    def test_any_sequence_of_commits_matches_a_mapping(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        kind = st.sampled_from(["session", "context"])
        sized = st.sampled_from([b"", b"v", b"v" * 700, b"v" * 9_000])
        operation = st.one_of(
            st.builds(Put, kind, st.integers(0, 9), st.integers(0, 1), sized),
            st.builds(DeleteKind, kind),
            st.builds(DeleteAgent),
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
                    results = commit(store, writes, 1)
                    logged += apply(model, writes, results)
            with self.opened(path) as store:
                assert ids_after(store, b"", 100) == sorted(model)
                for known in model:
                    [image] = read(store, [known])
                    assert {name: part.value for name, part in decode_image(image).items()} == model[known]
                found = [version for version, _ in store.log_after(0, 1_000)]
                assert len(found) == len(set(found)) == store.statistics().log_rows == logged
                assert found == sorted(found)


def apply(model: dict[bytes, dict[str, bytes]], writes: Sequence[Write], results: Sequence[int | Rejection]) -> int:
    """Apply writes to a mapping of mappings; fail if a result differs; return how many took a version."""
    taken = 0
    assert len(results) == len(writes)
    for each, result in zip(writes, results, strict=True):
        if each.agent in (b"", b"\xff"):
            assert isinstance(result, Rejection)
            continue
        before = model.get(each.agent, {})
        after, changed = dict(before), False
        for operation in each.operations:
            if isinstance(operation, Put):
                after[operation.kind], changed = operation.value, True
            elif isinstance(operation, DeleteKind):
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
