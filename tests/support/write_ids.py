"""Write ids for writes made by hand: a shard's log recognizes each, so that no two writes may share one."""

import secrets

__all__ = ["new_write_id"]


def new_write_id() -> bytes:
    """Return a write id that no other write has, nor one of which a few bits were flipped."""
    return secrets.token_bytes(16)
