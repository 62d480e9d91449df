"""Threads that share pieces of work, for a thread that waits."""

import threading
import time
from functools import partial

import pytest

from dawnchorus.nodes.worker_threads import Helpers
from tests.support.raw_nodes import PATIENCE_S


def test_pieces_run_in_parallel_and_are_awaited() -> None:
    helpers = Helpers(3, "helper")
    together = threading.Barrier(3)
    done: list[str] = []

    def piece() -> None:
        together.wait(PATIENCE_S)
        done.append(threading.current_thread().name)

    for _ in range(2):
        helpers.run([piece] * 3)
    assert len(done) == 6
    assert set(done) <= {"helper-0", "helper-1", "helper-2"}
    helpers.stop()


def test_more_pieces_than_threads_wait_their_turn() -> None:
    helpers, done = Helpers(2, "helper"), list[int]()
    helpers.run([partial(done.append, number) for number in range(100)])
    assert sorted(done) == list(range(100))
    helpers.stop()


def test_error_of_a_piece_is_raised_after_all() -> None:
    helpers, done = Helpers(2, "helper"), list[int]()

    def fail() -> None:
        raise LookupError("lost")

    def slow() -> None:
        time.sleep(0.01)
        done.append(1)

    with pytest.raises(LookupError, match="lost"):
        helpers.run([fail, slow, slow])
    assert done == [1, 1]
    helpers.run([slow])
    assert done == [1, 1, 1]
    helpers.stop()


def test_threads_are_gone_after_stop() -> None:
    helpers = Helpers(2, "short-lived")
    helpers.run([lambda: None])
    helpers.stop()
    end = time.monotonic() + PATIENCE_S
    while any(thread.name.startswith("short-lived") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.001)
