"""Many keys of one LMDB database looked up at once: lmdb_lookup.c."""

def look_up(record: memoryview, page_bytes: int, keys: list[bytes], /) -> list[bytes | memoryview] | None:
    """Return the value of each key as a view, empty where there is none; None where LMDB has to be asked."""
