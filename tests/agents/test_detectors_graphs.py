"""Real ONNX graphs of each layout that detect colours: a bright red, green or blue cell of a known place must come out there, by name.

Each graph averages its input over cells of 32 x 32, undoes the normalisation that its family promises, and writes the result in the
family's layout. So decoding, colour order, normalisation, placement and reading all have to be right for the box to be right.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import simplejpeg
from onnx import TensorProto, helper, numpy_helper

from agents.inference.detector import Detector, load
from agents.inference.images import UndecodableImage
from agents.inference.layouts import Misfit
from agents.inference.network import UnusableModel
from agents.models.labels import InvalidLabels
from schemas.config import Detector as Settings
from schemas.config import Engine

SIDE, CELL = 128, 32
GRID = SIDE // CELL
CELLS = GRID * GRID
COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}  # BGR
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


class _Graph:
    """Grows a graph whose input is a picture."""

    def __init__(self, batch: int | str = 1, side: int | str = SIDE) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, side, side])]
        self.outputs: list[onnx.ValueInfoProto] = []

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def brightness(self, mean: list[float], std: list[float]) -> str:
        """[1, 3, cells]: 0 to 1 by channel and cell, with the normalisation undone."""
        pooled = self.node("AveragePool", "pixels", kernel_shape=[CELL, CELL], strides=[CELL, CELL])
        shape = [1, 3, 1, 1]
        plain = self.node("Add", self.node("Mul", pooled, self.constant(np.reshape(std, shape))), self.constant(np.reshape(mean, shape)))
        share = self.node("Mul", plain, self.constant(1 / 255))
        return self.node("Reshape", share, self.constant([0, 3, -1], np.int64))

    def output(self, name: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(self.nodes, "colours", self.inputs, self.outputs, self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path


def _cells() -> np.ndarray:
    """Centre and size of each cell, in pixels of the input, [4, cells]."""
    at = (np.arange(GRID) + 0.5) * CELL
    x, y = np.meshgrid(at, at)
    return np.stack([x.ravel(), y.ravel(), np.full(CELLS, CELL), np.full(CELLS, CELL)]).astype(np.float32)


def _yolov8(path: Path) -> Path:
    graph = _Graph()
    scores = graph.brightness([0] * 3, [255] * 3)
    graph.output(graph.node("Concat", graph.constant(_cells()[None]), scores, axis=1, output="output0"))
    return graph.save(path)


def _rt_detr(path: Path) -> Path:
    graph = _Graph(batch="N", side="S")
    scores = graph.brightness([0] * 3, [255] * 3)
    logits = graph.node("Mul", graph.node("Sub", scores, graph.constant(0.5)), graph.constant(12))
    graph.output(graph.node("Transpose", logits, perm=[0, 2, 1], output="logits"))
    graph.output(graph.node("Identity", graph.constant(_cells().T[None] / SIDE), output="pred_boxes"))
    return graph.save(path)


def _detr(path: Path) -> Path:
    graph = _Graph()
    graph.inputs.append(helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, [1, "h", "w"]))
    scores = graph.brightness(*IMAGENET)
    everywhere = graph.node("ReduceMin", graph.node("Cast", "pixel_mask", to=TensorProto.FLOAT), keepdims=0)  # 1, or nothing is found
    logits = graph.node("Mul", graph.node("Mul", graph.node("Sub", scores, graph.constant(0.5)), graph.constant(12)), everywhere)
    with_none = graph.node("Concat", logits, graph.constant(np.zeros((1, 1, CELLS))), axis=1)
    graph.output(graph.node("Transpose", with_none, perm=[0, 2, 1], output="logits"))
    graph.output(graph.node("Identity", graph.constant(_cells().T[None] / SIDE), output="pred_boxes"))
    return graph.save(path)


def _nanodet(path: Path) -> Path:
    graph = _Graph(side="side")
    scores = graph.brightness([103.53, 116.28, 123.675], [57.375, 57.12, 58.395])  # BGR
    by_label = graph.node("Gather", scores, graph.constant([2, 1, 0], np.int64), axis=1)
    by_cell = graph.node("Transpose", by_label, perm=[0, 2, 1], output="scores_32")
    graph.output(by_cell)
    half_a_stride = np.tile([0.0, 0.0] + [-60.0] * 9, (1, 1, 4))  # bins 0 and 1 alike: the expectation is a half
    nothing = graph.node("Mul", graph.node("ReduceMean", by_cell, axes=[2]), graph.constant(0))
    graph.output(graph.node("Add", nothing, graph.constant(half_a_stride), output="boxes_32"))
    return graph.save(path)


def _classifier(path: Path, softmax: bool = False) -> Path:
    graph = _Graph()
    scores = graph.node("ReduceMean", graph.brightness(*IMAGENET), axes=[2], keepdims=0)
    logits = graph.node("Mul", scores, graph.constant(3))
    shares = graph.node("Softmax", logits, axis=1) if softmax else logits
    graph.output(graph.node("Reshape", shares, graph.constant([1, 3], np.int64), output="scores"))
    return graph.save(path)


LAYOUTS = {"yolov8": _yolov8, "rt-detr": _rt_detr, "detr": _detr, "nanodet": _nanodet}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def _load(model: Path, family: str, labels: Path, **more: object) -> Detector:
    settings = Settings(model=str(model), family=family.removeprefix("rt-"), sizes=(SIDE,), labels=str(labels), min_score=0.6, **more)
    return load(settings, Engine(), Path("unused"))


def _picture(width: int, height: int, box: tuple[int, int, int, int], colour: str) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = COLOURS[colour]
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="BGR", colorsubsampling="444")


@pytest.mark.parametrize("colour", list(COLOURS))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_coloured_cell_is_found_where_it_is(layout: str, colour: str, tmp_path: Path, labels: Path) -> None:
    detector = _load(LAYOUTS[layout](tmp_path / "model.onnx"), layout, labels)
    # 640 x 320: letterboxed it fills rows 32 to 96 of the input, squeezed it fills all of it
    box = (160, 0, 320, 160) if layout == "yolov8" else (160, 80, 320, 160)
    look = detector.look(_picture(640, 320, box, colour))
    (found,) = look.detections
    assert (look.width, look.height) == (640, 320)
    assert found.label == colour
    assert found.score > 0.9
    assert (found.x0 * 640, found.y0 * 320, found.x1 * 640, found.y1 * 320) == pytest.approx(box, abs=0.5)
    assert all(stage_s > 0 for stage_s in look.stages)


@pytest.mark.parametrize("softmax", [False, True])
def test_a_classifier_answers_for_the_whole_picture(softmax: bool, tmp_path: Path, labels: Path) -> None:
    detector = _load(_classifier(tmp_path / "model.onnx", softmax), "classifier", labels)
    (found,) = detector.look(_picture(300, 200, (0, 0, 300, 200), "green")).detections
    assert (found.label, found.x0, found.y0, found.x1, found.y1) == ("green", 0, 0, 1, 1)
    assert found.score == pytest.approx(np.exp(3) / (np.exp(3) + 2), abs=0.01)  # a softmax, once
    assert len(detector.look(_picture(300, 200, (0, 0, 1, 1), "green")).detections) == 0  # black: no class stands out


def test_queries_that_answer_at_two_sizes_are_one_object(tmp_path: Path, labels: Path) -> None:
    settings = Settings(model=str(_rt_detr(tmp_path / "model.onnx")), family="detr", sizes=(SIDE, SIDE), labels=str(labels), min_score=0.6)
    detector = load(settings, Engine(), Path("unused"))
    assert len(detector.look(_picture(512, 512, (256, 128, 384, 256), "blue")).detections) == 1


def test_several_sizes_look_at_one_picture_and_doubles_are_removed(tmp_path: Path, labels: Path) -> None:
    model = _nanodet(tmp_path / "model.onnx")
    picture = _picture(512, 512, (256, 128, 384, 256), "blue")

    def boxes(*sizes: int) -> list[tuple[float, ...]]:
        detector = load(Settings(model=str(model), sizes=sizes, labels=str(labels), min_score=0.6), Engine(), Path("unused"))
        assert detector.sizes == sizes
        return sorted((d.x0, d.y0, d.x1, d.y1) for d in detector.look(picture).detections)

    large = [(0.5, 0.25, 0.75, 0.5)]
    small = [(x, y, x + 0.125, y + 0.125) for x in (0.5, 0.625) for y in (0.25, 0.375)]
    assert boxes(SIDE) == large
    assert boxes(2 * SIDE) == small
    assert boxes(SIDE, 2 * SIDE) == sorted(large + small)
    assert boxes(SIDE, SIDE) == large


def test_threads_may_look_at_the_same_time(tmp_path: Path, labels: Path) -> None:
    detector = _load(_yolov8(tmp_path / "model.onnx"), "yolov8", labels)
    pictures = [_picture(128, 128, (32 * x, 32 * y, 32 * x + 32, 32 * y + 32), "red") for x in range(4) for y in range(4)]
    alone = [detector.look(picture).detections for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: detector.look(picture).detections, pictures * 10))
    assert together == alone * 10
    assert len(set(alone)) == 16


def test_a_picture_that_cannot_be_decoded_harms_nothing(tmp_path: Path, labels: Path) -> None:
    detector = _load(_yolov8(tmp_path / "model.onnx"), "yolov8", labels)
    picture = _picture(128, 128, (32, 32, 64, 64), "red")
    with pytest.raises(UndecodableImage):
        detector.look(picture[:-20])
    assert len(detector.look(picture).detections) == 1


def test_the_digest_names_what_decides_an_answer(tmp_path: Path, labels: Path) -> None:
    model = _yolov8(tmp_path / "model.onnx")
    digest = _load(model, "yolov8", labels).digest
    assert len(digest) == 64
    assert int(digest, 16) >= 0
    copy = tmp_path / "other name.onnx"
    copy.write_bytes(model.read_bytes())
    assert _load(copy, "yolov8", labels, name="mine", generation=7).digest == digest  # a name decides nothing
    assert _load(model, "yolov8", labels, nms_iou=0.5).digest != digest
    labels.write_text("rouge\nvert\nbleu\n")
    assert _load(model, "yolov8", labels).digest != digest
    labels.write_text("red\ngreen\nblue\n")
    changed = onnx.load(model)
    changed.graph.doc_string = "another file"
    onnx.save(changed, copy)
    assert _load(copy, "yolov8", labels).digest != digest


def test_names_for_people(tmp_path: Path, labels: Path) -> None:
    model = _yolov8(tmp_path / "colours.onnx")
    assert _load(model, "yolov8", labels).name == "colours 128"
    assert _load(model, "yolov8", labels, name="front door").name == "front door"


def test_the_wrong_family_is_refused_and_the_right_one_named(tmp_path: Path, labels: Path) -> None:
    with pytest.raises(Misfit, match=r'does not fit detector\.family = "detr".*detector\.family = "yolov8" would fit'):
        _load(_yolov8(tmp_path / "model.onnx"), "detr", labels)


def test_the_wrong_number_of_labels_is_refused(tmp_path: Path, labels: Path) -> None:
    labels.write_text("red\ngreen\n")
    with pytest.raises(Misfit, match="for 2 labels"):
        _load(_yolov8(tmp_path / "model.onnx"), "yolov8", labels)


def test_a_fixed_size_is_named_when_the_configuration_asks_for_another(tmp_path: Path, labels: Path) -> None:
    settings = Settings(model=str(_yolov8(tmp_path / "model.onnx")), family="yolov8", sizes=(640,), labels=str(labels))
    with pytest.raises(UnusableModel, match=r"set detector\.sizes = \[128\]"):
        load(settings, Engine(), Path("unused"))


@pytest.mark.parametrize(("text", "words"), [("", "line 1"), ("a\n\nb\n", "line 2"), ("a\n" + "x" * 65, "line 2")])
def test_labels_that_cannot_be_used(text: str, words: str, tmp_path: Path, labels: Path) -> None:
    labels.write_text(text)
    with pytest.raises(InvalidLabels, match=words):
        _load(_yolov8(tmp_path / "model.onnx"), "yolov8", labels)


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidLabels, match=r"nowhere\.txt cannot be read"):
        _load(_yolov8(tmp_path / "model.onnx"), "yolov8", tmp_path / "nowhere.txt")
