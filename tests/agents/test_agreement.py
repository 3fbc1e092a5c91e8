"""Matching of two answers to one frame, held against what a matching must be, whoever made it."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.agreement import Counts, agree, compare, judged_scores, partners
from schemas.detections import Detection, Detections
from schemas.rules import Rule, Zone

grid = st.integers(0, 9).map(lambda n: n / 10)


@st.composite
def detection(draw: st.DrawFn) -> Detection:
    x, y = draw(grid), draw(grid)
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return Detection(
        draw(st.sampled_from(["person", "dog"])),
        draw(st.integers(0, 20)) / 20,
        x,
        y,
        round(min(x + width / 10, 1.0), 4),
        round(min(y + height / 10, 1.0), 4),
    )


many = st.lists(detection(), max_size=8)


def person(score: float, x: float, y: float = 0.1, label: str = "person") -> Detection:
    return Detection(label, score, x, y, round(x + 0.1, 4), round(y + 0.3, 4))


# ---- which are the same objects


@given(many, many)
@settings(deadline=None)
def test_a_pair_is_of_one_class_and_overlaps_and_nobody_is_in_two(first: list[Detection], second: list[Detection]) -> None:
    found = partners(first, second)
    taken = [partner for partner in found if partner is not None]
    assert len(found) == len(first)
    assert len(set(taken)) == len(taken)
    for one, partner in zip(first, found, strict=True):
        if partner is not None:
            assert second[partner].label == one.label
            assert one.iou(second[partner]) >= 0.5


@given(many, many)
@settings(deadline=None)
def test_nobody_is_left_who_could_be_paired(first: list[Detection], second: list[Detection]) -> None:
    found = partners(first, second)
    for one, partner in zip(first, found, strict=True):
        if partner is None:
            free = [each for index, each in enumerate(second) if index not in found]
            assert not any(each.label == one.label and each.iou(one) >= 0.5 for each in free)


@given(many, many)
@settings(deadline=None)
def test_who_scores_higher_chooses_first(first: list[Detection], second: list[Detection]) -> None:
    """Nobody would rather have the partner of one who scores lower."""
    found = partners(first, second)
    for one, partner in zip(first, found, strict=True):
        have = one.iou(second[partner]) if partner is not None else 0.0
        for other, theirs in zip(first, found, strict=True):
            if theirs is not None and other.score < one.score and second[theirs].label == one.label and one.iou(second[theirs]) >= 0.5:
                assert one.iou(second[theirs]) <= have


def test_the_order_of_a_list_does_not_matter() -> None:
    first = [person(0.6, 0.10), person(0.9, 0.12), person(0.3, 0.5)]
    second = [person(0.8, 0.13), person(0.7, 0.5)]
    assert partners(first, second) == [None, 0, 1]
    for order in permutations(first):
        assert compare(order, second, score=0.1) == Counts(tp=2, fp=1, fn=0)


def test_another_class_is_another_object() -> None:
    assert compare([person(0.9, 0.1)], [person(0.9, 0.1, label="dog")]) == Counts(tp=0, fp=1, fn=1)


@pytest.mark.parametrize(("x", "same"), [(0.4333, True), (0.4334, False)])
def test_half_of_the_union_is_enough(x: float, same: bool) -> None:
    """Boxes of width .1 that are shifted by a third of it share half of their union."""
    one, other = Detection("person", 0.9, 0.4, 0.0, 0.5, 1.0), Detection("person", 0.9, x, 0.0, round(x + 0.1, 4), 1.0)
    assert compare([one], [other]).same is same


# ---- counts


@given(many, many, st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_every_reported_object_is_counted_once(first: list[Detection], second: list[Detection], score: int, other: int) -> None:
    found = compare(first, second, score=score / 20, second_score=other / 20)
    assert found.tp + found.fp == sum(each.score >= score / 20 for each in first)
    assert found.tp + found.fn == sum(each.score >= other / 20 for each in second)
    assert found.same == (found.precision in (None, 1.0) and found.recall in (None, 1.0))


@given(many)
@settings(deadline=None)
def test_an_answer_agrees_with_itself(first: list[Detection]) -> None:
    assert compare(first, first).same
    assert agree(Detections(first), Detections(first))


def test_shares_of_counts() -> None:
    counts = Counts(3, 1, 2) + Counts(1, 0, 0)
    assert (counts.precision, counts.recall, counts.f1) == (4 / 5, 4 / 6, 8 / 11)
    assert (Counts().precision, Counts().recall, Counts().f1) == (None, None, None)


def test_what_nobody_reads_is_not_judged() -> None:
    assert compare([person(0.49, 0.1)], [], score=0.5) == Counts()
    assert compare([person(0.5, 0.1)], [person(0.3, 0.1)], score=0.5, second_score=0.0) == Counts(tp=1)


def test_weak_scores_are_judged_too() -> None:
    first = [person(0.9, 0.1), person(0.2, 0.5), person(0.1, 0.8)]
    second = [person(0.8, 0.1), person(0.6, 0.5), person(0.4, 0.8)]
    assert judged_scores(first, second) == [(0.9, True), (0.2, True), (0.1, False)]


# ---- whether a reader would do the same


def test_rules_say_what_is_acted_upon() -> None:
    left = Rule(name="left", min_score=0.6, zone=((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))
    rules = [(left, Zone(left.zone))]
    leaf, region = Detections([person(0.9, 0.1), person(0.9, 0.7)]), Detections([person(0.7, 0.3)])
    assert agree(leaf, region, rules), "both find somebody on the left, and nobody asked where"
    assert not agree(leaf, region)
    assert not agree(leaf, Detections([person(0.59, 0.1)]), rules)
    assert not agree(leaf, Detections([person(0.9, 0.7)]), rules)
    assert agree(Detections(), Detections([person(0.9, 0.7)]), rules)


def test_one_of_many_may_be_tolerated() -> None:
    ten = Detections([person(0.9, n / 10, 0.0 if n % 2 else 0.5) for n in range(10)])
    nine = Detections(list(ten)[:9])
    assert not agree(ten, nine)
    assert agree(ten, nine, tolerance=0.1)
    assert not agree(ten, Detections(list(ten)[:8]), tolerance=0.1)
