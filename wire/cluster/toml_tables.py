"""Tables of a TOML file, read with errors explained.

Each error is a key and a sentence on it (`TableError`), of which `wire.cluster.topology_file` makes one line with the
file's name. Types are msgspec's work (`msgspec.convert`); each rule that a value breaks is also in its message.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, TypeVar, cast

import msgspec

__all__ = [
    "NAME_RULE",
    "Place",
    "Rules",
    "TableError",
    "alternatives",
    "did_you_mean",
    "named_tables",
    "quoted_key",
    "read_table",
    "require_choice",
    "require_name",
    "require_range",
    "shown",
    "toml_type",
]

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
"""Names become directory names and words of the command line; 63 characters are also a DNS label's (RFC 1035)."""

NAME_RULE: Final = "1 to 63 characters, a letter first: a-z, 0-9, _ and -"

Rules = Mapping[str, str]
"""Permitted values in words, by key."""


class TableError(Exception):
    """The key of an error and a sentence on it; `load_topology` adds the file."""


class Place:
    """The place of a table in the file, to name the keys in it."""

    def __init__(self, key: str, note: str = "") -> None:
        self.key = key
        self.note = note

    def reject(self, field: str | None, problem: str) -> NoReturn:
        """Raise the TableError that a key of this table is, or the table itself."""
        key = self.key if field is None else f"{self.key}.{quoted_key(field)}"
        raise TableError(f"{key}{self.note}: {problem}")


_T = TypeVar("_T", bound=msgspec.Struct)


def named_tables(section: str, header: str, tables: Any, count_max: int) -> Iterable[tuple[Place, str, Any]]:
    """Check a section of tables with names for keys; yield each with its place and name."""
    if not isinstance(tables, dict):
        raise TableError(f"{section}: must be a table, not {toml_type(tables)}; permitted: sections {header}")
    named = cast("dict[str, Any]", tables)
    if not 1 <= len(named) <= count_max:
        raise TableError(f"{section}: there are {len(named)}; permitted: 1 to {count_max} sections {header}")
    for name, table in named.items():
        place = Place(f"{section}.{quoted_key(name)}")
        if NAME_PATTERN.fullmatch(name) is None:
            place.reject(None, f"{shown(name)} cannot be a name; permitted: {NAME_RULE}")
        yield place, name, table


def read_table(place: Place, table: Any, type_: type[_T], rules: Rules, header: str) -> _T:
    """Convert one table, rejecting keys that are unknown or missing and values of another type."""
    if not isinstance(table, dict):
        place.reject(None, f"must be a table, not {toml_type(table)}; permitted: a section {header}")
    values = cast("dict[str, Any]", table)
    for key in values:
        if key not in rules:
            place.reject(key, f"unknown key{did_you_mean(key, rules)}; permitted: {', '.join(rules)}")
    for field in msgspec.structs.fields(type_):
        if field.required and field.name not in values:
            place.reject(field.name, f"missing; permitted: {rules[field.name]}")
    for field in msgspec.structs.fields(type_):
        if field.name in values:
            _require_type(place, field, values[field.name], rules[field.name])
    return msgspec.convert(values, type_)


def _require_type(place: Place, field: msgspec.structs.FieldInfo, value: Any, rule: str) -> None:
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        # A list of the right type has an item of a wrong one: msgspec's path says which ("... - at `$[1]`").
        item = re.search(r"at `\$\[(\d+)\]`", str(error))
        if item is not None:
            name, value = f"{field.name}[{item[1]}]", value[int(item[1])]
        else:
            name = field.name
        place.reject(name, f"must not be {toml_type(value)}; permitted: {rule}")


def require_name(place: Place, field: str, name: str) -> None:
    """Reject what cannot be a name."""
    if NAME_PATTERN.fullmatch(name) is None:
        place.reject(field, f"{shown(name)} cannot be a name; permitted: {NAME_RULE}")


def require_choice(place: Place, field: str, value: str, choices: tuple[str, ...]) -> None:
    """Reject a value that is none of the choices."""
    if value in choices:
        return
    permitted = alternatives(choices)
    place.reject(field, f"unknown value {shown(value)}{did_you_mean(value, choices)}; permitted: {permitted}")


def require_range(place: Place, field: str, value: float, low: float, high: float, rule: str) -> None:
    """Reject a number outside its bounds, which are permitted."""
    if not low <= value <= high:  # not a number is never inside
        place.reject(field, f"{value} is out of range; permitted: {rule}")


def alternatives(values: Iterable[str]) -> str:
    """Return the values quoted, for the end of a message."""
    return ", ".join(f'"{value}"' for value in values)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint at what may have been meant, "" if nothing is near."""
    close = difflib.get_close_matches(given.lower(), list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def quoted_key(key: str) -> str:
    """Return a key as TOML has it: bare or quoted. "stores[1]" is ours and stays."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+(\[\d+\])?", key) else shown(key)


def shown(value: str) -> str:
    """Return a string as TOML and JSON have it, on one line and cut short."""
    return msgspec.json.encode(value if len(value) <= 80 else value[:77] + "...").decode()


def toml_type(value: Any) -> str:
    """Return TOML's word for a value's type, with its article."""
    names = {bool: "a boolean", str: "a string", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return next((name for type_, name in names.items() if isinstance(value, type_)), "a date or time")
