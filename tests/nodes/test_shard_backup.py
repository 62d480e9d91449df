"""Copies of shards that a node makes for a backup: paced, whole, and only where somebody has asked for them."""

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
async def folder(serving: Served, client: RawClient, tmp_path: Path) -> Path:
    """A folder that is marked for a backup of the node's cluster."""
    made = tmp_path / "backup"
    made.mkdir()
    mark(made, (await client.hello()).cluster_uuid)
    return made


def mark(folder: Path, cluster_uuid: str) -> None:
    (folder / BACKUP_MARKER_FILE).write_text(json.dumps({"cluster_uuid": cluster_uuid}))


def backup(path: Path | str, **fields: Any) -> Backup:
    """A Backup of shard 0 of store live."""
    values: dict[str, Any] = {"request": 7, "budget_us": BUDGET_US, "sent_us": 0, "trace": None}
    values |= {"store": "live", "shard": 0, "epoch": 1} | fields
    return Backup(**values, path=str(path))


async def fill(client: RawClient, agents: int = 200) -> None:
    for start in range(0, agents, 200):  # a frame has at most 4 MiB
        await client.commit({b"agent-%d" % number: bytes(5_000) for number in range(start, start + 200)})


async def test_a_copy_is_what_the_answer_says(client: RawClient, folder: Path) -> None:
    await fill(client)
    answer = await client.ask(backup(folder / "live-0000.mdb"), BackupReply)
    content = (folder / "live-0000.mdb").read_bytes()
    assert (answer.request, answer.status, answer.bytes) == (7, SectionStatus.OK, len(content))
    assert answer.checksum == xxhash.xxh3_128_hexdigest(content)
    with FileVerifier() as verifier:
        found, seen = verifier.verify(folder / "live-0000.mdb")
    assert found == []
    assert seen is not None
    assert (seen.version, seen.agents) == (answer.version, answer.agents)
    assert 60 < answer.agents < 140
    assert sorted(os.listdir(folder)) == [BACKUP_MARKER_FILE, "live-0000.mdb"]


async def test_saves_and_wakes_go_on_while_a_copy_is_made(client: RawClient, folder: Path) -> None:
    await fill(client, 1_000)
    client.send(msgspec.msgpack.encode(backup(folder / "live-0000.mdb", rate_bytes_s=1_000_000)))
    await until(lambda: any(file.stat().st_size for file in folder.glob(".*.partial")))
    late = next(agent for agent in (b"late-%d" % number for number in range(99)) if not shard_of(agent, SHARDS))
    before = (await client.commit({late: b"x"})).sections[0].version
    assert not (folder / "live-0000.mdb").exists(), "the copy was over too soon to tell"
    while not isinstance(answer := await client.receive(), BackupReply):
        pass
    assert answer.status == SectionStatus.OK
    assert answer.version < before


async def test_a_copy_takes_its_time(client: RawClient, folder: Path) -> None:
    await fill(client, 400)
    began = time.monotonic()
    answer = await client.ask(backup(folder / "live-0000.mdb", rate_bytes_s=2_000_000), BackupReply)
    assert answer.bytes > 800_000
    assert time.monotonic() - began >= answer.bytes / 2_000_000


# {folder} is the marked one.
REFUSED = [
    ("{folder}/taken-0001.mdb", "exists already, and is not overwritten"),
    ("{folder}/link-0001.mdb", "exists already, and is not overwritten"),
    ("{folder}/data.mdb", "not a place for a shard's copy"),
    ("{folder}/" + BACKUP_MARKER_FILE, "not a place for a shard's copy"),
    ("{folder}/../live-0000.mdb", "no backup is in progress there"),
    ("{folder}/../other/live-0000.mdb", f"a backup of another cluster ({UUID})"),
    ("{folder}/../marked-by-link/live-0000.mdb", "no backup is in progress there"),
    ("{folder}/missing/live-0000.mdb", "cannot be written: No such file or directory"),
    ("live-0000.mdb", "not a place for a shard's copy"),
    ("{folder}/live-0000.mdb\0", "not a place for a shard's copy"),
    ("{folder}\0/live-0000.mdb", "not a place for a shard's copy"),
    ("", "not a place for a shard's copy"),
]


@pytest.mark.parametrize(("path", "reason"), REFUSED)
async def test_nothing_is_written_where_nobody_asked_for_it(
    client: RawClient, folder: Path, path: str, reason: str
) -> None:
    (folder / "taken-0001.mdb").write_text("mine")
    (folder / "link-0001.mdb").symlink_to(folder.parent / "elsewhere")
    for name in ("other", "marked-by-link"):
        (folder.parent / name).mkdir()
    mark(folder.parent / "other", UUID)
    (folder.parent / "marked-by-link" / BACKUP_MARKER_FILE).symlink_to(folder / BACKUP_MARKER_FILE)
    before = sorted(found for found in folder.parent.rglob("*") if "data" not in found.parts)
    answer = await client.ask(backup(path.format(folder=folder)), BackupReply)
    assert answer.status == SectionStatus.INTERNAL
    assert reason in answer.detail
    assert sorted(found for found in folder.parent.rglob("*") if "data" not in found.parts) == before
    assert (folder / "taken-0001.mdb").read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"store": "nowhere"}, SectionStatus.MOVED),
        ({"shard": 99}, SectionStatus.MOVED),
        ({"shard": -1}, SectionStatus.MOVED),
        ({"epoch": 2}, SectionStatus.MOVED),
    ],
)
async def test_what_is_not_served_is_not_copied(
    client: RawClient, folder: Path, fields: dict[str, Any], status: SectionStatus
) -> None:
    answer = await client.ask(backup(folder / "live-0000.mdb", **fields), BackupReply)
    assert answer.status == status
    assert os.listdir(folder) == [BACKUP_MARKER_FILE]


async def test_a_damaged_shard_is_named_instead(serving: Served, client: RawClient, folder: Path) -> None:
    shard = serving.shards["live", 0]
    assert shard.fragments is not None
    fragments, shard.fragments, shard.damage = shard.fragments, None, "a page is gone"
    try:
        answer = await client.ask(backup(folder / "live-0000.mdb"), BackupReply)
        assert (answer.status, answer.detail) == (SectionStatus.CORRUPT, "a page is gone")
    finally:
        shard.fragments, shard.damage = fragments, ""


async def test_a_copy_ends_when_its_marker_goes(client: RawClient, folder: Path) -> None:
    await fill(client, 1_000)
    asking = asyncio.create_task(client.ask(backup(folder / "live-0000.mdb", rate_bytes_s=1_000_000), BackupReply))
    await until(lambda: any(name.endswith(".partial") for name in os.listdir(folder)))
    (folder / BACKUP_MARKER_FILE).unlink()
    answer = await asking
    assert (answer.status, answer.detail) == (SectionStatus.INTERNAL, "the backup was given up")
    assert os.listdir(folder) == []


async def test_a_copy_ends_with_its_budget(client: RawClient, folder: Path) -> None:
    await fill(client, 1_000)
    slow = backup(folder / "live-0000.mdb", rate_bytes_s=500_000, budget_us=1_000_000)
    answer = await client.ask(slow, BackupReply)
    assert "deadline" in answer.detail
    assert os.listdir(folder) == [BACKUP_MARKER_FILE]


async def test_too_many_copies_at_once_are_refused(client: RawClient, folder: Path) -> None:
    await fill(client, 400)
    for number in range(100):
        path = folder / f"live-{number:04d}.mdb"
        client.send(msgspec.msgpack.encode(backup(path, request=number, rate_bytes_s=1_000_000)))
    refused = await client.receive()
    assert isinstance(refused, Fault)
    assert refused.code == FaultCode.OVERLOADED
    (folder / BACKUP_MARKER_FILE).unlink()
