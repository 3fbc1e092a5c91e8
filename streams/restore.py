"""Reading partitions from their beginning to the end they have now: how state that lives in topics is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import cast

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from streams.clients import BrokerUnavailable, Clients
from streams.message import KafkaRecord, readable

_QUIET_S = 30.0  # a broker that sends nothing for so long, short of the end, is taken to be away


def to_end(clients: Clients, places: Sequence[tuple[str, int]]) -> Iterator[KafkaRecord]:
    """Every record of some (topic, partition) from the beginning to the end as it is at the call; what is written meanwhile is left out.

    Raises
    ------
    BrokerUnavailable
        If the broker falls silent before the end.
    """
    consumer = clients.consumer(None, **{"enable.partition.eof": True, "fetch.message.max.bytes": 8 << 20, "auto.offset.reset": "earliest"})
    try:
        ends: dict[tuple[str, int], int] = {}
        for topic, partition in places:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_QUIET_S)
            if high > low:
                ends[topic, partition] = high
        if not ends:
            return
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for topic, partition in ends])
        heard = time.monotonic()
        while ends:
            message = consumer.poll(0.5)
            if message is None:
                if time.monotonic() - heard > _QUIET_S:
                    raise BrokerUnavailable(
                        f"{clients.kafka.bootstrap_servers} sent nothing for {_QUIET_S:g} s while {len(ends)} partitions were read"
                    )
                continue
            error = message.error()
            if error is None:
                heard = time.monotonic()
                record = readable(cast(KafkaRecord, message))
                place = (record.topic(), record.partition())
                end = ends.get(place, 0)
                if record.offset() + 1 >= end:
                    ends.pop(place, None)
                if record.offset() < end:
                    yield record
            elif error.code() == KafkaError._PARTITION_EOF:  # the last records before the end may be compacted away
                ends.pop(cast(tuple[str, int], (message.topic(), message.partition())), None)
            elif not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                raise BrokerUnavailable(f"{message.topic()}: {error.str()}")
    except KafkaException as error:
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()
