"""Holds processes by SIGSTOP, for good or so that each gets a share of a core, until it ends; started by `signals`.

    python hold.py SHARE PERIOD_MS PID...

A process of its own, tied to the harness: should that be killed outright, its nodes still run on, see the end of their
standard input and end; a stopped one would see nothing and stay for ever. It imports nothing of the package, so that it
is up within 20 ms. It writes one line as soon as they are held (with a share: as soon as it counts), and ends with
SIGTERM.

A share is one of CPU time, as a quota of cgroups has it, not of time: a process that finds no core free loses nothing,
and what one has used too much, because a busy machine let it be stopped late, is taken from it afterwards.
"""

from __future__ import annotations

import glob
import os
import signal
import sys
import time
from collections.abc import Sequence

__all__ = ["HOLDING"]

HOLDING = b"holding\n"

LOOKS = 20
"""At each process in a period: with one of 20 ms every millisecond, which costs a twentieth of a core."""

DEBT_MAX = 5.0
"""The most that a process may owe, in what it may use in a period: it is held for five periods, about a deadline."""


class _Held:
    """One process, and how much CPU time it may use before it is held."""

    def __init__(self, pid: int) -> None:
        # A pidfd is of this one process for ever: no number given anew to somebody else can be hit.
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        # The CPU clock of another process (clock_getcpuclockid(3), which Python lacks): MAKE_PROCESS_CPUCLOCK of
        # linux/posix-timers.h with CPUCLOCK_SCHED, nanoseconds of all its threads together.
        self._clock = (~pid << 3) | 2
        self._used_s = time.clock_gettime(self._clock)
        self._may_s = 0.0
        self._stopped = False

    def send(self, what: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        try:
            signal.pidfd_send_signal(self._pidfd, what)
        except ProcessLookupError:
            pass  # it has ended meanwhile

    def runs(self) -> bool:
        """Return whether a thread of it still runs: one that does sees a SIGSTOP a moment after it was sent."""
        return any(state not in b"TtXZ" for state in _states(self._pid))

    def look(self, gained_s: float, quota_s: float) -> None:
        """Let it use so much more, and hold it or let it go."""
        try:
            used_s = time.clock_gettime(self._clock)
        except OSError:
            return  # it has ended meanwhile
        may_s = min(quota_s, self._may_s + gained_s) - (used_s - self._used_s)
        self._may_s, self._used_s = max(-DEBT_MAX * quota_s, may_s), used_s
        if not self._stopped and may_s <= 0:
            self._stopped = True
            self.send(signal.SIGSTOP)
        elif self._stopped and may_s >= quota_s / 2:
            # Not at the first microsecond: it is to come to something before it is held again.
            self._stopped = False
            self.send(signal.SIGCONT)


def _states(pid: int) -> list[bytes]:
    """Return the state of each thread of a process, a letter of proc_pid_stat(5); none if the process has ended."""
    states: list[bytes] = []
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        try:
            with open(path, "rb") as stat:
                # Behind the name, which stands in parentheses and may hold any byte.
                states.append(stat.read().rpartition(b") ")[2][:1])
        except (FileNotFoundError, ProcessLookupError):
            pass  # this thread has ended meanwhile
    return states


def hold(pids: Sequence[int], share: float, period_s: float) -> None:
    """Hold the processes until SIGTERM or SIGINT; each gets `share` of a core, within each period or a few of them."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    _run_first()
    held = [_Held(pid) for pid in pids]
    try:
        if not share:
            for process in held:
                process.send(signal.SIGSTOP)
            while any(process.runs() for process in held):
                if signal.sigtimedwait(ends, 0.0005):
                    return
        os.write(1, HOLDING)
        looked_s = time.monotonic()
        while not signal.sigtimedwait(ends, period_s / LOOKS):
            before_s, looked_s = looked_s, time.monotonic()
            for process in held if share else ():
                process.look(share * (looked_s - before_s), share * period_s)
    finally:
        for process in held:
            process.send(signal.SIGCONT)


def _run_first() -> None:
    """Be let run as soon as it is time, where that is permitted (root): a late SIGSTOP is a burst of the process."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass  # bursts are then as short as a busy machine makes them


if __name__ == "__main__":
    hold([int(pid) for pid in sys.argv[3:]], float(sys.argv[1]), float(sys.argv[2]) / 1_000)
