"""The envelope of every record: CloudEvents 1.0 attributes as Kafka headers, in binary content mode.

Our own code because it is on the hot path; the tests hold it against the official CloudEvents SDK. Specifications: CloudEvents 1.0.2,
its Kafka protocol binding, and the extensions `sequence` (without `sequencetype`, zero-padded) and distributed tracing (`traceparent`).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping

import msgspec

from schemas.identity import MAX_SEQUENCE, SEQUENCE_DIGITS

Headers = list[tuple[str, bytes]]

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 << 10  # of all names and values of one record together
JSON = "application/json"
JPEG = "image/jpeg"

FRAME = "headwater.frame.v1"
VERDICT = "headwater.verdict.v1"
RESULT = "headwater.result.v1"
ALERT = "headwater.alert.v1"
ALERT_PICTURE = "headwater.alert-picture.v1"
ESCALATION = "headwater.escalation.v1"
DROP = "headwater.drop.v1"
EPOCH = "headwater.epoch.v1"
CONTROL = "headwater.control.v1"
POSITION = "headwater.position.v1"

_traceparent = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")


class InvalidEnvelope(ValueError):
    """Headers that are not a CloudEvent of ours; the message names the header, its value and what was expected."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The context attributes of one record.

    `time` is the capture time: when what the record is about happened, by the producer's clock. `extensions` are further attributes
    (lower-case letters and digits) as text.
    """

    id: str
    source: str
    type: str
    time: dt.datetime
    content_type: str = JSON
    subject: str | None = None
    sequence: int | None = None
    traceparent: str | None = None
    extensions: Mapping[str, str] = {}

    def to_headers(self) -> Headers:
        """The Kafka headers of this envelope."""
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", self.id.encode()),
            ("ce_source", self.source.encode()),
            ("ce_type", self.type.encode()),
            ("ce_time", write_time(self.time).encode()),
            ("content-type", self.content_type.encode()),
        ]
        if self.subject is not None:
            headers.append(("ce_subject", self.subject.encode()))
        if self.sequence is not None:
            headers.append(("ce_sequence", b"%0*d" % (SEQUENCE_DIGITS, self.sequence)))
        if self.traceparent is not None:
            headers.append(("ce_traceparent", self.traceparent.encode()))
        headers.extend((f"ce_{name}", value.encode()) for name, value in self.extensions.items())
        return headers

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes | None]] | None) -> Envelope | None:
        """Read an envelope; None if the record carries none (a foreign producer's), `InvalidEnvelope` if it carries a broken one."""
        pairs = list(headers or ())
        check_bounds(pairs)
        found = {name.lower(): value for name, value in pairs}
        if "ce_specversion" not in found:
            return None
        text = {name: _text(name, value) for name, value in found.items() if name == "content-type" or name.startswith("ce_")}
        if text["ce_specversion"] != "1.0":
            raise InvalidEnvelope(f"header ce_specversion is {text['ce_specversion']!r:.40}: expected '1.0'")
        for name in ("ce_id", "ce_source", "ce_type"):
            if not text.get(name):
                raise InvalidEnvelope(f"header {name} is missing or empty: every CloudEvent has one")
        sequence = text.get("ce_sequence")
        if sequence is not None and not (
            sequence.isascii() and sequence.isdigit() and len(sequence) <= 20 and int(sequence) <= MAX_SEQUENCE
        ):
            raise InvalidEnvelope(f"header ce_sequence is {sequence!r:.40}: expected up to {SEQUENCE_DIGITS} digits")
        trace = text.get("ce_traceparent", _text("traceparent", found["traceparent"]) if "traceparent" in found else None)
        known = {
            "ce_specversion",
            "ce_id",
            "ce_source",
            "ce_type",
            "ce_time",
            "ce_subject",
            "ce_sequence",
            "ce_traceparent",
            "content-type",
        }
        return cls(
            id=text["ce_id"],
            source=text["ce_source"],
            type=text["ce_type"],
            time=read_time(text.get("ce_time", "")),
            content_type=text.get("content-type", JSON),
            subject=text.get("ce_subject"),
            sequence=None if sequence is None else int(sequence),
            traceparent=trace if trace and _traceparent.match(trace) else None,  # W3C: an invalid one is ignored
            extensions={name[3:]: value for name, value in text.items() if name not in known},
        )


def check_bounds(headers: list[tuple[str, bytes | None]]) -> None:
    """Refuse headers that are too many or too large before any of them is read; raises `InvalidEnvelope`."""
    if len(headers) > MAX_HEADERS:
        raise InvalidEnvelope(f"{len(headers)} headers: at most {MAX_HEADERS} are read")
    size = sum(len(name) + len(value or b"") for name, value in headers)
    if size > MAX_HEADER_BYTES:
        raise InvalidEnvelope(f"headers of {size} bytes: at most {MAX_HEADER_BYTES} are read")


def write_time(time: dt.datetime) -> str:
    """A time as RFC 3339 in UTC with microseconds."""
    return time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_time(text: str) -> dt.datetime:
    """Read an RFC 3339 time as UTC; raises `InvalidEnvelope`."""
    try:
        time = msgspec.convert(text, dt.datetime)
    except msgspec.ValidationError:
        raise InvalidEnvelope(f"header ce_time is {text!r:.60}: expected an RFC 3339 time such as 2026-01-31T12:00:00Z") from None
    if time.tzinfo is None:
        raise InvalidEnvelope(f"header ce_time is {text!r:.60}: it lacks a time zone (add Z)")
    return time.astimezone(dt.UTC)


def _text(name: str, value: bytes | None) -> str:
    try:
        return (value or b"").decode()
    except UnicodeDecodeError:
        raise InvalidEnvelope(f"header {name} is not UTF-8") from None
