"""Many keys of one LMDB database looked up at once: _lookup.c."""

def find(record: memoryview, page_bytes: int, keys: list[bytes], /) -> tuple[list[int], bytes] | None:
    """Return the lengths of the keys' values, and the places of these; None where LMDB has to be asked."""

def join(head: bytes, batches: list[bytes | list[bytes | memoryview]], /) -> bytes:
    """Return the head and, one after another, the values of each batch: places, or a list of bytes and views."""
