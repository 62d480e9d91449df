"""The session of an open Cluster: its wakes and saves, for the topology that its nodes have sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from ...wire.cluster.topology import Topology
from ...wire.errors import ClusterUnavailable, DawnchorusError, InvalidRequestError
from ...wire.protocol.messages import Operation
from ..arguments import Seconds, deadline, exact_id, exact_key
from ..dispatch.router import Router
from ..ids import check_agent_id
from ..saves.agent_write import Saved
from ..saves.save_coalescer import Saver
from ..wakes.agent_state import AgentState
from ..wakes.wake_context import Again
from ..wakes.wake_engine import WakeEngine
from .agent_listing import list_agents
from .home import Home
from .kind_registry import Kinds
from .save_request import Expect, ManyDeletes, ManySaves, expectations
from .value_codec import ValueRules

__all__ = ["Session"]


class Session:
    """The wakes and saves of a connected router."""

    def __init__(
        self,
        router: Router,
        topology: Topology,
        rules: ValueRules,
        home: Home,
        state_type: type[AgentState],
        again: Again | None,
    ) -> None:
        """`state_type`, `again`: see WakeEngine.

        Raises:
            InvalidRequestError, TopologyError, UnknownKindError: `rules` and the topology do not fit together.
        """
        self.router = router
        self.topology = topology
        self.kinds = Kinds(topology, rules)
        self.wake_s = topology.wake_deadline_ms / 1_000
        """The most seconds of a wake whose caller gives no deadline."""
        self._rules = rules
        self._home = home
        self.wakes = WakeEngine(router, self.kinds, self.wake_budget, state_type=state_type, again=again)
        self.saver = Saver(
            router,
            lambda store: self.topology.kinds_of(store),
            self.wakes.handle_acknowledged,
            home.require_open,
            clock=router.clock,
        )
        router.handle_grown = self._handle_grown

    def close(self) -> None:
        """Close every connection; calls that still wait raise ClusterUnavailable."""
        reason = "the cluster was closed"
        self.wakes.close(ClusterUnavailable(reason))
        self.saver.close(reason)
        self.router.close()

    def wake_budget(self, deadline_s: Seconds | None) -> float:
        """Return the seconds that a wake with this deadline has.

        Raises:
            ClusterUnavailable, WrongLoopError: the cluster is closed, or must not be used from here.
        """
        self._home.require_open()
        return self.wake_s if deadline_s is None else deadline(deadline_s)

    def save_budget(self, deadline_s: Seconds | None) -> float:
        """Return the seconds that a save with this deadline has."""
        return self.topology.save_deadline_ms / 1_000 if deadline_s is None else deadline(deadline_s)

    def save(
        self,
        agent_id: str,
        by_store: Mapping[str, list[Operation]],
        expect: Expect,
        write_id: str | None,
        deadline_s: Seconds | None,
    ) -> asyncio.Future[Saved]:
        """Write these operations of one agent; the arguments are those of `Cluster.save`."""
        if type(agent_id) is not str:
            agent_id = exact_id(agent_id)
        if write_id is not None and type(write_id) is not str:
            write_id = exact_key(write_id)
        expected = None if expect is None else expectations(self.kinds, agent_id, expect, by_store)
        budget_s = self.save_budget(deadline_s)
        return self.saver.save(self.saver.write(agent_id, by_store, expected, write_id), budget_s)

    async def save_many(
        self, request: ManySaves | ManyDeletes, deadline_s: Seconds | None
    ) -> dict[str, Saved | DawnchorusError]:
        """Write the requested operations of many agents; return the result of each, or its error."""
        budget_s = self.save_budget(deadline_s)
        return await self.saver.save_many(request.agents, request.new_write(self.saver.new_write), budget_s)

    def agents(self, store: str | None, prefix: str) -> AsyncGenerator[str, None]:
        """Yield ids, as `Cluster.agents` does."""
        if store is not None and (type(store) is not str or store not in self.topology.stores):
            raise InvalidRequestError(
                f"there is no store {store!r}; the topology has {', '.join(self.topology.stores)}"
            )
        stores = list(self.topology.stores) if store is None else [store]
        beginning = check_agent_id(prefix) if prefix else b""
        return list_agents(self.router, stores, self.save_budget(None), beginning)

    def _handle_grown(self, topology: Topology) -> None:
        """Adopt the topology of a cluster with new stores, kinds or nodes since this client connected."""
        self.topology = topology
        self.kinds = Kinds(topology, self._rules)
        self.wakes.handle_grown(self.kinds)
