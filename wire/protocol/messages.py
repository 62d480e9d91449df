"""The messages: one msgpack array a frame, `[tag, ...]`, fields in the order in which they are declared here.

`docs/messages.md` is the table for people: who sends a message, its fields, what answers it. Fields are only ever
appended, each with a default; nothing is reordered or retyped, so that an older peer skips unknown fields and a newer
one fills in missing ones (https://jcristharif.com/msgspec/schema-evolution.html).

A request begins with a RequestHeader (`request_header`): its number, what is left of its deadline, when it was sent,
and its trace. Hello, Cancel and Ping are no requests in that sense: they concern the connection.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from ..errors import ProtocolError
from .backup_messages import Backup, BackupReply
from .control_messages import PING, PONG, Cancel, Ping, Pong
from .request_header import REQUEST_FIELD, Number, RequestHeader
from .status_codes import FaultCode, RejectionCode, SectionStatus
from .status_messages import ShardStatus, Status, StatusReply

__all__ = [
    "ABSENT",
    "PING",
    "PONG",
    "PROTOCOL",
    "UNCHANGED",
    "Answer",
    "Backup",
    "BackupReply",
    "Cancel",
    "Commit",
    "CommitReply",
    "CommitReplySection",
    "CommitSection",
    "DeleteAgent",
    "DeleteKind",
    "Fault",
    "FaultCode",
    "Fetch",
    "FetchReply",
    "FetchSection",
    "Hello",
    "ImageSection",
    "Message",
    "Operation",
    "Ping",
    "Pong",
    "Put",
    "Rejection",
    "RejectionCode",
    "Reply",
    "Request",
    "RequestHeader",
    "Scan",
    "ScanReply",
    "SectionStatus",
    "ShardStatus",
    "Status",
    "StatusReply",
    "Welcome",
    "Write",
    "decode_reply",
    "decode_request",
    "encode",
    "encode_fetch_reply_head",
    "read_request_number",
]

PROTOCOL: Final = 2
"""Grows when a peer of the old number could misunderstand; then Hello is answered with Fault UNSUPPORTED. So Hello,
Welcome and Fault are what peers of every number read alike. (2: every request begins with the same header.)"""

Size = Annotated[int, msgspec.Meta(ge=-1)]

ABSENT: Final = 0
"""The size of an agent's image if it has none: no image is empty."""
UNCHANGED: Final = -1
"""The size if the image still has the version that the router said it knows: nothing of it is in the body."""


class Hello(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """A router opens a connection. `cluster` is a uuid, a name, or "" if only an endpoint is known.

    `topology_digest`: of the topology that the router works by, "" if it learns it from the Welcome.
    """

    protocol: int
    cluster: str
    client: bytes
    topology_digest: str


class Welcome(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """A node accepts it. `placement` and `topology` as their modules encode them; `ipc` is an endpoint or ""."""

    node: str
    cluster_uuid: str
    placement: bytes
    topology: bytes
    ipc: str
    frame_bytes_max: int
    versions: list[tuple[str, int, int]] = []
    """(store, shard, version) of each shard that it serves."""
    directory: str = ""
    """A name of the node's data directory; its copies have others (`wire.cluster.data_directory`); "": not said."""


class FetchSection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Agents of one shard; `known`: the image version that the router has of each, 0 for none."""

    store: str
    shard: int
    epoch: int
    agents: list[bytes]
    known: list[int] | None = None


class Fetch(RequestHeader, array_like=True, frozen=True, gc=False, tag=3):
    """Read images. `kinds`: only these; None is all kinds of each store."""

    sections: list[FetchSection]
    kinds: list[str] | None = None


class ImageSection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Images of the request's section `index`, from its agent number `offset` on.

    `sizes`: bytes of each agent's image in the message's body, or ABSENT or UNCHANGED. `version` is one that the shard
    had reached in the snapshot that was read; the snapshot may be newer, never older.
    """

    index: Number
    offset: Number
    status: int
    version: int
    sizes: list[Size]


class FetchReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """Answers Fetch, in as many messages as the frame size asks for. `now_ms`: the clock of these shards, UTC.

    `body`: all images, one behind the other, in the order of the sections and of their agents. Decoding
    gives a view of it, from which an image is cut out when it is first looked at.
    """

    request: int
    now_ms: int
    sections: list[ImageSection]
    last: bool
    body: memoryview


class Put(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Set one kind. `ttl_ms`: how long it lives, by the shard's clock from the commit on; 0 for ever.

    `expires_ms`: the time at which it expires, by the shard's clock, instead; 0 if `ttl_ms` says it. A value that
    has expired already is written as such.
    """

    kind: str
    schema: int
    encoding: int
    value: bytes
    ttl_ms: Number = 0
    expires_ms: Number = 0


class DeleteKind(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Delete one kind."""

    kind: str


class DeleteAgent(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Delete all kinds of the agent in this store."""


Operation: TypeAlias = Put | DeleteKind | DeleteAgent


class Write(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Operations on one agent in one store: all are applied, in order, or none.

    `write_id` names the save in the shard's log; `seen` is the shard version that the router had seen when it first
    sent the write, and `repeated` says that it may have been sent before. `expect`: kind -> the version that it must
    have for the write to be applied, 0 for nothing there (expired counts as nothing); nil for no condition. `digest`
    is that of the entire save, if the router computes it; 0: the node does, of these operations.
    """

    agent: bytes
    write_id: bytes
    seen: int
    operations: list[Operation]
    expect: dict[str, int] | None = None
    repeated: bool = False
    digest: Annotated[int, msgspec.Meta(ge=0)] = 0


class CommitSection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Writes to one shard."""

    store: str
    shard: int
    epoch: int
    writes: list[Write]


class Commit(RequestHeader, array_like=True, frozen=True, gc=False, tag=5):
    """Write; acknowledged when durable."""

    sections: list[CommitSection]


class Rejection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why a write was not applied; nothing of it was, now. `found`: kind -> version, of the kinds expected."""

    reason: str
    code: int = RejectionCode.INVALID
    found: dict[str, int] | None = None


class CommitReplySection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Results of the request's section `index`, one for each write in order.

    A result is the write's version (0 if there was nothing to delete) or its rejection. `version` is the shard's.
    `removed`: of writes that delete, by their index, the kinds that were there.
    """

    index: Number
    status: int
    version: int
    results: list[int | Rejection]
    detail: str = ""
    removed: dict[int, list[str]] | None = None


class CommitReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=6):
    """Answers Commit, in one message."""

    request: int
    sections: list[CommitReplySection]


class Scan(RequestHeader, array_like=True, frozen=True, gc=False, tag=7):
    """List agent ids of one shard in byte order, after `position` (b"" to begin), at most `agents_max`.

    `prefix`: up to the first one that does not begin with it.
    """

    store: str
    shard: int
    epoch: int
    position: bytes
    agents_max: Number
    prefix: bytes = b""


class ScanReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=8):
    """Answers Scan. `last`: the shard has no agent beyond these."""

    request: int
    status: int
    agents: list[bytes]
    last: bool


class Fault(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=11):
    """Answers a request that failed as a whole; `request` is 0 if it answers a Hello."""

    request: int
    code: int
    detail: str = ""
    retry_after_us: int = 0


Request: TypeAlias = Hello | Fetch | Commit | Scan | Status | Backup | Cancel | Ping
Answer: TypeAlias = FetchReply | CommitReply | ScanReply | StatusReply | BackupReply
Reply: TypeAlias = Welcome | Answer | Fault | Pong
Message: TypeAlias = Request | Reply

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_any_decoder: msgspec.msgpack.Decoder[list[object]] = msgspec.msgpack.Decoder(list[object])

# The exceptions of msgspec for bytes that are no such message; text that is not UTF-8 is no DecodeError to it.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

encode = _encoder.encode
"""Return a message's frame."""


def encode_fetch_reply_head(
    request: int, now_ms: int, sections: list[ImageSection], last: bool, images_bytes: int
) -> bytes:
    """Return the frame of a FetchReply up to its images, which follow one after another: `images_bytes` bytes."""
    head = _encoder.encode(FetchReply(request, now_ms, sections, last, _NO_BODY))
    # The head ends with the two bytes of an empty body (bin 8, length 0); a bin 32 with the images takes their place.
    return b"".join([head[:-2], b"\xc6", images_bytes.to_bytes(4, "big")])


_NO_BODY: Final = memoryview(b"")


def decode_request(frame: bytes | memoryview) -> Request:
    """Return the message that a router sent.

    Raises:
        ProtocolError: it is none of them.
    """
    try:
        return _request_decoder.decode(frame)
    except _UNDECODABLE as error:
        raise ProtocolError(str(error)) from error


def decode_reply(frame: bytes | memoryview) -> Reply:
    """Return the message that a node sent.

    Raises:
        ProtocolError: it is none of them.
    """
    try:
        return _reply_decoder.decode(frame)
    except _UNDECODABLE as error:
        raise ProtocolError(str(error)) from error


def read_request_number(frame: bytes) -> int | None:
    """Return the request number of a frame that could not be decoded as a whole, if it can be read."""
    try:
        fields = _any_decoder.decode(frame)
    except _UNDECODABLE:
        return None
    number = fields[REQUEST_FIELD] if len(fields) > REQUEST_FIELD else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else None
