"""Lookups by the compiled part: the answer of LMDB itself or none, and never the end of the process."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Generator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import lmdb
import pytest

from dawnchorus.fragment_stores.lmdb import lookup as lmdb_lookup
from dawnchorus.fragment_stores.lmdb import snapshot as lmdb_snapshot
from dawnchorus.fragment_stores.lmdb.lookup import FIND_MIN, find, join, views, warm
from dawnchorus.fragment_stores.lmdb.schema import IMAGES, Databases, open_databases
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.wire.errors import InvalidRequestError
from tests.fragment_stores.conformance import IDENTITY, commit, put, read_batch

pytestmark = pytest.mark.skipif(
    find is None and not shutil.which("cc"), reason="there is no C compiler here, so there is no compiled part"
)


@pytest.fixture
def environment(tmp_path: Path) -> Generator[lmdb.Environment]:
    """An environment as the store opens it, without its syncs."""
    environment = lmdb.open(str(tmp_path / "shard"), map_size=1 << 32, max_dbs=4, sync=False)
    yield environment
    environment.close()


def found(transaction: lmdb.Transaction[memoryview], databases: Databases, keys: Sequence[bytes]) -> list[bytes] | None:
    """Look up by the compiled part."""
    assert find is not None
    record = transaction.get(IMAGES, db=databases.main)
    assert record is not None
    answer = find(record, databases.page_bytes, list(keys), 0)
    return None if answer is None else cut(*answer)


def cut(sizes: list[int], places: bytes) -> list[bytes]:
    """Return the values at these places."""
    joined = join(b"head", [places])
    assert joined.startswith(b"head")
    ends = list(accumulate(sizes, initial=4))
    assert ends[-1] == len(joined)
    return [joined[start:end] for start, end in pairwise(ends)]


def test_the_compiled_part_was_built() -> None:
    assert find is not None


@pytest.mark.parametrize("seed", range(12))
def test_finds_what_lmdb_finds(environment: lmdb.Environment, seed: int) -> None:
    """Compared in trees that grow and shrink; keys of every length, values on leaves and on pages of their own."""
    source = random.Random(seed)
    databases = open_databases(environment, create=True)
    key_bytes_max = source.choice([2, 9, 40, 511])
    value_bytes_max = source.choice([0, 30, 1_100, 9_000])
    there: set[bytes] = set()
    depths: set[int] = set()
    for size in source.choice([[1, 40, 3], [2_000, 10, 4_000], [6_000, 5_990, 12]]):
        with environment.begin(databases.images, write=True) as transaction:
            while len(there) < size:
                key = source.randbytes(source.randrange(1, key_bytes_max + 1))
                if transaction.put(key, source.randbytes(source.randrange(value_bytes_max + 1))):
                    there.add(key)
                if key_bytes_max == 2 and len(there) > 3_000:
                    break  # there are not so many keys
            for key in source.sample(sorted(there), max(0, len(there) - size)):
                transaction.delete(key)
                there.remove(key)
        absent = [source.randbytes(source.randrange(1, 600)) for _ in range(50)]
        keys = [
            *there,
            *[key[:-1] + b"\0" for key in there if len(key) > 1],
            *absent,
            *source.choices(sorted(there), k=9),
        ]
        source.shuffle(keys)
        with environment.begin(databases.images, buffers=True) as transaction:
            depths.add(transaction.stat(databases.images)["depth"])
            images = found(transaction, databases, keys)
            assert images is not None, "LMDB had to be asked"
            assert images == [bytes(transaction.get(key, b"")) for key in keys]
    assert depths


def test_finds_nothing_in_an_empty_tree(environment: lmdb.Environment) -> None:
    databases = open_databases(environment, create=True)
    with environment.begin(databases.images, buffers=True) as transaction:
        assert found(transaction, databases, [b"a", b"b"]) == [b"", b""]
        assert found(transaction, databases, []) == []


def test_snapshot_stays_unchanged_while_others_write(environment: lmdb.Environment) -> None:
    databases = open_databases(environment, create=True)
    keys = [b"agent-%d" % number for number in range(3_000)]

    def write_all(value: bytes) -> None:
        with environment.begin(databases.images, write=True) as writing:
            for key in keys:
                writing.put(key, value + key)

    write_all(b"first")
    with environment.begin(databases.images, buffers=True) as transaction:
        record = transaction.get(IMAGES, db=databases.main)
        assert find is not None and record is not None
        before = find(record, databases.page_bytes, keys, 0)
        for _ in range(5):
            write_all(b"later" * 500)
        assert before is not None
        assert cut(*before) == [b"first" + key for key in keys]
        assert found(transaction, databases, keys) == [b"first" + key for key in keys]
    with environment.begin(databases.images, buffers=True) as transaction:
        assert found(transaction, databases, keys) == [b"later" * 500 + key for key in keys]


def test_views_are_the_values_in_place(environment: lmdb.Environment) -> None:
    assert find is not None and views is not None
    databases = open_databases(environment, create=True)
    values = [b"", b"v", b"w" * 3_000, b"x" * 100_000]
    keys = [b"key-%d" % number for number in range(len(values))]
    with environment.begin(databases.images, write=True) as writing:
        for key, value in zip(keys, values, strict=True):
            writing.put(key, value)
    with environment.begin(databases.images, buffers=True) as transaction:
        record = transaction.get(IMAGES, db=databases.main)
        assert record is not None
        answer = find(record, databases.page_bytes, [*keys, b"nothing"], 0)
        assert answer is not None
        assert [bytes(view) for view in views(answer[1])] == [*values, b""]


def test_invalid_database_record_has_no_answer(environment: lmdb.Environment) -> None:
    assert find is not None
    databases = open_databases(environment, create=True)
    with environment.begin(databases.main, buffers=True) as transaction:
        record = transaction.get(IMAGES)
        assert record is not None
        for page_bytes in [0, -1, 1, 511, 1_000, 2 * databases.page_bytes, 1 << 17]:
            assert find(record, page_bytes, [b"a"], 0) is None
            assert warm is not None and not warm(record, page_bytes, [b"a"])
        assert find(record[:-1], databases.page_bytes, [b"a"], 0) is None
        assert find(record, databases.page_bytes, [b"a", b""], 0) is None
        with pytest.raises(TypeError):
            find(record, databases.page_bytes, ["a"], 0)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    for source in map(random.Random, range(200)):
        assert find(memoryview(source.randbytes(48)), databases.page_bytes, [b"a"], 0) is None


def test_store_answers_alike_with_and_without_compiled_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LMDBStore(tmp_path / "shard", IDENTITY, create=True)
    store.begin_generation(1)
    agents = [b"agent-%d" % number for number in range(500)]
    commit(store, [put(agent, b"%d" % number * 300) for number, agent in enumerate(agents[::2])], 1_000)
    asked = [*agents, b"x" * 256]
    with store.snapshot() as snapshot:
        images = list(map(bytes, snapshot.images(asked)))

    def joined() -> bytes:
        batches = [read_batch(store, asked), read_batch(store, asked[:3]), read_batch(store, asked[7:])]
        batches[2].cut(100)
        assert [len(batch.sizes) for batch in batches] == [501, 3, 100]
        frame = store.join(b"head", batches)
        for batch in batches:
            batch.close()
        return frame

    compiled = joined()
    assert compiled == b"".join([b"head", *images, *images[:3], *images[7:107]])
    assert [bool(image) for image in images] == [True, False] * 250 + [False]
    monkeypatch.setattr(lmdb_snapshot, "find", None)
    monkeypatch.setattr(lmdb_snapshot, "join", lmdb_lookup.join_views)
    assert joined() == compiled
    store.close()


@pytest.mark.parametrize("agents", [1, FIND_MIN])
def test_empty_id_is_rejected_among_few_and_many(tmp_path: Path, agents: int) -> None:
    store = LMDBStore(tmp_path / "shard", IDENTITY, create=True)
    with pytest.raises(InvalidRequestError):
        read_batch(store, [*[b"agent"] * agents, b""])
    store.close()


# Corrupts the file of an open environment, thousands of times, looks everything up, and restores it. LMDB itself is not
# asked meanwhile. Arguments: directory, seed.
CORRUPTING = """
    import os, random, sys
    import lmdb
    from dawnchorus.fragment_stores.lmdb.schema import IMAGES, open_databases
    from dawnchorus.fragment_stores.lmdb.lookup import find, join, views, warm

    directory, seed = sys.argv[1:]
    source = random.Random(seed)
    # Maps before and behind it, as a node has one for each shard: a wrong page number then leads into another's.
    before = [lmdb.open(directory + f"-before-{number}", map_size=1 << 30) for number in range(3)]
    environment = lmdb.open(directory, map_size=1 << 30, max_dbs=4, sync=False)
    behind = [lmdb.open(directory + f"-behind-{number}", map_size=1 << 30) for number in range(3)]
    databases = open_databases(environment, create=True)
    keys = [b"agent-%d" % number for number in range(700)]
    with environment.begin(databases.images, write=True) as transaction:
        for key in keys:
            transaction.put(key, source.randbytes(source.choice([0, 40, 1_100, 2_600, 9_000])))
    environment.sync(True)
    page_bytes = databases.page_bytes
    file = os.open(os.path.join(directory, "data.mdb"), os.O_RDWR)
    pages = os.fstat(file).st_size // page_bytes
    # The page with the record: the one that says where the map begins.
    in_pages = {page: os.pread(file, page_bytes, page * page_bytes) for page in range(2, pages)}
    home = next(page for page, found in in_pages.items() if b"images" in found and b"expiry" in found)
    answers = {True: 0, False: 0}
    with environment.begin(databases.images, buffers=True) as transaction:
        record = transaction.get(IMAGES, db=databases.main)
        intact = join(b"", [find(record, page_bytes, keys, 0)[1]])
        for turn in range(4_000):
            # A page's header and its first offsets more often than the rest; the home pages too.
            place = source.choice([source.randrange(pages), home]) * page_bytes
            place += source.choice([source.randrange(16), source.randrange(64), source.randrange(page_bytes)])
            intact_bytes = os.pread(file, source.choice([1, 2, 8]), place)
            size = len(intact_bytes)
            os.pwrite(file, source.choice([bytes(size), b"\\xff" * size, source.randbytes(size)]), place)
            found = find(record, page_bytes, keys, turn % 3)
            answers[found is None] += 1
            if found is not None:
                assert len(join(b"", [found[1]])) == sum(found[0])
                assert list(map(len, views(found[1]))) == found[0]
            assert warm(record, page_bytes, keys) == (found is not None)
            os.pwrite(file, intact_bytes, place)
        assert join(b"", [find(record, page_bytes, keys, 0)[1]]) == intact
    print(answers[True], answers[False])
"""


def test_lookup_in_corrupt_file_never_ends_the_process(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    command = [sys.executable, "-c", textwrap.dedent(CORRUPTING), str(tmp_path), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, f"seed {seed}: {ended.stderr}"
    unanswered, answered = map(int, ended.stdout.split())
    assert unanswered > 100 and answered > 100, f"seed {seed}"
