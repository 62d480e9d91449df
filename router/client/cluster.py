"""A cluster as an agent host sees it: connect, wake, save.

    async with connect("topology.toml") as cluster:
        state = await cluster.wake("agent-42")

The path of a wake: `wake` puts it into the batch of this turn of the loop (`wake_engine`, `wake_coalescer`); at the end
of the turn each batch becomes a fetch (`fetch_operation`), planned into requests (`fetch_plan`), which the `dispatcher`
releases as the nodes' windows allow (`node_flow`) and the `router` sends over its links; replies are gathered
(`gather`) until a group of agents is complete, and each wake gets its `agent_state`, or ends at its deadline with the
fragments received by then.

A Cluster belongs to the event loop in which it was opened, to its thread and its process: `home` rejects calls from any
other. `connect_sync` gives one for any number of threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import ExitStack
from threading import get_ident
from typing import Any, Self

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ...wire.errors import DawnchorusError
from ...wire.protocol.messages import BackupReply, StatusReply
from ..arguments import Seconds, by_agent, deadline, listed_ids
from ..dispatch.router import Router
from ..dispatch.unary_call import back_up_shard, node_status
from ..saves.agent_write import Saved
from ..wakes.agent_state import AgentState
from ..wakes.wake_context import Again
from .home import Home, HomeStream, while_open
from .save_request import (
    Expect,
    ManyDeletes,
    ManyExpect,
    ManySaves,
    deletions,
    operations,
)
from .session import Session
from .value_codec import ValueRules

__all__ = ["Cluster"]


class Cluster:
    """A connection to a cluster; see `connect.connect`."""

    _session: Session
    _state_type: type[AgentState] = AgentState
    _again: Again | None = None
    """How states fetch more, if not by the engine itself."""
    _open_router: Callable[[], Router] = Router

    def __init__(self, source: Topology | str, rules: ValueRules, connect_deadline_s: float) -> None:
        self._source = source
        self._rules = rules
        self._connect_deadline_s = connect_deadline_s
        self._home = Home()

    async def __aenter__(self) -> Self:
        self._home.enter()
        with ExitStack() as undo:
            undo.callback(self._home.leave)
            router = self._open_router()
            undo.callback(router.close)
            topology, _ = await router.connect(self._source, self._connect_deadline_s)
            self._session = Session(router, topology, self._rules, self._home, self._state_type, self._again)
            undo.pop_all()
        self._home.open()
        router.members.handle_foreign = self._home.bar
        return self

    async def __aexit__(self, error: object, *_: object) -> None:
        # A forked child may leave the block by an exception, SystemExit for example: it propagates unchanged.
        if error is None or self._home.is_here():
            self.close()

    def close(self) -> None:
        """Close every connection; calls that still wait raise ClusterUnavailable.

        Raises:
            WrongLoopError: this is not the loop, thread and process in which it is open.
        """
        if not self._home.is_open:
            return
        self._home.require_entered()
        self._home.leave()
        self._session.close()

    # --- wake ---

    def wake(
        self, agent_id: str, kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> asyncio.Future[AgentState]:
        """Read an agent's fragments from all stores in parallel; return a future of its state, to be awaited.

        `kinds`: only these, None for all. `deadline_s`: seconds from now, or a timedelta; None for the topology's
        wake_deadline_ms. The wake ends by then with the fragments received. Wakes called in the same turn of the loop
        travel together. The wake has begun already: gather it or pass it to `asyncio.ensure_future` as it is;
        `create_task` takes only coroutines.

        Raises (the first three at once, the others when awaited):
            InvalidRequestError: the id or deadline is outside the limits.
            UnknownKindError: the topology has no such kind.
            ClusterUnavailable: the cluster is closed.
            AgentNotFound: the agent has no required kind: never written, or deleted.
            WakeIncomplete: a required kind could not be read in time; its `.state` holds what could.
        """
        if self._home.turn != get_ident():
            self._home.begin_turn()
        session = self._session
        budget_s = session.wake_s if deadline_s is None else deadline(deadline_s)
        return session.wakes.wake(agent_id, kinds, budget_s)

    async def wake_many(
        self, ids: Iterable[str], kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> list[AgentState]:
        """Wake many agents; return their states in the order of `ids`, by the deadline.

        Never raises for one agent: check `state.complete` and `state.outcome(kind)`. An invalid id (empty, too long)
        gives a state whose every kind is a FAULT.

        Raises:
            InvalidRequestError: the deadline is outside the limits, or `ids` no list of ids.
            UnknownKindError: the topology has no such kind.
            ClusterUnavailable: the cluster is closed.
        """
        asked = listed_ids(ids)
        wakes = self._opened().wakes
        end = self._session.wake_budget(deadline_s) + wakes.clock()
        states = await wakes.wake_many(asked, kinds, end)
        self._home.require_open()  # if it was closed meanwhile, the states are incomplete
        return states

    def wake_stream(
        self, ids: Iterable[str], kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> AsyncGenerator[AgentState, None]:
        """Wake many agents; yield each agent's state once, as it becomes usable. Ends by the deadline.

        Raises: as `wake_many`.
        """
        wakes = self._opened().wakes
        end = self._session.wake_budget(deadline_s) + wakes.clock()
        return HomeStream(self._home, while_open(self._home, wakes.wake_stream(listed_ids(ids), kinds, end)))

    # --- save ---

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
        """Write some kinds of an agent; return when every store has them durably.

        Values: bytes are kept unchanged, anything else as msgpack. A value that would not come back equal, is nested
        deeper than 200 levels or is larger than 1 MiB is rejected, with the path in the value (docs/values.md).

        Kinds of one store are saved together or not at all; KINDS OF SEVERAL STORES ARE NOT: a SaveIncomplete lists
        the results by store. Saves of one agent are applied in the order in which they were called. A cancelled save
        is applied all the same.

        `expect`: only if the kinds being written still have the versions of this state, of this result of an earlier
        save, or of this mapping, or (0) do not exist yet; expired kinds count as absent. A mapping may name other kinds
        as well, of the stores that are written. `ttl_s`: they expire so many seconds later, None for the topology's
        value. `drop`: kinds that are deleted with it. `write_id`: the idempotency key, a name that the caller chooses
        for the save, or that of an earlier save with the same arguments: it is then applied at most once in all.

        Raises:
            InvalidRequestError, UnknownKindError: nothing was sent.
            FragmentUnavailable: `expect` is a state that does not know a version; nothing was sent.
            SaveRejected: nothing was written, anywhere.
            VersionConflict: the stores have other versions (`.found`); nothing was written, anywhere.
            SaveIncomplete: some stores saved, others did not.
            SaveIndeterminate: `write_id` is too old to say whether it was applied.
            DeadlineExceeded: no store answered in time: the outcome is unknown; `await error.retry()` is safe.
            ClusterUnavailable: the cluster is closed; SaveInterrupted if it was closed while the save was under way.
        """
        session = self._opened()
        by_store = operations(session.kinds, fragments, ttl_s, drop)
        return await session.save(agent_id, by_store, expect, write_id, deadline_s)

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
        """Write some kinds of many agents; return the result of each, or the error that `save` would raise.

        `expect`: 0 for all, or a mapping from agent ids to values that `save` takes, or states and results, each of
        which names its agent; an agent that is left out is rejected. `ttl_s`, `write_id` and `drop`: one for all, or by
        agent id.
        """
        request = ManySaves(self._opened().kinds, by_agent(agents), expect, ttl_s, write_id, drop)
        budget_s = self._session.save_budget(deadline_s)
        return await self._session.saver.save_many(
            request.agents, request.new_write(self._session.saver.new_write), budget_s
        )

    async def delete(
        self,
        agent_id: str,
        kinds: Iterable[str] | None = None,
        *,
        expect: Expect = None,
        deadline_s: Seconds | None = None,
        write_id: str | None = None,
    ) -> Saved:
        """Delete some kinds of an agent, or the agent; return the version of each deletion, 0 if nothing was there.

        `expect` and `write_id` as in `save`; if no kinds are given, `expect` is of all of them.

        Raises: as `save`.
        """
        session = self._opened()
        return await session.save(agent_id, deletions(session.kinds, kinds), expect, write_id, deadline_s)

    async def delete_many(
        self,
        ids: Iterable[str],
        kinds: Iterable[str] | None = None,
        *,
        expect: ManyExpect = None,
        deadline_s: Seconds | None = None,
        write_id: Mapping[str, str | None] | str | None = None,
    ) -> dict[str, Saved | DawnchorusError]:
        """Delete many agents, or some kinds of them; return the result of each, or the error `delete` would raise.

        `expect` and `write_id` as in `save_many`.
        """
        request = ManyDeletes(self._opened().kinds, ids, kinds, expect, write_id)
        budget_s = self._session.save_budget(deadline_s)
        return await self._session.saver.save_many(
            request.agents, request.new_write(self._session.saver.new_write), budget_s
        )

    # --- the cluster ---

    def agents(self, store: str | None = None, prefix: str = "") -> AsyncGenerator[str, None]:
        """Yield the ids of all agents with a fragment in `store` (None: in any), each once, in byte order.

        `prefix`: only those that begin with it; nodes scan no others.

        Raises:
            InvalidRequestError: there is no such store, or no id can begin so.
            ClusterUnavailable: a shard could not be listed: the ids yielded before are not all.
        """
        return HomeStream(self._home, self._opened().agents(store, prefix))

    async def status(self, deadline_s: Seconds = 2.0) -> dict[str, StatusReply | DawnchorusError]:
        """Return the status of each node, or the error of asking for it."""
        self._home.require_entered()
        return await node_status(self._session.router, list(self._session.topology.nodes), deadline(deadline_s))

    @property
    def topology(self) -> Topology:
        """The cluster's topology: this client's, with additions from the nodes; available after closing too."""
        try:
            return self._session.topology
        except AttributeError:
            raise self._home.rejection() from None

    @property
    def placement(self) -> Placement:
        """The node that serves each shard, as this client knows it."""
        placement = self._opened().router.placement
        assert placement is not None
        return placement

    async def back_up_shard(
        self, store: str, shard: int, path: str, *, rate_bytes_s: int, deadline_s: Seconds
    ) -> BackupReply:
        """Let a shard's node write a copy of it to `path`, in a prepared directory: see `dawnchorus backup`.

        Raises:
            ClusterUnavailable: the outcome is unknown; try again with another path. PeerFault: the node rejected.
        """
        return await back_up_shard(self._opened().router, store, shard, path, rate_bytes_s, deadline(deadline_s))

    def _opened(self) -> Session:
        """Return the session, if the cluster is open and the call is from its own loop."""
        self._home.require_open()
        return self._session
