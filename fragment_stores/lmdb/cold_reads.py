"""Reads of pages that are not in memory: noticed in the loop, which must not wait, and left to threads.

A warm read costs a microsecond an agent, a page that has to be read from the disk a hundred, and milliseconds while
others are read. Telling them apart costs as much as the warm read itself (mincore(2), 1 us a page), so it is done
only while there is reason to: for SUSPICION_S after a read was slow and the kernel says that it has waited for a page
(ru_majflt of getrusage(2)). Until then the watch of `_lookup.c` ends a lookup that begins to wait.

A cold read is not done by these threads: they read its pages into memory, many at once, and the loop reads again.
"""

from __future__ import annotations

import itertools
import queue
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

__all__ = ["CHECKS", "SLOW_S", "ColdReads"]

THREADS: Final = 4
"""Each has up to 128 pages on their way (READS_AHEAD of _lookup.c)."""

SUSPICION_S: Final = 1.0
CHECKS: Final = 16
"""Agents of a read whose pages are looked for, evenly spread: 20 us, and one read in five that is a tenth cold passes;
the watch ends that one."""

SLOW_S: Final = 0.000_08
"""A read that takes longer may have waited for a page, or for the processor; one of many agents always does."""

_Job = tuple[int, int, "Future[Any]", Callable[[], Any]]


class ColdReads:
    """The watch over the reads of one loop, and its threads, from the first cold read on."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._started = False
        self._lock = threading.Lock()
        self.suspicious_until = 0.0
        """Until when reads have to look beforehand, for CHECKS agents, whether their pages are in memory."""
        self._faults = 0

    def note_slow(self, now: float) -> None:
        """Suspect the reads that come, if the slow one that ended now has waited for a page."""
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        if faults > self._faults:
            self._faults = faults
            self.suspicious_until = now + SUSPICION_S

    def submit(self, size: int, work: Callable[[], Any]) -> Future[Any]:
        """Let a thread do some work, before all that is larger; the future is done with its result."""
        self.suspicious_until = time.monotonic() + SUSPICION_S
        return self.run(size, work)

    def run(self, size: int, work: Callable[[], Any]) -> Future[Any]:
        """Let a thread do work that has met no cold page; the future is done with its result."""
        with self._lock:
            if not self._started:
                self._started = True
                for number in range(self._threads):
                    # No pool of concurrent.futures, for which an exit waits: a hanging disk must not keep a node.
                    threading.Thread(target=self._work, name=f"cold-reads-{number}", daemon=True).start()
        future: Future[Any] = Future()
        self._jobs.put((size.bit_length(), next(self._numbers), future, work))
        return future

    def _work(self) -> None:
        while True:
            _, _, future, work = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, work
