"""Folders whose names are as durable as what is kept in them.

A file that is synced is in its folder after a crash only if the folder was synced as well (fsync(2), Notes).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .private_files import FOLDER_MODE

__all__ = ["make_folder_durably", "sync_folder"]


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
