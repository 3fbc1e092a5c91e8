"""What a stored record means: any topic's record decoded into the struct that its topic declares, foreign ones and dead letters included.

Nothing here fails on a bad record: what cannot be read is a view that says why.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec
import simplejpeg

from schemas import envelope as names
from schemas.accounts import AccountPast, AccountSet
from schemas.accuracy import Accuracy
from schemas.drift import Drift
from schemas.envelope import Envelope, InvalidEnvelope, check_bounds
from schemas.identity import InvalidIdentity, source_of_key
from schemas.incidents import Incident
from schemas.labels import Label
from schemas.letters import Decision
from schemas.links import LinkHold, LinkOrder, LinkState
from schemas.messages import Alert, Answer, Control, Drop, EpochMark, Escalation, Position, Result, Verdict
from schemas.records import MAX_RECORD_BYTES, InvalidRecord, Record
from schemas.replays import read_replay
from schemas.snapshots import Snapshot
from streams.outputs import ESCALATION_HEADER
from streams.reader import Stored

_JPEG_START = b"\xff\xd8\xff"
_ERRORS = "__connect.errors."  # as `streams/burial.py` and Kafka Connect write them

# The struct by what the topic declares as its value, and by the type that the record itself states (for dead letters and other topics).
_BY_TOPIC: dict[str, type[Record]] = {
    "Verdict": Verdict,
    "Result": Result,
    "Alert": Alert,
    "Drop": Drop,
    "EpochMark": EpochMark,
    "Control": Control,
    "Position": Position,
    "LinkState": LinkState,
    "LinkOrder": LinkOrder,
    "Decision": Decision,
    "LinkHold": LinkHold,
    "Incident": Incident,
    "Accuracy": Accuracy,
    "Drift": Drift,
    "Label": Label,
}
_BY_TYPE: dict[str, type[Record]] = {
    names.VERDICT: Verdict,
    names.RESULT: Result,
    names.ALERT: Alert,
    names.DROP: Drop,
    names.EPOCH: EpochMark,
    names.CONTROL: Control,
    names.POSITION: Position,
    names.LINK_STATE: LinkState,
    names.LINK_ORDER: LinkOrder,
    names.DECISION: Decision,
    names.LINK_HOLD: LinkHold,
    names.INCIDENT: Incident,
    names.ACCURACY: Accuracy,
    names.DRIFT: Drift,
    names.LABEL: Label,
    names.SNAPSHOT: Snapshot,
    names.ACCOUNT: AccountSet,
    names.ACCOUNT_PAST: AccountPast,
}


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A JPEG, by its size in bytes and pixels (0 where its header cannot be read)."""

    size_bytes: int
    width: int
    height: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a record became a dead letter, and where it came from."""

    topic: str
    partition: int | None
    offset: int | None
    error: str
    message: str
    agent: str
    record: str | None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A record, decoded.

    `kind` is `picture`, `escalation`, `json`, `text`, `bytes`, `tombstone`, `unreadable`, or the name of a struct (`verdict`, ...).
    `value` is the struct, `Picture`, decoded JSON, text, or None. `error` says what could not be read. `failure` is set on dead letters.
    """

    stored: Stored
    kind: str
    value: Any
    envelope: Envelope | None = None
    picture: Picture | None = None
    error: str | None = None
    failure: Failure | None = None

    @property
    def source(self) -> str | None:
        """The source that the record belongs to, as far as it says; a foreign frame's comes from its key."""
        if self.envelope is not None:
            return self.envelope.source
        found = getattr(self.value, "source", None)
        if found is None and self.kind == "picture":
            return source_of_key(self.stored.key, self.stored.topic.name, self.stored.partition)
        return str(found) if found is not None else None

    @property
    def sequence(self) -> int | None:
        return None if self.envelope is None else self.envelope.sequence

    @property
    def captured_at(self) -> dt.datetime | None:
        """When what the record is about happened, by its producer's clock."""
        captured: dt.datetime | None = getattr(self.value, "captured_at", None)
        return captured or (None if self.envelope is None else self.envelope.time)

    @property
    def replayed(self) -> int:
        """How often it was replayed from its dead letter."""
        try:
            return read_replay(self.stored.headers).count
        except InvalidIdentity:
            return 0

    @property
    def late(self) -> bool:
        """Whether it is old news, whatever time it came at: an alert or incident that waited long, or one that was replayed."""
        return isinstance(self.value, Alert | Incident) and (self.value.late or self.replayed > 0)

    @property
    def latency_ms(self) -> float | None:
        """From capture to the broker's append, in milliseconds: two clocks, and the broker's is whole milliseconds."""
        if self.captured_at is None or self.stored.appended_at is None:
            return None
        return (self.stored.appended_at - self.captured_at).total_seconds() * 1000


def decode(stored: Stored) -> View:
    """Decode a record of any topic."""
    headers = stored.headers
    try:
        check_bounds(headers)
        envelope, fault = Envelope.from_headers(headers), None
    except InvalidEnvelope as error:
        envelope, fault = None, str(error)
    found = {name: value or b"" for name, value in headers}
    failure = _failure(found)
    kind, value, error_text = _value(stored, envelope, found, dead=failure is not None)
    return View(
        stored=stored,
        kind=kind,
        value=value,
        envelope=envelope,
        picture=value if isinstance(value, Picture) else _picture(stored.value) if kind == "escalation" else None,
        error=error_text or fault,
        failure=failure,
    )


def _value(stored: Stored, envelope: Envelope | None, headers: Mapping[str, bytes], *, dead: bool) -> tuple[str, Any, str | None]:
    data, declared = stored.value, stored.topic.value
    if data is None:
        return "tombstone", None, None
    if dead or declared not in {*_BY_TOPIC, "JPEG bytes", "evidence; Escalation in a header"}:
        return _by_type(data, envelope, headers)
    if declared in _BY_TOPIC:
        return _struct(_BY_TOPIC[declared], data)
    if ESCALATION_HEADER in headers:
        return _struct(Escalation, headers[ESCALATION_HEADER])
    if data.startswith(_JPEG_START):
        return "picture", _picture(data), None
    return "unreadable", None, f"{len(data)} bytes that start with {data[:4].hex() or 'nothing'}: expected {declared}"


def _by_type(data: bytes, envelope: Envelope | None, headers: Mapping[str, bytes]) -> tuple[str, Any, str | None]:
    """A record whose topic does not say what it is: by its own word, then by its looks."""
    if ESCALATION_HEADER in headers:
        return _struct(Escalation, headers[ESCALATION_HEADER])
    if envelope is not None and envelope.type in _BY_TYPE:
        return _struct(_BY_TYPE[envelope.type], data)
    if data.startswith(_JPEG_START):
        return "picture", _picture(data), None
    if len(data) <= MAX_RECORD_BYTES:
        try:
            return "json", msgspec.json.decode(data), None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        try:
            text = data.decode()
        except UnicodeDecodeError:
            pass
        else:
            if text.isprintable():
                return "text", text, None
    return "bytes", None, None


def _struct(kind: type[Record], data: bytes) -> tuple[str, Any, str | None]:
    try:
        return kind.__name__.lower(), kind.from_bytes(data), None
    except InvalidRecord as error:
        return "unreadable", None, str(error)


def _picture(data: bytes | None) -> Picture:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data or b"", strict=False)
    except (ValueError, TypeError, KeyError):  # KeyError: a header without a colour space
        height, width = 0, 0
    return Picture(size_bytes=len(data or b""), width=width, height=height)


def _failure(headers: Mapping[str, bytes]) -> Failure | None:
    text = {
        name.removeprefix(_ERRORS): value.decode(errors="replace")
        for name, value in headers.items()
        if name.startswith(_ERRORS) or name == "headwater.record"
    }
    if "topic" not in text:
        return None
    return Failure(
        topic=text["topic"],
        partition=_number(text.get("partition")),
        offset=_number(text.get("offset")),
        error=text.get("exception.class.name", ""),
        message=text.get("exception.message", ""),
        agent=text.get("connector.name", ""),
        record=text.get("headwater.record"),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def to_json(view: View) -> dict[str, Any]:
    """A view as plain data for programs: where the record is, its envelope, and its value."""
    stored, envelope = view.stored, view.envelope
    told: dict[str, Any] = {
        "topic": stored.topic.name,
        "partition": stored.partition,
        "offset": stored.offset,
        "appended_at": stored.appended_at,
        "key": None if stored.key is None else stored.key.decode(errors="backslashreplace"),
        "kind": view.kind,
        "source": view.source,
        "latency_ms": None if view.latency_ms is None else round(view.latency_ms, 3),
        "envelope": None if envelope is None else plain(envelope),
        "value": plain(view.value),
    }
    if view.late:
        told["late"] = True
    if view.kind in {"bytes", "unreadable"} and stored.value is not None:
        told["size_bytes"] = len(stored.value)
    for name in ("picture", "error", "failure"):
        if getattr(view, name) is not None and not (name == "picture" and view.kind == "picture"):
            told[name] = plain(getattr(view, name))
    return told


def plain(value: Any) -> Any:
    """A value as plain data, with what is nested as text on the wire opened."""
    if isinstance(value, Record):
        tree = msgspec.json.decode(value.to_bytes())
        if isinstance(value, Answer | Alert):  # nested JSON is text on the wire, for sinks; programs that read this want it open
            for field in ("detections", "seen", "zone"):
                if isinstance(tree.get(field), str):
                    tree[field] = msgspec.json.decode(tree[field])
        elif isinstance(value, Incident):
            for field in ("sources", "sites", "witnesses"):
                tree[field] = msgspec.json.decode(tree[field])
        elif isinstance(value, Drop):
            tree["ranges"] = msgspec.json.decode(tree["ranges"])
        return tree
    if isinstance(value, msgspec.Struct):
        return {name: found for name, found in msgspec.structs.asdict(value).items() if found not in (None, {})}
    return value
