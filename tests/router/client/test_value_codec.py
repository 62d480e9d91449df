"""Values through a save: each comes back equal, or the save is rejected with the path in the value."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import math
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dawnchorus import InvalidRequestError
from dawnchorus.router.client.value_codec import ValueCodec, ValueRules
from dawnchorus.router.client.value_differences import is_mapping
from dawnchorus.router.plain_values import is_plain, is_trusted
from dawnchorus.wire.protocol.image import ENCODING_BYTES, ENCODING_MSGPACK
from dawnchorus.wire.protocol.limits import FRAGMENT_BYTES_MAX, NESTING_MAX


class Colour(enum.Enum):
    RED = "red"
    ONE = 1


class Shade(enum.Enum):
    RED = "red"


class Text(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Record:
    key: Any
    other: Any = None


class Profile(msgspec.Struct, eq=False):
    name: Any
    tags: Any = ()


class Brief(msgspec.Struct, omit_defaults=True, array_like=False):
    key: Any = None


class Row(msgspec.Struct, array_like=True):
    key: Any
    item: Any


class Box(msgspec.Struct):
    item: Any


class Key(msgspec.Struct, frozen=True, array_like=True):
    part: int


UUID = uuid.UUID(int=5)
UNTYPED = ValueCodec("context")
LOSSY = ValueCodec("context", rules=ValueRules(allow_lossy_values=True))


def back(codec: ValueCodec, value: Any) -> Any:
    """Return the value that a wake gives for a saved value."""
    encoding, encoded = codec.encode(value)
    return encoded if encoding == ENCODING_BYTES else codec.decoder.decode(encoded)


def fields(**values: Any) -> dict[str, Any]:
    """Return the fields of an object as they come back: without those that are not set."""
    return {name: expected(value) for name, value in values.items() if value is not msgspec.UNSET}


def expected(value: Any) -> Any:
    """Return the value that docs/values.md promises for an accepted value."""
    if isinstance(value, bytearray):
        return bytes(value)
    if type(value) in (list, tuple, Pair):
        return [expected(item) for item in value]
    if is_mapping(value):
        return {key: expected(item) for key, item in value.items()}
    if isinstance(value, Key):
        return [value.part]
    if isinstance(value, Row):
        return [expected(value.key), expected(value.item)]
    if isinstance(value, Brief):
        return fields(key=msgspec.UNSET if value.key is None else value.key)
    if isinstance(value, Profile):
        return fields(name=value.name, tags=value.tags)
    if isinstance(value, Record):
        return fields(key=value.key, other=value.other)
    return value


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def same(value: Any, other: Any) -> bool:
    """Return whether two values are equal and of one type throughout: 1, True and 1.0 differ, and nan equals itself."""
    if type(value) is not type(other):
        return False
    if is_mapping(value):
        pairs = zip(value.items(), other.items(), strict=False)
        return len(value) == len(other) and all(same(a[0], b[0]) and same(a[1], b[1]) for a, b in pairs)
    if is_sequence(value):
        return len(value) == len(other) and all(map(same, value, other))
    return bool(value == other or (value != value and other != other))


zones = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=2))])
naive = st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1))
aware = st.tuples(naive, zones).map(lambda drawn: drawn[0].replace(tzinfo=drawn[1]))
moments: st.SearchStrategy[dt.datetime] = naive | aware
changing = (
    st.sampled_from([UUID, Colour.RED, Colour.ONE, Text.A, Number.ONE, decimal.Decimal("1.5"), dt.date(2026, 1, 2)])
    | st.sampled_from([dt.time(1, 2), dt.timedelta(1), {1, 2}, frozenset({"a"}), Pair(1, 2), Key(1), 1j, object()])
    | st.sampled_from([1 << 64, "\ud800", msgspec.UNSET, collections.deque([1]), range(2), Exception("x"), int, ...])
    | st.just(msgspec.Raw(b"\x01"))
)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
# Keys some of which become equal in msgpack.
keys: st.SearchStrategy[Any] = (
    st.sampled_from(["a", "red", "1.5", str(UUID), "2026-01-02", 1, None, True, b"a", 1.5, (1, "a"), ((1,), 2), Key(1)])
    | st.sampled_from([UUID, Colour.RED, Colour.ONE, Text.A, Number.ONE, decimal.Decimal("1.5"), dt.date(2026, 1, 2)])
    | st.sampled_from([frozenset({1}), (1,), Pair(1, "a"), math.nan, dt.datetime(2026, 1, 2), object(), "\ud800"])
    | moments
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for everything that contains other values."""
    return (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2).map(collections.OrderedDict)
        | st.builds(Record, inner, inner)
        | st.builds(Profile, inner, inner)
        | st.builds(Brief, inner)
        | st.builds(Row, inner, inner)
        | st.builds(Pair, inner, inner)
    )


values: st.SearchStrategy[Any] = st.recursive(
    plain | moments | changing | st.binary(max_size=3).map(bytearray), nested, max_leaves=8
)
PATH = re.compile(r"the value of 'context' cannot be saved: value(\[.*\]|\.\w+)* \w+", re.DOTALL)


def difference(codec: ValueCodec, value: Any) -> InvalidRequestError | None:
    try:
        codec.encode(value)
    except InvalidRequestError as error:
        return error
    return None


@given(values)
@example({UUID: "from UUID", str(UUID): "from text"})
@example({Colour.RED: 1, "red": 2})
@example({Key(1): None})
@example({((Key(1),),): None})
@example({"at": [dt.datetime(2026, 1, 2)]})
def test_value_returns_equal_or_is_rejected_with_path(value: Any) -> None:
    error = difference(UNTYPED, value)
    if error is None:
        came = back(UNTYPED, value)
        wanted = expected(value)
        assert same(came, wanted)
        assert difference(LOSSY, value) is None, "what comes back equal is permitted all the more"
    else:
        assert PATH.match(str(error))
        str(error).encode()  # it can be printed


def entries(value: Any) -> int:
    """Return how many entries the mappings in a value have."""
    if is_mapping(value):
        return len(value) + sum(map(entries, value.values()))
    if is_sequence(value):
        return sum(map(entries, value))
    return 0


@given(st.recursive(plain | st.sampled_from([UUID, Colour.RED, dt.date(2026, 1, 2)]), nested, max_leaves=8))
def test_lossy_save_loses_no_mapping_entry(value: Any) -> None:
    if difference(LOSSY, value) is None:
        assert entries(back(LOSSY, value)) == entries(expected(value))


json_like: st.SearchStrategy[Any] = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(json_like)
def test_json_like_values_are_plain_and_trusted(value: Any) -> None:
    assert is_plain(value, NESTING_MAX, structs=False)
    assert is_trusted(value, NESTING_MAX)


@given(values)
def test_plain_value_needs_no_comparison(value: Any) -> None:
    if is_plain(value, NESTING_MAX, structs=True) and difference(UNTYPED, value) is None:
        assert same(back(UNTYPED, value), expected(value))


@given(values)
@example(Number.ONE)
@example({"a": Text.A, "b": Pair(1, 2)})
def test_registered_type_with_any_field_matches_untyped_codec(value: Any) -> None:
    codec = ValueCodec("context", Box)
    assert (difference(codec, Box(value)) is None) == (difference(UNTYPED, {"item": value}) is None)
    if difference(codec, Box(value)) is None:
        came = back(codec, Box(value))
        assert type(came) is Box
        assert same(came.item, expected(value))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"a": [0, 1, 2, Record(UUID)]}, 'value["a"][3].key is of type uuid.UUID, and would come back as str'),
        ({"a": {UUID: 1}}, "value[\"a\"][UUID('00000000-0000-0000-0000-000000000005')] has a key that is of type"),
        ({UUID: 1, str(UUID): 2}, "value has the keys UUID('00000000-0000-0000-0000-000000000005') and '00000000-"),
        ({Colour.ONE: 1, 1: 2}, "value has the keys <Colour.ONE: 1> and 1, which both become 1"),
        ([{"a": {1, 2}}], 'value[0]["a"] is of type set, and would come back as list'),
        ({"a": {"b": 1 << 64}}, 'value["a"]["b"] cannot be encoded'),
        ({"a": [object()]}, 'value["a"][0] cannot be encoded'),
        ({"\ud800": 1}, 'value["\\ud800"] has a key that cannot be encoded'),
        (Record(1, Profile("x", {2})), "value.other.tags is of type set"),
        (Row(1, Pair(1, 2)), "value.item is of type"),
        (dt.datetime(2026, 1, 2), "value is of type datetime.datetime, and would come back as str"),
        (
            {"a": Number.ONE},
            'value["a"] is of type tests.router.client.test_value_codec.Number, and would come back as int',
        ),
    ],
)
def test_rejection_names_path_in_value(value: Any, complaint: str) -> None:
    assert complaint in str(difference(UNTYPED, value))


@pytest.mark.parametrize(
    "value",
    [
        {UUID: "from UUID", str(UUID): "from str"},
        {Colour.RED: 1, "red": 2},
        {Colour.ONE: "enum", 1: "int"},
        {dt.date(2026, 1, 2): "date", "2026-01-02": "str"},
        {decimal.Decimal("1.5"): "dec", "1.5": "str"},
        {dt.datetime(2026, 1, 2): "naive", "2026-01-02T00:00:00": "str"},
        [{"deep": Record({frozenset({1}): 1, (1,): 2})}],
    ],
)
def test_colliding_keys_are_rejected_by_every_codec(value: Any) -> None:
    for codec in (UNTYPED, LOSSY, ValueCodec("context", dict[Any, Any] if isinstance(value, dict) else list[Any])):
        assert "become" in str(difference(codec, value))


def test_lossy_values_change_if_caller_permits() -> None:
    assert back(LOSSY, {"a": {1}, "b": UUID, "c": Colour.RED}) == {"a": [1], "b": str(UUID), "c": "red"}
    assert back(LOSSY, {UUID: 1}) == {str(UUID): 1}
    assert "cannot be encoded" in str(difference(LOSSY, {"a": object()}))


def nest(levels: int, hold: Callable[[Any], Any], leaf: Any = b"deep") -> Any:
    for _ in range(levels):
        leaf = hold(leaf)
    return leaf


HOLDERS: list[Callable[[Any], Any]] = [
    lambda value: [value],
    lambda value: {"a": value},
    lambda value: (value,),
    lambda value: {2: value},
    lambda value: {None: value},
    Record,
    lambda value: Row(0, value),
]


@pytest.mark.parametrize("hold", HOLDERS)
@pytest.mark.parametrize("codec", [UNTYPED, LOSSY, ValueCodec("context", object)])
def test_nesting_beyond_limit_is_rejected(hold: Callable[[Any], Any], codec: ValueCodec) -> None:
    codec.encode(nest(NESTING_MAX, hold))
    for levels in (NESTING_MAX + 1, 5_000):
        assert "nested" in str(difference(codec, nest(levels, hold)))


def endless() -> list[Any]:
    """Return a list that contains itself."""
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize("codec", [UNTYPED, LOSSY, ValueCodec("a", Any), ValueCodec("a", list[Any])])
@pytest.mark.parametrize("value", [endless(), {1: endless()}, "x" * (1 << 20), ["x" * (1 << 20)], ("x" * (1 << 20),)])
def test_circular_and_oversized_values_are_rejected(codec: ValueCodec, value: Any) -> None:
    assert difference(codec, value) is not None


def test_fragment_of_exactly_the_limit_is_accepted() -> None:
    assert len(UNTYPED.encode(bytes(FRAGMENT_BYTES_MAX))[1]) == FRAGMENT_BYTES_MAX
    assert "the limit is 1,048,576" in str(difference(UNTYPED, bytes(FRAGMENT_BYTES_MAX + 1)))


@pytest.mark.parametrize("value", [b"raw", bytearray(b"raw"), memoryview(b"raw")])
def test_bytes_are_kept_unchanged(value: Any) -> None:
    assert UNTYPED.encode(value) == (ENCODING_BYTES, b"raw")
    assert ValueCodec("a", bytes).encode(value) == (ENCODING_BYTES, b"raw")


def test_other_values_are_encoded_as_msgpack() -> None:
    encoding, encoded = UNTYPED.encode({"x": [1, None]})
    assert encoding == ENCODING_MSGPACK
    assert msgspec.msgpack.decode(encoded) == {"x": [1, None]}


# --- registered types ---


class Typed(msgspec.Struct):
    name: str
    age: int = 0
    id: uuid.UUID | None = None
    tags: set[str] = msgspec.field(default_factory=set[str])
    colour: Shade | None = None
    at: dt.datetime | None = None
    pair: Pair | None = None
    scores: dict[uuid.UUID, decimal.Decimal] = msgspec.field(default_factory=dict[uuid.UUID, decimal.Decimal])
    kind: str = msgspec.field(default="", name="type")


TYPED = ValueCodec("context", Typed)


def test_registered_type_restores_its_fields() -> None:
    value = Typed(
        "Ada", 36, UUID, {"x", "y"}, Shade.RED, dt.datetime(2026, 1, 2), Pair(1, 2), {UUID: decimal.Decimal(2)}, "t"
    )
    assert back(TYPED, value) == value


@pytest.mark.parametrize(
    ("value", "came"),
    [
        ({"name": "Ada"}, Typed("Ada")),
        ({"name": "Ada", "id": str(UUID), "colour": "red", "tags": ["x"]}, Typed("Ada", 0, UUID, {"x"}, Shade.RED)),
        ({"name": "Ada", "id": UUID, "tags": {"x"}, "type": "t"}, Typed("Ada", 0, UUID, {"x"}, kind="t")),
        ({"name": "Ada", "scores": {str(UUID): "1.5"}}, Typed("Ada", scores={UUID: decimal.Decimal("1.5")})),
    ],
)
def test_plain_value_is_restored_as_registered_type(value: Any, came: Typed) -> None:
    assert back(TYPED, value) == came


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"raw", "does not fit the type registered for the kind"),
        (bytearray(b"raw"), "does not fit the type"),
        (None, "does not fit the type"),
        ({"age": 3}, "does not fit the type"),
        ({"name": 5}, "Expected `str`, got `int` - at `value.name`"),
        ({"name": "Ada", "extra": 5}, 'value["extra"] has no field in the type registered'),
        ({"name": "Ada", "tags": ["x", "x"]}, 'value["tags"] has 2 items'),
        ({"name": "Ada", "scores": {UUID: 1, str(UUID): 2}}, "both become"),
        (Typed("Ada", True), "does not fit"),
        (Typed(UUID), "value.name is of type uuid.UUID, and would come back as str"),  # type: ignore[arg-type]  # as users do
        (Typed(Text.A), "value.name is of type"),
        (Typed("Ada", at=dt.datetime(2026, 1, 2), kind=5), "does not fit"),  # type: ignore[arg-type]  # as users do
        (Record("x"), "does not fit"),
    ],
)
def test_registered_type_rejects_value_it_cannot_restore(value: Any, complaint: str) -> None:
    assert complaint in str(difference(TYPED, value))


def test_subclass_of_registered_type_is_rejected() -> None:
    class More(Typed):
        more: int = 0

    assert "would come back as" in str(difference(TYPED, More("Ada", more=5)))


def test_number_rounded_by_registered_type_is_rejected() -> None:
    codec = ValueCodec("context", float)
    assert back(codec, 3) == 3.0
    assert "would come back as" in str(difference(codec, (1 << 53) + 1))


@given(st.dictionaries(keys, st.integers(0, 3), max_size=4))
def test_mapping_with_typed_keys_loses_no_entry(value: dict[Any, Any]) -> None:
    codec = ValueCodec("context", dict[uuid.UUID | int, int])
    if difference(codec, value) is None:
        assert len(back(codec, value)) == len(value)


# --- hooks ---


class Point:
    """A type that msgspec does not know."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    def __hash__(self) -> int:
        return hash(self.x)


def enc_hook(value: Any) -> Any:
    if isinstance(value, Point):
        return msgspec.msgpack.Ext(1, msgspec.msgpack.encode(value.x))
    if isinstance(value, decimal.Decimal):
        return msgspec.msgpack.Ext(2, str(value).encode())
    if isinstance(value, range):
        return list(value)
    raise NotImplementedError(f"not known: {type(value).__name__}")


def dec_hook(type_: type, value: Any) -> Any:
    if isinstance(value, msgspec.msgpack.Ext):
        return ext_hook(value.code, memoryview(value.data))
    raise NotImplementedError


def ext_hook(code: int, data: memoryview) -> Any:
    return Point(msgspec.msgpack.decode(data)) if code == 1 else decimal.Decimal(bytes(data).decode())


HOOKS = ValueRules(enc_hook=enc_hook, dec_hook=dec_hook, ext_hook=ext_hook)


def test_hooks_restore_their_types_in_untyped_kind() -> None:
    codec = ValueCodec("context", rules=HOOKS)
    value = {"at": [Point(3), decimal.Decimal("1.50")], "n": 1}
    assert same(back(codec, value), value)


def test_hooks_restore_registered_type() -> None:
    class Place(msgspec.Struct):
        point: Point

    codec = ValueCodec("context", Place, HOOKS)
    assert back(codec, Place(Point(3))) == Place(Point(3))
    assert back(ValueCodec("context", Point, HOOKS), Point(3)) == Point(3)


def test_value_not_restored_by_hooks_is_rejected() -> None:
    assert "value[0] is of type range, and would come back as list" in str(
        difference(ValueCodec("context", rules=HOOKS), [range(2)])
    )
    assert "cannot be encoded: not known: complex" in str(difference(ValueCodec("context", rules=HOOKS), [1j]))
    one_way = ValueCodec("context", rules=ValueRules(enc_hook=enc_hook))
    assert "value[0] is of type" in str(difference(one_way, [Point(3)]))


def test_enc_hook_result_with_colliding_keys_is_rejected() -> None:
    def collide(value: Any) -> Any:
        return {UUID: 1, str(UUID): 2}

    codec = ValueCodec("context", rules=ValueRules(enc_hook=collide, allow_lossy_values=True))
    assert "both become" in str(difference(codec, {"a": Point(1)}))


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x")])
def test_hook_error_rejects_the_value(error: Exception) -> None:
    def fails(*_: Any) -> Any:
        raise error

    for rules in (
        HOOKS._replace(enc_hook=fails),
        HOOKS._replace(ext_hook=fails),
        HOOKS._replace(dec_hook=fails, ext_hook=None),
    ):
        for type_ in (Any, Point):
            assert difference(ValueCodec("context", type_, rules), Point(1)) is not None
    encoded = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"\x01"))
    with pytest.raises(msgspec.MsgspecError):
        ValueCodec("context", rules=HOOKS._replace(ext_hook=fails)).decoder.decode(encoded)


def test_type_unknown_to_msgspec_is_rejected_with_kind() -> None:
    with pytest.raises(InvalidRequestError, match=r"'context' cannot be decoded as .*Colour"):
        ValueCodec("context", Colour)


def test_plain_value_is_converted_to_registered_type() -> None:
    assert TYPED.convert({"name": "Ada", "id": str(UUID)}) == Typed("Ada", id=UUID)
    with pytest.raises(InvalidRequestError, match="does not fit the type of 'context'"):
        TYPED.convert({"name": 5})


# --- the tables of docs/values.md ---

NAMES = {
    "UUID": uuid.UUID,
    "Decimal": decimal.Decimal,
    "UTC": dt.UTC,
    "OrderedDict": collections.OrderedDict,
    "UNSET": msgspec.UNSET,
    "Struct": msgspec.defstruct("Struct", ["name"]),
    "ArrayLikeStruct": msgspec.defstruct("ArrayLikeStruct", ["name"], array_like=True),
    "Dataclass": dataclasses.make_dataclass("Dataclass", ["name"]),
    "Colour": Colour,
    "IntegerEnum": Number,
    "Pair": Pair,
    **{name: getattr(dt, name) for name in ("datetime", "date", "time", "timedelta", "timezone")},
}
PAGE = (Path(__file__).parents[3] / "docs" / "values.md").read_text(encoding="utf-8")


def rows(title: str) -> list[tuple[str, str]]:
    """Return the rows of the table under a title: pairs of expressions."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return [(saved, came) for saved, came in re.findall(r"^\| `(.+)` \| `(.+)` \|$", section, re.MULTILINE)]


@pytest.mark.parametrize(("saved", "came"), rows("What may come back as another type"))
def test_values_documented_as_changing_return_as_documented(saved: str, came: str) -> None:
    assert same(back(UNTYPED, eval(saved, NAMES)), eval(came, NAMES))


@pytest.mark.parametrize(("saved", "came"), rows("What is rejected"))
def test_values_documented_as_rejected_need_lossy_permission(saved: str, came: str) -> None:
    assert "would come back as" in str(difference(UNTYPED, eval(saved, NAMES)))
    assert same(back(LOSSY, eval(saved, NAMES)), eval(came, NAMES))


def test_documentation_has_both_tables() -> None:
    assert len(rows("What may come back as another type")) >= 8
    assert len(rows("What is rejected")) >= 12
    for limit in ("256 bytes", "1 MiB", "2 MiB", "| 64 |", "| 200 |"):
        assert limit in PAGE


def test_rejection_names_remedy_if_there_is_one() -> None:
    assert "connect(allow_lossy_values=True)" in str(difference(UNTYPED, [{1}]))
    assert "connect(allow_lossy_values=True)" in str(difference(UNTYPED, {UUID: 1}))
    for value in ({UUID: 1, str(UUID): 2}, {"a": object()}, nest(NESTING_MAX + 1, lambda inner: [inner])):
        assert "allow_lossy_values" not in str(difference(UNTYPED, value))
