"""A cluster in memory, with the methods that the harness uses."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

from dawnchorus.wire.errors import ClusterUnavailable


class MemoryState:
    """An agent's fragments; complete unless made otherwise."""

    def __init__(self, agent_id: str, fragments: Mapping[str, object], complete: bool = True) -> None:
        self.agent_id = agent_id
        self.complete = complete
        self._fragments = fragments

    def __getitem__(self, kind: str) -> object:
        return self._fragments[kind]


class MemoryCluster:
    """A cluster that wakes saved agents; `broken` ones come back incomplete, `rejected` ones are not saved."""

    def __init__(self) -> None:
        self.agents: dict[str, dict[str, object]] = {}
        self.broken: set[str] = set()
        self.rejected: set[str] = set()
        self.forgotten: set[str] = set()
        self.unavailable = False

    def wake(self, agent_id: str) -> Awaitable[MemoryState]:
        """Return a future that is done, as a cluster's is in time."""
        future: asyncio.Future[MemoryState] = asyncio.get_running_loop().create_future()

        def finish() -> None:
            if future.done():
                return
            if self.unavailable:
                future.set_exception(ClusterUnavailable("no node answered"))
            else:
                future.set_result(self._state(agent_id))

        asyncio.get_running_loop().call_soon(finish)
        return future

    async def wake_many(self, agent_ids: Sequence[str]) -> list[MemoryState]:
        """Return all states at once, in order."""
        return [self._state(agent_id) for agent_id in agent_ids]

    async def save(self, agent_id: str, fragments: Mapping[str, object]) -> object:
        """Keep some kinds of an agent; one of `forgotten` is acknowledged and not kept."""
        await asyncio.sleep(0)
        if agent_id in self.rejected:
            raise ClusterUnavailable("no room")
        if agent_id not in self.forgotten:
            self.agents.setdefault(agent_id, {}).update(fragments)
        return dict.fromkeys(fragments, 1)

    async def save_many(self, saves: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
        """Keep them; one result each."""
        results: dict[str, object] = {}
        for agent_id, fragments in saves.items():
            if agent_id in self.rejected:
                results[agent_id] = OSError("no room")
            else:
                self.agents[agent_id] = dict(fragments)
                results[agent_id] = dict.fromkeys(fragments, 1)
        return results

    def _state(self, agent_id: str) -> MemoryState:
        return MemoryState(agent_id, self.agents[agent_id], agent_id not in self.broken)
