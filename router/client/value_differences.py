"""The comparison of a value with its restored form: pure, and with the path of the first difference.

Equal means the same type and ==, throughout, with the exceptions that docs/values.md lists: a tuple may come back as a
list, a Struct, dataclass or attrs object as a mapping of its fields, a mapping of a subclass of dict as a dict,
bytearray and memoryview as bytes, an aware datetime as the same moment in UTC.

With a type registered, a plain value (text, a number, a mapping) may come back in the form of that type, as long as
nothing of it is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeGuard, cast

import msgspec

from ...wire.protocol.limits import NESTING_MAX

__all__ = ["Comparison", "Difference", "children", "is_mapping", "key_step", "shown"]

_SHOWN_MAX: Final = 60
"""The most characters of a value or key in an error."""

_PLAIN: Final = (str, int, float, bool, type(None), bytes)
_BYTES_LIKE: Final = (bytes, bytearray, memoryview)


class Difference(NamedTuple):
    """The place at which a value would come back different (`["a"][3].key`, empty for the value itself), and how."""

    path: str
    what: str
    permissible: bool = False
    """Whether a caller may permit it: the value changes, and nothing of it is lost."""

    def under(self, step: str) -> Difference:
        """Return the same difference with its path from the container of the value."""
        return self._replace(path=step + self.path)


class Comparison:
    """The comparison of the values of one kind, with a type registered or without."""

    __slots__ = ("_reread", "_typed")

    def __init__(self, reread: Callable[[Any], Any], *, typed: bool) -> None:
        """`reread` restores a value without a type; `typed`: whether the kind has one."""
        self._reread = reread
        self._typed = typed

    def difference(self, value: Any, restored: Any, levels: int) -> Difference | None:
        """Return the first difference between a value and its restored form, None if there is none.

        `levels`: how many lists and mappings may be nested; deeper nesting is a difference.
        """
        kind = cast("Any", type(value))
        if kind in _PLAIN:
            return self._plain_difference(value, restored)
        fields = _fields_of(value)
        if fields is None and not isinstance(value, dict | list | tuple | set | frozenset):
            return self._leaf_difference(value, restored)
        if levels == 0:
            return _too_deep()
        if fields is not None:
            return self._object_difference(value, fields, restored, levels - 1)
        if is_mapping(value):
            return self._mapping_difference(value, restored, levels - 1)
        if isinstance(value, set | frozenset):
            return self._set_difference(cast("frozenset[Any]", value), restored, levels - 1)
        return self._sequence_difference(cast("Sequence[Any]", value), restored, levels - 1)

    def _plain_difference(self, value: Any, restored: Any) -> Difference | None:
        same_type: bool = type(restored) is type(value)
        if same_type and (value == restored or (value != value and restored != restored)):
            return None
        if self._typed and not same_type:
            # The registered type may change the form of a value; a number must stay the same number.
            numbers = isinstance(value, int | float) and isinstance(restored, int | float)
            if not numbers or _are_equal(value, restored):
                return None
        return _changed(value, restored)

    def _leaf_difference(self, value: Any, restored: Any) -> Difference | None:
        kind = cast("Any", type(value))
        other_kind = cast("Any", type(restored))
        if kind is datetime and other_kind is datetime:
            return None if _is_same_moment(value, restored) else _changed(value, restored)
        alike = kind is other_kind or (kind in _BYTES_LIKE and other_kind in _BYTES_LIKE)
        return None if alike and _are_equal(value, restored) else _changed(value, restored)

    def _sequence_difference(self, value: Sequence[Any], restored: Any, levels: int) -> Difference | None:
        if isinstance(value, tuple) and type(value) is not tuple and type(restored) is not type(value):
            return _changed(value, restored)
        if not isinstance(restored, list | tuple):
            return self._read_by_type(value, restored, levels)
        items = cast("Sequence[Any]", restored)
        if len(value) > len(items):
            return Difference("", f"has {len(value)} items, and would come back with {len(items)}")
        for index, item in enumerate(value):
            found = self.difference(item, items[index], levels)
            if found is not None:
                return found.under(f"[{index}]")
        return None

    def _set_difference(self, value: frozenset[Any], restored: Any, levels: int) -> Difference | None:
        if type(restored) is not type(value) or len(restored) != len(value):
            return _changed(value, restored)
        there = {item: item for item in restored}
        for item in value:
            if item not in there or self.difference(item, there[item], levels) is not None:
                return Difference("", f"has the item {shown(item)}, which would not come back")
        return None

    def _mapping_difference(self, value: dict[Any, Any], restored: Any, levels: int) -> Difference | None:
        if not is_mapping(restored):
            fields = _fields_of(restored)
            if fields is None or not self._typed:
                return self._read_by_type(value, restored, levels)
            return self._named_difference(value, fields, levels)
        if len(value) > len(restored):
            return self._lost_key(value, restored)
        for (key, item), (other_key, other) in zip(value.items(), restored.items(), strict=False):
            if type(key) is not str or key != other_key:
                found = self.difference(key, other_key, levels)
                if found is None and type(key) not in _PLAIN and not _are_equal(key, other_key):
                    found = _changed(key, other_key)  # a Struct, say: no lookup would find it
                if found is not None:
                    return Difference(key_step(key), f"has a key that {found.what}", found.permissible)
            found = self.difference(item, other, levels)
            if found is not None:
                return found.under(key_step(key))
        return None

    def _named_difference(self, value: Mapping[Any, Any], fields: Mapping[str, Any], levels: int) -> Difference | None:
        """Compare a mapping with an object made from it; the object may have more fields: their defaults."""
        for key, item in value.items():
            if not isinstance(key, str) or key not in fields:
                return Difference(key_step(key), "has no field in the type registered for the kind, and would be lost")
            found = self.difference(item, fields[key], levels)
            if found is not None:
                return found.under(key_step(key))
        return None

    def _object_difference(
        self, value: Any, fields: Mapping[str, Any], restored: Any, levels: int
    ) -> Difference | None:
        others: Mapping[str, Any]
        if type(restored) is type(value):
            others = _fields_of(restored) or {}
        elif is_mapping(restored):
            others = restored
        elif isinstance(restored, list | tuple):
            others = dict(zip(fields, cast("Sequence[Any]", restored), strict=False))
        else:
            return _changed(value, restored)
        for name, item in fields.items():
            if name not in others:
                if item is msgspec.UNSET or _is_omitted(value):
                    continue
                return Difference(f".{name}", "would not come back")
            found = self.difference(item, others[name], levels)
            if found is not None:
                return found.under(f".{name}")
        return None

    def _read_by_type(self, value: Any, restored: Any, levels: int) -> Difference | None:
        """Compare a mapping or list with an object of a registered type that is neither: no entry may be lost."""
        if not self._typed:
            return _changed(value, restored)
        if type(restored) in (set, frozenset) and len(restored) != len(value):
            return Difference("", f"has {len(value)} items, and would come back as {shown(restored)}")
        return self.loss(value, levels)

    def loss(self, value: Any, levels: int) -> Difference | None:
        """Return the first entry that is lost because its key becomes that of another, None if there is none."""
        if type(value) in _PLAIN:
            return None
        steps = list(children(value))
        if not steps:
            return None
        if levels == 0:
            return _too_deep()
        if is_mapping(value):
            found = self._lost_key(value, None)
            if found is not None:
                return found
        for step, child in steps:
            found = self.loss(child, levels - 1)
            if found is not None:
                return found.under(step)
        return None

    def _lost_key(self, value: dict[Any, Any], restored: dict[Any, Any] | None) -> Difference | None:
        by_key: dict[Any, Any] = {}
        if any(type(key) is not str for key in value):
            for key in value:
                [came] = cast("dict[Any, Any]", self._reread({key: None}))
                if came in by_key:
                    both = f"{shown(by_key[came])} and {shown(key)}"
                    return Difference("", f"has the keys {both}, which both become {shown(came)}")
                by_key[came] = key
        if restored is None:
            return None
        lost = [key for key in value if key not in restored]
        return Difference(key_step(lost[0]) if lost else "", "would be lost")


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with its step of the path; keys of mappings are not among them."""
    if is_mapping(value):
        for key, item in value.items():
            yield key_step(key), item
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(cast("Iterable[Any]", value)):
            yield f"[{index}]", item
    else:
        for name, item in (_fields_of(value) or {}).items():
            yield f".{name}", item


def is_mapping(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Return whether a value is a dict or of a subclass."""
    return isinstance(value, dict)


def shown(value: object) -> str:
    """Return the repr of a value, shortened for an error."""
    try:
        text = repr(value)
    except Exception:  # a user's type may do anything
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def key_step(key: object) -> str:
    """Return the step of a path for a key."""
    return f"[{json.dumps(key, ensure_ascii=False) if type(key) is str and len(key) <= _SHOWN_MAX else shown(key)}]"


def _too_deep() -> Difference:
    return Difference("", f"is nested deeper than {NESTING_MAX} levels")


def _changed(value: object, restored: object) -> Difference:
    name, other = _name(value), _name(restored)
    if type(value) is type(restored):
        return Difference("", f"is {shown(value)}, and would come back as {shown(restored)}", permissible=True)
    what = f"is of type {name}, and would come back as {other} ({shown(restored)})"
    return Difference("", what, permissible=True)


def _name(value: object) -> str:
    kind = cast("Any", type(value))
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _are_equal(value: object, restored: object) -> bool:
    try:
        return bool(value == restored)
    except Exception:  # a user's type may do anything; an array gives one answer for each item
        return False


def _is_same_moment(value: datetime, restored: datetime) -> bool:
    """Return whether two datetimes are one moment, to the microsecond; by == a repeated hour equals nothing."""
    ours, theirs = value.utcoffset(), restored.utcoffset()
    if ours is None or theirs is None:
        return ours is theirs and value == restored
    return value.replace(tzinfo=None) - ours == restored.replace(tzinfo=None) - theirs


def _fields_of(value: Any) -> Mapping[str, Any] | None:
    """Return an object's fields by the names under which they are saved; None for any other value."""
    kind = cast("Any", type(value))
    if isinstance(value, msgspec.Struct):
        config = kind.__struct_config__
        fields = {} if config.tag is None else {config.tag_field: config.tag}
        names = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
        return fields | {encoded: getattr(value, name) for encoded, name in names}
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name, msgspec.UNSET) for field in dataclasses.fields(kind)}
    attributes: Iterable[Any] | None = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return {attribute.name: getattr(value, attribute.name, msgspec.UNSET) for attribute in attributes}
    return None


def _is_omitted(value: Any) -> bool:
    """Return whether a Struct omits fields with their defaults, as its user requested."""
    return isinstance(value, msgspec.Struct) and value.__struct_config__.omit_defaults
