"""Each family's reading of outputs that were made from known boxes, and suppression held against its plain definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.inference import classifier, detr, nanodet, yolov8
from agents.inference.candidates import Candidates, strongest, suppress, to_detections
from agents.inference.families import fitting, guesses
from agents.inference.layouts import Misfit
from agents.inference.network import Output
from agents.inference.tensors import Placement, letterbox

WHOLE = Placement()
SIDE = 224
STRIDES = (8, 16, 32)
BINS = 11


def _outputs(arrays: list[np.ndarray]) -> list[Output]:
    return [Output(f"out{index}", array.shape) for index, array in enumerate(arrays)]


# NanoDet


def _nanodet_blank(classes: int) -> list[np.ndarray]:
    cells = [(SIDE // stride) ** 2 for stride in STRIDES]
    return [np.zeros((1, n, classes), np.float32) for n in cells] + [np.zeros((1, n, 4 * BINS), np.float32) for n in cells]


def _distribution(distance: float) -> np.ndarray:
    """Logits of two neighbouring bins whose expectation is the distance."""
    low = min(int(distance), BINS - 2)
    logits = np.full(BINS, -60.0)
    logits[low] = math.log(max(1e-20, 1 - (distance - low)))
    logits[low + 1] = math.log(max(1e-20, distance - low))
    return logits


@settings(deadline=None)  # the machine may be busy
@given(
    level=st.integers(0, 2),
    place=st.floats(0, 0.999),
    sides=st.tuples(*[st.floats(0.1, 9.5)] * 4),
    score=st.floats(0.3, 1.0),
    kind=st.integers(0, 6),
)
def test_nanodet_reads_a_box_from_the_cell_and_the_distances(
    level: int, place: float, sides: tuple[float, ...], score: float, kind: int
) -> None:
    arrays = _nanodet_blank(7)
    stride = STRIDES[level]
    grid = SIDE // stride
    cell = int(place * grid * grid)
    arrays[level][0, cell, kind] = score
    arrays[3 + level][0, cell] = np.concatenate([_distribution(side) for side in sides])
    layout = nanodet.fit(_outputs(arrays), SIDE, 7)
    found = nanodet.unpack(arrays, layout, WHOLE, 0.25)
    x, y = (cell % grid + 0.5) * stride, (cell // grid + 0.5) * stride
    left, top, right, bottom = (side * stride for side in sides)
    expected = np.clip(np.array([x - left, y - top, x + right, y + bottom]) / SIDE, 0, 1)
    assert found.classes.tolist() == [kind]
    assert found.scores[0] == pytest.approx(score)
    assert found.boxes[0] == pytest.approx(expected, abs=1e-4)


def test_nanodet_reports_every_class_of_a_cell_and_nothing_below_the_bar() -> None:
    arrays = _nanodet_blank(3)
    arrays[1][0, 20] = [0.6, 0.2, 0.7]
    found = nanodet.unpack(arrays, nanodet.fit(_outputs(arrays), SIDE, 3), WHOLE, 0.25)
    assert dict(zip(found.classes.tolist(), found.scores.tolist(), strict=True)) == pytest.approx({0: 0.6, 2: 0.7})
    nothing = nanodet.unpack(_nanodet_blank(3), nanodet.fit(_outputs(arrays), SIDE, 3), WHOLE, 0.25)
    assert len(to_detections(nothing, ["a", "b", "c"])) == 0


def test_nanodet_takes_its_outputs_in_any_order() -> None:
    arrays = _nanodet_blank(80)
    arrays[2][0, 10, 0] = 0.9
    arrays[5][0, 10] = np.concatenate([_distribution(1.0)] * 4)
    shuffled = [arrays[index] for index in (5, 0, 3, 2, 4, 1)]
    plain = nanodet.unpack(arrays, nanodet.fit(_outputs(arrays), SIDE, 80), WHOLE, 0.25)
    other = nanodet.unpack(shuffled, nanodet.fit(_outputs(shuffled), SIDE, 80), WHOLE, 0.25)
    assert plain.boxes.tolist() == other.boxes.tolist()


def test_a_frame_full_of_candidates_stays_bounded() -> None:
    arrays = _nanodet_blank(80)
    for level in range(3):
        arrays[level][:] = np.linspace(0.3, 0.99, arrays[level].size).reshape(arrays[level].shape)
    found = nanodet.unpack(arrays, nanodet.fit(_outputs(arrays), SIDE, 80), WHOLE, 0.25)
    assert len(found.scores) <= 3000
    assert len(to_detections(suppress(found, 0.6), [str(n) for n in range(80)])) <= 300


# YOLOv8


@settings(deadline=None)  # the machine may be busy
@given(
    width=st.integers(64, 2000),
    height=st.integers(64, 2000),
    corners=st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.05, 1)] * 2),
    score=st.floats(0.3, 1.0),
    anchor=st.integers(0, 99),
)
def test_yolov8_boxes_come_back_to_the_picture_from_the_letterbox(
    width: int, height: int, corners: tuple[float, ...], score: float, anchor: int
) -> None:
    x0, y0 = corners[:2]
    x1, y1 = min(1.0, x0 + corners[2]), min(1.0, y0 + corners[3])
    side = 320
    placement = letterbox(np.zeros((height, width, 3), np.uint8), side, yolov8.UNIT_RGB).placement
    # where the box lies in the input, by the letterbox's definition; a pixel of rounding is allowed for below
    ratio = min(side / width, side / height)
    pad_x, pad_y = (side - width * ratio) / 2, (side - height * ratio) / 2
    box = np.array([x0 * width, y0 * height, x1 * width, y1 * height]) * ratio + [pad_x, pad_y, pad_x, pad_y]
    table = np.zeros((1, 4 + 5, 100), np.float32)
    table[0, :4, anchor] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]
    table[0, 4 + 3, anchor] = score
    table[0, 4 + 1, anchor] = score / 2
    found = yolov8.unpack([table], yolov8.fit(_outputs([table]), side, 5), placement, 0.25)
    assert found.classes.tolist() == [3]  # the best class only
    assert found.scores[0] == pytest.approx(score)
    pixel_x, pixel_y = 1.5 / (width * ratio), 1.5 / (height * ratio)
    for coordinate, wanted, limit in zip(found.boxes[0], (x0, y0, x1, y1), (pixel_x, pixel_y) * 2, strict=True):
        assert coordinate == pytest.approx(wanted, abs=limit)


# DETR and RT-DETR

_query = st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0.05, 0.4), st.floats(0.05, 0.4))


def _corners(query: tuple[float, ...]) -> list[float]:
    x, y, w, h = query
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


@settings(deadline=None)  # the machine may be busy
@given(query=_query, score=st.floats(0.3, 0.99), kind=st.integers(0, 9), at=st.integers(0, 19))
def test_rt_detr_scores_are_sigmoids(query: tuple[float, ...], score: float, kind: int, at: int) -> None:
    logits = np.full((1, 20, 10), -9.0, np.float32)
    boxes = np.full((1, 20, 4), 0.5, np.float32)
    logits[0, at, kind] = math.log(score / (1 - score))
    boxes[0, at] = query
    layout = detr.fit([Output("logits", logits.shape), Output("pred_boxes", boxes.shape)], 320, 10)
    found = detr.unpack([logits, boxes], layout, WHOLE, 0.25)
    assert not layout.no_object
    assert found.classes.tolist() == [kind]
    assert found.scores[0] == pytest.approx(score, rel=1e-4)
    assert found.boxes[0] == pytest.approx(_corners(query), abs=1e-5)


@settings(deadline=None)  # the machine may be busy
@given(query=_query, weights=st.lists(st.floats(0.01, 10), min_size=11, max_size=11), at=st.integers(0, 19))
def test_detr_scores_are_a_softmax_whose_last_class_is_no_object(query: tuple[float, ...], weights: list[float], at: int) -> None:
    logits = np.zeros((1, 20, 11), np.float32)
    logits[0, :, -1] = 20.0  # nothing there
    logits[0, at] = np.log(weights)
    boxes = np.full((1, 20, 4), 0.5, np.float32)
    boxes[0, at] = query
    layout = detr.fit([Output("boxes", boxes.shape), Output("scores", logits.shape)], 320, 10)  # by shape, not by name
    found = detr.unpack([boxes, logits], layout, WHOLE, 0.05)
    share = max(weights[:-1]) / sum(weights)
    assert layout.no_object
    if share >= 0.0501:
        assert found.scores.tolist() == [pytest.approx(share, rel=1e-3)]
        assert weights[found.classes[0]] == pytest.approx(max(weights[:-1]))
        assert found.boxes[0] == pytest.approx(_corners(query), abs=1e-5)
    elif share < 0.0499:
        assert len(found.scores) == 0


# Classifier


@settings(deadline=None)  # the machine may be busy
@given(logits=st.lists(st.floats(-8, 8), min_size=2, max_size=20))
def test_a_classifier_says_its_best_class_for_the_whole_picture(logits: list[float]) -> None:
    total = sum(math.exp(value) for value in logits)
    best = max(math.exp(value) / total for value in logits)
    shares = [math.exp(value) / total for value in logits]
    as_logits = classifier.fit([Output("out", (1, len(logits)), "Gemm")], 224, len(logits))
    as_shares = classifier.fit([Output("out", (1, len(logits)), "Softmax")], 224, len(logits))
    for values, layout in ((logits, as_logits), (shares, as_shares)):
        found = classifier.unpack([np.array([values], np.float32)], layout, WHOLE, 0.001)
        assert found.boxes.tolist() == [[0, 0, 1, 1]]
        assert found.scores[0] == pytest.approx(best, rel=1e-3)
        assert logits[found.classes[0]] == pytest.approx(max(logits), abs=1e-5)
    assert len(classifier.unpack([np.array([logits], np.float32)], as_logits, WHOLE, best * 1.01).scores) == 0


# Which family an output fits


@pytest.mark.parametrize(
    ("shapes", "classes", "family"),
    [
        ([(1, 784, 80), (1, 196, 80), (1, 49, 80), (1, 784, 44), (1, 196, 44), (1, 49, 44)], 80, "nanodet"),
        ([(1, 84, 1029)], 80, "yolov8"),
        ([(1, 300, 80), (1, 300, 4)], 80, "detr"),
        ([(1, 100, 92), (1, 100, 4)], 91, "detr"),
        ([(1, 1000)], 1000, "classifier"),
        ([(1, 10, 1, 1)], 10, "classifier"),
    ],
)
def test_a_layout_fits_one_family(shapes: list[tuple[int, ...]], classes: int, family: str) -> None:
    outputs = [Output(f"out{index}", shape) for index, shape in enumerate(shapes)]
    assert fitting(outputs, SIDE, classes) == [family]
    assert fitting(outputs, SIDE, classes + 7) == []
    assert (family, classes) in guesses(outputs, SIDE)


@pytest.mark.parametrize(
    ("module", "shapes", "words"),
    [
        (yolov8, [(1, 25200, 85)], "84, anchors"),  # the older YOLO layout
        (nanodet, [(1, 3598, 112)], "scores"),
        (nanodet, [(1, 784, 80), (1, 196, 44)], "boxes"),
        (detr, [(1, 300, 80)], "logits"),
        (detr, [(1, 300, 80), (1, 200, 4)], "queries"),
        (classifier, [(1, 1000)], "one a label"),
    ],
)
def test_a_misfit_names_what_was_found_and_what_was_expected(module: object, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(Misfit, match=words) as caught:
        module.fit([Output(f"out{index}", shape) for index, shape in enumerate(shapes)], SIDE, 80)  # type: ignore[attr-defined]
    assert "out0" in str(caught.value)


# Suppression


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _plain_suppression(boxes: list[list[float]], scores: list[float], classes: list[int], limit: float) -> list[int]:
    """The definition: best first, a box stays unless a kept one of its class overlaps it by more than the limit."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(classes[other] != classes[index] or _iou(boxes[other], boxes[index]) <= limit for other in kept):
            kept.append(index)
    return kept


_corner = st.integers(0, 12)  # on a grid, and limits that no two such boxes meet exactly: rounding must not decide
_box = st.tuples(_corner, _corner, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: [b[0] / 20, b[1] / 20, (b[0] + b[2]) / 20, (b[1] + b[3]) / 20]
)


@settings(max_examples=300, deadline=None)
@given(
    items=st.lists(st.tuples(_box, st.integers(26, 99), st.integers(0, 3)), max_size=40, unique_by=lambda item: item[1]),
    limit=st.sampled_from([0.31, 0.47, 0.6007, 0.83]),
)
def test_suppression_is_the_greedy_one_within_each_class(items: list[tuple[list[float], int, int]], limit: float) -> None:
    boxes, scores, classes = [i[0] for i in items], [i[1] / 100 for i in items], [i[2] for i in items]
    found = suppress(
        Candidates(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.intp)), limit
    )
    wanted = _plain_suppression(boxes, scores, classes, limit)
    assert [(pytest.approx(scores[i]), classes[i]) for i in wanted] == list(zip(found.scores.tolist(), found.classes.tolist(), strict=True))


def test_the_strongest_come_first_and_equal_ones_keep_their_order() -> None:
    candidates = Candidates(np.zeros((4, 4), np.float32), np.array([0.5, 0.9, 0.5, 0.9], np.float32), np.arange(4))
    assert strongest(candidates).classes.tolist() == [1, 3, 0, 2]
    assert strongest(candidates, 1).classes.tolist() == [1]


def test_boxes_off_the_picture_are_left_out() -> None:
    boxes = WHOLE.to_image(np.array([[-0.5, 0.1, -0.1, 0.4], [0.5, 0.5, 1.7, 0.9]], np.float32))
    found = to_detections(Candidates(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 0])), ["thing"])
    assert [(d.x0, d.y0, d.x1, d.y1) for d in found] == [(0.5, 0.5, 1.0, 0.9)]
