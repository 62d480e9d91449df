"""The blocking client: the methods of a Cluster from any number of threads, and in the children of a fork."""

import contextlib
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

import dawnchorus
from dawnchorus import (
    AgentState,
    Cluster,
    ClusterUnavailable,
    DeadlineExceeded,
    InvalidRequestError,
    Outcome,
    Saved,
    SyncAgentState,
    SyncCluster,
    UnknownKindError,
    connect,
    connect_sync,
)
from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.router.client.loop_thread import LoopThread
from dawnchorus.wire.protocol.messages import Commit, Fetch
from tests.router.client.test_home import in_fork
from tests.support.fake_nodes import FakeNodes, fake_cluster, fake_topology
from tests.support.internals import thread_of

LONG_S = 30.0


@contextlib.contextmanager
def sync_client() -> Generator[tuple[SyncCluster, FakeNodes]]:
    """Open a blocking client of fake nodes, whose loop runs in a thread as well."""
    topology = fake_topology(wake_deadline_ms=20_000, ports=free_ports(3))
    nodes: LoopThread[FakeNodes] = LoopThread(lambda: fake_cluster(topology), "nodes")
    nodes.start(LONG_S)
    try:
        with connect_sync(topology) as cluster:
            yield cluster, nodes.resource
    finally:
        nodes.close()


def public(of: type) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


def test_every_cluster_method_has_the_same_parameters() -> None:
    assert public(SyncCluster) == public(Cluster)
    for name in public(Cluster):
        asynchronous, blocking = getattr(Cluster, name), getattr(SyncCluster, name)
        if isinstance(asynchronous, property):
            assert isinstance(blocking, property)
            continue
        expected, given = inspect.signature(asynchronous), inspect.signature(blocking)
        assert list(given.parameters.values()) == list(expected.parameters.values()), name
        assert not inspect.iscoroutinefunction(blocking)
        assert blocking.__doc__
    assert inspect.signature(connect_sync).parameters == inspect.signature(connect).parameters
    states = public(AgentState)
    assert public(SyncAgentState) == states
    for name in ("settle", "fetch"):
        assert list(inspect.signature(getattr(SyncAgentState, name)).parameters) == list(
            inspect.signature(getattr(AgentState, name)).parameters
        )


def test_program_without_loop_runs() -> None:
    with sync_client() as (cluster, _):
        saved = cluster.save("agent-42", {"profile": {"name": "Ada"}, "session": b"raw"})
        assert isinstance(saved, Saved)
        state = cluster.wake("agent-42")
        assert isinstance(state, AgentState)
        assert (state["profile"], state["session"]) == ({"name": "Ada"}, b"raw")
        cluster.save("agent-42", {"profile": {"name": "Bob"}}, expect=state)
        with pytest.raises(dawnchorus.AgentNotFound):
            cluster.wake("nobody")
        states = cluster.wake_many(agent_id for agent_id in ("agent-42", "nobody"))
        assert [state.outcome("profile") for state in states] == [Outcome.OK, Outcome.ABSENT]
        results = cluster.save_many({"agent-1": {"session": 1}, "agent-2": {"nonsense": 1}})
        assert isinstance(results["agent-1"], Saved)
        assert isinstance(results["agent-2"], UnknownKindError)
        assert {state.agent_id for state in cluster.wake_stream(["agent-1", "agent-42"])} == {"agent-1", "agent-42"}
        assert list(cluster.agents()) == ["agent-1", "agent-42"]
        assert cluster.topology.name == "fake"
        assert set(cluster.placement.shards) == {"id", "live", "old"}
        assert set(cluster.status()) == {"id-1", "live-1", "old-1"}
        assert isinstance(cluster.delete("agent-42"), Saved)
        assert list(cluster.agents("live")) == ["agent-1"]


def test_stream_may_be_left_early_and_closed() -> None:
    with sync_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        stream = cluster.wake_stream(["a", "b", "c"])
        assert next(stream).agent_id in "abc"
        stream.close()
        assert list(stream) == []
        for _ in cluster.wake_stream(["a", "b", "c"]):
            break
        assert cluster.wake("a")["profile"] == 1


def test_states_settle_and_fetch_blocking() -> None:
    with sync_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        state = cluster.wake("a", kinds=["profile"])
        assert state.fetch("history") == 3
        nodes["live"].hold = {Fetch}
        degraded = state
        while degraded.degraded != ("session",):  # if this process stalls, the state lacks more
            [degraded] = cluster.wake_many(["a"], deadline_s=0.2)
        nodes["live"].release()
        called: list[AgentState] = []
        assert degraded.settle(callback=called.append) is degraded
        assert called == [degraded]
        assert (degraded.complete, degraded["session"]) == (True, 2)
        assert degraded.settle() is degraded


def test_errors_retry_blocking() -> None:
    with sync_client() as (cluster, nodes):
        nodes["id"].hold = {Commit}
        with pytest.raises(DeadlineExceeded) as caught:
            cluster.save("a", {"profile": 1}, deadline_s=0.3)
        results = cluster.save_many({"b": {"profile": 1}}, deadline_s=0.3)
        nodes["id"].release()
        assert caught.value.retry().agent_id == "a"
        late = results["b"]
        assert isinstance(late, DeadlineExceeded)
        assert isinstance(late.retry(), Saved)
        assert cluster.wake("b")["profile"] == 1
        cluster.close()
        with pytest.raises(ClusterUnavailable, match="was closed"):
            caught.value.retry()


def test_wakes_of_many_threads_share_one_fetch() -> None:
    ids = [f"agent-{number}" for number in range(40)]
    with sync_client() as (cluster, nodes):
        for agent_id in ids:
            nodes.put(agent_id, profile=agent_id)
        busy, go = threading.Event(), threading.Event()

        async def hold() -> None:
            busy.set()
            go.wait(LONG_S)

        thread = thread_of(cluster)
        woken: dict[str, Any] = {}
        blocker = threading.Thread(target=thread.run, args=(hold,), kwargs={"limit_s": LONG_S})
        blocker.start()
        assert busy.wait(LONG_S)

        def work(agent_id: str) -> None:
            woken[agent_id] = cluster.wake(agent_id, deadline_s=LONG_S)["profile"]

        workers = [threading.Thread(target=work, args=(agent_id,)) for agent_id in ids]
        for worker in workers:
            worker.start()
        while thread.calls_waiting < len(ids):
            time.sleep(0.001)
        go.set()
        for worker in [blocker, *workers]:
            worker.join(LONG_S)
        assert woken == {agent_id: agent_id for agent_id in ids}
        assert sorted(agent.decode() for agent in nodes.agents_fetched("id")) == sorted(ids)
        assert len(nodes["id"].asked(Fetch)) == 1


def test_many_threads_save_and_wake_without_mixing_results() -> None:
    with sync_client() as (cluster, _):
        wrong: list[object] = []

        def work(number: int) -> None:
            for value in range(10):
                cluster.save(f"agent-{number}", {"profile": value}, deadline_s=LONG_S)
                found = cluster.wake(f"agent-{number}", deadline_s=LONG_S)["profile"]
                if found != value:
                    wrong.append((number, value, found))

        workers = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LONG_S)
        assert not wrong


def test_calls_outside_open_cluster_are_rejected() -> None:
    with sync_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        never = connect_sync(cluster.topology)
        calls: list[Callable[[], object]] = [
            lambda: never.wake("a"),
            lambda: never.topology,
            lambda: list(never.agents()),
            lambda: never.status(),
        ]
        for call in calls:
            with pytest.raises(ClusterUnavailable, match="with connect_sync"):
                call()
        never.close()
        with pytest.raises(InvalidRequestError, match="open already"), cluster:
            pass
        assert cluster.wake("a")["profile"] == 1
        cluster.close()
        with pytest.raises(ClusterUnavailable, match="was closed"):
            cluster.wake("a")
        assert cluster.topology.name == "fake"
        with cluster:
            assert cluster.wake("a")["profile"] == 1


def test_entering_without_any_node_raises() -> None:
    before = threading.active_count()
    with (
        pytest.raises(ClusterUnavailable, match="no node answered"),
        connect_sync(fake_topology(ports=free_ports(3)), connect_deadline_s=0.1),
    ):
        pass
    assert threading.active_count() == before


def test_forked_child_uses_connections_of_its_own() -> None:
    with sync_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2)
        state = cluster.wake("a", kinds=["profile"])

        def child() -> list[object]:
            seen: list[object] = [
                cluster.wake("a")["profile"],
                state.fetch("session"),
                cluster.save("b", {"profile": 2}).agent_id,
            ]
            seen.append(sorted(thread.name for thread in threading.enumerate())[-1])
            cluster.close()
            return seen

        peers = {peer for node in nodes.values() for peer in node.peers}
        assert in_fork(child) == [1, 2, "b", "dawnchorus"]
        assert {peer for node in nodes.values() for peer in node.peers} > peers, "other connections"
        assert cluster.wake("b")["profile"] == 2
        assert cluster.wake("a")["profile"] == 1


def test_fork_while_threads_wake_disturbs_no_thread() -> None:
    with sync_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        stop, errors = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                while not stop.is_set():
                    assert cluster.wake("a", deadline_s=LONG_S)["profile"] == 1
            except BaseException as error:
                errors.append(error)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        results = [in_fork(lambda: cluster.wake("a", deadline_s=LONG_S)["profile"]) for _ in range(5)]
        stop.set()
        for worker in workers:
            worker.join(LONG_S)
        assert (results, errors) == ([1] * 5, [])


def test_forked_child_exits_without_errors() -> None:
    with sync_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        endpoint = next(iter(cluster.topology.nodes.values())).endpoint
        program = (
            "import os, sys, dawnchorus\n"
            f"with dawnchorus.connect_sync({endpoint!r}) as cluster:\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        print(cluster.wake('a')['profile'])\n"
            "        sys.exit(3)\n"
            "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), cluster.wake('a')['profile'])\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"},
        )
    assert (ended.returncode, ended.stderr, ended.stdout.split()) == (0, "", ["1", "3", "1"])
