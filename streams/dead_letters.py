"""Dead letters for people: found, grouped, brought back, given up. `streams/burial.py` writes them.

A letter cannot be changed or taken out of its topic (Kafka only cuts what is oldest), so what was decided about it is a record of its own
in `dlq.decisions`: letters that were replayed or discarded are settled, and passed over from then on. A replayed record keeps its bytes,
its headers and its id, and says how often it was replayed; if it fails again, that is a new letter, which says so too. A discarded record
is explained as a drop, so that the account says who gave it up. What is written twice (a worker that died between letter and commit buries
again) counts once.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from confluent_kafka import KafkaException, Producer

from schemas.envelope import Envelope, InvalidEnvelope
from schemas.errors import Fault
from schemas.identity import InvalidIdentity, RecordId, foreign_id, source_of_key
from schemas.intervals import Intervals
from schemas.letters import Decision, Settlement
from schemas.messages import Drop, Name, Tier
from schemas.records import InvalidRecord
from schemas.replays import APPENDED, ORIGIN, REPLAYS, read_replay
from streams import outputs
from streams.burial import DIGEST, ERRORS, HEADERS_OMITTED, RECORD, VALUE_OMITTED, of_the_error
from streams.clients import Clients, only_inferred
from streams.message import Pairs
from streams.partition import partition_of
from streams.reader import Stored, read
from streams.restore import to_end
from streams.sink import Output
from streams.topology import Role, Topic, Topology, UndeclaredTopic

STAGE, DISCARDED = "dlq", "discarded"  # of the drops that explain discarded records
_ACCOUNTED = frozenset({"frames", "requests", "verdicts"})  # a letter of these is how its record ended
_IN_FLIGHT = 500
_ACK_S = 60.0

Place = tuple[str, int, int, int]  # of a letter: topic, partition, offset, append time


class ReplayFailed(Fault, RuntimeError):
    """The broker did not take what was replayed, or the decision about it; the message says what was done by then."""


class NotReplayable(ValueError):
    """A letter that cannot be brought back; the message says why."""


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
        letter = msgspec.structs.replace(letter, settled=settled.get(_place(letter)))
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
            return msgspec.structs.replace(letter, settled=settled.get(_place(letter))) if stored.offset == offset else None
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


# ---- settling them


class Returned(msgspec.Struct, frozen=True):
    """A record as it goes back to its topic."""

    topic: Topic
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Pairs


class Settled(msgspec.Struct):
    """What was done with some letters; `refused` counts those that cannot be replayed, by reason."""

    done: int = 0
    refused: Counter[str] = msgspec.field(default_factory=Counter)


def returned(letter: Letter, topology: Topology, places: dict[str, tuple[str, str]]) -> Returned:
    """A letter's record as it was, with a header that counts its replays. A record without an envelope was named after its place: a header
    keeps that name, and its partition is the one that its producer had chosen.

    Parameters
    ----------
    places
        Cluster id and topic uuid of the topics as they are now, for letters that do not say them.

    Raises
    ------
    NotReplayable
        If the letter does not hold all of the record, or its topic is not one that takes records back.
    """
    names = {name for name, _ in letter.stored.headers}
    if VALUE_OMITTED in names:
        raise NotReplayable("its bytes were too many for a dead letter")
    if HEADERS_OMITTED in names:
        raise NotReplayable("its headers were too many for a dead letter")
    topic = topology.topics.get(letter.topic)
    if topic is None or Role.OPERATOR not in topic.writers:
        raise NotReplayable(f"{letter.topic} is no topic of this site that takes records back")
    own: Pairs = [(name, value) for name, value in letter.stored.headers if not of_the_error(name) and name != REPLAYS]
    try:
        envelope, replay = Envelope.from_headers(own), read_replay(own)
    except (InvalidEnvelope, InvalidIdentity):
        envelope, replay = None, None  # it goes back as it came, and fails as it failed, unless the code was mended
    enveloped = any(name.lower() in {"ce_id", "ce_specversion"} for name, _ in own)
    if not enveloped and replay is not None and replay.origin is None:
        name = _foreign_name(letter, places)
        if name is not None:
            own.append((ORIGIN, name.encode()))
    own.append((REPLAYS, str(letter.replays + 1).encode()))
    if not topic.by_source:
        partition = 0
    elif envelope is not None:
        partition = partition_of(envelope.source, topic.partitions)
    else:
        partition = (letter.partition or 0) % topic.partitions
    return Returned(topic, partition, letter.stored.key, letter.stored.value, own)


def _foreign_name(letter: Letter, places: dict[str, tuple[str, str]]) -> str | None:
    with suppress(InvalidIdentity):
        if letter.record is not None and RecordId.parse(letter.record).foreign:
            return letter.record
    place = places.get(letter.topic)
    if place is None or letter.partition is None or letter.offset is None:
        return None
    return str(foreign_id(*place, letter.partition, letter.offset))


def replay(
    clients: Clients,
    topology: Topology,
    found: Iterable[Letter],
    *,
    by: str,
    rate_per_s: float = 0.0,
    done: Callable[[Letter, str | None], None] = lambda letter, refused: None,
    stop: threading.Event | None = None,
) -> Settled:
    """Write the records of some letters back to their topics, idempotently, and record it for each that the broker has taken; what is
    stopped in the middle goes on with the others the next time.

    Parameters
    ----------
    rate_per_s
        Records a second at most; 0: as fast as the broker takes them.
    done
        Called for each letter, with the reason if it was refused.

    Raises
    ------
    ReplayFailed, BrokerUnavailable
        If the broker does not take them.
    """
    stop = stop or threading.Event()
    settled = Settled()
    target = topology.role(Role.OPERATOR).write("dlq.decisions")
    origins = sorted({letter_topic.name.removesuffix(".dlq") for letter_topic in letter_topics(topology)})
    info = clients.cluster(origins)
    places = {name: (info.id, uuid) for name, (uuid, _) in info.topics.items()}
    writer = _Writer(clients.producer(linger_ms=5))
    start = time.monotonic()
    for count, letter in enumerate(found):
        if rate_per_s and stop.wait(max(0.0, start + count / rate_per_s - time.monotonic())):
            break
        try:
            back = returned(letter, topology, places)
        except NotReplayable as error:
            settled.refused[str(error)] += 1
            done(letter, str(error))
            continue
        decision = _decide(letter, Settlement.REPLAYED, by, letter.replays + 1, None)

        def taken(letter: Letter = letter, decision: Decision = decision) -> None:
            writer.later.append(outputs.decision(target, decision, dt.datetime.now(dt.UTC), topology.site))
            settled.done += 1
            done(letter, None)

        writer.send(back.topic.name, back.partition, back.key, back.value, back.headers, taken)
        if stop.is_set():
            break
    writer.close(f"{settled.done} records were replayed by then; run it again for the others")
    return settled


def discard(
    clients: Clients,
    topology: Topology,
    found: Sequence[Letter],
    *,
    by: str,
    note: str | None = None,
    done: Callable[[Letter, str | None], None] = lambda letter, refused: None,
) -> Settled:
    """Give up the records of some letters: the drop that explains it is written first, then the decision. Raises as `replay` does."""
    role = topology.role(Role.OPERATOR)
    target, settled, now = role.write("dlq.decisions"), Settled(), dt.datetime.now(dt.UTC)
    writer = _Writer(clients.producer(linger_ms=5))
    if topology.tier is Tier.LEAF:
        for drop, source in _drops(found, topology):
            writer.put(outputs.drop(role.write("drops"), drop, now, source))
        writer.flush("nothing was discarded")
    for letter in found:
        writer.put(outputs.decision(target, _decide(letter, Settlement.DISCARDED, by, letter.replays, note), now, topology.site))
        settled.done += 1
        done(letter, None)
    writer.close("what was discarded is told by `headwater dlq list --all`")
    return settled


def _drops(found: Iterable[Letter], topology: Topology) -> Iterator[tuple[Drop, str]]:
    epochs: dict[tuple[str, str, str], Intervals] = {}
    for letter in found:
        with suppress(InvalidIdentity, UndeclaredTopic, KeyError):
            if topology.topics[letter.topic].base in _ACCOUNTED and letter.record is not None:
                record = RecordId.parse(letter.record)
                epochs.setdefault((record.source, record.epoch, letter.source), Intervals()).add(record.sequence)
    for (name, epoch, source), sequences in epochs.items():
        yield (
            Drop(source=name, epoch=epoch, site=topology.site, stage=STAGE, reason=DISCARDED, ranges=sequences.to_ranges()),
            source,
        )


def _decide(letter: Letter, settlement: Settlement, by: str, replays: int, note: str | None) -> Decision:
    topic, partition, offset, appended_ms = _place(letter)
    return Decision(
        topic=topic,
        partition=partition,
        offset=offset,
        appended_ms=appended_ms,
        settlement=settlement,
        by=msgspec.convert(by[:128] or "unknown", Name),
        record=letter.record[:512] if letter.record else None,
        replays=replays,
        note=note[:2000] if note else None,
    )


def _place(letter: Letter) -> Place:
    at = letter.stored.appended_at
    milliseconds = 0 if at is None else round(at.timestamp() * 1000)
    return letter.stored.topic.name, letter.stored.partition, letter.stored.offset, milliseconds


class _Writer:
    """A producer whose reports are looked at; a bounded number under way. `later` is what reports ask to be written: no report may use the
    producer itself."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._refused: str | None = None
        self.later: deque[Output] = deque()

    def put(self, output: Output) -> None:
        self.send(output.topic.name, output.partition, output.key, output.value, list(output.headers), None)

    def send(self, topic: str, partition: int, key: Any, value: bytes | None, headers: Any, taken: Callable[[], None] | None) -> None:
        def report(error: Any, message: Any) -> None:
            if error is not None:
                self._refused = self._refused or f"{topic}: {error.str()}"
            elif only_inferred(error, message):
                self._refused = self._refused or f"{topic}: the client only inferred that a record is stored"
            elif taken is not None:
                taken()

        until = time.monotonic() + _ACK_S
        while len(self._producer) >= _IN_FLIGHT:
            self._producer.poll(0.1)
            self._check("it did not take what was sent within a minute" if time.monotonic() > until else None)
        try:
            self._producer.produce(topic, value=value, key=key, partition=partition, headers=headers, on_delivery=report)
        except KafkaException as error:
            self._refused = self._refused or f"{topic}: {error.args[0].str()}"
        self._producer.poll(0)
        while self.later:
            self.put(self.later.popleft())
        self._check(None)

    def flush(self, done_by_then: str) -> None:
        until = time.monotonic() + _ACK_S
        while len(self._producer) or self.later:
            self._producer.flush(0.2)
            while self.later:
                self.put(self.later.popleft())
            self._check("it did not take what was sent within a minute" if time.monotonic() > until else None, done_by_then)
        self._check(None, done_by_then)

    close = flush

    def _check(self, late: str | None, done_by_then: str = "what was taken by then is recorded") -> None:
        if (reason := self._refused or late) is not None:
            raise ReplayFailed(f"the broker refused: {reason}; {done_by_then}")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 17 else None


def _time(milliseconds: int | None) -> dt.datetime | None:
    try:
        return None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None
