"""An ONNX file as seen from outside: what goes in and what comes out, read without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from schemas.errors import Fault

Dimension = int | str | None  # a length, the name of a free one, or a free one without a name
_CHANNELS = 3
_CHANGES_OF_FORM = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}


class UnusableModel(Fault, ValueError):
    """A file that cannot be used as a model; the message names the file and says why."""


class Port(NamedTuple):
    """An input or an output."""

    name: str
    dtype: str  # numpy's name for it
    shape: tuple[Dimension, ...]
    operator: str = ""  # what computes an output, mere changes of form left out

    def __str__(self) -> str:
        return f"{self.name} [{', '.join('?' if side is None else str(side) for side in self.shape)}] {self.dtype}"


class Output(NamedTuple):
    """An output as one run gave it."""

    name: str
    shape: tuple[int, ...]
    operator: str = ""

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}"


class Network(NamedTuple):
    """A model file and its inputs and outputs."""

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def image(self) -> Port:
        """The input that takes the picture, [1, 3, side, side]; raises `UnusableModel` if there is none."""
        pictures = [port for port in self.inputs if len(port.shape) == 4 and port.shape[1] in (_CHANNELS, None)]
        if len(pictures) != 1 or pictures[0].dtype not in ("float32", "float16"):
            found = ", ".join(map(str, self.inputs)) or "none"
            raise UnusableModel(f"{self.path}: inputs are {found}: expected one of float32 or float16 [1, 3, height, width]")
        return pictures[0]

    def fixed_shape(self, port: Port, side: int) -> tuple[int, ...]:
        """A port's shape for one picture of `side` x `side`: free batches become 1, free heights and widths the side."""
        return tuple(
            length if isinstance(length, int) else 1 if axis == 0 else _CHANNELS if axis == len(port.shape) - 3 else side
            for axis, length in enumerate(port.shape)
        )

    def fixed_dimensions(self, side: int) -> dict[str, int]:
        """The lengths of the free dimensions that have a name: engines plan better for shapes that they know."""
        return {
            name: length
            for port in self.inputs
            for name, length in zip(port.shape, self.fixed_shape(port, side), strict=True)
            if isinstance(name, str)
        }

    def constants(self, side: int) -> dict[str, NDArray[Any]]:
        """Inputs beside the picture that have one right value: DETR's exports may have a mask of valid pixels, which is all ones."""
        others = [port for port in self.inputs if port != self.image]
        unknown = [str(port) for port in others if port.name != "pixel_mask"]
        if unknown:
            raise UnusableModel(f"{self.path} wants {', '.join(unknown)} beside the picture: export it without")
        return {port.name: np.ones(self.fixed_shape(port, side), port.dtype) for port in others}


def read_network(path: Path) -> Network:
    """Raises `UnusableModel` if the file is missing or is not ONNX."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UnusableModel(f"the model {path} cannot be read: {error.strerror or error}") from None
    except (DecodeError, ValueError) as error:
        raise UnusableModel(f"{path} is not an ONNX model: {error}") from None
    if not (model.graph.node and model.graph.output and model.opset_import):
        raise UnusableModel(f"{path} is not an ONNX model: there is no graph in it")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_port(value) for value in model.graph.input if value.name not in weights)
    makers = {output: node for node in model.graph.node for output in node.output}
    return Network(path, inputs, tuple(_port(value, _operator(value.name, makers)) for value in model.graph.output))


def _operator(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    for _ in range(len(makers)):
        node = makers.get(name)
        if node is None or node.op_type not in _CHANGES_OF_FORM:
            return node.op_type if node is not None else ""
        name = node.input[0]
    return ""


def _port(value: onnx.ValueInfoProto, operator: str = "") -> Port:
    tensor = value.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else side.dim_param or None for side in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "unknown"
    return Port(value.name, dtype, shape, operator)
