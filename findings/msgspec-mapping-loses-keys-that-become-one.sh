#!/usr/bin/env bash
# msgspec 0.22.0 (CPython 3.11, Linux): a mapping with two keys of one encoded form loses an entry on its way through msgpack, without an error.
#
# Seen: the encoder writes a mapping {UUID(5): ..., str(UUID(5)): ...} as a msgpack map of two entries with the same key, and its decoder
# gives a dict with one. The same for an Enum and its value, a date and its ISO text, a Decimal and its text; and in JSON.
# One would guess: the encoder refuses such a mapping, or the decoder names the key that is there twice, or both entries come back.
# Whom it hurts: whoever keeps dicts keyed by ids that come from two sources (a UUID from a database, its text from a request): one entry is lost,
# and which one depends on their order.
# What helps: encode, decode and compare whatever has keys other than str and int, or register dict[UUID, ...] and compare the lengths.
# Exits 0 if this is still so, 1 if not.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "msgspec==0.22.0"
"$work/venv/bin/python" - <<'PROGRAM'
import datetime, decimal, enum, sys, uuid

import msgspec


class Colour(enum.Enum):
    RED = "red"


one = uuid.UUID(int=5)
mappings = [
    {one: "from a UUID", str(one): "from text"},
    {Colour.RED: 1, "red": 2},
    {datetime.date(2026, 1, 2): 1, "2026-01-02": 2},
    {decimal.Decimal("1.5"): 1, "1.5": 2},
]
lost = 0
for name, codec in (("msgpack", msgspec.msgpack), ("json", msgspec.json)):
    for mapping in mappings:
        encoded = codec.encode(mapping)
        decoded = codec.decode(encoded)
        print(f"{name}: {len(mapping)} entries, {len(decoded)} come back: {decoded}")
        lost += len(decoded) < len(mapping)
print(f"{lost} of {2 * len(mappings)} lost an entry without an error (msgspec {msgspec.__version__})")
sys.exit(0 if lost == 2 * len(mappings) else 1)
PROGRAM
