"""Child processes that never outlive the harness: not on an error, not on Ctrl-C, not when it is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from ...wire.errors import DawnchorusError

__all__ = ["ChildFailed", "anonymous_bytes", "check_running", "child_process", "python_module", "stop"]

STOP_SECONDS = 5.0
"""How long a child may take to end by itself; a Redis with 4 GB needs about half a second to give its memory back."""

# Runs in the child before the real program: ask Linux for a SIGTERM when the parent dies (prctl(2), PR_SET_PDEATHSIG,
# which is 1; kept over exec), and leave at once if it has died already. Elsewhere there is no such call, and only a
# harness that is killed outright leaves its children.
_TIE_TO_PARENT = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 15)
except AttributeError:
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ChildFailed(DawnchorusError):
    """A process that the harness needs did not start or ended early; the message carries the end of what it wrote."""


@contextlib.contextmanager
def child_process(arguments: Sequence[str], *, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run a program while the block runs; its output goes to the file `log`.

    The child is in a session of its own: a Ctrl-C at the terminal reaches the harness alone, which then ends it.
    """
    command = [sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child: ask, wait `STOP_SECONDS`, then kill. It waits in the thread: a cancelled task ends its child too."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_running(process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    """Raise `ChildFailed` if the child has ended."""
    if process.poll() is not None:
        tail = log.read_text(errors="replace")[-2000:].strip()
        raise ChildFailed(f"{name} ended with code {process.returncode}: {tail or 'it wrote nothing'}")


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package in a fresh interpreter of the same kind."""
    return [sys.executable, "-m", module, *arguments]


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process in bytes (proc_pid_status(5)): resident memory without mapped files, so without LMDB's."""
    with Path(f"/proc/{pid}/status").open() as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} shows no RssAnon (has it ended?)")
