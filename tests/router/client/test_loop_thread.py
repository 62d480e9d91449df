"""The loop in a thread: calls of many threads begin together, each returns, and none waits for ever."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from dawnchorus import ClusterUnavailable, WrongLoopError
from dawnchorus.router.client.loop_thread import Call, LoopThread

LONG_S = 30.0


class Resource:
    """The resource that is open in the thread."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.open = False
        self.cancelled = 0

    async def double(self, number: int) -> int:
        return 2 * number

    async def fail(self) -> None:
        raise ValueError("as asked")

    async def forever(self) -> None:
        try:
            await asyncio.sleep(10 * LONG_S)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@contextlib.asynccontextmanager
async def resource() -> AsyncGenerator[Resource]:
    made = Resource()
    made.open = True
    try:
        yield made
    finally:
        made.open = False


@pytest.fixture
def thread() -> Generator[LoopThread[Resource]]:
    with started() as made:
        yield made


@contextlib.contextmanager
def started(grace_s: float = 5.0, close_s: float = 2.0) -> Generator[LoopThread[Resource]]:
    made = LoopThread(resource, "tested", grace_s=grace_s, close_s=close_s)
    made.start(LONG_S)
    try:
        yield made
    finally:
        made.close()
    assert not made.resource.open


def test_call_returns_and_raises_as_its_function(thread: LoopThread[Resource]) -> None:
    assert thread.run(thread.resource.double, 21, limit_s=LONG_S) == 42
    with pytest.raises(ValueError, match="as asked"):
        thread.run(thread.resource.fail, limit_s=LONG_S)


def test_calls_of_many_threads_get_own_results(thread: LoopThread[Resource]) -> None:
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        results[number] = [thread.run(thread.resource.double, number, limit_s=LONG_S) for _ in range(50)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == {number: [2 * number] * 50 for number in range(32)}


def test_calls_behind_busy_loop_begin_in_one_turn(thread: LoopThread[Resource]) -> None:
    busy, held, begun = threading.Event(), threading.Event(), list[int]()
    turn = 0

    async def hold() -> None:
        nonlocal turn
        busy.set()
        held.wait(LONG_S)
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    def count() -> None:
        nonlocal turn
        turn += 1

    async def note() -> None:
        begun.append(turn)

    workers = [threading.Thread(target=thread.run, args=(hold,), kwargs={"limit_s": LONG_S})]
    workers[0].start()
    assert busy.wait(LONG_S)
    workers += [threading.Thread(target=thread.run, args=(note,), kwargs={"limit_s": LONG_S}) for _ in range(20)]
    for worker in workers[1:]:
        worker.start()
    while thread.calls_waiting < 20:
        time.sleep(0.001)
    held.set()
    for worker in workers:
        worker.join()
    assert len(begun) == 20
    assert len(set(begun)) == 1


def test_close_ends_calls_under_way_and_rejects_others() -> None:
    errors: list[BaseException] = []
    begun = threading.Event()
    with started(close_s=0.05) as thread:

        async def forever() -> None:
            begun.set()
            await thread.resource.forever()

        def work() -> None:
            try:
                thread.run(forever, limit_s=LONG_S)
            except ClusterUnavailable as error:
                errors.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        assert begun.wait(LONG_S)
        thread.close()
        worker.join(LONG_S)
        assert [str(error) for error in errors] == ["the cluster was closed"]
        with pytest.raises(ClusterUnavailable, match="was closed"):
            thread.run(thread.resource.double, 1, limit_s=LONG_S)
        thread.close()  # a second close does nothing


def test_call_from_within_loop_is_rejected(thread: LoopThread[Resource]) -> None:
    async def within() -> str:
        with pytest.raises(WrongLoopError, match="would wait for itself"):
            thread.run(thread.resource.double, 1, limit_s=LONG_S)
        return "told"

    assert thread.run(within, limit_s=LONG_S) == "told"


def test_wait_for_stuck_loop_ends() -> None:
    release = threading.Event()

    async def stuck() -> None:
        release.wait(LONG_S)

    with started(grace_s=0.02) as thread:
        with pytest.raises(ClusterUnavailable, match="did not come to a call within"):
            thread.run(stuck, limit_s=0.01)
        release.set()
        assert thread.run(thread.resource.double, 4, limit_s=LONG_S) == 8, "it serves again"


def test_failed_opening_raises_and_leaves_no_thread() -> None:
    class Failing(contextlib.AbstractAsyncContextManager[None]):
        async def __aenter__(self) -> None:
            raise ClusterUnavailable("no node answers")

        async def __aexit__(self, *_: object) -> None:
            pass

    before = threading.active_count()
    thread = LoopThread(Failing, "failing")
    with pytest.raises(ClusterUnavailable, match="no node answers"):
        thread.start(LONG_S)
    assert threading.active_count() == before


def test_interrupted_call_is_cancelled_and_its_neighbours_return(thread: LoopThread[Resource]) -> None:
    """A KeyboardInterrupt in the main thread, while other threads wait in the same rows."""
    go = threading.Event()
    results: list[int] = []

    async def when_told(number: int) -> int:
        await asyncio.get_running_loop().run_in_executor(None, go.wait, LONG_S)
        return number

    def work(number: int) -> None:
        results.append(thread.run(when_told, number, limit_s=LONG_S))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for worker in workers:
        worker.start()
    main = threading.get_ident()
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        thread.run(thread.resource.forever, limit_s=LONG_S)
    go.set()
    for worker in workers:
        worker.join(LONG_S)
    assert sorted(results) == list(range(12))
    while not thread.resource.cancelled:
        time.sleep(0.001)


def test_abandoned_call_releases_next_call_in_row(thread: LoopThread[Resource]) -> None:
    first, second, third = (Call(thread.resource.double, (1,)) for _ in range(3))
    first.behind.append(second)
    second.behind.append(third)
    second.give_up()  # before its turn
    first.end()
    assert first.wait(0)
    assert third.wait(0)
    first, second = (Call(thread.resource.double, (1,)) for _ in range(2))
    first.behind.append(second)
    first.end()
    first.give_up()  # after its turn, and before it has released the next one
    assert second.wait(0)


PROGRAM = """
import threading, time
from tests.router.client.test_loop_thread import resource
from dawnchorus.router.client.loop_thread import LoopThread
thread = LoopThread(resource, "left open", close_s=0.1)
thread.start(30.0)
def work():
    print(thread.run(thread.resource.double, 4, limit_s=30.0))
    try:
        thread.run(thread.resource.forever, limit_s=30.0)
    except Exception as error:
        print(error)
worker = threading.Thread(target=work, daemon=True)
worker.start()
while not thread.resource.open or not thread._under_way:
    time.sleep(0.001)
"""


def test_interpreter_ends_with_thread_left_open() -> None:
    ended: Any = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == "8"
