"""Making and keeping models: the conversion against a plain reading of the published graph, int8, and a store that trusts no byte."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from agents.models import store
from agents.models.labels import COCO_80, COCO_91
from agents.models.nanodet import ConversionFailed, convert
from agents.models.prepare import Sources, missing, prepare
from infra import assets
from infra.assets.models import ready_models, video_frames
from schemas.config import Detector

SMALL = Detector(sizes=(64,))


@pytest.fixture(scope="module")
def published() -> tuple[Path, Path]:
    graph, weights = assets.fetch(assets.NANODET)
    return graph, weights


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    (video,) = assets.fetch(assets.VIDEO)
    return video_frames(video, 4)


# The conversion


def _plainly(graph_json: Path, weights_bin: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """Run the TensorFlow.js graph node by node as TensorFlow defines each operator, channels last, at the published 416 x 416."""
    graph, raw, offset = json.loads(graph_json.read_text()), weights_bin.read_bytes(), 0
    values: dict[str, Any] = {"input_1": image}
    for entry in (w for group in graph["weightsManifest"] for w in group["weights"]):
        dtype, count = np.dtype(entry.get("quantization", entry)["dtype"]), int(np.prod(entry["shape"], dtype=int))
        value = np.frombuffer(raw, dtype, count, offset).reshape(entry["shape"])
        values[entry["name"]] = value.astype(np.float32) if dtype == np.float16 else value
        offset += value.nbytes
    nodes = {node["name"]: node for node in graph["modelTopology"]["node"] if node["op"] not in ("Const", "Placeholder")}

    def strided(x: np.ndarray, side: int, node: dict[str, Any]) -> np.ndarray:
        assert base64.b64decode(node["attr"]["padding"]["s"]) == b"VALID"
        step = int(node["attr"]["strides"]["list"]["i"][1])
        return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))[:, ::step, ::step]

    def get(name: str) -> Any:
        if name in values:
            return values[name]
        node = nodes[name.split(":")[0]]
        a, *rest = [get(source) for source in node["input"]]
        op = node["op"]
        if op == "SparseToDense":
            result = np.zeros(rest[0], np.int32)  # no indexes are given: the default everywhere
        elif op in ("Add", "AddV2"):
            result = a + rest[0]
        elif op == "Transpose":
            result = a.transpose(rest[0])
        elif op in ("Pad", "PadV2"):
            result = np.pad(a, rest[0], constant_values=rest[1] if len(rest) > 1 else 0)
        elif op == "Conv2D":
            result = np.tensordot(strided(a, rest[0].shape[0], node), rest[0], axes=([4, 5, 3], [0, 1, 2]))
        elif op == "MaxPool":
            result = strided(a, 3, node).max(axis=(4, 5))
        elif op == "LeakyRelu":
            result = np.where(a > 0, a, np.float32(node["attr"]["alpha"]["f"]) * a)
        elif op == "Sigmoid":
            result = 1 / (1 + np.exp(-a))
        elif op == "ConcatV2":
            result = np.concatenate([a, *rest[:-1]], axis=int(rest[-1]))
        elif op == "ResizeBilinear":
            result = cv2.resize(a[0], tuple(int(side) for side in rest[0][::-1]), interpolation=cv2.INTER_LINEAR)[None]
        elif op == "SplitV":
            parts = np.split(a, np.cumsum(rest[0])[:-1], axis=int(rest[1]))
            values.update({node["name"] if i == 0 else f"{node['name']}:{i}": part for i, part in enumerate(parts)})
            return values[name]
        elif op == "Reshape":
            result = a.reshape(rest[0])
        else:
            assert op == "Identity", op
            result = a
        values[name] = result
        return result

    outputs = [get(name) for name, node in nodes.items() if node["op"] == "Identity"]
    return {f"{'scores' if o.shape[2] == 80 else 'boxes'}_{416 // round(o.shape[1] ** 0.5)}": o for o in outputs}


def test_the_conversion_computes_what_the_published_graph_says(published: tuple[Path, Path], tmp_path: Path) -> None:
    image = np.random.default_rng(3).normal(size=(1, 3, 416, 416)).astype(np.float32)
    onnx.save(convert(*published), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    ours = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"image": image}), strict=True))
    plain = _plainly(*published, image)
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        assert np.abs(ours[name] - expected).max() < 2e-5, name


def test_weights_that_do_not_belong_to_the_graph(published: tuple[Path, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(published[1].read_bytes()[:-2])
    with pytest.raises(ConversionFailed, match=r"short\.bin has 7574556 bytes, but nanodet\.json describes 7574558"):
        convert(published[0], short)


@pytest.mark.parametrize("text", ["", "[]", '{"modelTopology": {}}', "not JSON"])
def test_a_graph_that_is_none(text: str, published: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(ConversionFailed, match=r"graph\.json is not a TensorFlow\.js graph"):
        convert(path, published[1])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"LeakyRelu"', '"Elu"', "operator Elu"),
        ('"VkFMSUQ="', '"U0FNRQ=="', "implicitly"),
        ('"half_pixel_centers":{"b":true}', '"a":{"b":true}', "half-pixel"),
    ],
)
def test_a_graph_with_other_operators_is_refused_not_guessed_at(
    old: str, new: str, words: str, published: tuple[Path, Path], tmp_path: Path
) -> None:
    text = json.dumps(json.loads(published[0].read_text()), separators=(",", ":"))
    assert old in text
    path = tmp_path / "graph.json"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConversionFailed, match=words):
        convert(path, published[1])


# Preparing


def _no_frames() -> list[np.ndarray]:
    raise AssertionError("frames were asked for, but nothing has to be calibrated")


def test_what_is_missing_is_made_once(published: tuple[Path, Path], frames: list[np.ndarray], tmp_path: Path) -> None:
    steps: list[str] = []
    assert missing(SMALL, tmp_path) == (64,)
    made = prepare(SMALL, tmp_path, Sources(*published, lambda: frames), steps.append)
    assert [(entry.precision, entry.side) for entry in made] == [("fp32", 0), ("int8", 64)]
    assert len(steps) == 2
    assert missing(SMALL, tmp_path) == ()
    assert prepare(SMALL, tmp_path, Sources(*published, _no_frames)) == []
    assert missing(Detector(sizes=(64, 96)), tmp_path) == (96,)
    assert missing(Detector(sizes=(64, 96, 512), quantized=False), tmp_path) == ()  # full precision serves every side
    assert {path.name for path in tmp_path.iterdir()} == {
        file for entry in made for file in (entry.file, entry.file.replace("onnx", "json"))
    }


def test_full_precision_needs_no_frames(published: tuple[Path, Path], tmp_path: Path) -> None:
    made = prepare(Detector(quantized=False), tmp_path, Sources(*published, _no_frames))
    assert [entry.precision for entry in made] == ["fp32"]


def test_int8_is_int8() -> None:
    folder = ready_models([Detector(), Detector(quantized=False)])
    full, small = store.find(folder, 224, quantized=False)[0], store.find(folder, 224, quantized=True)[0]
    assert small.stat().st_size < full.stat().st_size / 3
    graph = onnx.load(small).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 34
    for node in convolutions:
        dequantize = producers[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        assert weights[dequantize.input[0]].data_type == onnx.TensorProto.INT8
        assert weights[dequantize.input[1]].dims[0] == weights[dequantize.input[0]].dims[0]  # a scale for each channel


def test_a_model_of_one_s_own_needs_nothing(tmp_path: Path) -> None:
    assert missing(Detector(model="mine.onnx"), tmp_path) == ()


# The store


def _stored(folder: Path, side: int = 224) -> Path:
    work = folder / "work.onnx"
    folder.mkdir(exist_ok=True)
    work.write_bytes(b"a model")
    work.chmod(0o600)
    return folder / store.put(folder, work, "int8", side, "a test").file


def test_what_was_stored_is_found_with_its_digest(tmp_path: Path) -> None:
    path = _stored(tmp_path / "models")
    found, digest = store.find(tmp_path / "models", 224, quantized=True)
    assert (found, found.read_bytes()) == (path, b"a model")
    assert digest == hashlib.sha256(b"a model").hexdigest()
    assert found.stat().st_mode & 0o777 == 0o644
    (entry,) = store.entries(tmp_path / "models")
    assert (entry.name, entry.sha256) == ("nanodet-g int8 224", digest)


@pytest.mark.parametrize(("side", "quantized", "command"), [(320, True, "--size 320"), (224, False, "--size 224 --fp32")])
def test_what_is_not_there_is_named_with_the_command_that_makes_it(side: int, quantized: bool, command: str, tmp_path: Path) -> None:
    _stored(tmp_path)
    with pytest.raises(store.ModelNotPrepared, match=f"is not prepared in .*: headwater models prepare {command}$"):
        store.find(tmp_path, side, quantized)


def test_a_changed_byte_is_not_used(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    path.write_bytes(b"a nodel")
    with pytest.raises(store.ModelNotPrepared, match="damaged"):
        store.find(tmp_path, 224, quantized=True)
    assert missing(Detector(), tmp_path) == (224,)


def test_a_spoilt_line_or_a_lost_file_means_not_there(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(store.ModelNotPrepared):
        store.find(tmp_path, 224, quantized=True)
    assert store.entries(tmp_path) == []
    _stored(tmp_path).unlink()
    with pytest.raises(store.ModelNotPrepared):
        store.find(tmp_path, 224, quantized=True)


def test_storing_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    _stored(tmp_path)
    path = _stored(tmp_path)
    assert {child.name for child in tmp_path.iterdir()} == {path.name, path.with_suffix(".json").name}
    assert msgspec.json.decode(path.with_suffix(".json").read_bytes())["recipe"] == store.RECIPE


def test_coco_s_names() -> None:
    assert (len(COCO_80), len(set(COCO_80)), COCO_80[0], COCO_80[2], COCO_80[79]) == (80, 80, "person", "car", "toothbrush")
    assert (len(COCO_91), COCO_91[1], COCO_91[18], COCO_91[90]) == (91, "person", "dog", "toothbrush")
    assert [name for name in COCO_91 if name != "unused"] == list(COCO_80)
