"""Dead letters for people: found and grouped. `streams/burial.py` writes them, `streams/settling.py` brings them back or gives them up.

A letter cannot be changed or taken out of its topic (Kafka only cuts what is oldest), so what was decided about it is a record of its own
in `dlq.decisions`: letters that were replayed or discarded are settled, and passed over from then on. A replayed record keeps its bytes,
its headers and its id, and says how often it was replayed; if it fails again, that is a new letter, which says so too. A discarded record
is explained as a drop, so that the account says who gave it up. What is written twice (a worker that died between letter and commit buries
again) counts once.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from schemas.identity import source_of_key
from schemas.letters import Decision
from schemas.records import InvalidRecord
from schemas.replays import APPENDED, ORIGIN, REPLAYS
from streams.burial import DIGEST, ERRORS, RECORD
from streams.clients import Clients
from streams.reader import Stored, read
from streams.restore import to_end
from streams.topology import Role, Topic, Topology

Place = tuple[str, int, int, int]  # of a letter: topic, partition, offset, append time


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter, decoded. `stored` is its record, whose value is the origin's. `appended_at` is when the broker first took the record,
    if that is known; `settled` what was decided about the letter."""

    stored: Stored
    topic: str
    partition: int | None
    offset: int | None
    error: str
    message: str
    digest: str
    agent: str
    stack: str
    record: str | None
    source: str
    replays: int
    appended_at: dt.datetime | None
    settled: Decision | None = None

    @property
    def place(self) -> str:
        """As commands take it: `frames.dlq@0:12`."""
        return f"{self.stored.topic.name}@{self.stored.partition}:{self.stored.offset}"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: those of some dead-letter topics that match all of what is given. `error` is part of a class name, `digest` a
    beginning; `since` and `until` are about when the letter was written."""

    topics: tuple[Topic, ...]
    error: str | None = None
    digest: str | None = None
    source: str | None = None
    record: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    settled: bool = False

    def takes(self, letter: Letter) -> bool:
        return (
            (self.settled or letter.settled is None)
            and (self.error is None or self.error.lower() in letter.error.lower())
            and (self.digest is None or letter.digest.startswith(self.digest))
            and (self.source is None or letter.source == self.source)
            and (self.record is None or letter.record == self.record)
        )


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Letters of one kind: one origin topic, one class of error, one stack. `message` is the latest one's; times are the letters'."""

    topic: str
    error: str
    digest: str
    message: str
    count: int
    sources: int
    replays: int
    first: dt.datetime | None
    last: dt.datetime | None


# ---- finding them


def letter_topics(topology: Topology) -> list[Topic]:
    """Every dead-letter topic of a site."""
    return [topic for topic in topology if topic.name.endswith(".dlq")]


def letters(
    clients: Clients, topology: Topology, wanted: Wanted, *, seen: Callable[[], None] = lambda: None, stop: threading.Event | None = None
) -> Iterator[Letter]:
    """The letters that are wanted, by the broker's time; `seen` is called for each that is read. Raises as `streams.reader.read` does."""
    settled = decisions(clients, topology)
    failures: dict[tuple[str, int | None, int | None], Decision | None] = {}
    for stored in read(clients, wanted.topics, start=wanted.since or "beginning", until=wanted.until, stop=stop):
        seen()
        letter = read_letter(stored)
        letter = msgspec.structs.replace(letter, settled=settled.get(place_of(letter)))
        failure = (letter.topic, letter.partition, letter.offset)
        if letter.offset is not None and failure in failures:
            continue
        failures[failure] = letter.settled
        if wanted.takes(letter):
            yield letter


def letter_at(clients: Clients, topology: Topology, topic: Topic, partition: int, offset: int) -> Letter | None:
    """The letter at a place; None if there is none (any more)."""
    settled = decisions(clients, topology)
    for stored in read(clients, [topic], start=offset):
        if stored.partition == partition:
            letter = read_letter(stored)
            return msgspec.structs.replace(letter, settled=settled.get(place_of(letter))) if stored.offset == offset else None
    return None


def read_letter(stored: Stored) -> Letter:
    """Decode a letter; what its headers do not say is empty."""
    text = {name: (value or b"").decode(errors="replace") for name, value in stored.headers}
    topic = text.get(ERRORS + "topic") or stored.topic.name.removesuffix(".dlq")
    partition, offset = _number(text.get(ERRORS + "partition")), _number(text.get(ERRORS + "offset"))
    replays, appended = _number(text.get(REPLAYS)) or 0, _number(text.get(APPENDED))
    return Letter(
        stored=stored,
        topic=topic,
        partition=partition,
        offset=offset,
        error=text.get(ERRORS + "exception.class.name", ""),
        message=text.get(ERRORS + "exception.message", ""),
        digest=text.get(DIGEST, ""),
        agent=text.get(ERRORS + "connector.name", ""),
        stack=text.get(ERRORS + "exception.stacktrace", ""),
        record=text.get(RECORD) or text.get("ce_id") or text.get(ORIGIN),
        source=text.get("ce_source") or source_of_key(stored.key, topic, partition or 0),
        replays=replays,
        appended_at=_time(appended),
    )


def decisions(clients: Clients, topology: Topology) -> dict[Place, Decision]:
    """What was decided about letters, by their places; nothing where the topic of decisions does not exist yet."""
    topic = topology.role(Role.OPERATOR).read("dlq.decisions")
    found: dict[Place, Decision] = {}
    if topic.name not in clients.cluster([topic.name]).topics:
        return found
    for message in to_end(clients, [(topic.name, partition) for partition in range(topic.partitions)]):
        with suppress(InvalidRecord):  # another version's: the letter is open again
            decision = Decision.from_bytes(message.value())
            found[decision.topic, decision.partition, decision.offset, decision.appended_ms] = decision
    return found


def grouped(found: Iterable[Letter]) -> list[Group]:
    """Letters by kind, the most frequent first."""
    kinds: dict[tuple[str, str, str], list[Any]] = {}
    for letter in found:
        kind = kinds.setdefault((letter.topic, letter.error, letter.digest), [0, set(), 0, None, None, ""])
        at = letter.stored.appended_at
        kind[0] += 1
        if len(kind[1]) < 10_000:
            kind[1].add(letter.source)
        kind[2] = max(kind[2], letter.replays)
        kind[3] = at if kind[3] is None else min(kind[3], at or kind[3])
        if kind[4] is None or (at is not None and at >= kind[4]):
            kind[4], kind[5] = at, letter.message
    groups = [
        Group(topic=t, error=e, digest=d, message=k[5], count=k[0], sources=len(k[1]), replays=k[2], first=k[3], last=k[4])
        for (t, e, d), k in kinds.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, group.topic, group.error, group.digest))


def place_of(letter: Letter) -> Place:
    at = letter.stored.appended_at
    milliseconds = 0 if at is None else round(at.timestamp() * 1000)
    return letter.stored.topic.name, letter.stored.partition, letter.stored.offset, milliseconds


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 17 else None


def _time(milliseconds: int | None) -> dt.datetime | None:
    try:
        return None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None
