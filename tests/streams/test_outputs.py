"""How values become records: the key and partition of their topic, and an envelope that reads back."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import envelope
from schemas.config import Link, Region, SiteConfig
from schemas.detections import Detections
from schemas.envelope import Envelope, InvalidEnvelope, check_bounds
from schemas.frames import Frame
from schemas.identity import RecordId, content_digest
from schemas.intervals import Intervals
from schemas.messages import Alert, AlertState, Asked, Control, Drop, EpochMark, EpochState, Escalation, Reason, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.rules import Zone
from streams import outputs
from streams.outputs import ESCALATION_HEADER, escalation_of
from streams.partition import partition_of
from streams.sink import Output
from streams.topology import Topology

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LEAF = Topology(SiteConfig(name="leaf-1", tier="leaf", link=Link()))
REGION = Topology(SiteConfig(name="region", tier="region", region=Region(sites=("leaf-1",))))
RECORD = RecordId("cam-1", "e1", 7)


def verdict(source: str = "cam-1", record: str = "cam-1/e1/7") -> Verdict:
    return Verdict(
        id=record,
        source=source,
        captured_at=NOON,
        status=Status.FINAL,
        detections=Detections(()),
        confidence=1.0,
        tier=Tier.LEAF,
        site="leaf-1",
        rank=10,
        generation=0,
        model="m",
        model_digest="0" * 64,
    )


def alert() -> Alert:
    return Alert(
        id="alert-1",
        rule="r",
        source="cam-1",
        site="leaf-1",
        record=str(RECORD),
        captured_at=NOON,
        state=AlertState.CONFIRMED,
        version=AlertState.CONFIRMED.height,
        label="person",
        min_score=0.5,
        zone=Zone(()),
        seen=Detections(()),
        score=0.9,
        held_s=0.0,
        model_digest="0" * 64,
        deadline_ms=1000,
    )


def escalation(count: int = 1, detections: str = "[]") -> Escalation:
    return Escalation(
        id="esc-1",
        source="cam-1",
        site="leaf-1",
        reason=Reason.ALERT,
        records=tuple(Asked(id=f"cam-1/e1/{n}", captured_at=NOON, detections=detections) for n in range(count)),
        evidence=content_digest(b"evidence"),
        content_type="image/jpeg",
        deadline_ms=1000,
        ttl_s=60.0,
    )


FRAME = Frame(id=RECORD, source="cam-1", captured_at=NOON, jpeg=b"\xff\xd8\xff rest", traceparent=TRACE)
DROP = Drop(source="cam-1", epoch="e1", site="leaf-1", stage="leaf", reason="stale", ranges=Intervals([(3, 5), (9, 9)]).to_ranges())
FOREIGN = Drop(source="kafka", epoch="c/u/0", site="leaf-1", stage="leaf", reason="retention", ranges=Intervals([(3, 5)]).to_ranges())
MARK = EpochMark(source="cam-1", epoch="e1", site="leaf-1", state=EpochState.MARK, assigned=9, acknowledged=7, started_at=NOON)
CONTROL = Control(site="leaf-1", region="region", inferences_per_s=2.0, input_side=512)


def topic(base: str) -> Any:
    return LEAF.topic(base)


CASES: dict[str, tuple[Output, str, str, str, str | None, int | None]] = {
    "verdict": (outputs.answer(topic("verdicts"), verdict(), TRACE), str(RECORD), str(RECORD), envelope.VERDICT, "cam-1", 7),
    "alert": (outputs.alert(topic("alerts"), alert(), TRACE), "alert-1", "alert-1/3", envelope.ALERT, "cam-1", None),
    "picture": (
        outputs.picture(topic("alerts.evidence"), "alert-1", FRAME),
        "alert-1",
        "alert-1/picture",
        envelope.ALERT_PICTURE,
        "cam-1",
        None,
    ),
    "escalation": (
        outputs.escalation(topic("escalations"), escalation(), b"evidence", TRACE),
        "cam-1",
        "esc-1",
        envelope.ESCALATION,
        "cam-1",
        None,
    ),
    "drop": (
        outputs.drop(topic("drops"), DROP, NOON),
        "cam-1/e1/leaf-1/leaf",
        "cam-1/e1/leaf-1/leaf/stale/3",
        envelope.DROP,
        "cam-1",
        None,
    ),
    "foreign drop": (
        outputs.drop(topic("drops"), FOREIGN, NOON, "gate%203"),
        "kafka/c/u/0/leaf-1/leaf",
        "kafka/c/u/0/leaf-1/leaf/retention/3",
        envelope.DROP,
        "gate%203",
        None,
    ),
    "epoch": (
        outputs.epoch(topic("epochs"), MARK, NOON),
        "cam-1/e1/leaf-1/producer",
        "cam-1/e1/leaf-1/producer/mark/9-7",
        envelope.EPOCH,
        "cam-1",
        None,
    ),
    "control": (
        outputs.control(REGION.topic("down.control", "leaf-1"), CONTROL, NOON),
        "leaf-1",
        "region/leaf-1/control",
        envelope.CONTROL,
        None,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_becomes_a_record_of_its_topic(name: str) -> None:
    output, key, identity, kind, source, sequence = CASES[name]
    assert output.key == key
    read = Envelope.from_headers(output.headers)
    assert read is not None
    assert (read.id, read.type, read.time, read.sequence) == (identity, kind, NOON, sequence)
    if source is not None:  # the partition goes by the source that the headers name, so that the link finds it again
        assert read.source == output.source == source
        assert output.partition == partition_of(source, output.topic.partitions)
    if name in ("verdict", "alert", "picture", "escalation"):
        assert read.traceparent == TRACE
    check_bounds(output.headers)


def test_what_concerns_a_source_meets_in_one_partition() -> None:
    places = {CASES[name][0].partition for name in ("verdict", "alert", "picture", "escalation", "drop", "epoch")}
    assert len(places) == 1


def test_topics_that_are_not_divided_have_one_partition() -> None:
    assert Output(topic("frames.dlq"), "cam-1", None, b"", []).partition == 0


def test_values_read_back() -> None:
    assert Verdict.from_bytes(CASES["verdict"][0].value or b"") == verdict()
    assert Alert.from_bytes(CASES["alert"][0].value or b"") == alert()
    assert Drop.from_bytes(CASES["drop"][0].value or b"") == DROP
    assert EpochMark.from_bytes(CASES["epoch"][0].value or b"") == MARK
    assert CASES["picture"][0].value == FRAME.jpeg


@given(count=st.integers(1, 300))
def test_an_escalation_asks_in_a_header_within_the_bounds(count: int) -> None:
    output = outputs.escalation(topic("escalations"), escalation(count), b"evidence")
    check_bounds(output.headers)
    assert output.value == b"evidence"
    assert escalation_of([(name, value) for name, value in output.headers]) == escalation(count)


def test_an_escalation_too_large_for_a_header_is_refused_where_it_is_made() -> None:
    seen = msgspec.json.encode([["person", 0.5, 0.1, 0.1, 0.2, 0.2, None]] * 20).decode()
    with pytest.raises(InvalidRecord):
        outputs.escalation(topic("escalations"), escalation(300, seen), b"evidence")


@pytest.mark.parametrize("headers", [None, [], [(ESCALATION_HEADER, b"")], [(ESCALATION_HEADER, None)], [(ESCALATION_HEADER, b"{}")]])
def test_headers_that_ask_nothing_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidRecord):
        escalation_of(headers)


def test_too_many_headers_are_refused_before_they_are_read() -> None:
    with pytest.raises(InvalidEnvelope):
        escalation_of([(f"h{number}", b"") for number in range(65)] + [(ESCALATION_HEADER, msgspec.json.encode({}))])
