"""Reading what lies between two offsets of each partition, merged by the broker's time in bounded memory. The consumer is the caller's.

`streams/reader.py` says where to begin and end, and gives what is read here to people and tools.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import Fault
from streams.clients import BrokerUnavailable, Clients

Place = tuple[str, int]  # topic name, partition

MAX_BUFFERED_BYTES = 32 << 20  # read ahead while merging by time
MAX_LAST = 100_000
_POLL_S = 0.2
_LOOK_AFTER_POLLS = 15  # silent polls after which a follower makes certain that its topics are still there
_STARVED_POLLS = 5  # how often a merge finds nothing for a partition that holds it up, before it goes on without it
PASSING = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE, KafkaError._PARTITION_EOF}


class TopicMissing(Fault, LookupError):
    """A topic to be read does not exist on the cluster."""


class ReadRefused(Fault, RuntimeError):
    """The cluster does not let a topic be read, or the client's settings are not usable."""


def gone(clients: Clients, timeout_s: float, reason: str) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"no Kafka broker answered at {clients.kafka.bootstrap_servers} within {timeout_s:g} s ({reason}): "
        "is it running, and is the address right? `headwater broker status` shows the local ones"
    )


def _plain(
    clients: Clients, consumer: Consumer, begin: Mapping[Place, int], end: Mapping[Place, int], stop: threading.Event, timeout_s: float
) -> Iterator[Message]:
    """What lies between two offsets of each partition, in any order of partitions."""
    for item in arriving(clients, consumer, begin, end, stop, timeout_s):
        if isinstance(item, Message):
            yield item


def merged(
    clients: Clients, consumer: Consumer, begin: Mapping[Place, int], end: Mapping[Place, int], stop: threading.Event, timeout_s: float
) -> Iterator[Message]:
    """What lies between two offsets of each partition, by the broker's time. A record waits until every other partition has shown what
    comes next in it, unless that would take more memory than `MAX_BUFFERED_BYTES`, or too long: then the oldest at hand goes first."""
    open_places = {place for place, after in end.items() if begin[place] < after}
    buffers: dict[Place, deque[Message]] = {place: deque() for place in open_places}
    heads: list[tuple[int, Place, int]] = []  # time, place, offset of the first record of each buffer
    buffered = idle_polls = 0

    def push(place: Place) -> None:
        head = buffers[place][0]
        heapq.heappush(heads, (head.timestamp()[1], place, head.offset() or 0))

    def take() -> Message:
        nonlocal buffered
        _, place, _ = heapq.heappop(heads)
        message = buffers[place].popleft()
        buffered -= _bytes(message)
        if buffers[place]:
            push(place)
        return message

    for item in arriving(clients, consumer, begin, end, stop, timeout_s):
        idle_polls = idle_polls + 1 if item is None else 0
        if isinstance(item, Message):
            place = _place(item)
            buffers[place].append(item)
            buffered += _bytes(item)
            if len(buffers[place]) == 1:
                push(place)
        elif item is not None:
            open_places.discard(item)
        while heads and (buffered > MAX_BUFFERED_BYTES or idle_polls >= _STARVED_POLLS or all(buffers[place] for place in open_places)):
            yield take()
    while heads and not stop.is_set():
        yield take()


def arriving(
    clients: Clients, consumer: Consumer, begin: Mapping[Place, int], end: Mapping[Place, int], stop: threading.Event, timeout_s: float
) -> Iterator[Message | Place | None]:
    """Records between two offsets of each partition as they arrive, each place once when it has come to its end, and None when nothing
    arrives for a moment."""
    left = {place for place, last in end.items() if begin[place] < last}
    if not left:
        return
    consumer.assign([TopicPartition(*place, begin[place]) for place in left])
    silent_s = 0.0  # counted in polls, so that a slow reader of ours is not taken for a silent broker
    while left and not stop.is_set():
        message = consumer.poll(_POLL_S)
        if message is None:
            silent_s += _POLL_S
            if silent_s > timeout_s:
                raise gone(clients, timeout_s, "it stopped sending")
            yield None
            continue
        place, error = _place(message), message.error()
        if error is not None:
            _raise_if_final(error, message)
            if error.code() == KafkaError._PARTITION_EOF and place in left:
                left.discard(place)
                silent_s = 0.0
                yield place
            continue
        silent_s = 0.0
        if place not in left:
            continue
        offset = message.offset() or 0
        if offset < end[place]:
            yield message
        if offset >= end[place] - 1:
            left.discard(place)
            yield place


def live(consumer: Consumer, topics: Collection[str], stop: threading.Event) -> Iterator[Message]:
    """What comes, until `stop` is set. A broker that goes away is waited for; a topic that goes away is `TopicMissing`."""
    silent_polls = 0
    while not stop.is_set():
        message = consumer.poll(_POLL_S)
        if message is None:
            silent_polls += 1
            if silent_polls % _LOOK_AFTER_POLLS == 0:
                _look_for(consumer, topics)
            continue
        silent_polls = 0
        error = message.error()
        if error is None:
            yield message
        else:
            _raise_if_final(error, message)


def _look_for(consumer: Consumer, topics: Collection[str]) -> None:
    """librdkafka does not tell a consumer by `poll` that its topic was deleted: ask."""
    for name in topics:
        try:
            found = consumer.list_topics(name, timeout=_POLL_S).topics.get(name)
        except KafkaException:
            return  # the broker is away: wait for it
        if found is not None and found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise TopicMissing(f"topic {name} is not there any more: it was deleted while it was read")


def _raise_if_final(error: KafkaError, message: Message) -> None:
    if error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}:
        raise TopicMissing(f"topic {message.topic()} is not there any more: it was deleted while it was read")
    if error.code() not in PASSING and not error.retriable():
        raise ReadRefused(f"topic {message.topic()} cannot be read: {error.str()}")


def _place(message: Message) -> Place:
    return message.topic() or "", message.partition() or 0


def _bytes(message: Message) -> int:
    return len(message.value() or b"") + len(message.key() or b"") + 500


def last(
    clients: Clients,
    consumer: Consumer,
    bounds: Mapping[Place, tuple[int, int]],
    begin: dict[Place, int],
    count: int,
    counts: Callable[[Message], bool] | None,
    stop: threading.Event,
    timeout_s: float,
) -> dict[Place, int]:
    """Where the last `count` records (that count) begin in each partition. Reads them once and keeps only their times; goes further
    back, to `MAX_LAST` offsets, where there are fewer of them than offsets."""
    end = {place: high for place, (_, high) in bounds.items()}
    count = min(count, MAX_LAST)
    reach = max(1, count)
    while True:
        newest: list[tuple[int, Place, int]] = []
        for message in _plain(clients, consumer, begin, end, stop, timeout_s):
            if counts is not None and not counts(message):
                continue
            item = (message.timestamp()[1], _place(message), message.offset() or 0)
            if len(newest) < count:
                heapq.heappush(newest, item)
            elif newest and item > newest[0]:
                heapq.heapreplace(newest, item)
        exhausted = all(begin[place] <= low for place, (low, _) in bounds.items())
        if len(newest) >= count or exhausted or reach >= MAX_LAST or stop.is_set():
            break
        reach = min(MAX_LAST, reach * 8)
        begin = {place: max(low, high - reach) for place, (low, high) in bounds.items()}
    first = dict(end)
    for _, place, offset in newest:
        first[place] = min(first[place], offset)
    return first
