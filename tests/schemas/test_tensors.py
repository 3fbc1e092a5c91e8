"""Request batches: what is built is written and read back as it was, what plain Arrow writes is read as plain Arrow reads it, and a bad row
fails alone."""

from __future__ import annotations

import contextlib
import itertools
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.arrow_ipc import decode, encode
from schemas.records import InvalidRecord
from schemas.tensors import (
    DATATYPES,
    MAX_DEADLINE_MS,
    MAX_ELEMENTS,
    MAX_INPUTS,
    MAX_REQUEST_BYTES,
    MAX_ROWS,
    MAX_VALUE_BYTES,
    RequestBatch,
    Tensor,
    datatype,
)

names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=20)
printable = names | st.just("")
values = st.binary(max_size=8) | st.just(b"x" * (MAX_VALUE_BYTES + 1))
parameters = st.dictionaries(
    names, st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | printable, max_size=4
)


def column(rows: int) -> st.SearchStrategy[Tensor]:
    def of(kind: str) -> st.SearchStrategy[Tensor]:
        if kind == "BYTES":
            return st.lists(values, min_size=rows, max_size=rows).map(bytes_of)
        shapes = arrays.array_shapes(min_dims=0, max_dims=3, max_side=4).map(lambda shape: (rows, *shape))
        return arrays.arrays(DATATYPES[kind], shapes)

    return st.sampled_from(list(DATATYPES)).flatmap(of)


def bytes_of(items: list[bytes]) -> Tensor:
    found = np.empty(len(items), np.object_)
    found[:] = items
    return found


@st.composite
def batches(draw: st.DrawFn) -> RequestBatch:
    rows = draw(st.integers(1, 5))
    return RequestBatch(
        model_name=draw(names),
        model_version=draw(printable),
        id=draw(printable),
        inputs=draw(st.dictionaries(names, column(rows), min_size=1, max_size=4)),
        parameters=draw(parameters),
        deadline_ms=draw(st.none() | st.integers(1, MAX_DEADLINE_MS)),
    )


def said(batch: RequestBatch) -> dict[str, Any]:
    """All that a batch says, comparable: arrays as their bytes, so that a NaN equals itself."""
    columns = {
        name: (column.dtype, column.shape, column.tolist() if column.dtype.kind == "O" else column.tobytes())
        for name, column in batch.inputs.items()
    }
    fields = ("model_name", "model_version", "id", "parameters", "deadline_ms", "bad")
    return {"inputs": columns, "order": list(columns), **{field: getattr(batch, field) for field in fields}}


def foreign(columns: dict[str, pa.Array], metadata: dict[str, str] | None = None, **options: Any) -> bytes:
    """A stream as somebody writes it who knows Arrow and not us."""
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in columns.items()], metadata={"model_name": "m"} if metadata is None else metadata
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def tensors(values: pa.Array, shape: list[int], nulls: list[bool] | None = None, **more: Any) -> pa.Array:
    mask = None if nulls is None else pa.array(nulls)
    return pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(values.type, shape, **more), pa.FixedSizeListArray.from_arrays(values, math.prod(shape), mask=mask)
    )


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
BATCH = RequestBatch(model_name="m", inputs={"x": X})


# ---- the laws


@given(batches())
@example(RequestBatch(model_name="m", inputs={"x": np.array([math.nan, math.inf, -math.inf, -0.0], np.float16)}))
@example(RequestBatch(model_name="m", inputs={"x": np.asfortranarray(X), "y": X[:, ::-1, ::2]}))
def test_what_is_written_reads_back_as_it_was(batch: RequestBatch) -> None:
    data = encode(batch)
    assert said(decode(data)) == said(batch)
    assert encode(decode(data)) == data


@given(batches())
def test_rows_with_a_fault_are_bad_and_all_others_are_good(batch: RequestBatch) -> None:
    expected = set()
    for column in batch.inputs.values():
        for row in range(len(column)):
            items = [column[row]] if column.ndim == 1 else column[row].reshape(-1).tolist()
            if any(len(item) > MAX_VALUE_BYTES if isinstance(item, bytes) else item != item for item in items):
                expected.add(row)
    assert set(batch.bad) == expected
    assert sorted([*batch.bad, *batch.good.tolist()]) == list(range(batch.rows))


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: encode(BATCH)[:-8] + data), st.data())
def test_any_bytes_are_a_batch_or_refused(data: bytes, more: st.DataObject) -> None:
    whole = bytearray(encode(BATCH))
    for at in more.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[at] = more.draw(st.integers(0, 255))
    for each in (data, bytes(whole), bytes(whole[: more.draw(st.integers(0, len(whole)))])):
        with contextlib.suppress(InvalidRecord):
            batch = decode(each)
            assert said(decode(encode(batch))) == said(batch)


def test_arrays_are_views_that_cannot_be_written() -> None:
    data = encode(BATCH)
    found = decode(data).inputs["x"]
    around = np.frombuffer(data, np.uint8)
    assert np.shares_memory(found, around)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        BATCH.inputs["x"][0] = 0
    assert X.flags.writeable, "the caller's own array stays as it was"


def test_one_batch_cannot_change_what_another_of_the_same_schema_says() -> None:
    data = encode(RequestBatch(model_name="m", inputs={"x": X}, parameters={"top": 3}))
    decode(data).parameters["top"] = 9  # type: ignore[index]
    assert decode(data).parameters == {"top": 3}


# ---- what others write


ELEMENTS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "BOOL": (pa.bool_(), st.booleans()),
    **{f"INT{b}": (getattr(pa, f"int{b}")(), st.integers(-(1 << (b - 1)), (1 << (b - 1)) - 1)) for b in (8, 16, 32, 64)},
    **{f"UINT{b}": (getattr(pa, f"uint{b}")(), st.integers(0, (1 << b) - 1)) for b in (8, 16, 32, 64)},
    "FP16": (pa.float16(), st.floats(width=16)),
    "FP32": (pa.float32(), st.floats(width=32)),
    "FP64": (pa.float64(), st.floats()),
    "BYTES": (pa.binary(), st.binary(max_size=20)),
}
TEXTS = {pa.string(): st.text(max_size=6), pa.large_string(): st.text(max_size=6), pa.large_binary(): st.binary(max_size=6)}


@given(st.sampled_from(list(ELEMENTS)), st.data())
def test_plain_columns_of_another_writer_are_read_as_arrow_reads_them(kind: str, data: st.DataObject) -> None:
    arrow_type, elements = ELEMENTS[kind]
    if kind == "BYTES" and data.draw(st.booleans()):
        arrow_type = data.draw(st.sampled_from(list(TEXTS)))
        elements = TEXTS[arrow_type]
    items = data.draw(st.lists(st.none() | elements, min_size=1, max_size=20))
    batch = decode(foreign({"x": pa.array(items, arrow_type)}))
    assert datatype(batch.inputs["x"]) == kind
    assert batch.rows == len(items)
    for row, item in enumerate(items):
        if item is None:
            assert batch.bad[row] == "null in the input 'x': expected a value"
        elif item != item:
            assert batch.bad[row] == "NaN in the input 'x': expected numbers"
        else:
            assert row not in batch.bad
            found = batch.inputs["x"][row]
            assert found == (item.encode() if isinstance(item, str) else item)


@given(st.sampled_from([kind for kind in ELEMENTS if kind not in ("BOOL", "BYTES")]), st.data())
def test_tensors_of_another_writer_are_read_as_arrow_reads_them(kind: str, data: st.DataObject) -> None:
    arrow_type, elements = ELEMENTS[kind]
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    orders = [order for order in itertools.permutations(range(len(shape))) if all(order[to] == at for at, to in enumerate(order))]
    permutation = data.draw(st.none() | st.sampled_from(orders))
    rows = data.draw(st.integers(1, 3))
    items = data.draw(st.lists(elements, min_size=rows * math.prod(shape), max_size=rows * math.prod(shape)))
    array = tensors(pa.array(items, arrow_type), shape, permutation=permutation, dim_names=[f"d{n}" for n in range(len(shape))])
    found = decode(foreign({"x": array})).inputs["x"]
    oracle = array.to_numpy_ndarray()
    assert found.dtype == oracle.dtype
    assert np.array_equal(found, oracle, equal_nan=oracle.dtype.kind == "f")


def test_an_order_of_dimensions_that_writers_understand_in_two_ways_is_refused() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    turned = pa.FixedShapeTensorArray.from_numpy_ndarray(images.transpose(0, 3, 2, 1))
    assert np.array_equal(decode(foreign({"x": turned})).inputs["x"], images.transpose(0, 3, 2, 1))
    channels_first = pa.FixedShapeTensorArray.from_numpy_ndarray(images.transpose(0, 3, 1, 2))
    with pytest.raises(
        InvalidRecord, match=r"RequestBatch.inputs\['x'\] is a tensor permuted by \[1, 2, 0\], .* expected it in row-major order"
    ):
        decode(foreign({"x": channels_first}))
    ours = RequestBatch(model_name="m", inputs={"x": images.transpose(0, 3, 1, 2)})
    assert np.array_equal(decode(encode(ours)).inputs["x"], images.transpose(0, 3, 1, 2))


def test_a_tensor_of_bools_has_its_bits_in_order() -> None:
    bits = [n % 3 == 0 for n in range(2 * 11)]
    found = decode(foreign({"x": tensors(pa.array(bits), [11])})).inputs["x"]
    assert found.tolist() == [bits[:11], bits[11:]]
    assert found.dtype == np.bool_


def test_a_bad_row_fails_alone_with_the_reason() -> None:
    scores = pa.array([1.0, None, math.nan, 4.0, 5.0, 6.0, 7.0])
    again = pa.array([1.0, None, math.nan, math.nan, 5.0, 6.0, 7.0])
    texts = pa.array([b"a", b"b", b"c", b"d", b"e" * (MAX_VALUE_BYTES + 1), None, b"f"])
    whole = pa.array([*range(7 * 4)], pa.int32())
    holed = pa.array([None if n == 13 else n for n in range(7 * 2)], pa.int32())
    grid = tensors(whole, [2, 2], nulls=[False, False, False, True, False, False, False])
    columns = {"score": scores, "text": texts, "grid": grid, "holed": tensors(holed, [2]), "again": again}
    batch = decode(foreign(columns, {"model_name": "m", "deadline_ms": "250"}))
    assert batch.bad == {
        1: "null in the input 'score': expected a value",
        2: "NaN in the input 'score': expected numbers",
        3: "null in the input 'grid': expected a value",
        4: "65537 bytes in the input 'text': expected at most 65536",
        5: "null in the input 'text': expected a value",
        6: "null in the input 'holed': expected a value",
    }
    assert batch.good.tolist() == [0]
    assert batch.deadline_ms == 250
    assert batch.inputs["grid"][0].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(
        InvalidRecord, match=r"RequestBatch.bad is {1: \"null in the input 'score': .*send the others in a batch without it"
    ):
        encode(batch)


def test_a_null_where_the_writer_promised_none_is_a_bad_row_too() -> None:
    schema = pa.schema([pa.field("x", pa.int8(), nullable=False)], metadata={"model_name": "m"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array([1, None], pa.int8())], schema=schema))
    assert list(decode(sink.getvalue().to_pybytes()).bad) == [1]


def test_metadata_is_read_by_the_names_of_the_protocol_and_what_is_unknown_is_passed_over() -> None:
    metadata = {
        "model_name": "resnet",
        "model_version": "3",
        "id": "call-7",
        "deadline_ms": "40",
        "parameters": '{"top": 5, "raw": true, "share": 0.5, "lang": "de"}',
        "pandas": '{"columns": []}',
    }
    batch = decode(foreign({"x": pa.array([1])}, metadata))
    assert (batch.model_name, batch.model_version, batch.id, batch.deadline_ms) == ("resnet", "3", "call-7", 40)
    assert batch.parameters == {"top": 5, "raw": True, "share": 0.5, "lang": "de"}


def test_a_stream_without_its_end_mark_is_whole_too() -> None:
    assert said(decode(encode(BATCH)[:-8])) == said(BATCH)


# ---- what may not travel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": ""}, r"RequestBatch.model_name is '': expected text of 1 to 128 characters"),
        ({"model_name": "a\x1b[2J"}, r"RequestBatch.model_name is 'a\\x1b\[2J': expected text without control characters"),
        ({"model_version": "v" * 129}, r"RequestBatch.model_version is 'vv"),
        ({"id": "\0"}, r"RequestBatch.id is '\\x00': holds a NUL character"),
        ({"deadline_ms": 0}, r"RequestBatch.deadline_ms is 0: expected whole milliseconds from 1 to 86400000"),
        ({"deadline_ms": MAX_DEADLINE_MS + 1}, r"RequestBatch.deadline_ms is 86400001"),
        ({"deadline_ms": True}, r"RequestBatch.deadline_ms is True"),
        ({"deadline_ms": 1.5}, r"RequestBatch.deadline_ms is 1.5"),
        (
            {"parameters": {"a": 1 << 63}},
            r"RequestBatch.parameters\['a'\] is 9223372036854775808: expected a bool, a whole number of 64 bits",
        ),
        ({"parameters": {"a": math.nan}}, r"RequestBatch.parameters\['a'\] is nan"),
        ({"parameters": {"a": [1]}}, r"RequestBatch.parameters\['a'\] is \[1\]"),
        ({"parameters": {"a": "x" * 1025}}, r"RequestBatch.parameters\['a'\] is 'xx.*expected text of 0 to 1024 characters"),
        ({"parameters": {f"p{n}": n for n in range(33)}}, r"RequestBatch.parameters holds 33: expected at most 32"),
        ({"parameters": None}, r"RequestBatch.parameters is None, a `NoneType`: expected a mapping"),
        ({"inputs": {}}, r"RequestBatch.inputs is empty: expected at least one input"),
        ({"inputs": {f"x{n}": X for n in range(MAX_INPUTS + 1)}}, r"RequestBatch.inputs holds more than 64 inputs"),
        ({"inputs": {"x" * 129: X}}, r"RequestBatch.inputs: a name is 'xx"),
        ({"inputs": {"x": [1.0]}}, r"RequestBatch.inputs\['x'\] is \[1.0\], a `list`: expected a plain numpy array with rows first"),
        ({"inputs": {"x": np.ma.masked_array(X)}}, r"a `MaskedArray`: expected a plain numpy array"),
        ({"inputs": {"x": np.float32(1)}}, r"RequestBatch.inputs\['x'\] is np.float32\(1.0\)"),
        ({"inputs": {"x": np.array(1.0)}}, r"RequestBatch.inputs\['x'\] is array\(1.\)"),
        ({"inputs": {"x": X.astype(">f4")}}, r"RequestBatch.inputs\['x'\] is of dtype >f4: expected one of BOOL, UINT8"),
        ({"inputs": {"x": X.astype("c8")}}, r"RequestBatch.inputs\['x'\] is of dtype <c8"),
        ({"inputs": {"x": np.array(["a"])}}, r"RequestBatch.inputs\['x'\] is of dtype <U1"),
        ({"inputs": {"x": np.array([b"a", "b"], object)}}, r"RequestBatch.inputs\['x'\]\[1\] is 'b', a `str`: expected `bytes`"),
        (
            {"inputs": {"x": np.array([[b"a"]], object)}},
            r"RequestBatch.inputs\['x'\] is BYTES of shape \[1\] a row: expected one value a row",
        ),
        ({"inputs": {"x": X[:0]}}, r"RequestBatch.inputs\['x'\] is of 0 rows: expected 1 to 4096; send more in several batches"),
        ({"inputs": {"x": np.zeros(MAX_ROWS + 1)}}, r"RequestBatch.inputs\['x'\] is of 4097 rows"),
        ({"inputs": {"x": X, "y": X[:1]}}, r"RequestBatch.inputs\['y'\] is of 1 rows: expected 2, as the first input has"),
        (
            {"inputs": {"x": X[:, :0]}},
            r"RequestBatch.inputs\['x'\] is of shape \[0, 4\] a row: expected at most 8 dimensions, each of at least 1",
        ),
        ({"inputs": {"x": X.reshape(2, 1, 1, 1, 1, 1, 1, 1, 1, 12)}}, r"expected at most 8 dimensions"),
        ({"inputs": {"x": np.zeros((1, MAX_ELEMENTS), bool), "y": np.zeros(1)}}, r"'y'\] is the input that makes 16777217 elements"),
        ({"bad": {2: "why"}}, r"RequestBatch.bad is of the row 2: expected rows from 0 to 1"),
        ({"bad": {0: ""}}, r"RequestBatch.bad\[0\] is '': expected a reason"),
    ],
)
def test_what_may_not_travel_is_refused_when_it_is_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecord, match=message):
        RequestBatch(**{"model_name": "m", "inputs": {"x": X}, **change})


def test_a_batch_that_is_too_large_is_refused_before_it_is_written() -> None:
    message = rf"RequestBatch of \d+ bytes: at most {MAX_REQUEST_BYTES} may travel; send its rows in several batches"
    for columns in (
        {"x": np.zeros((2, MAX_REQUEST_BYTES // 8))},
        {"x": np.zeros(MAX_REQUEST_BYTES // 4 // 4096 * 4096, np.float32).reshape(4096, -1)},  # only with its metadata
        {"x": bytes_of([b"x" * (MAX_REQUEST_BYTES // 2)] * 3)},
    ):
        with pytest.raises(InvalidRecord, match=message):
            encode(RequestBatch(model_name="m", inputs=columns))


def test_metadata_that_would_not_be_read_is_not_written() -> None:
    much = {f"p{n}": "\U0001f600" * 1024 for n in range(32)}
    with pytest.raises(
        InvalidRecord, match=r"not a RequestBatch: metadata of 13\d{4} bytes at byte 0: expected a multiple of 8 from 8 to 65536"
    ):
        encode(RequestBatch(model_name="m", inputs={"x": X}, parameters=much))


def test_the_largest_batches_are_read_again() -> None:
    bits = RequestBatch(model_name="m", inputs={"x": np.ones((MAX_ROWS, MAX_ELEMENTS // MAX_ROWS), bool)})
    assert decode(encode(bits)).inputs["x"].all()
    names = [f"{'x' * 120}{n}" for n in range(MAX_INPUTS)]
    wide = RequestBatch(
        model_name="m" * 128,
        id="i" * 512,
        inputs={name: np.ones((1, *[1] * 8)) for name in names},
        parameters={f"{'p' * 120}{n}": "v" * 1024 for n in range(32)},
    )
    assert said(decode(encode(wide))) == said(wide)


def test_neither_the_command_nor_the_words_of_a_batch_load_arrow() -> None:
    script = "import sys, infra.cli, schemas.tensors; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
