"""A request batch as bytes: one Kafka record's value is one Arrow IPC stream of a schema and exactly one record batch.

One batch a record, because a record is what is named, retried, dead-lettered and answered; several batches are several records. A stream,
not a bare batch, because every Arrow library writes and reads one, without an agreement on schemas outside of it. Nothing in the body is
compressed: Kafka compresses records, so it would save nothing, and what is not decompressed cannot grow (`schemas.arrow_bounds`).

A column is an input: plain values are one a row, `arrow.fixed_shape_tensor` is one tensor a row, nullable or not. The schema's metadata
holds `model_name`, and may hold `model_version`, `id`, `deadline_ms` and `parameters` (a JSON object), named as in the Open Inference
Protocol. Keys that this version does not know are passed over.

This module imports pyarrow, which takes a while: modules of a command line import it where they use it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from schemas.arrow_bounds import Column, Head, check_batch, head_end, not_a_batch, read_head
from schemas.records import MAX_MESSAGE, InvalidRecord, shown
from schemas.tensors import DATATYPES, MAX_DEADLINE_MS, MAX_REQUEST_BYTES, Parameter, RequestBatch, Tensor, datatype, invalid, row_faults

_SCHEMAS_KEPT = 64
_TYPES: dict[str, pa.DataType] = {name: pa.binary() if name == "BYTES" else pa.from_numpy_dtype(dtype) for name, dtype in DATATYPES.items()}
_parameters = msgspec.json.Decoder(dict[str, bool | int | float | str])


def encode(batch: RequestBatch) -> bytes:
    """Write a batch; what is read from it equals the batch, bad rows and their reasons included.

    Raises
    ------
    InvalidRecord
        For a batch that is too large, and for one read from nulls: there is no value to write for those rows.
    """
    if unwritable := batch.bad.keys() - row_faults(batch.inputs).keys():
        row = min(unwritable)
        raise invalid("bad", f"{{{row}: {batch.bad[row]!r}}}", "expected rows with values; send the others in a batch without it")
    size = sum(map(_size, batch.inputs.values()))
    if size > MAX_REQUEST_BYTES:
        raise _too_large(size)
    columns = {name: _array(column) for name, column in batch.inputs.items()}
    metadata: dict[str, str | bytes] = {"model_name": batch.model_name}
    if batch.model_version:
        metadata["model_version"] = batch.model_version
    if batch.id:
        metadata["id"] = batch.id
    if batch.deadline_ms is not None:
        metadata["deadline_ms"] = str(batch.deadline_ms)
    if batch.parameters:
        metadata["parameters"] = msgspec.json.encode(batch.parameters)
    schema = pa.schema([pa.field(name, array.type, nullable=False) for name, array in columns.items()], metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    if len(data) > MAX_REQUEST_BYTES:
        raise _too_large(len(data))
    read_head(data[: head_end(data)])  # metadata that is too large
    return data


def decode(data: bytes | None) -> RequestBatch:
    """Read a batch and check all of it. Arrays are views into `data` wherever their bytes are laid out as numpy has them: not for BOOL,
    which takes a bit there, nor for BYTES.

    Raises
    ------
    InvalidRecord
        For anything else than the bytes of a valid batch; also for None, the value of a Kafka tombstone.
    """
    if data is None:
        raise not_a_batch("the record has no value (a tombstone)")
    if len(data) > MAX_REQUEST_BYTES:
        raise _too_large(len(data))
    end = head_end(data)
    head, fields, schema = _schema(data[:end])
    check_batch(data, end, head.columns)
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(data).slice(end), schema)
        batch.validate(full=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _refused(error) from None
    bad: dict[int, str] = {}
    inputs: dict[str, Tensor] = {}
    for column, array in zip(head.columns, batch.columns, strict=True):
        inputs[column.name], nulls = _column(column, array)
        for row in nulls:
            bad.setdefault(row, f"null in the input {shown(column.name)}: expected a value")
    return RequestBatch(inputs=inputs, bad=bad, **fields)


@functools.lru_cache(maxsize=_SCHEMAS_KEPT)
def _schema(data: bytes) -> tuple[Head, dict[str, Any], pa.Schema]:
    """What the message of a schema says. Kept, because a producer sends the same one with every batch."""
    head = read_head(data)
    fields = _fields(head.metadata)
    try:
        return head, fields, pa.ipc.read_schema(pa.py_buffer(data))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _refused(error) from None


def _fields(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("model_name", "model_version", "id"):
        raw = metadata.get(name.encode(), b"")
        try:
            found[name] = raw.decode()
        except UnicodeDecodeError:
            raise invalid(name, shown(raw), "expected UTF-8") from None
    deadline = metadata.get(b"deadline_ms")
    if deadline is not None:
        if not (deadline.isdigit() and len(deadline) <= len(str(MAX_DEADLINE_MS))):
            raise invalid("deadline_ms", shown(deadline), f"expected whole milliseconds from 1 to {MAX_DEADLINE_MS}")
        found["deadline_ms"] = int(deadline)
    raw = metadata.get(b"parameters", b"{}")
    try:
        parameters: dict[str, Parameter] = _parameters.decode(raw)
    except (ValueError, RecursionError) as error:
        raise invalid("parameters", shown(raw), f"expected a JSON object of plain values ({str(error)[:MAX_MESSAGE]})") from None
    return {**found, "parameters": parameters}


def _column(column: Column, array: pa.Array) -> tuple[Tensor, list[int]]:
    """The values of a column, and the rows that hold a null. All buffers are long enough: `check_batch` has seen them."""
    rows, buffers = len(array), array.buffers()
    nulls = _null_rows(buffers[0], rows, rows) if array.null_count else []
    if column.datatype == "BYTES":
        plain = array.view(pa.binary() if column.offset_bits == 32 else pa.large_binary())
        values: Tensor = plain.to_numpy(zero_copy_only=False)
        values[nulls] = b""
        return values, nulls
    shape = (rows, *column.shape)
    length = math.prod(shape)
    if column.shape and array.storage.values.null_count:
        nulls += _null_rows(buffers[1], length, rows)
    values = _bits(buffers[-1], length) if column.datatype == "BOOL" else np.frombuffer(buffers[-1], DATATYPES[column.datatype], length)
    values = values.reshape(shape)
    return values.transpose(0, *(1 + axis for axis in column.permutation)) if column.permutation else values, nulls


def _null_rows(bitmap: pa.Buffer, length: int, rows: int) -> list[int]:
    found: list[int] = np.flatnonzero(~_bits(bitmap, length).reshape(rows, -1).all(axis=1)).tolist()
    return found


def _bits(buffer: pa.Buffer, count: int) -> Tensor:
    packed = np.frombuffer(buffer, np.uint8, -(-count // 8))
    return np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)


def _array(column: Tensor) -> pa.Array:
    kind = _TYPES[datatype(column)]
    values = pa.array(column.tolist() if column.dtype.kind == "O" else np.ascontiguousarray(column).reshape(-1), type=kind)
    if column.ndim == 1:
        return values
    storage = pa.FixedSizeListArray.from_arrays(values, math.prod(column.shape[1:]))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, column.shape[1:]), storage)


def _size(column: Tensor) -> int:
    """The bytes that the values of a column take on the wire."""
    if column.dtype.kind == "O":
        return sum(map(len, column))
    return column.size // 8 if column.dtype.kind == "b" else column.nbytes


def _too_large(size: int) -> InvalidRecord:
    return InvalidRecord(f"RequestBatch of {size} bytes: at most {MAX_REQUEST_BYTES} may travel; send its rows in several batches")


def _refused(error: Exception) -> InvalidRecord:
    return not_a_batch(f"Arrow does not read it: {str(error)[:MAX_MESSAGE]}")
