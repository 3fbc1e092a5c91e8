"""A frame: one encoded image from a source, and how it is read from a record, ours or foreign. Nothing is decoded here."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import msgspec

from schemas.envelope import FRAME, JPEG, Envelope, Headers, InvalidEnvelope
from schemas.identity import InvalidIdentity, RecordId, check_source, foreign_id, source_of_key
from schemas.replays import Replay, read_replay

MAX_FRAME_BYTES = 8 << 20
_JPEG_START = b"\xff\xd8\xff"


class InvalidFrame(ValueError):
    """A record on `frames` that cannot be a frame; the message says what is wrong with it."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One image: its id, source, capture time (UTC) and JPEG bytes. Of a frame that was replayed from its dead letter, `replays` says how
    often, and `waited_s` how long ago, by the broker's clock, the broker had first taken it when it took this copy.

    Raises
    ------
    InvalidFrame
        When built with an id that is none or belongs to another source, a time that is not in UTC, or bytes that are no JPEG image.
    """

    id: RecordId
    source: str
    captured_at: dt.datetime
    jpeg: bytes
    traceparent: str | None = None
    replays: int = 0
    waited_s: float = 0.0

    def __post_init__(self) -> None:
        try:
            if RecordId.parse(str(self.id)) != self.id:
                raise InvalidFrame(f"Frame.id is {self.id!r:.120}: it reads as another one when written")
        except InvalidIdentity as error:
            raise InvalidFrame(f"Frame.id: {error}") from None
        if not self.id.foreign and self.id.source != self.source:
            raise InvalidFrame(f"Frame.id is {str(self.id)!r:.120}: expected a record of the source {self.source!r:.80}")
        if self.captured_at.tzinfo is not dt.UTC:
            raise InvalidFrame(f"Frame.captured_at is {self.captured_at.isoformat()}: expected a time in UTC")
        check_jpeg(self.jpeg)

    def envelope(self) -> Envelope:
        return Envelope(
            id=str(self.id),
            source=self.source,
            type=FRAME,
            time=self.captured_at,
            content_type=JPEG,
            sequence=self.id.sequence,
            traceparent=self.traceparent,
        )

    def to_headers(self) -> Headers:
        return self.envelope().to_headers()


def check_jpeg(data: bytes) -> None:
    """Refuse bytes that do not start as a JPEG image does; raises `InvalidFrame`."""
    if not data.startswith(_JPEG_START):
        raise InvalidFrame(f"the value starts with {data[:4].hex()}: a JPEG image starts with ffd8ff")


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where Kafka put a record, and when its broker took it (UTC)."""

    cluster: str
    topic: str
    topic_uuid: str
    partition: int
    offset: int
    appended_at: dt.datetime


def read_frame(
    value: bytes | None,
    key: bytes | None,
    headers: Iterable[tuple[str, bytes | None]] | None,
    origin: Origin,
    *,
    max_bytes: int = MAX_FRAME_BYTES,
) -> Frame:
    """Read a frame from a record's parts, checking sizes and magic bytes first.

    A record without our headers is served too: its id is where Kafka put it, its source comes from the key, its capture time is the
    broker's. One that was replayed from its dead letter says where Kafka had put it first, and when: it keeps its id, source and time.

    Raises
    ------
    InvalidFrame
        For an empty, oversized or non-JPEG value, or a broken envelope.
    """
    if not value:
        raise InvalidFrame("the value is empty: a frame is the bytes of one JPEG image")
    if len(value) > max_bytes:
        raise InvalidFrame(f"the value has {len(value)} bytes: a frame has at most {max_bytes} (ingress.max_frame_bytes)")
    check_jpeg(value)
    try:
        pairs = list(headers or ())
        envelope, replay = Envelope.from_headers(pairs), read_replay(pairs)
        if envelope is None:
            return _foreign(value, key, origin, replay)
        if envelope.type != FRAME:
            raise InvalidFrame(f"header ce_type is {envelope.type!r:.80}: expected {FRAME!r}")
        name = RecordId.parse(envelope.id)
        check_source(envelope.source)
    except (InvalidEnvelope, InvalidIdentity) as error:
        raise InvalidFrame(str(error)) from None
    if name.source != envelope.source:  # also for an id of a foreign record: those come from Kafka, not from producers
        raise InvalidFrame(f"ce_id {envelope.id!r:.120} does not belong to ce_source {envelope.source!r:.80}")
    if envelope.sequence is not None and envelope.sequence != name.sequence:
        raise InvalidFrame(f"ce_sequence {envelope.sequence} is not the sequence of ce_id {envelope.id!r:.120}")
    return Frame(
        id=name,
        source=envelope.source,
        captured_at=envelope.time,
        jpeg=value,
        traceparent=envelope.traceparent,
        replays=replay.count,
        waited_s=_waited_s(origin, replay),
    )


def _foreign(value: bytes, key: bytes | None, origin: Origin, replay: Replay) -> Frame:
    name = replay.origin or foreign_id(origin.cluster, origin.topic_uuid, origin.partition, origin.offset)
    first = origin.appended_at
    if replay.origin is not None and replay.appended_ms is not None:
        now_ms = round(first.timestamp() * 1000)
        first = dt.datetime.fromtimestamp(min(replay.appended_ms, now_ms) / 1000, dt.UTC)
    return Frame(
        id=name,
        source=source_of_key(key, origin.topic, int(name.epoch.rpartition("/")[2])),
        captured_at=first,
        jpeg=value,
        replays=replay.count,
        waited_s=_waited_s(origin, replay),
    )


def _waited_s(origin: Origin, replay: Replay) -> float:
    if not replay.count or replay.appended_ms is None:
        return 0.0
    return max(0.0, origin.appended_at.timestamp() - replay.appended_ms / 1000)
