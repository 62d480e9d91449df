"""Durable saves: a cluster of its own, Redis, PostgreSQL and the disk itself, in turn, run by run.

    start the cluster, save all agents -> the same in Redis and PostgreSQL, find their best batches -> the raw echo
    each run: new values for all agents; every way of saving them once, beginning with another one each run
    medians over the runs, ratios of the medians

All of them write to the same disk, and all sync before they answer. All saved values are read again and compared, after
the clock has stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from ..harness.child_process import child_process, python_module
from ..harness.contest import Times, measure_runs, require_positive, take_turns
from ..harness.disk import SyncedFile, file_system, sync_rate
from ..harness.job import start_job, wait_until
from ..harness.measure import (
    WrongResult,
    check_encoded,
    check_states,
    milliseconds,
    notes_on_process,
    settle,
    settled_memory,
    single_wakes,
)
from ..harness.progress import Progress, no_progress
from ..harness.scratch import socket_directory, temporary_directory
from ..harness.sleeping_cluster import sleeping_cluster
from ..harness.topologies import TopologyName
from ..harness.workload import SyntheticAgents, WorkloadError
from ..peers.postgres_peer import BINARIES, PostgresSaves, postgres_saves, prepare_rows
from ..peers.raw_zmq import RawEcho, raw_echo
from ..peers.redis_saves import RedisSaves, prepare_packed, prepare_sets, redis_saves
from ..peers.unavailable import start_peer
from .load import LoadAnswer, LoadOrder
from .report import SaveBatches, SavePeers, SaveReport, SingleWakes, render_save, save_ratios
from .savers import FreshValues, Saves, check_saved, check_shown, concurrent_saves, single_saves

__all__ = ["SaveOptions", "render_save", "save"]

WRITE_BYTES = 100
"""Bytes on the wire of a save of one fragment beside the value, about."""

ANSWER_BYTES = 40

SYNCS_SECONDS = 0.5
"""How long the disk's syncs are counted in each run; one takes 0.1 ms on a fast disk, 10 ms on a slow one."""

LOAD_SECONDS = 30.0
"""How long another process may take until it is at its work."""

BACKUP_MB_PER_S = 20
"""The rate of the backup beside the wakes: less than by default, so that 26 MB take longer than the wakes."""

BACKUP_BLOCK = 50
"""Wakes before it is seen whether the backup still runs: 8 ms of more than a second."""


class SaveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the measurement. The defaults take about a minute on two cores and a fast disk."""

    agents: int = 10_000
    """saved at once"""
    value_bytes: int = 512
    """of each of their five fragments"""
    topology: TopologyName = "one-store"
    runs: int = 5
    """alternated; nine or more for numbers that others are shown"""
    singles: int = 1000
    """saves one at a time, echoes with a sync, and wakes beside savers and without, in each run"""
    savers: int = 1000
    """tasks that save one agent each; at most half of the agents, the other half is woken meanwhile"""
    concurrent_s: float = 2.0
    """in each run"""
    seed: int = 1
    redis_server: str = "redis-server"
    """name or path of the program"""
    postgres_binaries: Path = BINARIES
    """directory of `initdb` and `postgres`"""
    directory: Path | None = None
    """where the temporary directory for all data is made: decides which disk is measured; None: the current one"""


class _Peers(msgspec.Struct):
    """Who is measured beside the cluster."""

    redis: RedisSaves | None
    postgres: PostgresSaves | None
    echo: RawEcho
    file: SyncedFile


class _Contest:
    """All that take part, and the turn of each."""

    def __init__(self, options: SaveOptions, cluster: Saves, topology: Path, peers: _Peers, first: SyntheticAgents):
        self._options = options
        self._cluster = cluster
        self._topology = topology
        self._peers = peers
        self._directory = topology.parent
        self._workload = first  # what the agents are given in this run
        self._shown = first  # what the cluster was given last
        self._fresh = FreshValues(options.value_bytes, random.Random(options.seed).randbytes(options.value_bytes))
        self._all = range(options.agents)
        self._savers_ids = first.ids[: options.savers]
        self.times = Times()

    async def run(self, number: int, workload: SyntheticAgents) -> None:
        """Measure each way of saving these values once."""
        self._workload = workload
        turns: list[Callable[[], Awaitable[None]]] = [self._save_many, self._singles, self._concurrent]
        turns += [self._wakes, self._wakes_beside_backup]
        if self._peers.redis is not None:
            turns[1:1] = [self._redis_sets, self._redis_packed]
        if self._peers.postgres is not None:
            turns[1:1] = [self._postgres]
        await take_turns(turns, number)

    async def _save_many(self) -> None:
        workload = self._workload
        agents = {workload.ids[agent]: workload.fragments(agent) for agent in self._all}
        await settle()
        elapsed, results = await milliseconds(lambda: self._cluster.save_many(agents))
        self.times.add_ms("save_many", elapsed)
        check_saved(results)
        self._shown = workload
        check_states(await self._cluster.wake_many(workload.ids), self._all, workload)

    async def _redis_sets(self) -> None:
        redis = self._peers.redis
        assert redis is not None
        prepared = prepare_sets(self._workload, self._all)
        await settle()
        with self.times.clock("redis_sets"):
            redis.save_fragments(prepared)
        check_encoded(redis.stored_fragments(prepared), list(map(as_bytes, prepared.words[1::2])), "Redis (SET)")

    async def _redis_packed(self) -> None:
        redis = self._peers.redis
        assert redis is not None
        prepared = prepare_packed(self._workload, self._all)
        await settle()
        with self.times.clock("redis_packed"):
            redis.save_packed(prepared)
        check_encoded(redis.stored_packed(prepared), list(map(as_bytes, prepared.words[1::2])), "Redis (MSET)")

    async def _postgres(self) -> None:
        postgres = self._peers.postgres
        assert postgres is not None
        prepared = prepare_rows(self._workload, self._all)
        await settle()
        elapsed, _ = await milliseconds(lambda: postgres.save(prepared))
        self.times.add_ms("postgres", elapsed)
        for stored, values in zip(await postgres.stored(prepared), prepared.values, strict=True):
            check_encoded(stored, values, "PostgreSQL")

    async def _singles(self) -> None:
        await settle()
        ids = [self._savers_ids[index % len(self._savers_ids)] for index in range(self._options.singles)]
        # All of them, then all echoes, as in a storm: the threads that take turns find their places once a run.
        times, saved = await single_saves(self._cluster, ids, self._fresh)
        self.times.add_ns("single", times)
        self.times.add_ns("raw_fsync", await self._peers.echo.run(len(ids)))
        await check_shown(self._cluster, saved)

    async def _concurrent(self) -> None:
        await settle()
        rate, saved = await concurrent_saves(self._cluster, self._savers_ids, self._fresh, self._options.concurrent_s)
        self.times.add_rate("concurrent", rate)
        await check_shown(self._cluster, saved)
        await settle()
        syncs = await asyncio.to_thread(sync_rate, self._peers.file, SYNCS_SECONDS)
        self.times.add_rate("fdatasync", syncs)

    def _woken_singly(self) -> list[int]:
        """Return the agents of single wakes: such as are not saved just now."""
        others = range(self._options.savers, self._options.agents)
        return [others[index * 7919 % len(others)] for index in range(self._options.singles)]

    async def _wakes(self) -> None:
        """Single wakes, first with nothing else going on, then beside savers in another process."""
        agents = self._woken_singly()
        await settle()
        await self._time_wakes("wake_idle", agents)
        order = LoadOrder(str(self._topology), list(self._savers_ids), self._options.value_bytes)
        with start_job(f"{__package__}.load", "the process of savers", order, self._directory) as job:
            await job.answered(LOAD_SECONDS)
            await self._time_wakes("wake_saving", agents)
            job.require_running()
        job.require_success()
        load = job.answer(LoadAnswer)
        self.times.add_rate("saving", load.saves / load.seconds)

    async def _wakes_beside_backup(self) -> None:
        """Single wakes while the command `backup` copies all shards, as often as it takes."""
        directory, log = self._directory / "backup", self._directory / "backup.log"
        rate = str(BACKUP_MB_PER_S)
        command = python_module(
            "dawnchorus.tools.main", "backup", str(directory), "-t", str(self._topology), "--rate-mb", rate
        )
        left = self._woken_singly()
        await settle()
        while left:
            with child_process(command, log=log) as process:
                await wait_until(lambda: any(directory.glob("*.mdb")), process, "the backup", log, LOAD_SECONDS)
                while True:
                    await self._time_wakes("wake_backup", left[:BACKUP_BLOCK])
                    del left[:BACKUP_BLOCK]
                    if not left or process.poll() is not None:
                        break
                if await asyncio.to_thread(process.wait):
                    raise WrongResult(f"the backup failed: {log.read_text(errors='replace')[-1000:].strip()}")
            shutil.rmtree(directory)

    async def _time_wakes(self, name: str, agents: Sequence[int]) -> None:
        times, states = await single_wakes(self._cluster, [self._shown.ids[agent] for agent in agents])
        self.times.add_ns(name, times)
        check_states(states, agents, self._shown)


def as_bytes(word: str | bytes) -> bytes:
    """Return a value from among keys and values; values are bytes."""
    return word if isinstance(word, bytes) else word.encode()


async def save(options: SaveOptions, progress: Progress = no_progress) -> SaveReport:
    """Measure; leaves no process and no file behind, however it ends.

    Raises:
        WorkloadError: the options contradict each other.
        WrongResult: a save failed, or something else is there than was saved.
        ChildFailed: a process of the harness did not start.
    """
    require_positive(options, "agents", "value_bytes", "runs", "singles", "savers", "concurrent_s")
    if options.savers * 2 > options.agents:
        raise WorkloadError(f"{options.savers:,} savers need twice as many agents: others are woken meanwhile")
    notes = notes_on_process()
    workloads = [SyntheticAgents(options.agents, options.value_bytes, options.seed + run) for run in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory(options.directory or Path.cwd()))
        disk = file_system(directory)
        if not disk.is_disk:
            notes.append(f"{disk}: what is there is in memory, and syncing it costs nothing; give another directory")
        sleepers = await stack.enter_async_context(
            sleeping_cluster(options.topology, workloads[0], directory, progress)
        )
        sockets = stack.enter_context(socket_directory(directory))
        redis = await start_peer(stack, "Redis", redis_saves(sockets, directory, options.redis_server), notes)
        kinds = len(workloads[0].kinds)
        saving_rows = postgres_saves(sockets, directory, kinds, options.postgres_binaries)
        postgres = await start_peer(stack, "PostgreSQL", saving_rows, notes)
        request_bytes = options.value_bytes + WRITE_BYTES
        synced = directory / "echo.synced"
        echo = await stack.enter_async_context(raw_echo(sockets, ANSWER_BYTES, request_bytes, synced))
        file = stack.enter_context(SyncedFile(directory / "synced"))
        peers = _Peers(redis, postgres, echo, file)
        contest = _Contest(options, sleepers.cluster, sleepers.topology_path, peers, workloads[0])
        stack.enter_context(settled_memory())
        everyone = range(options.agents)
        if redis is not None:
            sets, packed = prepare_sets(workloads[1], everyone), prepare_packed(workloads[1], everyone)
            await redis.choose_batches(sets, packed, progress)
            del sets, packed
        if postgres is not None:
            await postgres.choose_batches(prepare_rows(workloads[1], everyone), progress)

        async def run(number: int) -> None:
            seed = options.seed + len(workloads) + number
            await contest.run(number, SyntheticAgents(options.agents, options.value_bytes, seed))

        await measure_runs(options.runs, contest.times, run, progress)
        return _report(options, contest, peers, str(disk), notes)


def _report(options: SaveOptions, contest: _Contest, peers: _Peers, disk: str, notes: list[str]) -> SaveReport:
    times = contest.times
    redis, postgres = peers.redis, peers.postgres
    numbers = SavePeers(
        redis_sets_ms=times.spread_if_any("redis_sets"),
        redis_packed_ms=times.spread_if_any("redis_packed"),
        postgres_ms=times.spread_if_any("postgres"),
        raw_fsync_us=times.tail("raw_fsync"),
        fdatasync_per_s=times.rate("fdatasync"),
    )
    wakes = SingleWakes(times.tail("wake_idle"), times.tail("wake_saving"), times.tail("wake_backup"))
    concurrent = times.rate("concurrent")
    save_many_ms, single_us = times.spread("save_many"), times.tail("single")
    return SaveReport(
        agents=options.agents,
        fragments=len(SyntheticAgents(1, 1).kinds),
        value_bytes=options.value_bytes,
        topology=options.topology,
        runs=options.runs,
        file_system=disk,
        save_many_ms=save_many_ms,
        single_us=single_us,
        savers=options.savers,
        concurrent_per_s=concurrent,
        wake_idle_us=wakes.idle,
        wake_saving_us=wakes.saving,
        wake_backup_us=wakes.backup,
        saving_per_s=times.rate("saving"),
        peers=numbers,
        ratios=save_ratios(save_many_ms, single_us, concurrent, wakes, numbers),
        batches=SaveBatches(
            None if redis is None else redis.sets_choice,
            None if redis is None else redis.packed_choice,
            None if postgres is None else postgres.choice,
        ),
        notes=notes,
    )
