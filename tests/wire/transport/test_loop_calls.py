"""Calls of threads: they reach the loop in order while it lives, and are dropped silently after that."""

import asyncio
import threading
from functools import partial

from dawnchorus.wire.transport.loop_calls import LoopCalls
from tests.support.raw_nodes import until


async def test_calls_of_a_thread_come_in_order() -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    called: list[tuple[int, int]] = []

    def note(number: int) -> None:
        called.append((number, threading.get_ident()))

    def work() -> None:
        for number in range(1_000):
            calls.call(partial(note, number))

    thread = threading.Thread(target=work)
    thread.start()
    await until(lambda: len(called) == 1_000)
    thread.join()
    assert called == [(number, threading.get_ident()) for number in range(1_000)]


async def test_pending_calls_are_dropped_on_close() -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    called: list[int] = []
    calls.call(lambda: called.append(1))
    calls.close()
    calls.call(lambda: called.append(2))
    await asyncio.sleep(0.01)
    assert called == []


def test_call_to_an_ended_loop_is_dropped_silently() -> None:
    async def make() -> LoopCalls:
        calls = LoopCalls(asyncio.get_running_loop())
        calls.close()
        return calls

    calls = asyncio.run(make())
    errors: list[BaseException] = []

    def work() -> None:
        try:
            calls.call(list)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
