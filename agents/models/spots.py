"""A real network of a few kilobytes that finds bright spots by colour: for fault tests and benches, where a look must cost next to nothing.

It can also be made to fail natively, as real parts do: a picture whose middle is white makes an integer division overflow (INT_MIN / -1,
which ends a process on x86-64 with SIGFPE), one whose middle is black makes it loop without end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CELL = 64, 16  # pixels of the input, and of a cell: one spot a cell
LABELS = ("red", "green", "blue")
FAMILY = "yolov8"
_GRID = SIDE // CELL
MIDDLE = slice(SIDE // 2 - 4, SIDE // 2 + 4)


def write_spots(folder: Path, *, traps: bool = True) -> tuple[Path, Path]:
    """Write the network and its labels into a folder; returns both paths. `traps`: white and black middles are fatal."""
    folder.mkdir(parents=True, exist_ok=True)
    model, labels = folder / "spots.onnx", folder / "spots.txt"
    onnx.save(_network(traps), model)
    labels.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return model, labels


class _Graph:
    """Grows the graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output


def _network(traps: bool) -> onnx.ModelProto:
    graph = _Graph()
    pooled = graph.node("AveragePool", "pixels", kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    scores = graph.node("Reshape", pooled, graph.constant([1, 3, -1], np.int64))
    if traps:
        scores = graph.node("Add", scores, _trap(graph))
    graph.node("Concat", graph.constant(_cells()[None]), scores, axis=1, output="output0")
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    found = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + len(LABELS), _GRID * _GRID])
    made = helper.make_graph(graph.nodes, "spots", [pixels], [found], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _cells() -> np.ndarray:
    """Centre and size of each cell in pixels, [4, cells]."""
    at = (np.arange(_GRID) + 0.5) * CELL
    x, y = np.meshgrid(at, at)
    return np.stack([x.ravel(), y.ravel(), np.full(_GRID**2, CELL), np.full(_GRID**2, CELL)]).astype(np.float32)


def _trap(graph: _Graph) -> str:
    """Always 0, if it comes to an end."""
    axes = graph.constant([2, 3], np.int64)
    bounds = [graph.constant([edge, edge], np.int64) for edge in (MIDDLE.start, MIDDLE.stop)]
    corner = [graph.constant([edge, edge], np.int64) for edge in (0, 2)]
    middle = graph.node("Slice", "pixels", *bounds, axes)
    darkest = _level(graph, graph.node("ReduceMin", middle, keepdims=0))
    brightest = _level(graph, graph.node("ReduceMax", middle, keepdims=0))
    # white: 254 - 255 = -1; anything else is moved far from it
    divisor = graph.node("Sub", graph.constant(254, np.int32), darkest)
    quotient = graph.node("Div", graph.constant(-(2**31), np.int32), graph.node("Max", divisor, graph.constant(-1, np.int32)))
    # a letterbox has grey bands: without them it is the empty tensor of a trial run, which must pass
    band = _level(graph, graph.node("ReduceMax", graph.node("Slice", "pixels", *corner, axes), keepdims=0))
    empty = graph.node("Equal", brightest, graph.constant(0, np.int32))
    black = graph.node("Cast", graph.node("And", empty, graph.node("Greater", band, graph.constant(0, np.int32))), to=TensorProto.INT64)
    rounds = graph.node("Mul", black, graph.constant(1 << 62, np.int64))
    looped = graph.node("Loop", rounds, "", graph.constant(0.0), body=_endless())
    return graph.node("Mul", graph.node("Add", graph.node("Cast", quotient, to=TensorProto.FLOAT), looped), graph.constant(0.0))


def _level(graph: _Graph, share: str) -> str:
    """0 to 1 as a whole number from 0 to 255."""
    return graph.node("Cast", graph.node("Round", graph.node("Mul", share, graph.constant(255.0))), to=TensorProto.INT32)


def _endless() -> onnx.GraphProto:
    """The body of the loop: it hands its value on."""
    scalar = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
    ]
    nodes = [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Neg", ["value"], ["next"])]
    outputs = [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, [])]
    return helper.make_graph(nodes, "endless", scalar, outputs)
