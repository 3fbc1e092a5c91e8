"""A reader of flatbuffers (https://flatbuffers.dev/internals) from outside: it takes the few fields that it is asked for, believes nothing,
and refuses what points outside the bytes or asks for more than they hold. What the fields mean is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from schemas.records import InvalidRecord

U8, I16, U16, I32, U32, I64 = (struct.Struct(f"<{form}") for form in "BhHiIq")
_PAIR = struct.Struct("<qq")


class Table:
    """One table; its fields are named by their number in the specification. A field that is not there reads as 0, None or empty.

    All methods raise `InvalidRecord` for what does not lie within the flatbuffer.
    """

    __slots__ = ("_at", "_flat", "_vtable", "_vtable_bytes")

    def __init__(self, flat: _Flat, at: int) -> None:
        self._flat, self._at = flat, at
        self._vtable = at - flat.number(I32, at)
        self._vtable_bytes = flat.number(U16, self._vtable)

    def number(self, field: int, form: struct.Struct) -> int:
        at = self._place(field)
        return 0 if at is None else self._flat.number(form, at)

    def table(self, field: int) -> Table | None:
        at = self._target(field)
        return None if at is None else Table(self._flat, at)

    def text(self, field: int) -> bytes:
        at = self._target(field)
        return b"" if at is None else self._flat.text(at)

    def tables(self, field: int, most: int, what: str) -> Iterator[Table]:
        """The tables of a vector, of which there may be at most so many; `what` they are, for the error."""
        at, count = self._vector(field, most, what)
        for place in range(at, at + 4 * count, 4):
            yield Table(self._flat, place + self._flat.number(U32, place))

    def pairs(self, field: int, most: int, what: str) -> list[tuple[int, int]]:
        """The structs of a vector, each of two whole numbers of 64 bits."""
        at, count = self._vector(field, most, what)
        return list(_PAIR.iter_unpack(self._flat.piece(at, count * _PAIR.size)))

    def count(self, field: int) -> int:
        """How many items a vector has."""
        at = self._target(field)
        return 0 if at is None else self._flat.number(U32, at)

    def _place(self, field: int) -> int | None:
        at = 4 + 2 * field
        offset = self._flat.number(U16, self._vtable + at) if at + 2 <= self._vtable_bytes else 0
        return self._at + offset if offset else None

    def _target(self, field: int) -> int | None:
        at = self._place(field)
        return None if at is None else at + self._flat.number(U32, at)

    def _vector(self, field: int, most: int, what: str) -> tuple[int, int]:
        at = self._target(field)
        if at is None:
            return 0, 0
        count = self._flat.number(U32, at)
        if count > most:
            raise InvalidRecord(f"Arrow metadata holds {count} {what}: expected at most {most}")
        return at + 4, count


def root(data: bytes) -> Table:
    """The table that a flatbuffer begins with; raises `InvalidRecord`."""
    flat = _Flat(data)
    return Table(flat, flat.number(U32, 0))


class _Flat:
    """The bytes, and how much text may still be read from them: offsets may share a text, and to copy it for each would multiply it."""

    __slots__ = ("_data", "_text_left")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._text_left = len(data)

    def number(self, form: struct.Struct, at: int) -> int:
        if not 0 <= at <= len(self._data) - form.size:
            raise self._outside(at)
        value: int = form.unpack_from(self._data, at)[0]
        return value

    def piece(self, at: int, size: int) -> bytes:
        if not 0 <= at <= len(self._data) - size:
            raise self._outside(at)
        return self._data[at : at + size]

    def text(self, at: int) -> bytes:
        size = self.number(U32, at)
        self._text_left -= size
        if self._text_left < 0:
            raise InvalidRecord(f"Arrow metadata of {len(self._data)} bytes holds more text than that: it repeats itself, or is damaged")
        return self.piece(at + 4, size)

    def _outside(self, at: int) -> InvalidRecord:
        return InvalidRecord(f"Arrow metadata of {len(self._data)} bytes points to byte {at}, outside itself: it is damaged")
