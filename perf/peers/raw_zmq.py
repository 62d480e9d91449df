"""The limits: what ZeroMQ alone takes for the same bytes, with nothing looked up, decoded or copied together.

A storm asks as many processes as the cluster has nodes, with requests of a Fetch's size and replies of a FetchReply
frame's size, until the same total has come; all is held until the last has come, as the agents of a storm are. The
sockets are made like the cluster's own. `run` sends and receives as pyzmq does it by itself, with a copy on both sides;
`run_uncopied` spares the one where the frame is sent, as `wire.transport.channel` does. (Measured for 27 MB from two
processes: 10 and 6 ms; twice that in a process that touches its memory for the first time.)

The echo is one small request and one agent's bytes back, with a uvloop loop on both sides; for saves one agent's bytes
there and a small answer back, once a block is written and synced. All clients live in the caller's own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Final

import zmq

from ...wire.protocol.limits import FRAME_BYTES_TARGET
from ...wire.transport.sockets import SocketOwner
from ..harness.child_process import ChildFailed, check_running, child_process, python_module
from .raw_server import UNCOPIED, descriptor, has_input

__all__ = ["RawEcho", "RawStorm", "raw_echo", "raw_storm"]

ECHO_REQUEST_BYTES = 60
"""About the size of a Fetch of one agent."""

START_SECONDS: Final = 20.0
"""How long a child may take until it first answers: an interpreter's start on a busy machine."""

EXCHANGE_SECONDS = 60.0
"""How long any one measurement may take before it is given up."""

_SERVER_MODULE = f"{__package__}.raw_server"


class RawStorm:
    """The client's side of a raw storm; every `run` moves `frames` frames of `frame_bytes`."""

    def __init__(self, servers: list[zmq.Socket[bytes]], frames: int, frame_bytes: int, request_bytes: int) -> None:
        self.frames = frames
        self.frame_bytes = frame_bytes
        self._servers = servers
        self._request = b"c" * max(1, request_bytes)
        self._request_uncopied = UNCOPIED * max(1, request_bytes)
        self._received: list[bytes] = []
        self._wanted = 0
        self._done: asyncio.Future[None] | None = None

    async def run(self) -> list[bytes]:
        """Ask for all frames at once, round robin over the servers; returns them when all have come."""
        return await self._exchange(self.frames, self._request)

    async def run_uncopied(self) -> list[bytes]:
        """Run the same, but let the servers give their frames to ZeroMQ without copying them."""
        return await self._exchange(self.frames, self._request_uncopied)

    async def first_answers(self) -> None:
        """Take one frame from each server: the connections are made."""
        await self._exchange(len(self._servers), self._request)

    async def _exchange(self, frames: int, request: bytes) -> list[bytes]:
        loop = asyncio.get_running_loop()
        self._received = []
        self._wanted = frames
        self._done = loop.create_future()
        for number in range(frames):
            self._servers[number % len(self._servers)].send(request, zmq.NOBLOCK)
        for server in self._servers:
            loop.add_reader(descriptor(server), self._drain, server)
            # Sending may have swallowed the edge of a reply that was there already.
            loop.call_soon(self._drain, server)
        try:
            await asyncio.wait_for(self._done, EXCHANGE_SECONDS)
        finally:
            for server in self._servers:
                loop.remove_reader(descriptor(server))
            received, self._received = self._received, []
        return received

    def _drain(self, server: zmq.Socket[bytes]) -> None:
        while has_input(server):
            self._received.append(server.recv(zmq.NOBLOCK))
        if len(self._received) >= self._wanted and self._done is not None and not self._done.done():
            self._done.set_result(None)


@contextlib.asynccontextmanager
async def raw_storm(
    directory: Path, servers: int, total_bytes: int, total_requests_bytes: int
) -> AsyncGenerator[RawStorm]:
    """Start the servers and connect to them; both sizes are those of one storm, all messages together."""
    frames = max(servers, -(-total_bytes // FRAME_BYTES_TARGET))
    frame_bytes = -(-total_bytes // frames)
    async with contextlib.AsyncExitStack() as stack:
        owner = stack.enter_context(SocketOwner())
        sizes = str(frame_bytes), str(-(-frames // servers))
        children = [_Child(stack, directory, f"raw-{number}", "storm", *sizes) for number in range(servers)]
        await _listening(children)
        sockets = [owner.dealer(child.endpoint) for child in children]
        storm = RawStorm(sockets, frames, frame_bytes, -(-total_requests_bytes // frames))
        await _first(storm.first_answers(), children)
        yield storm


class RawEcho:
    """The client's side of the echo."""

    def __init__(self, requests: zmq.Socket[bytes], request_bytes: int) -> None:
        self._requests = requests
        self._request = bytes(request_bytes)
        self._times_ns: list[int] = []
        self._wanted = 0
        self._sent_ns = 0
        self._done: asyncio.Future[None] | None = None

    async def run(self, exchanges: int) -> list[int]:
        """Make so many exchanges, one after the other; returns the nanoseconds of each."""
        loop = asyncio.get_running_loop()
        self._times_ns, self._wanted = [], exchanges
        self._done = loop.create_future()
        loop.add_reader(descriptor(self._requests), self._drain)
        try:
            self._send()
            await asyncio.wait_for(self._done, EXCHANGE_SECONDS)
        finally:
            loop.remove_reader(descriptor(self._requests))
        return self._times_ns

    def _send(self) -> None:
        self._sent_ns = time.perf_counter_ns()
        self._requests.send(self._request, zmq.NOBLOCK)
        # The look that an edge-triggered descriptor asks for after every send; the reply is hardly ever there yet.
        asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        while has_input(self._requests):
            self._requests.recv(zmq.NOBLOCK)
            self._times_ns.append(time.perf_counter_ns() - self._sent_ns)
            if len(self._times_ns) < self._wanted:
                self._send()
            elif self._done is not None and not self._done.done():
                self._done.set_result(None)


@contextlib.asynccontextmanager
async def raw_echo(
    directory: Path, reply_bytes: int, request_bytes: int = ECHO_REQUEST_BYTES, synced_file: Path | None = None
) -> AsyncGenerator[RawEcho]:
    """Start the echo's server, with messages of these sizes, and connect to it.

    With a file, the server writes and syncs a block of it before each answer.
    """
    async with contextlib.AsyncExitStack() as stack:
        owner = stack.enter_context(SocketOwner())
        arguments = [str(reply_bytes)] if synced_file is None else [str(reply_bytes), str(synced_file)]
        child = _Child(stack, directory, "raw-echo", "echo", *arguments)
        await _listening([child])
        echo = RawEcho(owner.dealer(child.endpoint), request_bytes)
        await _first(echo.run(1), [child])
        yield echo


class _Child:
    """One server process and where it listens."""

    def __init__(
        self, stack: contextlib.AsyncExitStack, directory: Path, name: str, role: str, *arguments: str
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.path = directory / name
        self.endpoint = f"ipc://{self.path}"
        command = python_module(_SERVER_MODULE, role, self.endpoint, *arguments)
        self.process = stack.enter_context(child_process(command, log=self.log))


def _listens(path: Path) -> bool:
    """Return whether somebody accepts connections there; the file of a socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def _listening(children: list[_Child]) -> None:
    """Wait until each server listens: a dealer tries to connect once."""
    give_up = time.monotonic() + START_SECONDS
    while not all([_listens(child.path) for child in children]):
        for child in children:
            check_running(child.process, child.name, child.log)
        if time.monotonic() > give_up:
            raise ChildFailed(f"{children[0].name} did not listen within {START_SECONDS:.0f} s")
        await asyncio.sleep(0.02)


async def _first(answers: Awaitable[object], children: list[_Child]) -> None:
    """Wait for the first answers; says what is the matter with a child that gives none."""
    answering = asyncio.ensure_future(answers)
    give_up = time.monotonic() + START_SECONDS
    try:
        while not (await asyncio.wait([answering], timeout=0.05))[0]:
            for child in children:
                check_running(child.process, child.name, child.log)
            if time.monotonic() > give_up:
                raise ChildFailed(f"{children[0].name} did not answer within {START_SECONDS:.0f} s")
        await answering
    finally:
        answering.cancel()
        await asyncio.wait([answering])
