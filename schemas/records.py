"""The base of every value on the wire: a frozen struct that is checked when it is built as well as when it is read.

msgspec checks types and bounds only while decoding; a wrong value built in our own code would travel. `Record` closes that gap:
every field is checked against its own annotation on construction, floats must be finite, times in UTC, and strings hold no NUL
(databases refuse it) and no lone surrogate (UTF-8 has none), so what could not be read back is never written.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self, get_type_hints

import msgspec
from msgspec.structs import astuple, force_setattr

MAX_RECORD_BYTES = 1 << 20  # a JSON value larger than this is refused before it is parsed
MAX_MESSAGE = 300  # characters of a parser's message, which may repeat what it read


class InvalidRecord(ValueError):
    """A value that may not travel; the message names the struct, the field, the value and what was expected."""


class Json:
    """Base of nested values that travel as one JSON-encoded string, because Connect sinks take no nested fields.

    A subclass gives `to_json() -> str` and `from_json(str) -> Self`; it is immutable and has checked itself when it was built.
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
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_twins: dict[type, type[msgspec.Struct]] = {}


def text_fault(text: str) -> str | None:
    """Why a string may not travel, or None if it may."""
    if "\0" in text:
        return "holds a NUL character: databases refuse it, so it may not travel"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair: expected text that UTF-8 can encode"
    return None


def shown(value: object) -> str:
    """A value as error messages show it: its `repr`, cut short, also where it has none."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # a whole number of more digits than Python prints
        return f"a huge {type(value).__name__}"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value on the wire.

    Whole numbers given for a field of floats become floats, so that what was built equals what is read back, byte for byte.

    Raises
    ------
    InvalidRecord
        When built (or read) with a field that its annotation forbids.
    """

    max_bytes: ClassVar[int] = MAX_RECORD_BYTES

    def __post_init__(self) -> None:
        kind = type(self)
        values = astuple(self)
        try:
            # One conversion of all fields, into a struct of the same annotations and no checks of its own.
            checked = astuple(msgspec.convert(values, _twins.get(kind) or _twin(kind), strict=True, dec_hook=_dec))
        except (ValueError, TypeError):
            raise InvalidRecord(_explain(kind, values)) from None
        for index, value in enumerate(values):
            if value is not checked[index] and not _same(value, checked[index]):
                if type(value) is not int or type(checked[index]) is not float:
                    raise InvalidRecord(_explain(kind, values))
                force_setattr(self, kind.__struct_fields__[index], checked[index])
            if isinstance(value, str):
                fault = None if value.isascii() and "\0" not in value else text_fault(value)
            elif isinstance(value, float):
                fault = None if math.isfinite(value) else f"is {value}: expected a finite number"
            elif isinstance(value, dt.datetime):
                fault = None if value.tzinfo is dt.UTC else f"is {value.isoformat()}: expected a time in UTC"
            elif isinstance(value, tuple):
                fault = next((fault for item in value if isinstance(item, str) and (fault := text_fault(item))), None)
            else:
                continue
            if fault:
                raise InvalidRecord(f"{kind.__name__}.{kind.__struct_fields__[index]} {fault}")
        self.check()

    def check(self) -> None:
        """What must hold between fields; subclasses raise `InvalidRecord`."""

    def to_bytes(self) -> bytes:
        """The value as plain JSON in UTF-8; raises `InvalidRecord` if it would be larger than its `max_bytes`."""
        data = _encoder.encode(self)
        if len(data) > self.max_bytes:
            raise InvalidRecord(f"{type(self).__name__} of {len(data)} bytes: at most {self.max_bytes} may travel")
        return data

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Self:
        """Read and check a value. Fields that this version does not know are passed over, as a newer writer may have added them.

        Raises
        ------
        InvalidRecord
            For anything else than the JSON of a valid value; also for None, the value of a Kafka tombstone.
        """
        if data is None:
            raise InvalidRecord(f"not a {cls.__name__}: the record has no value (a tombstone)")
        if len(data) > cls.max_bytes:
            raise InvalidRecord(f"{cls.__name__} of {len(data)} bytes: at most {cls.max_bytes} are read")
        decoder = _decoders.get(cls)
        if decoder is None:
            decoder = _decoders[cls] = msgspec.json.Decoder(cls, dec_hook=_dec)
        try:
            value: Self = decoder.decode(data)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"not a {cls.__name__}: {str(error)[:MAX_MESSAGE]}") from None
        return value


def _hints(kind: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(name, hints[name]) for name in kind.__struct_fields__]


def _twin(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A struct of the same annotations that msgspec reads from a tuple; kept, because msgspec keeps what it knows of a struct."""
    twin = _twins[kind] = msgspec.defstruct(kind.__name__, _hints(kind), array_like=True)
    return twin


def _same(value: object, checked: object) -> bool:
    """Whether a field is what msgspec made of it. Tuples are made anew; a string that stands for an enum or a time is not it."""
    if type(value) is not type(checked):
        return False
    if isinstance(value, tuple) and isinstance(checked, tuple):
        return all(map(_same, value, checked))
    return value is checked or value == checked


def _explain(kind: type[msgspec.Struct], values: Iterable[object]) -> str:
    """Which field is wrong, found one at a time."""
    for (name, hint), value in zip(_hints(kind), values, strict=True):
        try:
            checked = msgspec.convert(value, hint, strict=True, dec_hook=_dec)
        except (ValueError, TypeError) as error:
            return f"{kind.__name__}.{name} is {shown(value)}: {str(error)[:MAX_MESSAGE]}"
        if not _same(value, checked) and not (type(value) is int and type(checked) is float):
            return f"{kind.__name__}.{name} is {shown(value)}, a `{type(value).__name__}`: expected a `{type(checked).__name__}`"
    return f"{kind.__name__} is not valid"
