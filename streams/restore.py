"""Reading partitions to the end they have now: how state that lives in topics is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from streams.clients import BrokerUnavailable, Clients
from streams.message import KafkaRecord, readable

_QUIET_S = 30.0  # a broker that sends nothing for so long, short of the end, is taken to be away
_BATCH = 5_000
_GATHER_S = 0.05

Place = tuple[str, int]


def to_end(clients: Clients, places: Sequence[Place]) -> Iterator[KafkaRecord]:
    """Every record of some (topic, partition) from the beginning to the end as it is at the call; what is written meanwhile is left out.

    Raises
    ------
    BrokerUnavailable
        If the broker falls silent before the end.
    """
    for batch in batches_to_end(clients, places):
        yield from map(readable, batch)


def ends_of(clients: Clients, places: Sequence[Place]) -> dict[Place, int]:
    """The offset after the last record of each partition; raises `BrokerUnavailable`."""
    consumer = clients.consumer(None)
    try:
        return {place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=_QUIET_S)[1] for place in places}
    except KafkaException as error:
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def batches_to_end(clients: Clients, places: Sequence[Place], starts: Mapping[Place, int] | None = None) -> Iterator[list[KafkaRecord]]:
    """As `to_end`, thousands of records at a time, and from given offsets on where `starts` has one. An offset that retention has removed
    means the first one that is left.

    Nobody may look at these records' headers before `streams.message.readable` has.
    """
    consumer = clients.consumer(None, **{"enable.partition.eof": True, "fetch.message.max.bytes": 8 << 20, "auto.offset.reset": "earliest"})
    try:
        ends: dict[Place, int] = {}
        first: list[TopicPartition] = []
        for topic, partition in places:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_QUIET_S)
            start = (starts or {}).get((topic, partition), -1)
            if high > max(low, start):
                ends[topic, partition] = high
                first.append(TopicPartition(topic, partition, start if start > low else OFFSET_BEGINNING))
        if not ends:
            return
        consumer.assign(first)
        heard = time.monotonic()
        while ends:
            found: list[KafkaRecord] = []
            polled = consumer.consume(_BATCH, _GATHER_S)
            if not polled and time.monotonic() - heard > _QUIET_S:
                raise BrokerUnavailable(
                    f"{clients.kafka.bootstrap_servers} sent nothing for {_QUIET_S:g} s while {len(ends)} partitions were read"
                )
            for message in polled:
                error = message.error()
                place = cast(Place, (message.topic(), message.partition()))
                if error is None:
                    record = cast(KafkaRecord, message)
                    end, offset = ends.get(place, 0), record.offset()
                    if offset < end:
                        found.append(record)
                    if offset + 1 >= end:
                        ends.pop(place, None)
                elif error.code() == KafkaError._PARTITION_EOF:  # the last records before the end may be compacted away
                    ends.pop(place, None)
                elif not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                    raise BrokerUnavailable(f"{message.topic()}: {error.str()}")
            if found:
                heard = time.monotonic()
                yield found
    except KafkaException as error:
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()
