"""How far a group is behind on a topic, as it says by its commits: what works beside a running site goes by it."""

from __future__ import annotations

import msgspec
from confluent_kafka import KafkaException, TopicPartition

from streams.clients import Clients
from streams.topology import Topic


class Lag(msgspec.Struct, frozen=True):
    """Records that a group has not finished, and the sum of its committed offsets, which grows while it works."""

    records: int
    committed: int


class LagMeter:
    """Asks again and again for the lag of one group; one that has never committed is behind by nothing that is known."""

    def __init__(self, clients: Clients, group: str, topic: Topic) -> None:
        self._consumer = clients.consumer(group)  # it asks only, and joins nothing
        self._topic = topic

    def close(self) -> None:
        self._consumer.close()

    def read(self, timeout_s: float = 5.0) -> Lag | None:
        """None while the broker does not answer."""
        places = [TopicPartition(self._topic.name, number) for number in range(self._topic.partitions)]
        records = done = 0
        try:
            for place in self._consumer.committed(places, timeout=timeout_s):
                if place.offset >= 0:
                    _, high = self._consumer.get_watermark_offsets(TopicPartition(place.topic, place.partition), timeout=timeout_s)
                    records += max(0, high - place.offset)
                    done += place.offset
        except KafkaException:
            return None
        return Lag(records, done)
