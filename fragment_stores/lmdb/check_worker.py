"""The process in which shards are verified: a corrupt file may end it, and its end is then a finding.

Standard input brings one path of an LMDB file a line; standard output, a JSON object a line: `{"entries": ...}` now and
then, `{"where": ..., "detail": ...}` for each finding, and at last `{"done": {...}}` with the totals.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import lmdb
import msgspec

from ..shard_files import Finding, Verified
from .check import open_copy, verify_environment
from .file_format import unreadable_format


def _say(message: dict[str, object]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _verify(path: Path) -> None:
    verified = Verified()

    def find(finding: Finding) -> None:
        _say({"where": finding.where, "detail": finding.detail})

    try:
        environment = open_copy(path)
    except (lmdb.Error, OSError) as error:
        foreign = unreadable_format(path)
        find(Finding("format", foreign) if foreign else Finding("structure", f"LMDB cannot open it: {error}"))
    else:
        with environment:
            for finding in verify_environment(environment, verified, lambda entries: _say({"entries": entries})):
                find(finding)
    _say({"done": msgspec.to_builtins(verified)})


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its end by a signal is expected, and its memory of no use
    for line in sys.stdin:
        _verify(Path(line.rstrip("\n")))
