"""Recorded writes: a process's writes and syncs of a file by strace(1), and the file as a crash may leave it.

A disk that loses power keeps what was synced. Of what was written since, it keeps any part: pages reach it in any
order. A write to a file descriptor opened with O_DSYNC is on the disk when it returns, and says nothing of others.
"""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

__all__ = ["STRACE", "Disk", "FileEvent", "directory_syncs", "read_events"]

_CALLS = "openat,lseek,pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,sync_file_range,msync,ftruncate,fallocate"

STRACE = [
    *("strace", "--follow-forks", "--output-separately", "--decode-fds=path"),
    *("--strings-in-hex=all", "--string-limit=16777216", "--no-abbrev"),
    *("--absolute-timestamps=format:unix,precision:us", "--quiet=all", "--signal=none", f"--trace={_CALLS}"),
]

PAGE_BYTES = 4_096

_LINE = re.compile(r"^(?P<at>\d+\.\d+) (?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?P<rest>.*)$")
_DESCRIPTOR = re.compile(r"^(?P<number>\d+)<(?P<path>[^>]*)>")
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class FileEvent(NamedTuple):
    """One call on a file: a write of `content` at `offset`, or a sync of all before (`content` is None).

    `durable`: it is on the disk when it returns. `at`: when it began, in seconds since 1970.
    """

    at: float
    path: str
    offset: int
    content: bytes | None
    durable: bool


def read_events(prefix: Path) -> list[FileEvent]:
    """Return what happened to files, in order of time, from the outputs of STRACE with `--output` of this prefix."""
    lines: list[tuple[float, str, str, str, str]] = []
    for output in prefix.parent.glob(f"{prefix.name}.*"):
        for line in output.read_text().splitlines():
            found = _LINE.match(line)
            if found is not None:
                lines.append((float(found["at"]), found["call"], found["arguments"], found["result"], found["rest"]))
            else:
                assert "+++" in line or "---" in line or "resumed" not in line, f"not understood: {line[:200]}"
    return list(_events(sorted(lines, key=lambda line: line[0])))


def _events(lines: Sequence[tuple[float, str, str, str, str]]) -> Iterator[FileEvent]:
    synchronous: set[int] = set()
    positions: dict[int, int] = {}
    for at, call, arguments, result, rest in lines:
        if call == "openat":
            if int(result) >= 0:
                (synchronous.add if re.search(r"O_D?SYNC", arguments) else synchronous.discard)(int(result))
                positions[int(result)] = 0
            continue
        descriptor = _DESCRIPTOR.match(arguments)
        path = _unhex(descriptor["path"]).decode() if descriptor is not None else ""
        if descriptor is None or not path.endswith("/data.mdb"):
            continue
        assert int(result) >= 0, f"{call} failed: {result}{rest}"
        number = int(descriptor["number"])
        if call == "lseek":
            positions[number] = int(result)
        elif call in ("fdatasync", "fsync"):
            yield FileEvent(at, path, 0, None, durable=True)
        else:
            assert call in ("pwrite64", "pwritev", "write", "writev"), f"the model does not know {call}"
            parts = _BYTES.findall(arguments[descriptor.end() :])
            assert not any(shortened for _, shortened in parts)
            content = _unhex("".join(part for part, _ in parts))
            assert len(content) == int(result), f"{call} wrote {result} of {len(content)} bytes"
            offset = int(arguments.rsplit(", ", 1)[1]) if call.startswith("p") else positions[number]
            if not call.startswith("p"):
                positions[number] += len(content)
            yield FileEvent(at, path, offset, content, number in synchronous)


def directory_syncs(prefix: Path) -> set[str]:
    """Return every path that was synced with fsync(2), from the outputs of STRACE."""
    found: set[str] = set()
    for output in prefix.parent.glob(f"{prefix.name}.*"):
        for line in map(_LINE.match, output.read_text().splitlines()):
            descriptor = _DESCRIPTOR.match(line["arguments"]) if line is not None and line["call"] == "fsync" else None
            if descriptor is not None:
                found.add(_unhex(descriptor["path"]).decode())
    return found


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class Disk:
    """A file on a disk: its durable content, and the pages that may be on the disk."""

    def __init__(self) -> None:
        self.sure = bytearray()
        self.pending: list[tuple[int, bytes]] = []
        """Offset and content of each piece written and not synced, cut at pages, in order."""

    def take(self, event: FileEvent) -> None:
        """Let an event happen completely."""
        if event.content is None:
            for offset, piece in self.pending:
                _put(self.sure, offset, piece)
            self.pending.clear()
        elif event.durable:
            # Earlier writes to the same pages go to the disk with them.
            first, last = event.offset // PAGE_BYTES, (event.offset + len(event.content) - 1) // PAGE_BYTES
            for offset, piece in self.pending:
                if first <= offset // PAGE_BYTES <= last:
                    _put(self.sure, offset, piece)
            self.pending = [piece for piece in self.pending if not first <= piece[0] // PAGE_BYTES <= last]
            _put(self.sure, event.offset, event.content)
        else:
            self.pending += _pieces(event)

    def after_crash(self, during: FileEvent, chance: random.Random) -> bytes:
        """Return the file as a crash during an event may leave it: with any part of the unsynced writes."""
        pending = self.pending + (_pieces(during) if during.content is not None else [])
        # All, nothing or one piece missing are the likely cases.
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        kept = [piece for piece in pending if chance.random() < share]
        left = bytearray(self.sure)
        for offset, piece in kept:
            _put(left, offset, piece)
        return bytes(left)


def _pieces(event: FileEvent) -> list[tuple[int, bytes]]:
    assert event.content is not None
    cuts = [0, *range(PAGE_BYTES - event.offset % PAGE_BYTES, len(event.content), PAGE_BYTES), len(event.content)]
    return [(event.offset + start, event.content[start:end]) for start, end in pairwise(cuts) if end > start]


def _put(content: bytearray, offset: int, piece: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(piece)] = piece
