"""Verification of a shard: an intact one passes, and each contradiction is named."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from dawnchorus.fragment_stores.engine import FORMAT, ShardIdentity
from dawnchorus.fragment_stores.lmdb import store as lmdb_store
from dawnchorus.fragment_stores.lmdb.check import open_copy, verify_environment
from dawnchorus.fragment_stores.lmdb.checker import FileVerifier
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.fragment_stores.shard_files import Finding, Verified
from dawnchorus.wire.protocol.image import decode_image, encode_image, version_of
from dawnchorus.wire.protocol.messages import DeleteAgent, DeleteKind, Put, Write
from tests.fragment_stores.conformance import commit

IDENTITY = ShardIdentity(FORMAT, "ab" * 16, "live", 0, 1, 1)
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An intact shard: saves, deletes, expiry, a swept fragment, a trimmed log, two generations."""
    monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", 100)
    for generation in (1, 2):
        store = LMDBStore(tmp_path, IDENTITY, create=generation == 1)
        store.begin_generation(generation)
        for number in range(150):
            agent = b"agent-%d" % (number % 80)
            operations = [Put("session", 0, 0, bytes(number * 20), ttl_ms=(number % 3) * 1_000), Put("b", 0, 0, b"v")]
            commit(store, [Write(agent, b"%d-%d" % (generation, number), 0, [*operations])], 10_000)
        commit(
            store, [Write(b"agent-3", b"", 0, [DeleteAgent()]), Write(b"agent-4", b"", 0, [DeleteKind("b")])], 10_000
        )
        commit(
            store,
            [Write(b"agent-3", b"", 0, [Put("b", 0, 0, b"again")]), Write(b"agent-5", b"", 0, [DeleteAgent()])],
            1,
        )
        store.sweep(11_000, 10, 12_000)
        store.close()
    return tmp_path / "data.mdb"


def findings(file: Path) -> tuple[list[Finding], Verified]:
    verified = Verified()
    with open_copy(file) as environment:
        return list(verify_environment(environment, verified)), verified


def change(file: Path, database: bytes, how: Callable[[Any], object]) -> None:
    """Change a database behind the store's back."""
    environment = lmdb.open(str(file.parent), max_dbs=4)
    with environment.begin(environment.open_db(database), write=True) as transaction:
        how(transaction)
    environment.close()


def test_intact_shard_passes_with_its_counts(file: Path) -> None:
    found, verified = findings(file)
    assert found == []
    assert verified.identity == IDENTITY
    assert verified.agents == 79
    assert verified.log_rows == 100
    assert verified.trimmed
    assert verified.fragments > 100
    assert (verified.expiry_rows, verified.stale_expiry_rows) == (52, 0)
    assert verified.clock_ms == 12_000


def test_stale_expiry_rows_are_counted_without_finding(file: Path) -> None:
    change(file, b"expiry", replace((11_500).to_bytes(8, "big") + b"agent-9", b""))
    change(file, b"expiry", replace((11_500).to_bytes(8, "big") + b"gone", b""))
    found, verified = findings(file)
    assert found == []
    assert verified.stale_expiry_rows == 2


def test_new_shard_without_writes_in_its_generation_passes(tmp_path: Path) -> None:
    store = LMDBStore(tmp_path, IDENTITY, create=True)
    store.begin_generation(5)
    store.close()
    assert findings(tmp_path / "data.mdb")[0] == []


def replace(key: bytes, value: bytes) -> Callable[[Any], object]:
    return lambda transaction: transaction.put(key, value)


def raise_version(transaction: Any, by: int) -> None:
    image = transaction.get(b"agent-9")
    transaction.put(b"agent-9", encode_image(version_of(image) + by, decode_image(image)))


def delete_first(transaction: Any) -> None:
    cursor = transaction.cursor()
    assert cursor.first()
    cursor.delete()


def delete_row_75(transaction: Any) -> None:
    key = [bytes(key) for key, _ in transaction.cursor()][75]
    transaction.delete(key)


def delete_all(transaction: Any) -> None:
    for key in [bytes(key) for key, _ in transaction.cursor()]:
        transaction.delete(key)


def delete_last(transaction: Any) -> None:
    cursor = transaction.cursor()
    assert cursor.last()
    cursor.delete()


CONTRADICTIONS: list[tuple[bytes, Callable[[Any], object], str]] = [
    (b"images", replace(b"agent-9", b"12345678no image"), "agent 'agent-9': not an image"),
    (b"images", replace(b"agent-9", b"1"), "shorter than a version"),
    (b"images", replace(b"\xff", encode_image(1, {})), "its id is not UTF-8"),
    (b"images", lambda txn: raise_version(txn, 1 << 50), "newer than the shard's clock"),
    (b"images", lambda txn: raise_version(txn, -(1 << 39)), "fragment 'session' has version"),
    (b"images", lambda txn: raise_version(txn, 1), "its newest row"),
    (b"images", lambda txn: txn.delete(b"agent-9"), "agent 'agent-9': has no image"),
    (b"log", delete_last, "its newest row has version"),
    (b"log", delete_first, "are missing"),
    (b"log", delete_row_75, "are missing"),
    (b"log", delete_all, "of which there is no row"),
    (b"log", replace((2 << 40 | 77).to_bytes(8, "big"), b"no row"), "cannot be decoded"),
    (b"log", replace((1).to_bytes(8, "big"), b"no row"), "should have gone"),
    (b"expiry", delete_all, "no row in the expiry index"),
    (b"expiry", replace(b"short", b""), "row b'short' is none"),
    (b"meta", lambda txn: txn.delete(b"identity"), "does not say whose shard"),
    (b"meta", lambda txn: txn.delete(b"clock"), "its clock is missing"),
    (b"meta", lambda txn: txn.put(b"clock", bytes(16)), "and the shard's clock 0"),
]


@pytest.mark.parametrize(("database", "how", "message"), CONTRADICTIONS)
def test_each_contradiction_is_named(file: Path, database: bytes, how: Callable[[Any], object], message: str) -> None:
    change(file, database, how)
    found, _ = findings(file)
    assert any(message in finding.detail for finding in found), found


def test_an_agent_of_another_shard_is_named(tmp_path: Path) -> None:
    store = LMDBStore(tmp_path, ShardIdentity(FORMAT, "ab" * 16, "live", 3, 16, 1), create=True)
    store.begin_generation(1)
    commit(store, [Write(b"agent-%d" % number, b"%d" % number, 0, [Put("b", 0, 0, b"")]) for number in range(40)], 1)
    store.close()
    found, _ = findings(tmp_path / "data.mdb")
    assert len(found) > 30
    assert all("belongs to shard" in finding.detail for finding in found)


def test_a_missing_database_is_named(tmp_path: Path) -> None:
    environment = lmdb.open(str(tmp_path), max_dbs=4)
    environment.open_db(b"images")
    environment.close()
    assert [finding.detail for finding in findings(tmp_path / "data.mdb")[0]] == [
        f"there is no database {name!r}" for name in ("log", "expiry", "meta")
    ]


def test_killed_reader_is_a_finding_and_verifier_continues(file: Path, tmp_path: Path) -> None:
    intact = file.read_bytes()
    corrupt = [intact[: 4 * PAGE_BYTES], intact[: 2 * PAGE_BYTES] + bytes(len(intact) - 2 * PAGE_BYTES), b"none", b""]
    source = random.Random(1)
    for _ in range(6):
        start = PAGE_BYTES * source.randrange(2, len(intact) // PAGE_BYTES)
        corrupt.append(intact[:start] + source.randbytes(PAGE_BYTES) + intact[start + PAGE_BYTES :])
    with FileVerifier() as verifier:
        for number, content in enumerate(corrupt):
            broken = tmp_path / f"broken-{number}.mdb"
            broken.write_bytes(content)
            found, _ = verifier.verify(broken)
            # A page that is in use by nothing may be anything.
            assert found or number >= 4, number
            assert all(finding.detail for finding in found)
        assert verifier.verify(file)[0] == []
