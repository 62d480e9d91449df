"""`load`: lines in, batches of saves out, a few under way at once; what cannot be saved is named by its line.

A line goes through: read (`streams.LineReader`), parsed and checked (`ndjson.parse_line`, kinds, sizes), copied, put
into the batch that is being filled. A full batch becomes a task of its own. Memory is bounded by the batches under way,
whatever the size of the file. Saves of one agent keep the order of their lines: lines of an agent that meet in a batch
become one save, and a batch waits for every earlier one that has an agent in common with it.

Saving again does no harm here (a load sets values and expects nothing), so what a node that is just restarting did not
acknowledge is saved again a few times before it is given up. A batch of which nothing at all could be saved ends the
load: the cluster is gone, and millions of lines need not be named for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ...router.client.kind_registry import Expiring
from ...router.client.value_codec import ValueCodec
from ...wire.errors import (
    ClusterUnavailable,
    DawnchorusError,
    DeadlineExceeded,
    InvalidRequestError,
    PeerFault,
    SaveIncomplete,
    SaveRejected,
)
from ...wire.protocol.limits import AGENT_ID_BYTES_MAX, FRAGMENT_BYTES_MAX
from ..console.async_runner import in_thread
from ..console.output import Problems, ProgressBar, format_bytes
from .ndjson import LINE_BYTES_MAX, BrokenLine, parse_line
from .streams import InputLine, LineReader

__all__ = ["Loader", "Saver", "Totals", "copies_of", "may_pass_later"]

BATCH_AGENTS_MAX: Final = 500
"""Agents saved by one call: enough for one sync of the disk to serve many, few enough to answer within the deadline."""

BATCH_BYTES: Final = 4 << 20
"""Bytes of JSON after which a batch is full, whatever its number of agents."""

BATCHES_UNDER_WAY_MAX: Final = 4
"""Batches being saved at once: the nodes sync one while the next is encoded and sent."""

SAVE_DEADLINE_S: Final = 30.0
"""Deadline of one batch: a slow disk is no reason to give up."""

ATTEMPTS_MAX: Final = 3
ATTEMPT_PAUSE_S: Final = 1.0
"""A node that died is back within about a second."""


class Saver(Protocol):
    """The part of `Cluster` that a load needs."""

    async def save_many(
        self, agents: Mapping[str, Mapping[str, Any]], *, deadline_s: float | None = None
    ) -> Mapping[str, object]: ...


@dataclass
class Totals:
    """Totals of a load: agents and fragments acknowledged (copies count), and the JSON that they came in."""

    lines: int = 0
    agents: int = 0
    fragments: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class _Entry:
    """One agent in a batch: what to save, and the lines that it came from."""

    fragments: dict[str, object]
    lines: list[int]
    bytes: int
    settled: bool = False
    """Whether it was saved, or given up."""


@dataclass
class _Batch:
    entries: dict[str, _Entry] = field(default_factory=dict)
    bytes: int = 0

    @property
    def full(self) -> bool:
        return len(self.entries) >= BATCH_AGENTS_MAX or self.bytes >= BATCH_BYTES

    def add(self, agent_id: str, fragments: dict[str, object], line: int, size: int) -> None:
        """Add one agent of one line; a later line of the same agent sets its kinds over those of the earlier one."""
        self.bytes += size
        entry = self.entries.get(agent_id)
        if entry is None:
            self.entries[agent_id] = _Entry(fragments, [line], size)
            return
        self.entries[agent_id] = _Entry(entry.fragments | fragments, [*entry.lines, line], entry.bytes + size)


class LoadStopped(DawnchorusError):
    """Nothing of a whole batch could be saved, several times over; the lines after it were not read."""


class Loader:
    """One load: give it the lines, then `finish`; `totals` and the problems say what became of them."""

    def __init__(self, cluster: Saver, kinds: Sequence[str], copies: int, problems: Problems) -> None:
        self._cluster = cluster
        self._kinds = frozenset(kinds)
        self._kinds_text = ", ".join(kinds)
        self._copies = copies
        self._problems = problems
        self._batch = _Batch()
        self._under_way: dict[asyncio.Task[None], _Batch] = {}
        self.totals = Totals()
        self.unknown = 0
        """Agents that a load which was cut short had sent, and of which no answer came: saved or not."""

    async def load(self, reader: LineReader, bar: ProgressBar) -> None:
        """Save every agent of the file.

        Raises:
            LoadStopped: the cluster does not answer any more.
            OSError: the file could not be read to its end.
        """
        started_s = time.monotonic()
        try:
            while (lines := await in_thread(reader.read)) is not None:
                for line in lines:
                    await self.take(line)
                self.totals.seconds = time.monotonic() - started_s
                bar.show(f"{self.totals.agents:,} agents", reader.bytes_read, reader.bytes_total)
            await self.finish()
        finally:
            for task, batch in self._under_way.items():
                if task.cancel():
                    self.unknown += sum(not entry.settled for entry in batch.entries.values())
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self.totals.seconds = time.monotonic() - started_s

    async def take(self, line: InputLine) -> None:
        """Take one line; returns when there is room for the next."""
        self.totals.lines += 1
        text = line.text
        if text is not None and not text.strip():
            return
        try:
            if text is None:
                raise BrokenLine(f"longer than {format_bytes(LINE_BYTES_MAX)}")
            agent_id, values, expires_ms = parse_line(text)
            self._check_fragments(values, len(text))
            self._check_copies(agent_id)
        except BrokenLine as error:
            self._problems.add(f"line {line.number}: {error}", line=line.number)
            return
        fragments = values | {kind: Expiring(values[kind], time_ms) for kind, time_ms in expires_ms.items()}
        for copy_id in copies_of(agent_id, self._copies):
            self._batch.add(copy_id, fragments, line.number, len(text))
            if self._batch.full:
                await self._send()

    async def finish(self) -> None:
        """Save what is left and wait until everything is acknowledged or given up."""
        if self._batch.entries:
            await self._send()
        while self._under_way:
            await self._reap()

    def _check_copies(self, agent_id: str) -> None:
        suffix = f"~{self._copies - 1}" if self._copies > 1 else ""
        if len((agent_id + suffix).encode()) > AGENT_ID_BYTES_MAX:
            raise BrokenLine(f"agent_id leaves no room for {suffix}: {AGENT_ID_BYTES_MAX} bytes are permitted")

    def _check_fragments(self, fragments: Mapping[str, object], line_bytes: int) -> None:
        unknown = [kind for kind in fragments if kind not in self._kinds]
        if unknown:
            names = ", ".join(repr(kind) for kind in unknown)
            raise BrokenLine(f"unknown kind {names}; the topology has {self._kinds_text}")
        # msgpack needs 9 bytes for a number that JSON writes in 4 ("0.5,"), and never more than that for anything else:
        # no value of a line of a third of the limit is too large.
        if line_bytes * 3 < FRAGMENT_BYTES_MAX:
            return
        try:
            for kind, value in fragments.items():
                ValueCodec(kind).encode(value)
        except InvalidRequestError as error:
            raise BrokenLine(str(error)) from None

    async def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        while len(self._under_way) >= BATCHES_UNDER_WAY_MAX or self._overlaps(batch):
            await self._reap()
        self._under_way[asyncio.create_task(self._save(batch))] = batch

    def _overlaps(self, batch: _Batch) -> bool:
        return any(not batch.entries.keys().isdisjoint(earlier.entries) for earlier in self._under_way.values())

    async def _reap(self) -> None:
        done, _pending = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            del self._under_way[task]
        # Each is asked, so that none is left for the loop to complain of; the first to have failed is told.
        failures = [error for task in done if (error := task.exception()) is not None]
        if failures:
            raise failures[0]

    async def _save(self, batch: _Batch) -> None:
        waiting: dict[str, Mapping[str, Any]] = {agent_id: entry.fragments for agent_id, entry in batch.entries.items()}
        errors: dict[str, DawnchorusError] = {}
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(ATTEMPT_PAUSE_S * attempt)
            errors = await self._try(waiting)
            for agent_id in waiting.keys() - errors.keys():
                self._count(batch.entries[agent_id])
            again = {agent_id for agent_id, error in errors.items() if may_pass_later(error)}
            for agent_id in errors.keys() - again:
                self._fail(agent_id, batch.entries[agent_id], errors[agent_id])
            waiting = {agent_id: fragments for agent_id, fragments in waiting.items() if agent_id in again}
            if not waiting:
                return
        for agent_id in waiting:
            self._fail(agent_id, batch.entries[agent_id], errors[agent_id])
        if len(waiting) == len(batch.entries):
            raise LoadStopped(f"the load stopped: {len(waiting):,} saves in a row failed, {ATTEMPTS_MAX} times over")

    async def _try(self, agents: Mapping[str, Mapping[str, Any]]) -> dict[str, DawnchorusError]:
        try:
            results = await self._cluster.save_many(agents, deadline_s=SAVE_DEADLINE_S)
        except InvalidRequestError as error:
            if len(agents) == 1:
                return dict.fromkeys(agents, error)
            # One agent can make a call impossible for all of its batch (too large for a message): find it by halves.
            items = list(agents.items())
            middle = len(items) // 2
            return await self._try(dict(items[:middle])) | await self._try(dict(items[middle:]))
        except DawnchorusError as error:
            return dict.fromkeys(agents, error)
        return {agent_id: result for agent_id, result in results.items() if isinstance(result, DawnchorusError)}

    def _count(self, entry: _Entry) -> None:
        entry.settled = True
        self.totals.agents += 1
        self.totals.fragments += len(entry.fragments)
        self.totals.bytes += entry.bytes

    def _fail(self, agent_id: str, entry: _Entry, error: DawnchorusError) -> None:
        entry.settled = True
        lines = ", ".join(str(line) for line in entry.lines)
        name = f"agent {agent_id!r}: "
        message = f"line {lines}: {name}{str(error).removeprefix(name)}"  # Most errors name their agent themselves.
        self._problems.add(message, line=entry.lines[-1], agent_id=agent_id)


def may_pass_later(error: DawnchorusError) -> bool:
    """Return whether the same save may succeed a moment later; not so for what is rejected for what it is."""
    if isinstance(error, SaveRejected | SaveIncomplete):
        return error.rejected.keys() <= set(error.transient)
    return isinstance(error, DeadlineExceeded | ClusterUnavailable | PeerFault)


def copies_of(agent_id: str, copies: int) -> Iterator[str]:
    """Return the names of an agent's copies: its own, then `ID~1`, `ID~2`, ..."""
    yield agent_id
    for number in range(1, copies):
        yield f"{agent_id}~{number}"
