"""Dead letters settled: their records go back to their topics, or are given up. What is decided is written to `dlq.decisions`, one letter
after the other, so that whoever is interrupted can go on.
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
from schemas.identity import InvalidIdentity, RecordId, foreign_id
from schemas.intervals import Intervals
from schemas.letters import Decision, Settlement
from schemas.messages import Drop, Name, Tier
from schemas.replays import ORIGIN, REPLAYS, read_replay
from streams import outputs
from streams.burial import HEADERS_OMITTED, VALUE_OMITTED, of_the_error
from streams.clients import Clients, only_inferred
from streams.dead_letters import Letter, letter_topics, place_of
from streams.message import Pairs
from streams.partition import partition_of
from streams.sink import Output
from streams.topology import Role, Topic, Topology, UndeclaredTopic

STAGE, DISCARDED = "dlq", "discarded"  # of the drops that explain discarded records
_ACCOUNTED = frozenset({"frames", "requests", "verdicts"})  # a letter of these is how its record ended
_IN_FLIGHT = 500
_ACK_S = 60.0


class ReplayFailed(Fault, RuntimeError):
    """The broker did not take what was replayed, or the decision about it; the message says what was done by then."""


class NotReplayable(ValueError):
    """A letter that cannot be brought back; the message says why."""


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
    topic, partition, offset, appended_ms = place_of(letter)
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
