"""One request to one node, on its way to its answer.

Its owner keeps its deadline, and calls `Router.cancel` when it has come. The dispatcher and its flow control keep their
state of it here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from ...wire.protocol.messages import Answer
from ...wire.protocol.status_codes import FaultCode
from .send_queue import Priority

__all__ = ["Exchange"]


class Exchange:
    """A request. Its subclasses know its message, and receive the answer.

    No ABC, which a type checker does not need to see that it is abstract: docs/decisions/0007, weak references.
    """

    __slots__ = (
        "caller",
        "deadline",
        "expected_bytes",
        "node",
        "number",
        "patient",
        "priority",
        "queued_at",
        "required",
        "sendings",
        "sent_at",
        "unserved",
        "waits",
    )

    repeatable: ClassVar[bool] = True
    """Whether sending it twice does no harm."""
    cancellable: ClassVar[bool] = True
    """Whether the node may drop it when nobody waits any more."""
    waits_for_disk: ClassVar[bool] = False
    """Whether a node overloaded with these may still have time for others."""
    guarded: ClassVar[bool] = True
    """Whether breaker and admission apply: not to a question about node health."""

    def __init__(
        self,
        node: str,
        deadline: float,
        expected_bytes: int,
        caller: object,
        priority: Priority = Priority.URGENT,
        *,
        required: bool = False,
    ) -> None:
        """`deadline` is in seconds of the monotonic clock; callers (compared by identity) take turns.

        `required`: its caller's other answers are of no use without this one.
        """
        self.node = node
        self.deadline = deadline
        self.expected_bytes = expected_bytes
        """How many bytes its reply is expected to have."""
        self.caller = caller
        self.priority = priority
        self.required = required
        self.patient = False
        """Whether it waits, until its deadline, for a node that is marked down, instead of being rejected at once."""
        self.number = 0
        """A new one each time it is sent, so that no reply to an earlier sending answers it."""
        self.sendings = 0
        """How often it was sent."""
        self.unserved: int = 0
        """How often of these the node surely did nothing of it."""
        self.sent_at = 0.0
        self.queued_at = 0.0
        self.waits = False

    @abstractmethod
    def encode(self, budget_us: int, sent_us: int) -> bytes:
        """Return its frame."""

    @abstractmethod
    def handle_reply(self, reply: Answer) -> bool:
        """Receive a reply; return whether it was the last. Raises ProtocolError for one that does not fit."""

    @abstractmethod
    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        """End without an answer: the node gave a fault (`code`), is not connected, or is marked down."""
