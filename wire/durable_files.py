"""Files and directories that survive a crash complete, under their names.

A file that is synced is in its directory after a crash only if the directory was synced as well (fsync(2), Notes).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .private_files import DIRECTORY_MODE, private_opener

__all__ = ["make_directory_durably", "replace_file", "sync_directory"]


def make_directory_durably(directory: Path) -> None:
    """Make a directory and its missing parents, each durably and accessible to its owner alone.

    Raises:
        OSError: one cannot be made.
    """
    if directory.is_dir():
        return
    if directory.parent.exists() and not directory.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory.parent))
    make_directory_durably(directory.parent)
    directory.mkdir(DIRECTORY_MODE, exist_ok=True)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make creations, renames and removals in a directory durable.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, temporary: Path) -> None:
    """Write a file, its owner's alone, durably and in place of the one that is there: after a crash it is either.

    `temporary`: where it is written first, in the same directory.

    Raises:
        OSError: it cannot be.
    """
    with open(temporary, "wb", opener=private_opener) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)
