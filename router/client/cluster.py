"""A cluster as an agent host sees it: connect, wake, save.

    async with connect("topology.toml") as cluster:
        state = await cluster.wake("agent-42")

How a wake passes through: `wake` puts it into the batch of this turn of the loop (`wake_engine`, `wake_coalescer`); at
the end of the turn each batch becomes a fetch (`fetch_operation`), planned into requests (`fetch_plan`), which the
`dispatcher` releases as the nodes' windows allow (`node_flow`) and the `router` sends over its links; replies are
gathered (`gather`) until a group of agents is complete, and each wake gets its `agent_state`, or ends at its deadline
with what has come.

A Cluster belongs to the event loop in which it was opened, to its thread and its process: `home` tells every other call
so. `connect_sync` gives one for any number of threads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import ExitStack
from threading import get_ident
from typing import Any, Final, Self

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ...wire.cluster.topology_file import load_topology
from ...wire.errors import ClusterUnavailable, DawnchorusError, InvalidRequestError
from ...wire.protocol.messages import BackupReply, StatusReply
from ..arguments import Seconds, deadline, listed_ids, require_mapping, source_of
from ..dispatch.router import Router
from ..dispatch.unary_call import back_up_shard, node_status
from ..ids import check_agent_id
from ..saves.save_coalescer import Saver
from ..wakes.agent_state import AgentState
from ..wakes.wake_context import Again
from ..wakes.wake_engine import WakeEngine
from .agent_listing import list_agents
from .cluster_saves import ClusterSaves
from .home import Home, HomeStream, while_open
from .kind_registry import Kinds
from .value_codec import ValueRules

__all__ = ["Cluster", "connect"]

CONNECT_DEADLINE_S: Final = 5.0
"""How long `connect` waits for nodes that do not answer, where others do."""


def connect(
    source: str | os.PathLike[str] | Topology,
    *,
    types: Mapping[str, Any] | None = None,
    enc_hook: Callable[[Any], Any] | None = None,
    dec_hook: Callable[[type, Any], Any] | None = None,
    ext_hook: Callable[[int, memoryview], Any] | None = None,
    allow_lossy_values: bool = False,
    connect_deadline_s: Seconds = CONNECT_DEADLINE_S,
) -> Cluster:
    """Return a cluster to be opened with `async with`.

    `source` is the path of a topology file, or "tcp://host:port" of any one node, which hands out the topology.
    `types`: kind -> type that its values are decoded into (a `msgspec.Struct`, or whatever msgspec decodes); others
    come as plain objects.

    A save rejects a value that would not come back equal (docs/values.md). `enc_hook`, `dec_hook` and `ext_hook` teach
    types, as msgspec's encoder and decoder call them: `enc_hook(object)` returns what is saved for it, often a
    `msgspec.msgpack.Ext(code, data)`; `dec_hook(type, value)` makes an object of a type that is registered for a kind;
    `ext_hook(code, data)` makes one of an Ext, in any kind. `allow_lossy_values`: values may come back changed (a set
    as a list, a UUID as its text); keys of a mapping that become one are rejected all the same.

    Opening it connects to all nodes and returns when each has answered, or by `connect_deadline_s` with those that
    have; the others join when they come up.

    Raises:
        InvalidRequestError: an argument is none that can be meant, or a type none that msgspec can decode (raised when
            it is opened).
        TopologyError: the file is wrong, or a kind's `fallback` does not fit its type (raised when it is opened).
        UnknownKindError: a type is given for a kind that the topology does not have (raised when it is opened).
        ClusterUnavailable: no node answered (raised when it is opened).
    """
    seconds = deadline(connect_deadline_s, "connect_deadline_s")
    if types is not None:
        require_mapping("types", types, "kinds to types")
    rules = ValueRules(types, enc_hook, dec_hook, ext_hook, allow_lossy_values)
    where = source_of(source)
    if isinstance(where, Topology) or (isinstance(where, str) and "://" in where):
        return Cluster(where, rules, seconds)
    return Cluster(load_topology(where), rules, seconds)


class Cluster(ClusterSaves):
    """A connection to a cluster; see `connect`."""

    _router: Router
    _wakes: WakeEngine
    _wake_s: float
    _state_type: type[AgentState] = AgentState
    _again: Again | None = None
    """How states ask for more, if not by the engine itself."""
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
            self._router = self._open_router()
            undo.callback(self._router.close)
            self._topology, _ = await self._router.connect(self._source, self._connect_deadline_s)
            self._wake_s = self._topology.wake_deadline_ms / 1_000
            self._kinds = Kinds(self._topology, self._rules)
            self._wakes = WakeEngine(
                self._router, self._kinds, self._wake_budget, state_type=self._state_type, again=self._again
            )
            self._saver = Saver(
                self._router,
                lambda store: self._topology.kinds_of(store),
                self._wakes.handle_acknowledged,
                self._home.require_open,
                clock=self._router.clock,
            )
            self._router.handle_grown = self._handle_grown
            undo.pop_all()
        self._home.open()
        self._router.members.handle_foreign = self._home.bar
        return self

    async def __aexit__(self, error: object, *_: object) -> None:
        # A forked child may leave the block by an exception, SystemExit for example: that goes on as it is.
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
        reason = "the cluster was closed"
        self._wakes.close(ClusterUnavailable(reason))
        self._saver.close(reason)
        self._router.close()

    # --- wake ---

    def wake(
        self, agent_id: str, kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> asyncio.Future[AgentState]:
        """Read an agent's fragments from all stores in parallel; return a future of its state, to be awaited.

        `kinds`: only these, None for all. `deadline_s`: seconds from now, or a timedelta; None for the topology's
        wake_deadline_ms. The wake ends by then with what has come. Wakes asked for in the same turn of the loop travel
        together. It is under way already: gather it or pass it to `asyncio.ensure_future` as it is; `create_task` takes
        coroutines alone.

        Raises (the first three at once, the others when awaited):
            InvalidRequestError: the id or deadline is outside the limits.
            UnknownKindError: the topology has no such kind.
            ClusterUnavailable: the cluster is closed.
            AgentNotFound: no required kind of the agent was ever written.
            WakeIncomplete: a required kind could not be read in time; its `.state` holds what could.
        """
        if self._home.turn != get_ident():
            self._home.begin_turn()
        budget_s = self._wake_s if deadline_s is None else deadline(deadline_s)
        return self._wakes.wake(agent_id, kinds, budget_s)

    async def wake_many(
        self, ids: Iterable[str], kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> list[AgentState]:
        """Wake many agents; return their states in the order of `ids`, by the deadline.

        Never raises for one agent: look at `state.complete` and `state.outcome(kind)`. An id that no agent can have
        (empty, too long) gives a state whose every kind is a FAULT.

        Raises:
            InvalidRequestError: the deadline is outside the limits, or `ids` no list of ids.
            UnknownKindError: the topology has no such kind.
            ClusterUnavailable: the cluster is closed.
        """
        asked = listed_ids(ids)
        end = self._wake_budget(deadline_s) + self._wakes.clock()
        states = await self._wakes.wake_many(asked, kinds, end)
        self._home.require_open()  # closed meanwhile: they are what it had by then, and no answer
        return states

    def wake_stream(
        self, ids: Iterable[str], kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> AsyncGenerator[AgentState, None]:
        """Wake many agents; yield each agent's state once, as it becomes usable. Ends by the deadline.

        Raises: as `wake_many`.
        """
        end = self._wake_budget(deadline_s) + self._wakes.clock()
        return HomeStream(self._home, while_open(self._home, self._wakes.wake_stream(listed_ids(ids), kinds, end)))

    # --- the cluster ---

    def agents(self, store: str | None = None, prefix: str = "") -> AsyncGenerator[str, None]:
        """Yield the ids of all agents with a fragment in `store` (None: in any), each once, in byte order.

        `prefix`: only those that begin with it; nodes look at no others.

        Raises:
            InvalidRequestError: there is no such store, or no id can begin so.
            ClusterUnavailable: a shard could not be listed: what came before is not all.
        """
        self._home.require_open()
        if store is not None and (type(store) is not str or store not in self._topology.stores):
            raise InvalidRequestError(
                f"there is no store {store!r}; the topology has {', '.join(self._topology.stores)}"
            )
        stores = list(self._topology.stores) if store is None else [store]
        beginning = check_agent_id(prefix) if prefix else b""
        page_deadline_s = self._topology.save_deadline_ms / 1_000
        return HomeStream(self._home, list_agents(self._router, stores, page_deadline_s, beginning))

    async def status(self, deadline_s: Seconds = 2.0) -> dict[str, StatusReply | DawnchorusError]:
        """Return what each node says of itself, or the error that says why it does not."""
        self._home.require_entered()
        return await node_status(self._router, list(self._topology.nodes), deadline(deadline_s))

    @property
    def topology(self) -> Topology:
        """The cluster's topology: as this client was given it, with what the nodes have beyond; also after closing."""
        try:
            return self._topology
        except AttributeError:
            raise self._home.rejection() from None

    @property
    def placement(self) -> Placement:
        """Which node serves which shard, as this client knows it."""
        self._home.require_open()
        assert self._router.placement is not None
        return self._router.placement

    async def back_up_shard(
        self, store: str, shard: int, path: str, *, rate_bytes_s: int, deadline_s: Seconds
    ) -> BackupReply:
        """Let a shard's node write a copy of it to `path`, in a directory prepared for it: see `dawnchorus backup`.

        Raises:
            ClusterUnavailable: the outcome is unknown; try again with another path. PeerFault: the node rejected.
        """
        self._home.require_open()
        return await back_up_shard(self._router, store, shard, path, rate_bytes_s, deadline(deadline_s))

    # --- within ---

    def _handle_grown(self, topology: Topology) -> None:
        """The cluster has got stores, kinds or nodes since this client connected."""
        self._topology = topology
        self._kinds = Kinds(topology, self._rules)
        self._wakes.handle_grown(self._kinds)

    def _wake_budget(self, deadline_s: Seconds | None) -> float:
        self._home.require_open()
        return self._wake_s if deadline_s is None else deadline(deadline_s)
