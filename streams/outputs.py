"""How each value becomes a record: its topic's key, its CloudEvents headers, and the source that decides its partition."""

from __future__ import annotations

import datetime as dt

import msgspec

from schemas import envelope
from schemas.accounts import AccountPast, AccountSet
from schemas.accuracy import Accuracy
from schemas.drift import Drift
from schemas.envelope import Envelope, Headers
from schemas.frames import Frame
from schemas.identity import RecordId
from schemas.incidents import Incident
from schemas.labels import Label
from schemas.letters import Decision
from schemas.links import LinkHold, LinkOrder, LinkState
from schemas.messages import Alert, Answer, Control, Drop, EpochMark, Escalation, Verdict
from schemas.snapshots import Snapshot
from streams.sink import Output
from streams.topology import Topic

SNAPSHOT_KEY = "snapshot"
ESCALATION_HEADER = "escalation"  # beside the evidence in the value: who is asked what, as JSON


def answer(topic: Topic, value: Answer, traceparent: str | None = None) -> Output:
    """A verdict or a result, keyed by its record."""
    kind = envelope.VERDICT if isinstance(value, Verdict) else envelope.RESULT
    sequence = RecordId.parse(value.id).sequence
    headers = Envelope(
        id=value.id, source=value.source, type=kind, time=value.captured_at, sequence=sequence, traceparent=traceparent
    ).to_headers()
    return Output(topic, value.source, value.id, value.to_bytes(), headers)


def alert(topic: Topic, value: Alert, traceparent: str | None = None) -> Output:
    """An alert in one of its states, keyed by its id."""
    headers = Envelope(
        id=f"{value.id}/{value.version}",
        source=value.source,
        type=envelope.ALERT,
        time=value.captured_at,
        subject=value.record,
        traceparent=traceparent,
    ).to_headers()
    return Output(topic, value.source, value.id, value.to_bytes(), headers)


def placed(topic: Topic, value: Alert, place: str) -> Output:
    """An alert on its way to the worker that joins the incidents of a place."""
    return msgspec.structs.replace(alert(topic, value), source=place)


def incident(topic: Topic, value: Incident) -> Output:
    """An incident as it stands, keyed by its id; all of one place lie in one partition."""
    headers = Envelope(
        id=f"{value.id}/{value.alerts}/{value.state}",
        source=value.source,
        type=envelope.INCIDENT,
        time=value.started_at,
        subject=value.rule,
    ).to_headers()
    return Output(topic, value.place, value.id, value.to_bytes(), headers)


def snapshot_part(topic: Topic, value: Snapshot, number: int, part: bytes, site: str, now: dt.datetime) -> Output:
    """One of the parts of a snapshot, in the snapshot's own partition."""
    key = f"{value.slot}/{number}"
    headers = Envelope(
        id=f"{site}/{value.digest}/{number}", source=site, type=envelope.SNAPSHOT_PART, time=now, content_type="application/zlib"
    ).to_headers()
    return Output(topic, site, key, part, headers, at=value.partition)


def snapshot(topic: Topic, value: Snapshot, site: str, now: dt.datetime) -> Output:
    """What makes a snapshot hold: written when all of its parts are on the broker."""
    headers = Envelope(id=f"{site}/{value.digest}", source=site, type=envelope.SNAPSHOT, time=now).to_headers()
    return Output(topic, site, SNAPSHOT_KEY, value.to_bytes(), headers, at=value.partition)


def accuracy(topic: Topic, value: Accuracy) -> Output:
    """How accurate a model's answers to a source are, keyed by both."""
    key = f"{value.source}/{value.model_digest[:16]}"
    name = f"{value.site}/{key}/{value.until.isoformat()}"
    headers = Envelope(id=name, source=value.source, type=envelope.ACCURACY, time=value.until).to_headers()
    return Output(topic, value.source, key, value.to_bytes(), headers)


def drift(topic: Topic, value: Drift) -> Output:
    """A drift alarm in one of its states, keyed by its id."""
    headers = Envelope(id=f"{value.id}/{value.version}", source=value.source, type=envelope.DRIFT, time=value.at).to_headers()
    return Output(topic, value.source, value.id, value.to_bytes(), headers)


def label(topic: Topic, value: Label) -> Output:
    """What a record truly shows, keyed by it."""
    headers = Envelope(id=f"{value.id}/{value.at.isoformat()}", source=value.source, type=envelope.LABEL, time=value.at).to_headers()
    return Output(topic, value.source, value.id, value.to_bytes(), headers)


def lesson(topic: Topic, source: str, value: bytes, site: str, now: dt.datetime) -> Output:
    """What a leaf has learned of a source, keyed by it."""
    headers = Envelope(
        id=f"{site}/{source}/lesson", source=source, type=envelope.LESSON, time=now, content_type="application/zlib"
    ).to_headers()
    return Output(topic, source, source, value, headers)


def picture(topic: Topic, alert_id: str, frame: Frame) -> Output:
    """The picture of an alert: its frame's own bytes, keyed by the alert."""
    headers = Envelope(
        id=f"{alert_id}/picture",
        source=frame.source,
        type=envelope.ALERT_PICTURE,
        time=frame.captured_at,
        content_type=envelope.JPEG,
        subject=str(frame.id),
        traceparent=frame.traceparent,
    ).to_headers()
    return Output(topic, frame.source, alert_id, frame.jpeg, headers)


def escalation(topic: Topic, value: Escalation, evidence: bytes, traceparent: str | None = None) -> Output:
    """Evidence as the value, what is asked in a header, keyed by source."""
    headers: Headers = Envelope(
        id=value.id,
        source=value.source,
        type=envelope.ESCALATION,
        time=value.records[0].captured_at,
        content_type=value.content_type,
        traceparent=traceparent,
    ).to_headers()
    return Output(topic, value.source, value.source, evidence, [*headers, (ESCALATION_HEADER, value.to_bytes())])


def drop(topic: Topic, value: Drop, now: dt.datetime, source: str | None = None) -> Output:
    """Sequences that a stage did not process. `source` is given for foreign records, whose `Drop.source` is `kafka`."""
    key = f"{value.source}/{value.epoch}/{value.site}/{value.stage}"
    first = value.ranges.pairs[0][0] if value.ranges.pairs else 0
    headers = Envelope(id=f"{key}/{value.reason}/{first}", source=source or value.source, type=envelope.DROP, time=now).to_headers()
    return Output(topic, source or value.source, key, value.to_bytes(), headers)


def epoch(topic: Topic, value: EpochMark, now: dt.datetime, stage: str = "producer") -> Output:
    """What a producer says of a run of its source."""
    key = f"{value.source}/{value.epoch}/{value.site}/{stage}"
    headers = Envelope(
        id=f"{key}/{value.state}/{value.assigned}-{value.acknowledged}", source=value.source, type=envelope.EPOCH, time=now
    ).to_headers()
    return Output(topic, value.source, key, value.to_bytes(), headers)


def control(topic: Topic, value: Control, now: dt.datetime) -> Output:
    """A region's capacity for one site."""
    headers = Envelope(id=f"{value.region}/{value.site}/control", source=value.region, type=envelope.CONTROL, time=now).to_headers()
    return Output(topic, value.site, value.site, value.to_bytes(), headers)


def link_state(topic: Topic, value: LinkState, now: dt.datetime) -> Output:
    """How the link of a site stands, keyed `link`."""
    headers = Envelope(id=f"{value.site}/link/{value.breaker}", source=value.site, type=envelope.LINK_STATE, time=now).to_headers()
    return Output(topic, value.site, "link", value.to_bytes(), headers)


def link_hold(topic: Topic, value: LinkHold, now: dt.datetime) -> Output:
    """A beat of the link that carries for a site, keyed `link`."""
    headers = Envelope(id=f"{value.site}/link/{value.writer}", source=value.site, type=envelope.LINK_HOLD, time=now).to_headers()
    return Output(topic, value.site, "link", value.to_bytes(), headers)


def decision(topic: Topic, value: Decision, now: dt.datetime, site: str) -> Output:
    """What a person decided about a dead letter, keyed by its place."""
    key = f"{value.topic}/{value.partition}/{value.offset}"
    headers = Envelope(id=f"{key}/{value.settlement}", source=site, type=envelope.DECISION, time=now).to_headers()
    return Output(topic, site, key, value.to_bytes(), headers)


def link_order(topic: Topic, value: LinkOrder, now: dt.datetime) -> Output:
    """What a person wants of the link, keyed `link`."""
    headers = Envelope(id=f"{value.site}/link/{value.by}", source=value.site, type=envelope.LINK_ORDER, time=now).to_headers()
    return Output(topic, value.site, "link", value.to_bytes(), headers)


def account(topic: Topic, value: AccountSet | AccountPast) -> Output:
    """What an accountant has counted, keyed by what it counts."""
    kind = envelope.ACCOUNT if isinstance(value, AccountSet) else envelope.ACCOUNT_PAST
    headers = Envelope(id=value.key, source=value.source, type=kind, time=value.seen_at).to_headers()
    return Output(topic, value.source, value.key, value.to_bytes(), headers)


def escalation_of(headers: list[tuple[str, bytes | None]] | None) -> Escalation:
    """What an escalation asks, from its record's headers; raises `InvalidRecord` or `InvalidEnvelope`."""
    envelope.check_bounds(list(headers or ()))
    return Escalation.from_bytes(dict(headers or ()).get(ESCALATION_HEADER) or b"")
