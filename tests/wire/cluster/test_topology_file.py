"""The topology file: the default one, and every error that a person can make in one."""

import datetime
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dawnchorus.wire.cluster.topology import (
    FALLBACK_BYTES_MAX,
    TOPOLOGY_FILE_BYTES_MAX,
    AdmissionSpec,
    BreakerSpec,
    KindSpec,
    NodeSpec,
    RetrySpec,
    StoreSpec,
    Topology,
    decode_topology,
    encode_topology,
    require_local_endpoints,
)
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.errors import ConfigurationError, TopologyError

ROOT = Path(__file__).parents[3]

GOOD = """\
[cluster]
name = "dev"
data_dir = "var/dev"
wake_deadline_ms = 1000

[stores.live]
shards = 4
durability = "sync"
[stores.archive]

[fragments.session]
store = "live"
required = true
[fragments.history]
store = "archive"
fallback = { pages = [1, 2] }

[[nodes]]
name = "live-1"
endpoint = "tcp://127.0.0.1:7411"
stores = ["live"]

[[nodes]]
name = "archive-1"
endpoint = "tcp://127.0.0.1:7412"
stores = ["archive", "live"]
"""

NAMES = "a-z, 0-9, _ and -"
DEADLINES = "1 to 86400000"
ENDPOINTS = "permitted: tcp://HOST:PORT"
STORE_KEYS = "permitted: engine, shards, durability, sync_interval_ms, wake"
KIND_KEYS = "permitted: store, required, ttl_s, fallback"
NODE_KEYS = "permitted: name, endpoint, stores"
SECTIONS = "permitted: [cluster], [stores.NAME], [fragments.KIND], [[nodes]], [breaker], [retries], [admission]"
NODE_0 = '(node "live-1")'
NODE_1 = '(node "archive-1")'

# Each: what to replace in GOOD, by what, the key that the message names, and what else it says.
INVALID: list[tuple[str, str, str, tuple[str, ...]]] = [
    # entire sections
    ("[cluster]", "[clusters]", "clusters: unknown key", ('did you mean "cluster"?', SECTIONS)),
    ("[cluster]", "name = 1\n[cluster]", "name: unknown key", (SECTIONS,)),
    ("[cluster]", '"a b" = 1\n[cluster]', '"a b": unknown key', (SECTIONS,)),
    (GOOD, "", "cluster: missing", ("[cluster]",)),
    (GOOD, "cluster = 1\nstores=1\nfragments=1\nnodes=1", "cluster: must be a table, not an integer", ("[cluster]",)),
    (GOOD[GOOD.index("[[nodes]]") :], "", "nodes: missing", ("[[nodes]]",)),
    (GOOD[GOOD.index("[stores.live]") : GOOD.index("[fragments.s")], "", "stores: missing", ("[stores.NAME]",)),
    (GOOD[GOOD.index("[fragments.s") : GOOD.index("[[nodes]]")], "", "fragments: missing", ("[fragments.KIND]",)),
    (GOOD[GOOD.index("[[nodes]]") :], "[nodes]", "nodes: must be a list of tables, not a table", ("[[nodes]]",)),
    (GOOD[GOOD.index("[[nodes]]") :], "[nodes.live-1]", "nodes: must be a list of tables", ("[[nodes]]",)),
    (GOOD[: GOOD.index("[[nodes]]")], "nodes = []\n" + GOOD[: GOOD.index("[[nodes]]")], "not valid TOML", ("line",)),
    # [cluster]
    ('name = "dev"\n', "", "cluster.name: missing", (NAMES,)),
    ('name = "dev"', "name = 5", "cluster.name: must not be an integer", (NAMES,)),
    ('name = "dev"', 'name = ""', 'cluster.name: "" cannot be a name', (NAMES,)),
    ('name = "dev"', 'name = "Dev"', 'cluster.name: "Dev" cannot be a name', (NAMES,)),
    ('name = "dev"', 'name = "dev\\n"', 'cluster.name: "dev\\n" cannot be a name', (NAMES,)),
    ('name = "dev"', f'name = "{"a" * 64}"', "cluster.name:", ("1 to 63 characters",)),
    ('data_dir = "var/dev"\n', "", "cluster.data_dir: missing", ("the path of a directory",)),
    ('"var/dev"', '""', 'cluster.data_dir: "" is no path', ("the path of a directory",)),
    ('"var/dev"', '"a\\u0000b"', "cluster.data_dir:", ("the path of a directory",)),
    ('"var/dev"', "2024-01-01", "cluster.data_dir: must not be a date or time", ("the path of a directory",)),
    (
        "data_dir",
        "datadir",
        "cluster.datadir: unknown key",
        ('did you mean "data_dir"?', "permitted: name, data_dir, wa"),
    ),
    ("= 1000", "= 0", "cluster.wake_deadline_ms: 0 is out of range", (DEADLINES,)),
    ("= 1000", "= 86400001", "cluster.wake_deadline_ms: 86400001 is out of range", (DEADLINES,)),
    ("= 1000", "= -1\nsave_deadline_ms = 5", "cluster.wake_deadline_ms: -1 is out of range", (DEADLINES,)),
    ("= 1000", "= 1000\nsave_deadline_ms = 0", "cluster.save_deadline_ms: 0 is out of range", (DEADLINES,)),
    ("= 1000", "= 1.5", "cluster.wake_deadline_ms: must not be a float", (DEADLINES,)),
    ("= 1000", "= true", "cluster.wake_deadline_ms: must not be a boolean", (DEADLINES,)),
    ("= 1000", '= "1s"', "cluster.wake_deadline_ms: must not be a string", (DEADLINES,)),
    ("= 1000", "= 1000\nipc = 1", "cluster.ipc: must not be an integer", ("true or false",)),
    # [breaker], [retries], [admission]
    ("[cluster]", "[breaker]\nfailure_share = 0\n[cluster]", "breaker.failure_share: 0.0 is out of", ("0.001 to 1",)),
    ("[cluster]", "[breaker]\nrequests_min = 2.5\n[cluster]", "breaker.requests_min: must not be a float", ("1 to",)),
    ("[cluster]", "[breaker]\nwindow_s = nan\n[cluster]", "breaker.window_s: nan is out of", ("0.1 to 3600",)),
    ("[cluster]", "breaker = 5\n[cluster]", "breaker: must be a table, not an integer", ("[breaker]",)),
    ("[cluster]", "[retries]\nshares = 1\n[cluster]", "retries.shares: unknown key", ('did you mean "share"?',)),
    ("[cluster]", "[retries]\njitter_ms = -1\n[cluster]", "retries.jitter_ms: -1 is out of", ("0 to 10000",)),
    ("[cluster]", "[admission]\nin_flight_max = 0\n[cluster]", "admission.in_flight_max: 0 is out of", ("from 1",)),
    # [stores.NAME]
    ("durability", "durabilty", "stores.live.durabilty: unknown key", ('did you mean "durability"?', STORE_KEYS)),
    ("shards = 4", "zzz = 4", "stores.live.zzz: unknown key; permitted", (STORE_KEYS,)),
    ("shards = 4", "shards = 0", "stores.live.shards: 0 is out of range", ("an integer from 1 to 1024",)),
    ("shards = 4", "shards = 1025", "stores.live.shards: 1025 is out of range", ("an integer from 1 to 1024",)),
    ("shards = 4", 'shards = "4"', "stores.live.shards: must not be a string", ("an integer from 1 to 1024",)),
    ("shards = 4", "shards = [4]", "stores.live.shards: must not be an array", ("an integer from 1 to 1024",)),
    ("shards = 4", 'engine = ""', 'stores.live.engine: "" is no name', ('"lmdb"', "package.module:factory")),
    ("shards = 4", 'engine = "a b"', 'stores.live.engine: "a b" is no name', ('"lmdb"',)),
    ("shards = 4", "engine = 4", "stores.live.engine: must not be an integer", ('"lmdb"',)),
    ("shards = 4", "lmdb = 4", "stores.live.lmdb: must be a table, not an integer", ("the options of this engine",)),
    ("shards = 4", 'engine = "other"\nlmdb = {}', "stores.live.lmdb: unknown key", (STORE_KEYS,)),
    ('= "sync"', '= "none"', 'stores.live.durability: unknown value "none"', ('"sync", "async"',)),
    ('= "sync"', '= "async"\nsync_interval_ms = 0', "stores.live.sync_interval_ms: 0 is out of range", ("1 to 60000",)),
    ('= "sync"', '= "fsync"', 'stores.live.durability: unknown value "fsync"', ('permitted: "sync"',)),
    ("shards = 4", 'wake = "lazy"', "fragments.session.required: no wake asks for it", ('stores.live.wake is "lazy"',)),
    ("shards = 4", 'wake = "never"', 'stores.live.wake: unknown value "never"', ('permitted: "eager", "lazy"',)),
    ("[stores.archive]", "[stores.Archive]", "stores.Archive:", ('"Archive" cannot be a name', NAMES)),
    ("[stores.archive]", '[stores."a.b"]', 'stores."a.b":', ('"a.b" cannot be a name', NAMES)),
    ("[stores.archive]", '[stores."../x"]', 'stores."../x":', (NAMES,)),
    (
        "[stores.archive]",
        "[stores]\narchive = 16",
        "stores.archive: must be a table, not an integer",
        ("[stores.arch",),
    ),
    ("[stores.archive]", "[[stores.archive]]", "stores.archive: must be a table, not an array", ("[stores.archive]",)),
    (
        "[stores.archive]",
        "[stores.archive]\n[stores.spare]",
        "stores.spare: no kind is kept in it",
        ('store = "spare"',),
    ),
    ('["archive", "live"]', '["live"]', "stores.archive: no node serves it", ("[[nodes]]",)),
    ("[stores.archive]", "[stores.archive]\n[stores.live]", "not valid TOML", ("line 10",)),
    # [fragments.KIND]
    ('store = "live"\n', "", "fragments.session.store: missing", ("the name of a store",)),
    (
        'store = "live"',
        'store = "lives"',
        'fragments.session.store: unknown store "lives"',
        ('"live"?', '"live", "archive"'),
    ),
    ('store = "live"', "store = 1", "fragments.session.store: must not be an integer", ("the name of a store",)),
    ('store = "live"', 'stor = "live"', "fragments.session.stor: unknown key", ('did you mean "store"?', KIND_KEYS)),
    ("required = true", 'required = "yes"', "fragments.session.required: must not be a string", ("true or false",)),
    ("required = true", "required = 1", "fragments.session.required: must not be an integer", ("true or false",)),
    ("required = true", "ttl_s = 0", "fragments.session.ttl_s: 0.0 is out of range", ("seconds from 0.001",)),
    (
        "required = true",
        "ttl_s = 1e10",
        "fragments.session.ttl_s: 10000000000.0 is out of range",
        ("or none for ever",),
    ),
    ("required = true", 'ttl_s = "1d"', "fragments.session.ttl_s: must not be a string", ("seconds from 0.001",)),
    ("[fragments.history]", "[fragments.History]", "fragments.History:", (NAMES,)),
    ("{ pages = [1, 2] }", str(1 << 64), "fragments.history.fallback: cannot be encoded", ("64 bits",)),
    ("{ pages = [1, 2] }", f'"{"x" * FALLBACK_BYTES_MAX}"', "fragments.history.fallback: has 16387 bytes", ("16384",)),
    # [[nodes]]
    ('name = "live-1"\n', "", "nodes[0].name: missing", (NAMES,)),
    ('name = "live-1"', 'name = "live 1"', 'nodes[0].name (node "live 1"): "live 1" cannot be a name', (NAMES,)),
    ('name = "live-1"', 'name = ".."', "nodes[0].name", (NAMES,)),
    ('name = "live-1"', "name = 1", "nodes[0].name: must not be an integer", (NAMES,)),
    (
        'name = "archive-1"',
        'name = "live-1"',
        f"nodes[1].name {NODE_0}: nodes[0] has this name, too",
        ("no other node",),
    ),
    (
        "7412",
        "7411",
        f'nodes[1].endpoint {NODE_1}: node "live-1" has tcp://127.0.0.1:7411, too',
        ("no other node has",),
    ),
    ("127.0.0.1:7412", "localhost:7411", f'nodes[1].endpoint {NODE_1}: node "live-1" has', ("no other node has",)),
    ('endpoint = "tcp://127.0.0.1:7412"\n', "", f"nodes[1].endpoint {NODE_1}: missing", (ENDPOINTS,)),
    ('"tcp://127.0.0.1:7412"', "7412", f"nodes[1].endpoint {NODE_1}: must not be an integer", (ENDPOINTS,)),
    ("tcp://127.0.0.1:7412", "127.0.0.1:7412", f"nodes[1].endpoint {NODE_1}: ", ("is not an endpoint", ENDPOINTS)),
    ("tcp://127.0.0.1:7412", "ipc:///tmp/x", f"nodes[1].endpoint {NODE_1}: ", ("is not an endpoint", ENDPOINTS)),
    ("tcp://127.0.0.1:7412", "tcp://*:7412", f"nodes[1].endpoint {NODE_1}: ", ("wildcard", ENDPOINTS)),
    ("endpoint", "address", f"nodes[0].address {NODE_0}: unknown key", (NODE_KEYS,)),
    ('["archive", "live"]', "[]", f"nodes[1].stores {NODE_1}: is empty", ('"live", "archive"',)),
    ('["archive", "live"]', '"archive"', f"nodes[1].stores {NODE_1}: must not be a string", ("a list of names",)),
    ('["archive", "live"]', '["archive", 3]', f"nodes[1].stores[1] {NODE_1}: must not be an integer", ("a list of",)),
    ('["archive", "live"]', '["archive", "archive"]', f'nodes[1].stores {NODE_1}: names "archive" twice', ("once",)),
    (
        '["archive", "live"]',
        '["archives"]',
        f'nodes[1].stores {NODE_1}: unknown store "archives"',
        ('"archive"?', '"live"'),
    ),
    # TOML itself
    ("[cluster]", "[cluster", "not valid TOML", ("line 1",)),
    ('name = "dev"', 'name = "dev"\nname = "dev"', "not valid TOML", ("line 3",)),
    ('name = "dev"', "name = ", "not valid TOML", ("line 2, column 8",)),
    ("= 1000", "= " + "9" * 5_000, "not valid TOML", ()),
    ("{ pages = [1, 2] }", "[" * 5_000 + "]" * 5_000, "not valid TOML: nested too deeply", ()),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a topology file; return its path."""

    def write_file(text: str | bytes) -> Path:
        path = tmp_path / "topology.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


@pytest.mark.parametrize(("old", "new", "key", "said"), INVALID, ids=[row[2][:60] for row in INVALID])
def test_error_names_file_key_and_remedy(
    write: Callable[[str], Path], old: str, new: str, key: str, said: tuple[str, ...]
) -> None:
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(TopologyError) as caught:
        load_topology(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}")
    assert all(words in message for words in said), message
    assert "\n" not in message
    assert "`" not in message, "msgspec's own words leaked"


def test_the_unchanged_file_of_the_table_is_good(write: Callable[[str], Path], tmp_path: Path) -> None:
    assert load_topology(write(GOOD)) == Topology(
        name="dev",
        data_dir=str(tmp_path / "var/dev"),
        wake_deadline_ms=1_000,
        save_deadline_ms=10_000,
        stores={"live": StoreSpec(shards=4), "archive": StoreSpec()},
        kinds={
            "session": KindSpec(store="live", required=True),
            "history": KindSpec(store="archive", fallback={"pages": [1, 2]}),
        },
        nodes={
            "live-1": NodeSpec("live-1", "tcp://127.0.0.1:7411", ("live",)),
            "archive-1": NodeSpec("archive-1", "tcp://127.0.0.1:7412", ("archive", "live")),
        },
    )


def test_routers_defences_have_own_sections(write: Callable[[str], Path]) -> None:
    text = "[breaker]\nretry_after_s = 1\n[retries]\nshare = 0\n[admission]\nqueue_share = 0.3\n"
    topology = load_topology(write(text + GOOD.replace("= 1000", "= 1000\nipc = false")))
    assert topology.breaker == BreakerSpec(retry_after_s=1.0)
    assert topology.retries == RetrySpec(share=0.0)
    assert topology.admission == AdmissionSpec(queue_share=0.3)
    assert not topology.ipc
    assert decode_topology(encode_topology(topology)) == msgspec.structs.replace(topology, data_dir="")


@pytest.mark.parametrize(("engine", "key"), [("redis", "redis"), ("a.b:C", '"a.b:C"')])
def test_engines_options_are_table_of_its_name(write: Callable[[str], Path], engine: str, key: str) -> None:
    text = GOOD.replace("[stores.archive]", f'[stores.archive]\nengine = "{engine}"\n[stores.archive.{key}]\nsize = 3')
    topology = load_topology(write(text))
    assert topology.stores["archive"] == StoreSpec(engine=engine, options={"size": 3})
    assert decode_topology(encode_topology(topology)).stores == topology.stores


def test_defaults_that_are_written_out_change_no_digest(write: Callable[[str], Path]) -> None:
    plain = load_topology(write(GOOD))
    text = "[breaker]\nretry_after_s = 5\n[retries]\nshare = 0.2\n[admission]\nqueue_share = 0.1\n"
    assert load_topology(write(text + GOOD)).digest == plain.digest


def test_repositorys_topology_has_three_stores() -> None:
    topology = load_topology(ROOT / "topology.toml")
    assert topology.data_dir == str(ROOT / "var/dev")
    assert list(topology.stores.values()) == [StoreSpec()] * 3
    assert topology.kinds_of("identity") == ("profile", "preference")
    assert topology.kinds_of("live") == ("session", "context")
    assert topology.kinds_of("archive") == ("history",)
    assert [kind for kind, spec in topology.kinds.items() if spec.required] == ["profile"]
    assert topology.kinds["preference"].fallback == {"language": "en"}
    assert [node.stores for node in topology.nodes.values()] == [("identity",), ("live",), ("archive",)]
    require_local_endpoints(topology)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"nowhere\.toml: there is no such file; go to"):
        load_topology(tmp_path / "nowhere.toml")


def test_directory_in_place_of_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="this is a directory; permitted"):
        load_topology(str(tmp_path))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    with pytest.raises(
        TopologyError, match=r"loop\.toml: cannot be read: Too many levels of symbolic links; permitted"
    ):
        load_topology(loop)


def test_a_path_that_cannot_be_one_is_named() -> None:
    with pytest.raises(TopologyError, match="cannot be read"):
        load_topology("a\0b")


def test_file_of_other_encoding_is_named(write: Callable[[bytes], Path]) -> None:
    with pytest.raises(TopologyError, match=r"topology\.toml: line 3 is not UTF-8"):
        load_topology(write(b"[cluster]\n# fine\nname = '\xff'\n"))


def test_an_endless_file_is_rejected() -> None:
    with pytest.raises(TopologyError, match=f"too large; permitted: at most {TOPOLOGY_FILE_BYTES_MAX} bytes"):
        load_topology("/dev/zero")


def test_a_byte_order_mark_does_no_harm(write: Callable[[bytes], Path]) -> None:
    assert load_topology(write(b"\xef\xbb\xbf" + GOOD.encode())).name == "dev"


def test_no_nodes_are_rejected(write: Callable[[str], Path]) -> None:
    text = "nodes = []\n" + GOOD[: GOOD.index("[[nodes]]")]
    with pytest.raises(TopologyError, match=r"nodes: there are 0 nodes; permitted: 1 to 1024"):
        load_topology(write(text))


def test_a_node_that_is_no_table_is_rejected(write: Callable[[str], Path]) -> None:
    text = "nodes = [7]\n" + GOOD[: GOOD.index("[[nodes]]")]
    with pytest.raises(
        TopologyError, match=r"nodes\[0\]: must be a table, not an integer; permitted: a section \[\[nodes"
    ):
        load_topology(write(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "".join(f'[fragments.k{i}]\nstore = "live"\n' for i in range(63)),
            "fragments: there are 65; permitted: 1 to 64",
        ),
        ("".join(f"[stores.s{i}]\n" for i in range(63)), "stores: there are 65; permitted: 1 to 64"),
        ("".join(f"[stores.s{i}]\nshards = 1024\n" for i in range(16)), "stores: all together have 16404 shards; perm"),
        (
            "".join(
                f'[[nodes]]\nname = "n{i}"\nendpoint = "tcp://a:{i + 1}"\nstores = ["live"]\n' for i in range(1_023)
            ),
            "nodes: there are 1025 nodes; permitted: 1 to 1024",
        ),
    ],
)
def test_too_many_are_rejected_by_number(write: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_topology(write(GOOD + text))
    assert said in str(caught.value)


def test_error_in_long_value_is_cut(write: Callable[[str], Path]) -> None:
    with pytest.raises(TopologyError) as caught:
        load_topology(write(GOOD.replace('"dev"', f'"{"X" * 10_000}"')))
    assert len(str(caught.value)) < 500


def test_data_dir_is_resolved_against_file(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(GOOD.replace("var/dev", "../var"))
    monkeypatch.chdir(tmp_path)
    assert load_topology("topology.toml").data_dir == str(tmp_path.parent / "var")
    monkeypatch.chdir("/")
    assert load_topology(tmp_path / "topology.toml").data_dir == str(tmp_path.parent / "var")


def test_data_dir_may_be_absolute_or_home(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_topology(write(GOOD.replace("var/dev", "/srv/x"))).data_dir == "/srv/x"
    monkeypatch.setenv("HOME", "/srv/somebody")
    assert load_topology(write(GOOD.replace("var/dev", "~/x"))).data_dir == "/srv/somebody/x"


@pytest.mark.parametrize("fallback", ["false", "0", '""', "[]", "{}"])
def test_an_empty_fallback_is_one(write: Callable[[str], Path], fallback: str) -> None:
    topology = load_topology(write(GOOD.replace("{ pages = [1, 2] }", fallback)))
    assert topology.kinds["history"].has_fallback
    assert not topology.kinds["history"].fallback
    assert not topology.kinds["session"].has_fallback
    assert decode_topology(encode_topology(topology)).kinds == topology.kinds


def test_fallback_is_same_from_file_and_node(write: Callable[[str], Path]) -> None:
    text = GOOD.replace(
        "{ pages = [1, 2] }", "{ day = 2024-02-29, at = 2024-02-29T12:00:00+02:00, n = 18446744073709551615 }"
    )
    topology = load_topology(write(text))
    at = datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.UTC)
    assert topology.kinds["history"].fallback == {"day": "2024-02-29", "at": at, "n": (1 << 64) - 1}
    assert decode_topology(encode_topology(topology)).kinds == topology.kinds
