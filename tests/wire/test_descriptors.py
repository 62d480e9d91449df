"""Descriptors: they are counted, and none left is an error of ours that names the limit."""

import os
import resource
import subprocess
import sys
from collections.abc import Generator

import pytest

from dawnchorus.wire.descriptors import count_descriptors, descriptors_max, lowest_free, require_descriptors
from dawnchorus.wire.errors import ClusterUnavailable
from dawnchorus.wire.transport.sockets import SocketOwner


@pytest.fixture
def few_left() -> Generator[int]:
    """A soft limit a little above what is in use; as it was afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_opened_descriptors_are_counted() -> None:
    before = count_descriptors()
    opened = [os.open("/", os.O_RDONLY) for _ in range(5)]
    try:
        assert count_descriptors() == before + 5
        assert lowest_free() > opened[0]
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert count_descriptors() == before


def test_no_descriptor_left_is_clear_error(few_left: int) -> None:
    before = count_descriptors()
    require_descriptors(1)
    for _ in range(3):
        with pytest.raises(ClusterUnavailable, match=rf"may have {few_left:,} open files.*`ulimit -n`"):
            require_descriptors(1_000)
    assert count_descriptors() == before, "what was taken to see is given back"
    assert descriptors_max() == few_left


def test_socket_without_descriptors_is_not_begun(few_left: int) -> None:
    owner = SocketOwner()  # a fresh context, whose threads libzmq cannot start without descriptors
    taken = [
        os.open("/", os.O_RDONLY) for _ in range(few_left - count_descriptors() - 2) if lowest_free() < few_left - 2
    ]
    try:
        for _ in range(3):
            with pytest.raises(ClusterUnavailable, match="no descriptors are left"):
                owner.monitored_dealer("tcp://127.0.0.1:9")
    finally:
        for descriptor in taken:
            os.close(descriptor)
        owner.close()


def test_process_raises_soft_limit_to_hard() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512));"
        "from dawnchorus.wire.descriptors import raise_limit; print(raise_limit(), raise_limit())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["512", "512"]
