"""Matching and scores of the cascade's benchmark, held against COCO's own evaluation (pycocotools)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from infra.bench.cascade.calibration import calibration
from infra.bench.cascade.matching import IOUS, match, stacked
from infra.bench.cascade.reference import truths as agreed
from infra.bench.cascade.scoring import ALL_IOUS, average_precision, f1_scores, score
from infra.bench.cascade.truths import Truth, Truths
from schemas.detections import Detection, Detections

LABELS = ("car", "person")
Frame = tuple[tuple[Truth, ...], list[Detection]]

# Sixteenths are exact in binary and in the four digits that detections keep: both sides see the same overlaps, also those of exactly .5.
spans = st.tuples(st.integers(0, 15), st.integers(1, 16)).map(lambda span: (span[0] / 16, min(16, sum(span)) / 16))
kinds = st.sampled_from([{}, {}, {}, {"ignored": True}, {"ignored": True, "crowd": True}])
truth = st.builds(lambda label, x, y, kind: Truth(label, x[0], y[0], x[1], y[1], **kind), st.sampled_from(LABELS), spans, spans, kinds)
answer = st.builds(
    lambda label, score, x, y: Detection(label, score / 16, x[0], y[0], x[1], y[1]),
    st.sampled_from(LABELS),
    st.integers(0, 16),
    spans,
    spans,
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Truths, and detections of which some are near truths, so that much is found."""
    boxes = draw(st.lists(truth, max_size=6))
    found = draw(st.lists(answer, max_size=6))
    for box in boxes:
        if draw(st.booleans()):
            found.append(Detection(box.label, draw(st.integers(0, 16)) / 16, box.x0, box.y0, box.x1, box.y1))
    return tuple(boxes), draw(st.permutations(found))


def both(video: Sequence[Frame]) -> tuple[Truths, list[Detections]]:
    return Truths(frames=tuple(boxes for boxes, _ in video), origin="test"), [Detections(found) for _, found in video]


def coco(video: Sequence[Frame]) -> COCOeval:
    """COCO's own evaluation of the same frames. It takes `ignore` from crowds only, so other ignored truths are made too large for it."""
    images = [{"id": number} for number in range(len(video))]
    categories = [{"id": number, "name": name} for number, name in enumerate(LABELS)]
    wanted, seen = [], []
    for number, (boxes, found) in enumerate(video):
        for box in boxes:
            area = 1e12 if box.ignored and not box.crowd else 1.0
            wanted.append({**place(number, box), "id": len(wanted) + 1, "area": area, "iscrowd": int(box.crowd)})
        for each in found:
            seen.append({**place(number, each), "id": len(seen) + 1, "area": 1.0, "score": each.score, "iscrowd": 0})
    sides = []
    for marks in (wanted, seen):
        side = COCO()
        side.dataset = {"images": images, "categories": categories, "annotations": marks}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval(*sides, iouType="bbox")
    evaluation.params.maxDets, evaluation.params.areaRng, evaluation.params.areaRngLbl = [100], [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def place(number: int, box: Truth | Detection) -> dict[str, Any]:
    return {"image_id": number, "category_id": LABELS.index(box.label), "bbox": [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]}


def coco_precisions(evaluation: COCOeval) -> np.ndarray:
    """[overlaps, labels], NaN where a label has no truth."""
    found = evaluation.eval["precision"][:, :, :, 0, 0].mean(axis=1)
    return np.where(found < 0, np.nan, found)


def our_precisions(video: Sequence[Frame], weights: np.ndarray | None = None) -> np.ndarray:
    matches = match(*both(video))
    return np.array([[average_precision(matches, weights, ious=(at,), labels=[label])[0] for label in LABELS] for at in ALL_IOUS])


@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), min_size=1, max_size=5))
def test_average_precision_is_cocos_at_each_overlap_and_label(video: list[Frame]) -> None:
    np.testing.assert_array_equal(IOUS, COCOeval(iouType="bbox").params.iouThrs)
    np.testing.assert_allclose(our_precisions(video), coco_precisions(coco(video)), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(frames(), min_size=1, max_size=4), st.data())
def test_whole_weights_are_copies_of_frames(video: list[Frame], data: st.DataObject) -> None:
    total = sum(len(found) for _, found in video)
    scores = iter(data.draw(st.permutations(range(1, total + 1))))  # no two are equal: copies may be told apart by nothing else
    video = [
        (boxes, [Detection(each.label, next(scores) / 256, each.x0, each.y0, each.x1, each.y1) for each in found]) for boxes, found in video
    ]
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(video), max_size=len(video)).filter(any))
    copies = [frame for frame, count in zip(video, weights, strict=True) for _ in range(count)]
    np.testing.assert_allclose(our_precisions(video, np.array(weights)), coco_precisions(coco(copies)), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(frames(), min_size=1, max_size=4), st.integers(0, 16))
def test_precision_recall_and_f1_are_counts_of_cocos_matches(video: list[Frame], sixteenths: int) -> None:
    right = answered = truths = 0
    for image in filter(None, coco(video).evalImgs):
        above = np.array(image["dtScores"]) >= sixteenths / 16
        counted = above & ~image["dtIgnore"][0].astype(bool)
        right += int((counted & (image["dtMatches"][0] > 0)).sum())
        answered += int(counted.sum())
        truths += int((~np.array(image["gtIgnore"]).astype(bool)).sum())
    found = score(match(*both(video)), operating_score=sixteenths / 16, labels=LABELS)
    assert found.truths == truths
    assert found.precision == (pytest.approx(right / answered) if answered else None)
    assert found.recall == (pytest.approx(right / truths) if truths else None)
    assert found.f1 == (pytest.approx(2 * right / (answered + truths)) if answered + truths else None)


def test_the_hundred_best_of_a_frame_and_label_count() -> None:
    strips = [Detection("person", 1 - index / 256, 0, index / 160, 1, (index + 1) / 160) for index in range(120)]
    video: list[Frame] = [(tuple(Truth("person", *(each.x0, each.y0, each.x1, each.y1)) for each in strips[90:]), strips)]
    found = our_precisions(video)[0]
    np.testing.assert_allclose(found, coco_precisions(coco(video))[0], atol=1e-12)
    assert 0 < found[1] < 0.1, "ten of the thirty are found, at the end of the hundred"


def test_the_mean_is_over_labels_that_have_truths_or_those_that_were_chosen() -> None:
    video: list[Frame] = [
        ((Truth("person", 0, 0, 0.5, 0.5),), [Detection("person", 0.9, 0, 0, 0.5, 0.5), Detection("car", 0.8, 0.5, 0.5, 1, 1)]),
        ((Truth("car", 0, 0, 0.5, 0.5, ignored=True),), []),
    ]
    matches = match(*both(video))
    plain, chosen = score(matches, operating_score=0.5), score(matches, operating_score=0.5, labels=["person", "car", "unheard of"])
    assert (plain.ap50, plain.precision, list(plain.by_label)) == (1.0, 1.0, ["person"])
    assert (chosen.ap50, chosen.precision, list(chosen.by_label)) == (1.0, 0.5, ["car", "person"])
    assert chosen.by_label["car"].ap50 is None
    nothing = score(match(Truths(frames=((),), origin=""), [Detections()]), operating_score=0.5)
    assert (nothing.ap50, nothing.ap50_95, nothing.f1, nothing.truths) == (None, None, None, 0)


def test_frames_about_which_nothing_is_known_leave_no_trace() -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    known = Truths(frames=((Truth("person", *box),), None), origin="")
    seen = [Detections([Detection("person", 0.5, *box)]), Detections([Detection("person", 0.9, *box)])]
    assert score(match(known, seen), operating_score=0.4).precision == 1.0
    full = Truths(frames=((Truth("person", *box),), ()), origin="")
    assert score(match(full, seen), operating_score=0.4).precision == 0.5
    assert score(match(full.only([0]), seen), operating_score=0.4).precision == 1.0
    with pytest.raises(ValueError, match="1 frames against truths of 2"):
        match(full, seen[:1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(frames(), frames(), st.booleans()), min_size=1, max_size=5))
def test_two_runs_stacked_score_any_choice_between_them(video: list[tuple[Frame, Frame, bool]]) -> None:
    truths = Truths(frames=tuple(first[0] for first, _, _ in video), origin="")
    one, two = ([Detections(frame[at][1]) for frame in video] for at in (0, 1))
    mask = np.array([[chosen for _, _, chosen in video]], float)
    pair = stacked(match(truths, one), match(truths, two))
    mixed = match(truths, [second if chosen else first for first, second, (_, _, chosen) in zip(one, two, video, strict=True)])
    weights = np.concatenate([1 - mask, mask], axis=1)
    np.testing.assert_allclose(f1_scores(pair, weights, operating_score=0.5), f1_scores(mixed, operating_score=0.5))
    for label in LABELS:  # order among equal scores may differ, which moves average precision; the counts may not
        for found in (pair, mixed):
            assert label not in found.by_label or (np.diff(found.by_label[label].scores) <= 0).all()
        if label in mixed.by_label:
            kept = weights[0][pair.by_label[label].frames] > 0
            for field in ("found", "counted"):
                ours, theirs = getattr(pair.by_label[label], field)[:, kept], getattr(mixed.by_label[label], field)
                np.testing.assert_array_equal(ours.sum(axis=1), theirs.sum(axis=1))


def test_rows_of_weights_are_scored_as_each_alone() -> None:
    rng = np.random.default_rng(5)
    video: list[Frame] = []
    for _ in range(40):
        corners = rng.integers(0, 12, (5, 2)) / 16
        boxes = tuple(Truth("person", x, y, x + 0.25, y + 0.25) for x, y in corners)
        video.append((boxes, [Detection("person", rng.integers(0, 17) / 16, x, y, x + 0.25, y + 0.25) for x, y in corners[:3]]))
    matches = match(*both(video))
    rows = rng.integers(0, 3, (7, 40)).astype(float)
    rows[3] = 0
    together = average_precision(matches, rows, ious=ALL_IOUS)
    np.testing.assert_array_equal(together, [average_precision(matches, row, ious=ALL_IOUS)[0] for row in rows])
    assert np.isnan(together[3]), "no truth, no figure"
    with pytest.raises(ValueError, match="weights of 3 frames for a run of 40"):
        average_precision(matches, np.ones((1, 3)))


# ---- a reference instead of labels


def test_a_reference_agrees_with_itself_and_its_unsure_boxes_count_neither_way() -> None:
    boxes = [(0, 0, 0.25, 0.25), (0.5, 0.5, 0.75, 0.75), (0, 0.5, 0.25, 0.75)]
    seen = [Detections([Detection("person", value, *box) for value, box in zip((0.9, 0.4, 0.1), boxes, strict=True)]), Detections()]
    truths = agreed([*seen, None], reference="large", true_from=0.5, unsure_from=0.3)
    assert truths.known == [0, 1]
    found = score(match(truths, [*seen, Detections()]), operating_score=0.3)
    assert (found.ap50_95, found.precision, found.recall, found.truths) == (1.0, 1.0, 1.0, 1)
    below = score(match(truths, [*seen, Detections()]), operating_score=0.05)
    assert below.precision == 0.5, "what the reference hardly saw is wrong"
    with pytest.raises(ValueError, match="true_from"):
        agreed(seen, reference="large", true_from=0.2, unsure_from=0.3)


# ---- calibration


def scored(scores: Sequence[float], right: Sequence[bool]) -> Any:
    """One frame a detection, each right or wrong."""
    box, elsewhere = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)
    video: list[Frame] = [
        ((Truth("person", *box),), [Detection("person", value, *(box if hit else elsewhere))])
        for value, hit in zip(scores, right, strict=True)
    ]
    return match(*both(video))


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(1, 31)), st.lists(st.booleans(), min_size=30, max_size=30))
def test_the_calibration_error_is_the_mean_distance_over_bins_of_equal_mass(numbers: list[int], right: list[bool]) -> None:
    scores = [number / 40 for number in numbers]
    pairs = sorted(zip(scores, right, strict=True))
    slow = sum(
        abs(sum(score for score, _ in part) - sum(hit for _, hit in part)) for part in (pairs[at : at + 5] for at in range(0, 30, 5))
    )
    found = calibration(scored(scores, right), bins=6)
    assert found.error == pytest.approx(slow / 30)
    assert [each.weight for each in found.bins] == [5] * 6


def test_equal_scores_are_one_bin_and_weights_count() -> None:
    found = calibration(scored([0.5] * 10, [True] * 5 + [False] * 5), bins=5)
    assert (found.error, len(found.bins)) == (0.0, 1)
    assert calibration(scored([0.5, 0.5], [True, False]), weights=[1, 0]).error == 0.5
    assert calibration(scored([], [])).error is None


def test_a_calibrated_detector_has_a_small_error_and_an_overconfident_one_the_difference() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(0.05, 0.75, 20_000)
    right = rng.random(20_000) < true
    assert (calibration(scored(true, right)).error or 0) < 0.02
    assert calibration(scored(true + 0.2, right)).error == pytest.approx(0.2, abs=0.02)
