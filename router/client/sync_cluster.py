"""A cluster for programs without an event loop: the same methods, blocking, for any number of threads.

    with connect_sync("topology.toml") as cluster:
        state = cluster.wake("agent-42")

A Cluster runs in a loop in a thread of its own (`sync_host`); each method here calls that of the Cluster there and
waits for it: both have the same parameters, results and errors. Wakes of many threads travel together as those of one
turn of a loop do. In the child after a fork nothing of the parent's is used: thread and connections are made anew at
the first call of the child.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ..arguments import Seconds
from .cluster import Cluster
from .connect import connect
from .sync_host import SyncAgentState, SyncHost

__all__ = ["SyncAgentState", "SyncCluster", "SyncStream", "connect_sync"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_PAGE_AGENTS: Final = 512
"""Ids that `agents` fetches from the thread at once: delivering one takes as long as reading twenty."""


class SyncCluster:
    """A connection to a cluster, for any number of threads; see `connect_sync`."""

    def __init__(self, cluster: Cluster) -> None:
        """`cluster` says how to connect, and is not opened itself."""
        self._host = SyncHost(cluster)

    def __enter__(self) -> Self:
        self._host.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; calls that still wait raise ClusterUnavailable."""
        self._host.close()

    @staticmethod
    def _blocking(method: Callable[Concatenate[Cluster, P], Awaitable[R]]) -> Callable[Concatenate[SyncCluster, P], R]:
        """Return a method of the Cluster as a blocking one."""
        place = list(inspect.signature(method).parameters).index("deadline_s") - 1

        def call(self: SyncCluster, /, *args: P.args, **kwargs: P.kwargs) -> R:
            limit_s = kwargs.get("deadline_s", args[place] if len(args) > place else None)
            host = self._host
            return host.run(functools.partial(method, host.cluster, *args, **kwargs), limit_s=limit_s)

        return cast("Callable[Concatenate[SyncCluster, P], R]", functools.update_wrapper(call, method))

    # --- wake ---

    def wake(
        self, agent_id: str, kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> SyncAgentState:
        """Read an agent's fragments from all stores in parallel; return its state. As `Cluster.wake`, blocking."""
        host = self._host
        return cast("SyncAgentState", host.run(host.cluster.wake, agent_id, kinds, deadline_s, limit_s=deadline_s))

    def wake_many(
        self, ids: Iterable[str], kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> list[SyncAgentState]:
        """Wake many agents; return their states in the order of `ids`. As `Cluster.wake_many`, blocking."""
        host = self._host
        return cast(
            "list[SyncAgentState]", host.run(host.cluster.wake_many, _own(ids), kinds, deadline_s, limit_s=deadline_s)
        )

    def wake_stream(
        self, ids: Iterable[str], kinds: Iterable[str] | None = None, deadline_s: Seconds | None = None
    ) -> SyncStream[SyncAgentState]:
        """Wake many agents; iterate over their states as they become usable. As `Cluster.wake_stream`, blocking."""
        # One at a time: a state that waits here while its consumer saves would be older than acknowledged.
        return SyncStream(self._host, self._host.cluster.wake_stream, (_own(ids), kinds, deadline_s), 1, deadline_s)

    # --- save ---

    save = _blocking(Cluster.save)
    save_many = _blocking(Cluster.save_many)
    delete = _blocking(Cluster.delete)
    delete_many = _blocking(Cluster.delete_many)

    # --- the cluster ---

    def agents(self, store: str | None = None, prefix: str = "") -> SyncStream[str]:
        """Iterate over the ids of all agents. As `Cluster.agents`, blocking."""
        return SyncStream(self._host, self._host.cluster.agents, (store, prefix), _PAGE_AGENTS, None)

    status = _blocking(Cluster.status)
    back_up_shard = _blocking(Cluster.back_up_shard)

    @property
    def topology(self) -> Topology:
        """The cluster's topology, as this client knows it; available after closing too."""
        return self._host.topology

    @property
    def placement(self) -> Placement:
        """The node that serves each shard, as this client knows it."""
        return self._host.run(self._host.cluster.placement_now)


def _own(ids: Iterable[str]) -> Iterable[str]:
    """Return ids that the thread may read: a generator of them runs here, where it may call the cluster itself."""
    return ids if isinstance(ids, str | bytes | list) else list(ids)


class SyncStream(Iterator[T]):
    """The iterator that `wake_stream` and `agents` return: it blocks until its next item is there.

    `close` ends it early, so that nothing more is fetched for it; so does dropping the last reference to it.
    """

    def __init__(
        self,
        host: SyncHost,
        method: Callable[..., AsyncGenerator[Any, None]],
        arguments: tuple[Any, ...],
        page: int,
        limit_s: object,
    ) -> None:
        """`page` is the number of items received from the thread at once."""

        async def begin() -> AsyncGenerator[T, None]:
            return method(*arguments)

        self._host = host
        self._page = page
        self._limit_s = limit_s
        self._taken: deque[T] = deque()
        self._error: BaseException | None = None
        self._items = host.run(begin, limit_s=limit_s)

    def __next__(self) -> T:
        if not self._taken:
            if self._error is None:
                self._error = self._host.run(self._take, limit_s=self._limit_s)
            if not self._taken:
                assert self._error is not None
                if isinstance(self._error, StopAsyncIteration):
                    raise StopIteration
                raise self._error
        return self._taken.popleft()

    def close(self) -> None:
        """End the iterator early."""
        self._taken.clear()
        self._error = StopAsyncIteration()
        self._host.run(self._items.aclose)

    async def _take(self) -> BaseException | None:
        """Receive a page of items; return the reason for which it is the last one, None if another may follow."""
        try:
            while len(self._taken) < self._page:
                self._taken.append(await anext(self._items))
        except (Exception, StopAsyncIteration) as error:
            return error
        return None


def _hosted(opening: Callable[P, Cluster]) -> Callable[P, SyncCluster]:
    """Return a function that takes the arguments of `connect` and returns a SyncCluster."""

    @functools.wraps(opening)
    def connect_sync(*args: P.args, **kwargs: P.kwargs) -> SyncCluster:
        return SyncCluster(opening(*args, **kwargs))

    connect_sync.__name__ = connect_sync.__qualname__ = "connect_sync"
    connect_sync.__annotations__ = {**opening.__annotations__, "return": "SyncCluster"}
    connect_sync.__doc__ = """Return a cluster to be opened with `with`, for programs without an event loop.

    It takes the arguments of `connect` and has the methods of `Cluster`, which block until they have their result, by
    their deadline. Any number of threads may call them at once; their simultaneous requests travel together. A forked
    child may continue to use it, on connections of its own.
    """
    return connect_sync


connect_sync = _hosted(connect)
