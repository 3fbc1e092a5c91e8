"""Reading topics of a real broker, held against the manifest of what the test itself produced."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

import streams.merging
from schemas.config import Kafka
from schemas.messages import Tier
from streams.clients import BrokerUnavailable, Clients
from streams.merging import ReadRefused, TopicMissing
from streams.partition import partition_of
from streams.reader import Last, Start, Stored, bounds, names, parse_start, read, undeclared
from streams.topology import Topic

PARTITIONS = 3
UTC = dt.UTC


@pytest.fixture(scope="module")
def admin(kafka: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


def make(admin: AdminClient, **settings: str) -> Topic:
    name = f"reader-{uuid.uuid4().hex[:10]}"
    new = NewTopic(name, PARTITIONS, 1, config={"message.timestamp.type": "LogAppendTime", **settings})
    admin.create_topics([new])[name].result(10)
    return undeclared(name, Tier.LEAF)


@pytest.fixture(scope="module")
def clients(kafka: Kafka) -> Clients:
    return Clients(kafka, "test")


class Filled:
    """A topic and what was produced to it, in the order of the broker's acknowledgements of each batch."""

    def __init__(self, topic: Topic, values: list[bytes], middle: dt.datetime) -> None:
        self.topic, self.values, self.middle = topic, values, middle


@pytest.fixture(scope="module")
def filled(kafka: Kafka, admin: AdminClient) -> Filled:
    """600 records: 300, a moment, 300; spread unevenly over the partitions."""
    topic = make(admin)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 1})
    chance, values, middle = random.Random(1), [], dt.datetime.now(UTC)
    for half in range(2):
        for number in range(300):
            values.append(b"%d-%03d" % (half, number))
            producer.produce(
                topic.name, key=b"k%d" % number, value=values[-1], partition=chance.choice((0, 0, 0, 1)), headers=[("n", b"1")]
            )
        producer.flush(10)
        if half == 0:
            middle = dt.datetime.now(UTC) + dt.timedelta(milliseconds=2)
            while dt.datetime.now(UTC) <= middle:  # the broker's clock has milliseconds: none of the other half may share one
                pass
    return Filled(topic, values, middle)


def values(found: Iterator[Stored]) -> list[bytes | None]:
    return [stored.value for stored in found]


def test_everything_is_read_once_in_order_of_partition_and_time(filled: Filled, clients: Clients) -> None:
    found = list(read(clients, [filled.topic], start="beginning"))
    assert sorted(stored.value or b"" for stored in found) == sorted(filled.values)
    for number in range(PARTITIONS):
        offsets = [stored.offset for stored in found if stored.partition == number]
        assert offsets == list(range(len(offsets)))
    times = [stored.appended_at for stored in found if stored.appended_at is not None]
    assert len(times) == len(found)
    assert times == sorted(times)
    assert found[0].headers == [("n", b"1")]
    assert all(abs(time - dt.datetime.now(UTC)) < dt.timedelta(minutes=5) for time in times)


@pytest.mark.parametrize("count", [0, 1, 7, 300, 600, 5000])
def test_the_last_records_over_all_partitions(filled: Filled, clients: Clients, count: int) -> None:
    found = list(read(clients, [filled.topic], start=Last(count)))
    assert len(found) == min(count, 600)
    everything = sorted(
        (stored.appended_at, stored.partition, stored.offset) for stored in read(clients, [filled.topic], start="beginning")
    )
    times = sorted(time for time, _, _ in everything)[len(everything) - len(found) :]
    assert sorted(stored.appended_at for stored in found) == times, "none that was left out is newer than one that was given"


def test_the_last_records_that_are_wanted(filled: Filled, clients: Clients) -> None:
    found = values(read(clients, [filled.topic], start=Last(5), where=lambda stored: (stored.value or b"").startswith(b"0-")))
    assert len(found) == 5
    assert all(value in filled.values[:300] for value in found)
    assert values(read(clients, [filled.topic], start=Last(5), where=lambda _: False)) == []


def test_from_a_time_until_a_time(filled: Filled, clients: Clients) -> None:
    assert sorted(values(read(clients, [filled.topic], start=filled.middle))) == sorted(filled.values[300:])  # type: ignore[type-var]
    assert sorted(values(read(clients, [filled.topic], start="beginning", until=filled.middle))) == sorted(filled.values[:300])  # type: ignore[type-var]
    assert len(values(read(clients, [filled.topic], start=dt.timedelta(hours=1)))) == 600
    assert values(read(clients, [filled.topic], start=dt.datetime.now(UTC) + dt.timedelta(hours=1))) == []


def test_from_an_offset_and_from_the_end(filled: Filled, clients: Clients) -> None:
    ends = {place: high for place, (_, high) in bounds(clients, [filled.topic]).items()}
    assert sum(ends.values()) == 600
    found = list(read(clients, [filled.topic], start=100))
    assert len(found) == sum(max(0, high - 100) for high in ends.values())
    assert all(stored.offset >= 100 for stored in found)
    assert values(read(clients, [filled.topic], start="end")) == []


def test_one_source_is_one_partition(filled: Filled, clients: Clients) -> None:
    by_source = Topic(**{**{name: getattr(filled.topic, name) for name in Topic.__struct_fields__}, "by_source": True})
    source = next(name for name in map(str, range(100)) if partition_of(name, PARTITIONS) == 1)
    assert {stored.partition for stored in read(clients, [by_source], start="beginning", source=source)} == {1}


def test_memory_is_bounded_when_one_partition_holds_the_merge_up(
    kafka: Kafka, admin: AdminClient, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make(admin)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(400):
        producer.produce(topic.name, value=b"%03d" % number + b"x" * 20_000, partition=0 if number < 390 else 1)
    producer.flush(20)
    limit, held, most = 200_000, 0, 0
    arriving = streams.merging.arriving

    def one_partition_late(*args: Any) -> Iterator[Any]:
        """The same records, but nothing of partition 1 before partition 0 has ended."""
        nonlocal held, most
        items = [item for item in arriving(*args) if item is not None]
        for item in sorted(items, key=lambda item: item[1] if isinstance(item, tuple) else item.partition()):
            held += not isinstance(item, tuple)
            most = max(most, held)
            yield item

    monkeypatch.setattr(streams.merging, "MAX_BUFFERED_BYTES", limit)
    monkeypatch.setattr(streams.merging, "arriving", one_partition_late)
    found = []
    for stored in read(clients, [topic], start="beginning"):
        held -= 1
        found.append((stored.value or b"")[:3])
    assert sorted(found) == [b"%03d" % number for number in range(400)]
    assert most * 20_000 <= limit + 20_000


def test_offsets_without_a_record_hold_nothing_up(kafka: Kafka, admin: AdminClient, clients: Clients) -> None:
    """The end of a transaction takes an offset: no record reaches the end of the partition, and the last two offsets are one record."""
    topic = make(admin)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(20):
        producer.produce(topic.name, value=b"%d" % number, partition=0)
    producer.flush(10)
    marked = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
    marked.init_transactions(30)
    marked.begin_transaction()
    marked.produce(topic.name, value=b"in a transaction", partition=0)
    marked.commit_transaction(30)
    assert values(read(clients, [topic], start="beginning"))[-2:] == [b"19", b"in a transaction"]
    assert values(read(clients, [topic], start=Last(2))) == [b"19", b"in a transaction"]


def test_following_gives_what_comes_until_it_is_stopped(kafka: Kafka, admin: AdminClient, clients: Clients) -> None:
    topic = make(admin)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    producer.produce(topic.name, value=b"before", partition=0)
    producer.flush(10)
    stop, found = threading.Event(), []
    for stored in read(clients, [topic], start=Last(1), follow=True, stop=stop):
        found.append(stored.value)
        if len(found) < 4:
            producer.produce(topic.name, value=b"after-%d" % len(found), partition=len(found) % PARTITIONS)
            producer.flush(10)
        else:
            stop.set()
    assert found == [b"before", b"after-1", b"after-2", b"after-3"]


def test_reading_leaves_no_trace(filled: Filled, clients: Clients, admin: AdminClient) -> None:
    before = {group.group_id for group in admin.list_consumer_groups().result(10).valid}
    list(read(clients, [filled.topic], start="beginning"))
    assert {group.group_id for group in admin.list_consumer_groups().result(10).valid} == before


def test_a_topic_that_is_not_there(clients: Clients, admin: AdminClient) -> None:
    with pytest.raises(TopicMissing, match="no-such-topic"):
        list(read(clients, [undeclared("no-such-topic", Tier.LEAF)]))
    topic = make(admin)
    assert topic.name in names(clients)
    assert not any(name.startswith("__") for name in names(clients))
    stop = threading.Event()
    limit = threading.Timer(60, stop.set)
    limit.start()
    threading.Timer(0.5, admin.delete_topics, [[topic.name]]).start()
    with pytest.raises(TopicMissing, match="deleted while it was read"):
        list(read(clients, [topic], follow=True, stop=stop))
    limit.cancel()
    assert not stop.is_set()


def test_no_broker_is_said_in_time() -> None:
    away = Clients(Kafka(bootstrap_servers="127.0.0.1:1"), "test")
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 "):
        list(read(away, [undeclared("x", Tier.LEAF)], follow=True, timeout_s=1.0))
    assert time.monotonic() - started < 15, "a wait without a deadline"
    with pytest.raises(ReadRefused, match="nonsense"):
        list(read(Clients(Kafka(properties={"nonsense": "1"}), "test"), [undeclared("x", Tier.LEAF)]))


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("beginning", "beginning"),
        ("end", "end"),
        ("90s", dt.timedelta(seconds=90)),
        ("5m", dt.timedelta(minutes=5)),
        ("1.5h", dt.timedelta(hours=1.5)),
        ("7d", dt.timedelta(days=7)),
        ("123", 123),
        ("2026-01-31T12:00:00Z", dt.datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00+02:00", dt.datetime(2026, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_where_to_begin_as_a_person_writes_it(text: str, start: Start) -> None:
    assert parse_start(text) == start


@pytest.mark.parametrize("text", ["", "yesterday", "5 minutes", "-1", "-5m", "infd", "nanh", "1e99d", "9" * 30, "m"])
def test_where_to_begin_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected beginning, end, an age"):
        parse_start(text)
