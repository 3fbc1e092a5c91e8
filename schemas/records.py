"""The base of every value on the wire: a frozen struct that is checked when it is built as well as when it is read.

msgspec checks types and bounds only while decoding; a wrong value built in our own code would travel. `Record` closes that gap:
each field is checked against its own annotation on construction, floats must be finite and strings hold no NUL (databases refuse
both), so what could not be read back is never written.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any, ClassVar, Self, get_type_hints

import msgspec

MAX_RECORD_BYTES = 1 << 20  # a JSON value larger than this is refused before it is parsed


class InvalidRecord(ValueError):
    """A value that may not travel; the message names the struct, the field, the value and what was expected."""


class Json:
    """Base of nested values that travel as one JSON-encoded string, because Connect sinks take no nested fields.

    A subclass gives `to_json() -> str` and `from_json(str) -> Self`.
    """

    __slots__ = ()

    def to_json(self) -> str:
        raise TypeError(f"{type(self).__name__} does not say how it is written")

    @classmethod
    def from_json(cls, text: str) -> Self:
        raise TypeError(f"{cls.__name__} does not say how it is read")


def _enc(value: Any) -> Any:
    if isinstance(value, Json):
        return value.to_json()
    raise TypeError(f"a {type(value).__name__} cannot travel in a record")


def _dec(kind: type, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Json):
        if isinstance(value, kind):
            return value
        if not isinstance(value, str):
            raise TypeError(f"Expected a JSON-encoded `str`, got `{type(value).__name__}`")
        return kind.from_json(value)
    raise TypeError(f"a {kind} cannot travel in a record")


_encoder = msgspec.json.Encoder(enc_hook=_enc)


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value on the wire.

    Raises
    ------
    InvalidRecord
        When built (or read) with a field that its annotation forbids.
    """

    _hints: ClassVar[dict[type, tuple[tuple[str, Any], ...]]] = {}

    def __post_init__(self) -> None:
        kind = type(self)
        hints = Record._hints.get(kind)
        if hints is None:
            named = get_type_hints(kind, include_extras=True)
            hints = Record._hints[kind] = tuple((name, named[name]) for name in kind.__struct_fields__)
        for name, hint in hints:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidRecord(f"{kind.__name__}.{name} is {value}: expected a finite number")
            if isinstance(value, str) and "\0" in value:
                raise InvalidRecord(f"{kind.__name__}.{name} holds a NUL character: databases refuse it, so it may not travel")
            if isinstance(value, dt.datetime) and value.tzinfo is not dt.UTC:
                raise InvalidRecord(f"{kind.__name__}.{name} is {value.isoformat()}: expected a time in UTC")
            try:
                msgspec.convert(value, hint, strict=True, dec_hook=_dec)
            except (msgspec.ValidationError, TypeError) as error:
                raise InvalidRecord(f"{kind.__name__}.{name} is {value!r:.80}: {error}") from None
        self.check()

    def check(self) -> None:
        """What must hold between fields; subclasses raise `InvalidRecord`."""

    def to_bytes(self) -> bytes:
        """The value as plain JSON in UTF-8; raises `InvalidRecord` if it would be larger than `MAX_RECORD_BYTES`."""
        data = _encoder.encode(self)
        if len(data) > MAX_RECORD_BYTES:
            raise InvalidRecord(f"{type(self).__name__} of {len(data)} bytes: at most {MAX_RECORD_BYTES} may travel")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read and check a value; raises `InvalidRecord` for anything that `to_bytes` would not have written."""
        if len(data) > MAX_RECORD_BYTES:
            raise InvalidRecord(f"{cls.__name__} of {len(data)} bytes: at most {MAX_RECORD_BYTES} are read")
        decoder = _decoders.get(cls)
        if decoder is None:
            decoder = _decoders[cls] = msgspec.json.Decoder(cls, dec_hook=_dec)
        try:
            value: Self = decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRecord(f"not a {cls.__name__}: {error}") from None
        return value


_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
