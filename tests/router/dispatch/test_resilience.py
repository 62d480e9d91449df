"""What a router does for a node in trouble, and for those who wait, with nodes that answer as a test says."""

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


async def take_for_dead(cluster: Cluster, nodes: FakeNodes, store: str) -> None:
    """Let a node answer no fetch until its breaker opens; a time-out in a stall of this process is none to it."""
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
    """Let a node refuse its next fetches as too much."""
    left = [times]

    def answer(request: Request) -> list[bytes]:
        if isinstance(request, Fetch) and left[0]:
            left[0] -= 1
            return [encode(Fault(request.request, FaultCode.OVERLOADED, "busy", retry_after_us))]
        return node.serve(request)

    node.answer = answer


def note_fetches(node: FakeNode) -> list[float]:
    """Return a list of when each fetch from now on comes to a node; its answers stay as they are."""
    came: list[float] = []
    answer = node.answer

    def noting(request: Request) -> list[bytes]:
        if isinstance(request, Fetch):
            came.append(loop_time())
        return answer(request)

    node.answer = noting
    return came


# --- the breaker ---


async def test_a_dead_node_costs_no_time_once_its_breaker_is_open() -> None:
    async with fake_client(breaker=LASTING) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        await take_for_dead(cluster, nodes, "live")
        asked = len(live.asked(Fetch))
        for _ in range(5):
            began = loop_time()
            state = await cluster.wake("a", deadline_s=LONG_S)
            assert loop_time() - began < LONG_S / 2, "it does not wait for its deadline"
            assert state.outcome("session") is Outcome.UNAVAILABLE and state["profile"] == "a"
        await nodes.read_everything(cluster)
        assert len(live.asked(Fetch)) == asked, "nothing is sent to it"
        assert not leftovers(cluster)


async def test_a_node_taken_for_dead_is_probed_after_a_while_though_it_gives_no_sign_of_life() -> None:
    async with fake_client(breaker=QUICK) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        await take_for_dead(cluster, nodes, "live")
        live.hold.clear()
        live.held.clear()  # what it was asked before is never answered
        await asyncio.sleep(QUICK.retry_after_s + 0.05)
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert not leftovers(cluster)


async def test_one_probe_goes_at_a_time_to_a_node_that_may_have_recovered() -> None:
    async with fake_client(breaker=QUICK) as (cluster, nodes):
        put(nodes, "a", "b")
        live = nodes["live"]
        await take_for_dead(cluster, nodes, "live")
        await asyncio.sleep(QUICK.retry_after_s + 0.05)
        asked = len(live.asked(Fetch))
        probing = cluster.wake("a", deadline_s=LONG_S)
        await asyncio.sleep(0)
        other = await cluster.wake("b", deadline_s=LONG_S)
        assert other.outcome("session") is Outcome.UNAVAILABLE
        live.release()
        assert (await probing).complete
        assert len(live.asked(Fetch)) == asked + 1


async def test_a_save_to_a_node_taken_for_dead_is_refused_at_once_and_how_it_is_can_still_be_asked() -> None:
    async with fake_client(breaker=LASTING) as (cluster, nodes):
        put(nodes, "a")
        live = nodes["live"]
        await take_for_dead(cluster, nodes, "live")
        with pytest.raises(SaveRejected, match="marked down"):
            await cluster.save("a", {"session": "new"}, deadline_s=LONG_S)
        assert not live.asked(Commit)
        assert not isinstance((await cluster.status(LONG_S))["live-1"], DawnchorusError)
        assert live.asked(Status)


async def test_a_pause_in_which_many_calls_time_out_together_does_not_take_a_node_for_dead() -> None:
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


async def test_a_save_tried_again_waits_for_a_node_taken_for_dead() -> None:
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


async def test_saves_tried_again_go_together_once_the_first_is_answered() -> None:
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


async def test_a_required_kind_of_a_dead_node_fails_the_wake_at_once() -> None:
    async with fake_client(breaker=LASTING) as (cluster, nodes):
        put(nodes, "a")
        await take_for_dead(cluster, nodes, "id")
        began = loop_time()
        with pytest.raises(WakeIncomplete, match="UNAVAILABLE") as caught:
            await cluster.wake("a", deadline_s=LONG_S)
        assert loop_time() - began < LONG_S / 2
        assert caught.value.state["session"] == "a"


# --- overload ---


async def test_a_node_that_asks_to_be_left_alone_is_and_then_answers_the_same_wake() -> None:
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


async def test_what_a_node_has_no_time_for_before_the_deadline_is_shed_at_once() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        overloaded(nodes["live"], 1, int(LONG_S * 2e6))
        began = loop_time()
        state = await cluster.wake("a", deadline_s=LONG_S)
        assert state.outcome("session") is Outcome.SHED and state["profile"] == "a"
        assert loop_time() - began < LONG_S / 2


async def test_without_a_retry_left_a_refused_wake_is_shed() -> None:
    async with fake_client(retries=NO_RETRIES) as (cluster, nodes):
        put(nodes, "a")
        overloaded(nodes["live"], 1, 0)
        assert (await cluster.wake("a", deadline_s=LONG_S)).outcome("session") is Outcome.SHED


async def test_newcomers_are_shed_at_once_where_others_have_waited_long_for_a_slow_node() -> None:
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


async def test_where_required_nodes_are_behind_too_a_wake_that_would_not_be_whole_is_shed_whole() -> None:
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


async def test_a_reply_lost_with_its_connection_is_asked_for_again_if_the_budget_has_a_retry() -> None:
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


async def test_without_a_retry_left_it_is_unavailable_and_the_rest_is_there() -> None:
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


async def test_a_node_is_told_of_what_nobody_waits_for_any_more() -> None:
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


async def test_a_node_is_not_told_of_what_it_drops_by_itself() -> None:
    async with fake_client() as (cluster, nodes):
        put(nodes, "a")
        nodes["live"].hold.add(Fetch)
        await wake_lacking(cluster, "a", "session")
        await asyncio.sleep(0.05)
        assert not nodes["live"].asked(Cancel)


async def test_a_wake_given_up_by_its_caller_is_cancelled_at_its_nodes() -> None:
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


async def test_a_save_that_may_have_been_applied_is_never_told_as_refused() -> None:
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


async def test_a_save_that_every_sending_of_was_refused_is_told_as_refused() -> None:
    async with fake_client() as (cluster, nodes):
        live = nodes["live"]
        live.answer = lambda request: (
            [encode(Fault(request.request, FaultCode.OVERLOADED, "busy", 10_000))]
            if isinstance(request, Commit)
            else live.serve(request)
        )
        with pytest.raises(SaveRejected, match="OVERLOADED"):
            await cluster.save("a", {"session": "new"}, deadline_s=LONG_S)


async def test_settle_and_fetch_at_once_never_take_back_what_one_brought() -> None:
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
