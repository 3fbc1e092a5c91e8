"""Rules and zones, and how an alert follows the joined answer on its own frame: whatever order answers and copies of the alert come in,
and however often, it ends the same."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from functools import reduce
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from schemas.alerts import join_alerts, judge, judged_by, lateness_s, latest, state_of
from schemas.detections import Detection, Detections
from schemas.messages import LATE_S, LEAF_PREFERRED_RANK, Alert, AlertState, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.resolution import clamp, join, result_of, unanswered
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
    for tier, rank in ((Tier.REGION, 20), (Tier.CLOUD, 30), (Tier.LEAF, LEAF_PREFERRED_RANK)):
        result = result_of(answer(seen, tier=tier, rank=rank))
        later = judge(ALERT, result)
        assert later is not None
        assert later == msgspec.structs.replace(ALERT, state=state, version=state.height, decided_by=tier, order=later.order)
        assert later.order.startswith(result.order)


@pytest.mark.parametrize(
    "verdict",
    [LEAF, answer([], tier=Tier.LEAF, rank=10), answer([PERSON], tier=Tier.LEAF, rank=10), answer([], status=Status.FAILED)],
)
def test_a_leafs_ordinary_answer_and_a_failed_one_decide_nothing(verdict: Verdict) -> None:
    assert state_of(ALERT, result_of(verdict)) is AlertState.RAISED
    assert judge(ALERT, result_of(verdict)) is None


def test_a_higher_tiers_provisional_answer_decides_until_a_better_one_comes() -> None:
    """It is the joined result, and a passed deadline, which it beats, would decide as well."""
    assert state_of(ALERT, result_of(answer([], status=Status.PROVISIONAL, deadline_ms=5))) is AlertState.RETRACTED


def test_a_deadline_that_passed_leaves_it_unreviewed() -> None:
    later = judge(ALERT, result_of(PASSED))
    assert later is not None
    assert later == msgspec.structs.replace(ALERT, state=AlertState.UNREVIEWED, version=1, order=later.order)
    assert later.decided_by is None, "nobody decided"


def test_a_result_of_another_record_is_no_answer() -> None:
    with pytest.raises(ValueError, match="alert-1 is about cam-1/e/0, not cam-1/e/1"):
        judge(ALERT, result_of(answer(id="cam-1/e/1")))


def test_messages_of_different_alerts_do_not_join() -> None:
    with pytest.raises(ValueError, match="alert-1 and alert-2"):
        join_alerts(ALERT, msgspec.structs.replace(ALERT, id="alert-2"))


JUDGED = msgspec.structs.replace(ALERT, state=AlertState.JUDGED, version=4)
MORNING = dt.datetime(2026, 2, 1, 8, tzinfo=dt.UTC)
BY_PEOPLE = [judged_by(ALERT, "anna", MORNING, False), judged_by(ALERT, "ben", MORNING + dt.timedelta(hours=1), True)]


def test_a_person_says_whether_it_was_right_and_the_later_word_holds() -> None:
    wrong, right = BY_PEOPLE
    assert (wrong.state, wrong.right, wrong.note) == (AlertState.JUDGED, False, "wrong, says anna")
    confirmed = judge(ALERT, result_of(answer([PERSON])))
    assert confirmed is not None
    assert latest(ALERT, confirmed, wrong) == latest(wrong, ALERT, confirmed)
    assert latest(confirmed, wrong).right is False
    assert latest(right, wrong, confirmed) == latest(wrong, right) == right
    assert judge(right, result_of(answer([], tier=Tier.CLOUD, rank=30))) is None
    again = judged_by(right, "anna", MORNING + dt.timedelta(hours=2), None)
    assert (again.right, again.note) == (None, "seen, says anna")
    assert latest(right, again) == again
    assert Alert.from_bytes(wrong.to_bytes()) == wrong
    with pytest.raises(InvalidRecord, match="with 'judged' only"):
        msgspec.structs.replace(ALERT, right=True)


@pytest.mark.parametrize("verdict", [PASSED, answer(), answer([PERSON]), answer([], tier=Tier.CLOUD, rank=30)])
def test_what_a_person_has_judged_no_answer_changes(verdict: Verdict) -> None:
    assert judge(JUDGED, result_of(verdict)) is None
    by_machine = judge(ALERT, result_of(verdict))
    assert by_machine is not None
    assert join_alerts(JUDGED, by_machine) == join_alerts(by_machine, JUDGED) == JUDGED


def test_the_chain_orders_what_an_older_version_wrote_without_an_order() -> None:
    chain = [AlertState.RAISED, AlertState.UNREVIEWED, AlertState.RETRACTED, AlertState.CONFIRMED]
    old = [msgspec.structs.replace(ALERT, state=state, version=state.height) for state in chain]
    for low, high in zip(old, [*old[1:], JUDGED], strict=True):
        assert join_alerts(low, high) == join_alerts(high, low) == high
    again = judge(old[-1], result_of(answer()))
    assert again is not None, "an answer that is known decides anew"
    assert again.state is AlertState.RETRACTED


@pytest.mark.parametrize("region", [answer(), answer([PERSON])], ids=["retracts", "confirms"])
def test_a_better_answer_that_comes_later_decides_anew_and_a_worse_one_never(region: Verdict) -> None:
    cloud = answer([] if region.detections else [PERSON], tier=Tier.CLOUD, rank=30)
    state = AlertState.RETRACTED if region.detections else AlertState.CONFIRMED
    for order in ([region, cloud], [cloud, region], [PASSED, region, cloud, PASSED]):
        assert end_of([ALERT], [LEAF, *order]).state is state


def end_of(copies: Sequence[Alert], verdicts: Sequence[Verdict], order: Sequence[int] = ()) -> Alert:
    """What a resolver's memory holds in the end: it joins what comes, and judges by what it knows."""
    events: list[Alert | Verdict] = [*copies, *verdicts]
    alert: Alert | None = None
    result: Result | None = None
    written: list[Alert] = []
    for event in [events[at] for at in order] or events:
        if isinstance(event, Alert):
            alert = join_alerts(alert, event)
        else:
            result = join(result, result_of(event))
        if alert is not None:
            alert = (judge(alert, result) if result is not None else None) or alert
            written.append(alert)
    assert alert is not None
    decided = [each for each in written if each.order]
    assert [each.order for each in decided] == sorted(each.order for each in decided), "readers by maximum believe what came last"
    if decided:
        assert latest(*written[::-1]) == alert, "and so do those who read in any order"
    return alert


COPIES = [
    ALERT,
    msgspec.structs.replace(ALERT, late_by_s=7.5),
    msgspec.structs.replace(ALERT, site="leaf-2", model_digest="2" * 64, late_by_s=0.2),
    msgspec.structs.replace(ALERT, site="leaf-2", zone=Zone([(0, 0), (0.1, 0), (0.1, 0.1)]), late_by_s=3.0),  # a site with another rule
    msgspec.structs.replace(ALERT, raised_by=Tier.REGION, site="zz", min_score=0.9, late_by_s=60.0),
]
ANSWERS = [
    LEAF,
    PASSED,
    answer([PERSON], tier=Tier.LEAF, rank=LEAF_PREFERRED_RANK),
    *(
        answer(seen, tier=tier, rank=rank, generation=generation, confidence=confidence, status=status, **more)
        for seen in ([], [PERSON], [Detection("person", 0.95, 0.4, 0.2, 0.6, 0.8)])
        for tier, rank in ((Tier.REGION, 20), (Tier.CLOUD, 30))
        for generation, confidence in ((0, 0.5), (1, 0.2))
        for status, more in ((Status.FINAL, {}), (Status.FAILED, {}), (Status.PROVISIONAL, {"deadline_ms": 9}))
    ),
]


def oracle_state(copies: Sequence[Alert], verdicts: Sequence[Verdict]) -> tuple[AlertState, Tier | None]:
    """By hand: the raise that holds, judged by the answer that is preferred."""
    leafs = [copy for copy in copies if copy.raised_by is Tier.LEAF]
    site = max(copy.site for copy in leafs or copies)
    raises = {(copy.min_score, copy.zone) for copy in leafs or copies if copy.site == site}
    best = max(verdicts, key=lambda v: result_of(v).order, default=None)
    if best is None or best.rank < 20 or best.status is Status.FAILED:
        return AlertState.RAISED, None
    if best.status is Status.UNANSWERED:
        return AlertState.UNREVIEWED, None
    assume(len(raises) == 1)  # of one site's two rules of one name either may hold
    ((min_score, zone),) = raises
    seen = any(d.label == "person" and d.score >= min_score and oracle(zone, ((d.x0 + d.x1) / 2, d.y1)) for d in best.detections)
    return AlertState.CONFIRMED if seen else AlertState.RETRACTED, best.tier


@given(st.lists(st.sampled_from(COPIES), min_size=1, max_size=4), st.lists(st.sampled_from(ANSWERS), max_size=5), st.data())
def test_in_whatever_order_and_however_often_all_comes_the_alert_ends_the_same(
    copies: list[Alert], verdicts: list[Verdict], data: st.DataObject
) -> None:
    everything = list(range(len(copies) + len(verdicts)))
    order = data.draw(st.permutations(everything + data.draw(st.lists(st.sampled_from(everything), max_size=4))))
    end = end_of(copies, verdicts, order)
    assert end == end_of(copies, verdicts)
    assert (end.state, end.decided_by) == oracle_state(copies, verdicts)
    assert end.late_by_s == min(copy.late_by_s for copy in copies)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
def test_two_sites_whose_rules_of_one_name_differ_are_judged_by_the_one_that_holds(order: list[int]) -> None:
    """Also where the other was judged first, by the same answer."""
    elsewhere = msgspec.structs.replace(ALERT, site="leaf-2", zone=Zone([(0, 0), (0.1, 0), (0.1, 0.1)]))
    end = end_of([ALERT, elsewhere], [answer([PERSON])], order)
    assert (end.site, end.zone, end.state) == ("leaf-2", elsewhere.zone, AlertState.RETRACTED)


messages = st.builds(
    lambda copy, verdict: copy if verdict is None else judge(copy, result_of(verdict)) or copy,
    st.sampled_from([*COPIES, *BY_PEOPLE, JUDGED, msgspec.structs.replace(JUDGED, note="no")]),
    st.none() | st.sampled_from(ANSWERS),
)


@given(messages, messages, messages)
def test_messages_of_an_alert_form_a_semilattice(a: Alert, b: Alert, c: Alert) -> None:
    assert join_alerts(a, b) == join_alerts(b, a)
    assert join_alerts(join_alerts(a, b), c) == join_alerts(a, join_alerts(b, c))
    assert join_alerts(a, a) == a
    assert join_alerts(None, a) == a
    assert reduce(join_alerts, [b, a, c, b]) == latest(c, b, a)


@given(st.sampled_from(ANSWERS), st.sampled_from(ANSWERS))
def test_the_same_answer_says_nothing_new_and_changes_nothing_but_the_state(first: Verdict, verdict: Verdict) -> None:
    alert = judge(ALERT, result_of(first)) or ALERT
    later = judge(alert, result_of(verdict))
    if later is not None:
        assert judge(later, result_of(verdict)) is None
        assert judge(later, result_of(first)) is None
        kept = {name for name in Alert.__struct_fields__ if getattr(later, name) == getattr(alert, name)}
        assert set(Alert.__struct_fields__) - kept <= {"state", "version", "decided_by", "order"}


@given(st.sampled_from([Status.PROVISIONAL, Status.UNANSWERED]), st.integers(0, 99), st.booleans())
def test_also_where_the_leaf_is_preferred_the_answer_that_is_waited_for_holds(status: Status, rank: int, there: bool) -> None:
    """Otherwise an alert there would stay raised, or unreviewed, for ever."""
    claimed = answer([PERSON], tier=Tier.LEAF, rank=rank, status=status, deadline_ms=9 if status is Status.PROVISIONAL else None)
    waits = clamp(claimed, Tier.LEAF)
    region = answer([PERSON] if there else [])
    assert end_of([ALERT], [waits, region]).state is (AlertState.CONFIRMED if there else AlertState.RETRACTED)
    if status is Status.PROVISIONAL:
        assert end_of([ALERT], [waits, unanswered(waits)]).state is AlertState.UNREVIEWED
        assert end_of([ALERT], [waits, unanswered(waits), region]) == end_of([ALERT], [waits, region])


def test_late_is_what_waited_long_and_what_was_replayed() -> None:
    assert not msgspec.structs.replace(ALERT, late_by_s=lateness_s(LATE_S - 0.01)).late
    assert msgspec.structs.replace(ALERT, late_by_s=lateness_s(LATE_S)).late
    assert msgspec.structs.replace(ALERT, late_by_s=lateness_s(0.001, replayed=True)).late
    assert lateness_s(3600.0004, replayed=True) == 3600.0
