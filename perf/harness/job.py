"""A job for a child process of the harness: an order that it reads, and an answer that it writes, both as JSON.

    parent  `start_job(module, order, ...)`: writes the order, runs the module, gives a `Job`
    child   `read_order(Order)`, and `write_answer(answer)` once or each time that there is something new

The answer is replaced complete, never written in place: its reader sees one or the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import msgspec

from .child_process import ChildFailed, check_running, child_process, python_module

__all__ = ["Job", "order_directory", "read_order", "start_job", "wait_until", "write_answer"]

_LOOK_SECONDS = 0.005
"""Between two looks at a child."""

Message = TypeVar("Message", bound=msgspec.Struct)


class Job:
    """A child at work, as its parent sees it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], answer: Path, log: Path) -> None:
        self._name = name
        self._process = process
        self._answer = answer
        self._log = log

    async def answered(self, seconds: float) -> None:
        """Wait until there is an answer.

        Raises:
            ChildFailed: it ended without one, or takes longer than that.
        """
        await wait_until(self._answer.exists, self._process, self._name, self._log, seconds)

    async def ended(self, seconds: float) -> None:
        """Wait until it has ended.

        Raises:
            ChildFailed: it failed, or takes longer than that.
        """
        give_up = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() > give_up:
                raise ChildFailed(f"{self._name} did not end within {seconds:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)
        self.require_success()

    def require_running(self) -> None:
        """Make sure that it is still at work; raises ChildFailed."""
        check_running(self._process, self._name, self._log)

    def require_success(self) -> None:
        """Make sure that it, which has ended, did not fail; raises ChildFailed."""
        if self._process.returncode:
            self.require_running()

    def answer(self, type_: type[Message]) -> Message:
        """Return the answer that is there."""
        return msgspec.json.decode(self._answer.read_bytes(), type=type_)


@contextlib.contextmanager
def start_job(module: str, name: str, order: msgspec.Struct, directory: Path) -> Generator[Job]:
    """Run a module of this package on an order while the block runs; its files are in the directory, by its name."""
    slug = name.replace(" ", "-")
    order_path, answer_path, log = (directory / f"{slug}.{kind}" for kind in ("order", "answer", "log"))
    answer_path.unlink(missing_ok=True)
    order_path.write_bytes(msgspec.json.encode(order))
    with child_process(python_module(module, str(order_path), str(answer_path)), log=log) as process:
        yield Job(name, process, answer_path, log)


async def wait_until(
    begun: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: Path, seconds: float
) -> None:
    """Wait until a child is at its work.

    Raises:
        ChildFailed: it ended, or takes longer than that.
    """
    give_up = time.monotonic() + seconds
    while not begun():
        check_running(process, name, log)
        if time.monotonic() > give_up:
            raise ChildFailed(f"{name} was not at work within {seconds:.0f} s")
        await asyncio.sleep(_LOOK_SECONDS)


def read_order(type_: type[Message]) -> Message:
    """Return the order of the job that this process is."""
    return msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=type_)


def order_directory() -> Path:
    """Return the directory of the job that this process is: temporary, and its parent's."""
    return Path(sys.argv[1]).parent


def write_answer(answer: msgspec.Struct) -> None:
    """Answer, in place of what was answered before."""
    path = Path(sys.argv[2])
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.encode(answer))
    unfinished.rename(path)
