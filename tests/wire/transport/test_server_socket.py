"""The socket of a server: its reports of ended connections, and that closing it leaves nothing."""

import asyncio
import socket
from pathlib import Path

import pytest

from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.wire.errors import DataDirectoryError
from dawnchorus.wire.transport.server_socket import ServerSocket
from dawnchorus.wire.transport.sockets import SocketOwner, bind

PATIENCE_S = 20.0

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
"""The greeting of a ZeroMQ peer (ZMTP 3.0, rfc.zeromq.org/spec/23)."""


@pytest.mark.parametrize("way", ["tcp", "ipc"])
async def test_end_of_connection_is_reported_once_peer_left(way: str, tmp_path: Path) -> None:
    came, ended = asyncio.Event(), asyncio.Event()
    endpoints = {"tcp": f"tcp://127.0.0.1:{free_ports(1)[0]}", "ipc": f"ipc://{tmp_path}/s"}
    serving = ServerSocket(endpoints["tcp"], endpoints["ipc"])
    try:
        serving.bind()
        serving.open_channel(asyncio.get_running_loop(), lambda _messages: came.set(), ended.set)
        with SocketOwner() as owner:
            owner.dealer(endpoints[way]).send(b"hello")
            async with asyncio.timeout(PATIENCE_S):
                await came.wait()
            assert not ended.is_set()
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    finally:
        serving.close()
        serving.close()


async def test_taken_endpoint_leaves_nothing_bound(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    first = ServerSocket(f"tcp://127.0.0.1:{port}")
    try:
        first.bind()
        second = ServerSocket(f"tcp://127.0.0.1:{port}", f"ipc://{tmp_path}/s")
        with pytest.raises(DataDirectoryError, match=str(port)):
            second.bind()
        assert not list(tmp_path.iterdir())
        second.close()
    finally:
        first.close()


def test_unread_connection_events_delay_no_peer() -> None:
    # While a node's loop is busy: a monitor with libzmq's usual limits is full by then, and its thread waits for room.
    port = free_ports(1)[0]
    with SocketOwner() as owner, SocketOwner() as other:
        replies, monitor = owner.monitored_router()
        bind(replies, f"tcp://127.0.0.1:{port}")
        for _ in range(2_600):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as passing:
                passing.sendall(GREETING)
                passing.recv(64)
        other.dealer(f"tcp://127.0.0.1:{port}").send(b"hello")
        assert replies.poll(int(PATIENCE_S * 1_000))
        assert replies.recv_multipart()[1] == b"hello"
        owner.close_monitored(replies, monitor)
