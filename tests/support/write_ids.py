"""Write ids for writes made by hand: a shard's log knows each again, so that no two may share one."""

import itertools

__all__ = ["new_write_id"]

_numbers = itertools.count(1)


def new_write_id() -> bytes:
    """Return a write id that no other write has."""
    return b"write %d" % next(_numbers)
