"""The saves of one client: named for good, brought together, sent, and sent again when their errors are asked to.

Saves of one agent each that are asked for in the same turn of the loop travel together, as wakes do; each caller is
answered as soon as its own stores are, and by its own deadline. (1,000 savers of one agent each, by themselves and in
one Commit a node: see docs/decisions.)
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from ..wire.errors import DawnchorusError, InvalidRequestError, SaveError
from ..wire.hashing import hash_agent
from ..wire.messages import Operation
from .agent_write import AgentWrite, Saved, WriteToken, parse_token
from .ids import check_agent_id
from .router import Router
from .saving import Saving

__all__ = ["Saver"]


class _Batch:
    """Saves of one agent each, asked for in one turn of the loop; each caller waits for its own."""

    __slots__ = ("deadline", "waiters")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.waiters: dict[AgentWrite, asyncio.Future[Saved]] = {}

    def fail(self, error: Exception) -> None:
        """Let every caller that still waits see this error."""
        for future in self.waiters.values():
            if not future.done():
                future.set_exception(error)
        self.waiters.clear()


class Saver:
    """The saves of one router: names each for good, sends it, and sends it again when its error is asked to."""

    def __init__(
        self,
        router: Router,
        kinds_of: Callable[[str], Sequence[str]],
        handle_acknowledged: Callable[[str, list[tuple[bytes, int]]], None],
        require_open: Callable[[], None] = lambda: None,
    ) -> None:
        """`kinds_of` gives a store's kinds; `handle_acknowledged` is told of acknowledged writes, as in `Saving`.

        `require_open` raises where nothing may be sent: an error may be asked to retry anywhere, and at any time.
        """
        self._loop = asyncio.get_running_loop()
        self._router = router
        self._kinds_of = kinds_of
        self._handle_acknowledged = handle_acknowledged
        self._require_open = require_open
        self._prefix = secrets.token_bytes(8)
        self._writes = 0
        self._seen: dict[str, int] = {}  # what the last write was told
        self._pending: dict[float, _Batch] = {}  # by budget

    def write(
        self,
        agent_id: str,
        operations: Mapping[str, list[Operation]],
        expect: Mapping[str, Mapping[str, int]] | None = None,
        write_id: str | None = None,
    ) -> AgentWrite:
        """Return a write, not sent yet; `write_id` is that of an earlier one, which it repeats.

        Raises:
            InvalidRequestError: the id, the write id or the values are outside the limits.
        """
        agent = check_agent_id(agent_id)
        if write_id is not None:
            return AgentWrite(agent_id, agent, parse_token(write_id), operations, expect, repeated=True)
        return self._new_write(agent_id, agent, hash_agent(agent), operations, expect)

    def _new_write(
        self,
        agent_id: str,
        agent: bytes,
        hashed: int,
        operations: Mapping[str, list[Operation]],
        expect: Mapping[str, Mapping[str, int]] | None = None,
    ) -> AgentWrite:
        placement = self._router.placement
        assert placement is not None
        self._writes += 1
        seen = {store: self._router.version_seen(store, hashed % len(placement.shards[store])) for store in operations}
        if seen == self._seen:
            seen = self._seen  # of a save_many all agents of a shard share one: 10,000 dictionaries less
        self._seen = seen
        token = WriteToken(self._prefix + self._writes.to_bytes(8, "big"), seen)
        return AgentWrite(agent_id, agent, token, operations, expect, hashed=hashed)

    async def save(self, write: AgentWrite, budget_s: float) -> Saved:
        """Send a write with all others of this turn of the loop; return when every store has it, within `budget_s`.

        Raises:
            SaveError: not every store has.
            ClusterUnavailable: it was closed before the turn was over; nothing was sent.
        """
        batch = self._pending.get(budget_s)
        if batch is None:
            if not self._pending:
                self._loop.call_soon(self._send)
            batch = self._pending[budget_s] = _Batch(time.monotonic() + budget_s)
        future: asyncio.Future[Saved] = self._loop.create_future()
        batch.waiters[write] = future
        return await future

    def _send(self) -> None:
        pending, self._pending = self._pending, {}
        for budget_s, batch in pending.items():
            try:
                self._send_batch(batch, budget_s)
            except Exception as error:  # a bug: nobody is to wait for ever because of it
                batch.fail(error)
                raise

    def _send_batch(self, batch: _Batch, budget_s: float) -> None:
        handle_settled = partial(self._hand_out, batch.waiters, budget_s)
        saving = Saving(self._router, batch.deadline, self._handle_acknowledged, handle_settled)
        for write in batch.waiters:
            saving.add(write)
        saving.send()
        # A write that every store had acknowledged before has no part to wait for.
        for write in [write for write in batch.waiters if not write.open_parts]:
            handle_settled(write)

    def _hand_out(self, waiters: dict[AgentWrite, asyncio.Future[Saved]], budget_s: float, write: AgentWrite) -> None:
        future = waiters.pop(write, None)
        if future is None or future.done():
            return  # its caller no longer waits
        result = self._result(write, budget_s)
        if isinstance(result, SaveError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def close(self, error: Exception) -> None:
        """Fail every save that is not sent yet."""
        pending, self._pending = self._pending, {}
        for batch in pending.values():
            batch.fail(error)

    async def save_many(
        self,
        agents: Mapping[str, Mapping[str, Any]],
        operations_of: Callable[[Mapping[str, Any]], Mapping[str, list[Operation]]],
        budget_s: float,
    ) -> dict[str, Saved | DawnchorusError]:
        """Save what is given of each agent; return by agent what became of it.

        Shard by shard, as `_by_shard` orders them: a node then commits to few shards for each message, and begins with
        the first while the next are made.
        """
        results: dict[str, Saved | DawnchorusError] = {}

        def handle_settled(write: AgentWrite) -> None:
            results[write.agent_id] = self._result(write, budget_s)

        saving = Saving(self._router, time.monotonic() + budget_s, self._handle_acknowledged, handle_settled)
        for agent_id, agent, hashed in self._by_shard(agents, results):
            try:
                write = self._new_write(agent_id, agent, hashed, operations_of(agents[agent_id]))
            except DawnchorusError as error:
                results[agent_id] = error
                continue
            saving.add(write)
        await saving.run()
        return {agent_id: results[agent_id] for agent_id in agents}

    def _by_shard(
        self, agents: Iterable[str], results: dict[str, Saved | DawnchorusError]
    ) -> Iterator[tuple[str, bytes, int]]:
        """Yield each agent's id, its UTF-8 and its hash, shard after shard, going round the nodes.

        By the shards of the store that has most: those of another are then in order as well, where the numbers divide.
        What is no agent id gets its error in `results`.
        """
        placement = self._router.placement
        assert placement is not None
        owners = max(placement.shards.values(), key=len)
        by_shard: list[list[tuple[str, bytes, int]]] = [[] for _ in owners]
        shards = len(owners)
        for agent_id in agents:
            try:
                agent = check_agent_id(agent_id)
            except InvalidRequestError as error:
                results[agent_id] = error
                continue
            hashed = hash_agent(agent)
            by_shard[hashed % shards].append((agent_id, agent, hashed))
        by_node: dict[str, list[int]] = {}
        for shard, owner in enumerate(owners):
            by_node.setdefault(owner.node, []).append(shard)
        for round_ in zip_longest(*by_node.values()):
            for shard in round_:
                if shard is not None:
                    yield from by_shard[shard]

    def _result(self, write: AgentWrite, budget_s: float) -> Saved | SaveError:
        result = write.result(self._kinds_of)
        if isinstance(result, SaveError):
            result.repeat = partial(self._repeat, write, budget_s)
        return result

    async def _repeat(self, write: AgentWrite, budget_s: float) -> Saved:
        """Send a write again; what its error's `retry` does."""
        self._require_open()
        return await self.save(write.again(), budget_s)
