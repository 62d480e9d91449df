"""A simulation of clients and nodes in memory, on one clock that jumps, with disturbances drawn from a seed.

Clients are the real ones, from `Cluster` down to their links; nodes are request servers over images in memory. Frames
take their time and overtake those of other connections; connections break, nodes are stopped, slow, or killed and
started again, and clients that do not read. Then all disturbances end, and every client has to recover.

The same seed gives the same run, event by event.
"""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

from dawnchorus import AgentState, Cluster, DawnchorusError, WakeIncomplete
from dawnchorus.wire.cluster.topology import AdmissionSpec, BreakerSpec, RetrySpec
from dawnchorus.wire.errors import AgentNotFound
from tests.simulation.history import KINDS, History
from tests.simulation.simulated_node import SimulatedNode
from tests.simulation.watched_router import WatchedRouter, watch_exchanges
from tests.support.fake_nodes import connect, fake_topology, placement_of
from tests.support.internals import leftovers, open_routers_by
from tests.support.memory_network import Network, network
from tests.support.virtual_time import run_virtual

__all__ = ["Result", "simulate"]

_DISTURBANCE_S: Final = 2.0
_CLIENTS: Final = 2
_WORKERS: Final = 6
_AGENTS: Final = [f"agent-{number}" for number in range(24)]
_RETRIES: Final = RetrySpec(share=0.01, per_s=0.05)
_QUEUE_FRAMES_MAX: Final = 4
"""Less than a window holds, so that connections to a stopped node have no room."""

_HEALING_S: Final = 12.0
"""How long after all disturbances a client may take to recover: silence, back-off and breaker add up to less."""


class Result(NamedTuple):
    """The result of a run."""

    wrong: list[str]
    trace: list[str]


def simulate(seed: int) -> Result:
    """Run the simulation of a seed."""
    return run_virtual(Simulation(seed).run)


class Client(NamedTuple):
    """One client, and the router that it has."""

    number: int
    cluster: Cluster
    router: WatchedRouter


class Simulation:
    """One run."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._history = History()
        self._ending = False

    async def run(self) -> Result:
        """Run it, and return what was wrong."""
        memory = network()
        assert memory is not None
        self._now = memory.loop.time
        memory.delay_s = self._delay_s
        memory.queue_frames_max = _QUEUE_FRAMES_MAX
        self._delays: dict[str, float] = {}
        watch_exchanges()
        topology = fake_topology(
            retries=_RETRIES,
            admission=AdmissionSpec(in_flight_max=6),
            breaker=BreakerSpec(requests_min=10, window_s=2.0, retry_after_s=0.5),
            ports=[10_001, 10_002, 10_003],
        )
        placement = placement_of(topology)
        self._nodes = [
            SimulatedNode(memory, topology, placement, name, self._note, self._chance) for name in topology.nodes
        ]
        for node in self._nodes:
            node.start()
        async with AsyncExitStack() as stack:
            clients: list[Client] = []
            for number in range(_CLIENTS):
                cluster = connect(topology)
                routers = self._watch(cluster, memory)
                await stack.enter_async_context(cluster)
                clients.append(Client(number, cluster, routers[0]))
            await self._work_and_disturb(clients, memory)
            await self._heal(clients)
            self._check(clients)
        for node in self._nodes:
            node.kill()
        return Result(self._history.wrong, self._history.trace)

    def _watch(self, cluster: Cluster, memory: Network) -> list[WatchedRouter]:
        routers: list[WatchedRouter] = []

        def open_router() -> WatchedRouter:
            routers.append(WatchedRouter(memory.loop.time, memory, self._chance.random))
            return routers[0]

        open_routers_by(cluster, open_router)
        return routers

    def _note(self, event: str) -> None:
        self._history.note(self._now(), event)

    def _delay_s(self, endpoint: str) -> float:
        return self._delays.get(endpoint, 0.0) + self._chance.expovariate(1 / 0.0002)

    # --- work ---

    async def _work_and_disturb(self, clients: list[Client], memory: Network) -> None:
        workers = [
            asyncio.ensure_future(self._work(client, number)) for client in clients for number in range(_WORKERS)
        ]
        disturbing = asyncio.ensure_future(self._disturb(memory))
        looks = [asyncio.ensure_future(self._look(client)) for client in clients]
        await asyncio.sleep(_DISTURBANCE_S)
        self._ending = True
        await asyncio.gather(disturbing, *workers, *looks)

    async def _work(self, client: Client, number: int) -> None:
        calls = [*[self._wake] * 6, *[self._save] * 3, self._wake_many, self._give_up, self._ask_status]
        while not self._ending:
            await asyncio.sleep(self._chance.expovariate(1 / 0.02))
            await self._chance.choice(calls)(client)

    async def _look(self, client: Client) -> None:
        """Check repeatedly that a client has lost no exchange: one that has not ended is in some table."""
        while not self._ending:
            await asyncio.sleep(self._chance.expovariate(1 / 0.01))
            for _ in range(3):  # those rejected are notified in the next turn of the loop
                if client.router.unended() <= client.router.kept():
                    break
                await asyncio.sleep(0)
            else:
                self._history.wrong.append(f"client {client.number} has lost an exchange")
                return

    async def _wake(self, client: Client) -> None:
        agent_id, deadline_s = self._chance.choice(_AGENTS), self._chance.choice((0.03, 0.1, 0.5))
        asked = self._history.begin(self._now(), f"a wake of {agent_id}", client.number, deadline_s)
        states: list[AgentState] = []
        try:
            states.append(await client.cluster.wake(agent_id, deadline_s=deadline_s))
        except WakeIncomplete as error:
            states.append(error.state)
        except AgentNotFound:
            self._history.handle_not_found(asked, agent_id)
        self._note(f"client {client.number} woke {agent_id}: {states}")
        self._history.end(self._now(), asked, states)

    async def _wake_many(self, client: Client) -> None:
        await self._wake_all(client, self._chance.choice((0.05, 0.2, 1.0)))

    async def _wake_all(self, client: Client, deadline_s: float) -> bool:
        """Wake all agents; return whether they are complete."""
        asked = self._history.begin(self._now(), "a wake of all", client.number, deadline_s)
        states = await client.cluster.wake_many(_AGENTS, deadline_s=deadline_s)
        self._note(f"client {client.number} woke all: {states}")
        self._history.end(self._now(), asked, states)
        if [state.agent_id for state in states] != _AGENTS:
            self._history.wrong.append("a wake of all gives other agents")
        return all(state.complete for state in states)

    async def _save(self, client: Client) -> None:
        agent_id = self._chance.choice(_AGENTS[client.number :: _CLIENTS])
        kinds = self._chance.sample(KINDS, self._chance.randint(1, 3))
        values = {kind: self._history.next_value(agent_id, kind) for kind in kinds}
        deadline_s = self._chance.choice((0.1, 0.5, 2.0))
        asked = self._history.begin(self._now(), f"a save of {agent_id}", client.number, deadline_s)
        try:
            await client.cluster.save(agent_id, values, deadline_s=deadline_s)
        except DawnchorusError as error:
            self._note(f"client {client.number} did not save {agent_id}: {type(error).__name__}")
        else:
            self._history.handle_acknowledged(self._now(), client.number, agent_id, values)
            self._note(f"client {client.number} saved {agent_id}: {values}")
        self._history.end(self._now(), asked)

    async def _give_up(self, client: Client) -> None:
        wakes = [client.cluster.wake(agent_id, deadline_s=1.0) for agent_id in self._chance.sample(_AGENTS, 4)]
        await asyncio.sleep(self._chance.expovariate(1 / 0.002))
        for wake in wakes:
            wake.cancel()
        await asyncio.gather(*wakes, return_exceptions=True)

    async def _ask_status(self, client: Client) -> None:
        asked = self._history.begin(self._now(), "a status", client.number, 0.1)
        await client.cluster.status(deadline_s=0.1)
        self._history.end(self._now(), asked)

    # --- disturbances ---

    async def _disturb(self, memory: Network) -> None:
        kinds = [self._break, self._flap, self._stop, self._slow_down, self._fail, self._delay]
        kinds += [self._restart, self._do_not_read, self._go_cold]
        under_way: list[asyncio.Future[None]] = []
        while not self._ending:
            await asyncio.sleep(self._chance.expovariate(1 / 0.07))
            disturbance = self._chance.choice(kinds)
            node = self._chance.choice(self._nodes)
            self._note(f"{disturbance.__name__} {node.name}")
            under_way.append(asyncio.ensure_future(disturbance(node, memory)))
        await asyncio.gather(*under_way)

    async def _break(self, node: SimulatedNode, _memory: Network) -> None:
        if node.is_up:
            node.break_connections(self._chance, 0.6)

    async def _flap(self, node: SimulatedNode, memory: Network) -> None:
        """Break connections again and again while much is on its way."""
        node.slowness = 20.0
        for _ in range(8):
            await asyncio.sleep(self._chance.uniform(0.02, 0.06))
            await self._break(node, memory)
        node.slowness = 1.0

    async def _stop(self, node: SimulatedNode, _memory: Network) -> None:
        node.stop()
        await asyncio.sleep(self._chance.choice((0.01, 0.05, 0.2, 0.2, 4.5)))
        node.go_on()

    async def _fail(self, node: SimulatedNode, _memory: Network) -> None:
        node.failing = self._chance.choice((0.1, 0.5))
        await asyncio.sleep(self._chance.uniform(0.05, 0.3))
        node.failing = 0.0

    async def _slow_down(self, node: SimulatedNode, _memory: Network) -> None:
        node.slowness = self._chance.choice((5.0, 40.0))
        await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        node.slowness = 1.0

    async def _go_cold(self, node: SimulatedNode, _memory: Network) -> None:
        node.coldness = self._chance.choice((0.2, 0.8))
        await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        node.coldness = 0.0

    async def _delay(self, node: SimulatedNode, _memory: Network) -> None:
        self._delays[node.endpoint] = self._chance.choice((0.005, 0.04))
        await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        self._delays.pop(node.endpoint, None)

    async def _restart(self, node: SimulatedNode, _memory: Network) -> None:
        if node.is_up:
            node.kill()
            await asyncio.sleep(self._chance.uniform(0.0, 0.3))
            node.start()

    async def _do_not_read(self, node: SimulatedNode, memory: Network) -> None:
        connections = [one for one in memory.connections.values() if one.endpoint == node.endpoint]
        if connections:
            pipe = self._chance.choice(connections).to_router
            pipe.is_stopped = True
            await asyncio.sleep(self._chance.uniform(0.02, 0.3))
            pipe.go_on()

    # --- the end ---

    async def _heal(self, clients: list[Client]) -> None:
        """Wait until every client wakes complete agents again."""
        end = self._now() + _HEALING_S
        for client in clients:
            while not await self._wake_all(client, 0.5):
                if self._now() > end:
                    self._history.wrong.append(
                        f"client {client.number} is not well {_HEALING_S:g} s after all disturbances"
                    )
                    break
                await asyncio.sleep(0.1)
            self._note(f"client {client.number} is well")
        await asyncio.sleep(0.1)

    def _check(self, clients: list[Client]) -> None:
        wrong = self._history.wrong
        for client in clients:
            router = client.router
            wrong += router.wrong
            if left := leftovers(client.cluster):
                wrong.append(f"client {client.number} still holds {left}")
            if router.unended():
                wrong.append(f"client {client.number}: nobody was notified of {router.unended()} exchanges")
            sent, again = router.sendings()
            self._note(f"client {client.number} sent {sent} requests, {again} again")
            allowed = _RETRIES.share * sent + _RETRIES.per_s * 10 * (1 + (self._now() - 1_000.0) / 10)
            if again > allowed:
                wrong.append(f"client {client.number} sent {again} again of {sent}, and {allowed:.0f} may be")
        for node in self._nodes:
            wrong += node.turns.violations
