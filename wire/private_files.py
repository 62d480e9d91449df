"""Files and directories that are their owner's alone, whatever the umask says: agents' state is private."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["DIRECTORY_MODE", "FILE_MODE", "make_private", "private_opener"]

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def private_opener(path: str, flags: int) -> int:
    """Open a file for `open(opener=...)`; one that is made is its owner's alone."""
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)


def make_private(directory: Path) -> int:
    """Remove all rights of others on a directory and its content, which an earlier version or a person gave them.

    Only what is this user's is changed; symbolic links are not followed, and not gone through. Returns how many.
    """
    changed = int(_take_from_others(directory))
    for root, directories, files in os.walk(directory):
        for name in (*directories, *files):
            changed += _take_from_others(Path(root, name))
    return changed


def _take_from_others(path: Path) -> bool:
    with contextlib.suppress(OSError):  # it was removed, or may not be changed: then nothing is
        facts = path.lstat()
        regular = stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode)
        if regular and facts.st_uid == os.geteuid() and facts.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(facts.st_mode) & ~_OTHERS)
            return True
    return False
