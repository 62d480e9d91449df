"""Both faces of a cluster under the same tests: a Cluster as it is, and a SyncCluster called from threads."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from dawnchorus import Cluster, SyncCluster, connect, connect_sync

__all__ = ["FACES", "opened"]

FACES = ("asyncio", "threads")

_END = object()


class _FromThreads:
    """A SyncCluster with the methods of a Cluster: each call runs in another thread, and can be awaited."""

    def __init__(self, cluster: SyncCluster) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str) -> Any:
        value: Any = getattr(self._cluster, name)
        if not callable(value):
            return value
        if name in ("wake_stream", "agents"):

            def items(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
                return _items(functools.partial(value, *args, **kwargs))

            return items

        def call(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            return asyncio.ensure_future(asyncio.to_thread(value, *args, **kwargs))

        return call


async def _items(iterate: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    items = await asyncio.to_thread(iterate)
    while (item := await asyncio.to_thread(next, items, _END)) is not _END:
        yield item


@contextlib.asynccontextmanager
async def opened(face: str, *args: Any, **kwargs: Any) -> AsyncGenerator[Cluster]:
    """Connect by one face; `args` are those of `connect`."""
    if face == "asyncio":
        async with connect(*args, **kwargs) as cluster:
            yield cluster
        return
    blocking = connect_sync(*args, **kwargs)
    await asyncio.to_thread(blocking.__enter__)
    try:
        yield cast("Cluster", _FromThreads(blocking))
    finally:
        await asyncio.to_thread(blocking.close)
