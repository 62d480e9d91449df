"""Files and folders that survive a crash complete, under their names.

A file that is synced is in its folder after a crash only if the folder was synced as well (fsync(2), Notes).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .private_files import FOLDER_MODE, private_opener

__all__ = ["make_folder_durably", "replace_file", "sync_folder"]


def make_folder_durably(folder: Path) -> None:
    """Make a folder and its parents where they are missing, each durably, and its owner's alone.

    Raises:
        OSError: one cannot be made.
    """
    if folder.is_dir():
        return
    if folder.parent.exists() and not folder.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent))
    make_folder_durably(folder.parent)
    folder.mkdir(FOLDER_MODE, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make what was made, renamed or removed in a folder durable.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, temporary: Path) -> None:
    """Write a file, its owner's alone, durably and in place of the one that is there: after a crash it is either.

    `temporary`: where it is written first, in the same folder.

    Raises:
        OSError: it cannot be.
    """
    with open(temporary, "wb", opener=private_opener) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
