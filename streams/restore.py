"""Reading partitions from their beginning to the end they have now: how state that lives in topics is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import cast

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from streams.clients import BrokerUnavailable, Clients
from streams.message import KafkaRecord

_QUIET_S = 30.0  # a broker that sends nothing for so long, short of the end, is taken to be away


def to_end(clients: Clients, places: Sequence[tuple[str, int]]) -> Iterator[KafkaRecord]:
    """Every record of some (topic, partition) from the beginning to the end as it is at the call.

    Raises
    ------
    BrokerUnavailable
        If the broker falls silent before the end.
    """
    consumer = clients.consumer(None, **{"enable.partition.eof": True, "fetch.message.max.bytes": 8 << 20, "auto.offset.reset": "earliest"})
    try:
        open_places = set()
        for topic, partition in places:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_QUIET_S)
            if high > low:
                open_places.add((topic, partition))
        if not open_places:
            return
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for topic, partition in open_places])
        heard = time.monotonic()
        while open_places:
            message = consumer.poll(0.5)
            if message is None:
                if time.monotonic() - heard > _QUIET_S:
                    raise BrokerUnavailable(
                        f"{clients.kafka.bootstrap_servers} sent nothing for {_QUIET_S:g} s while {len(open_places)} partitions were read"
                    )
                continue
            error = message.error()
            if error is None:
                heard = time.monotonic()
                yield cast(KafkaRecord, message)
            elif error.code() == KafkaError._PARTITION_EOF:
                open_places.discard((message.topic(), message.partition()))
            elif not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                raise BrokerUnavailable(f"{message.topic()}: {error.str()}")
    except KafkaException as error:
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()
