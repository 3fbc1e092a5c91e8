"""Incidents: whatever order their alerts come in, and however often, the same ones stand in the end, under the same names."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.detections import Detections
from schemas.identity import alert_id
from schemas.incidents import MAX_WITNESSES, Incident, Names, Witnesses, events, gather, incident_id, incident_of, merged
from schemas.messages import LATE_S, Alert, AlertState, Tier
from schemas.records import InvalidRecord
from schemas.rules import Zone

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
GAP_S = 30.0


def alert(number: int, at_s: float = 0.0, *, source: str = "cam-1", state: AlertState = AlertState.RAISED, **changes: Any) -> Alert:
    record = f"{source}/e/{number}"
    fields: dict[str, Any] = {
        "id": alert_id("r", record),
        "rule": "r",
        "source": source,
        "site": "leaf-1",
        "record": record,
        "captured_at": NOON + dt.timedelta(seconds=at_s),
        "state": state,
        "version": state.height,
        "label": "person",
        "min_score": 0.5,
        "zone": Zone(),
        "seen": Detections(),
        "score": 0.9,
        "held_s": 0.0,
        "model_digest": "0" * 64,
        "deadline_ms": 1000,
        **changes,
    }
    return Alert(**fields)


alerts = st.builds(
    alert,
    st.integers(0, 30),
    st.just(0.0),
    source=st.sampled_from(["cam-1", "cam-2"]),
    held_s=st.sampled_from([0.0, 0.5, 25.0, 100.0]),
    state=st.sampled_from([AlertState.RAISED, AlertState.UNREVIEWED, AlertState.RETRACTED, AlertState.CONFIRMED]),
    late_by_s=st.sampled_from([0.0, 9.0]),
    site=st.sampled_from(["leaf-1", "leaf-2"]),
).flatmap(lambda a: st.just(msgspec.structs.replace(a, captured_at=NOON + dt.timedelta(seconds=11 * int(a.record.rpartition("/")[2])))))


def told(found: list[list[Alert]]) -> list[Incident]:
    return [incident_of(event, "gate") for event in found]


@given(st.lists(alerts, max_size=12), st.data())
def test_order_and_repetition_change_nothing(given_: list[Alert], data: st.DataObject) -> None:
    again = data.draw(st.permutations(given_ + data.draw(st.lists(st.sampled_from(given_), max_size=6)) if given_ else []))
    at = data.draw(st.integers(0, len(again)))
    one, two = gather({}, again[:at]), gather({}, again[at:])
    assert told(events(gather(one, two.values()).values(), GAP_S)) == told(events(gather({}, given_).values(), GAP_S))
    assert gather(one, two.values()) == gather(two, one.values())
    assert gather(one, one.values()) == one


@given(st.lists(alerts, max_size=12, unique_by=lambda a: a.id), st.sampled_from([0.0, 11.0, GAP_S, 1000.0]))
@example([alert(0), alert(1, 30.0), alert(2, 60.001)], 30.0)
def test_alerts_are_together_if_and_only_if_a_chain_of_overlaps_leads_from_one_to_the_other(given_: list[Alert], gap_s: float) -> None:
    """The oracle is the definition: the closure of touching pairs."""
    spans = {a.id: (a.captured_at.timestamp() - a.held_s, a.captured_at.timestamp()) for a in given_}
    group = {a.id: a.id for a in given_}
    for _ in given_:
        for one, (begun, ended) in spans.items():
            for other, (other_begun, other_ended) in spans.items():
                if begun - other_ended <= gap_s and other_begun - ended <= gap_s:
                    group[one] = group[other] = min(group[one], group[other])
    found = events(given_, gap_s)
    assert sorted(a.id for event in found for a in event) == sorted(spans)
    for event in found:
        assert len({group[a.id] for a in event}) == 1
    assert len(found) == len(set(group.values()))


@given(st.lists(alerts, min_size=1, max_size=12, unique_by=lambda a: a.id))
def test_an_incident_is_called_after_its_earliest_alert_so_that_later_ones_leave_its_name(given_: list[Alert]) -> None:
    in_time = sorted(given_, key=lambda a: (a.captured_at, a.id))
    names: set[str] = set()
    for count in range(1, len(in_time) + 1):
        now = {incident.id for incident in told(events(in_time[:count], 1e9))}
        assert now == {incident_id(in_time[0].id)}
        names |= now
    assert len(names) == 1


def test_a_bridge_makes_two_incidents_one_under_the_earlier_name() -> None:
    left, right, bridge = alert(1, 0.0), alert(2, 50.0), alert(3, 25.0, source="cam-2")
    assert [incident.id for incident in told(events([left, right], GAP_S))] == [incident_id(left.id), incident_id(right.id)]
    (joined,) = told(events([right, bridge, left], GAP_S))
    assert joined.id == incident_id(left.id)
    assert (joined.alerts, list(joined.sources)) == (3, ["cam-1", "cam-2"])
    assert [witness.alert for witness in joined.witnesses] == [left.id, bridge.id, right.id]
    gone = merged(msgspec.structs.replace(joined, id=incident_id(right.id)), joined.id)
    assert gone.merged_into == joined.id


STATES = {
    ("raised", "retracted"): "raised",
    ("unreviewed", "retracted"): "unreviewed",
    ("raised", "unreviewed"): "raised",
    ("retracted", "retracted"): "retracted",
    ("confirmed", "retracted"): "confirmed",
    ("confirmed", "raised"): "confirmed",
    ("judged", "confirmed"): "judged",
}


@pytest.mark.parametrize(("states", "expected"), STATES.items())
def test_an_incident_stands_as_long_as_any_of_its_alerts_does(states: tuple[str, ...], expected: str) -> None:
    for order in (states, states[::-1]):
        (incident,) = told(events([alert(n, n, state=AlertState(state)) for n, state in enumerate(order)], GAP_S))
        assert (incident.state, incident.version) == (expected, AlertState(expected).height)


def test_what_people_found_wrong_counts_as_retracted() -> None:
    seen = {"state": AlertState.JUDGED, "right": None}
    for rest, expected in (([], "retracted"), ([{"state": AlertState.RAISED}], "raised"), ([seen], "judged")):
        found = [alert(n, n, **fields) for n, fields in enumerate([{"state": AlertState.JUDGED, "right": False}, *rest])]
        (incident,) = told(events(found, GAP_S))
        assert incident.state == expected
        assert next(iter(incident.witnesses)).right is False


def test_an_incident_is_old_news_only_if_nobody_told_of_it_in_time() -> None:
    late, early = alert(1, late_by_s=3600.0), alert(2, 1.0, late_by_s=0.2)
    assert told(events([late], GAP_S))[0].late
    (both,) = told(events([late, early], GAP_S))
    assert (both.late, both.late_by_s) == (False, 0.2)
    assert [witness.late_by_s >= LATE_S for witness in both.witnesses] == [True, False]


def test_what_one_event_is_told_as() -> None:
    first = alert(1, 100.0, held_s=5.0, score=0.7, site="leaf-2")
    second = alert(2, 104.0, source="cam-2", score=0.8, state=AlertState.CONFIRMED, raised_by=Tier.REGION)
    (incident,) = told(events([second, first], GAP_S))
    assert incident == Incident.from_bytes(incident.to_bytes())
    tree = json.loads(incident.to_bytes())
    assert all(not isinstance(value, list | dict) for value in tree.values()), "sinks take nothing nested"
    assert (incident.started_at, incident.ended_at) == (NOON + dt.timedelta(seconds=95), NOON + dt.timedelta(seconds=104))
    assert (incident.rule, incident.place, incident.source, incident.score) == ("r", "gate", "cam-1", 0.8)
    assert json.loads(tree["sites"]) == ["leaf-1", "leaf-2"]
    assert [(w["record"], w["site"], w["state"]) for w in json.loads(tree["witnesses"])] == [
        ("cam-1/e/1", "leaf-2", "raised"),
        ("cam-2/e/2", "leaf-1", "confirmed"),
    ]


def test_a_long_incident_counts_all_its_alerts_and_shows_the_first() -> None:
    (incident,) = told(events([alert(n, n) for n in range(500)], GAP_S))
    assert (incident.alerts, len(incident.witnesses)) == (500, MAX_WITNESSES)
    assert len(incident.to_bytes()) < 64 << 10


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"alert": 1}]', "[" * 10_000, '"x"'])
def test_what_is_no_list_of_witnesses_or_names_is_refused(text: str) -> None:
    with pytest.raises(InvalidRecord):
        Witnesses.from_json(text)
    with pytest.raises(InvalidRecord):
        Names.from_json(text)


def test_an_incident_checks_itself() -> None:
    (incident,) = told(events([alert(1)], GAP_S))
    with pytest.raises(InvalidRecord, match="height of state"):
        msgspec.structs.replace(incident, version=3)
    with pytest.raises(InvalidRecord, match="before its start"):
        msgspec.structs.replace(incident, started_at=NOON + dt.timedelta(seconds=1))
