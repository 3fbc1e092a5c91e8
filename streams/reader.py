"""Reading topics for people and tools: every partition assigned by hand, no group, nothing committed, so that reading leaves no trace.

What is stored already comes in the order of the broker's time over all partitions (approximately: memory is bounded); what comes live,
as it comes. `streams/views.py` decodes what is read here.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.messages import Tier
from streams.clients import Clients
from streams.merging import MAX_LAST, PASSING, Place, ReadRefused, TopicMissing, gone, last, live, merged
from streams.message import readable
from streams.partition import partition_of
from streams.topology import Role, Topic

_NOT_YET = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}


class Last(msgspec.Struct, frozen=True):
    """Start so that this many records, over all partitions, come before the end."""

    count: int


Start = Literal["beginning", "end"] | dt.timedelta | dt.datetime | Last | int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One record as Kafka has it: where it is, when the broker took it (UTC), and its parts, nothing decoded."""

    topic: Topic
    partition: int
    offset: int
    appended_at: dt.datetime | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def undeclared(name: str, tier: Tier) -> Topic:
    """A topic that the topology does not know, to be read as it is."""
    nobody: frozenset[Role] = frozenset()
    return Topic(
        base=name,
        name=name,
        tier=tier,
        key="",
        value="",
        content_type="",
        description="not declared",
        writers=nobody,
        readers=nobody,
        by_source=False,
    )


def names(clients: Clients, *, timeout_s: float = 15.0) -> list[str]:
    """All topics of a cluster, Kafka's own left out; raises `BrokerUnavailable` and `ReadRefused`."""
    with _answered(clients, timeout_s):
        consumer = clients.consumer(None)
        try:
            return sorted(name for name in consumer.list_topics(timeout=timeout_s).topics if not name.startswith("__"))
        finally:
            consumer.close()


def bounds(clients: Clients, topics: Sequence[Topic], *, timeout_s: float = 15.0) -> dict[Place, tuple[int, int]]:
    """The first offset, and the one after the last, of every partition of some topics; raises as `read` does."""
    with _answered(clients, timeout_s):
        consumer = clients.consumer(None)
    try:
        return _bounds(clients, consumer, topics, None, timeout_s)
    finally:
        consumer.close()


def count(clients: Clients, topics: Sequence[Topic], *, start: Start, until: dt.datetime | None = None, timeout_s: float = 15.0) -> int:
    """About how many records `read` would read from `start` to `until`, without reading them; raises as `read` does."""
    with _answered(clients, timeout_s):
        consumer = clients.consumer(None)
    try:
        limits = _bounds(clients, consumer, topics, None, timeout_s)
        with _answered(clients, timeout_s):
            begin = _begin(consumer, limits, start, timeout_s)
            end = {place: high for place, (_, high) in limits.items()}
            if until is not None:
                end |= _at_time(consumer, end, until, timeout_s)
    finally:
        consumer.close()
    return sum(max(0, end[place] - begin[place]) for place in limits)


def parse_start(text: str) -> Start:
    """Where to start, as a person writes it: `beginning`, `end`, an age (`90s`, `5m`, `2h`, `7d`), a time (RFC 3339), or an offset.

    >>> parse_start("5m")
    datetime.timedelta(seconds=300)
    """
    if text == "beginning" or text == "end":
        return text  # type: ignore[return-value]
    if text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    units = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
    if text[-1:] in units:
        try:
            age = dt.timedelta(seconds=float(text[:-1]) * units[text[-1]])
        except (ValueError, OverflowError):
            age = dt.timedelta(-1)
        if age >= dt.timedelta(0):
            return age
    try:
        at = msgspec.convert(text, dt.datetime)
    except msgspec.ValidationError:
        raise ValueError(
            f"{text!r:.60}: expected beginning, end, an age such as 90s, 5m, 2h or 7d, a time such as 2026-01-31T12:00:00Z, or an offset"
        ) from None
    return at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at.astimezone(dt.UTC)


def read(
    clients: Clients,
    topics: Sequence[Topic],
    *,
    start: Start = "end",
    follow: bool = False,
    until: dt.datetime | None = None,
    source: str | None = None,
    where: Callable[[Stored], bool] | None = None,
    stop: threading.Event | None = None,
    timeout_s: float = 15.0,
) -> Iterator[Stored]:
    """Read some topics of one cluster.

    Parameters
    ----------
    start
        Where to begin in each partition: see `parse_start`; an offset is clamped to what is there.
    follow
        Go on with what comes, until `stop` is set. Otherwise end where the partitions ended when reading began.
    until
        End before records that the broker took at this time or later (not with `follow`).
    source
        Only the partition where our own producers put this source. Foreign producers may put theirs elsewhere.
    where
        Which records to give; others are read and passed over. With `Last` those that it takes are counted.
    stop
        Ends reading within a fraction of a second.
    timeout_s
        How long the broker may be silent while records are known to be there.

    Raises
    ------
    BrokerUnavailable
        If no broker answers in time. While following, an absence of the broker is only waited for.
    TopicMissing
        If a topic is not there, or goes away while it is followed.
    ReadRefused
        If this user may not read it, or the client's settings are not usable.
    """
    stop = stop or threading.Event()
    by_name = {topic.name: topic for topic in topics}
    with _answered(clients, timeout_s):
        consumer = clients.consumer(
            None,
            enable__partition__eof=True,
            auto__offset__reset="earliest",  # retention may overtake a slow reader: it goes on with what is left
            queued__max__messages__kbytes=8 << 10,
        )
    try:
        limits = _bounds(clients, consumer, topics, source, timeout_s)
        with _answered(clients, timeout_s):
            begin = _begin(consumer, limits, start, timeout_s)
            end = {place: high for place, (_, high) in limits.items()}
            if until is not None and not follow:
                end |= _at_time(consumer, end, until, timeout_s)
        if isinstance(start, Last):
            counts = None if where is None else lambda message: where(_stored(message, by_name))
            begin = last(clients, consumer, limits, begin, start.count, counts, stop, timeout_s)
        for message in merged(clients, consumer, begin, end, stop, timeout_s):
            stored = _stored(message, by_name)
            if where is None or where(stored):
                yield stored
        if follow:
            consumer.assign([TopicPartition(*place, max(end[place], begin[place])) for place in limits])
            for message in live(consumer, by_name, stop):
                stored = _stored(message, by_name)
                if where is None or where(stored):
                    yield stored
    finally:
        consumer.close()


# ---- where to begin and end


@contextmanager
def _answered(clients: Clients, timeout_s: float) -> Iterator[None]:
    """Turns a client's silence into `BrokerUnavailable`."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() not in PASSING:
            raise ReadRefused(f"the cluster at {clients.kafka.bootstrap_servers} refused: {error.args[0].str()}") from None
        raise gone(clients, timeout_s, error.args[0].str()) from None


def _bounds(
    clients: Clients, consumer: Consumer, topics: Sequence[Topic], source: str | None, timeout_s: float
) -> dict[Place, tuple[int, int]]:
    """The first offset and the one after the last, of every partition to read."""
    found = {}
    with _answered(clients, timeout_s):
        known = consumer.list_topics(timeout=timeout_s).topics
        for topic in topics:
            if topic.name not in known or not known[topic.name].partitions:
                raise TopicMissing(f"topic {topic.name} does not exist at {clients.kafka.bootstrap_servers}")
            count = len(known[topic.name].partitions)
            numbers = [partition_of(source, count)] if source is not None and topic.by_source else range(count)
            for number in numbers:
                found[topic.name, number] = _limits(consumer, TopicPartition(topic.name, number), timeout_s)
    return found


def _limits(consumer: Consumer, place: TopicPartition, timeout_s: float) -> tuple[int, int]:
    """Asks again while the partition has no leader that knows of it, as in the first moments of a topic."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=timeout_s)
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return low, high


def _begin(consumer: Consumer, bounds: Mapping[Place, tuple[int, int]], start: Start, timeout_s: float) -> dict[Place, int]:
    if start == "beginning":
        return {place: low for place, (low, _) in bounds.items()}
    if start == "end":
        return {place: high for place, (_, high) in bounds.items()}
    if isinstance(start, Last):
        return {place: max(low, high - min(start.count, MAX_LAST)) for place, (low, high) in bounds.items()}
    if isinstance(start, int):
        return {place: max(low, min(start, high)) for place, (low, high) in bounds.items()}
    at = start if isinstance(start, dt.datetime) else dt.datetime.now(dt.UTC) - start
    return _at_time(consumer, {place: high for place, (_, high) in bounds.items()}, at, timeout_s)


def _at_time(consumer: Consumer, ends: Mapping[Place, int], at: dt.datetime, timeout_s: float) -> dict[Place, int]:
    """The offset of the first record that the broker took at a time or later; the end where there is none."""
    milliseconds = max(0, int(at.timestamp() * 1000))
    found = consumer.offsets_for_times([TopicPartition(*place, milliseconds) for place in ends], timeout=timeout_s)
    return {
        (part.topic, part.partition): min(part.offset, ends[part.topic, part.partition])
        if part.offset >= 0
        else ends[part.topic, part.partition]
        for part in found
    }


def _stored(message: Message, topics: Mapping[str, Topic]) -> Stored:
    kind, milliseconds = message.timestamp()
    readable(cast(Any, message))  # a foreign header may have a name that ends the process when it is looked at
    headers: Any = message.headers()
    return Stored(
        topic=topics[message.topic() or ""],
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        appended_at=None if kind == TIMESTAMP_NOT_AVAILABLE else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC),
        key=message.key(),
        value=message.value(),
        headers=list(headers or ()),
    )
