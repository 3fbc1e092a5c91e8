"""Harnesses on request batches: Arrow IPC streams from anybody, as they come, and with what is inside of them changed while their frame
stays whole."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from infra.faults.fuzz.harness import GAP, harness, must, parts, refusing
from schemas.arrow_bounds import head_end
from schemas.arrow_ipc import decode, encode
from schemas.records import InvalidRecord
from schemas.tensors import DATATYPES, MAX_DEADLINE_MS, MAX_DIMS, MAX_ELEMENTS, MAX_INPUTS, MAX_ROWS, MAX_VALUE_BYTES, RequestBatch, Tensor

NAME, DETAILS = b"ARROW:extension:name", b"ARROW:extension:metadata"
TENSOR = b"arrow.fixed_shape_tensor"
VALID = 6  # streams that are whole
_PATCH = struct.Struct("<HI")


def stream(columns: dict[Any, pa.Array], metadata: dict[bytes, bytes], *, batches: int = 1, **options: Any) -> bytes:
    """A stream by plain Arrow; the name of a column may be a whole field."""
    fields = [name if isinstance(name, pa.Field) else pa.field(name, array.type) for name, array in columns.items()]
    schema = pa.schema(fields, metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(batches):
            writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def tensor_field(name: str, array: pa.Array, details: bytes) -> pa.Field:
    return pa.field(name, array.type, metadata={NAME: TENSOR, DETAILS: details})


def _lists(values: pa.Array, size: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, size)


@functools.cache
def streams() -> list[bytes]:
    """Streams of many kinds; the first `VALID` of them are."""
    model = {b"model_name": b"resnet"}
    plain = pa.array([1.5, None, math.nan, math.inf], pa.float32())
    texts = pa.array(["a", "é", None, "x" * 40])
    pixels = _lists(pa.array(np.arange(4 * 6, dtype=np.uint8)), 6)
    bits = _lists(pa.array([True, None, False, True] * 3), 3)
    full = RequestBatch(
        model_name="m",
        model_version="2",
        id="call-7",
        deadline_ms=250,
        parameters={"top": 5, "raw": True, "share": 0.25, "lang": "de"},
        inputs={
            name: np.zeros((3, 2), dtype) if name != "BYTES" else np.array([b"", b"ab", b"abc"], object)
            for name, dtype in DATATYPES.items()
        },
    )
    found = [
        encode(full),
        encode(RequestBatch(model_name="m", inputs={"x": np.arange(6.0).reshape(1, 1, 2, 3)})),
        stream({"x": plain, "text": texts, "wide": texts.cast(pa.large_string()), "bits": pa.array([True, None, False, True])}, model),
        stream({tensor_field("x", pixels, b'{"shape":[2,3],"permutation":[1,0],"dim_names":["h","w"]}'): pixels}, model),
        stream({tensor_field("x", bits, b'{"shape":[3]}'): bits}, {**model, b"deadline_ms": b"40", b"parameters": b'{"a":1}'}),
        stream({"x": pa.array([b"x" * (MAX_VALUE_BYTES + 1), b"y"])}, model),
    ]
    odd = {
        "code": pa.array(["a", "b"]).dictionary_encode(),
        "list": pa.array([[1], [2]]),
        "struct": pa.array([{"a": 1}, {"a": 2}]),
        "view": pa.array(["a", "b"], pa.string_view()),
    }
    zeros = pa.array(np.zeros(100_000, np.uint8))
    found += [
        *(stream({name: array}, model) for name, array in odd.items()),
        *(
            stream({tensor_field("x", lists, b'{"shape":[25000]}'): lists}, model, compression=codec)
            for codec in ("lz4", "zstd")
            for lists in [_lists(zeros, 25_000)]
        ),
        stream({"x": plain}, model, batches=3),
        stream({"x": plain}, model, use_legacy_format=True),
        stream({"x": plain}, model, metadata_version=pa.ipc.MetadataVersion.V4),
        found[0][:-8],
        b"ARROW1\0\0",
        b"",
    ]
    return found


def law(data: bytes) -> None:
    """What is read obeys every bound, equals what Arrow reads, and is read again as it was once it is written; else it is refused."""
    with refusing(InvalidRecord):
        batch = decode(data)
        must(1 <= len(batch.inputs) <= MAX_INPUTS, f"{len(batch.inputs)} inputs")
        must(1 <= batch.rows <= MAX_ROWS, f"{batch.rows} rows")
        must(batch.deadline_ms is None or 1 <= batch.deadline_ms <= MAX_DEADLINE_MS, f"a deadline of {batch.deadline_ms} ms")
        must(sum(column.size for column in batch.inputs.values()) <= MAX_ELEMENTS, "too many elements")
        must(sorted([*batch.bad, *batch.good.tolist()]) == list(range(batch.rows)), "a row that is neither good nor bad")
        oracle = pa.ipc.open_stream(data).read_next_batch()
        for name, column in batch.inputs.items():
            must(
                column.dtype in DATATYPES.values() and len(column) == batch.rows and column.ndim <= 1 + MAX_DIMS, f"an input {column.dtype}"
            )
            _must_equal(column[batch.good], oracle.column(name).take(pa.array(batch.good)))
        written = encode(batch)  # refused if it holds nulls
        must(encode(decode(written)) == written, "read again it differs")


def _must_equal(found: Tensor, oracle: pa.Array) -> None:
    if found.dtype.kind == "O":
        items = [item if isinstance(item, bytes) else item.encode() for item in oracle.to_pylist()]
        must(found.tolist() == items and all(len(item) <= MAX_VALUE_BYTES for item in items), "bytes that Arrow reads as others")
        return
    must(found.dtype.kind != "f" or not np.isnan(found).any(), "NaN in a good row")
    if isinstance(oracle, pa.FixedShapeTensorArray):
        expected = np.array(oracle.storage.to_pylist(), found.dtype).reshape(len(oracle), *oracle.type.shape)
        if oracle.type.permutation:
            expected = expected.transpose(0, *(1 + axis for axis in oracle.type.permutation))
    else:
        expected = np.array(oracle.to_pylist(), found.dtype)
    must(found.shape == expected.shape and (found == expected).all(), "numbers that Arrow reads as others")


@harness("request-batch", streams, cost=0.3)
def request_batch(data: bytes) -> None:
    law(data)


@functools.cache
def _split(number: int) -> tuple[bytes, bytes, bytes]:
    """A valid stream as its two messages without the body, the body, and the mark of the end."""
    data = streams()[number % VALID]
    start = head_end(data, head_end(data))
    return data[:start], data[start:-8], data[-8:]


def _bodies() -> Iterable[bytes]:
    yield from (bytes([number]) + _split(number)[1] for number in range(VALID - 1))  # the last one is long
    yield b"\2" + b"\xff\xff\xff\x7f" * 40


@harness("request-body", _bodies, cost=0.8)
def request_body(data: bytes) -> None:
    """Values, bitmaps and offsets changed, under metadata that is whole."""
    head, body, end = _split(data[0] if data else 0)
    law(head + data[1 : 1 + len(body)] + body[max(0, len(data) - 1) :] + end)


@harness(
    "request-numbers",
    [bytes([number]) + _PATCH.pack(at, value) for number in range(VALID) for at, value in ((60, 7), (150, 1 << 31), (700, 0), (1200, 16))],
    cost=0.4,
)
def request_numbers(data: bytes) -> None:
    """Numbers of the metadata changed in place (two bytes say where, four what), so that lengths, offsets and tables lie."""
    head, body, end = _split(data[0] if data else 0)
    changed = bytearray(head)
    for at, value in _PATCH.iter_unpack(data[1:][: min(8, max(0, len(data) - 1) // _PATCH.size) * _PATCH.size]):
        place = at * 2 % (len(changed) - 3)
        changed[place : place + 4] = value.to_bytes(4, "little")
    law(bytes(changed) + body + end)


@harness(
    "request-metadata",
    [
        GAP.join((b'{"shape":[2,3]}', b'{"a":1,"b":true,"c":"x","d":0.5}', b"40", b"resnet", b"x")),
        GAP.join((b'{"shape":[6],"permutation":[0],"dim_names":["a"]}', b"{}", b"86400000", b"m", b"x/y")),
        GAP.join((b'{"shape":[1,2,3],"permutation":[2,1,0]}', b'{"a":9223372036854775807}', b"1", b"m", b"x")),
        GAP.join((b'{"shape":[2,3],"permutation":[4294967296,1]}', b'{"a":{}}', b"-1", b"\xff", b"\0")),
        GAP.join((b"[" * 4000, b"[" * 4000, b"9" * 400, b"m" * 200, b"x" * 200)),
    ],
    cost=0.25,
)
def request_metadata(data: bytes) -> None:
    """Keys and values changed, in a stream that Arrow itself writes."""
    tensor, parameters, deadline, model, name = parts(data, 5)
    values = _lists(pa.array(np.arange(12, dtype=np.int16)), 6)
    field = tensor_field(name.decode(errors="replace"), values, tensor)
    keys = {b"model_name": model, b"parameters": parameters, b"deadline_ms": deadline, b"id": model[:7]}
    law(stream({field: values}, {key: value for key, value in keys.items() if value}))
