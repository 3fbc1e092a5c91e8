"""What a stored record means: every declared topic, foreign records, dead letters; and that nothing in a topic can break the reading."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Kafka, Link, SiteConfig
from schemas.detections import Detection, Detections
from schemas.envelope import JPEG, Envelope
from schemas.frames import Frame
from schemas.identity import RecordId, alert_id, content_digest, escalation_id
from schemas.messages import (
    Alert,
    AlertState,
    Asked,
    Control,
    Drop,
    EpochMark,
    EpochState,
    Escalation,
    Position,
    Ranges,
    Reason,
    Status,
    Tier,
    Verdict,
)
from schemas.records import Record
from schemas.resolution import result_of
from schemas.rules import Zone
from streams import outputs
from streams.burial import error_headers
from streams.reader import Stored, undeclared
from streams.sink import Output
from streams.topology import Topology
from streams.views import Failure, Picture, decode, to_json

UTC = dt.UTC
TAKEN = dt.datetime(2026, 1, 31, 12, 0, 0, 500, tzinfo=UTC)
APPENDED = TAKEN + dt.timedelta(milliseconds=23)
LEAF = Topology(SiteConfig(name="leaf-1", tier="leaf", link=Link(region=Kafka())))
JPEG_BYTES = simplejpeg.encode_jpeg(np.zeros((48, 64, 3), np.uint8))
RECORD = RecordId("cam-1", "e1", 7)
SEEN = Detections([Detection("person", 0.62, 0.1, 0.4, 0.3, 0.9)])

VERDICT = Verdict(
    id=str(RECORD),
    source="cam-1",
    captured_at=TAKEN,
    status=Status.FINAL,
    detections=SEEN,
    confidence=0.62,
    tier=Tier.LEAF,
    site="leaf-1",
    rank=10,
    generation=0,
    model="m",
    model_digest="a" * 64,
)
ALERT = Alert(
    id=alert_id("gate", str(RECORD)),
    rule="gate",
    source="cam-1",
    site="leaf-1",
    record=str(RECORD),
    captured_at=TAKEN,
    state=AlertState.RAISED,
    version=0,
    label="person",
    min_score=0.5,
    zone=Zone([(0, 0), (1, 0), (1, 1)]),
    seen=SEEN,
    score=0.62,
    held_s=0.0,
    model_digest="a" * 64,
    deadline_ms=1000,
)
ESCALATION = Escalation(
    id=escalation_id((str(RECORD),), content_digest(JPEG_BYTES)),
    source="cam-1",
    site="leaf-1",
    reason=Reason.ALERT,
    records=(Asked(id=str(RECORD), captured_at=TAKEN),),
    evidence=content_digest(JPEG_BYTES),
    content_type=JPEG,
    deadline_ms=1000,
    ttl_s=60.0,
)
DROP = Drop(source="cam-1", epoch="e1", site="leaf-1", stage="leaf", reason="stale", ranges=Ranges([(3, 5)]))
MARK = EpochMark(source="cam-1", epoch="e1", site="leaf-1", state=EpochState.ENDED, assigned=9, acknowledged=9, started_at=TAKEN)
CONTROL = Control(site="leaf-1", region="north", inferences_per_s=2.0, input_side=512)
POSITION = Position(cluster="c", topic="alerts", topic_uuid="u", partition=0, next_offset=7, writer="w")
FRAME = Frame(id=RECORD, source="cam-1", captured_at=TAKEN, jpeg=JPEG_BYTES)


def stored(output: Output | None = None, topic: Any = None, **parts: Any) -> Stored:
    given = {"key": None, "value": None, "headers": []}
    if output is not None:
        key = output.key.encode() if isinstance(output.key, str) else output.key
        topic, given = output.topic, {"key": key, "value": output.value, "headers": list(output.headers)}
    return Stored(topic=topic, partition=1, offset=42, appended_at=APPENDED, **{**given, **parts})


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (outputs.answer(LEAF.topic("verdicts"), VERDICT), VERDICT),
        (outputs.answer(LEAF.topic("region.verdicts"), VERDICT), VERDICT),
        (outputs.answer(LEAF.topic("results"), result_of(VERDICT)), result_of(VERDICT)),
        (outputs.alert(LEAF.topic("alerts"), ALERT), ALERT),
        (outputs.escalation(LEAF.topic("escalations"), ESCALATION, JPEG_BYTES), ESCALATION),
        (outputs.drop(LEAF.topic("drops"), DROP, TAKEN), DROP),
        (outputs.epoch(LEAF.topic("epochs"), MARK, TAKEN), MARK),
        (outputs.control(LEAF.topic("control"), CONTROL, TAKEN), CONTROL),
        (Output(LEAF.topic("positions"), "", "alerts/0", POSITION.to_bytes(), []), POSITION),
    ],
)
def test_what_our_own_stages_write_is_read_as_it_was(output: Output, value: Record) -> None:
    view = decode(stored(output))
    assert view.value == value
    assert view.kind == type(value).__name__.lower()
    assert view.error is None
    told = msgspec.json.decode(msgspec.json.encode(to_json(view)))
    assert told["value"]
    assert told["offset"] == 42
    if view.kind in {"verdict", "result", "alert"}:
        assert view.latency_ms == pytest.approx(23)
        assert view.source == "cam-1"
        assert isinstance(told["value"].get("detections", told["value"].get("seen")), list), "nested JSON is opened for programs"


def test_a_frame_ours_and_foreign() -> None:
    ours = decode(stored(topic=LEAF.topic("frames"), key=b"cam-1", value=JPEG_BYTES, headers=FRAME.to_headers()))
    assert (ours.source, ours.sequence, ours.latency_ms) == ("cam-1", 7, pytest.approx(23))
    assert ours.value == Picture(size_bytes=len(JPEG_BYTES), width=64, height=48)
    foreign = decode(stored(topic=LEAF.topic("frames"), key=b"gate 3", value=JPEG_BYTES))
    assert (foreign.kind, foreign.source, foreign.sequence, foreign.latency_ms) == ("picture", "gate%203", None, None)


def test_evidence_shows_its_picture_too() -> None:
    view = decode(stored(outputs.escalation(LEAF.topic("escalations"), ESCALATION, JPEG_BYTES)))
    assert view.picture == Picture(size_bytes=len(JPEG_BYTES), width=64, height=48)


class Failed:
    """A record as delivery buried it."""

    def topic(self) -> str:
        return "verdicts"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 99


@pytest.mark.parametrize(
    ("value", "headers", "kind"),
    [
        (b"not json", [], "text"),
        (VERDICT.to_bytes(), outputs.answer(LEAF.topic("verdicts"), VERDICT).headers, "verdict"),
        (b"{}", [], "json"),
        (b"\x00\xff", [], "bytes"),
        (JPEG_BYTES, [], "picture"),
        (None, [], "tombstone"),
    ],
)
def test_dead_letters_say_where_they_came_from_and_why(value: bytes | None, headers: list[Any], kind: str) -> None:
    failed: Any = Failed()
    all_headers = [*headers, *error_headers(failed, ValueError("no such label"), "leaf-1.resolver", "cam-1/e1/7")]
    view = decode(stored(topic=LEAF.topic("verdicts.dlq"), value=value, headers=all_headers))
    assert view.kind == kind
    assert view.failure == Failure(
        topic="verdicts",
        partition=3,
        offset=99,
        error="builtins.ValueError",
        message="no such label",
        agent="leaf-1.resolver",
        record="cam-1/e1/7",
    )


def test_what_cannot_be_read_says_why() -> None:
    assert "3 bytes that start with 474946" in (decode(stored(topic=LEAF.topic("frames"), value=b"GIF")).error or "")
    assert decode(stored(topic=LEAF.topic("results"), value=b"{}")).kind == "unreadable"
    assert decode(stored(topic=LEAF.topic("results"), value=None)).kind == "tombstone"
    broken = decode(stored(topic=LEAF.topic("frames"), value=JPEG_BYTES, headers=[("ce_specversion", b"9")]))
    assert "ce_specversion" in (broken.error or "")
    cut = decode(stored(topic=LEAF.topic("frames"), value=b"\xff\xd8\xff"))
    assert cut.value == Picture(size_bytes=3, width=0, height=0)


def test_a_topic_that_is_not_declared_is_read_by_its_looks() -> None:
    topic = undeclared("connect-status", Tier.LEAF)
    assert decode(stored(topic=topic, value=b'{"a":1}')).value == {"a": 1}
    assert decode(stored(topic=topic, value="grüß".encode())).value == "grüß"
    assert decode(stored(topic=topic, value=b"\x1b[31m")).kind == "bytes"
    assert decode(stored(outputs.alert(topic, ALERT))).value == ALERT


headers = st.lists(
    st.tuples(
        st.sampled_from([*(name for name, _ in FRAME.to_headers()), "escalation", "__connect.errors.topic", "headwater.record", "x"]),
        st.none() | st.binary(max_size=30) | st.sampled_from([value for _, value in FRAME.to_headers()]),
    ),
    max_size=9,
)


@settings(max_examples=400, deadline=None)
@given(
    topic=st.sampled_from([*LEAF, undeclared("other", Tier.LEAF)]),
    key=st.none() | st.binary(max_size=20),
    value=st.none()
    | st.binary(max_size=60)
    | st.binary(max_size=30).map(lambda tail: b"\xff\xd8\xff" + tail)
    | st.text(max_size=20).map(str.encode),
    headers=headers,
)
def test_no_record_can_break_the_reading(topic: Any, key: bytes | None, value: bytes | None, headers: list[Any]) -> None:
    from infra.cli.lines import line

    view = decode(stored(topic=topic, key=key, value=value, headers=headers))
    assert msgspec.json.decode(msgspec.json.encode(to_json(view)))["topic"] == topic.name
    text = line(view, topic=topic.name).plain
    assert "\x1b" not in text
    assert all(char.isprintable() for char in text), "a topic must not steer the terminal"


def test_an_envelope_of_a_new_type_is_shown_as_json() -> None:
    envelope = Envelope(id="1", source="s", type="headwater.future.v1", time=TAKEN)
    view = decode(stored(topic=undeclared("future", Tier.LEAF), value=b'{"a":[1]}', headers=envelope.to_headers()))
    assert (view.kind, view.source, view.value) == ("json", "s", {"a": [1]})
