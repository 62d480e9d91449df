"""Malformed replies: each fails its own request and nothing else, and shows no other agent's fragment."""

import asyncio
import random
from collections.abc import Callable
from itertools import chain

import msgspec
import pytest

from dawnchorus import AgentState, Cluster, FragmentUnavailable, FragmentUndecodable, Outcome
from dawnchorus.wire.protocol.messages import Fault, FaultCode, Fetch, FetchReply, ScanReply, decode_reply, encode
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNodes, fake_client, images_frame
from tests.support.internals import leftovers, stray_replies

LONG_S = 20.0

AGENTS = [f"agent-{number}-{random.Random(number).randbytes(8).hex()}" for number in range(8)]

Garbler = Callable[[Fetch, list[bytes]], list[bytes]]


def said_twice(_fetch: Fetch, frames: list[bytes]) -> list[bytes]:
    return [*frames, *frames]


def random_bytes(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [random.Random(fetch.request).randbytes(200)]


def nothing(_fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [b""]


def cut_off(fetch: Fetch, frames: list[bytes]) -> list[bytes]:
    return [frame[: fetch.request % len(frame)] for frame in frames]


def of_another_number(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [images_frame(fetch.request + 1_000, [(0, 0, 9, [b"x"])]), images_frame(0, [(0, 0, 9, [b"x"])])]


def too_many(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    agents = fetch.sections[0].agents
    return [images_frame(fetch.request, [(0, 0, 9, [b"x"] * (len(agents) + 1))])]


def of_another_section(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [images_frame(fetch.request, [(len(fetch.sections), 0, 9, [b"x"])])]


def out_of_order(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [images_frame(fetch.request, [(0, 1, 9, [b"x"])])]


def over_before_it_is(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [images_frame(fetch.request, [])]


def never_over(fetch: Fetch, frames: list[bytes]) -> list[bytes]:
    complete = decode_reply(frames[0])
    assert isinstance(complete, FetchReply)
    return [encode(msgspec.structs.replace(complete, last=False))]


def of_another_type(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [encode(ScanReply(fetch.request, 0, [b"x"], True))]


def unknown_fault(fetch: Fetch, _frames: list[bytes]) -> list[bytes]:
    return [encode(Fault(fetch.request, 77, "of a later version"))]


@pytest.mark.parametrize(
    ("garble", "outcomes"),
    [
        (said_twice, {Outcome.OK}),
        (never_over, {Outcome.OK}),
        (random_bytes, {Outcome.TIMEOUT}),
        (nothing, {Outcome.TIMEOUT}),
        (cut_off, {Outcome.TIMEOUT}),
        (of_another_number, {Outcome.TIMEOUT}),
        (too_many, {Outcome.UNAVAILABLE}),
        (of_another_section, {Outcome.UNAVAILABLE}),
        (out_of_order, {Outcome.UNAVAILABLE}),
        (over_before_it_is, {Outcome.UNAVAILABLE}),
        (of_another_type, {Outcome.UNAVAILABLE}),
        (unknown_fault, {Outcome.FAULT}),
    ],
)
async def test_malformed_answer_fails_only_its_own_request(garble: Garbler, outcomes: set[Outcome]) -> None:
    deadline_s = 0.6 if Outcome.TIMEOUT in outcomes else LONG_S  # the others end when the answer comes
    async with fake_client() as (cluster, nodes):
        garbled(nodes, garble)
        asked = [[agent_id] for agent_id in AGENTS[:3]] + [AGENTS]
        woken = await asyncio.gather(*[cluster.wake_many(ids, deadline_s=deadline_s) for ids in asked])
        for state in chain.from_iterable(woken):
            assert {state.outcome("session")} == outcomes
            assert_honest(state)
        await assert_intact_again(cluster, nodes)


async def test_flipped_bits_never_show_another_agents_fragment() -> None:
    chance = random.Random(20260726)
    async with fake_client() as (cluster, nodes):

        def flip(fetch: Fetch, frames: list[bytes]) -> list[bytes]:
            flipped = bytearray(frames[0])
            for _ in range(chance.randint(1, 3)):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            # A reply to no request is ignored; then the fault ends the wake, long before its deadline.
            return [bytes(flipped), encode(Fault(fetch.request, FaultCode.INTERNAL, "that was malformed"))]

        garbled(nodes, flip)
        for turn in range(150):
            (state,) = await cluster.wake_many([AGENTS[turn % len(AGENTS)]], deadline_s=LONG_S)
            assert_honest(state)
        await assert_intact_again(cluster, nodes)


async def test_flipped_sizes_never_show_another_agents_fragment() -> None:
    chance = random.Random(1)
    async with fake_client(shards={"id": 1, "live": 1, "old": 1}) as (cluster, nodes):

        def flip(fetch: Fetch, frames: list[bytes]) -> list[bytes]:
            complete = decode_reply(frames[0])
            assert isinstance(complete, FetchReply)
            (section,) = complete.sections
            sizes = list(section.sizes)
            sizes[chance.randrange(len(sizes))] ^= 1 << chance.randrange(9)
            return [encode(msgspec.structs.replace(complete, sections=[msgspec.structs.replace(section, sizes=sizes)]))]

        garbled(nodes, flip)
        for _ in range(30):
            for state in await cluster.wake_many(AGENTS, deadline_s=LONG_S):
                assert state.outcome("session") is Outcome.UNAVAILABLE
                assert_honest(state)
        await assert_intact_again(cluster, nodes)


async def test_malformed_frames_between_answers_disturb_no_request() -> None:
    async with fake_client() as (cluster, nodes):
        garbled(nodes, lambda fetch, frames: [b"\xc1", *random_bytes(fetch, frames), *frames, b"\xff"])
        for state in await cluster.wake_many(AGENTS, deadline_s=LONG_S):
            assert state.complete
            assert_honest(state)
        await eventually(lambda: stray_replies(cluster) >= 3)
        await assert_intact_again(cluster, nodes)


def garbled(nodes: FakeNodes, garble: Garbler) -> None:
    """Keep some agents whose values name them, and garble what node `live` answers to fetches."""
    for agent_id in AGENTS:
        nodes.put(agent_id, profile=agent_id, session={"of": agent_id}, history=agent_id)
    live = nodes["live"]
    live.answer = lambda request: (
        garble(request, live.serve(request)) if isinstance(request, Fetch) else live.serve(request)
    )


def assert_honest(state: AgentState) -> None:
    """Assert that other nodes' fragments are right and that the garbling node's name no other agent."""
    assert state["profile"] == state["history"] == state.agent_id
    try:
        shown = repr(state.get("session"))
    except (FragmentUnavailable, FragmentUndecodable):
        return
    assert not any(agent_id in shown for agent_id in AGENTS if agent_id != state.agent_id)


async def assert_intact_again(cluster: Cluster, nodes: FakeNodes) -> None:
    """Assert that the same client wakes complete agents once the node answers correctly, with nothing left over."""
    nodes["live"].answer = nodes["live"].serve
    for state in await cluster.wake_many(AGENTS, deadline_s=LONG_S):
        assert state["session"] == {"of": state.agent_id}
        assert_honest(state)
    assert not leftovers(cluster)
