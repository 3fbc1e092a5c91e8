"""The envelope of every record: CloudEvents 1.0 attributes as Kafka headers, in binary content mode.

Our own code because it is on the hot path; the tests hold it against the official CloudEvents SDK. Specifications: CloudEvents 1.0.2,
its Kafka protocol binding (values are plain UTF-8: percent-encoding is for HTTP), and the extensions `sequence` (without `sequencetype`,
zero-padded) and distributed tracing (`traceparent`).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from schemas.identity import MAX_SEQUENCE, SEQUENCE_DIGITS

Headers = list[tuple[str, bytes]]

MAX_HEADERS = 64
MAX_HEADER_BYTES = 64 << 10  # of all names and values of one record together; an escalation is one of them
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
LINK_STATE = "headwater.link-state.v1"
LINK_ORDER = "headwater.link-order.v1"
DECISION = "headwater.decision.v1"
LINK_HOLD = "headwater.link-hold.v1"
INCIDENT = "headwater.incident.v1"
SNAPSHOT = "headwater.snapshot.v1"
SNAPSHOT_PART = "headwater.snapshot-part.v1"
ACCURACY = "headwater.accuracy.v1"
DRIFT = "headwater.drift.v1"
LABEL = "headwater.label.v1"
LESSON = "headwater.lesson.v1"
ACCOUNT = "headwater.account.v1"
ACCOUNT_PAST = "headwater.account-past.v1"

# An extension: when a record was appended at its site, in milliseconds since 1970, by the clock of the broker that keeps it now: the link,
# which knows both brokers' clocks, has put it from the one into the other.
APPENDED_MS = "appendedms"

_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")  # W3C Trace Context
_attribute = re.compile(r"[a-z0-9]{1,64}\Z")
# What no CloudEvents string holds: control characters, halves of surrogate pairs, and Unicode's noncharacters.
_forbidden = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)
_REQUIRED = ("ce_id", "ce_source", "ce_type")
_OWN = frozenset({"specversion", "id", "source", "type", "time", "subject", "sequence", "traceparent", "datacontenttype", "data"})


class InvalidEnvelope(ValueError):
    """Headers that are not a CloudEvent of ours; the message names the header, its value and what was expected."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The context attributes of one record.

    `time` is the capture time: when what the record is about happened, by the producer's clock. `extensions` are further attributes
    as text, by names of lower-case letters and digits.
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
        """The Kafka headers of this envelope; raises `InvalidEnvelope` for what `from_headers` would not read back."""
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", _written("ce_id", self.id)),
            ("ce_source", _written("ce_source", self.source)),
            ("ce_type", _written("ce_type", self.type)),
            ("ce_time", write_time(self.time).encode()),
            ("content-type", _written("content-type", self.content_type)),
        ]
        if self.subject is not None:
            headers.append(("ce_subject", _written("ce_subject", self.subject)))
        if self.sequence is not None:
            if not 0 <= self.sequence <= MAX_SEQUENCE:
                raise InvalidEnvelope(f"header ce_sequence is {self.sequence}: expected a number from 0 to {MAX_SEQUENCE}")
            headers.append(("ce_sequence", b"%0*d" % (SEQUENCE_DIGITS, self.sequence)))
        if self.traceparent is not None:
            if not _traceparent.match(self.traceparent):
                raise InvalidEnvelope(f"header ce_traceparent is {self.traceparent!r:.80}: expected one of W3C Trace Context")
            headers.append(("ce_traceparent", self.traceparent.encode()))
        for name, value in self.extensions.items():
            if name in _OWN or not _attribute.match(name):
                raise InvalidEnvelope(f"extension {name!r:.80}: expected a name of lower-case letters and digits that has no meaning yet")
            headers.append((f"ce_{name}", _written(f"ce_{name}", value) if value else b""))
        check_bounds(headers)
        return headers

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes | None]] | None) -> Envelope | None:
        """Read an envelope; None if the record carries none (a foreign producer's), `InvalidEnvelope` if it carries a broken one.

        Of several headers of one name the last holds, as everywhere in Kafka. An optional attribute without a value is none.
        """
        pairs = list(headers or ())
        check_bounds(pairs)
        found = {name.lower(): value for name, value in pairs}
        if "ce_specversion" not in found:
            if present := next((name for name in _REQUIRED if name in found), None):
                raise InvalidEnvelope(f"header ce_specversion is missing beside {present}: expected '1.0'")
            return None
        text = {name: _read(name, value) for name, value in found.items() if name == "content-type" or name.startswith("ce_")}
        if text["ce_specversion"] != "1.0":
            raise InvalidEnvelope(f"header ce_specversion is {text['ce_specversion']!r:.40}: expected '1.0'")
        for name in _REQUIRED:
            if not text.get(name):
                raise InvalidEnvelope(f"header {name} is missing or empty: every CloudEvent has one")
        sequence = text.get("ce_sequence")
        if sequence is not None and not (
            sequence.isascii() and sequence.isdigit() and len(sequence) <= SEQUENCE_DIGITS and int(sequence) <= MAX_SEQUENCE
        ):
            raise InvalidEnvelope(f"header ce_sequence is {sequence!r:.40}: expected up to {SEQUENCE_DIGITS} digits")
        trace = text["ce_traceparent"] if "ce_traceparent" in text else _read("traceparent", found.get("traceparent"))
        return cls(
            id=text["ce_id"],
            source=text["ce_source"],
            type=text["ce_type"],
            time=read_time(text.get("ce_time", "")),
            content_type=text.get("content-type") or JSON,
            subject=text.get("ce_subject") or None,
            sequence=None if sequence is None else int(sequence),
            traceparent=trace if _traceparent.match(trace) else None,  # W3C: an invalid one is ignored
            # A name that no attribute can have is another system's header, not a broken attribute.
            extensions={
                name[3:]: value
                for name, value in text.items()
                if name[3:] not in _OWN and name != "content-type" and _attribute.match(name, 3)
            },
        )


def waited_ms(head: Envelope | None, appended_ms: int) -> int:
    """How long a record waited at its site and on its way before it was appended to the log in which it was read, at `appended_ms`, as its
    envelope says; 0 where it says nothing readable."""
    text = "" if head is None else head.extensions.get(APPENDED_MS, "")
    return max(0, appended_ms - int(text)) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def check_bounds(headers: Sequence[tuple[str, bytes | None]]) -> None:
    """Refuse headers that are too many or too large before any of them is read; raises `InvalidEnvelope`."""
    if len(headers) > MAX_HEADERS:
        raise InvalidEnvelope(f"{len(headers)} headers: at most {MAX_HEADERS} are read")
    size = sum(len(name) + len(value or b"") for name, value in headers)
    if size > MAX_HEADER_BYTES:
        raise InvalidEnvelope(f"headers of {size} bytes: at most {MAX_HEADER_BYTES} are read")


def write_time(time: dt.datetime) -> str:
    """A time as RFC 3339 in UTC with microseconds; raises `InvalidEnvelope` if it has no time zone."""
    if time.tzinfo is None:
        raise InvalidEnvelope(f"time {time.isoformat()} lacks a time zone: expected one in UTC")
    return _utc(time).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def read_time(text: str) -> dt.datetime:
    """Read an RFC 3339 time as UTC; raises `InvalidEnvelope`."""
    try:
        time = msgspec.convert(text, dt.datetime)
    except (ValueError, OverflowError):
        raise InvalidEnvelope(f"header ce_time is {text!r:.60}: expected an RFC 3339 time such as 2026-01-31T12:00:00Z") from None
    if time.tzinfo is None:
        raise InvalidEnvelope(f"header ce_time is {text!r:.60}: it lacks a time zone (add Z)")
    return _utc(time)


def _utc(time: dt.datetime) -> dt.datetime:
    try:
        return time if time.tzinfo is dt.UTC else time.astimezone(dt.UTC)
    except OverflowError:
        raise InvalidEnvelope(f"time {time.isoformat()} is not within the years 1 to 9999 in UTC") from None


def _written(name: str, value: str) -> bytes:
    if not (isinstance(value, str) and value and (value.isprintable() or not _forbidden.search(value))):
        raise InvalidEnvelope(f"header {name} is {value!r:.80}: expected text without control characters, not empty")
    return value.encode()


def _read(name: str, value: bytes | None) -> str:
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        raise InvalidEnvelope(f"header {name} is not UTF-8") from None
    if not text.isprintable() and _forbidden.search(text):
        raise InvalidEnvelope(f"header {name} is {text!r:.80}: expected text without control characters")
    return text
