"""Where a source starts in a partition: explicitly, at the commit or at the beginning, and what retention took in between is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.topology import Topic

log = logging.getLogger("headwater.batches")

Place = tuple[str, int]  # topic name, partition
PASSING = {
    KafkaError._PARTITION_EOF,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._MAX_POLL_EXCEEDED,  # the group went on without us; the next poll says so and joins again
}


class Lost(msgspec.Struct, frozen=True):
    """Offsets `first` to `last` of a partition that retention removed before they were read."""

    topic: Topic
    partition: int
    first: int
    last: int


class Starts:
    """Finds start offsets; called in the consumer's thread, within a rebalance too.

    Parameters
    ----------
    on_lost
        Called with offsets that retention removed before they were read.
    halt
        Once it is set, nothing is asked of the broker again.
    """

    def __init__(self, topics: Mapping[str, Topic], on_lost: Callable[[Lost], None] | None, halt: threading.Event) -> None:
        self._topics, self._on_lost, self._halt = topics, on_lost, halt

    def of(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Explicit start offsets: the commit, or the beginning; what retention took in between is reported."""

        def committed() -> list[TopicPartition]:
            found = consumer.committed(partitions, timeout=10)
            if error := next((place.error for place in found if place.error is not None), None):
                raise KafkaException(error)
            return found

        starts = []
        for found in self._patiently(committed):
            place = (found.topic, found.partition)
            offset = self.within(consumer, place, found.offset if found.offset >= 0 else None)
            starts.append(TopicPartition(*place, offset))
        return starts

    def within(self, consumer: Consumer, place: Place, offset: int | None) -> int:
        """An offset that can be read: the one given, or where the log begins; reports what lies between. None: no commit."""
        low, high = self._patiently(partial(consumer.get_watermark_offsets, TopicPartition(*place), timeout=10))
        topic, partition = place
        if offset is None:
            return int(low)
        if offset < low:
            lost = Lost(self._topics[topic], partition, offset, low - 1)
            log.error(
                "retention removed records that were not read yet",
                extra={"topic": topic, "partition": partition, "first": lost.first, "last": lost.last},
            )
            if self._on_lost is not None:
                self._on_lost(lost)
            return int(low)
        if offset > high:  # after a power cut the log may be shorter than the commit: where it differs is not known, so all is read again
            log.error("the log was cut behind our commit; it is read from its beginning", extra={"topic": topic, "partition": partition})
            return int(low)
        return offset

    def _patiently(self, call: Callable[[], Any], *, attempts: int = 6) -> Any:
        """Ask the broker again while the cause may pass; a rebalance must not fail because a broker is slow."""
        for attempt in range(attempts):
            try:
                return call()
            except KafkaException as error:
                passing = error.args[0].retriable() or error.args[0].code() in PASSING
                if attempt == attempts - 1 or not passing or self._halt.wait(0.2 * 2**attempt):
                    raise
        raise AssertionError("unreachable")
