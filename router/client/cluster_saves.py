"""The saving half of a cluster as an agent host sees it: save and delete, one agent or many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ...wire.cluster.topology import Topology
from ...wire.errors import DawnchorusError
from ...wire.protocol.messages import Operation
from ..arguments import Seconds, by_agent, deadline, exact_id, exact_key
from ..saves.agent_write import Saved
from ..saves.save_coalescer import Saver
from .home import Home
from .kind_registry import Kinds
from .save_request import (
    Expect,
    ManyDeletes,
    ManyExpect,
    ManySaves,
    deletions,
    expectations,
    operations,
)

__all__ = ["ClusterSaves"]


class ClusterSaves:
    """What a Cluster has for saving; see `Cluster`, which opens and closes all of it."""

    _home: Home
    _kinds: Kinds
    _saver: Saver
    _topology: Topology

    async def save(
        self,
        agent_id: str,
        fragments: Mapping[str, Any],
        *,
        expect: Expect = None,
        ttl_s: Seconds | None = None,
        write_id: str | None = None,
        deadline_s: Seconds | None = None,
        drop: Iterable[str] | None = None,
    ) -> Saved:
        """Write some kinds of an agent; returns when every store has them durably.

        Values: bytes are kept as they are, anything else as msgpack. What would not come back equal is rejected, with
        the path in the value, as is what is nested deeper than 200 levels or larger than 1 MiB (docs/values.md).

        Kinds of one store are saved together or not at all; KINDS OF SEVERAL STORES ARE NOT: a SaveIncomplete says
        which store has what. Saves of one agent are applied in the order in which they were called. One that is
        cancelled is applied all the same.

        `expect`: only if the kinds being written still have the versions of this state, of this result of an earlier
        save, or of this mapping, or (0) are not there yet; expired counts as not there. A mapping may name other kinds
        as well, of the stores that are written. `ttl_s`: they expire so many seconds later, None for what the topology
        says. `drop`: kinds that are deleted with it. `write_id`: the idempotency key, a name of the save that its
        caller chooses, or that of an earlier save with the same arguments: it is then applied at most once in all.

        Raises:
            InvalidRequestError, UnknownKindError: nothing was sent.
            FragmentUnavailable: `expect` is a state that does not know a version; nothing was sent.
            SaveRejected: nothing was written, anywhere.
            VersionConflict: other versions are there (`.found`); nothing was written, anywhere.
            SaveIncomplete: some stores saved, others did not.
            SaveIndeterminate: `write_id` is too old to tell.
            DeadlineExceeded: no store answered in time: the outcome is unknown; `await error.retry()` is safe.
            ClusterUnavailable: the cluster is closed; SaveInterrupted where it was closed while the save was under way.
        """
        by_store = operations(self._kinds_open(), fragments, ttl_s, drop)
        return await self._send_save(agent_id, by_store, expect, write_id, deadline_s)

    async def save_many(
        self,
        agents: Mapping[str, Mapping[str, Any]],
        *,
        expect: ManyExpect = None,
        ttl_s: Mapping[str, Seconds | None] | Seconds | None = None,
        write_id: Mapping[str, str | None] | str | None = None,
        deadline_s: Seconds | None = None,
        drop: Mapping[str, Iterable[str] | None] | Iterable[str] | None = None,
    ) -> dict[str, Saved | DawnchorusError]:
        """Write some kinds of many agents; return for each what was saved, or the error that `save` would raise.

        `expect`: 0 for all, or by agent id what `save` takes, or states and results, each of which names its agent; an
        agent that it leaves out is rejected. `ttl_s`, `write_id` and `drop`: one for all, or by agent id.
        """
        request = ManySaves(self._kinds_open(), by_agent(agents), expect, ttl_s, write_id, drop)
        budget_s = self._save_budget(deadline_s)
        return await self._saver.save_many(request.agents, request.new_write(self._saver.new_write), budget_s)

    async def delete(
        self,
        agent_id: str,
        kinds: Iterable[str] | None = None,
        *,
        expect: Expect = None,
        deadline_s: Seconds | None = None,
        write_id: str | None = None,
    ) -> Saved:
        """Delete some kinds of an agent, or the agent; the versions say in which writes, 0 where there was nothing.

        `expect` and `write_id` as in `save`; where no kinds are given, `expect` is of all of them.

        Raises: as `save`.
        """
        return await self._send_save(agent_id, deletions(self._kinds_open(), kinds), expect, write_id, deadline_s)

    async def delete_many(
        self,
        ids: Iterable[str],
        kinds: Iterable[str] | None = None,
        *,
        expect: ManyExpect = None,
        deadline_s: Seconds | None = None,
        write_id: Mapping[str, str | None] | str | None = None,
    ) -> dict[str, Saved | DawnchorusError]:
        """Delete many agents, or some kinds of them; return for each what `delete` would, or the error it would raise.

        `expect` and `write_id` as in `save_many`.
        """
        request = ManyDeletes(self._kinds_open(), ids, kinds, expect, write_id)
        budget_s = self._save_budget(deadline_s)
        return await self._saver.save_many(request.agents, request.new_write(self._saver.new_write), budget_s)

    def _send_save(
        self,
        agent_id: str,
        by_store: Mapping[str, list[Operation]],
        expect: Expect,
        write_id: str | None,
        deadline_s: Seconds | None,
    ) -> asyncio.Future[Saved]:
        if type(agent_id) is not str:
            agent_id = exact_id(agent_id)
        if write_id is not None and type(write_id) is not str:
            write_id = exact_key(write_id)
        expected = None if expect is None else expectations(self._kinds, agent_id, expect, by_store)
        budget_s = self._save_budget(deadline_s)
        return self._saver.save(self._saver.write(agent_id, by_store, expected, write_id), budget_s)

    # --- within ---

    def _kinds_open(self) -> Kinds:
        self._home.require_open()
        return self._kinds

    def _save_budget(self, deadline_s: Seconds | None) -> float:
        return self._topology.save_deadline_ms / 1_000 if deadline_s is None else deadline(deadline_s)
