"""A process that saves, deletes and checks until its standard input ends, while somebody kills the nodes.

    python -m tests.support.saving_client TOPOLOGY NUMBER SEED

It owns some agents, whose kinds get growing values: nobody else writes them, so that every value it reads has to be one
that it wrote. It also adds to counters that it shares with other such processes. Every acknowledged write is one line
of standard output, written before the next save of that agent begins; one byte is written to standard error as each
save is sent. At the end it prints a summary, after repeating every save of unknown outcome until it was known.

A contradiction ends it with a traceback on standard output and exit code 1.
"""

import asyncio
import os
import random
import sys
import traceback
from typing import Any

import msgspec
import uvloop

from dawnchorus import (
    AgentState,
    Cluster,
    DeadlineExceeded,
    Saved,
    SaveError,
    SaveIncomplete,
    SaveRejected,
    VersionConflict,
    connect,
)

__all__ = ["COUNTERS", "STORES", "Acknowledged", "Summary"]

STORES = {"identity": ("profile", "preference"), "live": ("session", "context")}
"""The stores that are written, with the kinds of each; all kinds of one get the same number."""

COUNTERS = ("counter-0", "counter-1")
OWN_AGENTS = 6
LONG_S = 60.0


class Acknowledged(msgspec.Struct, tag="acknowledged"):
    """A store has acknowledged: this agent has number `number` there, 0 for nothing any more, as `version`."""

    agent: str
    store: str
    number: int
    version: int


class Summary(msgspec.Struct, tag="summary"):
    """The counts of a process's saves, deletes and checks."""

    saves: int = 0
    deletes: int = 0
    checks: int = 0
    expecting: int = 0
    conflicts: int = 0
    unknown: int = 0
    """Saves of which some store's outcome was not known at first."""
    repeated: int = 0
    """Of these, the ones that were repeated until it was."""
    rejected: int = 0
    added: dict[str, int] = {}
    """Counter -> additions that were acknowledged."""


def tell(fact: Acknowledged | Summary) -> None:
    """Write a line; it has been written when this returns."""
    os.write(1, msgspec.json.encode(fact) + b"\n")


class Client:
    """The cluster and the counts that the tasks of one process share."""

    def __init__(self, cluster: Cluster, seed: str) -> None:
        self.cluster = cluster
        self.seed = seed
        self.summary = Summary()
        self.stopping = asyncio.Event()

    async def call(self, saving: Any) -> Saved | SaveError:
        """Run a save or delete; return its result or error."""
        os.write(2, b".")
        try:
            result: Saved | SaveError = await saving
        except SaveError as error:
            result = error
        if isinstance(result, SaveError) and unknown_stores(result):
            self.summary.unknown += 1
        self.summary.rejected += isinstance(result, SaveRejected)
        return result

    async def repeat(self, error: SaveError) -> Saved | SaveError:
        """Repeat a save until its outcome is known."""
        self.summary.repeated += 1
        result: Saved | SaveError = error
        while isinstance(result, SaveError) and (unknown_stores(result) or isinstance(result, SaveRejected)):
            try:
                again = await result.retry()
                assert isinstance(again, Saved)
                result = again
            except SaveError as next_error:
                result = next_error
        return result

    async def wake(self, agent_id: str) -> AgentState:
        """Wake until the state is complete."""
        while True:
            [state] = await self.cluster.wake_many([agent_id], deadline_s=LONG_S)
            if state.complete:
                self.summary.checks += 1
                return state


def unknown_stores(error: SaveError) -> tuple[str, ...]:
    """Return the stores that may have applied a save or not."""
    if isinstance(error, SaveIncomplete):
        return error.unknown
    return tuple(STORES) if isinstance(error, DeadlineExceeded) else ()


class Owner:
    """The only writer of one agent; it knows for each store which values must be there, and which may be."""

    def __init__(self, client: Client, agent_id: str) -> None:
        self.client = client
        self.agent_id = agent_id
        self.chance = random.Random(f"{client.seed}/{agent_id}")
        self.number = 0
        self.there = dict.fromkeys(STORES, 0)
        """The number that was acknowledged last, 0 for nothing."""
        self.versions = dict.fromkeys(STORES, 0)
        """Its version; after a delete that of the delete."""
        self.maybe: dict[str, dict[int, int]] = {store: {} for store in STORES}
        """Values that may have come after it, by the number that each was sent under; 0 for a delete."""

    async def run(self) -> None:
        while not self.client.stopping.is_set():
            await self.write()
            if self.chance.random() < 0.3:
                await self.check()
        await self.check()

    async def write(self) -> None:
        """Save or delete, in one store or both."""
        self.number += 1
        stores = self.chance.choice([["identity"], ["live"], ["identity", "live"]])
        deletes = self.chance.random() < 0.15
        kinds = [kind for store in stores for kind in STORES[store]]
        expect = None
        if self.chance.random() < 0.4 and not any(self.maybe[store] for store in stores):
            expect = {
                kind: self.versions[store] if self.there[store] else 0 for store in stores for kind in STORES[store]
            }
            self.client.summary.expecting += 1
        # The shorter ones give up before a killed node has come again.
        deadline_s = self.chance.choice([0.05, 0.3, LONG_S])
        cluster = self.client.cluster
        if deletes:
            saving = cluster.delete(self.agent_id, kinds, expect=expect, deadline_s=deadline_s)
            self.client.summary.deletes += 1
        else:
            saving = cluster.save(
                self.agent_id, dict.fromkeys(kinds, self.number), expect=expect, deadline_s=deadline_s
            )
            self.client.summary.saves += 1
        result = await self.client.call(saving)
        value = 0 if deletes else self.number
        if isinstance(result, SaveError) and unknown_stores(result):
            unknown = [store for store in unknown_stores(result) if store in stores]
            self.take_over(result, stores, value)
            if self.chance.random() < 0.5:
                result = await self.client.repeat(result)
            else:
                for store in unknown:
                    self.maybe[store][self.number] = value
        self.take_over(result, stores, value)

    def take_over(self, result: Saved | SaveError, stores: list[str], value: int) -> None:
        """Note what is certain about a write."""
        if isinstance(result, Saved):
            versions = result.versions
        elif isinstance(result, SaveIncomplete):
            versions = result.saved
            assert not result.conflicting, f"nobody else writes {self.agent_id}: {result}"
        else:
            assert isinstance(result, DeadlineExceeded | SaveRejected), (
                f"nobody else writes {self.agent_id}: {result!r}"
            )
            versions = {}
        for store in stores:
            found = {versions[kind] for kind in STORES[store] if kind in versions}
            if found:
                [version] = found
                self.acknowledge(store, value, version)

    def acknowledge(self, store: str, value: int, version: int) -> None:
        if version == 0:  # a delete, and nothing was there
            assert value == 0
            assert not self.there[store] or self.maybe[store]
        elif version != self.versions[store]:  # a save that is repeated says again what other stores had said
            assert version > self.versions[store], f"{self.agent_id}: {version} after {self.versions[store]}"
            self.versions[store] = version
            tell(Acknowledged(self.agent_id, store, value, version))
        self.there[store] = value
        self.maybe[store].clear()

    async def check(self) -> None:
        """Wake the agent, and check that its values are those that were written."""
        state = await self.client.wake(self.agent_id)
        for store, kinds in STORES.items():
            numbers = {state.get(kind, 0) for kind in kinds}
            versions = {state.version(kind) for kind in kinds}
            assert len(numbers) == len(versions) == 1, f"{self.agent_id}: torn in {store}: {numbers} {versions}"
            [number], [version] = numbers, versions
            if number == self.there[store]:
                # A save of unknown outcome may have deleted what a later one deletes again, or is still to come.
                assert not number or version == self.versions[store]
                continue
            later = [sent for sent, value in self.maybe[store].items() if value == number]
            assert later, (
                f"{self.agent_id}: {store} has {number}; {self.there[store]} was acknowledged,"
                f" and perhaps {self.maybe[store]} after it"
            )
            assert not number or version > self.versions[store]
            self.there[store] = number
            self.versions[store] = max(version, self.versions[store])
            for sent in [sent for sent in self.maybe[store] if sent <= later[-1]]:
                del self.maybe[store][sent]


async def add_on(client: Client, number: int) -> None:
    """Add 1 to the shared counters, again and again, and find out whether each addition counted."""
    chance = random.Random(f"{client.seed}/adder-{number}")
    while not client.stopping.is_set():
        counter = chance.choice(COUNTERS)
        state = await client.wake(counter)
        count = state.get("session", 0) + 1
        assert state.get("session", 0) == state.get("context", 0), f"{counter} is torn"
        deadline_s = chance.choice([0.05, 0.3, LONG_S])
        values = {"session": count, "context": count}
        client.summary.expecting += 1
        client.summary.saves += 1
        result = await client.call(client.cluster.save(counter, values, expect=state, deadline_s=deadline_s))
        if isinstance(result, DeadlineExceeded):
            result = await client.repeat(result)
        if isinstance(result, Saved):
            client.summary.added[counter] = client.summary.added.get(counter, 0) + 1
            tell(Acknowledged(counter, "live", count, result.versions["session"]))
        else:
            assert isinstance(result, VersionConflict | SaveRejected), repr(result)
            client.summary.conflicts += isinstance(result, VersionConflict)
            await asyncio.sleep(chance.uniform(0, 0.01))


async def main(topology: str, number: str, seed: str) -> None:
    async with connect(topology) as cluster:
        client = Client(cluster, f"{seed}/{number}")
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), client.stopping.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                for agent in range(OWN_AGENTS):
                    tasks.create_task(Owner(client, f"agent-{number}-{agent}").run())
                for adder in range(2):
                    tasks.create_task(add_on(client, adder))
                await client.stopping.wait()
                asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        except BaseException:
            os.write(1, traceback.format_exc().encode())
            raise
        tell(client.summary)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
