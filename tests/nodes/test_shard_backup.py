"""Copies of shards that a node makes for a backup: paced, complete, and only in a marked directory."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

from dawnchorus.fragment_stores.lmdb.checker import FileVerifier
from dawnchorus.wire.protocol.backup_messages import BACKUP_MARKER_FILE
from dawnchorus.wire.protocol.messages import Backup, BackupReply, Fault, FaultCode, SectionStatus
from dawnchorus.wire.protocol.shard_hash import shard_of
from tests.support.raw_nodes import BUDGET_US, SHARDS, RawClient, Served, until

UUID = "0" * 32


@pytest.fixture
async def directory(serving: Served, client: RawClient, tmp_path: Path) -> Path:
    """A directory that is marked for a backup of the node's cluster."""
    made = tmp_path / "backup"
    made.mkdir()
    mark(made, (await client.hello()).cluster_uuid)
    return made


def mark(directory: Path, cluster_uuid: str) -> None:
    (directory / BACKUP_MARKER_FILE).write_text(json.dumps({"cluster_uuid": cluster_uuid}))


def backup(path: Path | str, **fields: Any) -> Backup:
    """Return a Backup of shard 0 of store live."""
    values: dict[str, Any] = {"request": 7, "budget_us": BUDGET_US, "sent_us": 0, "trace": None}
    values |= {"store": "live", "shard": 0, "epoch": 1} | fields
    return Backup(**values, path=str(path))


async def fill(client: RawClient, agents: int = 200) -> None:
    for start in range(0, agents, 200):  # a frame has at most 4 MiB
        await client.commit({b"agent-%d" % number: bytes(5_000) for number in range(start, start + 200)})


async def test_copy_matches_its_reply(client: RawClient, directory: Path) -> None:
    await fill(client)
    answer = await client.ask(backup(directory / "live-0000.mdb"), BackupReply)
    content = (directory / "live-0000.mdb").read_bytes()
    assert (answer.request, answer.status, answer.bytes) == (7, SectionStatus.OK, len(content))
    assert answer.checksum == xxhash.xxh3_128_hexdigest(content)
    with FileVerifier() as verifier:
        found, seen = verifier.verify(directory / "live-0000.mdb")
    assert found == []
    assert seen is not None
    assert (seen.version, seen.agents) == (answer.version, answer.agents)
    assert 60 < answer.agents < 140
    assert sorted(os.listdir(directory)) == [BACKUP_MARKER_FILE, "live-0000.mdb"]


async def test_saves_and_wakes_continue_during_a_copy(client: RawClient, directory: Path) -> None:
    await fill(client, 1_000)
    client.send(msgspec.msgpack.encode(backup(directory / "live-0000.mdb", rate_bytes_s=1_000_000)))
    await until(lambda: any(file.stat().st_size for file in directory.glob(".*.partial")))
    late = next(agent for agent in (b"late-%d" % number for number in range(99)) if not shard_of(agent, SHARDS))
    before = (await client.commit({late: b"x"})).sections[0].version
    assert not (directory / "live-0000.mdb").exists(), "the copy was over too soon to tell"
    while not isinstance(answer := await client.receive(), BackupReply):
        pass
    assert answer.status == SectionStatus.OK
    assert answer.version < before


async def test_copy_keeps_to_its_rate(client: RawClient, directory: Path) -> None:
    await fill(client, 400)
    began = time.monotonic()
    answer = await client.ask(backup(directory / "live-0000.mdb", rate_bytes_s=2_000_000), BackupReply)
    assert answer.bytes > 800_000
    assert time.monotonic() - began >= answer.bytes / 2_000_000


# {directory} is the marked one.
REJECTED = [
    ("{directory}/taken-0001.mdb", "exists already, and is not overwritten"),
    ("{directory}/link-0001.mdb", "exists already, and is not overwritten"),
    ("{directory}/data.mdb", "not a place for a shard's copy"),
    ("{directory}/" + BACKUP_MARKER_FILE, "not a place for a shard's copy"),
    ("{directory}/../live-0000.mdb", "no backup is in progress there"),
    ("{directory}/../other/live-0000.mdb", f"a backup of another cluster ({UUID})"),
    ("{directory}/../marked-by-link/live-0000.mdb", "no backup is in progress there"),
    ("{directory}/missing/live-0000.mdb", "cannot be written: No such file or directory"),
    ("live-0000.mdb", "not a place for a shard's copy"),
    ("{directory}/live-0000.mdb\0", "not a place for a shard's copy"),
    ("{directory}\0/live-0000.mdb", "not a place for a shard's copy"),
    ("", "not a place for a shard's copy"),
]


@pytest.mark.parametrize(("path", "reason"), REJECTED)
async def test_nothing_is_written_outside_the_marked_directory(
    client: RawClient, directory: Path, path: str, reason: str
) -> None:
    (directory / "taken-0001.mdb").write_text("mine")
    (directory / "link-0001.mdb").symlink_to(directory.parent / "elsewhere")
    for name in ("other", "marked-by-link"):
        (directory.parent / name).mkdir()
    mark(directory.parent / "other", UUID)
    (directory.parent / "marked-by-link" / BACKUP_MARKER_FILE).symlink_to(directory / BACKUP_MARKER_FILE)
    before = sorted(found for found in directory.parent.rglob("*") if "data" not in found.parts)
    answer = await client.ask(backup(path.format(directory=directory)), BackupReply)
    assert answer.status == SectionStatus.INTERNAL
    assert reason in answer.detail
    assert sorted(found for found in directory.parent.rglob("*") if "data" not in found.parts) == before
    assert (directory / "taken-0001.mdb").read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"store": "nowhere"}, SectionStatus.MOVED),
        ({"shard": 99}, SectionStatus.MOVED),
        ({"shard": -1}, SectionStatus.MOVED),
        ({"epoch": 2}, SectionStatus.MOVED),
    ],
)
async def test_unserved_shards_are_not_copied(
    client: RawClient, directory: Path, fields: dict[str, Any], status: SectionStatus
) -> None:
    answer = await client.ask(backup(directory / "live-0000.mdb", **fields), BackupReply)
    assert answer.status == status
    assert os.listdir(directory) == [BACKUP_MARKER_FILE]


async def test_corrupt_shard_is_named_instead_of_copied(serving: Served, client: RawClient, directory: Path) -> None:
    shard = serving.shards["live", 0]
    assert shard.fragments is not None
    fragments, shard.fragments, shard.damage = shard.fragments, None, "a page is gone"
    try:
        answer = await client.ask(backup(directory / "live-0000.mdb"), BackupReply)
        assert (answer.status, answer.detail) == (SectionStatus.CORRUPT, "a page is gone")
    finally:
        shard.fragments, shard.damage = fragments, ""


async def test_copy_ends_when_its_marker_is_removed(client: RawClient, directory: Path) -> None:
    await fill(client, 1_000)
    asking = asyncio.create_task(client.ask(backup(directory / "live-0000.mdb", rate_bytes_s=1_000_000), BackupReply))
    await until(lambda: any(name.endswith(".partial") for name in os.listdir(directory)))
    (directory / BACKUP_MARKER_FILE).unlink()
    answer = await asking
    assert (answer.status, answer.detail) == (SectionStatus.INTERNAL, "the backup was given up")
    assert os.listdir(directory) == []


async def test_a_copy_ends_with_its_budget(client: RawClient, directory: Path) -> None:
    await fill(client, 1_000)
    slow = backup(directory / "live-0000.mdb", rate_bytes_s=500_000, budget_us=1_000_000)
    answer = await client.ask(slow, BackupReply)
    assert "deadline" in answer.detail
    assert os.listdir(directory) == [BACKUP_MARKER_FILE]


async def test_too_many_concurrent_copies_are_rejected(client: RawClient, directory: Path) -> None:
    await fill(client, 400)
    for number in range(100):
        path = directory / f"live-{number:04d}.mdb"
        client.send(msgspec.msgpack.encode(backup(path, request=number, rate_bytes_s=1_000_000)))
    rejected = await client.receive()
    assert isinstance(rejected, Fault)
    assert rejected.code == FaultCode.OVERLOADED
    (directory / BACKUP_MARKER_FILE).unlink()
