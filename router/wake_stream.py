"""One caller that takes agents as they become usable.

Apart from `wakes`, which is compiled: an asynchronous generator cannot be.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from .fetching import Fetching
from .judgement import Judgement
from .parts import Group
from .state import AgentState

__all__ = ["WakeStream"]


class WakeStream:
    """One caller that takes states as they become usable."""

    def __init__(self) -> None:
        self._ready: deque[AgentState] = deque()
        self._wake_up = asyncio.Event()
        self._fetching: Fetching | None = None

    def handle_groups(self, groups: list[Group]) -> None:
        """Some groups are complete."""
        assert self._fetching is not None
        for group in groups:
            self._ready.extend(self._fetching.states(group))
        self._wake_up.set()

    async def run(self, fetching: Fetching) -> AsyncGenerator[AgentState, None]:
        """Fetch, and yield states as they come; ends by the deadline."""
        self._fetching = fetching
        timer = Judgement(fetching.deadline, self._expire)
        try:
            fetching.start()
            left = len(fetching.plan.order)
            while left:
                while self._ready:
                    left -= 1
                    yield self._ready.popleft()
                if left:
                    self._wake_up.clear()
                    await self._wake_up.wait()
        finally:
            timer.cancel()
            fetching.abandon()

    def _expire(self) -> None:
        assert self._fetching is not None
        self._fetching.catch_up()
        self._fetching.expire()
