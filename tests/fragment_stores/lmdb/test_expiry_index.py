"""The expiry index of a shard in LMDB: a row for each time at which a fragment expires, and no other."""

import tempfile
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.wire.errors import StoreCorrupt
from dawnchorus.wire.protocol.image import decode_image
from dawnchorus.wire.protocol.messages import DeleteAgent, DeleteKind, Operation, Put
from tests.fragment_stores.conformance import IDENTITY, commit, put, write
from tests.fragment_stores.conformance_saves import fragments

AGENTS = [b"a", b"b"]
KINDS = ["session", "context", "history"]


def put_of(kind: str, ttl_ms: int) -> Put:
    return Put(kind, 0, 0, b"v", ttl_ms)


puts = st.builds(put_of, st.sampled_from(KINDS), st.sampled_from([0, 5, 7]))
changes = st.lists(st.one_of(puts, st.builds(DeleteKind, st.sampled_from(KINDS))), unique_by=lambda change: change.kind)
steps = st.one_of(
    st.tuples(st.sampled_from(AGENTS), st.booleans(), changes),  # whether the rest of the agent is deleted first
    st.integers(0, 20),  # sweep after so many milliseconds
)


def new_store(path: Path) -> LMDBStore:
    store = LMDBStore(path, IDENTITY, create=True)
    store.begin_generation(1)
    return store


def contents(path: Path) -> tuple[set[bytes], set[bytes]]:
    """Return the index's rows, and those that the images of a closed shard require."""
    with lmdb.open(str(path), max_dbs=4, readonly=True, lock=False) as environment:
        expiry, images = environment.open_db(b"expiry"), environment.open_db(b"images")
        with environment.begin() as transaction:
            rows = {key for key, _ in transaction.cursor(expiry)}
            wanted = {
                fragment.expires_ms.to_bytes(8, "big") + agent
                for agent, image in transaction.cursor(images)
                for fragment in decode_image(image).values()
                if fragment.expires_ms
            }
    return rows, wanted


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=12))
def test_index_has_exactly_the_expiring_fragments_rows(
    history: list[tuple[bytes, bool, list[Put | DeleteKind]] | int],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = new_store(Path(directory))
        now_ms = 1_000
        for step in history:
            if isinstance(step, int):
                now_ms += step
                store.sweep(now_ms, 2, now_ms)
            else:
                agent, erase, changed = step
                operations: list[Operation] = [DeleteAgent()] * erase
                commit(store, [write(agent, *operations, *changed)], now_ms)
        store.close()
        rows, wanted = contents(Path(directory))
        assert rows == wanted


def test_many_saves_of_one_fragment_leave_one_row(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for number in range(100):
        commit(store, [write(b"a", Put("session", 0, 0, b"%d" % turn, 86_400_000)) for turn in range(100)], number)
    store.close()
    rows, wanted = contents(tmp_path)
    assert rows == wanted
    assert len(rows) == 1


def test_stale_rows_are_removed_when_due(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    commit(store, [write(b"a", Put("session", 0, 0, b"v", 5_000))], 1_000)
    store.close()
    with lmdb.open(str(tmp_path), max_dbs=4) as environment:
        expiry = environment.open_db(b"expiry")
        with environment.begin(expiry, write=True) as transaction:
            for stale_ms in (1_500, 1_600, 3_000):
                transaction.put(stale_ms.to_bytes(8, "big") + b"a", b"")
                transaction.put(stale_ms.to_bytes(8, "big") + b"gone", b"")
    store = LMDBStore(tmp_path, IDENTITY, create=False)
    store.begin_generation(2)
    assert store.sweep(2_000, 10, 2_000) == (4, 0)
    commit(store, [write(b"a", Put("session", 0, 0, b"w", 5_000))], 2_500)
    assert store.sweep(3_000, 10, 3_000) == (2, 0)
    assert fragments(store, b"a")["session"].value == b"w"
    store.close()
    rows, wanted = contents(tmp_path)
    assert rows == wanted


def test_log_newer_than_its_clock_fails_the_commit(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    commit(store, [put("a", b"1")], 1_000)
    future = (store.version + 1_000).to_bytes(8, "big")
    store.close()
    with lmdb.open(str(tmp_path), max_dbs=4) as environment:
        log = environment.open_db(b"log")
        with environment.begin(log, write=True) as transaction:
            [(_, row)] = transaction.cursor()
            transaction.put(future, row)
    store = LMDBStore(tmp_path, IDENTITY, create=False)
    store.version += 1
    with pytest.raises(StoreCorrupt, match="a row newer than the shard's clock"):
        commit(store, [put("a", b"2")], 1_000)
    assert fragments(store, b"a")["session"].value == b"1"
    store.close()
