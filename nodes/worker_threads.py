"""Threads that share the pieces of one work, for a thread that waits until all pieces are done.

Daemon threads, unlike those of concurrent.futures, which an interpreter waits for at its end: a disk that hangs must
not keep a node from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["Helpers"]

Piece: TypeAlias = Callable[[], None]


class Helpers:
    """A fixed number of threads, from the first `run` to `stop`; used by one thread at a time."""

    def __init__(self, threads: int, name: str) -> None:
        self._names = [f"{name}-{number}" for number in range(threads)]
        self._started = False
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run(self, pieces: Sequence[Piece]) -> None:
        """Do every piece, in any order, in any thread; return when all are done.

        Raises: the error of the first piece that failed.
        """
        if not self._started:
            self._started = True
            for name in self._names:
                threading.Thread(target=self._work, name=name, daemon=True).start()
        for piece in pieces:
            self._pieces.put(piece)
        errors = [self._done.get() for _ in pieces]
        for error in errors:
            if error is not None:
                raise error

    def stop(self) -> None:
        """End the threads."""
        if self._started:
            for _ in self._names:
                self._pieces.put(None)

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                piece()
            except Exception as error:
                self._done.put(error)
            else:
                self._done.put(None)
