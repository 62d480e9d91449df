"""A router facing dead, slow and overloaded nodes, against fake nodes that answer as each test says."""

import asyncio

import pytest

from dawnchorus import Cluster, DawnchorusError, DeadlineExceeded, Outcome, SaveRejected, WakeIncomplete
from dawnchorus.wire.cluster.topology import AdmissionSpec, BreakerSpec, RetrySpec
from dawnchorus.wire.protocol.messages import Cancel, Commit, Fault, Fetch, Request, Status, encode
from dawnchorus.wire.protocol.status_codes import FaultCode
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, FakeNodes, fake_client, wake_lacking
from tests.support.internals import is_marked_down, is_up, leftovers
from tests.support.timing import loop_time

SHORT_S, LONG_S = 0.1, 20.0
QUICK = BreakerSpec(consecutive_timeouts=2, requests_min=1_000, retry_after_s=0.3)
LASTING = BreakerSpec(consecutive_timeouts=2, requests_min=1_000, retry_after_s=3_600.0)
NO_RETRIES = RetrySpec(share=0.0, per_s=0.0)


def put(nodes: FakeNodes, *agents: str) -> None:
    for agent in agents:
        nodes.put(agent, profile=agent, session=agent, history=agent)


async def mark_down(cluster: Cluster, nodes: FakeNodes, store: str) -> None:
    """Let a node answer no fetch until its breaker opens; it ignores a timeout in a stall of this process."""
    node = nodes[store]
    node.hold.add(Fetch)
    for _ in range(100):
        (state,) = await cluster.wake_many(["a"], deadline_s=SHORT_S)
        assert not state.complete, "it does not answer"
        if is_marked_down(cluster, node.name):
            await nodes.read_everything(cluster)
            return
    raise AssertionError(f"the breaker of {node.name} does not open")


def overloaded(node: FakeNode, times: int, retry_after_us: int) -> None:
    """Let a node reject its next fetches as overloaded."""
    left = [times]

    def answer(request: Request) -> list[bytes]:
        if isinstance(request, Fetch) and left[0]:
            left[0] -= 1
            return [encode(Fault(request.request, FaultCode.OVERLOADED, "busy", retry_after_us))]
        return node.serve(request)

    node.answer = answer


def note_fetches(node: FakeNode) -> list[float]:
    """Return a list that gets the time of each fetch from now on at a node; its answers stay as they are."""
    came: list[float] = []
    answer = node.answer

    def noting(request: Request) -> list[bytes]:
        if isinstance(request, Fetch):
            came.append(loop_time())
        return answer(request)

    node.answer = noting
    return came


# --- the breaker ---


async def test_dead_node_costs_no_time_behind_open_breaker() -> None:
    async with fake_client(breaker=LASTING) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        await mark_down(cluster, nodes, "live")
        asked = len(live.asked(Fetch))
        for _ in range(5):
            began = loop_time()
            state = await cluster.wake("a", deadline_s=LONG_S)
            assert loop_time() - began < LONG_S / 2, "it does not wait for its deadline"
            assert state.outcome("session") is Outcome.UNAVAILABLE and state["profile"] == "a"
        await nodes.read_everything(cluster)
        assert len(live.asked(Fetch)) == asked, "nothing is sent to it"
        assert not leftovers(cluster)


async def test_marked_down_node_is_probed_after_its_pause() -> None:
    async with fake_client(breaker=QUICK) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        await mark_down(cluster, nodes, "live")
        live.hold.clear()
        live.held.clear()  # what it was asked before is never answered
        await asyncio.sleep(QUICK.retry_after_s + 0.05)
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert not leftovers(cluster)


async def test_recovering_node_gets_one_probe_at_a_time() -> None:
    async with fake_client(breaker=QUICK) as (cluster, nodes):
        put(nodes, "a", "b")
        live = nodes["live"]
        await mark_down(cluster, nodes, "live")
        await asyncio.sleep(QUICK.retry_after_s + 0.05)
        asked = len(live.asked(Fetch))
        probing = cluster.wake("a", deadline_s=LONG_S)
        await asyncio.sleep(0)
        other = await cluster.wake("b", deadline_s=LONG_S)
        assert other.outcome("session") is Outcome.UNAVAILABLE
        live.release()
        assert (await probing).complete
        assert len(live.asked(Fetch)) == asked + 1


async def test_marked_down_node_rejects_saves_but_answers_status() -> None:
    async with fake_client(breaker=LASTING) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        await mark_down(cluster, nodes, "live")
        with pytest.raises(SaveRejected, match="marked down"):
            await cluster.save("a", {"session": "new"}, deadline_s=LONG_S)
        assert not live.asked(Commit)
        assert not isinstance((await cluster.status(LONG_S))["live-1"], DawnchorusError)
        assert live.asked(Status)


async def test_many_timeouts_in_one_pause_mark_nothing_down() -> None:
    async with fake_client(breaker=BreakerSpec()) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        for _ in range(2):
            live.hold.add(Fetch)
            calls = await asyncio.gather(*[cluster.wake_many(["a"], deadline_s=SHORT_S) for _ in range(12)])
            assert not any(state.complete for (state,) in calls)
            live.hold.clear()
            live.held.clear()
            assert not is_marked_down(cluster, live.name)
            assert (await cluster.wake("a", deadline_s=LONG_S)).complete


async def test_repeated_save_waits_for_marked_down_node() -> None:
    async with fake_client(breaker=QUICK) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        live.hold.add(Commit)
        errors: list[DeadlineExceeded] = []
        for _ in range(QUICK.consecutive_timeouts):
            with pytest.raises(DeadlineExceeded) as caught:
                await cluster.save("a", {"session": "new"}, deadline_s=SHORT_S)
            errors.append(caught.value)
        await eventually(lambda: is_marked_down(cluster, live.name))
        asked = len(live.asked(Commit))
        with pytest.raises(DeadlineExceeded):
            await errors[0].retry()  # its deadline comes before the node is tried again
        assert len(live.asked(Commit)) == asked
        live.hold.clear()
        live.held.clear()
        again, tries = errors[0], 0
        while True:
            tries += 1
            try:
                await again.retry()
                break
            except DeadlineExceeded as error:
                again = error
        assert tries <= QUICK.retry_after_s / SHORT_S + 2, "each try lasts as long as its deadline"
        assert not leftovers(cluster)


async def test_repeated_saves_go_together_after_first_answer() -> None:
    async with fake_client(breaker=QUICK) as (cluster, nodes):
        live = nodes["live"]
        live.hold.add(Commit)
        errors: list[DeadlineExceeded] = []
        for agent in ("a", "b", "c"):
            with pytest.raises((DeadlineExceeded, SaveRejected)) as caught:
                await cluster.save(agent, {"session": agent}, deadline_s=SHORT_S)
            if isinstance(caught.value, DeadlineExceeded):
                errors.append(caught.value)
        assert is_marked_down(cluster, live.name)
        live.hold.clear()
        live.held.clear()
        writes = [
            cluster.save(agent, {"session": agent}, write_id=error.write_id, deadline_s=LONG_S)
            for agent, error in zip("abc", errors, strict=False)
        ]
        for saved in await asyncio.gather(*writes):
            assert saved.versions["session"] > 0
        assert not leftovers(cluster)


async def test_required_kind_of_dead_node_fails_wake_immediately() -> None:
    async with fake_client(breaker=LASTING) as (cluster, nodes):
        put(nodes, "a")
        await mark_down(cluster, nodes, "id")
        began = loop_time()
        with pytest.raises(WakeIncomplete, match="UNAVAILABLE") as caught:
            await cluster.wake("a", deadline_s=LONG_S)
        assert loop_time() - began < LONG_S / 2
        assert caught.value.state["session"] == "a"


# --- overload ---


async def test_overloaded_node_left_alone_then_answers_same_wake() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a", "b")
        live = nodes["live"]
        overloaded(live, 1, 200_000)
        came = note_fetches(live)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: bool(came) and "in flight" not in leftovers(cluster))  # the client knows
        other = cluster.wake("b", deadline_s=LONG_S)
        assert (await waking).complete and (await other).complete
        assert len(came) == 3
        assert came[1] - came[0] >= 0.2, "nobody else is sent there meanwhile"


async def test_request_node_cannot_serve_in_time_is_shed() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        overloaded(nodes["live"], 1, int(LONG_S * 2e6))
        began = loop_time()
        state = await cluster.wake("a", deadline_s=LONG_S)
        assert state.outcome("session") is Outcome.SHED and state["profile"] == "a"
        assert loop_time() - began < LONG_S / 2


async def test_rejected_wake_without_retry_left_is_shed() -> None:
    async with fake_client(retries=NO_RETRIES) as (cluster, nodes):
        put(nodes, "a")
        overloaded(nodes["live"], 1, 0)
        assert (await cluster.wake("a", deadline_s=LONG_S)).outcome("session") is Outcome.SHED


async def test_newcomers_are_shed_while_slow_nodes_queue_waits() -> None:
    async with fake_client(admission=AdmissionSpec(in_flight_max=1, queue_share=0.01)) as (cluster, nodes):
        put(nodes, "a", "b", "c")
        live = nodes["live"]
        live.hold.add(Fetch)
        first = cluster.wake("a", deadline_s=LONG_S)  # on its way
        await eventually(lambda: bool(live.held))
        second = cluster.wake("b", deadline_s=LONG_S)  # waits
        await asyncio.sleep(LONG_S * 0.01 + 0.05)
        began = loop_time()
        shed = await cluster.wake("c", deadline_s=LONG_S)
        assert shed.outcome("session") is Outcome.SHED and shed["profile"] == "c"
        assert loop_time() - began < LONG_S / 2
        live.release()
        assert (await first).complete and (await second).complete
        assert not leftovers(cluster)


async def test_incomplete_wake_is_shed_if_required_nodes_lag() -> None:
    async with fake_client(admission=AdmissionSpec(in_flight_max=1, queue_share=0.01)) as (cluster, nodes):
        put(nodes, "a", "b", "c")
        for node in nodes.values():
            node.hold.add(Fetch)
        first = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: all(node.held for node in nodes.values()))
        second = cluster.wake("b", deadline_s=LONG_S)
        await asyncio.sleep(LONG_S * 0.01 + 0.05)
        with pytest.raises(WakeIncomplete) as caught:
            await cluster.wake("c", deadline_s=LONG_S)
        assert {caught.value.state.outcome(kind) for kind in cluster.topology.kinds} == {Outcome.SHED}
        asking = asyncio.ensure_future(cluster.status(LONG_S))
        await asyncio.sleep(0.01)
        assert not asking.done(), "how a node is can be asked however far behind it is"
        for node in nodes.values():
            node.release()
        assert not any(isinstance(answer, DawnchorusError) for answer in (await asking).values())
        assert (await first).complete and (await second).complete
        assert all(len(node.asked(Fetch)) == 2 for node in nodes.values()), "the shed wake cost nobody anything"
        assert not leftovers(cluster)


# --- retries and cancelling ---


async def test_lost_reply_is_repeated_within_retry_budget() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        live.hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: bool(live.held))
        live.stop()
        live.hold.clear()
        live.start()
        assert (await waking).complete


async def test_lost_reply_without_retry_degrades_only_its_kinds() -> None:
    async with fake_client(retries=NO_RETRIES) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        live.hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: bool(live.held))
        live.stop()
        state = await waking
        assert state.outcome("session") is Outcome.UNAVAILABLE and state["history"] == "a"
        live.hold.clear()
        live.start()
        await eventually(lambda: is_up(cluster, "live-1"))
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete


async def test_node_is_notified_of_abandoned_requests() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        live.hold.add(Fetch)
        many = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=LONG_S))
        await eventually(lambda: bool(live.held) and leftovers(cluster)["in flight"] == 1)
        many.cancel()
        await eventually(lambda: bool(live.asked(Cancel)))
        assert live.asked(Cancel) == [Cancel([live.asked(Fetch)[0].request])]
        assert not nodes["id"].asked(Cancel), "what was answered is not cancelled"


async def test_node_is_not_notified_of_expired_requests() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        nodes["live"].hold.add(Fetch)
        await wake_lacking(cluster, "a", "session")
        await asyncio.sleep(0.05)
        assert not nodes["live"].asked(Cancel)


async def test_abandoned_wake_is_cancelled_at_its_nodes() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        live.hold.add(Fetch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT_S):
                await cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: bool(live.asked(Cancel)))
        assert live.asked(Cancel) == [Cancel([live.asked(Fetch)[0].request])]
        assert not leftovers(cluster)


async def test_possibly_applied_save_is_never_reported_as_rejected() -> None:
    async with fake_client() as (cluster, nodes):
        live = nodes["live"]
        live.hold.add(Commit)
        saving = asyncio.ensure_future(cluster.save("a", {"session": "new"}, deadline_s=2.0))
        await eventually(lambda: bool(live.held))  # applied, and its answer is lost with the connection
        live.stop()
        live.hold.clear()
        live.answer = lambda request: (
            [encode(Fault(request.request, FaultCode.OVERLOADED, "busy", 50_000))]
            if isinstance(request, Commit)
            else live.serve(request)
        )
        live.start()
        with pytest.raises(DeadlineExceeded) as caught:
            await saving
        live.answer = live.serve
        await caught.value.retry()
        assert (await cluster.wake("a", ["session"], LONG_S))["session"] == "new"


async def test_save_rejected_every_time_is_reported_as_rejected() -> None:
    async with fake_client() as (cluster, nodes):
        live = nodes["live"]
        live.answer = lambda request: (
            [encode(Fault(request.request, FaultCode.OVERLOADED, "busy", 10_000))]
            if isinstance(request, Commit)
            else live.serve(request)
        )
        with pytest.raises(SaveRejected, match="OVERLOADED"):
            await cluster.save("a", {"session": "new"}, deadline_s=LONG_S)


async def test_concurrent_settle_and_fetch_never_lose_a_value() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        live.hold.add(Fetch)
        state = await wake_lacking(cluster, "a", "session")
        await nodes.read_everything(cluster)
        late = len(live.held)
        settling = state.settle(0.8)
        fetching = asyncio.ensure_future(state.fetch("session", 1.7))  # more than twice as long: it does not join
        await eventually(lambda: len(live.held) == late + 2)
        live.release(late + 1)
        live.held.clear()  # the last is never answered: the fetch ends at its deadline
        await settling
        assert await fetching == "a"
        assert state.complete
