"""PostgreSQL as the peer of saves: a server of the harness's own, on the same disk, syncing every commit.

One table per kind; a save is one statement per kind and batch, an upsert of two arrays (`unnest`), over asyncpg: the
fastest that SQL has for it short of COPY, which cannot replace. Tried and chosen from before anything counts: the batch
size, and whether the kinds go one after the other or at once over a connection each. The server runs as it is
installed, but for more memory and fewer checkpoints than the defaults give it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ..harness.child_process import ChildFailed, check_running, child_process
from ..harness.progress import Progress
from ..harness.workload import Workload
from .tuning import fastest
from .unavailable import PeerUnavailable

__all__ = ["PostgresSaves", "PreparedRows", "Upserts", "postgres_saves", "prepare_rows"]

BATCHES: Final = (500, 1000, 2500, 5000, 10_000)
"""Rows per statement that are tried."""

BINARIES: Final = Path("/usr/lib/postgresql/15/bin")
"""Where Debian 12 has them."""

START_SECONDS: Final = 30.0

USER: Final = "postgres"
"""The server's superuser, and the user that runs it if the harness runs as root, as which PostgreSQL does not run."""

_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0777",  # the directory around it is closed to others
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
}


class Upserts(msgspec.Struct, frozen=True):
    """How many rows go into one statement, and whether all kinds are sent at once, over a connection each."""

    rows: int
    at_once: bool


class PreparedRows(NamedTuple):
    """The ids, and the values of each kind in their order."""

    ids: Sequence[str]
    values: Sequence[Sequence[bytes]]


def prepare_rows(workload: Workload, agents: Sequence[int]) -> PreparedRows:
    """Lay out the arrays of these agents."""
    encoded = [workload.encoded(agent) for agent in agents]
    return PreparedRows(
        [workload.ids[agent] for agent in agents], [[values[kind] for values in encoded] for kind in workload.kinds]
    )


class PostgresSaves:
    """The server's tables, one per kind, and a connection for each."""

    def __init__(self, connections: Sequence[Any]) -> None:
        self._connections = connections  # Any: asyncpg may be missing here, and brings types of its own
        self.choice = Upserts(1000, at_once=False)

    async def create_tables(self) -> None:
        """Make them."""
        for number in range(len(self._connections)):
            statement = f"CREATE TABLE kind_{number} (agent_id text PRIMARY KEY, value bytea NOT NULL)"
            await self._connections[0].execute(statement)

    async def save(self, prepared: PreparedRows) -> None:
        """Upsert everything; returns when all is committed and synced."""
        kinds = range(len(self._connections))
        if self.choice.at_once:
            await asyncio.gather(*[self._save_kind(self._connections[kind], kind, prepared) for kind in kinds])
        else:
            for kind in kinds:
                await self._save_kind(self._connections[0], kind, prepared)

    async def _save_kind(self, connection: Any, kind: int, prepared: PreparedRows) -> None:
        statement = (
            f"INSERT INTO kind_{kind} SELECT * FROM unnest($1::text[], $2::bytea[])"
            " ON CONFLICT (agent_id) DO UPDATE SET value = excluded.value"
        )
        ids, values = prepared.ids, prepared.values[kind]
        for start in range(0, len(ids), self.choice.rows):
            stop = start + self.choice.rows
            await connection.execute(statement, ids[start:stop], values[start:stop])

    async def stored(self, prepared: PreparedRows) -> list[list[bytes | None]]:
        """Return what the tables have for these agents, kind by kind."""
        stored: list[list[bytes | None]] = []
        for kind in range(len(self._connections)):
            rows = await self._connections[0].fetch(
                f"SELECT agent_id, value FROM kind_{kind} WHERE agent_id = ANY($1::text[])", prepared.ids
            )
            by_id = {str(row["agent_id"]): bytes(row["value"]) for row in rows}
            stored.append([by_id.get(agent_id) for agent_id in prepared.ids])
        return stored

    async def settings(self) -> dict[str, str]:
        """Return what the server says of its own durability."""
        return {
            name: str(await self._connections[0].fetchval(f"SHOW {name}")) for name in ("fsync", "synchronous_commit")
        }

    async def choose_batches(self, prepared: PreparedRows, progress: Progress) -> None:
        """Try all batch sizes, and keep the best."""
        sizes = sorted({min(size, len(prepared.ids)) for size in BATCHES})

        async def run(choice: Upserts) -> None:
            self.choice = choice
            await self.save(prepared)

        choices = [Upserts(size, at_once) for size in sizes for at_once in (False, True)]
        self.choice = await fastest(choices, run, "tune PostgreSQL", progress, passes=1, finals=1)


@contextlib.asynccontextmanager
async def postgres_saves(
    sockets: Path, data: Path, kinds: int, binaries: Path = BINARIES
) -> AsyncGenerator[PostgresSaves]:
    """Make a cluster below the directory `data` and run it, with its socket in the directory `sockets` alone.

    Where the harness runs as root, both directories are opened for the server's user to pass through.

    Raises:
        PeerUnavailable: the programs or the client library are not installed, or the server does not start.
    """
    as_user = _as_server_user(binaries)
    cluster, socket = data / "postgres", sockets / "pg"
    for directory in (cluster, socket):
        directory.mkdir(mode=0o700)
    if as_user:
        owner = pwd.getpwnam(USER)
        for directory in (cluster, socket):
            os.chown(directory, owner.pw_uid, owner.pw_gid)
            directory.parent.chmod(0o711)
    await asyncio.to_thread(_make_cluster, as_user, binaries, cluster)
    settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    command = [*as_user, str(binaries / "postgres"), "-D", str(cluster), "-k", str(socket), *settings]
    log = sockets / "postgres.log"
    async with contextlib.AsyncExitStack() as stack:
        process = stack.enter_context(child_process(command, log=log))
        give_up = time.monotonic() + START_SECONDS
        connections: list[Any] = []
        while len(connections) < kinds:
            try:
                connections.append(await _connect(stack, socket))
            except OSError:
                await asyncio.sleep(0.05)
            try:
                check_running(process, "postgres", log)
            except ChildFailed as error:
                raise PeerUnavailable(str(error)) from error
            if time.monotonic() > give_up:
                raise PeerUnavailable(f"postgres did not answer within {START_SECONDS:.0f} s")
        peer = PostgresSaves(connections)
        await peer.create_tables()
        yield peer


def _as_server_user(binaries: Path) -> list[str]:
    """Return what goes before a command so that the server's user runs it; nothing unless this is root."""
    if not (binaries / "postgres").exists():
        raise PeerUnavailable(f"PostgreSQL 15 is not in {binaries} (on Debian: apt install postgresql)")
    if importlib.util.find_spec("asyncpg") is None:
        raise PeerUnavailable("the Python package asyncpg is not installed (pip install 'dawnchorus[perf]')")
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    try:
        pwd.getpwnam(USER)
    except KeyError:
        setpriv = None
    if setpriv is None:
        raise PeerUnavailable(f"it does not run as root, and there is no user {USER!r} or no setpriv to change to it")
    # A change of user takes the signal of the parent's death away (prctl(2), PR_SET_PDEATHSIG): ask for it again.
    return [setpriv, f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--pdeathsig=INT"]


def _make_cluster(as_user: Sequence[str], binaries: Path, cluster: Path) -> None:
    options = ["--auth=trust", f"--username={USER}", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    command = [*as_user, str(binaries / "initdb"), *options, "-D", str(cluster)]
    # In a directory that its user may stand in, whichever the harness stands in.
    made = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        tail = made.stderr[-1000:].strip()
        raise PeerUnavailable(f"initdb ended with code {made.returncode}: {tail or 'it wrote nothing'}")


async def _connect(stack: contextlib.AsyncExitStack, socket: Path) -> Any:
    """Connect; raises OSError as long as the server does not take connections."""
    asyncpg: Any = importlib.import_module("asyncpg")
    try:
        connection = await asyncpg.connect(host=str(socket), user=USER, database="postgres", timeout=START_SECONDS)
    except asyncpg.CannotConnectNowError as error:
        raise ConnectionRefusedError("the server is starting up") from error
    stack.push_async_callback(connection.close, timeout=START_SECONDS)
    return connection
