"""Holds processes by SIGSTOP, all the time or in slices, and lets them go when it ends; started by `signals`.

    python hold.py RUNNING_MS PERIOD_MS PID...

A process of its own, tied to the harness: should that be killed outright, its nodes still run on, see the end of their
standard input and end; a stopped one would see nothing and stay for ever. It imports nothing of the package, so that it
is up within 20 ms. It writes one line as soon as they are held, and ends with SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

__all__ = ["HOLDING"]

HOLDING = b"holding\n"

PAUSES_MAX = 5.0
"""The longest pause, in pauses meant: 90 ms where 2 ms of 20 are, about a deadline."""


def hold(pids: Sequence[int], running_s: float, period_s: float) -> None:
    """Hold the processes until SIGTERM or SIGINT; in each period they run for `running_s`, at its end.

    On a busy machine a slice ends late. The pause after it is then as much longer, so that the share of the time stays
    what it is meant to be.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    _run_first()
    # A pidfd is of this one process for ever: no number given anew to somebody else can be hit.
    held = [os.pidfd_open(pid) for pid in pids]
    try:
        _send(held, signal.SIGSTOP)
        os.write(1, HOLDING)
        pause_s = period_s - running_s
        while not signal.sigtimedwait(ends, pause_s):
            if running_s:
                began_s = time.monotonic()
                _send(held, signal.SIGCONT)
                if signal.sigtimedwait(ends, running_s):
                    return
                _send(held, signal.SIGSTOP)
                ran_s = time.monotonic() - began_s
                pause_s = min(PAUSES_MAX, ran_s / running_s) * (period_s - running_s)
    finally:
        _send(held, signal.SIGCONT)


def _run_first() -> None:
    """Be let run as soon as a slice is over, where that is permitted (root): a late SIGSTOP lengthens the slice."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass  # slices are then as exact as a busy machine makes them


def _send(held: Sequence[int], what: signal.Signals) -> None:
    for pidfd in held:
        try:
            signal.pidfd_send_signal(pidfd, what)
        except ProcessLookupError:
            pass  # it has ended meanwhile


if __name__ == "__main__":
    hold([int(pid) for pid in sys.argv[3:]], float(sys.argv[1]) / 1_000, float(sys.argv[2]) / 1_000)
