"""What Arrow's reader never gets to see: bytes that ask for memory, reach outside themselves, or hold more of the format than a batch
needs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from schemas.arrow_bounds import check_batch, head_end, read_head
from schemas.arrow_ipc import decode
from schemas.flatbuffer import root
from schemas.records import InvalidRecord
from schemas.tensors import MAX_ELEMENTS, MAX_REQUEST_BYTES, MAX_ROWS

MODEL = {"model_name": "m"}
END = b"\xff\xff\xff\xff\0\0\0\0"
ONE = pa.array([1, 2], pa.int32())


def written(columns: list[tuple[Any, pa.Array]], metadata: dict[Any, Any] | None = None, batches: int = 1, **options: Any) -> bytes:
    """A stream by plain Arrow. A column's name may be a whole field."""
    fields = [name if isinstance(name, pa.Field) else pa.field(name, array.type) for name, array in columns]
    schema = pa.schema(fields, metadata=MODEL if metadata is None else metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(batches):
            writer.write_batch(pa.RecordBatch.from_arrays([array for _, array in columns], schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def extended(name: str, text: str | bytes, array: pa.Array) -> bytes:
    field = pa.field("x", array.type, metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": text})
    return written([(field, array)])


def tensor_of_extended() -> bytes:
    child = pa.field("item", pa.int8(), metadata={"ARROW:extension:name": "arrow.bool8", "ARROW:extension:metadata": ""})
    return tensor('{"shape": [4]}', pa.FixedSizeListArray.from_arrays(pa.array([0] * 8, pa.int8()), type=pa.list_(child, 4)))


def lists(rows: int = 2, size: int = 4, kind: pa.DataType | None = None) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array([0] * (rows * size), kind or pa.int8()), size)


def tensor(text: str | bytes, array: pa.Array | None = None) -> bytes:
    return extended("arrow.fixed_shape_tensor", text, lists() if array is None else array)


def file_format() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("x", pa.int32())], metadata=MODEL)) as writer:
        writer.write_batch(pa.record_batch([ONE], ["x"]))
    data: bytes = sink.getvalue().to_pybytes()
    return data


VALID = written([("x", ONE)])
SCHEMA_END = 8 + struct.unpack_from("<i", VALID, 4)[0]

REFUSED: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "a tombstone": (lambda: None, r"not a RequestBatch: the record has no value \(a tombstone\)"),
    "nothing": (
        lambda: b"",
        r"not a RequestBatch: nothing after byte 0: expected a message of an Arrow IPC stream \(pyarrow.ipc.new_stream",
    ),
    "JSON": (lambda: b'{"inputs": []}', r"not a RequestBatch: b'{\"inputs' at byte 0: expected a message of an Arrow IPC stream"),
    "a file": (file_format, r"not a RequestBatch: b'ARROW1"),
    "a mark alone": (lambda: VALID[:4], r"not a RequestBatch: b'\\xff\\xff\\xff\\xff' at byte 0"),
    "too many bytes": (lambda: bytes(MAX_REQUEST_BYTES + 1), r"RequestBatch of 8388609 bytes: at most 8388608 may travel"),
    "the format before 0.15": (lambda: written([("x", ONE)], use_legacy_format=True), r"not a RequestBatch: b'.*' at byte 0"),
    "version 4": (lambda: written([("x", ONE)], metadata_version=pa.ipc.MetadataVersion.V4), r"metadata of the version V4: expected V5"),
    "metadata without an end": (lambda: VALID[:4] + b"\xf8\xff\xff\x7f" + VALID[8:], r"metadata of 2147483640 bytes at byte 0: expected a"),
    "metadata of less than nothing": (lambda: VALID[:4] + b"\xf8\xff\xff\xff" + VALID[8:], r"metadata of -8 bytes at byte 0"),
    "metadata off the grid": (lambda: VALID[:4] + b"\x0c\0\0\0" + VALID[8:], r"metadata of 12 bytes at byte 0: expected a multiple of 8"),
    "too much metadata": (lambda: written([("x", ONE)], {**MODEL, "more": "x" * 70_000}), r"metadata of 70\d{3} bytes at byte 0"),
    "half a schema": (lambda: VALID[:60], r"it ends within the metadata that begins at byte 0: 60 bytes are not all of it"),
    "a schema alone": (lambda: VALID[:SCHEMA_END], r"not a RequestBatch: nothing after byte \d+"),
    "no batch": (lambda: written([("x", ONE)], batches=0), r"metadata of 0 bytes at byte \d+"),
    "two batches": (lambda: written([("x", ONE)], batches=2), r"\d+ bytes follow its record batch: expected one batch a stream"),
    "two streams": (lambda: VALID + VALID, r"\d+ bytes follow its record batch"),
    "half a body": (lambda: VALID[:-12], r"a body of 8 bytes: expected a multiple of 8, and at most the 4 that there are"),
    "a batch first": (
        lambda: VALID[SCHEMA_END:],
        r"it holds a record batch: expected a schema, as a stream holds a schema and then one batch",
    ),
    "a schema twice": (lambda: VALID[:SCHEMA_END] * 2, r"it holds a schema: expected a record batch"),
    "a dictionary": (
        lambda: written([("x", pa.array(["a", "b"]).dictionary_encode())]),
        r"RequestBatch.inputs\['x'\] is encoded by a dictionary: expected plain values",
    ),
    "no columns": (lambda: written([]), r"RequestBatch.inputs is empty: expected at least one input"),
    "too many columns": (lambda: written([(f"x{n}", ONE) for n in range(65)]), r"Arrow metadata holds 65 columns: expected at most 64"),
    "a name twice": (lambda: written([("x", ONE), ("x", ONE)]), r"RequestBatch.inputs is twice 'x': expected a different name for each"),
    "a name without letters": (lambda: written([("", ONE)]), r"RequestBatch.inputs: a name is '': expected text of 1 to 128 characters"),
    "a name with an escape": (lambda: written([("\x1b[2J", ONE)]), r"a name is '\\x1b\[2J': expected text without control characters"),
    "no rows": (
        lambda: written([("x", ONE[:0])]),
        r"RequestBatch.inputs\['x'\] is of 0 rows: expected 1 to 4096; send more in several batches",
    ),
    "too many rows": (lambda: written([("x", pa.array(range(MAX_ROWS + 1)))]), r"RequestBatch.inputs\['x'\] is of 4097 rows"),
    "too many elements": (
        lambda: tensor('{"shape": [4097]}', pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4096 * 4097, bool)), 4097)),
        rf"RequestBatch.inputs\['x'\] is the input that makes 16781312 elements: expected at most {MAX_ELEMENTS} in a batch",
    ),
    "no model": (lambda: written([("x", ONE)], {}), r"RequestBatch.model_name is '': expected text of 1 to 128 characters"),
    "a model of no text": (lambda: written([("x", ONE)], {"model_name": b"\xff"}), r"RequestBatch.model_name is b'\\xff': expected UTF-8"),
    "no time": (
        lambda: written([("x", ONE)], {**MODEL, "deadline_ms": "0"}),
        r"RequestBatch.deadline_ms is 0: expected whole milliseconds",
    ),
    "much time": (lambda: written([("x", ONE)], {**MODEL, "deadline_ms": "9" * 5000}), r"RequestBatch.deadline_ms is b'999"),
    "time past": (
        lambda: written([("x", ONE)], {**MODEL, "deadline_ms": "-5"}),
        r"deadline_ms is b'-5': expected whole milliseconds from 1 to",
    ),
    "parameters of parameters": (
        lambda: written([("x", ONE)], {**MODEL, "parameters": '{"a": {"b": 1}}'}),
        r"RequestBatch.parameters is b'{\"a\": {\"b\": 1}}': expected a JSON object of plain values \(Expected",
    ),
    "deep parameters": (lambda: written([("x", ONE)], {**MODEL, "parameters": "[" * 50_000}), r"RequestBatch.parameters is b'\[\["),
    "many keys": (
        lambda: written([("x", ONE)], {str(n): "" for n in range(65)}),
        r"Arrow metadata holds 65 keys and values: expected at most",
    ),
    "text that is none": (
        lambda: written([("x", pa.array([b"\xff", b""]).view(pa.string()))]),
        r"not a RequestBatch: Arrow does not read it: .*UTF8",
    ),
    "a list of no shape": (
        lambda: written([("x", lists())]),
        r"RequestBatch.inputs\['x'\] is of the type fixed-size list: expected bool, int, float, binary, utf8 or arrow.fixed_shape_tensor",
    ),
    "another extension": (
        lambda: written([("x", pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16))))]),
        r"RequestBatch.inputs\['x'\] is of the type fixed-size binary, extended to b'arrow.uuid': expected bool",
    ),
    "an extension of ours": (lambda: extended("arrow.bool8", "", ONE.cast(pa.int8())), r"of the type int, extended to b'arrow.bool8'"),
    "a pickled extension": (lambda: extended("arrow.py_extension_type", b"\x80\x05K\x01.", ONE), r"extended to b'arrow.py_extension_type'"),
    "a tensor of no list": (lambda: tensor('{"shape": [1]}', ONE), r"is of the type int, extended to b'arrow.fixed_shape_tensor'"),
    "a tensor of texts": (
        lambda: tensor('{"shape": [1]}', pa.array([["a"]], pa.list_(pa.string(), 1))),
        r"a tensor of utf8, encoded, extended or",
    ),
    "a tensor of lists": (
        lambda: tensor('{"shape": [1]}', pa.array([[[1]]], pa.list_(pa.list_(pa.int8(), 1), 1))),
        r"a tensor of fixed-size list",
    ),
    "a tensor of codes": (
        lambda: tensor('{"shape": [1]}', pa.FixedSizeListArray.from_arrays(pa.array([1]).dictionary_encode(), 1)),
        r"RequestBatch.inputs\['x'\] is a tensor of int, encoded, extended or nested",
    ),
    "a tensor of extended values": (tensor_of_extended, r"RequestBatch.inputs\['x'\] is a tensor of int, encoded, extended or nested"),
    "a tensor of no JSON": (lambda: tensor("shape"), r"RequestBatch.inputs\['x'\] is a tensor of the metadata b'shape': JSON is malformed"),
    "a tensor of no shape": (lambda: tensor("{}"), r"missing required field `shape`"),
    "a tensor of no dimensions": (lambda: tensor('{"shape": []}', lists(size=1)), r"Expected `array` of length >= 1"),
    "a tensor of many dimensions": (lambda: tensor('{"shape": [1,1,1,1,1,1,1,1,4]}'), r"Expected `array` of length <= 8"),
    "a tensor of holes": (lambda: tensor('{"shape": [0, 4]}'), r"Expected `int` >= 1"),
    "a tensor that wraps around": (lambda: tensor('{"shape": [4294967297, 4294967296]}'), r"Expected `int` <= 16777216"),
    "a tensor of another size": (lambda: tensor('{"shape": [2, 3]}'), r"is a tensor of shape \[2, 3\] in lists of 4: expected lists of 6"),
    "a tensor turned too far": (
        lambda: tensor('{"shape": [2, 2], "permutation": [0, 2]}'),
        r"RequestBatch.inputs\['x'\] is a tensor of shape \[2, 2\], permuted by \[0, 2\]: expected each dimension once",
    ),
    "a tensor turned in part": (
        lambda: tensor('{"shape": [2, 2], "permutation": [0]}'),
        r"permuted by \[0\]: expected each dimension once",
    ),
    "a deep tensor": (lambda: tensor('{"more":' + "[" * 4000), r"is a tensor of the metadata"),
    "a long tensor": (
        lambda: tensor("[" * 50_000),
        r"RequestBatch.inputs\['x'\] is a tensor whose metadata has 50000 bytes: expected at most 4096",
    ),
}
for _kind, _shown in (
    (pa.null(), "null"),
    (pa.decimal128(5, 2), "decimal"),
    (pa.date32(), "date"),
    (pa.time32("s"), "time"),
    (pa.timestamp("ms"), "timestamp"),
    (pa.duration("ms"), "duration"),
    (pa.month_day_nano_interval(), "interval"),
    (pa.binary(3), "fixed-size binary"),
    (pa.list_(pa.int8()), "list"),
    (pa.large_list(pa.int8()), "large list"),
    (pa.list_view(pa.int8()), "list view"),
    (pa.struct([("a", pa.int8())]), "struct"),
    (pa.map_(pa.string(), pa.int8()), "map"),
    (pa.sparse_union([pa.field("a", pa.int8())]), "union"),
    (pa.run_end_encoded(pa.int16(), pa.int8()), "run-end encoded"),
    (pa.string_view(), "utf8 view"),
    (pa.binary_view(), "binary view"),
):

    def _typed(kind: pa.DataType = _kind) -> bytes:
        return written([(pa.field("x", kind), None)], batches=0)

    REFUSED[f"the type {_shown}"] = (
        _typed,
        rf"RequestBatch.inputs\['x'\] is of the type {_shown}: expected bool, int, float, binary, utf8 or",
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_batch_is_refused_with_what_to_do(name: str) -> None:
    made, message = REFUSED[name]
    with pytest.raises(InvalidRecord, match=message):
        decode(made())


def test_what_is_refused_here_is_refused_for_its_own_fault() -> None:
    assert decode(VALID).inputs["x"].tolist() == [1, 2]
    assert decode(tensor('{"shape": [2, 2], "permutation": [1, 0], "dim_names": ["a", "b"]}')).inputs["x"].shape == (2, 2, 2)


# ---- bytes that ask for memory


def test_elements_of_all_columns_are_counted_before_any_is_unpacked() -> None:
    bits = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4096 * 2100, bool)), 2100)
    data = written([(pa.field(name, bits.type, metadata=shape_of(2100)), bits) for name in "xy"])
    end = head_end(data)
    with pytest.raises(InvalidRecord, match=r"RequestBatch.inputs\['y'\] is the input that makes 17203200 elements"):
        check_batch(data, end, read_head(data[:end]).columns)


@pytest.mark.parametrize(("codec", "large"), [("lz4", 64 << 20), ("zstd", 96 << 20)])
def test_a_decompression_bomb_is_refused_before_it_is_decompressed(codec: str, large: int) -> None:
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(large, np.uint8)), large // 8)
    bomb = written([(pa.field("x", zeros.type, metadata=shape_of(large // 8)), zeros)], compression=codec)
    del zeros
    assert len(bomb) < large // 200
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(
        InvalidRecord, match=r"not a RequestBatch: its buffers are compressed: write them plain \(IpcWriteOptions\(compression=None\)\)"
    ):
        decode(bomb)
    assert (pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()) == (before, peak)
    whole = pa.ipc.open_stream(bomb).read_next_batch()
    assert pa.total_allocated_bytes() - before >= large, "a reader without bounds fills memory with it"
    del whole


def shape_of(size: int) -> dict[str, str]:
    return {"ARROW:extension:name": "arrow.fixed_shape_tensor", "ARROW:extension:metadata": msgspec.json.encode({"shape": [size]}).decode()}


# ---- metadata that no honest writer writes: flatbuffers put together by hand


class Flat:
    """A flatbuffer being written: parents first, each node once, however many parents lead to it."""

    def __init__(self, node: Any) -> None:
        self.data = bytearray(8)
        queue, done = [(0, node)], {}
        self.places: dict[int, int] = {}
        while queue:
            place, node = queue.pop(0)
            if id(node) not in done:
                done[id(node)] = self._write(node, queue)
            struct.pack_into("<I", self.data, place, done[id(node)] - place)
        self._align()

    def _align(self, to: int = 8, before: int = 0) -> None:
        self.data.extend(bytes(-(len(self.data) + before) % to))

    def _write(self, node: Any, queue: list[tuple[int, Any]]) -> int:
        if isinstance(node, dict):  # a table: field number -> (form, number), or a node
            self._align()
            offsets = {field: 8 + 8 * index for index, field in enumerate(node)}
            fields = max(node, default=-1) + 1
            vtable = struct.pack(f"<HH{fields}H", 4 + 2 * fields, 8 + 8 * len(node), *(offsets.get(n, 0) for n in range(fields)))
            self.data += vtable
            self._align()
            at = len(self.data)
            self.data += struct.pack("<ii", len(vtable) + -len(vtable) % 8, 0) + bytes(8 * len(node))
            for field, value in node.items():
                if isinstance(value, tuple):
                    struct.pack_into(f"<{value[0]}", self.data, at + offsets[field], value[1])
                else:
                    queue.append((at + offsets[field], value))
            return at
        if isinstance(node, bytes):
            self._align(4)
            self.data += struct.pack("<I", len(node)) + node + b"\0"
            return len(self.data) - len(node) - 5
        if node and isinstance(node[0], tuple):  # structs of two numbers
            self._align(8, before=4)
            self.data += struct.pack("<I", len(node)) + b"".join(struct.pack("<qq", *pair) for pair in node)
            return len(self.data) - 4 - 16 * len(node)
        self._align(4)
        at = len(self.data)
        self.data += struct.pack("<I", len(node)) + bytes(4 * len(node))
        queue += [(at + 4 + 4 * index, item) for index, item in enumerate(node)]
        return at


def message(kind: int, header: dict[int, Any], body: bytes = b"", body_bytes: int | None = None, **more: Any) -> bytes:
    size = len(body) if body_bytes is None else body_bytes
    data = Flat({0: ("h", 4), 1: ("B", kind), 2: header, 3: ("q", size), **more.get("fields", {})}).data
    return b"\xff\xff\xff\xff" + struct.pack("<i", len(data)) + data + body


def int64(name: bytes = b"x", **more: Any) -> dict[int, Any]:
    return {0: name, 2: ("B", 2), 3: {0: ("i", 64), 1: ("B", 1)}, **more.get("fields", {})}


def pair(key: bytes, value: bytes) -> dict[int, Any]:
    return {0: key, 1: value}


KEYS = [pair(b"model_name", b"m")]
SCHEMA = message(1, {1: [int64()], 2: KEYS})
BODY = struct.pack("<qq", 5, 7)
BATCH = {0: ("q", 2), 1: [(2, 0)], 2: [(0, 0), (0, 16)]}


def batch(body: bytes = BODY, body_bytes: int | None = None, **changed: Any) -> bytes:
    names = {"rows": 0, "nodes": 1, "buffers": 2, "compression": 3, "views": 4}
    return SCHEMA + message(3, BATCH | {names[name]: value for name, value in changed.items()}, body, body_bytes)


def test_flatbuffers_put_together_by_hand_are_read_by_arrow_and_by_us() -> None:
    oracle = pa.ipc.open_stream(batch()).read_next_batch()
    oracle.validate(full=True)
    assert oracle.to_pydict() == {"x": [5, 7]}
    assert decode(batch()).inputs["x"].tolist() == [5, 7]
    assert decode(batch(b"\xfe\0\0\0\0\0\0\0" + BODY, nodes=[(2, 1)], buffers=[(0, 1), (8, 16)])).bad == {
        0: "null in the input 'x': expected a value"
    }


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: batch(rows=("q", 1 << 62)), r"is of 4611686018427387904 rows"),
        (lambda: batch(rows=("q", -1)), r"RequestBatch.inputs\['x'\] is of -1 rows"),
        (lambda: batch(nodes=[(3, 0)]), r"RequestBatch.inputs\['x'\] is an array of 3 elements, 0 of them null: expected 2 elements"),
        (lambda: batch(nodes=[(2, 3)]), r"an array of 2 elements, 3 of them null"),
        (lambda: batch(nodes=[(2, -1)]), r"an array of 2 elements, -1 of them null"),
        (lambda: batch(nodes=[(2, 0), (2, 0)]), r"a record batch of 2 arrays in 2 buffers does not fit its schema"),
        (lambda: batch(nodes=[(2, 0)] * 129), r"Arrow metadata holds 129 arrays: expected at most 128"),
        (lambda: batch(buffers=[(0, 16)]), r"a record batch of 1 arrays in 1 buffers does not fit its schema"),
        (lambda: batch(buffers=[(0, 0)] * 193), r"Arrow metadata holds 193 buffers: expected at most 192"),
        (lambda: batch(buffers=[(0, 0), (0, 15)]), r"is in a buffer of 15 bytes at byte 0 of the body: expected at least 16"),
        (lambda: batch(buffers=[(0, 0), (8, 16)]), r"in a buffer of 16 bytes at byte 8 of the body: .* not beyond 16"),
        (lambda: batch(buffers=[(0, 0), (-8, 16)]), r"in a buffer of 16 bytes at byte -8 of the body"),
        (lambda: batch(buffers=[(0, 0), ((1 << 63) - 8, 16)]), r"at byte 9223372036854775800 of the body"),
        (lambda: batch(buffers=[(0, 0), (0, (1 << 63) - 1)]), r"in a buffer of 9223372036854775807 bytes"),
        (
            lambda: batch(BODY + b"\0" * 8, buffers=[(0, 0), (4, 16)]),
            r"in a buffer of 16 bytes at byte 4 of the body: .* from a multiple of 8",
        ),
        (lambda: batch(nodes=[(2, 1)]), r"is in a buffer of 0 bytes at byte 0 of the body: expected at least 1,"),
        (lambda: batch(buffers=[(0, 8), (0, 16)]), r"in a buffer of 16 bytes at byte 0 of the body: .* that is not before 8"),
        (lambda: batch(compression={}), r"its buffers are compressed"),
        (lambda: batch(views=[(1, 1)]), r"a record batch of 1 arrays in 2 buffers does not fit its schema"),
        (
            lambda: batch(body_bytes=1 << 62),
            r"a body of 4611686018427387904 bytes: expected a multiple of 8, and at most the 16 that there are",
        ),
        (lambda: batch(body_bytes=-16), r"a body of -16 bytes"),
        (lambda: batch(BODY[:12]), r"a body of 12 bytes: expected a multiple of 8"),
        (lambda: message(1, {0: ("h", 1), 1: [int64()], 2: KEYS}), r"it is big-endian: expected little-endian values"),
        (lambda: message(1, {1: [int64()], 2: KEYS}, b"\0" * 8), r"its schema has a body of 8 bytes: expected none"),
        (lambda: message(1, {2: KEYS}), r"RequestBatch.inputs is empty"),
        (lambda: message(1, {1: [int64(b"\xff")], 2: KEYS}), r"RequestBatch.inputs: a name is b'\\xff': expected UTF-8"),
        (lambda: message(1, {1: [int64(fields={4: {}})]}), r"RequestBatch.inputs\['x'\] is encoded by a dictionary"),
        (lambda: message(1, {1: [int64(fields={5: [int64(b"item")]})]}), r"RequestBatch.inputs\['x'\] is of the type int: expected bool"),
        (lambda: message(1, {1: [int64(fields={3: {0: ("i", 24)}})]}), r"RequestBatch.inputs\['x'\] is of the type int: expected bool"),
        (lambda: message(1, {1: [int64(fields={2: ("B", 3), 3: {0: ("h", 3)}})]}), r"is of the type float: expected bool"),
        (lambda: message(1, {1: [int64(fields={2: ("B", 3), 3: {0: ("h", -1)}})]}), r"is of the type float: expected bool"),
        (lambda: message(1, {1: [int64(fields={2: ("B", 200)})]}), r"is of the type something unknown \(200\): expected bool"),
        (lambda: message(1, {1: [{0: b"x"}]}), r"is of the type nothing: expected bool"),
        (lambda: message(9, {}), r"it holds something unknown \(9\): expected a schema"),
        (lambda: message(1, {1: [int64()], 2: KEYS * 2}), r"its metadata gives the key b'model_name' twice"),
        (lambda: message(1, {1: [int64()], 2: KEYS}, fields={4: KEYS * 65}), r"Arrow metadata holds 65 keys and values"),
    ],
)
def test_numbers_that_lie_are_refused(made: Callable[[], bytes], told: str) -> None:
    with pytest.raises(InvalidRecord, match=told):
        decode(made())


def test_one_text_under_many_keys_is_refused_although_arrow_copies_it_for_each() -> None:
    shared = b"v" * 60_000
    schema = message(1, {1: [int64()], 2: [*KEYS, *(pair(b"k%d" % n, shared) for n in range(60))]})
    assert len(schema) < 64 << 10
    assert sum(map(len, pa.ipc.open_stream(schema).schema.metadata.values())) > 50 * len(schema)
    with pytest.raises(InvalidRecord, match=r"Arrow metadata of \d+ bytes holds more text than that: it repeats itself, or is damaged"):
        decode(schema)


def test_a_flatbuffer_that_points_outside_itself_is_refused_wherever_it_does() -> None:
    """Each of its numbers in turn leads far away, backwards or just over the end."""
    whole = message(1, {1: [int64()], 2: KEYS})[8:]

    def walk(data: bytes) -> None:
        schema = root(data).table(2)
        for field in schema.tables(1, 9, "columns") if schema else ():
            field.text(0), field.number(2, struct.Struct("<B")), field.table(3)
        for each in schema.tables(2, 9, "pairs") if schema else ():
            each.text(0), each.text(1)

    walk(whole)
    refused = 0
    for at in range(0, len(whole), 2):
        for form, number in (("<H", 0xFFFF), ("<H", 0x7FF0), ("<i", -(1 << 31)), ("<i", (1 << 31) - 1), ("<i", -8), ("<i", len(whole))):
            changed = bytearray(whole + b"\0\0")
            struct.pack_into(form, changed, at, number)
            try:
                walk(bytes(changed[: len(whole)]))
            except InvalidRecord:
                refused += 1
    assert refused > 50
    text, pairs = Flat({0: b"text"}).data, Flat({0: [(1, 2)]}).data
    text[text.index(b"\4\0\0\0text")] = 20
    pairs[pairs.index(struct.pack("<qq", 1, 2)) - 4] = 2
    for read in (lambda: root(bytes(text)).text(0), lambda: root(bytes(pairs)).pairs(0, 9, "pairs")):
        with pytest.raises(InvalidRecord, match=r"points to byte \d+, outside itself"):
            read()
    with pytest.raises(InvalidRecord, match=r"Arrow metadata of 4 bytes points to byte 1000, outside itself: it is damaged"):
        root(struct.pack("<I", 1000))
