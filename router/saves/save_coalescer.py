"""The saves of one client: given their tokens, coalesced, sent, and resent when their errors are retried.

Saves that are called in the same turn of the loop travel together, as wakes do; each caller gets its result as soon as
its own stores have answered, and by its own deadline. (1,000 savers of one agent each, one by one and in one Commit for
each node: see docs/decisions.) Saves of one agent are applied in the order of their calls (`save_order`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Final, TypeAlias

from ...wire.errors import ClusterUnavailable, DawnchorusError, InvalidRequestError, SaveError
from ...wire.protocol.messages import Operation
from ...wire.protocol.shard_hash import hash_agent
from ..ids import check_agent_id
from .agent_write import AgentWrite, Saved
from .commit_operation import CLOSED, CommitRouter, Saving
from .save_order import SaveOrder
from .write_token import WriteToken, key_digest, key_token, parse_token

__all__ = ["NewWrite", "Saver"]

_TOGETHER_MAX: Final = 256
"""The most agents of a save_many that travels with the other saves of its turn. A larger one takes turns with them."""

Result: TypeAlias = Saved | DawnchorusError
NewWrite: TypeAlias = Callable[[str, bytes, int], AgentWrite]
"""A function that makes the write of an agent, given its id, the UTF-8 of that and its hash."""


class _Many:
    """A save_many under way: the results of its agents so far."""

    __slots__ = ("_agents", "_future", "results")

    def __init__(self, agents: int, future: asyncio.Future[None]) -> None:
        self._agents = agents
        self._future = future
        self.results: dict[Any, Result] = {}

    def handle_result(self, agent_id: Any, result: Result) -> bool:
        """Receive the result of one agent, or of an invalid agent id; return whether all have arrived."""
        self.results[agent_id] = result
        if len(self.results) < self._agents:
            return False
        if not self._future.done():
            self._future.set_result(None)
        return True

    def fail(self, error: Exception) -> None:
        """Deliver this error, of a bug, to the caller that waits."""
        if not self._future.done():
            self._future.set_exception(error)


class _Batch:
    """Saves of one budget that are sent together; each caller waits for its own."""

    __slots__ = ("budget_s", "many", "saving", "waiters")

    def __init__(self, budget_s: float, saving: Callable[[_Batch], Saving]) -> None:
        self.budget_s = budget_s
        self.waiters: dict[AgentWrite, asyncio.Future[Saved] | _Many] = {}
        self.many: _Many | None = None
        """The save_many that waits for all of them, if it is alone."""
        self.saving = saving(self)

    def fail(self, error: Exception) -> None:
        """Deliver this error, of a bug, to every caller that still waits."""
        waiters, self.waiters = self.waiters, {}
        for waiter in [*waiters.values(), *([self.many] if self.many else [])]:
            if isinstance(waiter, _Many):
                waiter.fail(error)
            elif not waiter.done():
                waiter.set_exception(error)


def _deliver(waiter: asyncio.Future[Saved] | _Many, agent_id: str, result: Result) -> None:
    if isinstance(waiter, _Many):
        waiter.handle_result(agent_id, result)
    elif waiter.done():
        return  # its caller no longer waits
    elif isinstance(result, Saved):
        waiter.set_result(result)
    else:
        waiter.set_exception(result)


class Saver:
    """The saves of one router: gives each its token, sends it, and resends it when its error is retried."""

    def __init__(
        self,
        router: CommitRouter,
        kinds_of: Callable[[str], Sequence[str]],
        handle_acknowledged: Callable[[str, list[tuple[bytes, int]]], None],
        require_open: Callable[[], None] = lambda: None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kinds_of` gives a store's kinds; `handle_acknowledged` is notified of acknowledged writes, as in `Saving`.

        `require_open` raises if nothing may be sent: an error may be retried anywhere, and at any time.
        """
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._clock = clock
        self._require_open = require_open
        self._router = router
        self._kinds_of = kinds_of
        self._handle_acknowledged = handle_acknowledged
        self._prefix = secrets.token_bytes(8)
        self._writes = 0
        self._seen: dict[str, int] = {}  # of the last write
        self._order = SaveOrder()
        self._pending: dict[tuple[float, bool], _Batch] = {}  # of this turn, by budget and patience
        self._under_way: set[_Batch] = set()
        self._closed = ""

    def __len__(self) -> int:
        return len(self._under_way) + len(self._order)

    # --- writes before sending ---

    def write(
        self,
        agent_id: str,
        operations: Mapping[str, list[Operation]],
        expect: Mapping[str, Mapping[str, int]] | None = None,
        write_id: str | None = None,
    ) -> AgentWrite:
        """Return a write; `write_id` is that of an earlier one, which it repeats, or a key that its caller chose.

        Raises:
            InvalidRequestError: the id, the write id or the values are outside the limits.
        """
        agent = check_agent_id(agent_id)
        return self.new_write(agent_id, agent, hash_agent(agent), operations, expect, write_id)

    def new_write(
        self,
        agent_id: str,
        agent: bytes,
        hashed: int,
        operations: Mapping[str, list[Operation]],
        expect: Mapping[str, Mapping[str, int]] | None = None,
        write_id: str | None = None,
    ) -> AgentWrite:
        """Return a write, as `write` does, for an agent whose UTF-8 and hash are known.

        Raises:
            InvalidRequestError: the write id or the values are outside the limits.
        """
        placement = self._router.placement
        assert placement is not None
        seen = {store: self._router.version_seen(store, hashed % len(placement.shards[store])) for store in operations}
        if seen == self._seen:
            seen = self._seen  # all agents of a shard share one in a save_many: 10,000 fewer dictionaries
        self._seen = seen
        if write_id is not None:
            token = parse_token(write_id, placement.shards)
            if token is None:
                token = key_token(agent, write_id, seen)
                digest = key_digest([operation for store in operations.values() for operation in store])
                return AgentWrite(agent_id, agent, token, operations, expect, (), digest, hashed)
            if token.seen.keys() != operations.keys():
                first = ", ".join(token.seen)
                raise InvalidRequestError(
                    f"write_id is that of a save to {first}, not of these kinds; nothing was sent"
                )
            return AgentWrite(agent_id, agent, token, operations, expect, tuple(operations), hashed=hashed)
        self._writes += 1
        token = WriteToken(self._prefix + self._writes.to_bytes(8, "big"), seen)
        return AgentWrite(agent_id, agent, token, operations, expect, hashed=hashed)

    # --- sending ---

    def save(self, write: AgentWrite, budget_s: float, *, patient: bool = False) -> asyncio.Future[Saved]:
        """Send a write with all others of this turn of the loop; return a future that ends when every store has it.

        No coroutine, since the garbage collector has to track each that waits. With `patient` it waits, within
        `budget_s`, for a node that is not to be asked at the moment.

        Raises (the first at once, the other when awaited):
            ClusterUnavailable: it is closed.
            SaveError: not every store has it.
        """
        self._require_sending()
        future: asyncio.Future[Saved] = self._loop.create_future()
        # Only its node can say whether a repeated write was applied: with an error at once its caller could only
        # ask again.
        self._add(self._batch(budget_s, patient=patient or bool(write.repeated)), write, future)
        return future

    async def save_many(
        self, agents: Collection[Any], new_write: NewWrite, budget_s: float
    ) -> dict[str, Saved | DawnchorusError]:
        """Save the write that `new_write` makes for each agent; return the results by agent.

        An invalid agent id (callers are not type-checked) gets its error.

        Many agents are sent shard by shard, as `_by_shard` orders them: a node then commits to few shards for each
        message, and begins with the first while the next are made.
        """
        self._require_sending()
        future: asyncio.Future[None] = self._loop.create_future()
        many = _Many(len(agents), future)
        if len(agents) > _TOGETHER_MAX:
            batch = self._new_batch(budget_s, patient=False)
            batch.many = many
            ordered = self._by_shard(agents, many)
        else:
            batch = self._batch(budget_s, patient=False)
            ordered = _hashed(agents, many)
        for agent_id, agent, hashed in ordered:
            try:
                write = new_write(agent_id, agent, hashed)
            except DawnchorusError as error:
                many.handle_result(agent_id, error)
                continue
            except Exception as error:  # of the caller's objects: it must not delay the saves of others
                rejected = InvalidRequestError(f"agent {agent_id!r}: what it saves cannot be read: {error!r}")
                rejected.__cause__ = error
                many.handle_result(agent_id, rejected)
                continue
            if batch.many is None:
                batch.waiters[write] = many
            batch.saving.add(write)
        if batch.many is not None:
            self._send(batch)
        if agents:
            await future
        return {agent_id: many.results[agent_id] for agent_id in agents}

    def _add(self, batch: _Batch, write: AgentWrite, waiter: asyncio.Future[Saved] | _Many) -> None:
        batch.waiters[write] = waiter
        batch.saving.add(write)
        if not write.open_parts:  # every store has acknowledged an earlier attempt
            self._handle_settled(batch, write)

    def _batch(self, budget_s: float, *, patient: bool) -> _Batch:
        """Return this turn's batch of saves with this budget."""
        batch = self._pending.get((budget_s, patient))
        if batch is None:
            if not self._pending:
                self._loop.call_soon(self._send_pending)
            batch = self._pending[budget_s, patient] = self._new_batch(budget_s, patient=patient)
        return batch

    def _new_batch(self, budget_s: float, *, patient: bool) -> _Batch:
        def saving(batch: _Batch) -> Saving:
            handle_settled = partial(self._handle_settled, batch)
            deadline = self._clock() + budget_s
            return Saving(
                self._router,
                self._order,
                self._loop,
                deadline,
                self._handle_acknowledged,
                handle_settled,
                patient,
                self._clock,
            )

        return _Batch(budget_s, saving)

    def _send_pending(self) -> None:
        pending, self._pending = self._pending, {}
        failure: Exception | None = None
        for batch in pending.values():
            try:
                self._send(batch)
            except Exception as error:  # a bug: no caller may wait for ever because of it
                failure = error
        if failure is not None:
            raise failure

    def _send(self, batch: _Batch) -> None:
        self._under_way.add(batch)
        try:
            batch.saving.send()
        except Exception as error:
            batch.fail(error)
            batch.saving.end(str(error))
            raise
        finally:
            if batch.saving.is_over:
                self._under_way.discard(batch)

    def _handle_settled(self, batch: _Batch, write: AgentWrite) -> None:
        """Deliver the result of a write that no more answers can change."""
        if batch.many is not None:
            if batch.many.handle_result(write.agent_id, self._result(write, batch.budget_s)):
                self._under_way.discard(batch)
            return
        waiter = batch.waiters.pop(write, None)
        if waiter is not None:
            _deliver(waiter, write.agent_id, self._result(write, batch.budget_s))
            if not batch.waiters:
                self._under_way.discard(batch)

    def _result(self, write: AgentWrite, budget_s: float) -> Result:
        result = write.result(self._kinds_of)
        if not isinstance(result, SaveError):
            return result
        if self._closed and (write.unknown or CLOSED in write.rejected.values()):
            interrupted = write.interrupted(self._kinds_of, CLOSED)
            if interrupted is None:
                return ClusterUnavailable(f"agent {write.agent_id!r}: {CLOSED}")
            result = interrupted
        result.repeat = partial(self._repeat, write, budget_s)
        return result

    def _repeat(self, write: AgentWrite, budget_s: float) -> asyncio.Future[Saved]:
        """Resend a write, for its error's `retry`."""
        self._require_open()
        return self.save(write.again(), budget_s, patient=True)

    # --- closing ---

    def close(self, reason: str) -> None:
        """End every save: unsent ones are never sent, and whether the others were applied stays unknown."""
        self._closed = reason
        pending, self._pending = self._pending, {}
        for batch in [*pending.values(), *self._under_way]:
            batch.saving.end(CLOSED)
        self._under_way.clear()

    def _require_sending(self) -> None:
        if self._closed:
            raise ClusterUnavailable(self._closed)

    # --- shard by shard ---

    def _by_shard(self, agents: Iterable[Any], many: _Many) -> Iterator[tuple[str, bytes, int]]:
        """Yield agents as `_hashed` does, shard after shard, in turn from each node.

        By the shards of the store that has most: those of another are then in order as well, if the numbers divide.
        """
        placement = self._router.placement
        assert placement is not None
        owners = max(placement.shards.values(), key=len)
        by_shard: list[list[tuple[str, bytes, int]]] = [[] for _ in owners]
        shards = len(owners)
        for agent in _hashed(agents, many):
            by_shard[agent[2] % shards].append(agent)
        by_node: dict[str, list[int]] = {}
        for shard, owner in enumerate(owners):
            by_node.setdefault(owner.node, []).append(shard)
        for round_ in zip_longest(*by_node.values()):
            for shard in round_:
                if shard is not None:
                    yield from by_shard[shard]


def _hashed(agents: Iterable[Any], many: _Many) -> Iterator[tuple[str, bytes, int]]:
    """Yield each agent's id, its UTF-8 and its hash. An invalid agent id gets its error at once."""
    for agent_id in agents:
        try:
            agent = check_agent_id(agent_id)
        except InvalidRequestError as error:
            many.handle_result(agent_id, error)
            continue
        yield agent_id, agent, hash_agent(agent)
