"""A process that answers raw ZeroMQ requests with bytes prepared beforehand; started by `raw_zmq`, never by hand.

    python -m dawnchorus.perf.peers.raw_server storm ENDPOINT REPLY_BYTES REPLIES
    python -m dawnchorus.perf.peers.raw_server echo ENDPOINT REPLY_BYTES [FILE]

`storm` waits in a blocking receive, the cheapest way there is to serve one peer, and gives so many replies in turn,
each of bytes of its own, so that no cache holds them all. `echo` sits in a uvloop loop as a fragment node does, and
answers each request with one agent's bytes; with a FILE it writes and syncs a block of it before each answer, which is
the least that a durable save can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
from pathlib import Path

import uvloop
import zmq

from ...wire.transport.sockets import SocketOwner
from ..harness.disk import SyncedFile

__all__ = ["UNCOPIED", "descriptor", "has_input", "serve_echo", "serve_storm"]


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """Return the descriptor that an event loop watches for a socket."""
    return int(socket.getsockopt(zmq.FD))


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Return whether a message waits: to be asked again after every send and receive, until it says no."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


UNCOPIED = b"u"
"""First byte of a request whose reply is to be sent without a copy; otherwise pyzmq copies it, as it does by itself."""


def serve_storm(endpoint: str, reply_bytes: int, replies_kept: int) -> None:
    """Answer every request with the next of the frames, until the process is ended."""
    with SocketOwner() as owner:
        replies = owner.router()
        replies.bind(endpoint)
        frames = itertools.cycle([random.randbytes(reply_bytes) for _ in range(replies_kept)])
        while True:
            peer, request = replies.recv_multipart()
            replies.send_multipart([peer, next(frames)], copy=not request.startswith(UNCOPIED))


async def serve_echo(endpoint: str, reply_bytes: int, synced_file: Path | None = None) -> None:
    """Serve the same on an event loop: drain, answer, and look again, since the socket's descriptor is edge-triggered.

    See ZMQ_FD in zmq_getsockopt(3).
    """
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(SocketOwner())
        file = stack.enter_context(SyncedFile(synced_file)) if synced_file is not None else None
        replies = owner.router()
        replies.bind(endpoint)
        reply = b"\xa5" * reply_bytes

        def answer_all() -> None:
            while has_input(replies):
                peer, _request = replies.recv_multipart(zmq.NOBLOCK)
                if file is not None:
                    file.write_and_sync()
                replies.send_multipart([peer, reply], zmq.NOBLOCK)

        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor(replies), answer_all)
        loop.call_soon(answer_all)
        await loop.create_future()


def main() -> None:
    role, endpoint, reply_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if role == "storm":
        serve_storm(endpoint, reply_bytes, int(sys.argv[4]))
    else:
        synced_file = Path(sys.argv[4]) if len(sys.argv) > 4 else None
        uvloop.run(serve_echo(endpoint, reply_bytes, synced_file))


if __name__ == "__main__":
    main()
