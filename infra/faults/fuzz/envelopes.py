"""Harnesses on headers, names and whole frames: what every record brings besides its value."""

from __future__ import annotations

import datetime as dt

from infra.faults.fuzz.harness import GAP, harness, headers_of, must, parts, refusing, text_of, written_headers
from schemas.envelope import FRAME, JPEG, MAX_HEADER_BYTES, MAX_HEADERS, Envelope, InvalidEnvelope, check_bounds
from schemas.frames import Frame, InvalidFrame, Origin, read_frame
from schemas.identity import MAX_SOURCE, InvalidIdentity, RecordId, check_source, key_of_source, source_of_key
from streams.burial import error_headers, letter_headers, of_the_error
from streams.reader import parse_start

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
ORIGIN = Origin(cluster="c", topic="frames", topic_uuid="t", partition=0, offset=7, appended_at=NOON)
ENVELOPE = Envelope(
    id="cam-1/e1/7",
    source="cam-1",
    type=FRAME,
    time=NOON,
    content_type=JPEG,
    subject="a",
    sequence=7,
    traceparent=f"00-{'1' * 32}-{'2' * 16}-01",
    extensions={"appendedms": "1700000000012", "rate": ""},
)
HEADERS = written_headers(ENVELOPE.to_headers())
_BARE = written_headers(
    [("CE_specversion", b"1.0"), ("ce_id", b"a"), ("ce_source", b"b"), ("ce_type", b"c"), ("ce_time", b"2026-01-31T12:00:00.5+14:00")]
)


@harness("envelope", [HEADERS, _BARE, b"", b"traceparent\x02x", b"\x01" * 70, b"ce_id\x02a"])
def envelope(data: bytes) -> None:
    headers = headers_of(data)
    with refusing(InvalidEnvelope):
        check_bounds(headers)
        found = Envelope.from_headers(headers)
        if found is not None:
            again = Envelope.from_headers(list(found.to_headers()))
            must(again == found, f"read again it differs: {found!r:.300} {again!r:.300}")


@harness("record-id", [b"cam-1/e1/7", b"kafka/c/t/0/12", b"a/b/9223372036854775807", b"//", b"a/b/00"])
def record_id(data: bytes) -> None:
    text = text_of(data)
    with refusing(InvalidIdentity):
        must(str(RecordId.parse(text)) == text, "written again it differs")
    with refusing(InvalidIdentity):
        check_source(text)


@harness("source-key", [b"gate 3", b"", b"kafka", b"frames.0", b"sha256-x", b"\xff\xfe", b"k" * 200, b"~."])
def source_key(data: bytes) -> None:
    name = source_of_key(data, "frames", 0)
    must(0 < len(name) <= MAX_SOURCE and name.isascii() and name.isprintable(), f"not the name of a source: {name!r:.200}")
    key_of_source(name)
    Frame(id=RecordId("kafka", "c/t/0", 1), source=name, captured_at=NOON, jpeg=b"\xff\xd8\xff")


@harness("frame", [GAP.join((b"\xff\xd8\xff\xe0", b"cam-1", HEADERS)), GAP.join((b"\xff\xd8\xff\xe0", b"gate 3", b"")), b"\xff\xd8\xff"])
def frame(data: bytes) -> None:
    value, key, headers = parts(data, 3)
    with refusing(InvalidFrame):
        found = read_frame(value, key, headers_of(headers), ORIGIN, max_bytes=1 << 20)
        again = read_frame(found.jpeg, key, list(found.to_headers()), ORIGIN)
        must(again == found, "read again from its own headers it differs")


class _Message:
    def __init__(self, headers: list[tuple[str, bytes | None]]) -> None:
        self._headers = headers

    def topic(self) -> str:
        return "frames"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return b"x"

    def timestamp(self) -> tuple[int, int]:
        return 2, 0

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self._headers


@harness(
    "dead-letter",
    [GAP.join((b"it failed", HEADERS)), GAP.join((b"\x1b[2J" * 400, b"n" * 70_000)), GAP.join((b"", b"a\x02b\x01" * 80))],
    cost=0.5,
)
def dead_letter(data: bytes) -> None:
    told, pairs = parts(data, 2)
    headers = headers_of(pairs)
    message = _Message(headers)
    letter = letter_headers(message, ValueError(text_of(told)), "leaf-1.leaf", text_of(told[:200]) or None)
    must(len(letter) <= MAX_HEADERS, f"{len(letter)} headers")
    must(
        sum(len(name.encode()) + len(value or b"") for name, value in letter) <= MAX_HEADER_BYTES,
        "headers that are larger than may be read",
    )
    for _, value in error_headers(message, ValueError(text_of(told)), "a", None):
        value.decode()
    size = sum(len(name.encode()) + len(value or b"") for name, value in headers)  # decoded, a broken name is larger
    if len(headers) < MAX_HEADERS - 14 and size < MAX_HEADER_BYTES // 2:
        # An earlier failure's headers make way for this one's.
        ours = {name for name, _ in letter if name.startswith(("__connect.", "headwater."))}
        must(
            [pair for pair in letter if pair[0] not in ours]
            == [pair for pair in headers if pair[0] not in ours and not of_the_error(pair[0])],
            "it lost headers of the record",
        )


@harness("start", [b"beginning", b"5m", b"1e309d", b"2026-01-31T12:00:00Z", b"12", b"-1s", b"nand"])
def start(data: bytes) -> None:
    with refusing(ValueError):
        parse_start(text_of(data))
