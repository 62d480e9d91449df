"""Status and its answer; `wire.protocol.messages` has them in its unions, and says how messages are made."""

from __future__ import annotations

import msgspec

from .request_header import RequestHeader

__all__ = ["ShardStatus", "Status", "StatusReply"]


class Status(RequestHeader, array_like=True, frozen=True, gc=False, tag=9):
    """Ask a node for its health."""


class ShardStatus(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One shard as its node sees it. `state` is "serving", or the reason why it is not served.

    `trouble`: why its last commit failed, "" if it did not. `notice`: why its file could not be looked at.
    `clock_ahead_ms`: how far its clock, by which fragments expire, is ahead of its host's; negative if it is behind.
    """

    store: str
    shard: int
    epoch: int
    version: int
    agents: int
    disk_bytes: int
    state: str
    last_error: str = ""
    notice: str = ""
    clock_ahead_ms: int = 0


class StatusReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=10):
    """Answers Status. `counters` are totals since the start, by names of `wire.transport.counters`.

    `clients`: routers that it has welcomed. `takes_clients`: false if it has no descriptors to spare for more.
    `topology`: the digest of the topology that the node serves; "": not said. `ipc`: its ipc endpoint, "" for none.
    """

    request: int
    node: str
    pid: int
    uptime_ms: int
    rss_bytes: int
    shards: list[ShardStatus]
    counters: dict[str, int]
    clients: int = 0
    descriptors: int = 0
    descriptors_max: int = 0
    takes_clients: bool = True
    topology: str = ""
    ipc: str = ""
