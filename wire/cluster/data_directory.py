"""The names of a data directory: one for its sockets, and one that its clients compare.

A copy of a data directory has everything of the original: cluster uuid, nodes, placement. Only its place differs.
So both names are digests of the place as well: path (symbolic links followed) and inode, and, for sockets, the device.
Clients compare without the device: its number may change when a host starts again, and they would reject their own
cluster.
"""

from __future__ import annotations

import hashlib
import os

from .placement import Placement

__all__ = ["directory_name", "socket_name"]


def socket_name(data_dir: str | os.PathLike[str], placement: Placement, node: str) -> str:
    """Return 16 hexadecimal digits for a node's Unix socket: the same at each start on this data directory here.

    Raises:
        OSError: there is no such directory.
    """
    facts = os.stat(data_dir)
    return _digest(placement.cluster_uuid, node, os.path.realpath(data_dir), facts.st_dev, facts.st_ino)


def directory_name(data_dir: str | os.PathLike[str], placement: Placement) -> str:
    """Return 16 hexadecimal digits that differ between a data directory and its copies, or before and after a restore.

    Raises:
        OSError: there is no such directory.
    """
    facts = os.stat(data_dir)
    return _digest(placement.cluster_uuid, placement.life, os.path.realpath(data_dir), facts.st_ino)


def _digest(*parts: object) -> str:
    return hashlib.blake2b("/".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).hexdigest()
