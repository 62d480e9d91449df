"""The messages: each survives its encoding, peers of other versions are understood, malformed frames are errors."""

import random
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.errors import ProtocolError
from dawnchorus.wire.protocol import messages
from dawnchorus.wire.protocol.backup_messages import Backup, BackupReply
from dawnchorus.wire.protocol.messages import (
    ABSENT,
    UNCHANGED,
    Cancel,
    Commit,
    CommitReply,
    CommitReplySection,
    CommitSection,
    DeleteAgent,
    DeleteKind,
    Fault,
    FaultCode,
    Fetch,
    FetchReply,
    FetchSection,
    Hello,
    ImageSection,
    Message,
    Ping,
    Pong,
    Put,
    Rejection,
    Reply,
    Request,
    Scan,
    ScanReply,
    SectionStatus,
    ShardStatus,
    Status,
    StatusReply,
    Welcome,
    Write,
    decode_reply,
    decode_request,
    encode,
    encode_fetch_reply_head,
    read_request_number,
)

REQUESTS: tuple[type[msgspec.Struct], ...] = get_args(Request)
REPLIES: tuple[type[msgspec.Struct], ...] = get_args(Reply)

# One of each message, and the bytes that it has had since this number of PROTOCOL. If a line has to change here, which
# breaks every older peer, PROTOCOL has to grow. Hello, Welcome and Fault never change: peers of every number read them.
EXAMPLES: list[tuple[Message, str]] = [
    (Hello(1, "dev", b"\x01\x02", "00ff"), "950101a3646576c4020102a430306666"),
    (
        Welcome("live-1", "ab" * 16, b"{}", b"\x80", "ipc:///run/x.ipc", 4 << 20, [], "cd"),
        "9902a66c6976652d31d9206162616261626162616261626162616261626162616261626162616261626162c4027b7dc40180b06970633a2f2f2f72756e2f782e697063ce0040000090a26364",
    ),
    (
        Fetch(
            7,
            1_000_000,
            77,
            b"trace",
            [FetchSection("live", 3, 1, [b"a", "ä/1".encode()], [0, 5]), FetchSection("archive", 0, 2, [b"a"])],
            ["session"],
        ),
        "970307ce000f42404dc40574726163659295a46c697665030192c40161c404c3a42f3192000595a761726368697665000291c40161c091a773657373696f6e",
    ),
    (
        FetchReply(
            7,
            1_700_000_000_000,
            [ImageSection(0, 0, 0, 1 << 40, [3, ABSENT, UNCHANGED]), ImageSection(1, 0, 3, 0, [])],
            True,
            memoryview(b"xyz"),
        ),
        "960407cf0000018bcfe568009295000000cf0000010000000000930300ff950100030090c3c40378797a",
    ),
    (
        Commit(
            8,
            250,
            77,
            None,
            [
                CommitSection(
                    "live",
                    3,
                    1,
                    [
                        Write(
                            b"a",
                            b"\x10",
                            6,
                            [Put("session", 0, 1, b"\x01"), DeleteKind("context"), DeleteAgent()],
                            digest=9,
                        )
                    ],
                )
            ],
        ),
        "960508ccfa4dc09194a46c69766503019197c40161c4011006939701a773657373696f6e0001c4010100009202a7636f6e746578749103c0c209",
    ),
    (
        CommitReply(
            8,
            [
                CommitReplySection(0, 0, 9, [9, 0, Rejection("no")], removed={0: ["a"]}),
                CommitReplySection(1, 1, 0, [], "moved"),
            ],
        ),
        "930608929600000993090093a26e6f01c0a0810091a1619601010090a56d6f766564c0",
    ),
    (
        Backup(10, 1_000, 77, None, "live", 3, 1, "/b/live-0003.mdb", 0),
        "9a0c0acd03e84dc0a46c6976650301b02f622f6c6976652d303030332e6d646200",
    ),
    (BackupReply(10, 0, 9, 2, 4_096, "ab", ""), "980d0a000902cd1000a26162a0"),
    (Scan(9, 1_000, 77, None, "live", 0, 1, b"a", 100, b"p"), "9b0709cd03e84dc0a46c6976650001c4016164c40170"),
    (ScanReply(9, 0, [b"b", b"c"], False), "9508090092c40162c40163c2"),
    (Status(10, 1_000, 77, None), "95090acd03e84dc0"),
    (
        StatusReply(
            10,
            "live-1",
            4,
            5,
            6,
            [ShardStatus("live", 0, 1, 2, 3, 4, "serving", "full", "gone", 9)],
            {"fetches": 1},
            7,
            8,
            9,
            False,
            "ff",
            "ipc://x",
        ),
        "9e0a0aa66c6976652d31040506919aa46c6976650001020304a773657276696e67a466756c6ca4676f6e650981a76665746368657301070809c2a26666a76970633a2f2f78",
    ),
    (Fault(11, 4, "no", 5), "950b0b04a26e6f05"),
    (Cancel([7, 300]), "920e9207cd012c"),
    (Ping(), "910f"),
    (Pong(), "9110"),
]

# Each struct's fields in their order: two of one type that changed places would show in no bytes.
FIELDS = {
    "Hello": "protocol cluster client topology_digest",
    "Welcome": "node cluster_uuid placement topology ipc frame_bytes_max versions",
    "FetchSection": "store shard epoch agents known",
    "Fetch": "request budget_us sent_us trace sections kinds",
    "ImageSection": "index offset status version sizes",
    "FetchReply": "request now_ms sections last body",
    "Put": "kind schema encoding value ttl_ms expires_ms",
    "DeleteKind": "kind",
    "DeleteAgent": "",
    "Write": "agent write_id seen operations expect repeated digest",
    "CommitSection": "store shard epoch writes",
    "Commit": "request budget_us sent_us trace sections",
    "Rejection": "reason code found",
    "CommitReplySection": "index status version results detail removed",
    "CommitReply": "request sections",
    "Scan": "request budget_us sent_us trace store shard epoch position agents_max prefix",
    "ScanReply": "request status agents last",
    "RequestHeader": "request budget_us sent_us trace",
    "Status": "request budget_us sent_us trace",
    "ShardStatus": "store shard epoch version agents disk_bytes state last_error notice clock_ahead_ms",
    "StatusReply": (
        "request node pid uptime_ms rss_bytes shards counters"
        " clients descriptors descriptors_max takes_clients topology ipc"
    ),
    "Fault": "request code detail retry_after_us",
    "Backup": "request budget_us sent_us trace store shard epoch path rate_bytes_s",
    "BackupReply": "request status version agents bytes checksum detail",
    "Cancel": "requests",
    "Ping": "",
    "Pong": "",
}

# Frames that peers sent before fields were appended: read as ever, with defaults for the fields that are missing.
OLDER: list[tuple[Message, str]] = [
    (
        StatusReply(10, "live-1", 4, 5, 6, [], {"fetches": 1}, 7, 8, 9, False, "ff"),
        "9d0a0aa66c6976652d310405069081a76665746368657301070809c2a26666",
    ),
    (
        StatusReply(10, "live-1", 4, 5, 6, [ShardStatus("live", 0, 1, 2, 3, 4, "serving", "full")], {"fetches": 1}),
        "980a0aa66c6976652d310405069198a46c6976650001020304a773657276696e67a466756c6c81a76665746368657301",
    ),
    (
        StatusReply(10, "live-1", 4, 5, 6, [ShardStatus("live", 0, 1, 2, 3, 4, "serving")], {"fetches": 1}),
        "980a0aa66c6976652d310405069197a46c6976650001020304a773657276696e6781a76665746368657301",
    ),
    (
        StatusReply(10, "live-1", 4, 5, 6, [ShardStatus("live", 0, 1, 2, 3, 4, "serving", "full")], {"fetches": 1}),
        "980a0aa66c6976652d310405069198a46c6976650001020304a773657276696e67a466756c6c81a76665746368657301",
    ),
    (
        Welcome("live-1", "ab" * 16, b"{}", b"\x80", "ipc:///run/x.ipc", 4 << 20),
        "9702a66c6976652d31d9206162616261626162616261626162616261626162616261626162616261626162c4027b7dc40180b06970633a2f2f2f72756e2f782e697063ce00400000",
    ),
    (
        Commit(
            8,
            250,
            77,
            None,
            [
                CommitSection(
                    "live",
                    3,
                    1,
                    [Write(b"a", b"\x10", 6, [Put("session", 0, 1, b"\x01"), DeleteKind("context"), DeleteAgent()])],
                )
            ],
        ),
        "960508ccfa4dc09194a46c69766503019196c40161c4011006939601a773657373696f6e0001c40101009202a7636f6e746578749103c0c2",
    ),
    (
        Commit(
            8,
            250,
            77,
            None,
            [CommitSection("live", 3, 1, [Write(b"a", b"\x10", 6, [Put("session", 0, 1, b"\x01"), DeleteAgent()])])],
        ),
        "960508ccfa4dc09194a46c69766503019194c40161c4011006929501a773657373696f6e0001c401019103",
    ),
    (Scan(9, 1_000, 77, None, "live", 0, 1, b"a", 100), "9a0709cd03e84dc0a46c6976650001c4016164"),
    (
        CommitReply(
            8, [CommitReplySection(0, 0, 9, [9, 0, Rejection("no")]), CommitReplySection(1, 1, 0, [], "moved")]
        ),
        "930608929500000993090093a26e6f01c0a09501010090a56d6f766564",
    ),
    (
        Welcome("live-1", "ab" * 16, b"{}", b"\x80", "ipc:///run/x.ipc", 4 << 20),
        "9802a66c6976652d31d9206162616261626162616261626162616261626162616261626162616261626162c4027b7dc40180b06970633a2f2f2f72756e2f782e697063ce0040000090",
    ),
    (CommitReply(8, [CommitReplySection(0, 0, 9, [9, 0, Rejection("no")])]), "930608919500000993090091a26e6fa0"),
]

names = st.text(max_size=20)
blobs = st.binary(max_size=40)
signed = st.integers(-(1 << 63), (1 << 64) - 1)
numbers = st.integers(0, (1 << 64) - 1)
header = (numbers, numbers, numbers, st.none() | st.binary(max_size=26))
operations = st.one_of(
    st.builds(Put, names, signed, signed, blobs, numbers, numbers), st.builds(DeleteKind, names), st.builds(DeleteAgent)
)
expectations = st.none() | st.dictionaries(names, signed, max_size=3)
writes = st.builds(Write, blobs, blobs, signed, st.lists(operations, max_size=4), expectations, st.booleans(), numbers)
anything: st.SearchStrategy[Any] = st.one_of(
    st.builds(Hello, signed, names, blobs, names),
    st.builds(
        Welcome, names, names, blobs, blobs, names, signed, st.lists(st.tuples(names, signed, signed), max_size=3)
    ),
    st.builds(Backup, *header, names, signed, signed, names, numbers),
    st.builds(BackupReply, signed, signed, signed, signed, signed, names, names),
    st.builds(
        Fetch,
        *header,
        st.lists(
            st.builds(FetchSection, names, signed, signed, st.lists(blobs), st.none() | st.lists(signed)), max_size=4
        ),
        st.none() | st.lists(names),
    ),
    st.builds(
        FetchReply,
        signed,
        signed,
        st.lists(
            st.builds(ImageSection, numbers, numbers, signed, signed, st.lists(st.integers(-1, (1 << 63) - 1))),
            max_size=4,
        ),
        st.booleans(),
        st.binary(max_size=300).map(memoryview),
    ),
    st.builds(
        Commit,
        *header,
        st.lists(st.builds(CommitSection, names, signed, signed, st.lists(writes, max_size=4)), max_size=4),
    ),
    st.builds(
        CommitReply,
        signed,
        st.lists(
            st.builds(
                CommitReplySection,
                numbers,
                signed,
                signed,
                st.lists(signed | st.builds(Rejection, names, signed, expectations), max_size=4),
                names,
                st.none() | st.dictionaries(numbers, st.lists(names, max_size=2), max_size=2),
            ),
            max_size=4,
        ),
    ),
    st.builds(Scan, *header, names, signed, signed, blobs, numbers, blobs),
    st.builds(ScanReply, signed, signed, st.lists(blobs), st.booleans()),
    st.builds(Status, *header),
    st.builds(Cancel, st.lists(numbers, max_size=5)),
    st.just(Ping()),
    st.just(Pong()),
    st.builds(
        StatusReply,
        signed,
        names,
        signed,
        signed,
        signed,
        st.lists(
            st.builds(ShardStatus, names, signed, signed, signed, signed, signed, names, names, names, signed),
            max_size=4,
        ),
        st.dictionaries(names, signed, max_size=4),
        signed,
        signed,
        signed,
        st.booleans(),
    ),
    st.builds(Fault, signed, signed, names, signed),
)


def decode(frame: bytes, like: Message) -> Message:
    return decode_request(frame) if isinstance(like, REQUESTS) else decode_reply(frame)


def as_arrays(message: Message) -> list[Any]:
    """Return the message as the bare arrays that it is on the wire."""
    arrays: list[Any] = msgspec.msgpack.decode(encode(message))
    return arrays


@given(anything)
def test_message_survives_encoding(message: Message) -> None:
    assert decode(encode(message), message) == message


def test_the_strategies_and_the_examples_know_every_message() -> None:
    shown = {type(message) for message, _ in EXAMPLES}
    assert shown == {*REQUESTS, *REPLIES}
    assert {message.__struct_config__.tag for message in shown} == set(range(1, len(shown) + 1))


@pytest.mark.parametrize(("message", "golden"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_bytes_of_a_message_never_change(message: Message, golden: str) -> None:
    assert encode(message).hex() == golden
    assert decode(bytes.fromhex(golden), message) == message


@pytest.mark.parametrize(("message", "frame"), OLDER, ids=lambda value: type(value).__name__)
def test_messages_of_older_peers_are_read(message: Message, frame: str) -> None:
    assert decode(bytes.fromhex(frame), message) == message


def test_the_order_of_fields_never_changes() -> None:
    structs = {name: value for name, value in vars(messages).items() if hasattr(value, "__struct_fields__")}
    structs |= {"Backup": Backup, "BackupReply": BackupReply}
    for name, struct in structs.items():
        known = FIELDS[name].split()
        assert list(struct.__struct_fields__[: len(known)]) == known, "fields are only ever appended"
    assert set(structs) == set(FIELDS)


def test_the_numbers_on_the_wire_never_change() -> None:
    assert messages.PROTOCOL == 2
    assert (ABSENT, UNCHANGED) == (0, -1)
    assert {status.name: status.value for status in SectionStatus} == {
        "OK": 0,
        "MOVED": 1,
        "SEALED": 2,
        "CORRUPT": 3,
        "DISK_FULL": 4,
        "OVERLOADED": 5,
        "TOO_LATE": 6,
        "INTERNAL": 7,
    }
    assert {code.name: code.value for code in FaultCode} == {
        "BAD_REQUEST": 1,
        "NO_HELLO": 2,
        "WRONG_CLUSTER": 3,
        "UNSUPPORTED": 4,
        "OVERLOADED": 5,
        "INTERNAL": 6,
    }


@given(numbers, numbers, st.lists(st.lists(st.binary(min_size=1, max_size=200), max_size=5), max_size=3), st.booleans())
def test_head_with_images_equals_the_encoders_message(
    request_number: int, now_ms: int, images: list[list[bytes]], last: bool
) -> None:
    sections = [ImageSection(index, 0, 0, 9, list(map(len, some))) for index, some in enumerate(images)]
    body = b"".join([image for some in images for image in some])
    reply = decode_reply(encode_fetch_reply_head(request_number, now_ms, sections, last, len(body)) + body)
    assert reply == FetchReply(request_number, now_ms, sections, last, memoryview(body))


def test_images_beyond_64_kib_are_framed_completely() -> None:
    body = b"a" * 70_000 + b"b" * 300
    reply = decode_reply(
        encode_fetch_reply_head(1, 2, [ImageSection(0, 0, 0, 9, [70_000, 0, 300])], True, 70_300) + body
    )
    assert isinstance(reply, FetchReply)
    assert reply.body == body


@pytest.mark.parametrize("sizes", [[-5, 25], [25, -5], [-2], [-(1 << 62), 20]])
def test_images_of_negative_size_are_no_message(sizes: list[int]) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(encode(FetchReply(1, 2, [ImageSection(0, 0, 0, 9, sizes)], True, memoryview(b"x" * 20))))


# --- peers of other versions ---


@pytest.mark.parametrize("message", [message for message, _ in EXAMPLES], ids=lambda value: type(value).__name__)
def test_fields_appended_by_newer_peer_are_ignored(message: Message) -> None:
    arrays = as_arrays(message)
    names = ("tag", *message.__struct_fields__)
    for nested in {"sections", "shards"} & set(names):
        for section in arrays[names.index(nested)]:
            section += ["new", {"newer": [1.5, None]}]
    arrays += ["new", {"newer": [1.5, None]}]
    assert decode(msgspec.msgpack.encode(arrays), message) == message


def test_fields_appended_to_writes_and_operations_are_ignored() -> None:
    write = Write(b"a", b"w", 0, [Put("session", 0, 1, b"v"), DeleteAgent()])
    commit = Commit(1, 2, 0, None, [CommitSection("live", 0, 1, [write])])
    arrays = as_arrays(commit)
    longer = arrays[commit.__struct_fields__.index("sections") + 1][0][3][0]
    for fields in [longer, *longer[3]]:
        fields.append("new")
    assert decode(msgspec.msgpack.encode(arrays), commit) == commit


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (Fetch(1, 2, 0, None, [], None), 1),
        (Fault(1, 2, "", 0), 2),
    ],
)
def test_trailing_fields_missing_from_older_peer_get_defaults(message: Message, missing: int) -> None:
    arrays = as_arrays(message)
    assert decode(msgspec.msgpack.encode(arrays[:-missing]), message) == message
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(arrays[: -missing - 1]), message)


def test_trailing_fields_missing_from_sections_get_defaults() -> None:
    fetch = as_arrays(Fetch(1, 2, 0, None, [FetchSection("live", 0, 1, [b"a"])]))
    del fetch[-2][0][-1]
    committed = as_arrays(CommitReply(1, [CommitReplySection(0, 0, 1, [1])]))
    del committed[2][0][-1]
    assert decode_request(msgspec.msgpack.encode(fetch)) == Fetch(1, 2, 0, None, [FetchSection("live", 0, 1, [b"a"])])
    assert decode_reply(msgspec.msgpack.encode(committed)) == CommitReply(1, [CommitReplySection(0, 0, 1, [1])])


# --- malformed frames ---


def mutations(source: random.Random, frames: list[bytes]) -> bytes:
    """Random bytes, or a frame that was cut short, had bits flipped, or was spliced with another."""
    frame = bytearray(source.choice(frames))
    match source.randrange(5):
        case 0:
            return source.randbytes(source.randrange(40))
        case 1:
            return bytes(frame[: source.randrange(len(frame))])
        case 2:
            for _ in range(source.randrange(1, 4)):
                frame[source.randrange(len(frame))] ^= 1 << source.randrange(8)
        case 3:
            frame[source.randrange(len(frame))] = source.randrange(256)
        case _:
            frame[source.randrange(len(frame)) :] = source.choice(frames)[source.randrange(9) :]
    return bytes(frame)


def test_mutated_frames_raise_only_protocol_errors() -> None:
    seed = 1
    source = random.Random(seed)
    frames = [encode(message) for message, _ in EXAMPLES]
    rejected = 0
    for number in range(100_000):
        frame = mutations(source, frames)
        for decoder in (decode_request, decode_reply):
            try:
                decoder(frame)
            except ProtocolError:
                rejected += 1
            except Exception as error:
                pytest.fail(f"seed {seed}, frame {number}, {frame.hex()}: {decoder.__name__} raised {error!r}")
        try:
            read = read_request_number(frame)
        except Exception as error:
            pytest.fail(f"seed {seed}, frame {number}, {frame.hex()}: read_request_number raised {error!r}")
        assert read is None or read >= 0
    assert 100_000 < rejected < 200_000, "all mutations are malformed, or none is"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\xc1",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x94\x03\x00\x00\xdd\xff\xff\xff\xff",
        b"\x95\x01\x01\xa1\xff\xc4\x00\xa0",
        b"\x84\x01\x02\x03\x04\x05\x06\x07\x08",
        encode(Fetch(1, 1, 0, None, []))[:1] + b"\x63" + encode(Fetch(1, 1, 0, None, []))[2:],
    ],
    ids=["empty", "a number", "no msgpack", "deep", "long array", "long list", "not UTF-8", "a map", "unknown tag"],
)
def test_frames_that_lie_about_themselves_are_protocol_errors(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(frame)
    with pytest.raises(ProtocolError):
        decode_reply(frame)


@pytest.mark.parametrize("field", [1, 2])
def test_negative_request_numbers_and_budgets_are_rejected(field: int) -> None:
    arrays = as_arrays(Status(1, 1, 0, None))
    arrays[field] = -1
    with pytest.raises(ProtocolError):
        decode_request(msgspec.msgpack.encode(arrays))


NUMBERED: list[tuple[list[Any], int | None]] = [
    ([99, 7], 7),
    ([3, 7, "no budget", {}], 7),
    ([3, (1 << 64) - 1], (1 << 64) - 1),
    (["no tag", 0], 0),
    ([3], None),
    ([], None),
    ([3, -7], None),
    ([3, True], None),
    ([3, "7"], None),
    ([3, 7.0], None),
    ([3, None], None),
]


@pytest.mark.parametrize(("fields", "number"), NUMBERED)
def test_request_number_of_malformed_frame_is_read(fields: list[Any], number: int | None) -> None:
    assert read_request_number(msgspec.msgpack.encode(fields)) == number


def test_request_number_of_no_array_is_unknown() -> None:
    assert read_request_number(b"") is None
    assert read_request_number(msgspec.msgpack.encode({1: 7})) is None
    assert read_request_number(msgspec.msgpack.encode([3, 7])[:-1]) is None
    assert read_request_number(msgspec.msgpack.encode([3, 7]) + b"\x00") is None


def test_decoded_image_body_is_the_only_view() -> None:
    frame = bytearray(encode(ScanReply(1, 0, [b"agent"], True)))
    scanned = decode_reply(bytes(frame))
    assert isinstance(scanned, ScanReply)
    assert type(scanned.agents[0]) is bytes
    images = decode_reply(encode_fetch_reply_head(1, 2, [ImageSection(0, 0, 0, 1, [2])], True, 2) + b"ab")
    assert isinstance(images, FetchReply)
    assert isinstance(images.body, memoryview)
    assert bytes(images.body) == b"ab"
