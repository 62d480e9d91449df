"""File descriptors: how many this process may have, how many it has, and whether some are left.

A process may have RLIMIT_NOFILE of them, the soft limit, which it may itself raise to the hard one (getrlimit(2)). Each
connection takes one, each ZeroMQ socket one more. libzmq ends the entire process if it finds none in the wrong place
(docs/decisions/0009), so they are counted beforehand.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

from .errors import ClusterUnavailable

__all__ = ["Reserve", "count_descriptors", "descriptors_max", "lowest_free", "raise_limit", "require_descriptors"]

_LIMIT_MAX: Final = 1 << 20
"""No more than this is asked for: some containers have a hard limit of a billion, and programs that close them all."""


def descriptors_max() -> int:
    """Return how many descriptors this process may have."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _LIMIT_MAX)


def raise_limit() -> int:
    """Raise the soft limit to the hard one, as far as that may be; return the limit that counts now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _LIMIT_MAX)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems have another limit, below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return descriptors_max()


def count_descriptors() -> int:
    """Return how many descriptors this process has; 0.4 ms for a thousand."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(directory)) - 1  # one was that of the listing
    return descriptors_max()  # not even that one was available


def lowest_free() -> int:
    """Return the lowest descriptor that is free, the limit if none is; 2 us.

    The kernel gives out the lowest, so that this one says: all below are in use.
    """
    try:
        free = _take_one()
    except OSError:
        return descriptors_max()
    os.close(free)
    return free


def require_descriptors(count: int) -> None:
    """Make sure that so many descriptors are free.

    Raises:
        ClusterUnavailable: they are not; it names the limit and what to do.
    """
    taken: list[int] = []
    try:
        while len(taken) < count:
            taken.append(_take_one())
    except OSError as error:
        raise ClusterUnavailable(
            f"no descriptors are left for a connection ({error.strerror}): this process may have {descriptors_max():,} "
            "open files; close some, or raise the limit (`ulimit -n`, LimitNOFILE=)"
        ) from error
    finally:
        for descriptor in taken:
            os.close(descriptor)


class Reserve:
    """Descriptors that are held so that nothing else in this process takes them, until they are needed."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def __len__(self) -> int:
        return len(self._held)

    def take(self, count: int) -> None:
        """Hold so many, or as many as there are."""
        with contextlib.suppress(OSError):
            while len(self._held) < count:
                self._held.append(_take_one())

    def release(self) -> None:
        """Give them back: they are needed now, or the process ends."""
        while self._held:
            os.close(self._held.pop())


def _take_one() -> int:
    return os.open("/", os.O_RDONLY | os.O_CLOEXEC)
