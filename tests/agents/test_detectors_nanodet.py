"""The real NanoDet-g on real video: people are found where someone who looked at the frames says they are, in int8 and at several sizes."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import simplejpeg

from agents.inference.detector import Detector, load
from agents.inference.images import UndecodableImage
from agents.models import store
from infra import assets
from infra.assets.models import ready_models, video_frames
from schemas.config import Detector as Settings
from schemas.config import Engine
from schemas.detections import Detection, Detections

INT8 = Settings()
FP32 = Settings(quantized=False)
UNION = Settings(quantized=False, sizes=(224, 320, 416, 512))
WIDTH, HEIGHT = 768, 576

# the people in two frames, in pixels, marked by eye on enlarged prints
PEOPLE = {
    100: [(591, 154, 617, 233), (348, 199, 382, 276), (375, 178, 409, 256), (494, 149, 519, 221), (517, 151, 540, 221), (223, 61, 238, 94)],
    400: [(274, 200, 301, 286), (591, 141, 617, 204), (688, 301, 744, 411)],
}


@pytest.fixture(scope="module")
def models() -> Path:
    return ready_models([INT8, UNION])


@pytest.fixture(scope="module")
def int8(models: Path) -> Detector:
    return load(INT8, Engine(), models)


@pytest.fixture(scope="module")
def fp32(models: Path) -> Detector:
    return load(FP32, Engine(), models)


@pytest.fixture(scope="module")
def union(models: Path) -> Detector:
    return load(UNION, Engine(), models)


def test_what_is_faint_is_told_as_a_record_would_tell_it(int8: Detector, models: Path, frames: dict[int, bytes]) -> None:
    keen = load(INT8, Engine(), models, faint_from=0.05)
    for jpeg in frames.values():
        look = keen.look(jpeg)
        assert look.detections == int8.look(jpeg).detections
        assert look.faint is not None
        rows = zip(look.faint.labels, look.faint.scores.tolist(), look.faint.corners.tolist(), strict=True)
        told = [Detection(label, score, *corners) for label, score, corners in rows]
        assert Detections(told) == Detections(Detections(told)), "they are rounded already"
        assert [(each.label, each.score, each.x0) for each in Detections(told)] == [(each.label, each.score, each.x0) for each in told]
        assert len(told) > len(look.detections)
        assert min(each.score for each in told) >= 0.05
        solid = [each for each in told if each.x1 > each.x0 and each.y1 > each.y0]
        assert solid[: len(look.detections)] == list(look.detections)


def _jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85, colorspace="BGR", colorsubsampling="420")


@pytest.fixture(scope="module")
def frames() -> dict[int, bytes]:
    """The frames with marked people."""
    (video,) = assets.fetch(assets.VIDEO)
    capture = cv2.VideoCapture(str(video))
    found = {}
    for index in range(max(PEOPLE) + 1):
        assert capture.grab()
        if index in PEOPLE:
            found[index] = _jpeg(capture.retrieve()[1])
    return found


def _people(detector: Detector, jpeg: bytes, min_score: float = 0.25) -> list[Detection]:
    return [d for d in detector.look(jpeg).detections if d.label == "person" and d.score >= min_score]


def _marked(frame: int) -> list[Detection]:
    return [Detection("person", 1.0, x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT) for x0, y0, x1, y1 in PEOPLE[frame]]


def _found(marked: list[Detection], seen: list[Detection], iou: float = 0.5) -> int:
    return sum(any(box.iou(person) >= iou for box in seen) for person in marked)


def test_the_region_finds_everyone_and_is_sure_of_them(union: Detector, frames: dict[int, bytes]) -> None:
    for index, jpeg in frames.items():
        assert _found(_marked(index), _people(union, jpeg, 0.45)) == len(PEOPLE[index])


def test_the_leaf_finds_most(int8: Detector, frames: dict[int, bytes]) -> None:
    assert sum(_found(_marked(index), _people(int8, jpeg)) for index, jpeg in frames.items()) >= 7


def test_who_is_surely_seen_is_really_there(union: Detector, int8: Detector, frames: dict[int, bytes]) -> None:
    for detector in (union, int8):
        for index, jpeg in frames.items():
            for box in _people(detector, jpeg, 0.6):
                assert any(box.iou(person) >= 0.4 for person in _marked(index))


def test_int8_agrees_with_full_precision(int8: Detector, fp32: Detector) -> None:
    (video,) = assets.fetch(assets.VIDEO)
    pairs = []
    for frame in video_frames(video, 24):
        jpeg = _jpeg(frame)
        quick = _people(int8, jpeg, 0.2)
        for box in _people(fp32, jpeg, 0.45):
            pairs.append(max(((box.iou(other), other.score - box.score) for other in quick), default=(0.0, 0.0)))
    ious, differences = zip(*pairs, strict=True)
    assert len(pairs) >= 60
    assert np.mean(np.array(ious) >= 0.7) >= 0.95
    assert np.mean(np.abs(differences)) <= 0.03


def test_a_picture_in_front_of_which_nobody_stands(int8: Detector) -> None:
    assert _people(int8, _jpeg(np.full((HEIGHT, WIDTH, 3), 127, np.uint8))) == []


def test_people_stay_where_they_are_whatever_the_picture_s_size(int8: Detector, frames: dict[int, bytes]) -> None:
    pixels = simplejpeg.decode_jpeg(frames[400], "BGR")
    for width, height in ((1920, 1080), (640, 480), (401, 333)):
        look = int8.look(_jpeg(cv2.resize(pixels, (width, height))))
        assert (look.width, look.height) == (width, height)
        assert _found(_marked(400), [d for d in look.detections if d.label == "person"]) >= 2


def test_the_answer_depends_on_the_bytes_alone(models: Path, int8: Detector, frames: dict[int, bytes]) -> None:
    other = load(INT8, Engine(threads=2), models)
    assert other.digest == int8.digest
    for jpeg in frames.values():
        assert other.look(jpeg).detections == int8.look(jpeg).detections


def test_names_digests_and_engines_are_told(int8: Detector, fp32: Detector, union: Detector) -> None:
    assert [d.name for d in (int8, fp32, union)] == ["nanodet-g 224 int8", "nanodet-g 224 fp32", "nanodet-g 224+320+416+512 fp32"]
    assert len({d.digest for d in (int8, fp32, union)}) == 3
    assert (int8.asked, int8.got) == (("cpu",), "cpu")
    assert (len(int8.labels), int8.labels[0]) == (80, "person")
    assert int8.warm_up() > 0


@pytest.mark.parametrize(
    "spoil", [lambda jpeg: jpeg[: len(jpeg) // 2], lambda jpeg: b"", lambda jpeg: jpeg[:-1]], ids=["half", "empty", "last byte"]
)
def test_a_spoilt_picture_is_refused(int8: Detector, frames: dict[int, bytes], spoil: object) -> None:
    with pytest.raises(UndecodableImage):
        int8.look(spoil(frames[100]))  # type: ignore[operator]


@pytest.mark.parametrize(("batch", "side"), [(1, 96), (3, 160), (2, 416)])
def test_the_converted_model_takes_any_batch_and_any_side_of_32s(models: Path, batch: int, side: int) -> None:
    path, _ = store.find(models, side, quantized=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)
    together = session.run(None, {"image": pictures})
    names = [output.name for output in session.get_outputs()]
    assert names == ["scores_8", "scores_16", "scores_32", "boxes_8", "boxes_16", "boxes_32"]
    assert [output.shape for output in together] == [(batch, (side // s) ** 2, n) for n in (80, 44) for s in (8, 16, 32)]
    for scores in together[:3]:
        assert 0 <= scores.min() <= scores.max() <= 1
    last = session.run(None, {"image": pictures[-1:]})
    for whole, part in zip(together, last, strict=True):
        assert np.abs(whole[-1] - part[0]).max() < 1e-4
