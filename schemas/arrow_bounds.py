"""The bounds of Arrow IPC bytes, checked before Arrow reads them: one stream of one schema and one record batch, in which every count is
small, every buffer lies within the body and is long enough, and nothing is compressed. What the buffers hold is not looked at here.

Arrow's reader checks that its metadata (a flatbuffer) is whole, but it believes lengths that ask for memory: a compressed buffer says for
itself how large it will be, and one text can be repeated by every pair of keys and values. Some of its versions (23.0 was seen to) parse a
tensor's JSON by recursion without a limit, which ends the process. So those fields are read first, as format/Message.fbs and
format/Schema.fbs number them, and only what a request batch needs is let through; the rest of Arrow's reader is then out of reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from schemas.flatbuffer import I16, I32, I64, U8, Table, root
from schemas.records import InvalidRecord, shown
from schemas.tensors import DATATYPES, MAX_DIMS, MAX_ELEMENTS, MAX_INPUTS, check_names, check_shape, invalid

MAX_METADATA_BYTES = 64 << 10  # of one message, without its body
MAX_PAIRS = 64  # of keys and values, in the schema and in each field
MAX_TENSOR_JSON = 4096
TENSOR = "arrow.fixed_shape_tensor"

_CONTINUATION, _END = b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0"
_V5, _SCHEMA, _RECORD_BATCH = 4, 1, 3
_VERSION, _KIND, _HEADER, _BODY_BYTES, _MESSAGE_KEYS = range(5)  # the fields of a Message
_ENDIANNESS, _FIELDS, _SCHEMA_KEYS = range(3)  # of a Schema
_NAME, _, _TYPE, _DETAILS, _DICTIONARY, _CHILDREN, _FIELD_KEYS = range(7)  # of a Field
_ROWS, _ARRAYS, _BUFFERS, _COMPRESSION, _VIEWS = range(5)  # of a RecordBatch
_MESSAGES = ["nothing", "a schema", "a dictionary", "a record batch", "a tensor", "a sparse tensor"]
_TYPES = [
    "nothing", "null", "int", "float", "binary", "utf8", "bool", "decimal", "date", "time", "timestamp", "interval", "list", "struct",
    "union", "fixed-size binary", "fixed-size list", "map", "duration", "large binary", "large utf8", "large list", "run-end encoded",
    "binary view", "utf8 view", "list view", "large list view",
]  # fmt: skip
_INT, _FLOAT, _BOOL, _LIST = (_TYPES.index(name) for name in ("int", "float", "bool", "fixed-size list"))
_OFFSET_BITS = {_TYPES.index(name): bits for name, bits in (("binary", 32), ("utf8", 32), ("large binary", 64), ("large utf8", 64))}


class Column(NamedTuple):
    """How one input is laid out: its datatype, the shape of one row as it lies there (empty: a scalar), which of those dimensions stands
    at each place of the tensor that is meant (empty: as they lie), and for BYTES the bits of an offset."""

    name: str
    datatype: str
    shape: tuple[int, ...] = ()
    permutation: tuple[int, ...] = ()
    offset_bits: int = 0

    def arrays(self, rows: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The arrays that hold so many rows: the length of each, and the least bytes of each of its buffers after the validity bitmap."""
        if self.datatype == "BYTES":
            yield rows, ((rows + 1) * self.offset_bits // 8, 0)
            return
        if self.shape:
            yield rows, ()
        length = rows * math.prod(self.shape)
        yield length, (_bitmap_bytes(length) if self.datatype == "BOOL" else length * DATATYPES[self.datatype].itemsize,)


class Head(NamedTuple):
    """What the schema says: the columns, and the keys and values beside them."""

    columns: tuple[Column, ...]
    metadata: dict[bytes, bytes]


class _TensorJson(msgspec.Struct, frozen=True):
    """What the metadata of `arrow.fixed_shape_tensor` says."""

    shape: Annotated[list[Annotated[int, Meta(ge=1, le=MAX_ELEMENTS)]], Meta(min_length=1, max_length=MAX_DIMS)]
    permutation: Annotated[list[int], Meta(max_length=MAX_DIMS)] | None = None


_tensor_json = msgspec.json.Decoder(_TensorJson)


def head_end(data: bytes, at: int = 0) -> int:
    """Where the metadata of the message that begins at a byte ends, and its body begins; raises `InvalidRecord` if none begins there."""
    if data[at : at + 4] != _CONTINUATION or len(data) < at + 8:
        found = f"{data[at : at + 8]!r} at byte {at}" if len(data) > at else f"nothing after byte {at}"
        raise not_a_batch(f"{found}: expected a message of an Arrow IPC stream (pyarrow.ipc.new_stream writes one)")
    size: int = I32.unpack_from(data, at + 4)[0]
    if not 8 <= size <= MAX_METADATA_BYTES or size % 8:
        raise not_a_batch(f"metadata of {size} bytes at byte {at}: expected a multiple of 8 from 8 to {MAX_METADATA_BYTES}")
    if at + 8 + size > len(data):
        raise not_a_batch(f"it ends within the metadata that begins at byte {at}: {len(data)} bytes are not all of it")
    return at + 8 + size


def read_head(data: bytes) -> Head:
    """Read the schema from its message alone (`data[:head_end(data)]`); raises `InvalidRecord` for what a request batch does not need."""
    body_bytes, schema = _message(data, _SCHEMA)
    if body_bytes:
        raise not_a_batch(f"its schema has a body of {body_bytes} bytes: expected none")
    if schema.number(_ENDIANNESS, I16):
        raise not_a_batch("it is big-endian: expected little-endian values")
    columns = tuple(map(_column, schema.tables(_FIELDS, MAX_INPUTS, "columns")))
    check_names(column.name for column in columns)
    return Head(columns, _keys(schema, _SCHEMA_KEYS))


def check_batch(data: bytes, at: int, columns: tuple[Column, ...]) -> int:
    """Check the record batch that begins at a byte, and that nothing follows it; returns its rows, raises `InvalidRecord`."""
    start = head_end(data, at)
    body_bytes, batch = _message(data[at:start], _RECORD_BATCH)
    left = len(data) - start
    if not 0 <= body_bytes <= left or body_bytes % 8:
        raise not_a_batch(f"a body of {body_bytes} bytes: expected a multiple of 8, and at most the {left} that there are")
    if left != body_bytes and data[start + body_bytes :] != _END:
        raise not_a_batch(f"{left - body_bytes} bytes follow its record batch: expected one batch a stream, and one stream a record")
    if batch.table(_COMPRESSION) is not None:
        raise not_a_batch("its buffers are compressed: write them plain (IpcWriteOptions(compression=None)), Kafka compresses records")
    rows, elements = batch.number(_ROWS, I64), 0
    for column in columns:
        elements = check_shape(column.name, rows, column.shape, elements)
    wanted = [(column, length, least) for column in columns for length, least in column.arrays(rows)]
    nodes, buffers = batch.pairs(_ARRAYS, 2 * MAX_INPUTS, "arrays"), batch.pairs(_BUFFERS, 3 * MAX_INPUTS, "buffers")
    if len(nodes) != len(wanted) or len(buffers) != sum(1 + len(least) for _, _, least in wanted) or batch.count(_VIEWS):
        raise not_a_batch(f"a record batch of {len(nodes)} arrays in {len(buffers)} buffers does not fit its schema")
    places, end = iter(buffers), 0
    for (column, length, least), (has, nulls) in zip(wanted, nodes, strict=True):
        if has != length or not 0 <= nulls <= length:
            raise invalid(_field(column.name), f"an array of {has} elements, {nulls} of them null", f"expected {length} elements")
        for number, bytes_ in enumerate((_bitmap_bytes(length), *least)):
            offset, size = next(places)
            if size or number or nulls:  # without nulls there may be no bitmap
                end = _check_buffer(column.name, offset, size, bytes_, end, body_bytes)
    return rows


def not_a_batch(why: str) -> InvalidRecord:
    """The error that some bytes are no request batch."""
    return InvalidRecord(f"not a RequestBatch: {why}")


def _check_buffer(name: str, offset: int, size: int, least: int, start: int, end: int) -> int:
    """Where a buffer ends. They come one after the other, so that the same bytes cannot be read as several large columns."""
    if size < least or offset % 8 or not 0 <= offset <= end - size or (size and offset < start):
        raise invalid(
            _field(name),
            f"in a buffer of {size} bytes at byte {offset} of the body",
            f"expected at least {least}, from a multiple of 8 that is not before {start}, and not beyond {end}",
        )
    return max(start, offset + size)


def _message(data: bytes, kind: int) -> tuple[int, Table]:
    """The length of a message's body, and its header, which must be of a kind."""
    message = root(data[8:])
    if (version := message.number(_VERSION, I16)) != _V5:
        raise not_a_batch(f"metadata of the version V{version + 1}: expected V5, which Arrow writes since 1.0")
    found, header = message.number(_KIND, U8), message.table(_HEADER)
    if found != kind or header is None:
        raise not_a_batch(f"it holds {_named(_MESSAGES, found)}: expected {_MESSAGES[kind]}, as a stream holds a schema and then one batch")
    _keys(message, _MESSAGE_KEYS)
    return message.number(_BODY_BYTES, I64), header


def _column(field: Table) -> Column:
    raw = field.text(_NAME)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise invalid("inputs: a name", shown(raw), "expected UTF-8") from None
    keys, kind, details = _keys(field, _FIELD_KEYS), field.number(_TYPE, U8), field.table(_DETAILS)
    extension = keys.get(b"ARROW:extension:name")
    children = field.count(_CHILDREN)
    if field.table(_DICTIONARY) is not None:
        raise invalid(_field(name), "encoded by a dictionary", "expected plain values")
    if extension is None and kind != _LIST and not children:
        return Column(name, _datatype(name, kind, details), offset_bits=_OFFSET_BITS.get(kind, 0))
    if extension != TENSOR.encode() or kind != _LIST or details is None or children != 1:
        extended = "" if extension is None else f", extended to {shown(extension)}"
        raise invalid(_field(name), f"of the type {_named(_TYPES, kind)}{extended}", f"expected {_EXPECTED}")
    (values,) = field.tables(_CHILDREN, 1, "children")
    return _tensor(name, details.number(0, I32), values, keys.get(b"ARROW:extension:metadata", b""))


def _tensor(name: str, size: int, values: Table, text: bytes) -> Column:
    values.text(_NAME)
    kind, extended = values.number(_TYPE, U8), b"ARROW:extension:name" in _keys(values, _FIELD_KEYS)
    if kind in _OFFSET_BITS or extended or values.table(_DICTIONARY) is not None or values.count(_CHILDREN):
        raise invalid(_field(name), f"a tensor of {_named(_TYPES, kind)}, encoded, extended or nested", "expected plain numbers or bool")
    if len(text) > MAX_TENSOR_JSON:
        raise invalid(_field(name), f"a tensor whose metadata has {len(text)} bytes", f"expected at most {MAX_TENSOR_JSON}")
    try:
        tensor = _tensor_json.decode(text)
    except (ValueError, RecursionError) as error:
        raise invalid(_field(name), f"a tensor of the metadata {shown(text)}", str(error)[:200]) from None
    permutation = tuple(tensor.permutation or ())
    if math.prod(tensor.shape) != size:
        raise invalid(_field(name), f"a tensor of shape {tensor.shape} in lists of {size}", f"expected lists of {math.prod(tensor.shape)}")
    if permutation and sorted(permutation) != list(range(len(tensor.shape))):
        raise invalid(
            _field(name), f"a tensor of shape {tensor.shape}, permuted by {shown(list(permutation))}", "expected each dimension once"
        )
    if any(permutation[to] != at for at, to in enumerate(permutation)):
        # pyarrow 26 writes such tensors the other way round than the format says, and misreads its own: better none than a wrong one.
        raise invalid(
            _field(name),
            f"a tensor permuted by {shown(list(permutation))}, which writers understand in two ways",
            "expected it in row-major order (numpy.ascontiguousarray)",
        )
    return Column(name, _datatype(name, kind, values.table(_DETAILS)), tuple(tensor.shape), permutation)


_EXPECTED = f"bool, int, float, binary, utf8 or {TENSOR}"


def _datatype(name: str, kind: int, details: Table | None) -> str:
    if kind in _OFFSET_BITS:
        return "BYTES"
    if kind == _BOOL:
        return "BOOL"
    if kind == _INT and details is not None and (bits := details.number(0, I32)) in (8, 16, 32, 64):
        return f"{'INT' if details.number(1, U8) else 'UINT'}{bits}"
    if kind == _FLOAT and details is not None and 0 <= (precision := details.number(0, I16)) <= 2:
        return f"FP{16 << precision}"
    raise invalid(_field(name), f"of the type {_named(_TYPES, kind)}", f"expected {_EXPECTED}")


def _keys(table: Table, slot: int) -> dict[bytes, bytes]:
    """Keys and values; all of them are read, also where nobody asks for them, since Arrow's reader copies them all."""
    found: dict[bytes, bytes] = {}
    for pair in table.tables(slot, MAX_PAIRS, "keys and values"):
        key = pair.text(0)
        if key in found:
            raise not_a_batch(f"its metadata gives the key {shown(key)} twice")
        found[key] = pair.text(1)
    return found


def _field(name: str) -> str:
    return f"inputs[{shown(name)}]"


def _named(names: list[str], number: int) -> str:
    return names[number] if number < len(names) else f"something unknown ({number})"


def _bitmap_bytes(length: int) -> int:
    return -(-length // 8)
