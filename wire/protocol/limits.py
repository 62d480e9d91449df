"""Every limit that more than one side must agree on, in one place.

Limits of one side alone (its queues, windows, batches) are defined where they are used.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AGENT_ID_BYTES_MAX",
    "CANCEL_NUMBERS_MAX",
    "DEADLINE_S_MAX",
    "FRAGMENT_BYTES_MAX",
    "FRAME_BYTES_MAX",
    "FRAME_BYTES_TARGET",
    "IMAGE_BYTES_MAX",
    "IPC_PATH_BYTES_MAX",
    "NESTING_MAX",
    "REQUEST_AGENTS_MAX",
    "SECTIONS_MAX",
    "TTL_MS_MAX",
    "WRITE_ID_BYTES_MAX",
    "WRITE_KEY_BYTES_MAX",
    "WRITE_OPERATIONS_MAX",
]

AGENT_ID_BYTES_MAX: Final = 256
"""UTF-8 bytes of an agent id. LMDB's keys end at 511; an expiry row needs 8 more than the id."""

DEADLINE_S_MAX: Final = 86_400
"""Seconds of a deadline, of a call or in a topology: a day, for loads that wait for a cluster under repair."""

FRAGMENT_BYTES_MAX: Final = 1 << 20
"""Bytes of one fragment's encoded value."""

NESTING_MAX: Final = 200
"""Lists and mappings in each other, in one value, that all readers can decode. JSON of people and programs ends at 254
levels (orjson, writing), Python's recursion at 1,000; more is rather a circle than a value."""

IMAGE_BYTES_MAX: Final = 2 << 20
"""Bytes of one image, header included."""

FRAME_BYTES_TARGET: Final = 1 << 20
"""Senders cut batches at about this many bytes; one larger image or write travels alone."""

FRAME_BYTES_MAX: Final = 4 << 20
"""ZMQ_MAXMSGSIZE of every socket: the target, one largest image beyond it, and room for ids and headers."""

SECTIONS_MAX: Final = 4_096
"""Sections of one request; a router sends a few dozen."""

CANCEL_NUMBERS_MAX: Final = 256
"""Requests that one Cancel names."""

REQUEST_AGENTS_MAX: Final = 65_536
"""Agents or writes of one request, over all its sections; a router sends about 1,300 at most. Bounds what one frame can
make a node hold: 4 MiB of ids of two bytes are a million objects, 50 MB."""

WRITE_ID_BYTES_MAX: Final = 64
"""Bytes of a write id; a router's have 16. Each is kept in the shard's log."""

WRITE_KEY_BYTES_MAX: Final = 256
"""UTF-8 bytes of a write id that a caller chose; nodes get a hash of it."""

WRITE_OPERATIONS_MAX: Final = 256
"""Operations of one write: four for each of the most kinds a cluster can have. Each is kept in the shard's log."""

TTL_MS_MAX: Final = 10 * 366 * 86_400_000
"""The longest lifetime of a fragment: ten years. Times in an image are of 64 bits; a peer's number may not be."""

IPC_PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket: sun_path has 108 bytes with its closing zero (unix(7))."""
