"""The runner of a command's coroutine: on uvloop, cancelled by Ctrl-C and SIGTERM, blocking calls in threads."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import uvloop

from ...nodes.ends import handle_ends

__all__ = ["EXIT_TERMINATED", "in_thread", "run"]

EXIT_TERMINATED: Final = 143

P = ParamSpec("P")
T = TypeVar("T")


def run(command: Coroutine[Any, Any, int]) -> int:
    """Run a command to its exit code; SIGTERM cancels it as Ctrl-C does, so that it can clean up.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the command has ended.
    """
    terminated = False

    async def supervise() -> int:
        nonlocal terminated
        task = asyncio.ensure_future(command)

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        loop = asyncio.get_running_loop()
        handled = handle_ends(loop, terminate, [signal.SIGTERM])
        try:
            return await task
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(supervise())
        except asyncio.CancelledError:
            if terminated:
                return EXIT_TERMINATED
            raise


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that may block (a read from a terminal, a write to a pipe) without stopping the loop.

    The thread is a daemon, unlike those of `asyncio.to_thread`: Ctrl-C ends the process although nobody types another
    line or reads the pipe. `function` must therefore hold no lock that the end of the interpreter needs: `os.read` and
    `os.write` hold none, `sys.stdin` and `sys.stdout` do.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():  # The caller was cancelled meanwhile.
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # Everything belongs to the caller, who awaits it.
            failure = error
        try:
            loop.call_soon_threadsafe(deliver, result, failure)
        except RuntimeError:
            return  # The loop has been closed: nobody waits any more.

    threading.Thread(target=work, name=f"dawnchorus {getattr(function, '__name__', 'call')}", daemon=True).start()
    return await future
