"""The fragment node: owns shards and serves them on one ROUTER socket.

How a request passes through:

    socket -> Channel: drained and stamped with the time, before any is served
           -> Inbox: one queue per welcomed peer, served in turn; what is cancelled, or would come too late, goes
           -> Read (in the loop, a frame a turn)  or  Writer (a thread: group commit, sync, back to the loop)
           -> Peers: the reply, or its wait for a peer that does not read

Everything but the writer runs in the event loop's thread. Nothing that a peer sends ends the node: what cannot be
decoded is counted, and answered where its request number can be read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

from ..wire.cluster.placement import Placement
from ..wire.cluster.topology import Topology
from ..wire.errors import InvalidRequestError, ProtocolError
from ..wire.protocol.limits import REQUEST_AGENTS_MAX, SECTIONS_MAX
from ..wire.protocol.messages import (
    PING,
    PONG,
    BackedUp,
    Backup,
    Cancel,
    Commit,
    Fault,
    FaultCode,
    Fetch,
    Hello,
    Ping,
    Reply,
    Scan,
    SectionStatus,
    decode_request,
    encode,
    read_request_number,
)
from ..wire.protocol.request_header import peek_request
from ..wire.transport.acceptance import Acceptance, Doors
from ..wire.transport.channel import Channel, Sent, receive_routed
from ..wire.transport.counters import Counters
from ..wire.transport.listener import Listener
from ..wire.transport.liveness import LIVENESS_TICK_S
from ..wire.transport.reply_queues import PEERS_MAX, Peers
from ..wire.transport.sockets import SocketOwner, bind, remove_ipc_file
from .clock_record import open_clock
from .greeting import Greeting
from .group_commit import CommitJob, Writer
from .inbox import Inbox, Reading, Received, Shed
from .maintenance import Housekeeper
from .node_status import NodeStatus
from .read_path import Read
from .scans import scan_shard
from .shard_backup import BackupJob, Backups
from .shard_table import OwnedShard

__all__ = ["FragmentNode"]

_TURN_SECONDS: Final = 0.002
"""How long the node serves before it looks at its socket and timers again."""

_RETRY_SECONDS: Final = 0.001
"""Pause before a blocked peer is tried again: ROUTER does not tell when one peer's queue has room. At 1 GB/s a reader
takes one frame in it."""

_STOP_SECONDS: Final = 3.0
"""How long a stopping node waits for its writer; `up` promises an end within five."""

_ANSWER_SECONDS: Final = 0.5
"""How long a stopping node waits for peers that do not take the answers to their last saves."""

_TURNED_AWAY_S: Final = 2.0
"""How long a router is asked to stay away that finds no room here."""

_DISK_RETRY_S: Final = 0.1
"""How long a router is asked to stay away that sends more writes than the disk takes: 64 MiB take longer than this."""

_FAULT_READ_BYTES_MAX: Final = 1 << 16
"""A refused frame's request number is looked for up to this size only: saying no must stay cheap."""

_log = logging.getLogger(__name__)


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
    ) -> None:
        """Make the node `name`; `shards` are open, and stay the caller's to close. `ipc`, `directory`: see Welcome."""
        self._topology = topology
        self.name = name
        self._shards = shards
        self._ipc = ipc
        self._directory = directory
        self._peers_max = peers_max
        self.counters = Counters()
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(self.counters)
        self._turn_scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._clock = open_clock(shards.values(), Path(topology.data_dir) / name)
        self._status = NodeStatus(topology, name, shards.values(), self.counters, self._clock)
        housekeeper = Housekeeper(shards.values(), self._clock, self.counters)
        self._writer = Writer(self._loop, shards, self._clock, self._deliver, housekeeper)
        self._backups = Backups(self._loop, shards, placement.cluster_uuid, self._deliver_backup)
        self._sockets = SocketOwner()
        self._replies = self._sockets.router()

    def bind(self) -> None:
        """Bind, before a generation is taken: requests wait in the socket until `start`.

        Raises:
            DataFolderError: an endpoint is in use or not to be had; nothing is left bound.
        """
        try:
            self._listener = Listener(self._replies, self._topology.nodes[self.name].endpoint)
            if self._ipc:
                bind(self._replies, self._ipc)
        except BaseException:
            self.unbind()
            raise

    def unbind(self) -> None:
        """Give up what is bound, where the node was never started."""
        self._sockets.close()
        remove_ipc_file(self._ipc)

    def start(self, placement: Placement) -> None:
        """Serve by this placement, which has the generation that was taken for this start."""
        self._clock.record()
        self._greeting = Greeting(self._topology, placement, self.name, self._ipc, self._directory, self._shards)
        self._channel = Channel(self._loop, self._replies, receive_routed, self._handle_messages)
        self._peers = Peers(self._channel, self.counters, peers_max=self._peers_max)
        self._acceptance = Acceptance(self._listener.shut)
        self._writer.start()
        self._ticking = self._loop.call_later(LIVENESS_TICK_S, self._tick)

    async def stop(self) -> None:
        """Take no more requests, commit what is queued, answer it, and close the socket."""
        self._channel.close()  # it still sends; unbinding would end the connections that the answers go out on
        await self._loop.run_in_executor(None, self._writer.stop, _STOP_SECONDS)
        await self._loop.run_in_executor(None, self._backups.stop, _ANSWER_SECONDS)
        await asyncio.sleep(0)  # the writer's last answers
        end = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < end:
            if not self._peers.blocked:
                break
            await asyncio.sleep(_RETRY_SECONDS)
        if self._retry is not None:
            self._retry.cancel()
        self._ticking.cancel()
        self._acceptance.close()
        self._sockets.close()
        remove_ipc_file(self._ipc)

    # --- from the socket into the queue ---

    def _handle_messages(self, messages: list[list[bytes]]) -> None:
        now = time.monotonic()
        heard, fresh = self._peers.heard, self._inbox.fresh
        for message in messages:
            if len(message) != 2:
                self.counters.garbage += 1
                continue
            peer, frame = message
            heard.add(peer)
            if peer not in self._inbox:
                self._greet(peer, frame)
            elif frame == PING:
                self._answer_ping(peer)
            else:
                if peer in fresh:
                    self._leave_earlier(peer)
                if (shed := self._inbox.put(peer, frame, now)) is not None:
                    self._shed(peer, frame, shed)
        self._inbox.handle_drained()
        if not self._turn_scheduled:
            self._turn()

    def _answer_ping(self, peer: bytes) -> None:
        if peer not in self._peers.blocked:  # else there is enough on its way that says the same
            self._send(peer, PONG)

    def _tick(self) -> None:
        """Look who is alive; set again before anything else, so that there is another whatever goes wrong."""
        self._ticking = self._loop.call_later(LIVENESS_TICK_S, self._tick)
        self._channel.poll()  # what came while this loop was busy
        for peer in self._peers.handle_tick():
            self._forget(peer)
        self._acceptance.handle_tick(len(self._peers))
        self._schedule_retry()  # under way already, as the next, unless something went wrong in its midst
        if not self._turn_scheduled:
            self._turn()

    def _shed(self, peer: bytes, frame: bytes, shed: Shed) -> None:
        self.counters.shed += 1
        seen = peek_request(frame)  # of any size: who is told at once does not wait, nor ask again
        if seen is not None:
            self._fault(peer, seen[1], FaultCode.OVERLOADED, shed.detail, shed.retry_after_s)

    def _greet(self, peer: bytes, frame: bytes) -> None:
        try:
            hello = decode_request(frame)
        except ProtocolError:
            self.counters.garbage += 1
            self._refuse(peer, frame, FaultCode.NO_HELLO, "a connection begins with Hello")
            return
        if isinstance(hello, Hello):
            self._welcome(peer, hello)
        elif not isinstance(hello, Cancel):
            request = 0 if isinstance(hello, Ping) else hello.request
            self._fault(peer, request, FaultCode.NO_HELLO, "a connection begins with Hello")

    def _welcome(self, peer: bytes, hello: Hello) -> None:
        self.counters.hellos += 1
        if (refusal := self._greeting.refusal(hello)) is not None:
            self.counters.faults += 1
            self._reply(peer, refusal)
            return
        if peer not in self._peers and not self._has_room():
            self.counters.turned_away += 1
            why = self._acceptance.why() if self._acceptance.doors is not Doors.OPEN else self._peers.why_full()
            self._fault(peer, 0, FaultCode.OVERLOADED, why, _TURNED_AWAY_S)
            return
        self._peers.add(peer)
        self._inbox.add_peer(peer, hello.client)
        self._reply(peer, self._greeting.welcome(ipc=self._acceptance.offers_ipc()))

    def _leave_earlier(self, peer: bytes) -> None:
        """A client uses a new connection: nothing that waits on its earlier one is done after what comes on this."""
        if (earlier := self._inbox.handle_first_request(peer)) is not None:
            self._peers.remove(earlier)
            self._forget(earlier)

    def _has_room(self) -> bool:
        if not self._acceptance.admits(len(self._peers)):
            return False
        if (silent := self._peers.make_room()) is not None:
            self._forget(silent)
        return not self._peers.is_full

    # --- from the queue to the reply ---

    def _turn(self) -> None:
        self._turn_scheduled = False
        now = time.monotonic()
        end = now + _TURN_SECONDS
        while (taken := self._inbox.take(now)) is not None:
            peer, work, size = taken
            try:
                if isinstance(work, Reading):
                    self._serve_read(peer, work, size)
                else:
                    self._serve(peer, work, size)
            except Exception:
                self.counters.internal_errors += 1
                _log.exception("request fails")
                self._refuse(peer, work.frame, FaultCode.INTERNAL, "see the node's log")
            now = time.monotonic()
            if now >= end:
                self._turn_scheduled = True
                self._loop.call_soon(self._turn)
                return

    def _serve(self, peer: bytes, received: Received, size: int) -> None:
        try:
            request = decode_request(received.frame)
        except ProtocolError as error:
            self.counters.garbage += 1
            self._refuse(peer, received.frame, FaultCode.BAD_REQUEST, str(error))
            return
        if isinstance(request, Hello):
            self._welcome(peer, request)
            return
        if isinstance(request, (Cancel, Ping)):
            return  # it is one though its first bytes are not: nothing is lost if it has no effect
        sent_us = 0 if isinstance(request, Backup) else request.sent_us
        deadline = self._inbox.deadline(peer, received, request.budget_us, sent_us)
        if isinstance(request, Fetch):
            try:
                read = Read(request, self._shards)
            except InvalidRequestError as error:
                self._fault(peer, request.request, FaultCode.BAD_REQUEST, str(error))
                return
            self._serve_read(peer, Reading(received.frame, read, deadline), size)
        elif isinstance(request, Commit):
            self._serve_commit(peer, request, deadline, size)
        elif time.monotonic() > deadline:
            self.counters.late += 1
        elif isinstance(request, Backup):
            if not self._backups.submit(BackupJob(peer, request, deadline)):
                self._fault(peer, request.request, FaultCode.OVERLOADED, "too many backups wait")
        elif isinstance(request, Scan):
            try:
                self._reply(peer, scan_shard(request, self._shards))
                self.counters.scans += 1
            except InvalidRequestError as error:
                self._fault(peer, request.request, FaultCode.BAD_REQUEST, str(error))
        else:
            self._reply(peer, self._status.reply(request.request, len(self._peers), self._acceptance))

    def _serve_read(self, peer: bytes, reading: Reading, size: int) -> None:
        if time.monotonic() > reading.deadline:
            self.counters.late += 1
            return
        try:
            images, last = reading.read.next_frame(self._clock.monotonic_ms())
        except InvalidRequestError as error:
            self._refuse(peer, reading.frame, FaultCode.BAD_REQUEST, str(error))
            return
        self.counters.image_bytes += len(images)
        if last:
            self.counters.fetches += 1
            self.counters.images += reading.read.agents_read
        else:
            self._inbox.put_back(peer, reading, size)
        self._send(peer, images)

    def _serve_commit(self, peer: bytes, commit: Commit, deadline: float, size: int) -> None:
        sections = commit.sections
        if len(sections) > SECTIONS_MAX or sum([len(section.writes) for section in sections]) > REQUEST_AGENTS_MAX:
            detail = f"a commit has at most {SECTIONS_MAX} sections and {REQUEST_AGENTS_MAX} writes"
            self._fault(peer, commit.request, FaultCode.BAD_REQUEST, detail)
        elif not self._writer.submit(CommitJob(peer, commit, deadline, size)):
            self.counters.shed += 1
            self._fault(peer, commit.request, FaultCode.OVERLOADED, "too many writes wait for the disk", _DISK_RETRY_S)

    def _deliver(self, jobs: list[CommitJob]) -> None:
        for job in jobs:
            answer = job.answer()
            self.counters.commits += 1
            self.counters.late += any(section.status == SectionStatus.TOO_LATE for section in answer.sections)
            for section in answer.sections:
                applied = sum([isinstance(result, int) for result in section.results])
                self.counters.writes += applied
                self.counters.refused_writes += len(section.results) - applied
            self._reply(job.peer, answer)

    def _deliver_backup(self, peer: bytes, answer: BackedUp) -> None:
        self.counters.backups += answer.status == SectionStatus.OK
        self._reply(peer, answer)

    # --- replies ---

    def _reply(self, peer: bytes, reply: Reply) -> None:
        self._send(peer, encode(reply))

    def _send(self, peer: bytes, frame: bytes) -> None:
        sent = self._peers.reply(peer, frame)
        if sent is Sent.GONE:
            self._forget(peer)
        elif sent is Sent.FULL:
            self._inbox.block(peer)
            self._schedule_retry()

    def _forget(self, peer: bytes) -> None:
        self.counters.dropped_replies += self._inbox.remove_peer(peer)

    def _schedule_retry(self) -> None:
        if self._retry is None and self._peers.blocked:
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._retry_blocked)

    def _retry_blocked(self) -> None:
        self._retry = None
        freed, gone = self._peers.retry()
        for peer in gone:
            self._forget(peer)
        for peer in freed:
            self._inbox.unblock(peer)
        self._schedule_retry()
        if freed and not self._turn_scheduled:
            self._turn()

    def _fault(self, peer: bytes, request: int, code: FaultCode, detail: str, retry_after_s: float = 0.0) -> None:
        self.counters.faults += 1
        self._reply(peer, Fault(request, code, detail, int(retry_after_s * 1e6)))

    def _refuse(self, peer: bytes, frame: bytes, code: FaultCode, detail: str) -> None:
        """Answer a frame that is not served with a Fault, if its request number can be read."""
        number = read_request_number(frame) if len(frame) <= _FAULT_READ_BYTES_MAX else None
        if number is not None:
            self._fault(peer, number, code, detail)
