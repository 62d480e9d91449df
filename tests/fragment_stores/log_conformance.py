"""What every engine's log and copies must do; subclassed for each engine, as `conformance.py`."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import FragmentStore
from dawnchorus.wire.errors import LogTrimmed
from dawnchorus.wire.protocol.messages import Erase, Put, Write
from tests.fragment_stores.conformance import versions

__all__ = ["LogConformance"]


def write(number: int, agent: bytes = b"a", size: int = 10) -> Write:
    return Write(agent, b"id-%d" % number, 0, [Put("session", 0, 0, bytes(size))])


class LogConformance(ABC):
    """The rules; an engine's subclass opens a store whose log keeps ten rows."""

    ROWS_MAX = 10

    @abstractmethod
    def open(self, path: Path, *, create: bool = False, generation: int = 1) -> FragmentStore:
        """Open a store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[FragmentStore]:
        """A new shard."""
        made = self.open(tmp_path / "shard", create=True)
        yield made
        made.close()

    # --- the log ---

    def test_a_follower_sees_every_change_once_and_in_order(self, store: FragmentStore) -> None:
        position, seen, made = 0, list[int](), list[int]()
        for number in range(60):
            made += versions(store.commit([write(3 * number), write(3 * number + 1), write(3 * number + 2)], number))
            with store.snapshot() as snapshot:
                while rows := snapshot.log_after(position, 2):
                    seen += [version for version, _ in rows]
                    position = seen[-1]
        assert seen == made

    def test_a_position_whose_rows_have_gone_is_refused(self, store: FragmentStore) -> None:
        made = [versions(store.commit([write(number)], number))[0] for number in range(25)]
        with store.snapshot() as snapshot:
            trimmed = snapshot.log_trimmed()
            assert trimmed == made[14]
            for position in (0, made[0], made[13]):
                with pytest.raises(LogTrimmed) as refused:
                    snapshot.log_after(position, 100)
                assert (refused.value.position, refused.value.trimmed) == (position, trimmed)
            assert [version for version, _ in snapshot.log_after(trimmed, 100)] == made[15:]
            assert snapshot.log_after(made[-1], 100) == []

    def test_a_snapshot_keeps_its_log_whatever_is_trimmed_after_it(self, store: FragmentStore) -> None:
        made = versions(store.commit([write(number) for number in range(10)], 1))
        with store.snapshot() as before:
            store.commit([write(100 + number) for number in range(10)], 2)
            assert [version for version, _ in before.log_after(0, 100)] == made
            with store.snapshot() as after, pytest.raises(LogTrimmed):
                after.log_after(0, 100)

    def test_a_log_that_was_trimmed_says_so_after_it_is_opened_again(self, tmp_path: Path) -> None:
        store = self.open(tmp_path / "shard", create=True)
        made = [versions(store.commit([write(number)], 1))[0] for number in range(15)]
        store.close()
        store = self.open(tmp_path / "shard", generation=2)
        with store.snapshot() as snapshot:
            with pytest.raises(LogTrimmed):
                snapshot.log_after(made[3], 100)
            assert [version for version, _ in snapshot.log_after(made[4], 100)] == made[5:]
        with pytest.raises(LogTrimmed), store.pin_log(made[3]):
            pass
        store.close()

    def test_pinned_rows_stay_and_go_after_the_pin(self, store: FragmentStore) -> None:
        made = versions(store.commit([write(number) for number in range(5)], 1))
        with ExitStack() as later:
            later.enter_context(store.pin_log(made[3]))
            with store.pin_log(made[2]):
                made += [versions(store.commit([write(100 + number)], 1))[0] for number in range(40)]
                with store.snapshot() as snapshot:
                    assert snapshot.log_trimmed() == made[2]
                    assert [version for version, _ in snapshot.log_after(made[2], 100)] == made[3:]
            made += versions(store.commit([write(200)], 1))
            with store.snapshot() as snapshot:
                assert snapshot.log_trimmed() == made[3], "the other pin holds"
        made += versions(store.commit([write(201)], 1))
        with store.snapshot() as snapshot:
            assert [version for version, _ in snapshot.log_after(snapshot.log_trimmed(), 100)] == made[-10:]

    def test_whoever_has_a_pin_can_read_from_it_while_the_writer_trims(self, store: FragmentStore) -> None:
        stopping = threading.Event()

        def write_on() -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                store.commit([write(number)], 1)

        writer = threading.Thread(target=write_on)
        writer.start()
        read = 0
        try:
            while read < 50:
                with store.snapshot() as snapshot:
                    position = snapshot.log_trimmed()
                with ExitStack() as pinned:
                    try:
                        pinned.enter_context(store.pin_log(position))
                    except LogTrimmed:
                        continue  # it went just now
                    with store.snapshot() as snapshot:
                        read += bool(snapshot.log_after(position, 5))
        finally:
            stopping.set()
            writer.join()

    # --- copies ---

    def test_a_copy_is_one_moment_and_opens_as_the_same_shard(self, store: FragmentStore, tmp_path: Path) -> None:
        store.commit([write(number, b"agent-%d" % number, 2_000) for number in range(200)], 1)
        store.commit([Write(b"agent-7", b"gone", 0, [Erase()])], 1)
        version = store.version
        pieces: list[bytes] = []

        def take(piece: bytes) -> None:
            if not pieces:  # what is saved while the copy is made is not in it
                store.commit([write(1_000, b"late")], 2)
            pieces.append(piece)

        copied = store.write_copy(take)
        assert (copied.version, copied.agents) == (version, 199)
        folder = tmp_path / "copy"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(b"".join(pieces))
        copy = self.open(folder, generation=2)
        with copy.snapshot() as snapshot:
            assert snapshot.agents_after(b"agent-6~", 1) == [b"agent-70"]
            assert snapshot.images([b"late"]) == [b""]
            assert snapshot.log_after(snapshot.log_trimmed(), 100)[-1][0] == version
        assert copy.statistics().agents == 199
        copy.close()

    def test_a_copy_says_the_version_that_it_has_while_saves_go_on(self, store: FragmentStore, tmp_path: Path) -> None:
        stopping = threading.Event()

        def write_on() -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                store.commit([write(number)], 1)

        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            for number in range(30):
                pieces: list[bytes] = []
                copied = store.write_copy(pieces.append)
                folder = tmp_path / f"copy-{number}"
                folder.mkdir()
                (folder / "data.mdb").write_bytes(b"".join(pieces))
                copy = self.open(folder, generation=2)
                with copy.snapshot() as snapshot:
                    rows = snapshot.log_after(snapshot.log_trimmed(), 100)
                copy.close()
                assert copied.version == (rows[-1][0] if rows else 0)
        finally:
            stopping.set()
            writer.join()

    def test_a_copy_that_nobody_wants_any_more_ends_with_their_word(self, store: FragmentStore) -> None:
        store.commit([write(number, b"agent-%d" % number, 20_000) for number in range(500)], 1)

        class EnoughError(Exception):
            pass

        def refuse(_piece: bytes) -> None:
            raise EnoughError

        for _ in range(3):
            with pytest.raises(EnoughError):
                store.write_copy(refuse)
        assert store.write_copy(lambda piece: None).agents == 500
        assert versions(store.commit([write(1_000)], 2))
