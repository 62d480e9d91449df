"""In which order the saves of one agent go to one store: that in which they were called. Pure.

Commits overtake each other on their way: those of several callers take turns, one that a node had no room for is sent
again later, and so is one whose connection broke. So while a save of an agent is on its way to a store, the next one of
that agent to that store is held, unless it travels in the same message, which a node applies in order. Saves of
different agents never wait for each other here; those of one agent that are called in one turn go together.

    enter -> True: nothing of this agent is on its way there, or it is in this very message: it is carried
          -> False: `hold` it
    leave -> a message is over: what was held behind it is carried, as far as one message takes it

A save that is over its deadline while it is held is passed over; what is behind it waits on for what is before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from .agent_write import AgentWrite

__all__ = ["Carries", "Held", "SaveOrder"]


class Carries(Protocol):
    """Puts held saves into messages."""

    def carry(self, held: Held, carrier: object) -> object:
        """Put a save that was held into a message; return which, None if it has to be `carrier` and does not fit."""
        ...


class Held:
    """A save's part for one store that waits for an earlier one of its agent."""

    __slots__ = ("owner", "store", "waits", "write")

    def __init__(self, owner: Carries, store: str, write: AgentWrite) -> None:
        self.owner = owner
        self.store = store
        self.write = write
        self.waits = True
        """Whether it still does: not once it is carried, or too late."""


class _Line:
    """More than one save of an agent for a store: the message that is on its way, and what is held behind it."""

    __slots__ = ("carrier", "held")

    def __init__(self, carrier: object) -> None:
        self.carrier = carrier
        self.held: deque[Held] = deque()


class SaveOrder:
    """The saves of one client that are on their way, by store and agent."""

    def __init__(self) -> None:
        self._ways: dict[str, dict[bytes, object]] = {}

    def __len__(self) -> int:
        return sum([len(ways) for ways in self._ways.values()])

    def enter(self, store: str, agent: bytes, carrier: object) -> bool:
        """Let a message carry a save of an agent to a store; return False where it has to be held. 0.05 us."""
        ways = self._ways.get(store)
        if ways is None:
            ways = self._ways[store] = {}
        before = ways.setdefault(agent, carrier)
        return before is carrier or (isinstance(before, _Line) and before.carrier is carrier and not before.held)

    def hold(self, held: Held) -> None:
        """Let a save wait that `enter` did not let pass."""
        ways, agent = self._ways[held.store], held.write.agent
        line = ways[agent]
        if not isinstance(line, _Line):
            line = ways[agent] = _Line(line)
        line.held.append(held)

    def leave(self, store: str, agents: Sequence[bytes], carrier: object) -> None:
        """A message that carried saves of these agents to a store is over, one way or another. 0.05 us each."""
        ways = self._ways[store]
        for agent in agents:
            before = ways.get(agent)
            if before is carrier:
                del ways[agent]
            elif isinstance(before, _Line) and before.carrier is carrier:
                before.carrier = _carry_held(before)
                if before.carrier is None:
                    del ways[agent]


def _carry_held(line: _Line) -> object:
    """Put what is held first into a message, and what fits behind it; return the message, None where nothing waits."""
    carrier: object = None
    while line.held:
        held = line.held[0]
        if held.waits:
            carries = held.owner.carry(held, carrier)
            if carries is None:
                break
            carrier = carries
            held.waits = False
        line.held.popleft()
    return carrier
