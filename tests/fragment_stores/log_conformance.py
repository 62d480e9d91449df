"""The rules of a shard's log as tests; subclassed for each engine, as those of `conformance.py`."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.wire.errors import LogTrimmed
from dawnchorus.wire.protocol.messages import Put, Write
from tests.fragment_stores.conformance import commit, versions

__all__ = ["LogConformance", "write"]


def write(number: int, agent: bytes = b"a", size: int = 10) -> Write:
    return Write(agent, b"id-%d" % number, 0, [Put("session", 0, 0, bytes(size))])


class LogConformance(ABC):
    """The rules; an engine's subclass opens a store whose log keeps ten rows."""

    ROWS_MAX = 10

    @abstractmethod
    def open(self, path: Path, *, create: bool = False, generation: int = 1) -> Shard:
        """Open a store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Shard]:
        """A new shard."""
        made = self.open(tmp_path / "shard", create=True)
        yield made
        made.close()

    def test_follower_sees_every_change_once_in_order(self, store: Shard) -> None:
        position, seen, made = 0, list[int](), list[int]()
        for number in range(60):
            made += versions(commit(store, [write(3 * number), write(3 * number + 1), write(3 * number + 2)], number))
            while rows := store.log_after(position, 2):
                seen += [version for version, _ in rows]
                position = seen[-1]
        assert seen == made

    def test_position_of_trimmed_rows_is_rejected(self, store: Shard) -> None:
        made = [versions(commit(store, [write(number)], number))[0] for number in range(25)]
        trimmed = store.log_trimmed()
        assert trimmed == made[14]
        for position in (0, made[0], made[13]):
            with pytest.raises(LogTrimmed) as rejected:
                store.log_after(position, 100)
            assert (rejected.value.position, rejected.value.trimmed) == (position, trimmed)
        assert [version for version, _ in store.log_after(trimmed, 100)] == made[15:]
        assert store.log_after(made[-1], 100) == []

    def test_trimmed_log_stays_known_as_trimmed_after_reopening(self, tmp_path: Path) -> None:
        store = self.open(tmp_path / "shard", create=True)
        made = [versions(commit(store, [write(number)], 1))[0] for number in range(15)]
        store.close()
        store = self.open(tmp_path / "shard", generation=2)
        with pytest.raises(LogTrimmed):
            store.log_after(made[3], 100)
        assert [version for version, _ in store.log_after(made[4], 100)] == made[5:]
        with pytest.raises(LogTrimmed), store.pin_log(made[3]):
            pass
        store.close()

    def test_pinned_rows_are_trimmed_only_after_the_pin(self, store: Shard) -> None:
        made = versions(commit(store, [write(number) for number in range(5)], 1))
        with ExitStack() as later:
            later.enter_context(store.pin_log(made[3]))
            with store.pin_log(made[2]):
                made += [versions(commit(store, [write(100 + number)], 1))[0] for number in range(40)]
                assert store.log_trimmed() == made[2]
                assert [version for version, _ in store.log_after(made[2], 100)] == made[3:]
            made += versions(commit(store, [write(200)], 1))
            assert store.log_trimmed() == made[3], "the other pin holds"
        made += versions(commit(store, [write(201)], 1))
        assert [version for version, _ in store.log_after(store.log_trimmed(), 100)] == made[-10:]

    def test_pinned_position_is_readable_while_writer_trims(self, store: Shard) -> None:
        stopping = threading.Event()

        def write_on() -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                commit(store, [write(number)], 1)

        writer = threading.Thread(target=write_on)
        writer.start()
        read = 0
        try:
            while read < 50:
                position = store.log_trimmed()
                with ExitStack() as pinned:
                    try:
                        pinned.enter_context(store.pin_log(position))
                    except LogTrimmed:
                        continue  # trimmed just now
                    read += bool(store.log_after(position, 5))
        finally:
            stopping.set()
            writer.join()
