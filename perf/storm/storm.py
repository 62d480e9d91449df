"""A wake storm: a cluster of its own, Redis and the raw limits, asked for the same agents in turn, run by run.

    start the cluster, put all agents to sleep -> the same in Redis, find its best batches -> start the raw servers
    each run: a fresh sample of agents; every way of waking them once, beginning with another one each run
    medians over the runs, ratios of the medians

Measured in alternation because a machine changes under the measurement: what slows one run slows all its members. Every
result is compared with what was saved, after the clock has stopped. All clients live in this one process, with the same
event loop and the same settings of the garbage collector.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from ..harness.measure import (
    Spread,
    Tail,
    Wakes,
    check_encoded,
    check_states,
    closed_loop,
    milliseconds,
    natural,
    notes_on_process,
    settle,
    settled_memory,
    single_wakes,
    spread_of,
    tail_of,
    wake_many,
)
from ..harness.progress import Progress, no_progress
from ..harness.scratch import socket_folder, temporary_folder
from ..harness.sleeping_cluster import sleeping_cluster
from ..harness.topologies import TopologyName, node_count, store_of_kind
from ..harness.workload import SyntheticAgents, Workload, WorkloadError, image_bytes
from ..peers.raw_zmq import RawEcho, RawStorm, raw_echo, raw_storm
from ..peers.redis_peer import RedisPeer, RedisUnavailable, redis_peer
from .report import Batches, Peers, StormReport, ratios_of, render

__all__ = ["StormOptions", "render", "storm"]


class StormOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. The defaults take about 40 s on two cores."""

    agents: int = 100_000
    """made up and asleep; not used where `workload` is given"""
    value_bytes: int = 512
    """of each made-up fragment"""
    workload: Workload | None = None
    """agents of one's own (`GivenAgents`)"""
    wake: int = 10_000
    """woken at once; at most as many as sleep"""
    topology: TopologyName = "default"
    runs: int = 5
    """alternated; nine or more for numbers that others are shown"""
    singles: int = 1000
    """wakes one at a time, and echoes, in each run"""
    closed_loop_s: float = 1.0
    """in each run"""
    seed: int = 1
    redis_server: str = "redis-server"
    """name or path of the program"""
    folder: Path | None = None
    """where the temporary folder for data and sockets is made; None: the system's"""


class _Times:
    """Everything measured so far."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = {}
        self.nanoseconds: dict[str, list[int]] = {}
        self.per_second: list[float] = []

    def add(self, name: str, value: float) -> None:
        self.milliseconds.setdefault(name, []).append(value)

    def spread(self, name: str) -> Spread | None:
        return spread_of(self.milliseconds[name]) if name in self.milliseconds else None

    def tail(self, name: str) -> Tail | None:
        return tail_of(self.nanoseconds[name]) if name in self.nanoseconds else None


class _Contest:
    """All that take part, and the turn of each."""

    def __init__(
        self,
        workload: Workload,
        options: StormOptions,
        cluster: Wakes,
        redis: RedisPeer | None,
        raw: RawStorm,
        echo: RawEcho,
    ) -> None:
        self._workload = workload
        self._options = options
        self._cluster = cluster
        self._redis = redis
        self._raw = raw
        self._echo = echo
        self.times = _Times()

    async def run(self, number: int, sample: Sequence[int]) -> None:
        """One run with these agents."""
        turns: list[Callable[[Sequence[int]], Awaitable[None]]] = [self._wake_many, self._raw_storm, self._natural]
        turns += [self._singles_and_echo, self._closed_loop]
        if self._redis is not None:
            turns[1:1] = [self._redis_packed, self._redis_mget]
            turns.append(self._redis_natural)
        first = number % len(turns)
        for turn in turns[first:] + turns[:first]:
            await settle()
            await turn(sample)

    def forget(self) -> None:
        """Drop all times: what came before was to warm up."""
        self.times = _Times()

    async def _wake_many(self, sample: Sequence[int]) -> None:
        ids = self._ids(sample)
        elapsed, states = await milliseconds(lambda: wake_many(self._cluster, ids))
        self.times.add("wake_many", elapsed)
        check_states(states, sample, self._workload)

    async def _natural(self, sample: Sequence[int]) -> None:
        ids = self._ids(sample)
        elapsed, states = await milliseconds(lambda: natural(self._cluster, ids))
        self.times.add("natural", elapsed)
        check_states(states, sample, self._workload)

    async def _singles_and_echo(self, sample: Sequence[int]) -> None:
        singles = self.times.nanoseconds.setdefault("single", [])
        echoes = self.times.nanoseconds.setdefault("echo", [])
        agents = [sample[index % len(sample)] for index in range(self._options.singles)]
        # All of them, then all echoes: the first 200 after each change are slower, until the scheduler has found places
        # for the threads that take turns now.
        times, states = await single_wakes(self._cluster, self._ids(agents))
        singles += times
        echoes += await self._echo.run(len(agents))
        check_states(states, agents, self._workload)

    async def _closed_loop(self, sample: Sequence[int]) -> None:
        ids = self._ids(sample)
        rate, last_states = await closed_loop(self._cluster, ids, self._options.closed_loop_s)
        self.times.per_second.append(rate)
        agents = [agent for agent, agent_id in zip(sample, ids, strict=True) if agent_id in last_states]
        check_states([last_states[self._workload.ids[agent]] for agent in agents], agents, self._workload)

    async def _raw_storm(self, _sample: Sequence[int]) -> None:
        for name, run in (("raw", self._raw.run), ("raw_uncopied", self._raw.run_uncopied)):
            elapsed, frames = await milliseconds(run)
            self.times.add(name, elapsed)
            assert len(frames) == self._raw.frames
            del frames
            await settle()

    async def _redis_packed(self, sample: Sequence[int]) -> None:
        assert self._redis is not None
        keys = self._redis.packed_keys(sample)
        started = time.perf_counter_ns()
        blobs = self._redis.packed(keys)
        woken = None not in blobs
        self.times.add("redis_packed", (time.perf_counter_ns() - started) / 1e6)
        assert woken
        expected = [msgspec.msgpack.encode(self._workload.encoded(agent)) for agent in sample]
        check_encoded(blobs, expected, "Redis (packed)")

    async def _redis_mget(self, sample: Sequence[int]) -> None:
        assert self._redis is not None
        keys = self._redis.mget_keys(sample)
        started = time.perf_counter_ns()
        values = self._redis.mget(keys, len(sample))
        self.times.add("redis_mget", (time.perf_counter_ns() - started) / 1e6)
        expected = [self._workload.encoded(agent).get(kind) for kind in self._workload.kinds for agent in sample]
        check_encoded(values, expected, "Redis (MGET)")

    async def _redis_natural(self, sample: Sequence[int]) -> None:
        redis = self._redis
        assert redis is not None
        elapsed, agents = await milliseconds(lambda: redis.natural(sample))
        self.times.add("redis_natural", elapsed)
        for values, agent in zip(agents, sample, strict=True):
            encoded = self._workload.encoded(agent)
            check_encoded(values, [encoded.get(kind) for kind in self._workload.kinds], "redis.asyncio")

    def _ids(self, sample: Sequence[int]) -> list[str]:
        """The ids made anew, as a request brings them, and as the keys for Redis are: not 10,000 of 100,000 old strings
        that lie anywhere in memory."""
        ids = self._workload.ids
        return [ids[agent].encode().decode() for agent in sample]


async def storm(options: StormOptions, progress: Progress = no_progress) -> StormReport:
    """Measure; leaves no process and no file behind, however it ends.

    Raises:
        WorkloadError: these agents cannot be woken like this.
        WrongResult: somebody gave back something else than was saved, or nothing.
        ChildFailed: a process of the raw limits did not start.
    """
    _check(options)
    workload = options.workload or SyntheticAgents(options.agents, options.value_bytes, options.seed)
    if options.wake > len(workload.ids):
        raise WorkloadError(f"{options.wake:,} agents cannot be woken: only {len(workload.ids):,} sleep")
    stores = store_of_kind(options.topology, workload.kinds)
    notes = notes_on_process()
    numbers = random.Random(options.seed)
    samples = [numbers.sample(range(len(workload.ids)), options.wake) for _ in range(options.runs + 1)]
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder(options.folder))
        sleepers = await stack.enter_async_context(sleeping_cluster(options.topology, workload, folder, progress))
        sockets = stack.enter_context(socket_folder(folder))
        redis = await _start_redis(stack, sockets, workload, options, progress, notes)
        sizes = [image_bytes(workload.encoded(agent), stores) for agent in samples[0]]
        names_bytes = sum(len(workload.ids[agent]) + 2 for agent in samples[0])
        servers = node_count(options.topology)
        raw = await stack.enter_async_context(raw_storm(sockets, servers, sum(sizes), names_bytes))
        echo = await stack.enter_async_context(raw_echo(sockets, round(sum(sizes) / len(sizes))))
        contest = _Contest(workload, options, sleepers.cluster, redis, raw, echo)
        stack.enter_context(settled_memory())
        if redis is not None:
            await redis.choose_batches(samples[-1], progress)
        # The last sample warms up whatever starts lazily; its times are not kept.
        await contest.run(0, samples[-1])
        contest.forget()
        for number in range(options.runs):
            progress("measure", number, options.runs)
            await contest.run(number, samples[number])
        progress("measure", options.runs, options.runs)
        return _report(options, workload, contest.times, redis, notes)


def _check(options: StormOptions) -> None:
    for name in ("wake", "runs", "singles"):
        if getattr(options, name) < 1:
            raise WorkloadError(f"{name} must be at least 1")
    if options.closed_loop_s <= 0:
        raise WorkloadError("the closed loop needs some time: closed_loop_s must be above 0")


async def _start_redis(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    workload: Workload,
    options: StormOptions,
    progress: Progress,
    notes: list[str],
) -> RedisPeer | None:
    try:
        redis = await stack.enter_async_context(redis_peer(folder, workload, options.redis_server))
    except RedisUnavailable as error:
        notes.append(f"Redis was not measured: {error}")
        return None
    await redis.fill(progress)
    return redis


def _report(
    options: StormOptions, workload: Workload, times: _Times, redis: RedisPeer | None, notes: list[str]
) -> StormReport:
    wake_many_ms, natural_ms, single_us = times.spread("wake_many"), times.spread("natural"), times.tail("single")
    assert wake_many_ms is not None
    assert natural_ms is not None
    assert single_us is not None
    per_second = round(spread_of(times.per_second).p50, 1)
    peers = Peers(
        redis_mget_ms=times.spread("redis_mget"),
        redis_packed_ms=times.spread("redis_packed"),
        redis_natural_ms=times.spread("redis_natural"),
        raw_zmq_ms=times.spread("raw"),
        raw_zmq_uncopied_ms=times.spread("raw_uncopied"),
        raw_echo_us=times.tail("echo"),
    )
    return StormReport(
        agents=len(workload.ids),
        wake=options.wake,
        fragments=len(workload.kinds),
        value_bytes=workload.value_bytes,
        topology=options.topology,
        runs=options.runs,
        wake_many_ms=wake_many_ms,
        natural_ms=natural_ms,
        single_us=single_us,
        closed_loop_per_s=per_second,
        peers=peers,
        ratios=ratios_of(options.wake, wake_many_ms, natural_ms, single_us, per_second, peers),
        redis_batches=None if redis is None else Batches(redis.mget_choice, redis.packed_choice),
        notes=notes,
    )
