"""The thread in which the Cluster behind a SyncCluster runs, started on entry and anew in a forked child.

Every blocking call uses `SyncHost.run`. It bounds the wait, and makes the results block as well: states fetch more and
errors retry without a running loop.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Self, TypeVar, cast

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ...wire.errors import ClusterUnavailable, InvalidRequestError, SaveError, WrongLoopError
from ...wire.protocol.limits import DEADLINE_S_MAX
from ..arguments import Seconds
from ..wakes.agent_state import AgentState
from .cluster import Cluster
from .home import Home
from .loop_thread import LoopThread

__all__ = ["HostedCluster", "SyncAgentState", "SyncHost"]

T = TypeVar("T")

_LIMIT_SECONDS: Final = 5.0
"""The least time that a call gets before its thread counts as stuck: some methods have a deadline of their own."""


class SyncAgentState(AgentState, gc=False, eq=False, repr_omit_defaults=True):
    """One woken agent, as `AgentState`; methods that ask the cluster again block."""

    def settle(  # type: ignore[override] # the state itself: no caller here could await a future
        self, deadline_s: Seconds | None = None, *, callback: Callable[[Self], None] | None = None
    ) -> Self:
        """Ask again for the kinds that could not be read; return this state, completed as far as it goes.

        Ends by `deadline_s` from now (None: as a wake); `callback` is then called with the state, in this thread.

        Raises:
            ClusterUnavailable: the cluster was closed.
        """
        try:
            self._host.run(AgentState.settle, self, deadline_s, limit_s=deadline_s)
        finally:
            if callback is not None:
                callback(self)
        return self

    def fetch(self, kind: str, deadline_s: Seconds | None = None) -> Any:
        """Return the value of a kind that the wake did not read (usually of a lazy store), fetched now.

        A value that the state has already is returned unchanged; `deadline_s`: seconds from now, None: as a wake.

        Raises: as `state[kind]`; ClusterUnavailable: the cluster was closed.
        """
        return self._host.run(AgentState.fetch, self, kind, deadline_s, limit_s=deadline_s)

    @property
    def _host(self) -> SyncHost:
        again = self._context.again
        if not isinstance(again, _Again):
            raise WrongLoopError("this state is a copy that no longer belongs to a cluster: wake the agent instead")
        return again.host


class _Again:
    """The function with which states of a SyncCluster fetch more: by its current Cluster, another one after a fork."""

    def __init__(self, host: SyncHost) -> None:
        self.host = host

    def __call__(self, agent_id: str, kinds: tuple[str, ...], deadline_s: Seconds | None) -> asyncio.Future[Any]:
        return self.host.cluster.wake_again(agent_id, kinds, deadline_s)


class HostedCluster(Cluster):
    """The Cluster in the thread."""

    _state_type = SyncAgentState

    @classmethod
    def like(cls, cluster: Cluster, host: SyncHost) -> HostedCluster:
        """Return a cluster that connects as another, unopened one would."""
        made = cls.__new__(cls)
        vars(made).update(vars(cluster))
        made._home = Home()
        made._again = _Again(host)
        return made

    @property
    def connect_deadline_s(self) -> float:
        """The most seconds that opening takes."""
        return self._connect_deadline_s

    def wake_again(self, agent_id: str, kinds: tuple[str, ...], deadline_s: Seconds | None) -> asyncio.Future[Any]:
        """Wake an agent for the kinds that a state of it lacks."""
        self._home.require_open()
        return self._session.wakes.wake_again(agent_id, kinds, deadline_s)

    async def placement_now(self) -> Placement:
        """Return the placement."""
        return self.placement


class SyncHost:
    """The thread of a SyncCluster while it is open."""

    def __init__(self, cluster: Cluster) -> None:
        """`cluster` says how to connect, and is not opened itself."""
        self._like = HostedCluster.like(cluster, self)
        self._entered = False
        self._closed = False
        self._thread: LoopThread[HostedCluster] | None = None
        self._last_topology: Topology | None = None
        self._least_limit_s = _LIMIT_SECONDS
        self._opening = threading.Lock()
        _hosts.add(self)

    def enter(self) -> None:
        """Start the thread and open the cluster.

        Raises:
            InvalidRequestError: it is open already. ClusterUnavailable: no node answers.
        """
        with self._opening:
            if self._entered:
                raise InvalidRequestError("this cluster is open already: each `with` needs a `connect_sync` of its own")
            self._start()
            self._entered, self._closed = True, False

    def close(self) -> None:
        """Close the cluster and end the thread."""
        with self._opening:
            if self._entered:
                self._entered, self._closed = False, True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._last_topology = thread.resource.topology
        if thread is not None:
            thread.close()

    @property
    def topology(self) -> Topology:
        """The cluster's topology; after closing the last known one.

        Raises: as `cluster`, if it was never open.
        """
        if not self._entered and self._last_topology is not None:
            return self._last_topology
        return self.cluster.topology

    @property
    def cluster(self) -> HostedCluster:
        """The Cluster in the thread, made anew in a forked child.

        Raises:
            ClusterUnavailable: it is not open, or no node answers the child.
        """
        thread = self._thread
        return (self._started() if thread is None else thread).resource

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any, limit_s: object = None) -> T:
        """Call a function in the thread and wait for its result; its own deadline is `limit_s`, if any."""
        thread = self._thread
        if thread is None:
            thread = self._started()
        seconds = self._least_limit_s if limit_s is None else self._limit(limit_s)
        try:
            result: Any = thread.run(function, *arguments, limit_s=seconds)
        except SaveError as error:
            self._adopt(error, seconds)
            raise
        if isinstance(result, dict):  # the results of many agents
            for each in cast("dict[object, object]", result).values():
                if isinstance(each, SaveError):
                    self._adopt(each, seconds)
        return cast("T", result)

    def _limit(self, deadline_s: object) -> float:
        """Return how long a call may take: its deadline, or the topology's if its own is too short or invalid."""
        if isinstance(deadline_s, timedelta):
            deadline_s = deadline_s.total_seconds()
        if isinstance(deadline_s, int | float) and self._least_limit_s < deadline_s <= DEADLINE_S_MAX:
            return float(deadline_s)
        return self._least_limit_s

    def _adopt(self, error: SaveError, seconds: float) -> None:
        """Make an error's `retry` block."""
        if error.repeat is not None and not isinstance(error.repeat, _Retry):
            error.repeat = _Retry(self.run, error.repeat, limit_s=seconds)

    def _started(self) -> LoopThread[HostedCluster]:
        with self._opening:
            if self._thread is not None:
                return self._thread
            if not self._entered:
                how = "was closed" if self._closed else "is not open; use it inside `with connect_sync(...)`"
                raise ClusterUnavailable(f"the cluster {how}")
            return self._start()

    def _start(self) -> LoopThread[HostedCluster]:
        thread = LoopThread(functools.partial(HostedCluster.like, self._like, self), "dawnchorus")
        thread.start(self._like.connect_deadline_s)
        topology = thread.resource.topology
        self._least_limit_s = max(_LIMIT_SECONDS, max(topology.wake_deadline_ms, topology.save_deadline_ms) / 1_000)
        self._thread = thread
        return thread

    def leave_behind(self) -> None:
        """Forget, in the child after a fork, the parent's thread and a lock that another thread may have held."""
        self._thread = None
        self._opening = threading.Lock()


class _Retry(functools.partial[Any]):
    """A retry that blocks."""


_hosts: weakref.WeakSet[SyncHost] = weakref.WeakSet()


def _leave_all_behind() -> None:
    for host in list(_hosts):
        host.leave_behind()


os.register_at_fork(after_in_child=_leave_all_behind)
