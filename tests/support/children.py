"""The child processes that a test leaves behind.

Others may be there: a cluster that all tests of a session share, or what Python keeps for its process pools.
"""

import psutil

__all__ = ["children_left", "note_children"]

_before: set[psutil.Process] = set()


def note_children() -> None:
    """Take note of the children that are there before a test."""
    _before.clear()
    _before.update(psutil.Process().children(recursive=True))


def children_left() -> list[psutil.Process]:
    """Return the children that have come since."""
    return [child for child in psutil.Process().children(recursive=True) if child not in _before]
