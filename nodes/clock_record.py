"""The file in which a node keeps its shards' clocks, beside its shards: `clock.json`.

It is rewritten each minute and when a clock is set. Its times are lower bounds: if it is missing or corrupt, clocks
begin with the newest commits.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from ..wire.durable_files import replace_file
from .node_clock import Clock
from .shard_table import OwnedShard
from .wall_clock import ClockRecord

__all__ = ["RECORD_FILE", "boot_name", "open_clock", "read_record", "write_record"]

RECORD_FILE: Final = "clock.json"

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE: Final = "/proc/self/ns/time"

_decoder: Final = msgspec.json.Decoder(ClockRecord)
_log = logging.getLogger(__name__)


def open_clock(shards: Iterable[OwnedShard], folder: Path) -> Clock:
    """Start the clocks of a node's shards from the record in its directory, in which they will be recorded."""
    return Clock(shards, read_record(folder), partial(write_record, folder), boot_name())


def boot_name() -> str:
    """Return a name of this run of the machine, and of its monotonic clock in this namespace (time_namespaces(7))."""
    with contextlib.suppress(OSError):
        boot = _BOOT_ID.read_text().strip()
        with contextlib.suppress(OSError):  # a kernel without time namespaces
            return f"{boot} {os.readlink(_TIME_NAMESPACE)}"
        return boot
    return f"unknown {os.urandom(8).hex()}"  # that of no other process


def read_record(folder: Path) -> ClockRecord | None:
    """Return the record in a node's directory, None if there is none that can be read."""
    try:
        return _decoder.decode((folder / RECORD_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning(
            "the record of the clocks cannot be read: they begin with the newest commits", extra={"detail": str(error)}
        )
        return None


def write_record(folder: Path, record: ClockRecord) -> None:
    """Write the record, completely or not at all, and durably.

    Raises:
        OSError: it cannot be.
    """
    replace_file(folder / RECORD_FILE, msgspec.json.encode(record), folder / f".{RECORD_FILE}.new")
