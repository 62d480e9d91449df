"""Codecs between the values of each kind and bytes: a value that would come back changed is rejected.

Every value passes `ValueCodec.encode`. A plain value (`plain_values`) or bytes come back unchanged, and take one check;
a value of its kind's registered type is decoded and compared by ==, if that can be trusted. Everything else is encoded,
decoded as a wake would decode it, and compared step by step (`value_differences`); if it differs by more than
docs/values.md lists, the save is rejected with the path in the value. Two keys that become one are always rejected,
other changes may be permitted for a connection.

A type can be taught in two ways: registered for the kind, so that the decoder makes it; or by `enc_hook` and
`ext_hook`, which turn it into an extension of msgpack's and back, in any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

import msgspec

from ...wire.errors import InvalidRequestError
from ...wire.protocol.image import ENCODING_BYTES, ENCODING_MSGPACK
from ...wire.protocol.limits import FRAGMENT_BYTES_MAX, NESTING_MAX
from ..plain_values import is_plain, is_trusted
from .value_differences import Comparison, Difference, children, is_mapping, key_step, shown

__all__ = ["ValueCodec", "ValueRules"]

_REMEDY: Final = (
    "; convert it, register a type for the kind that restores it (connect(types=...)), teach it (enc_hook, ext_hook),"
    " or permit it (connect(allow_lossy_values=True)): docs/values.md"
)

_PATH_MAX: Final = 200
"""The most characters of a path in an error: the beginning and the end of a longer one."""


class ValueRules(NamedTuple):
    """The rules of a connection for its values: see `connect`."""

    types: Mapping[str, Any] | None = None
    enc_hook: Callable[[Any], Any] | None = None
    dec_hook: Callable[[type, Any], Any] | None = None
    ext_hook: Callable[[int, memoryview], Any] | None = None
    allow_lossy_values: bool = False


_BYTES_LIKE: Final = (bytes, bytearray, memoryview)
"""A tuple, made once: `bytes | bytearray | memoryview` took 0.3 us each time."""

_NO_RULES: Final = ValueRules()
_plain_encoder = msgspec.msgpack.Encoder()


class ValueCodec:
    """The codec between the values of one kind and bytes."""

    __slots__ = ("_compare", "_encode", "_kind", "_rules", "_untyped", "decoder", "typed")

    decoder: msgspec.msgpack.Decoder[Any]
    """The decoder from msgpack to the type registered for the kind."""
    typed: bool
    """Whether a type is registered."""

    def __init__(self, kind: str, type_: Any = Any, rules: ValueRules = _NO_RULES) -> None:
        """`type_`: the type registered for the kind.

        Raises:
            InvalidRequestError: msgspec knows no such type.
        """
        self._kind = kind
        self._rules = rules
        self.typed = type_ is not Any
        self._compare = Comparison(self._reread, typed=self.typed)
        self._encode = msgspec.msgpack.Encoder(enc_hook=self._enc_hook if rules.enc_hook else None).encode
        ext_hook = None if rules.ext_hook is None else _GuardedExtHook(rules.ext_hook)
        dec_hook = _GuardedDecHook(rules.dec_hook) if rules.dec_hook or ext_hook else None
        try:
            self.decoder = msgspec.msgpack.Decoder(type_, dec_hook=dec_hook, ext_hook=ext_hook)
        except TypeError as error:
            raise InvalidRequestError(f"types: {kind!r} cannot be decoded as {type_!r}: {error}") from error
        self._untyped = msgspec.msgpack.Decoder(Any, ext_hook=ext_hook)

    def encode(self, value: Any) -> tuple[int, bytes]:
        """Return a value's encoding and bytes, as an image has them: bytes unchanged, anything else as msgpack.

        Raises:
            InvalidRequestError: it cannot be encoded, is too large or too deep, or would not come back equal.
        """
        encoding, encoded = ENCODING_MSGPACK, b""
        if self.typed:
            intact = self._encode_if_intact(value)
            if intact is None:
                encoding, encoded = self._encode_checked(value)
            else:
                encoded = intact
        elif is_plain(value, NESTING_MAX, True):
            if type(value) is bytes:
                encoding, encoded = ENCODING_BYTES, value
            else:
                try:
                    encoded = self._encode(value)
                except (ValueError, OverflowError) as error:  # text without UTF-8, an integer beyond 64 bits
                    raise self._rejection(self._culprit(value, error, NESTING_MAX)) from error
        elif isinstance(value, _BYTES_LIKE):
            encoding, encoded = ENCODING_BYTES, bytes(cast("bytes", value))
        else:
            encoding, encoded = self._encode_checked(value)
        if len(encoded) > FRAGMENT_BYTES_MAX:
            size = f"{len(encoded):,} bytes; the limit is {FRAGMENT_BYTES_MAX:,} (1 MiB)"
            raise InvalidRequestError(f"the value of {self._kind!r} has {size}")
        return encoding, encoded

    def convert(self, value: Any) -> Any:
        """Return a plain value as it would come back: as the kind's registered type.

        Raises:
            InvalidRequestError: it does not fit the type.
        """
        try:
            return self.decoder.decode(_plain_encoder.encode(value))
        except Exception as error:
            raise InvalidRequestError(f"{shown(value)} does not fit the type of {self._kind!r}: {error}") from error

    def _encode_if_intact(self, value: Any) -> bytes | None:
        """Return the msgpack of a value that a quick check shows to come back intact; None for any other.

        2.5 us for a Struct of twenty values, while the comparison takes 20.
        """
        if isinstance(value, _BYTES_LIKE):
            return None
        try:
            encoded = self._encode(value)
            restored = self.decoder.decode(encoded)
            if type(restored) is type(value):
                return encoded if is_trusted(value, NESTING_MAX) and restored == value else None
            return encoded if is_plain(value, NESTING_MAX, False) and self._encode(restored) == encoded else None
        except Exception:  # the comparison reports the error
            return None

    def _encode_checked(self, value: Any) -> tuple[int, bytes]:
        try:
            encoded, found = self._attempt(value, value)
            if found is not None and self._rules.enc_hook is not None:
                # msgspec calls the hook only for types that it does not know, and knows some that do not come back.
                taught = _taught(value, self._enc_hook, NESTING_MAX)
                encoded, found = self._attempt(taught, value)
            if found is not None and encoded and self._rules.allow_lossy_values:
                found = self._compare.loss(value, NESTING_MAX)
            if found is not None:
                raise self._rejection(found)
        except RecursionError as error:
            raise self._rejection(Difference("", f"is nested too deep: {error}")) from error
        if isinstance(value, _BYTES_LIKE) and isinstance(self.decoder.decode(encoded), bytes):
            return ENCODING_BYTES, bytes(cast("bytes", value))
        return ENCODING_MSGPACK, encoded

    def _attempt(self, given: Any, value: Any) -> tuple[bytes, Difference | None]:
        """Encode `given` in place of a value; return its bytes (none if unusable) and the first difference.

        A value larger than a fragment may be is not compared: it is rejected for its size.
        """
        try:
            encoded = self._encode(given)
        except Exception as error:  # the hook is the user's
            return b"", self._culprit(given, error, NESTING_MAX)
        if len(encoded) > FRAGMENT_BYTES_MAX:
            return encoded, None
        try:
            restored = self.decoder.decode(encoded)
        except Exception as error:  # the hooks are the user's
            what = "does not fit the type registered for the kind" if self.typed else "could not be read back"
            return b"", Difference("", f"{what}: {str(error).replace('`$', '`value')}")
        return encoded, self._compare.difference(value, restored, NESTING_MAX)

    def _enc_hook(self, value: Any) -> Any:
        assert self._rules.enc_hook is not None
        answer = self._rules.enc_hook(value)
        found = self._compare.loss(answer, NESTING_MAX)
        if found is not None:
            raise ValueError(f"what enc_hook makes of it: value{found.path} {found.what}")
        return answer

    def _reread(self, value: Any) -> Any:
        return self._untyped.decode(self._encode(value))

    def _culprit(self, value: Any, error: Exception, levels: int) -> Difference:
        """Return which part of a value could not be encoded, and why."""
        if levels == 0:
            return Difference("", f"is nested deeper than {NESTING_MAX} levels")
        if is_mapping(value):
            for key in value:
                if (failure := self._failure(key)) is not None:
                    return Difference(key_step(key), f"has a key that cannot be encoded: {failure}")
        for step, child in children(value):
            if (failure := self._failure(child)) is not None:
                return self._culprit(child, failure, levels - 1).under(step)
        return Difference("", f"cannot be encoded: {str(error) or type(error).__name__}")

    def _failure(self, value: Any) -> Exception | None:
        try:
            self._encode(value)
        except Exception as error:  # the hook is the user's
            return error
        return None

    def _rejection(self, found: Difference) -> InvalidRequestError:
        path = found.path
        if len(path) > _PATH_MAX:
            path = f"{path[: _PATH_MAX // 2]}...{path[-_PATH_MAX // 2 :]}"
        remedy = _REMEDY if found.permissible else ""
        text = f"the value of {self._kind!r} cannot be saved: value{path} {found.what}{remedy}"
        return InvalidRequestError(text.encode(errors="backslashreplace").decode())  # also if it is no valid Unicode


def _taught(value: Any, hook: Callable[[Any], Any], levels: int) -> Any:
    """Return a value with the hook's answer for each object in it that is not plain; keys are unchanged."""
    kind = cast("Any", type(value))
    if levels == 0 or value is None or kind in (str, int, float, bool, bytes):
        return value
    if kind is dict:
        return {key: _taught(item, hook, levels - 1) for key, item in cast("dict[Any, Any]", value).items()}
    if kind is list or kind is tuple:
        return [_taught(item, hook, levels - 1) for item in cast("list[Any]", value)]
    try:
        answer = hook(value)
    except Exception:  # it does not know this type; encoding shows whether it had to
        return value
    return _taught(answer, hook, levels - 1)


class _GuardedDecHook:
    """The user's hook: not called for objects that ext_hook made already, and with its errors as those of the value.

    A class, since a pickled state contains it.
    """

    def __init__(self, hook: Callable[[type, Any], Any] | None) -> None:
        self._hook = hook

    def __call__(self, type_: type, value: Any) -> Any:
        if type(value) is type_:
            return value
        try:
            if self._hook is None:
                raise NotImplementedError("there is no dec_hook")
            return self._hook(type_, value)
        except Exception as error:
            raise ValueError(f"dec_hook: {type(error).__name__}: {error}") from error


class _GuardedExtHook:
    """The user's hook, with its errors as those of the value."""

    def __init__(self, hook: Callable[[int, memoryview], Any]) -> None:
        self._hook = hook

    def __call__(self, code: int, data: memoryview) -> Any:
        try:
            return self._hook(code, data)
        except Exception as error:
            raise msgspec.ValidationError(f"ext_hook: {type(error).__name__}: {error}") from error
