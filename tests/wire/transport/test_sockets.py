"""Sockets: their limits are set, and none outlives its owner, even if its making failed halfway."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.wire.errors import ClusterUnavailable, DataDirectoryError
from dawnchorus.wire.protocol.limits import FRAME_BYTES_MAX
from dawnchorus.wire.transport.sockets import (
    BROKEN_EVENTS,
    NODE_RECEIVE_FRAMES_MAX,
    NODE_SEND_FRAMES_MAX,
    SocketOwner,
    bind,
    remove_ipc_file,
)

PATIENCE_MS = 30_000


def end_within_patience(action: Callable[[], None]) -> None:
    """Run a function that must not hang: a context that cannot end would hang the entire run."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(PATIENCE_MS / 1_000)
    assert not thread.is_alive(), "it does not end"


def test_both_sockets_limit_memory_of_one_peer(short_directory: Path) -> None:
    with SocketOwner() as owner:
        router, dealer = owner.router(), owner.dealer(f"ipc://{short_directory}/x")
        for made in (router, dealer):
            assert made.getsockopt(zmq.MAXMSGSIZE) == FRAME_BYTES_MAX
            assert made.getsockopt(zmq.TCP_KEEPALIVE) == 1
            assert made.getsockopt(zmq.TCP_KEEPALIVE_IDLE) == made.getsockopt(zmq.TCP_KEEPALIVE_INTVL) == 1
            assert 0 <= int(made.getsockopt(zmq.LINGER)) < 1_000
            assert 0 < int(made.getsockopt(zmq.RCVHWM)) <= 4_096
        assert router.getsockopt(zmq.SNDHWM) == NODE_SEND_FRAMES_MAX
        assert router.getsockopt(zmq.RCVHWM) == NODE_RECEIVE_FRAMES_MAX
        assert dealer.getsockopt(zmq.SNDHWM) == 4_096
        assert router.getsockopt(zmq.TCP_MAXRT) == 3_000
        assert dealer.getsockopt(zmq.TCP_MAXRT) == 60_000, "longer than a busy node receives nothing"


def test_no_socket_uses_libzmqs_heartbeats_or_reconnects(short_directory: Path) -> None:
    with SocketOwner() as owner:
        dealer, monitor = owner.monitored_dealer(f"ipc://{short_directory}/x")
        for made in (owner.router(), owner.dealer(f"ipc://{short_directory}/x"), dealer, monitor):
            # These can end a process by libzmq's own assertions: docs/decisions/0009.
            assert made.getsockopt(zmq.HEARTBEAT_IVL) == 0
            assert made.getsockopt(zmq.HEARTBEAT_TTL) == 0
        assert dealer.getsockopt(zmq.RECONNECT_IVL) == -1


def test_oversized_frame_costs_only_its_senders_connection(short_directory: Path) -> None:
    endpoint = f"ipc://{short_directory}/x"
    with SocketOwner() as owner, SocketOwner() as other:
        replies = owner.router()
        bind(replies, endpoint)
        offender, bystander = other.dealer(endpoint), other.dealer(endpoint)
        bystander.send(b"before")
        assert replies.recv_multipart()[1] == b"before"
        offender.send(b"x" * (FRAME_BYTES_MAX + 1))
        with contextlib.suppress(zmq.Again):  # its connection may be gone already, and is not made anew
            offender.send(b"small", zmq.NOBLOCK)
        bystander.send(b"after")
        assert replies.poll(PATIENCE_MS)
        assert replies.recv_multipart()[1] in (b"after", b"small")
        bystander.send(b"x" * FRAME_BYTES_MAX)
        while True:
            assert replies.poll(PATIENCE_MS)
            if len(replies.recv_multipart()[1]) == FRAME_BYTES_MAX:
                break


def test_sending_to_unreachable_peer_is_an_error() -> None:
    with SocketOwner() as owner, pytest.raises(zmq.ZMQError, match="Host unreachable"):
        owner.router().send_multipart([b"nobody", b"frame"])


def test_an_endpoint_in_use_is_one_clear_error(short_directory: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with SocketOwner() as owner:
        bind(owner.router(), endpoint)
        with pytest.raises(
            DataDirectoryError, match=f"cannot bind {endpoint}: Address already in use.*; end the process"
        ):
            bind(owner.router(), endpoint)


@pytest.mark.parametrize("endpoint", ["tcp://192.0.2.1:9", "ipc:///no/such/directory/x", "x"])
def test_unavailable_endpoint_is_one_clear_error(endpoint: str) -> None:
    with SocketOwner() as owner, pytest.raises(DataDirectoryError, match=r"cannot bind .* in topology\.toml"):
        bind(owner.router(), endpoint)


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_endpoint_is_available_after_its_owner_closed(kind: str, short_directory: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}" if kind == "tcp" else f"ipc://{short_directory}/x"
    for _ in range(3):
        with SocketOwner() as owner:
            bind(owner.router(), endpoint)
        remove_ipc_file(endpoint)
        remove_ipc_file(endpoint)
        assert not list(short_directory.iterdir())


def test_failing_connect_is_reported_and_its_socket_closed() -> None:
    def make() -> None:
        with SocketOwner() as owner, pytest.raises(ClusterUnavailable, match="cannot connect to nonsense"):
            owner.dealer("nonsense")

    end_within_patience(make)


def test_an_owner_ends_with_everything_still_unsent(short_directory: Path) -> None:
    def make() -> None:
        with SocketOwner() as owner:
            requests, monitor = owner.monitored_dealer(f"ipc://{short_directory}/nobody")
            for _ in range(100):
                requests.send(b"x" * 100_000)
            replies = owner.router()
            bind(replies, f"ipc://{short_directory}/x")
        assert requests.closed
        assert monitor.closed
        assert replies.closed

    end_within_patience(make)


def test_frames_in_flight_are_sent_before_socket_closes(short_directory: Path) -> None:
    with SocketOwner() as node:
        replies = node.router()
        bind(replies, f"ipc://{short_directory}/x")
        with SocketOwner() as router:
            requests = router.dealer(f"ipc://{short_directory}/x")
            requests.send(b"first")
            assert replies.poll(PATIENCE_MS)
            replies.recv_multipart()
            for number in range(14):  # as many as the node's socket buffers while nothing receives
                requests.send(bytes([number]) * 50_000)
        for number in range(14):
            assert replies.poll(PATIENCE_MS)
            assert replies.recv_multipart()[1] == bytes([number]) * 50_000


def test_monitor_reports_failed_attempt(short_directory: Path) -> None:
    for endpoint in (f"ipc://{short_directory}/nobody", f"tcp://127.0.0.1:{free_ports(1)[0]}"):
        with SocketOwner() as owner:
            requests, monitor = owner.monitored_dealer(endpoint)
            assert monitor.poll(PATIENCE_MS)
            assert parse_monitor_message(monitor.recv_multipart())["event"] & BROKEN_EVENTS
            assert not monitor.poll(100), "it is not tried again"
            owner.close_monitored(requests, monitor)


def test_monitor_reports_broken_connection(short_directory: Path) -> None:
    endpoint = f"ipc://{short_directory}/x"
    with SocketOwner() as owner:
        with SocketOwner() as node:
            bind(node.router(), endpoint)
            requests, monitor = owner.monitored_dealer(endpoint)
            requests.send(b"x")
            assert not monitor.poll(100)
        assert monitor.poll(PATIENCE_MS)
        assert parse_monitor_message(monitor.recv_multipart())["event"] & BROKEN_EVENTS
        owner.close_monitored(requests, monitor)
