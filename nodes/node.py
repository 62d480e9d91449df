"""The fragment node: a table of handlers that serve the shards of one process.

The path of a request:

    socket -> RequestServer (`wire.transport.request_server`): greeting, turns, deadlines, cancels
           -> a handler below: a read in the loop, a frame a turn; a commit to the Writer (a thread: group commit, sync,
              back to the loop); a copy for a backup to Backups (another)
           -> RequestServer: the reply, or its wait for a peer that does not read

Everything but those threads runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..wire.cluster.placement import Placement
from ..wire.cluster.topology import Topology
from ..wire.errors import InvalidRequestError
from ..wire.protocol.limits import REQUEST_AGENTS_MAX, SECTIONS_MAX
from ..wire.protocol.messages import (
    Backup,
    BackupReply,
    Commit,
    Fault,
    FaultCode,
    Fetch,
    Scan,
    SectionStatus,
    Status,
)
from ..wire.transport.acceptance import Acceptance
from ..wire.transport.channel import RoutedChannel
from ..wire.transport.handlers import Answer, Handler
from ..wire.transport.loop_calls import LoopCalls
from ..wire.transport.reply_queues import PEERS_MAX
from ..wire.transport.request_queue import Call
from ..wire.transport.request_server import RequestServer
from ..wire.transport.server_socket import ServerSocket
from .answer_frames import FetchFrames, ScanFrames
from .clock_record import open_clock
from .greeting import Greeting
from .group_commit import QUEUE_BYTES_MAX, CommitJob, Writer
from .maintenance import Housekeeper
from .node_counters import NodeCounters
from .node_status import NodeStatus
from .read_path import Read
from .scans import ShardScan
from .shard_backup import BackupJob, Backups
from .shard_table import OwnedShard

__all__ = ["FragmentNode", "Transport"]

_STOP_SECONDS: Final = 3.0
"""How long a stopping node waits for its writer; `up` promises an end within five."""

_ANSWER_SECONDS: Final = 0.5
"""How long a stopping node waits for peers that do not take the replies to their last saves."""

_DISK_RETRY_S: Final = 0.1
"""The pause asked of a router that sends more writes than the disk takes: 64 MiB take longer than this."""


class Transport(Protocol):
    """The transport on which a node is reached: a `ServerSocket`, or one in memory."""

    def bind(self) -> None:
        """Bind: requests wait until `open_channel`."""
        ...

    def open_channel(
        self,
        loop: asyncio.AbstractEventLoop,
        handle_messages: Callable[[list[list[bytes]]], None],
        handle_ended: Callable[[], None],
    ) -> RoutedChannel:
        """Deliver requests, and say when connections have ended."""
        ...

    def shut(self, shut: bool) -> object:
        """Reject all new connections, or accept them again."""
        ...

    def close(self) -> None:
        """Close the transport."""
        ...


class FragmentNode:
    """One node, from `start` to `stop`. Made and used in the thread of one event loop."""

    def __init__(
        self,
        topology: Topology,
        placement: Placement,
        name: str,
        shards: dict[tuple[str, int], OwnedShard],
        *,
        ipc: str = "",
        directory: str = "",
        peers_max: int = PEERS_MAX,
        transport: Transport | None = None,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the node `name`; `shards` are open, and stay the caller's to close. `ipc`, `directory`: see Welcome.

        `queue_bytes_max`: of commits that wait for the disk. `transport` and `monotonic`, which gives seconds, are the
        node's own sockets and the machine's clock unless a simulation gives others.
        """
        self._topology = topology
        self.name = name
        self._shards = shards
        self._ipc = ipc
        self._directory = directory
        self._peers_max = peers_max
        self._monotonic = monotonic
        self.counters = NodeCounters()
        self._loop = asyncio.get_running_loop()
        self._calls = LoopCalls(self._loop)
        self._clock = open_clock(shards.values(), Path(topology.data_dir) / name)
        self._status = NodeStatus(topology, name, shards.values(), self.counters, self._clock, ipc, monotonic)
        housekeeper = Housekeeper(shards.values(), self._clock, self.counters, monotonic)
        self._writer = Writer(
            self._calls,
            shards,
            self._clock,
            self._deliver,
            housekeeper,
            queue_bytes_max=queue_bytes_max,
            monotonic=monotonic,
        )
        self._backups = Backups(self._calls, shards, placement.cluster_uuid, self._deliver_backup, monotonic)
        self._transport: Transport = (
            ServerSocket(topology.nodes[name].endpoint, ipc) if transport is None else transport
        )

    def bind(self) -> None:
        """Bind, before a generation is taken: requests wait in the socket until `start`.

        Raises:
            DataDirectoryError: an endpoint is in use or cannot be bound; nothing is left bound.
        """
        self._transport.bind()

    def unbind(self) -> None:
        """Unbind, if the node was never started."""
        self._transport.close()

    def start(self, placement: Placement) -> None:
        """Serve by this placement, which has the generation that was taken for this start."""
        self._clock.record()
        self._acceptance = Acceptance(self._transport.shut)
        self.server = RequestServer(
            self._loop,
            {
                Fetch: Handler(self._fetch),
                Commit: Handler(self._commit, always=True),
                Scan: Handler(self._scan),
                Status: Handler(self._tell_status),
                Backup: Handler(self._back_up),
            },
            Greeting(self._topology, placement, self.name, self._ipc, self._directory, self._shards),
            self._acceptance,
            self.counters,
            peers_max=self._peers_max,
            monotonic=self._monotonic,
        )
        self.server.start(partial(self._transport.open_channel, self._loop))
        self._writer.start()

    async def stop(self) -> None:
        """Take no more requests, commit what is queued, answer it, and close the socket."""
        self.server.close_intake()  # it still sends; unbinding would end the connections of the replies
        await self._loop.run_in_executor(None, self._writer.stop, _STOP_SECONDS)
        await self._loop.run_in_executor(None, self._backups.stop, _ANSWER_SECONDS)
        await asyncio.sleep(0)  # the writer's last answers
        await self.server.drain(_ANSWER_SECONDS)
        self._calls.close()
        self.server.close()
        self._acceptance.close()
        self._transport.close()

    # --- handlers ---

    def _fetch(self, _call: Call, fetch: Fetch) -> Answer:
        return FetchFrames(Read(fetch, self._shards), self._clock, self.counters, self._resume)

    def _commit(self, call: Call, commit: Commit) -> Answer:
        sections = commit.sections
        if len(sections) > SECTIONS_MAX or sum([len(section.writes) for section in sections]) > REQUEST_AGENTS_MAX:
            raise InvalidRequestError(f"a commit has at most {SECTIONS_MAX} sections and {REQUEST_AGENTS_MAX} writes")
        if self._writer.submit(CommitJob(call.peer, commit, call.deadline, len(call.frame))):
            return None
        self.counters.shed += 1
        detail = "too many writes wait for the disk"
        return Fault(commit.request, FaultCode.OVERLOADED, detail, int(_DISK_RETRY_S * 1e6))

    def _scan(self, _call: Call, scan: Scan) -> Answer:
        return ScanFrames(ShardScan(scan, self._shards), self.counters, self._resume)

    def _tell_status(self, _call: Call, status: Status) -> Answer:
        return self._status.reply(status.request, len(self.server.peers), self._acceptance)

    def _back_up(self, call: Call, backup: Backup) -> Answer:
        if self._backups.submit(BackupJob(call.peer, backup, call.deadline)):
            return None
        return Fault(backup.request, FaultCode.OVERLOADED, "too many backups wait")

    # --- answers of the threads ---

    def _resume(self, call: Call) -> None:
        """Resume a parked call; from any thread."""
        self._calls.call(partial(self.server.resume, call))

    def _deliver(self, jobs: list[CommitJob]) -> None:
        for job in jobs:
            answer = job.answer()
            self.counters.commits += 1
            self.counters.late += any(section.status == SectionStatus.TOO_LATE for section in answer.sections)
            for section in answer.sections:
                applied = sum([isinstance(result, int) for result in section.results])
                self.counters.writes += applied
                self.counters.rejected_writes += len(section.results) - applied
            self.server.reply(job.peer, answer)

    def _deliver_backup(self, peer: bytes, answer: BackupReply) -> None:
        self.counters.backups += answer.status == SectionStatus.OK
        self.server.reply(peer, answer)
