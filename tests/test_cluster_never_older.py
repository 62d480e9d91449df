"""Saves and wakes of the same agents at once: no wake that ends after an acknowledged save shows an older value."""

import asyncio
import random
import time
from collections.abc import Callable

from dawnchorus import AgentState, Cluster

AGENTS = [f"hammered-{number}" for number in range(12)]
KINDS = ["profile", "session", "history"]
SECONDS = 3.0
DEADLINE_S = 20.0


class Hammer:
    """Counts that only grow, in three stores, and the acknowledged ones."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.acknowledged = {agent_id: dict.fromkeys(KINDS, 0) for agent_id in AGENTS}
        self.seen = {agent_id: dict.fromkeys(KINDS, 0) for agent_id in AGENTS}
        self.wakes = 0
        self.saves = 0
        self._end = time.monotonic() + SECONDS

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self._end

    async def save_on(self, chance: random.Random, agent_id: str) -> None:
        count = 0
        while self.goes_on:
            count += 1
            kinds = chance.sample(KINDS, chance.randint(1, 3))
            await self.cluster.save(agent_id, dict.fromkeys(kinds, count), deadline_s=DEADLINE_S)
            self.acknowledged[agent_id].update(dict.fromkeys(kinds, count))
            self.saves += 1

    async def save_many_on(self, chance: random.Random, agents: list[str]) -> None:
        count = 0
        while self.goes_on:
            count += 1
            kind = chance.choice(KINDS)
            await self.cluster.save_many({agent_id: {kind: count} for agent_id in agents}, deadline_s=DEADLINE_S)
            for agent_id in agents:
                self.acknowledged[agent_id][kind] = count
            self.saves += len(agents)

    async def wake_on(self, chance: random.Random) -> None:
        while self.goes_on:
            agent_id = chance.choice(AGENTS)
            state = await self.cluster.wake(agent_id, deadline_s=DEADLINE_S)
            self.look(state, self.acknowledged[agent_id].__getitem__)

    async def wake_many_on(self, chance: random.Random) -> None:
        while self.goes_on:
            agents = chance.sample(AGENTS, chance.randint(1, len(AGENTS)))
            states = await self.cluster.wake_many(agents, deadline_s=DEADLINE_S)
            for agent_id, state in zip(agents, states, strict=True):
                self.look(state, self.acknowledged[agent_id].__getitem__)

    async def stream_on(self) -> None:
        while self.goes_on:
            before = {agent_id: dict(counts) for agent_id, counts in self.acknowledged.items()}
            async for state in self.cluster.wake_stream(AGENTS, deadline_s=DEADLINE_S):
                self.look(state, before[state.agent_id].__getitem__)

    def look(self, state: AgentState, at_least: Callable[[str], int]) -> None:
        assert state.complete
        for kind in KINDS:
            shown: int = state.get(kind, 0)
            assert shown >= at_least(kind), f"{state.agent_id}: {kind} {shown} after {at_least(kind)} was acknowledged"
        self.wakes += 1


async def test_no_wake_shows_less_than_acknowledged_saves(cluster: Cluster) -> None:
    await cluster.save_many({agent_id: dict.fromkeys(KINDS, 0) for agent_id in AGENTS})
    hammer = Hammer(cluster)
    async with asyncio.TaskGroup() as tasks:
        for number, agent_id in enumerate(AGENTS[:8]):
            tasks.create_task(hammer.save_on(random.Random(number), agent_id))
        tasks.create_task(hammer.save_many_on(random.Random(8), AGENTS[8:]))
        for number in range(20):
            tasks.create_task(hammer.wake_on(random.Random(100 + number)))
        for number in range(3):
            tasks.create_task(hammer.wake_many_on(random.Random(200 + number)))
        tasks.create_task(hammer.stream_on())
    assert hammer.wakes > 100
    assert hammer.saves > 20
