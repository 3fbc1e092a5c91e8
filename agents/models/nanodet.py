"""NanoDet-g from its TensorFlow.js graph to ONNX: the same arithmetic in fewer nodes, for any input side that is a multiple of 32.

The published graph went ONNX -> TensorFlow -> TensorFlow.js and carries a transpose around each convolution, its padding before it and its
bias after it. Here every image tensor stays NCHW, so the transposes vanish, and padding and bias go into the convolution. The model is
NanoDet-g by RangiLyu (Apache-2.0).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.errors import Fault

Array = NDArray[Any]
INPUT = "image"
STRIDES = (8, 16, 32)
_PUBLISHED_SIDE = 416
_OPSET, _IR_VERSION = 17, 8
_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


class ConversionFailed(Fault, ValueError):
    """The files are not the NanoDet-g that this module converts; the message says what differs."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the new graph, and how the old graph saw it."""

    name: str
    channels: int
    stride: int  # input side divided by this tensor's side
    nhwc: bool = False  # how the old graph held it; the new one holds NCHW always
    pads: tuple[int, ...] = ()  # top, left, bottom, right, waiting for the layer that takes them in


def convert(graph_json: Path, weights_bin: Path) -> onnx.ModelProto:
    """Build the ONNX model from the two published files.

    Input `image` [N, 3, side, side] float32: BGR, normalised. Outputs `scores_8`, `scores_16`, `scores_32` [N, cells, 80], each 0 to 1, and
    `boxes_8`, `boxes_16`, `boxes_32` [N, cells, 44] (11 bins for each of 4 sides); cells in rows from the top left. N and side are free.

    Raises
    ------
    ConversionFailed
        If the files do not belong together, or hold what NanoDet-g does not have.
    """
    nodes, constants = _read(graph_json, weights_bin)
    builder = _Builder(constants)
    for node in _in_order(nodes):
        builder.add(node)
    model = builder.model()
    onnx.checker.check_model(model, full_check=True)
    return model


def _read(graph_json: Path, weights_bin: Path) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """The nodes, and the weights as arrays (stored as float16, widened to float32)."""
    try:
        graph = msgspec.json.decode(graph_json.read_bytes())
        nodes: list[dict[str, Any]] = graph["modelTopology"]["node"]
        entries = [
            (w["name"], w["shape"], np.dtype(w.get("quantization", w)["dtype"])) for g in graph["weightsManifest"] for w in g["weights"]
        ]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ConversionFailed(f"{graph_json} is not a TensorFlow.js graph: {error!r}") from None
    raw, weights, offset = weights_bin.read_bytes(), {}, 0
    expected = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for _, shape, dtype in entries)
    if expected != len(raw):
        raise ConversionFailed(f"{weights_bin} has {len(raw)} bytes, but {graph_json.name} describes {expected}")
    for name, shape, dtype in entries:
        value = np.frombuffer(raw, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
        weights[name] = value.astype(np.float32) if dtype == np.float16 else value
        offset += value.nbytes
    return nodes, weights


def _in_order(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes that the outputs need, each after the nodes that it reads."""
    by_name = {node["name"]: node for node in nodes}
    order: dict[str, dict[str, Any]] = {}
    waiting = [name for name, node in by_name.items() if node["op"] == "Identity"]
    while waiting:
        if len(waiting) > 4 * len(nodes):
            raise ConversionFailed("the graph runs in a circle")
        node = by_name[waiting[-1]]
        missing = [base for source in node.get("input", []) if (base := source.split(":")[0]) not in order]
        if missing:
            waiting.extend(missing)
        else:
            order.setdefault(waiting.pop(), node)
    return list(order.values())


class _Builder:
    """Takes the old graph's nodes one by one, in order, and grows the new graph."""

    def __init__(self, constants: dict[str, Array]) -> None:
        self._constants = constants
        self._tensors: dict[str, _Tensor] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._outputs: dict[str, int] = {}  # name: values a cell
        self._handlers: dict[str, Callable[[str, list[str], dict[str, Any]], None]] = {
            "Placeholder": self._placeholder,
            "Transpose": self._transpose,
            "Pad": self._pad,
            "PadV2": self._pad,
            "Conv2D": self._conv,
            "MaxPool": self._max_pool,
            "Add": self._add,
            "LeakyRelu": self._leaky_relu,
            "ConcatV2": self._concat,
            "ResizeBilinear": self._resize,
            "SplitV": self._split,
            "Sigmoid": self._sigmoid,
            "Reshape": self._reshape,
            "Identity": self._output,
        }

    def add(self, node: dict[str, Any]) -> None:
        if node["op"] in ("Const", "SparseToDense", "AddV2"):  # the last two compute the reshapes' targets, which channels and -1 replace
            return
        if node["op"] not in self._handlers:
            raise ConversionFailed(f"operator {node['op']} (node {node['name']}) is not one that NanoDet-g has")
        self._handlers[node["op"]](node["name"], node.get("input", []), node.get("attr", {}))

    def model(self) -> onnx.ModelProto:
        names = [f"{kind}_{stride}" for kind in ("scores", "boxes") for stride in STRIDES]
        if sorted(self._outputs) != sorted(names):
            raise ConversionFailed(f"the outputs are {', '.join(self._outputs)}: expected {', '.join(names)}")
        image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, "side", "side"])
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", f"cells{name.rpartition('_')[2]}", self._outputs[name]])
            for name in names
        ]
        graph = helper.make_graph(self._nodes, "nanodet_g", [image], outputs, self._initializers)
        return helper.make_model(graph, producer_name="headwater", opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)

    # one method an operator of the old graph

    def _placeholder(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        self._tensors[name] = _Tensor(INPUT, channels=3, stride=1)

    def _transpose(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source, order = self._tensors[inputs[0]], self._constants[inputs[1]].tolist()
        if order == (_TO_NCHW if source.nhwc else _TO_NHWC):
            self._tensors[name] = replace(source, nhwc=not source.nhwc)
        elif len(order) == 3:
            self._emit("Transpose", name, source, perm=order)
        else:
            raise ConversionFailed(f"{name} reorders axes as {order}, which no layer here needs")

    def _pad(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source, (none, none_too, rows, columns) = self._planes(inputs[0]), self._constants[inputs[1]].tolist()
        fill = float(self._constants[inputs[2]]) if len(inputs) > 2 else 0.0  # -inf before a maximum, as ONNX's MaxPool pads
        if any(none + none_too) or fill not in (0.0, -np.inf):
            raise ConversionFailed(f"{name} pads {none}, {none_too} with {fill}: expected rows and columns only, with 0 or -infinity")
        self._tensors[name] = replace(source, pads=(rows[0], columns[0], rows[1], columns[1]))

    def _conv(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source, kernel = self._channels_last(inputs[0]), self._constants[inputs[1]]
        height, width, depth, channels = kernel.shape
        step = self._stride(name, attributes)
        if depth != source.channels:
            raise ConversionFailed(f"{name} takes {depth} channels, but gets {source.channels}: grouped convolutions are not NanoDet-g's")
        weights = self._constant(f"{name}/weights", kernel.transpose(3, 2, 0, 1))
        self._emit(
            "Conv", name, source, weights, channels=channels, step=step, kernel_shape=[height, width], strides=[step, step],
            pads=source.pads or (0, 0, 0, 0),
        )  # fmt: skip

    def _max_pool(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source, step = self._channels_last(inputs[0]), self._stride(name, attributes)
        kernel = [int(side) for side in attributes["ksize"]["list"]["i"]][1:3]
        self._emit("MaxPool", name, source, step=step, kernel_shape=kernel, strides=[step, step], pads=source.pads or (0, 0, 0, 0))

    def _add(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        first, second = inputs
        if second not in self._constants:
            self._emit("Add", name, self._tensors[first], self._tensors[second].name)
            return
        convolution = self._nodes[-1]
        source, bias = self._channels_last(first), self._constants[second]
        if convolution.op_type != "Conv" or convolution.output[0] != source.name or bias.shape != (source.channels,):
            raise ConversionFailed(f"{name} adds a constant that is not the bias of the convolution before it")
        convolution.input.append(self._constant(f"{name}/bias", bias))
        self._tensors[name] = source

    def _leaky_relu(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        self._emit("LeakyRelu", name, self._tensors[inputs[0]], alpha=float(attributes["alpha"]["f"]))

    def _sigmoid(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        self._emit("Sigmoid", name, self._tensors[inputs[0]])

    def _concat(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        sources = [self._planes(source) for source in inputs[:-1]]
        if int(self._constants[inputs[-1]]) != 1:
            raise ConversionFailed(f"{name} joins along another axis than the channels")
        channels = sum(source.channels for source in sources)
        self._emit("Concat", name, sources[0], *(source.name for source in sources[1:]), channels=channels, axis=1)

    def _resize(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source, side = self._channels_last(inputs[0]), int(self._constants[inputs[1]][0])
        if not attributes.get("half_pixel_centers", {}).get("b"):
            raise ConversionFailed(f"{name} resizes without half-pixel centres")
        stride = _PUBLISHED_SIDE // side
        # scales, not sizes: they hold for every input side, and the quantizer needs them
        scales = self._constant(f"{name}/scales", np.array([1, 1, source.stride / stride, source.stride / stride], np.float32))
        self._emit("Resize", name, source, "", scales, stride=stride, mode="linear", coordinate_transformation_mode="half_pixel")

    def _split(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source, parts = self._planes(inputs[0]), self._constants[inputs[1]].astype(np.int64)
        outputs = [name if index == 0 else f"{name}:{index}" for index in range(len(parts))]
        self._nodes.append(helper.make_node("Split", [source.name, self._constant(f"{name}/parts", parts)], outputs, name=name, axis=1))
        self._tensors |= {output: replace(source, name=output, channels=int(part)) for output, part in zip(outputs, parts, strict=True)}

    def _reshape(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source = self._planes(inputs[0])
        self._emit("Reshape", name, source, self._constant(f"{name}/shape", np.array([0, source.channels, -1], np.int64)))

    def _output(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        source = self._tensors[inputs[0]]
        output = f"{'scores' if source.channels == 80 else 'boxes'}_{source.stride}"
        self._nodes.append(helper.make_node("Identity", [source.name], [output], name=output))
        self._outputs[output] = source.channels

    # what they share

    def _emit(
        self, op: str, name: str, source: _Tensor, *more: str, channels: int = 0, step: int = 1, stride: int = 0, **attributes: Any
    ) -> None:
        if source.pads and "pads" not in attributes:
            raise ConversionFailed(f"{name} ({op}) follows padding that it cannot take in")
        self._nodes.append(helper.make_node(op, [source.name, *more], [name], name=name, **attributes))
        self._tensors[name] = _Tensor(name, channels or source.channels, stride or source.stride * step, source.nhwc)

    def _constant(self, name: str, value: Array) -> str:
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _planes(self, name: str) -> _Tensor:
        """A tensor that the old graph holds as NCHW."""
        if self._tensors[name].nhwc:
            raise ConversionFailed(f"{name} has its channels last where they were expected first")
        return self._tensors[name]

    def _channels_last(self, name: str) -> _Tensor:
        if not self._tensors[name].nhwc:
            raise ConversionFailed(f"{name} has its channels first where they were expected last")
        return self._tensors[name]

    @staticmethod
    def _stride(name: str, attributes: dict[str, Any]) -> int:
        """The stride of a layer, which pads explicitly and does not dilate."""
        _, down, across, _ = (int(step) for step in attributes["strides"]["list"]["i"])
        dilations = {int(step) for step in attributes.get("dilations", {}).get("list", {}).get("i", [1])}
        if base64.b64decode(attributes["padding"]["s"]) != b"VALID" or dilations != {1} or down != across:
            raise ConversionFailed(f"{name} pads implicitly, dilates or has unequal strides")
        return down
