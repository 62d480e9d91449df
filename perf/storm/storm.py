"""A wake storm: a cluster of its own, Redis and the raw baselines, asked for the same agents in turn, run by run.

    start the cluster, put all agents to sleep -> the same in Redis, find its best batches -> start the raw servers
    each run: a fresh sample of agents; every way of waking them once, beginning with another one each run
    medians over the runs, ratios of the medians

Every result is compared with what was saved, after the clock has stopped. All clients live in this one process, with
the same event loop and the same settings of the garbage collector.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from ..harness.contest import Times, measure_runs, require_positive, take_turns
from ..harness.measure import (
    Wakes,
    check_encoded,
    check_states,
    closed_loop,
    milliseconds,
    notes_on_process,
    settle,
    settled_memory,
    single_wakes,
    task_per_agent,
    wake_many,
)
from ..harness.progress import Progress, no_progress
from ..harness.scratch import socket_directory, temporary_directory
from ..harness.sleeping_cluster import sleeping_cluster
from ..harness.topologies import TopologyName, node_count, store_of_kind
from ..harness.workload import SyntheticAgents, Workload, WorkloadError, image_bytes
from ..peers.raw_zmq import RawEcho, RawStorm, raw_echo, raw_storm
from ..peers.redis_peer import RedisPeer, redis_peer
from ..peers.unavailable import start_peer
from .report import Batches, Peers, StormReport, ratios_of, render

__all__ = ["StormOptions", "render", "storm"]


class StormOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the measurement. The defaults take about 40 s on two cores."""

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
    directory: Path | None = None
    """where the temporary directory for data and sockets is made; None: the system's"""


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
        self.times = Times()
        self._sample: Sequence[int] = ()

    async def run(self, number: int, sample: Sequence[int]) -> None:
        """Measure each way of waking these agents once."""
        self._sample = sample
        turns = [self._wake_many, self._raw_storm, self._task_per_agent, self._singles_and_echo, self._closed_loop]
        if self._redis is not None:
            turns[1:1] = [self._redis_packed, self._redis_mget]
            turns.append(self._redis_task_per_agent)
        await take_turns([partial(self._turn, turn) for turn in turns], number)

    async def _turn(self, turn: Callable[[], Awaitable[None]]) -> None:
        await settle()
        await turn()

    async def _wake_many(self) -> None:
        sample = self._sample
        ids = self._ids(sample)
        elapsed, states = await milliseconds(lambda: wake_many(self._cluster, ids))
        self.times.add_ms("wake_many", elapsed)
        check_states(states, sample, self._workload)

    async def _task_per_agent(self) -> None:
        sample = self._sample
        ids = self._ids(sample)
        elapsed, states = await milliseconds(lambda: task_per_agent(self._cluster, ids))
        self.times.add_ms("task_per_agent", elapsed)
        check_states(states, sample, self._workload)

    async def _singles_and_echo(self) -> None:
        sample = self._sample
        agents = [sample[index % len(sample)] for index in range(self._options.singles)]
        # All of them, then all echoes: the first 200 after each change are slower, until the scheduler has found places
        # for the threads that take turns now.
        times, states = await single_wakes(self._cluster, self._ids(agents))
        self.times.add_ns("single", times)
        self.times.add_ns("echo", await self._echo.run(len(agents)))
        check_states(states, agents, self._workload)

    async def _closed_loop(self) -> None:
        sample = self._sample
        ids = self._ids(sample)
        rate, last_states = await closed_loop(self._cluster, ids, self._options.closed_loop_s)
        self.times.add_rate("closed_loop", rate)
        agents = [agent for agent, agent_id in zip(sample, ids, strict=True) if agent_id in last_states]
        check_states([last_states[self._workload.ids[agent]] for agent in agents], agents, self._workload)

    async def _raw_storm(self) -> None:
        for name, run in (("raw", self._raw.run), ("raw_uncopied", self._raw.run_uncopied)):
            elapsed, frames = await milliseconds(run)
            self.times.add_ms(name, elapsed)
            assert len(frames) == self._raw.frames
            del frames
            await settle()

    async def _redis_packed(self) -> None:
        sample = self._sample
        assert self._redis is not None
        keys = self._redis.packed_keys(sample)
        with self.times.clock("redis_packed"):
            blobs = self._redis.packed(keys)
            woken = None not in blobs
        assert woken
        expected = [msgspec.msgpack.encode(self._workload.encoded(agent)) for agent in sample]
        check_encoded(blobs, expected, "Redis (packed)")

    async def _redis_mget(self) -> None:
        sample = self._sample
        assert self._redis is not None
        keys = self._redis.mget_keys(sample)
        with self.times.clock("redis_mget"):
            values = self._redis.mget(keys, len(sample))
        expected = [self._workload.encoded(agent).get(kind) for kind in self._workload.kinds for agent in sample]
        check_encoded(values, expected, "Redis (MGET)")

    async def _redis_task_per_agent(self) -> None:
        sample = self._sample
        redis = self._redis
        assert redis is not None
        elapsed, agents = await milliseconds(lambda: redis.task_per_agent(sample))
        self.times.add_ms("redis_task_per_agent", elapsed)
        for values, agent in zip(agents, sample, strict=True):
            encoded = self._workload.encoded(agent)
            check_encoded(values, [encoded.get(kind) for kind in self._workload.kinds], "redis.asyncio")

    def _ids(self, sample: Sequence[int]) -> list[str]:
        """Return the ids made anew, as a request brings them, and as the keys for Redis are.

        10,000 of 100,000 old strings would be anywhere in memory.
        """
        ids = self._workload.ids
        return [ids[agent].encode().decode() for agent in sample]


async def storm(options: StormOptions, progress: Progress = no_progress) -> StormReport:
    """Measure; leaves no process and no file behind, however it ends.

    Raises:
        WorkloadError: these agents cannot be woken like this.
        WrongResult: one of them gave back something else than was saved, or nothing.
        ChildFailed: a process of the raw baselines did not start.
    """
    require_positive(options, "wake", "runs", "singles", "closed_loop_s")
    workload = options.workload or SyntheticAgents(options.agents, options.value_bytes, options.seed)
    if options.wake > len(workload.ids):
        raise WorkloadError(f"{options.wake:,} agents cannot be woken: only {len(workload.ids):,} sleep")
    stores = store_of_kind(options.topology, workload.kinds)
    notes = notes_on_process()
    numbers = random.Random(options.seed)
    samples = [numbers.sample(range(len(workload.ids)), options.wake) for _ in range(options.runs + 1)]
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory(options.directory))
        sleepers = await stack.enter_async_context(sleeping_cluster(options.topology, workload, directory, progress))
        sockets = stack.enter_context(socket_directory(directory))
        redis = await start_peer(stack, "Redis", redis_peer(sockets, workload, options.redis_server), notes)
        if redis is not None:
            await redis.fill(progress)
        sizes = [image_bytes(workload.encoded(agent), stores) for agent in samples[0]]
        names_bytes = sum(len(workload.ids[agent]) + 2 for agent in samples[0])
        servers = node_count(options.topology)
        raw = await stack.enter_async_context(raw_storm(sockets, servers, sum(sizes), names_bytes))
        echo = await stack.enter_async_context(raw_echo(sockets, round(sum(sizes) / len(sizes))))
        contest = _Contest(workload, options, sleepers.cluster, redis, raw, echo)
        stack.enter_context(settled_memory())
        if redis is not None:
            await redis.choose_batches(samples[-1], progress)
        await measure_runs(options.runs, contest.times, lambda number: contest.run(number, samples[number]), progress)
        return _report(options, workload, contest.times, redis, notes)


def _report(
    options: StormOptions, workload: Workload, times: Times, redis: RedisPeer | None, notes: list[str]
) -> StormReport:
    wake_many_ms, task_per_agent_ms = times.spread("wake_many"), times.spread("task_per_agent")
    single_us, per_second = times.tail("single"), times.rate("closed_loop")
    peers = Peers(
        redis_mget_ms=times.spread_if_any("redis_mget"),
        redis_packed_ms=times.spread_if_any("redis_packed"),
        redis_task_per_agent_ms=times.spread_if_any("redis_task_per_agent"),
        raw_zmq_ms=times.spread_if_any("raw"),
        raw_zmq_uncopied_ms=times.spread_if_any("raw_uncopied"),
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
        task_per_agent_ms=task_per_agent_ms,
        single_us=single_us,
        closed_loop_per_s=per_second,
        peers=peers,
        ratios=ratios_of(options.wake, wake_many_ms, task_per_agent_ms, single_us, per_second, peers),
        redis_batches=None if redis is None else Batches(redis.mget_choice, redis.packed_choice),
        notes=notes,
    )
