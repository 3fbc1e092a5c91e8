"""Where a source starts in a partition: explicitly, at the commit or at the beginning. What retention took in between is told, and a log
that was cut behind the commit (a power cut takes what was not written to the disk), and perhaps written on since, is read from the cut.
A commit names the topic that it is about by its uuid: one that was made anew under the same name is read from its beginning.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from streams.clients import BrokerUnavailable, Clients
from streams.topology import Topic
from streams.truncation import go_on

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


PROBE_S = 5.0
_PROBE = {"fetch.min.bytes": 1, "fetch.wait.max.ms": 100, "queued.min.messages": 1, "queued.max.messages.kbytes": 1 << 10}


class Mark(msgspec.Struct, frozen=True):
    """How far a partition is read: the next offset, and the leader epoch of the record before it (None if it is not known)."""

    offset: int
    epoch: int | None


class Lost(msgspec.Struct, frozen=True):
    """Offsets `first` to `last` of a partition that retention removed before they were read."""

    topic: Topic
    partition: int
    first: int
    last: int


def latest_epochs(clients: Clients, places: list[Place]) -> dict[Place, int]:
    """The leader epoch at the end of partitions, as far as the broker says it. No record is read for it."""
    if not places:
        return {}
    found: dict[Place, int] = {}
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    admin = clients.admin()  # kept until it has answered
    asked = admin.list_offsets({TopicPartition(*place): latest for place in places}, request_timeout=10)
    for place, future in asked.items():
        with contextlib.suppress(KafkaException, TimeoutError):  # then single records are looked at
            if (epoch := future.result(11).leader_epoch) is not None:
                found[place.topic, place.partition] = epoch
    return found


class Starts:
    """Finds start offsets; called in the consumer's thread, within a rebalance too.

    Parameters
    ----------
    on_lost
        Called with offsets that retention removed before they were read.
    halt
        Once it is set, nothing is asked of the broker again.
    clients
        For a client that looks at single records.
    """

    def __init__(
        self, topics: Mapping[str, Topic], on_lost: Callable[[Lost], None] | None, halt: threading.Event, clients: Clients
    ) -> None:
        self._topics, self._on_lost, self._halt, self._clients = topics, on_lost, halt, clients
        self._uuids: dict[str, str] = {}

    def uuid(self, topic: str) -> str:
        """The topic's uuid when its partitions were assigned: the metadata of commits."""
        return self._uuids.get(topic, "")

    def of(self, consumer: Consumer, partitions: list[TopicPartition]) -> dict[Place, Mark]:
        """Explicit starts: the commit, or the beginning; what retention took in between is reported."""

        def committed() -> list[TopicPartition]:
            found = consumer.committed(partitions, timeout=10)
            if error := next((place.error for place in found if place.error is not None), None):
                raise KafkaException(error)
            return found

        described = self._patiently(partial(self._clients.cluster, sorted({each.topic for each in partitions})))
        self._uuids |= {name: uuid for name, (uuid, _) in described.topics.items()}
        marks = {
            cast(Place, (found.topic, found.partition)): Mark(found.offset, found.leader_epoch) if self._holds(found) else None
            for found in self._patiently(committed)
        }
        latest = latest_epochs(self._clients, [place for place, mark in marks.items() if mark is not None and mark.epoch is not None])
        return {place: self.within(consumer, place, mark, latest.get(place)) for place, mark in marks.items()}

    def _holds(self, found: TopicPartition) -> bool:
        """Whether a commit is about the log that is there now. One without a uuid was set by somebody else, on purpose."""
        if found.offset < 0 or not found.metadata or found.metadata == self.uuid(found.topic):
            return found.offset >= 0
        log.error(
            "the topic was made anew since the last commit: it is read from its beginning",
            extra={"topic": found.topic, "partition": found.partition, "commit": found.offset},
        )
        return False

    def within(self, consumer: Consumer, place: Place, mark: Mark | None, latest: int | None = None) -> Mark:
        """A place that can be read: the one given, or where the log begins, or was cut; reports what lies between. None: no commit.
        `latest` is the leader epoch at the log's end: if it is the mark's, nothing was written after a cut."""
        low, high = self._patiently(partial(consumer.get_watermark_offsets, TopicPartition(*place), timeout=10))
        topic, partition = place
        if mark is None:
            return Mark(int(low), None)
        offset = mark.offset
        if offset < low:
            lost = Lost(self._topics[topic], partition, offset, low - 1)
            log.error(
                "retention removed records that were not read yet",
                extra={"topic": topic, "partition": partition, "first": lost.first, "last": lost.last},
            )
            if self._on_lost is not None:
                self._on_lost(lost)
            return Mark(int(low), None)
        if latest is not None and latest == mark.epoch and offset <= high:
            return mark
        with self._probe(place) as epoch_at:
            start = go_on(offset, mark.epoch, int(low), int(high), epoch_at)
        if start == offset:
            return mark
        log.error(
            "the log was cut behind our commit; it is read again from where it may differ",
            extra={"topic": topic, "partition": partition, "commit": offset, "at": start},
        )
        return Mark(start, None)

    @contextlib.contextmanager
    def _probe(self, place: Place) -> Iterator[Callable[[int], int | None]]:
        """Looks at single records, with a client of its own, made when it is needed: the group's has its own place in the log."""
        client: list[Consumer] = []

        def epoch_at(offset: int) -> int | None:
            if not client:
                client.append(self._clients.consumer(None, **_PROBE))
            client[0].assign([TopicPartition(*place, offset)])
            until = time.monotonic() + PROBE_S
            while time.monotonic() < until and not self._halt.is_set():
                message = client[0].poll(0.2)
                if message is not None and message.error() is None:
                    return message.leader_epoch()
            return None

        try:
            yield epoch_at
        finally:
            for each in client:
                each.close()

    def _patiently(self, call: Callable[[], Any], *, attempts: int = 6) -> Any:
        """Ask the broker again while the cause may pass; a rebalance must not fail because a broker is slow."""
        for attempt in range(attempts):
            try:
                return call()
            except (KafkaException, BrokerUnavailable) as error:
                passing = isinstance(error, BrokerUnavailable) or error.args[0].retriable() or error.args[0].code() in PASSING
                if attempt == attempts - 1 or not passing or self._halt.wait(0.2 * 2**attempt):
                    raise
        raise AssertionError("unreachable")
