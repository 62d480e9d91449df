"""A state outside of its cluster: the content of `copy`, `deepcopy` and `pickle`.

Each kind is copied by itself, as it was stored, as if in a store of its own. Its store's time is copied too: between
copying and reviving, which may be in another process or on another host, the wall clock counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ...wire.errors import ClusterUnavailable
from ..arguments import Seconds
from .outcomes import Item
from .wake_context import KindView, WakeContext

__all__ = ["KindCopy", "revive_context", "wall_ms"]


class KindCopy(NamedTuple):
    """One kind of a state."""

    kind: str
    kept_in: str
    asked: bool
    item: Item
    """Its image with nothing else in it, or why there is none."""
    now_ms: int
    """Its store's time when it was copied."""
    type_: Any
    dec_hook: Callable[[type, Any], Any] | None
    ext_hook: Callable[[int, memoryview], Any] | None
    fallback: Any


def wall_ms() -> int:
    """Return the time of day (ms, UTC)."""
    return time.time_ns() // 1_000_000


def revive_context(kinds: Sequence[KindCopy], copied_ms: int) -> WakeContext:
    """Return the context of copied kinds; `copied_ms` is the `wall_ms` of when they were copied."""
    views = {
        copied.kind: KindView(
            place if copied.asked else -1,
            msgspec.msgpack.Decoder(copied.type_, dec_hook=copied.dec_hook, ext_hook=copied.ext_hook),
            copied.fallback,
            copied.kept_in,
        )
        for place, copied in enumerate(kinds)
    }
    context = WakeContext(views, len(kinds), _no_cluster)
    elapsed_ms = max(0, wall_ms() - copied_ms)
    for place, copied in enumerate(kinds):
        context.note_clock(place, copied.now_ms + elapsed_ms)
    return context


def _no_cluster(agent_id: str, kinds: tuple[str, ...], deadline_s: Seconds | None) -> asyncio.Future[Any]:
    """Reject a wake for a copy of a state."""
    raise ClusterUnavailable(
        f"agent {agent_id!r}: this state is a copy and belongs to no cluster; wake the agent to have {', '.join(kinds)}"
    )
