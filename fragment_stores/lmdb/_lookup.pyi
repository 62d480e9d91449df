"""Many keys of one LMDB database looked up at once: _lookup.c."""

def find(record: memoryview, page_bytes: int, keys: list[bytes], checks: int, /) -> tuple[list[int], bytes] | None:
    """Return the lengths of the keys' values, and the places of these; None if LMDB has to be asked."""

def join(head: bytes, batches: list[bytes | list[bytes | memoryview]], /) -> bytes:
    """Return the head and, one after another, the values of each batch: places, or a list of bytes and views."""

def views(places: bytes, /) -> list[bytes | memoryview]:
    """Return a view of each value."""

def warm(record: memoryview, page_bytes: int, keys: list[bytes], /) -> bool:
    """Read from the disk what `find` and `join` will look at; other threads run meanwhile."""
