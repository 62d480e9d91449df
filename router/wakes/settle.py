"""Settling of a state: kinds that its wake could not read by its deadline are asked for again, and put into it.

A wake ends at its deadline with the kinds that have come, and the agent starts with less. `AgentState.settle` completes
it later, `AgentState.fetch` brings kinds that a wake does not ask for by itself (of lazy stores). Both ask again, under
a deadline of their own, for just those kinds: nodes drop late requests, so that nothing of the first fetch is still
under way. Many states that are settled in one turn of the loop share a fetch, as wakes do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ...wire.errors import ClusterUnavailable, WrongLoopError
from ...wire.repeated_lines import limited_logger
from ..arguments import Seconds
from .wake_context import Again
from .wake_future import WakeFuture

__all__ = ["Fillable", "fill"]

_log = limited_logger(__name__)


class Fillable(Protocol):
    """A state that can be given more."""

    @property
    def agent_id(self) -> str:
        """The id of its agent."""
        ...

    def handle_asked(self, kinds: tuple[str, ...]) -> None:
        """Note that these kinds are asked for."""
        ...

    def handle_answered(self, kinds: tuple[str, ...], fresh: Any) -> None:
        """Accept the kinds that a fresher state brought; None if there is no such state."""
        ...


S = TypeVar("S", bound=Fillable)


def fill(
    state: S,
    kinds: tuple[str, ...],
    again: Again,
    deadline_s: Seconds | None,
    callback: Callable[[S], None] | None = None,
) -> asyncio.Future[S]:
    """Ask again for some kinds of a state; return a future of the state, done when they have come or by the deadline.

    `callback` is called with the state then, and also if the cluster was closed, whether anybody awaits or not.

    Raises:
        InvalidRequestError: the deadline is outside the limits.
        WrongLoopError: this is not the loop, thread or process of the state's cluster.
    Raises (when awaited):
        ClusterUnavailable: the cluster is closed.
    """
    woken: asyncio.Future[Any] | None = None
    closed: ClusterUnavailable | None = None
    if kinds:
        try:
            woken = again(state.agent_id, kinds, deadline_s)
        except ClusterUnavailable as error:
            closed = error
    try:
        done: asyncio.Future[S] = WakeFuture(loop=asyncio.get_running_loop())
    except RuntimeError as error:
        # A copy, or a state of a closed cluster, raises its own error, with or without a loop.
        elsewhere = WrongLoopError("a state is completed in the event loop of its cluster; no loop runs here")
        raise closed or elsewhere from error

    def settle(error: BaseException | None) -> None:
        if not done.done():
            if error is None:
                done.set_result(state)
            else:
                done.set_exception(error)
                done.exception()  # retrieved, so that asyncio logs nothing if nobody awaits it
        if callback is not None:
            try:
                callback(state)
            except Exception:
                _log.exception("a callback of settle fails", extra={"agent_id": state.agent_id})

    def handle_woken(woken: asyncio.Future[Any]) -> None:
        error = None if woken.cancelled() else woken.exception()
        state.handle_answered(kinds, None if error is not None or woken.cancelled() else woken.result())
        settle(error)

    if woken is None:
        settle(closed)
    else:
        state.handle_asked(kinds)
        woken.add_done_callback(handle_woken)
    return done
