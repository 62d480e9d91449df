"""The LMDB engine: one environment, and so one file, for each shard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from ...wire.errors import ConfigurationError
from ..engine import Shard, ShardIdentity
from ..shard_files import ShardVerifier
from .checker import FileVerifier
from .environment import DATA_FILE, has_data
from .identity import read_identity
from .lookup import find
from .restore import give_identity, is_copy
from .store import LMDBStore

__all__ = ["LMDBEngine"]

_log = logging.getLogger(__name__)


class LMDBEngine:
    """Opens shards in LMDB, and knows their files."""

    data_file = DATA_FILE
    has_data = staticmethod(has_data)
    read_identity = staticmethod(read_identity)
    is_copy = staticmethod(is_copy)
    give_identity = staticmethod(give_identity)

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Make the engine; there are no options.

        Raises:
            ConfigurationError: one is given.
        """
        for key in options:
            raise ConfigurationError(f"{key}: unknown key; permitted: none")

    def open(self, path: Path, identity: ShardIdentity, *, create: bool, durable: bool = True) -> Shard:
        """Open a shard."""
        if find is None:
            _warn_of_slow_lookups()
        return LMDBStore(path, identity, create=create, durable=durable)

    def verifier(self) -> AbstractContextManager[ShardVerifier]:
        """Return a verifier of files, which reads each in another process."""
        return FileVerifier()


@cache
def _warn_of_slow_lookups() -> None:
    _log.warning("images are looked up one by one: this package was installed without a C compiler")
