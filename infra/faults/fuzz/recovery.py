"""Harnesses on what is read again after a failure: dead letters that are brought back, and the journal that a dead process left."""

from __future__ import annotations

import struct
from pathlib import Path

from infra.faults.fuzz.envelopes import ENVELOPE, NOON
from infra.faults.fuzz.harness import GAP, harness, headers_of, must, parts, refusing, written_headers
from schemas.config import Link, SiteConfig
from schemas.identity import InvalidIdentity
from schemas.replays import APPENDED, MAX_REPLAYS, ORIGIN, REPLAYS, read_replay
from streams import journal
from streams.burial import ERRORS
from streams.dead_letters import grouped, read_letter
from streams.reader import Stored
from streams.settling import NotReplayable, returned
from streams.topology import Topology

_TOPOLOGY = Topology(SiteConfig(name="leaf-1", tier="leaf", link=Link(region_name="region-1")))
_REPLAY = [(ORIGIN, b"kafka/c/t/0/7"), (APPENDED, b"1769860800000"), (REPLAYS, b"2")]
_ERRORS = [
    (ERRORS + "topic", b"frames"),
    (ERRORS + "partition", b"0"),
    (ERRORS + "offset", b"7"),
    (ERRORS + "exception.class.name", b"a.B"),
    (ERRORS + "exception.message", b"it failed"),
]


@harness("replay-headers", [written_headers(_REPLAY), b"", written_headers([(REPLAYS, "\u00b2".encode())])])
def replay_headers(data: bytes) -> None:
    with refusing(InvalidIdentity):
        found = read_replay(headers_of(data))
        must(0 <= found.count <= MAX_REPLAYS, f"{found.count} replays")


@harness(
    "letter",
    [
        GAP.join((b"\xff\xd8\xff", b"cam-1", written_headers([*ENVELOPE.to_headers(), *_ERRORS]))),
        GAP.join((b"\xff\xd8\xff", b"gate 3", written_headers([*_ERRORS, *_REPLAY]))),
        GAP.join((b"", b"", written_headers([(APPENDED, b"9" * 19), (ERRORS + "offset", b"9" * 19)]))),
    ],
    cost=0.2,
)
def letter(data: bytes) -> None:
    value, key, pairs = parts(data, 3)
    topic = next(topic for topic in _TOPOLOGY if topic.name == "frames.dlq")
    stored = Stored(topic=topic, partition=0, offset=3, appended_at=NOON, key=key or None, value=value or None, headers=headers_of(pairs))
    found = read_letter(stored)
    grouped([found])
    with refusing(NotReplayable):
        returned(found, _TOPOLOGY, {"frames": ("c", "t")})


def _journals() -> list[bytes]:
    """Journals without the zeros behind what was written."""
    head = journal._HEADER.pack(journal._MAGIC, journal.SLOTS, journal.RECORDS, int(journal.State.RUNNING), 7, b"boot", 1, 0)
    slot = journal._SLOT.pack(1, 0, 2, 0, 6)
    return [head, head + bytes(journal._PAGE - len(head)) + slot + bytes(32 - len(slot)) + b"frames" + struct.pack("<4q", 1, 2, 3, 4), b""]


@harness("journal", _journals, cost=0.5)
def left_journal(data: bytes) -> None:
    journal._read((data + bytes(journal.SIZE))[: journal.SIZE], Path("/nowhere/leaf.0.journal"))
    journal._read(data, Path("/nowhere/leaf.0.journal"))
