"""A request batch: rows of named tensors for one model, and which of its rows cannot be answered. Names, parameters and datatypes are those
of the Open Inference Protocol (version 2). How a batch becomes bytes is in `schemas.arrow_ipc`.

A row is the unit of answer; its id is the record's id and its index in the batch, so it is not written anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import force_setattr

from schemas.records import InvalidRecord, shown, text_fault

Tensor = np.ndarray[Any, np.dtype[Any]]
Parameter = bool | int | float | str

ARROW_STREAM = "application/vnd.apache.arrow.stream"  # the content type of a batch on the wire, as IANA has it

MAX_REQUEST_BYTES = 8 << 20  # of one batch on the wire
MAX_ROWS = 4096  # the verdict on a batch answers all of them in one JSON value
MAX_INPUTS = 64
MAX_DIMS = 8  # of one row's tensor
MAX_ELEMENTS = 16 << 20  # of all inputs together: a BOOL takes a bit on the wire and a byte here
MAX_VALUE_BYTES = 64 << 10  # of one BYTES value; the row of a longer one is bad
MAX_NAME = 128  # characters of a name or version
MAX_ID = 512
MAX_PARAMETERS = 32
MAX_PARAMETER = 1024  # characters of a parameter's value
MAX_DEADLINE_MS = 24 * 3600 * 1000

# The datatypes of the Open Inference Protocol, as numpy holds them. BYTES are Python `bytes`, since their lengths differ.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(np.object_),
}
_names = {dtype: name for name, dtype in DATATYPES.items()}


class RequestBatch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Rows for one model.

    `inputs` are arrays by name, rows first: the shape is `(rows, *shape of one row)`, so a scalar input is a vector. They are kept as views
    that cannot be written. BYTES are arrays of `object` that hold `bytes`, one a row. `deadline_ms` is how long after the broker took the
    batch its answer is still of use; None: as the site is configured. `id` is the caller's own, and repeated in the answer.

    `bad` gives the rows that cannot be answered, each with the reason: those given (a reader's nulls, under which the arrays hold anything)
    and those that are found here (NaN in a float, a BYTES value that is too long). The other rows are not touched by them.

    Raises
    ------
    InvalidRecord
        When built with anything that may not travel: the message names the field, its value, and what was expected.
    """

    model_name: str
    inputs: Mapping[str, Tensor]
    model_version: str = ""
    id: str = ""
    parameters: Mapping[str, Parameter] = {}
    deadline_ms: int | None = None
    bad: Mapping[int, str] = {}

    def __post_init__(self) -> None:
        for field in ("inputs", "parameters", "bad"):
            if not isinstance(value := getattr(self, field), Mapping):
                raise invalid(field, f"{shown(value)}, a `{type(value).__name__}`", "expected a mapping")
        _check_text("model_name", self.model_name, 1, MAX_NAME)
        _check_text("model_version", self.model_version, 0, MAX_NAME)
        _check_text("id", self.id, 0, MAX_ID)
        _check_parameters(self.parameters)
        if self.deadline_ms is not None and not (type(self.deadline_ms) is int and 1 <= self.deadline_ms <= MAX_DEADLINE_MS):
            raise invalid("deadline_ms", shown(self.deadline_ms), f"expected whole milliseconds from 1 to {MAX_DEADLINE_MS}")
        _check_inputs(self.inputs)
        for row, reason in self.bad.items():
            if not (type(row) is int and 0 <= row < self.rows):
                raise invalid("bad", f"of the row {shown(row)}", f"expected rows from 0 to {self.rows - 1}")
            if not (isinstance(reason, str) and reason):
                raise invalid(f"bad[{row}]", shown(reason), "expected a reason")
        force_setattr(self, "inputs", {name: _read_only(column) for name, column in self.inputs.items()})
        force_setattr(self, "parameters", dict(self.parameters))
        force_setattr(self, "bad", dict(sorted((row_faults(self.inputs) | dict(self.bad)).items())))

    @property
    def rows(self) -> int:
        """How many rows the batch has, bad ones included."""
        return len(next(iter(self.inputs.values())))

    @property
    def good(self) -> Tensor:
        """The indexes of the rows that can be answered, in order."""
        answered = np.ones(self.rows, np.bool_)
        answered[list(self.bad)] = False
        return np.flatnonzero(answered)


def invalid(field: str, value: str, expected: str) -> InvalidRecord:
    """The error that a field of a batch may not travel as it is."""
    return InvalidRecord(f"RequestBatch.{field} is {value}: {expected}")


def datatype(column: Tensor) -> str:
    """The Open Inference Protocol's name of an array's datatype; raises `InvalidRecord` if it has none."""
    name = _names.get(column.dtype)
    if name is None:
        raise InvalidRecord(
            f"the Open Inference Protocol has no datatype for the dtype {column.dtype.str}: convert to {', '.join(DATATYPES)}"
        )
    return name


def row_faults(inputs: Mapping[str, Tensor]) -> dict[int, str]:
    """The rows whose values cannot be answered, by index, each with the reason; of several reasons that of the first input holds."""
    found: dict[int, str] = {}
    for name, column in inputs.items():
        if column.dtype.kind == "f":
            wrong = np.isnan(column)
            if wrong.any():
                reason = f"NaN in the input {shown(name)}: expected numbers"
                for row in np.flatnonzero(wrong.reshape(len(column), -1).any(axis=1)).tolist():
                    found.setdefault(row, reason)
        elif column.dtype.kind == "O":
            for row, value in enumerate(column):
                if len(value) > MAX_VALUE_BYTES:
                    found.setdefault(row, f"{len(value)} bytes in the input {shown(name)}: expected at most {MAX_VALUE_BYTES}")
    return found


def check_names(names: Iterable[str]) -> None:
    """Refuse names of inputs that are too many, too long, not printable or given twice; raises `InvalidRecord`."""
    seen: set[str] = set()
    for name in names:
        _check_text("inputs: a name", name, 1, MAX_NAME)
        if name in seen:
            raise invalid("inputs", f"twice {shown(name)}", "expected a different name for each input")
        seen.add(name)
        if len(seen) > MAX_INPUTS:
            raise InvalidRecord(f"RequestBatch.inputs holds more than {MAX_INPUTS} inputs: send fewer, or join scalars into one tensor")
    if not seen:
        raise InvalidRecord("RequestBatch.inputs is empty: expected at least one input")


def check_shape(name: str, rows: int, shape: tuple[int, ...], before: int) -> int:
    """How many elements there are with an input of this shape, after `before` in other inputs; raises `InvalidRecord` for too many."""
    field = f"inputs[{shown(name)}]"
    if not 1 <= rows <= MAX_ROWS:
        raise invalid(field, f"of {rows} rows", f"expected 1 to {MAX_ROWS}; send more in several batches")
    if len(shape) > MAX_DIMS or not all(dim >= 1 for dim in shape):
        raise invalid(field, f"of shape {shown(list(shape))} a row", f"expected at most {MAX_DIMS} dimensions, each of at least 1")
    elements = before + rows * math.prod(shape)
    if elements > MAX_ELEMENTS:
        raise invalid(field, f"the input that makes {elements} elements", f"expected at most {MAX_ELEMENTS} in a batch; send fewer rows")
    return elements


def _check_inputs(inputs: Mapping[str, Tensor]) -> None:
    check_names(inputs)
    elements, rows = 0, None
    for name, column in inputs.items():
        field = f"inputs[{shown(name)}]"
        if type(column) is not np.ndarray or column.ndim < 1:  # what is more than that, as a mask, would be lost
            raise invalid(field, f"{shown(column)}, a `{type(column).__name__}`", "expected a plain numpy array with rows first")
        if column.dtype not in _names:
            raise invalid(field, f"of dtype {column.dtype.str}", f"expected one of {', '.join(DATATYPES)}")
        elements = check_shape(name, len(column), column.shape[1:], elements)
        rows = len(column) if rows is None else rows
        if len(column) != rows:
            raise invalid(field, f"of {len(column)} rows", f"expected {rows}, as the first input has")
        if column.dtype.kind == "O":
            if column.ndim > 1:
                raise invalid(field, f"BYTES of shape {shown(list(column.shape[1:]))} a row", "expected one value a row")
            for row, value in enumerate(column):
                if type(value) is not bytes:
                    raise invalid(f"{field}[{row}]", f"{shown(value)}, a `{type(value).__name__}`", "expected `bytes`")


def _check_parameters(parameters: Mapping[str, Parameter]) -> None:
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRecord(f"RequestBatch.parameters holds {len(parameters)}: expected at most {MAX_PARAMETERS}")
    for name, value in parameters.items():
        _check_text("parameters: a name", name, 1, MAX_NAME)
        field = f"parameters[{shown(name)}]"
        if isinstance(value, str):
            _check_text(field, value, 0, MAX_PARAMETER)
        elif not (type(value) is bool or (type(value) is int and -(1 << 63) <= value < 1 << 63) or _finite(value)):
            raise invalid(field, shown(value), "expected a bool, a whole number of 64 bits, a finite float or a string")


def _check_text(field: str, text: str, least: int, most: int) -> None:
    if not (isinstance(text, str) and least <= len(text) <= most):
        raise invalid(field, shown(text), f"expected text of {least} to {most} characters")
    if not text.isprintable():  # names are shown in terminals and logs
        raise invalid(field, shown(text), text_fault(text) or "expected text without control characters")


def _finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


def _read_only(column: Tensor) -> Tensor:
    if not column.flags.writeable:
        return column
    view = column.view()
    view.flags.writeable = False
    return view
