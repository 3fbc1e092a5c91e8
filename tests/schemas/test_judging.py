"""Rules and zones, and how an alert follows the answers on its own frame whatever order they come in."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from schemas.detections import Detection, Detections
from schemas.messages import RANK, Alert, AlertState, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.resolution import join, judge, result_of, unanswered
from schemas.rules import MAX_POINTS, Point, Zone, best_match

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
shares = st.floats(0, 1)
points = st.tuples(shares, shares)
steps = st.integers(0, 10_000)  # coordinates as they travel, in ten-thousandths
lattice = st.tuples(steps, steps)


def oracle(zone: Zone, point: Point) -> bool:
    """OpenCV's opinion."""
    return not zone.points or cv2.pointPolygonTest(np.array(zone.points, np.float32), point, False) >= 0


def near_a_border(zone: Zone, point: Point) -> bool:
    return bool(zone.points) and abs(cv2.pointPolygonTest(np.array(zone.points, np.float32), point, True)) < 1e-5


# ---- zones


@given(st.from_type(Zone), points)
def test_a_zone_holds_what_opencv_says_it_holds(zone: Zone, point: Point) -> None:
    assume(not near_a_border(zone, point))
    assert (point in zone) == oracle(zone, point)


@given(lattice, lattice, lattice, st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)))
@example((0, 0), (10_000, 0), (5000, 10_000), (5000, 0))
@example((0, 0), (3, 1), (0, 9), (3, 1))
@example((0, 0), (10_000, 1), (0, 10_000), (10_001, 1))  # as near as a foot outside can be
def test_a_triangle_holds_its_inside_and_its_border(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int], p: tuple[int, int]) -> None:
    """In whole half-steps, which is how a foot can lie: exact, however near the border."""
    corners = [(2 * x, 2 * y) for x, y in (a, b, c)]
    sides = [
        (x1 - x0) * (p[1] - y0) - (y1 - y0) * (p[0] - x0) for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True)
    ]
    assume(sum(sides) != 0)  # twice the area
    inside = all(side >= 0 for side in sides) or all(side <= 0 for side in sides)
    zone = Zone([(x / 10_000, y / 10_000) for x, y in (a, b, c)])
    assert ((p[0] / 20_000, p[1] / 20_000) in zone) == inside


@given(lattice, lattice, st.integers(0, 20_000), st.integers(0, 20_000), st.sampled_from([None, 0, 1]))
def test_a_rectangle_holds_its_inside_and_its_border(
    one: tuple[int, int], two: tuple[int, int], x: int, y: int, corner: int | None
) -> None:
    (x0, x1), (y0, y1) = sorted((one[0], two[0])), sorted((one[1], two[1]))
    if corner is not None:
        x, y = 2 * (x0, x1)[corner], 2 * (y0, y1)[corner]
    zone = Zone([(x0 / 10_000, y0 / 10_000), (x1 / 10_000, y0 / 10_000), (x1 / 10_000, y1 / 10_000), (x0 / 10_000, y1 / 10_000)])
    assert ((x / 20_000, y / 20_000) in zone) == (2 * x0 <= x <= 2 * x1 and 2 * y0 <= y <= 2 * y1)


@given(points)
def test_no_polygon_is_the_whole_image_and_so_is_its_outline(point: Point) -> None:
    assert point in Zone()
    assert point in Zone([(0, 0), (1, 0), (1, 1), (0, 1)])


def test_who_is_cut_off_by_the_images_lower_edge_stands_within() -> None:
    door = Zone([(0.4, 0.5), (0.6, 0.5), (0.6, 1.0), (0.4, 1.0)])
    assert best_match(Detections([Detection("person", 0.9, 0.45, 0.2, 0.55, 1.0)]), "person", 0.5, door)


@given(st.from_type(Zone))
def test_a_zone_travels_and_comes_back(zone: Zone) -> None:
    again = Zone.from_json(zone.to_json())
    assert again == zone
    assert hash(again) == hash(zone)
    assert [tuple(point) for point in json.loads(zone.to_json())] == list(zone.points)
    assert Zone(zone.points) == zone


@pytest.mark.parametrize(
    "wrong",
    [
        *([(0, 0)], [(0, 0), (1, 1)], [(0, 0), (1, 0), (1, 1.1)], [(0, 0), (1, 0), (-0.1, 1)], [(0, 0), (1, 0), (float("nan"), 1)]),
        *([(0, 0), (1, 0), (float("inf"), 1)], [(0, 0), (1, 0), ("1", "1")], [(0, 0), (1, 0), (1,)], [(0, 0), (1, 0), (1, 1, 1)]),
        *([(0, 0), (1, 0), None], [(0, 0), (1, 0), (10**400, 1)], [(0, 0), (1, 0), (10**5000, 1)], [(0, 0)] * (MAX_POINTS + 1)),
    ],
    ids=range(13),
)
def test_what_is_no_polygon_in_the_image_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^Zone.*expected"):
        Zone(wrong)


@given(st.text() | st.lists(st.lists(st.integers(-1, 2) | st.floats() | st.none(), max_size=3), max_size=4).map(json.dumps))
def test_any_text_is_a_zone_or_refused(text: str) -> None:
    try:
        zone = Zone.from_json(text)
    except InvalidRecord:
        return
    assert Zone.from_json(zone.to_json()) == zone


# ---- one frame


@given(st.from_type(Detections), st.sampled_from(["person", "car"]), shares, st.from_type(Zone))
def test_the_best_match_is_of_the_class_the_score_and_the_zone(seen: Detections, label: str, min_score: float, zone: Zone) -> None:
    assume(not any(near_a_border(zone, ((d.x0 + d.x1) / 2, d.y1)) for d in seen))
    fitting = [d for d in seen if d.label == label and d.score >= min_score and oracle(zone, ((d.x0 + d.x1) / 2, d.y1))]
    found = best_match(seen, label, min_score, zone)
    if not fitting:
        assert found is None
    else:
        assert found in fitting
        assert found.score == max(d.score for d in fitting)


# ---- an alert's states

PERSON = Detection("person", 0.6, 0.4, 0.2, 0.6, 0.8)  # its foot is at 0.5, 0.8
AREA = Zone([(0.4, 0.7), (0.6, 0.7), (0.6, 0.9), (0.4, 0.9)])
ALERT = Alert(
    id="alert-1",
    rule="door",
    source="cam-1",
    site="leaf-1",
    record="cam-1/e/0",
    captured_at=NOON,
    state=AlertState.RAISED,
    version=0,
    label="person",
    min_score=0.5,
    zone=AREA,
    seen=Detections([PERSON]),
    score=0.6,
    held_s=0.0,
    model_digest="0" * 64,
    deadline_ms=1000,
)


def answer(seen: Sequence[Detection] = (), **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "id": "cam-1/e/0",
        "source": "cam-1",
        "captured_at": NOON,
        "status": Status.FINAL,
        "detections": Detections(seen),
        "confidence": 0.5,
        "tier": Tier.REGION,
        "site": "region",
        "rank": 20,
        "generation": 0,
        "model": "m",
        "model_digest": "1" * 64,
        **changes,
    }
    return Verdict(**fields)


LEAF = answer([PERSON], tier=Tier.LEAF, rank=10, status=Status.PROVISIONAL, deadline_ms=1000)
PASSED = unanswered(LEAF)


def state_of(alert: Alert | None) -> AlertState | None:
    return None if alert is None else alert.state


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ([PERSON], AlertState.CONFIRMED),
        ([], AlertState.RETRACTED),
        ([Detection("car", 0.9, 0.4, 0.2, 0.6, 0.8)], AlertState.RETRACTED),  # another class
        ([Detection("person", 0.49, 0.4, 0.2, 0.6, 0.8)], AlertState.RETRACTED),  # not sure enough
        ([Detection("person", 0.5, 0.4, 0.2, 0.6, 0.8)], AlertState.CONFIRMED),
        ([Detection("person", 0.9, 0.4, 0.7, 0.6, 0.99)], AlertState.RETRACTED),  # within the zone, but stands below it
        ([Detection("person", 0.9, 0.0, 0.0, 1.0, 0.8)], AlertState.CONFIRMED),  # far larger than the zone, but stands in it
        ([Detection("person", 0.9, 0.4, 0.7, 0.6, 0.99), PERSON], AlertState.CONFIRMED),  # any of them counts
    ],
)
def test_a_higher_tier_confirms_or_retracts_by_class_score_and_foot(seen: list[Detection], state: AlertState) -> None:
    for tier, rank in ((Tier.REGION, 20), (Tier.CLOUD, 30)):
        later = judge(ALERT, result_of(answer(seen, tier=tier, rank=rank)))
        assert later == msgspec.structs.replace(ALERT, state=state, version=state.height, decided_by=tier)


@pytest.mark.parametrize(
    "verdict",
    [
        LEAF,
        answer([], tier=Tier.LEAF, rank=10),
        answer([PERSON], tier=Tier.LEAF, rank=10),
        answer([], tier=Tier.LEAF, rank=25),  # a preferred leaf's own answer
        answer([], status=Status.FAILED),
        answer([], status=Status.PROVISIONAL, deadline_ms=5),
    ],
)
def test_what_is_no_answer_of_a_higher_tier_changes_nothing(verdict: Verdict) -> None:
    assert judge(ALERT, result_of(verdict)) is None


def test_a_deadline_that_passed_leaves_it_unreviewed() -> None:
    later = judge(ALERT, result_of(PASSED))
    assert later == msgspec.structs.replace(ALERT, state=AlertState.UNREVIEWED, version=1)
    assert later.decided_by is None, "nobody decided"


def test_a_result_of_another_record_is_no_answer() -> None:
    with pytest.raises(ValueError, match="alert-1 is about cam-1/e/0, not cam-1/e/1"):
        judge(ALERT, result_of(answer(id="cam-1/e/1")))


CHAIN = [AlertState.RAISED, AlertState.UNREVIEWED, AlertState.RETRACTED, AlertState.CONFIRMED, AlertState.JUDGED]
some_answers = st.sampled_from(
    [LEAF, PASSED, answer(), answer([PERSON]), answer([], tier=Tier.CLOUD, rank=30), answer([], status=Status.FAILED)]
)


@given(st.sampled_from(CHAIN), some_answers)
def test_states_only_climb_and_the_same_answer_says_nothing_new(state: AlertState, verdict: Verdict) -> None:
    alert = msgspec.structs.replace(ALERT, state=state, version=CHAIN.index(state))
    later = judge(alert, result_of(verdict))
    if later is not None:
        assert CHAIN.index(later.state) > CHAIN.index(state)
        assert later.version == CHAIN.index(later.state)
        assert judge(later, result_of(verdict)) is None
        kept = {name for name in Alert.__struct_fields__ if getattr(later, name) == getattr(alert, name)}
        assert set(Alert.__struct_fields__) - kept <= {"state", "version", "decided_by"}


def follow(events: Sequence[Verdict | None]) -> Alert:
    """What a resolver does: joins what comes, lets the alert follow each new join, and looks once at what it knows when the alert itself
    comes (None)."""
    alert: Alert | None = None
    result: Result | None = None
    for event in events:
        if event is None:
            alert = ALERT
        else:
            joined = join(result, result_of(event))
            if result is not None and joined.order == result.order:
                continue
            result = joined
        if alert is not None and result is not None:
            alert = judge(alert, result) or alert
    assert alert is not None
    return alert


higher = st.sampled_from([(Tier.REGION, 20), (Tier.CLOUD, 30)])


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[Verdict], AlertState]:
    """Verdicts on the alert's frame, of whose higher tiers all see the object, or none do; and the state that this calls for."""
    there = draw(st.booleans())
    verdicts = [LEAF]
    if draw(st.booleans()):
        verdicts.append(PASSED)
    for tier, rank in draw(st.lists(higher, max_size=3)):
        others = draw(
            st.lists(st.sampled_from([Detection("car", 0.9, 0.4, 0.2, 0.6, 0.8), Detection("person", 0.9, 0, 0, 0.1, 0.1)]), max_size=2)
        )
        verdicts.append(
            answer(
                [*others, PERSON] if there else others,
                tier=tier,
                rank=rank,
                generation=draw(st.integers(0, 3)),
                confidence=draw(shares),
                status=draw(st.sampled_from([Status.FINAL, Status.FINAL, Status.FAILED])),
            )
        )
    answered = any(v.status is Status.FINAL for v in verdicts)
    passed = PASSED in verdicts
    state = (
        (AlertState.CONFIRMED if there else AlertState.RETRACTED) if answered else AlertState.UNREVIEWED if passed else AlertState.RAISED
    )
    return verdicts, state


@given(stories(), st.data())
def test_in_whatever_order_answers_come_the_alert_ends_in_the_same_state(
    story: tuple[list[Verdict], AlertState], data: st.DataObject
) -> None:
    verdicts, state = story
    again = data.draw(st.lists(st.sampled_from(verdicts), max_size=3))
    events: list[Verdict | None] = data.draw(st.permutations([*verdicts, *again, None]))
    assert follow(events).state is state


@pytest.mark.parametrize("region", [answer(), answer([PERSON])], ids=["retracts", "confirms"])
def test_a_region_that_answers_before_or_after_the_deadline(region: Verdict) -> None:
    before, after = follow([None, LEAF, region, PASSED]), follow([None, LEAF, PASSED, region])
    assert before == after
    assert before.decided_by is Tier.REGION
    assert RANK[Tier.REGION] == region.rank


def test_what_was_confirmed_stays_confirmed() -> None:
    """Alerts are read by maximum, and the chain puts confirmed above retracted: also against a better answer that sees nothing."""
    assert follow([None, LEAF, answer([PERSON]), answer([], tier=Tier.CLOUD, rank=30)]).state is AlertState.CONFIRMED
    assert follow([None, LEAF, answer([]), answer([PERSON], tier=Tier.CLOUD, rank=30)]).state is AlertState.CONFIRMED
