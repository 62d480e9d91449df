"""A cluster used outside its event loop, thread or process: rejected at once, nothing sent, nothing applied."""

import asyncio
import inspect
import os
import pickle
import threading
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from dawnchorus import (
    AgentState,
    Cluster,
    ClusterUnavailable,
    InvalidRequestError,
    SaveError,
    WrongLoopError,
    connect,
)
from dawnchorus.wire.protocol.messages import Commit, Fetch, Hello
from tests.support.fake_nodes import FakeNodes, fake_client, wake_lacking


class Given(NamedTuple):
    """Objects of a cluster that a program may use in the wrong place."""

    cluster: Cluster
    state: AgentState
    """A state that lacks `history`."""
    error: SaveError
    stream: AsyncGenerator[Any, None]
    """A wake_stream, begun at home."""


ENTRIES: dict[str, Callable[[Given], Any]] = {
    "__aenter__": lambda given: given.cluster.__aenter__(),
    "__aexit__": lambda given: given.cluster.__aexit__(None, None, None),
    "agents": lambda given: anext(given.cluster.agents()),
    "back_up_shard": lambda given: given.cluster.back_up_shard("id", 0, "copy", rate_bytes_s=1, deadline_s=5.0),
    "close": lambda given: given.cluster.close(),
    "delete": lambda given: given.cluster.delete("a"),
    "delete_many": lambda given: given.cluster.delete_many(["a"]),
    "placement": lambda given: given.cluster.placement,
    "save": lambda given: given.cluster.save("a", {"profile": 2}),
    "save_many": lambda given: given.cluster.save_many({"a": {"profile": 2}}),
    "status": lambda given: given.cluster.status(),
    "wake": lambda given: given.cluster.wake("a"),
    "wake_many": lambda given: given.cluster.wake_many(["a"]),
    "wake_stream": lambda given: anext(given.cluster.wake_stream(["a"])),
}
BESIDE: dict[str, Callable[[Given], Any]] = {
    "fetch": lambda given: given.state.fetch("history"),
    "settle": lambda given: given.state.settle(),
    "retry": lambda given: given.error.retry(),
    "next of a stream": lambda given: anext(given.stream),
    "asend of a stream": lambda given: given.stream.asend(None),
    "athrow of a stream": lambda given: given.stream.athrow(ValueError("stop")),
    "aclose of a stream": lambda given: given.stream.aclose(),
}
CALLS = {**ENTRIES, **BESIDE}
READ_ANYWHERE = {"topology"}
"""Attributes that never change while a cluster is open."""


def test_every_entry_point_is_tried() -> None:
    public = {name for name in vars(Cluster) if not name.startswith("_")} | {"__aenter__", "__aexit__"}
    assert public == set(ENTRIES) | READ_ANYWHERE


async def given_of(cluster: Cluster, nodes: FakeNodes) -> Given:
    """Return everything that a program can have of an open cluster."""
    nodes.put("a", profile=1, session=1, history=1)
    nodes["old"].hold = {Fetch}
    state = await wake_lacking(cluster, "a", "history")
    nodes["id"].hold = {Commit}
    with pytest.raises(SaveError) as caught:
        await cluster.save("b", {"profile": 1}, deadline_s=0.01)
    nodes["id"].release()
    nodes["old"].release()
    stream = cluster.wake_stream(["a", "b", "c"])
    await anext(stream)
    return Given(cluster, state, caught.value, stream)


async def outcome_of(call: Callable[[Given], Any], given: Given) -> BaseException | None:
    """Return the error that a call raised, at once or when it was awaited; None if it raised none."""
    try:
        result = call(given)
        if inspect.isawaitable(result):
            async with asyncio.timeout(5):
                await result
    except BaseException as error:
        return error
    return None


def step(call: Callable[[Given], Any], given: Given) -> BaseException | None:
    """Do the same without a loop: run an awaitable until it first waits."""
    try:
        result: Awaitable[Any] = call(given)
        if inspect.isawaitable(result):
            result.__await__().send(None)
    except BaseException as error:
        return error
    return None


def in_thread(work: Callable[[], Any]) -> Any:
    """Return a function's result from another thread, while this one waits: its loop does nothing meanwhile."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), name="elsewhere")
    thread.start()
    thread.join(60)
    return results[0]


def in_fork(work: Callable[[], Any]) -> Any:
    """Return a function's result from a forked child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, if threads run
        child = os.fork()
    if not child:
        try:
            os.write(writing, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        received = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(received)


async def all_outcomes(given: Given) -> dict[str, BaseException | None]:
    return {name: await outcome_of(call, given) for name, call in CALLS.items()}


WAYS: dict[str, Callable[[Given], dict[str, BaseException | None]]] = {
    "another loop": lambda given: in_thread(lambda: asyncio.run(all_outcomes(given))),
    "another thread": lambda given: in_thread(lambda: {name: step(call, given) for name, call in CALLS.items()}),
    "after a fork": lambda given: in_fork(lambda: {name: step(call, given) for name, call in CALLS.items()}),
}
SAYS = {
    "another loop": "is used in 'elsewhere'",
    "another thread": "is used in 'elsewhere'",
    "after a fork": "is a fork of it: connect anew",
}


@pytest.mark.parametrize("way", WAYS)
async def test_call_from_elsewhere_is_rejected_and_nothing_sent(way: str) -> None:
    async with fake_client() as (cluster, nodes):
        given = await given_of(cluster, nodes)
        await nodes.read_everything(cluster)
        before = {store: (len(node.requests), node.version) for store, node in nodes.items()}
        asked = cluster.wake("a")  # in the same turn as the calls from elsewhere
        outcomes = WAYS[way](given)
        for name, error in outcomes.items():
            if name == "__aenter__" and way != "after a fork":
                assert isinstance(error, InvalidRequestError)
                continue
            assert isinstance(error, WrongLoopError), f"{name}: {error!r}"
            assert SAYS[way] in str(error), f"{name}: {error}"
        # The cluster's own loop goes on, and the nodes have received nothing but its requests.
        assert (await asked)["profile"] == (await cluster.wake("a"))["profile"] == 1
        await nodes.read_everything(cluster)
        for store, node in nodes.items():
            new = [request for request in node.requests[before[store][0] :] if not isinstance(request, Hello)]
            assert {type(request).__name__ for request in new if not isinstance(request, Commit)} == {"Fetch"}, new
            assert not [request for request in new if isinstance(request, Commit)], "a save was sent"
            assert node.version == before[store][1], "nothing was applied"
        await given.stream.aclose()
        saved = await given.error.retry()
        assert saved.agent_id == "b"


async def test_second_loop_of_same_thread_is_rejected() -> None:
    def use(cluster: Cluster) -> None:
        async def save() -> None:
            await cluster.save("a", {"profile": 1})

        with pytest.raises(WrongLoopError, match="opened in another event loop"):
            asyncio.run(save())

    async def leak() -> Cluster:
        async with fake_client() as (cluster, _):
            opened = connect(cluster.topology)
            await opened.__aenter__()
            leaked.append(opened)
            async with asyncio.timeout(10):
                await ended.wait()
            opened.close()
        return opened

    leaked: list[Cluster] = []
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    def drive() -> None:
        task = loop.create_task(leak())
        while not leaked:
            loop.run_until_complete(asyncio.sleep(0.01))
        use(leaked[0])
        loop.run_until_complete(_set(ended))
        loop.run_until_complete(task)
        loop.close()

    in_thread(drive)
    assert leaked


async def _set(event: asyncio.Event) -> None:
    event.set()


async def test_cluster_entered_twice_stays_usable() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        with pytest.raises(InvalidRequestError, match="open already"):
            async with cluster:
                pass
        assert (await cluster.wake("a"))["profile"] == 1
        other = connect(cluster.topology)
        entering = asyncio.ensure_future(other.__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(InvalidRequestError, match="open already"):
            await other.__aenter__()
        with pytest.raises(ClusterUnavailable, match="not open"):
            other.wake("a")
        await entering
        assert (await other.wake("a"))["profile"] == 1
        other.close()
        with pytest.raises(ClusterUnavailable, match="was closed"):
            other.wake("a")
        async with other:  # a closed cluster may be opened again
            assert (await other.wake("a"))["profile"] == 1


async def test_cluster_never_opened_raises_with_instructions() -> None:
    async with fake_client() as (cluster, _):
        topology = cluster.topology
    never = connect(topology)
    with pytest.raises(ClusterUnavailable, match="async with"):
        never.wake("a")
    with pytest.raises(ClusterUnavailable, match="async with"):
        _ = never.topology
    never.close()


async def test_retry_after_close_is_rejected_at_once() -> None:
    async with fake_client() as (cluster, nodes):
        given = await given_of(cluster, nodes)
        cluster.close()
        with pytest.raises(ClusterUnavailable, match="was closed"):
            await given.error.retry()
        await given.stream.aclose()
