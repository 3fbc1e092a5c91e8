"""Detections: bounds, rounding, and the JSON string they travel as."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.detections import MAX_DETECTIONS, Detection, Detections
from schemas.records import InvalidRecord

GOOD: dict[str, Any] = {"label": "person", "score": 0.5, "x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4, "track": 3}


@given(st.lists(st.from_type(Detection), max_size=6))
def test_rounding_moves_nothing_by_more_than_half_a_step_and_only_once(items: list[Detection]) -> None:
    rounded = Detections(items)
    assert Detections(rounded) == rounded
    assert len(rounded) == len(items)
    for before, after in zip(items, rounded, strict=True):
        assert (after.label, after.track) == (before.label, before.track)
        for name in ("score", "x0", "y0", "x1", "y1"):
            number = getattr(after, name)
            assert abs(number - getattr(before, name)) <= 0.5e-4 + 1e-12
            assert number == round(number, 4), "a number of four digits"
            assert len(repr(number)) <= len("0.1234") or "e" in repr(number)
        assert 0 <= after.x0 <= after.x1 <= 1
        assert 0 <= after.y0 <= after.y1 <= 1


@given(st.from_type(Detections))
def test_they_read_back_as_they_were(detections: Detections) -> None:
    text = detections.to_json()
    assert Detections.from_json(text) == detections
    assert [item[:6] for item in json.loads(text)] == [[d.label, d.score, d.x0, d.y0, d.x1, d.y1] for d in detections]
    assert hash(Detections.from_json(text)) == hash(detections)


@given(st.text() | st.recursive(st.none() | st.floats() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_any_text_is_refused_or_valid(text: str) -> None:
    try:
        found = Detections.from_json(text)
    except InvalidRecord:
        return
    assert Detections.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("field", "value", "expectation"),
    [
        ("label", "", "1 to 64 characters"),
        ("label", "x" * 65, "1 to 64 characters"),
        ("label", None, "1 to 64 characters"),
        ("label", "a\0", "NUL"),
        ("label", "\udc80", "surrogate"),
        ("score", 1.0001, "1.0001.*0 to 1"),
        ("score", float("nan"), "nan.*0 to 1"),
        ("score", -float("inf"), "inf.*0 to 1"),
        ("score", True, "True.*a number"),
        ("score", "0.5", "'0.5'.*a number"),
        ("score", None, "None.*a number"),
        ("score", Decimal("0.5"), "Decimal.*a number"),
        ("x0", -0.01, "-0.01.*0 to 1"),
        ("x0", 10**400, "1000.*0 to 1"),
        ("y1", 2, "2.*0 to 1"),
        ("x0", 0.31, r"0.3, 0.4: expected at least x0, y0.*0.31"),
        ("y0", 0.41, r"0.3, 0.4: expected at least x0, y0.*0.41"),
        ("track", -1, "-1.*whole number"),
        ("track", 1 << 53, "9007199254740992.*whole number"),
        ("track", 1.0, "1.0.*whole number"),
        ("track", False, "False.*whole number"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, expectation: str) -> None:
    named = {"x0": "x[01]", "y0": "[xy]1"}.get(field, field)
    with pytest.raises(InvalidRecord, match=rf"(?s)^Detection\.{named}.*{expectation}"):
        Detections([Detection(**{**GOOD, field: value})])


@given(st.sampled_from(sorted(GOOD)), st.sampled_from([10**5000, object(), b"", [], {}, 1j, np.array([0.5, 0.6]), Detections()]))
def test_a_field_of_any_other_type_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRecord):
        Detections([Detection(**{**GOOD, field: value})])


def test_what_is_no_detection_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="expected a Detection"):
        Detections([("person", 0.5, 0, 0, 1, 1)])  # type: ignore[list-item]


def test_numbers_as_arrays_hold_them_are_taken() -> None:
    row = np.array([0.5, 0.125, 0.25, 0.75, 1.0], np.float32)
    taken = Detections([Detection("person", *row)])
    assert taken == Detections([Detection("person", 0.5, 0.125, 0.25, 0.75, 1)])
    assert json.loads(taken.to_json()) == [["person", 0.5, 0.125, 0.25, 0.75, 1.0, None]]


def test_there_is_a_most() -> None:
    one = Detection(**GOOD)
    assert len(Detections([one] * MAX_DETECTIONS)) == MAX_DETECTIONS
    with pytest.raises(InvalidRecord, match="301 detections in one frame: at most 300"):
        Detections([one] * (MAX_DETECTIONS + 1))
    with pytest.raises(InvalidRecord, match="at most 300"):
        Detections.from_json(json.dumps([list(GOOD.values())] * 301))


# ---- geometry


def area(d: Detection) -> float:
    return (d.x1 - d.x0) * (d.y1 - d.y0)


@given(st.from_type(Detection), st.from_type(Detection))
@example(Detection("a", 1, 0, 0, 1e-200, 1e-200), Detection("a", 1, 0, 0, 1e-200, 1e-200))
@example(Detection("a", 1, 0.5, 0.5, 0.5, 0.5), Detection("a", 1, 0.5, 0.5, 0.5, 0.5))
def test_iou_is_a_share_and_the_same_from_both_sides(a: Detection, b: Detection) -> None:
    assert 0 <= a.iou(b) <= 1 + 1e-9
    assert a.iou(b) == pytest.approx(b.iou(a))


cells = st.integers(0, 12).flatmap(lambda low: st.tuples(st.just(low), st.integers(low + 1, 13)))


@given(cells, cells, cells, cells)
def test_iou_against_counted_cells(ax: tuple[int, int], ay: tuple[int, int], bx: tuple[int, int], by: tuple[int, int]) -> None:
    a = {(x, y) for x in range(*ax) for y in range(*ay)}
    b = {(x, y) for x in range(*bx) for y in range(*by)}
    one, two = (Detection("a", 1, x[0] / 13, y[0] / 13, x[1] / 13, y[1] / 13) for x, y in ((ax, ay), (bx, by)))
    assert one.iou(two) == pytest.approx(len(a & b) / len(a | b))


def test_the_foot_is_the_middle_of_the_lower_edge() -> None:
    assert Detection("person", 1, 0.25, 0.5, 0.75, 1.0).foot == (0.5, 1.0)
