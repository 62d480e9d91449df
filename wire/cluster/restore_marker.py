"""The file that says that a restore has not come to its end in a data directory.

    building    copies of shards are made beside their places, under names of their own; nothing else was touched
    placing     all are made, durably; they are being renamed into their places, and the placement is put in last

It names the backup (by the digest of its manifest) and the placement that the restore puts in. No node starts while it
is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from ..durable_files import replace_file, sync_directory
from ..errors import DataDirectoryError

__all__ = ["MARKER_FILE", "RestoreMarker", "read_marker", "remove_marker", "require_no_restore", "write_marker"]

MARKER_FILE: Final = "restore-in-progress.json"

_MARKER_BYTES_MAX: Final = 16 << 20
"""A marker holds a placement, of about 1 MiB at most."""


class RestoreMarker(msgspec.Struct, frozen=True):
    """`backup` is the backup's path, for people; `manifest` its manifest's digest; `placement` as it is put in.

    `phase` is "" in a marker of an earlier version, which had none: what its restore has built is unknown.
    """

    cluster_uuid: str = ""
    backup: str = ""
    phase: Literal["", "building", "placing"] = ""
    manifest: str = ""
    placement: bytes = b""


_decoder: Final = msgspec.json.Decoder(RestoreMarker)


def read_marker(data_dir: Path) -> RestoreMarker | None:
    """Return the marker in a data directory, None if there is none.

    Raises:
        DataDirectoryError: it cannot be read.
    """
    path = data_dir / MARKER_FILE
    try:
        with open(path, "rb") as file:
            return _decoder.decode(file.read(_MARKER_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataDirectoryError(
            f"{path}: it says that a restore was interrupted here, and cannot be read: {error}; move the data directory"
            " away and restore again"
        ) from error


def write_marker(data_dir: Path, marker: RestoreMarker) -> None:
    """Put the marker there, completely and durably, in place of the one that is there.

    Raises:
        OSError: it cannot be written.
    """
    path = data_dir / MARKER_FILE
    replace_file(path, msgspec.json.encode(marker), path.with_suffix(".partial"))


def remove_marker(data_dir: Path) -> None:
    """Say, durably, that the restore has come to its end.

    Raises:
        OSError: it cannot be removed.
    """
    (data_dir / MARKER_FILE).unlink(missing_ok=True)
    sync_directory(data_dir)


def require_no_restore(data_dir: str | os.PathLike[str]) -> None:
    """Reject a data directory in which a restore has not come to its end.

    Raises:
        DataDirectoryError: the message says which, and what to do.
    """
    marker = read_marker(Path(data_dir))
    if marker is not None:
        again = f"`dawnchorus restore {marker.backup}`" if marker.backup else "`dawnchorus restore`"
        raise DataDirectoryError(
            f"{data_dir}: a restore of cluster {marker.cluster_uuid or 'unknown'} was interrupted here"
            f" ({MARKER_FILE}): run {again} again to its end, or move the data directory away"
        )
