"""The end of a long-running process: the signals that ask for it, and its exit code.

SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal is gone) all ask for the same. One that was ignored when the process
began stays so: that is how `nohup` and a shell's `trap ''` ask a program to live on (and how a script's background jobs
are kept from a Ctrl-C that is not meant for them).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["ENDING_SIGNALS", "EXIT_NOT_STARTED", "handle_ends"]

EXIT_NOT_STARTED: Final = 2
"""A node's exit code when its start is rejected; the reason is in the last line of its log."""

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handle_ends(
    loop: asyncio.AbstractEventLoop, end: Callable[[], object], signals: Iterable[signal.Signals] = ENDING_SIGNALS
) -> list[signal.Signals]:
    """Call `end` for each of these signals that comes; return those that are handled, not ignored."""
    handled = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, end)
    return handled
