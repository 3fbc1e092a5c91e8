"""Our headers against the official CloudEvents SDK: it reads what we write, and we read what it writes."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from cloudevents.core.bindings import kafka
from cloudevents.core.bindings.kafka import KafkaMessage
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import FRAME, JPEG, JSON, Envelope
from schemas.frames import Frame, Origin, read_frame
from schemas.identity import RecordId
from schemas.messages import Verdict


@given(st.from_type(Envelope), st.binary(min_size=1))
def test_the_sdk_reads_what_we_write(envelope: Envelope, data: bytes) -> None:
    binary = envelope.content_type if "json" not in envelope.content_type else JPEG
    ours = Envelope(**{name: getattr(envelope, name) for name in Envelope.__struct_fields__} | {"content_type": binary})
    event = kafka.from_kafka_event(KafkaMessage(headers=dict(ours.to_headers()), key=b"cam-1", value=b"\xff" + data))
    expected: dict[str, Any] = {
        "specversion": "1.0",
        "id": ours.id,
        "source": ours.source,
        "type": ours.type,
        "time": ours.time,
        "datacontenttype": binary,
        **ours.extensions,
    }
    expected |= {} if ours.subject is None else {"subject": ours.subject}
    expected |= {} if ours.sequence is None else {"sequence": f"{ours.sequence:019d}"}
    expected |= {} if ours.traceparent is None else {"traceparent": ours.traceparent}
    assert event.get_attributes() == expected | {"partitionkey": "cam-1"}  # the SDK's name for the key of the record
    assert event.get_data() == b"\xff" + data


@given(st.from_type(Verdict))
def test_the_sdk_reads_a_verdict(verdict: Verdict) -> None:
    sequence = RecordId.parse(verdict.id).sequence
    headers = Envelope(
        id=verdict.id, source=verdict.source, type="headwater.verdict.v1", time=verdict.captured_at, sequence=sequence
    ).to_headers()
    event = kafka.from_kafka_event(KafkaMessage(headers=dict(headers), key=verdict.id.encode(), value=verdict.to_bytes()))
    assert event.get_datacontenttype() == JSON
    assert event.get_id() == verdict.id
    assert event.get_source() == verdict.source
    assert event.get_time() == verdict.captured_at
    assert int(event.get_extension("sequence")) == sequence
    assert event.get_extension("partitionkey") == verdict.id
    data = event.get_data()
    assert isinstance(data, dict)
    assert data == json.loads(verdict.to_bytes())
    assert Verdict.from_bytes(json.dumps(data).encode()) == verdict


@given(st.from_type(Envelope), st.binary())
def test_we_read_what_the_sdk_writes(envelope: Envelope, data: bytes) -> None:
    attributes: dict[str, Any] = {
        "id": envelope.id,
        "source": envelope.source,
        "type": envelope.type,
        "time": envelope.time,
        "datacontenttype": envelope.content_type,
        **{name: value for name, value in envelope.extensions.items() if name != "partitionkey"},
        "partitionkey": envelope.source,
    }
    attributes |= {} if envelope.subject is None else {"subject": envelope.subject}
    attributes |= {} if envelope.sequence is None else {"sequence": str(envelope.sequence)}
    attributes |= {} if envelope.traceparent is None else {"traceparent": envelope.traceparent}
    message = kafka.to_binary(CloudEvent(attributes, data), JSONFormat())
    ours = Envelope.from_headers(list(message.headers.items()))
    assert ours is not None
    assert ours.extensions == dict(envelope.extensions) | {"partitionkey": envelope.source}
    for name in ("id", "source", "type", "content_type", "subject", "sequence", "traceparent"):
        assert getattr(ours, name) == getattr(envelope, name)
    assert ours.time == envelope.time
    assert (message.key, message.value) == (envelope.source, data)


@given(st.from_type(Frame), st.from_type(Origin))
def test_a_frame_of_a_producer_that_uses_the_sdk_is_one_of_ours(frame: Frame, origin: Origin) -> None:
    event = CloudEvent(
        {
            "id": str(frame.id),
            "source": frame.source,
            "type": FRAME,
            "time": frame.captured_at,
            "datacontenttype": JPEG,
            "sequence": f"{frame.id.sequence:019d}",
            **({} if frame.traceparent is None else {"traceparent": frame.traceparent}),
        },
        frame.jpeg,
    )
    message = kafka.to_binary(event, JSONFormat(), key_mapper=lambda event: event.get_source())
    assert isinstance(message.key, str)
    assert read_frame(message.value, message.key.encode(), list(message.headers.items()), origin) == frame


def test_an_event_in_structured_mode_is_not_taken_for_one_of_ours() -> None:
    event = CloudEvent({"id": "1", "source": "s", "type": "t", "time": dt.datetime.now(dt.UTC)}, {"a": 1})
    message = kafka.to_structured(event, JSONFormat())
    assert Envelope.from_headers(list(message.headers.items())) is None
