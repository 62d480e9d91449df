"""PostgreSQL as the peer of saves: a real server of one's own, durable, and gone at the end."""

import importlib.util
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from dawnchorus.perf.harness.progress import no_progress
from dawnchorus.perf.harness.scratch import socket_directory, temporary_directory
from dawnchorus.perf.harness.workload import SyntheticAgents
from dawnchorus.perf.peers.postgres_peer import (
    BINARIES,
    PostgresSaves,
    Upserts,
    postgres_saves,
    prepare_rows,
)
from dawnchorus.perf.peers.unavailable import PeerUnavailable
from tests.support.children import children_left

HAS_CLIENT = importlib.util.find_spec("asyncpg") is not None
needs_postgres = pytest.mark.skipif(
    not (BINARIES / "postgres").exists() or not HAS_CLIENT, reason="PostgreSQL 15 or asyncpg is not installed"
)

FIRST, SECOND = SyntheticAgents(50, 64, seed=1), SyntheticAgents(50, 64, seed=2)
EVERYONE = range(50)


@pytest.fixture
async def peer() -> AsyncGenerator[PostgresSaves]:
    # Not in pytest's directory, which lets the server's user not pass through.
    with temporary_directory() as directory, socket_directory(directory) as sockets:
        async with postgres_saves(sockets, directory, kinds=5) as peer:
            yield peer
    assert not children_left()
    assert not directory.exists()


@needs_postgres
async def test_it_commits_durably(peer: PostgresSaves) -> None:
    assert await peer.settings() == {"fsync": "on", "synchronous_commit": "on"}


@needs_postgres
@pytest.mark.parametrize("at_once", [False, True])
async def test_an_upsert_replaces_what_was_there(peer: PostgresSaves, at_once: bool) -> None:
    peer.choice = Upserts(7, at_once)
    await peer.save(prepare_rows(FIRST, EVERYONE))
    prepared = prepare_rows(SECOND, EVERYONE)
    await peer.save(prepared)
    assert await peer.stored(prepared) == [list(values) for values in prepared.values]
    assert prepared.values[0][3] == SECOND.encoded(3)["profile"]


@needs_postgres
async def test_best_fitting_batch_is_chosen(peer: PostgresSaves) -> None:
    await peer.choose_batches(prepare_rows(FIRST, EVERYONE), no_progress)
    assert peer.choice.rows == 50


def _find_nothing(_name: str) -> None:
    """Find no module, as importlib.util.find_spec if it is not installed."""


@pytest.mark.parametrize("found", [BINARIES, None])
async def test_what_is_missing_is_said(tmp_path: Path, found: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = tmp_path / "bin"
    if found is not None:
        binaries.mkdir()
        (binaries / "postgres").touch()
        monkeypatch.setattr("importlib.util.find_spec", _find_nothing)
    missing = "asyncpg is not installed" if found else "PostgreSQL 15 is not in"
    with pytest.raises(PeerUnavailable, match=missing):
        async with postgres_saves(tmp_path, tmp_path, 5, binaries):
            pass
