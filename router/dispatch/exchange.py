"""One request to one node, on its way to its answer.

Who makes one keeps its deadline, and calls `Router.cancel` when it has come. The dispatcher and its flow control keep
here what they know of it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from ...wire.protocol.messages import Answer
from ...wire.protocol.status_codes import FaultCode
from .send_queue import Priority

__all__ = ["Exchange"]


class Exchange:
    """A request. Its subclasses know what is asked, and what to do with the answer.

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
    """Whether asking twice does no harm."""
    cancellable: ClassVar[bool] = True
    """Whether the node may leave it when nobody waits any more."""
    waits_for_disk: ClassVar[bool] = False
    """Whether a node that has too much of these may well have time for others."""
    guarded: ClassVar[bool] = True
    """Whether breaker and admission apply: not to a question how the node is."""

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

        `required`: what it asks for makes no sense to its caller without this one's answer.
        """
        self.node = node
        self.deadline = deadline
        self.expected_bytes = expected_bytes
        """How many bytes its reply is expected to have."""
        self.caller = caller
        self.priority = priority
        self.required = required
        self.patient = False
        """Whether it waits, until its deadline, for a node that is marked down; one that is not is rejected at once."""
        self.number = 0
        """A new one each time it is sent: no reply to an earlier sending can be taken for it."""
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
        """Take in a reply; return whether it was the last. Raises ProtocolError for one that does not fit."""

    @abstractmethod
    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        """It will get no answer: the node said so (`code`), or it cannot be had: not connected, or marked down."""
