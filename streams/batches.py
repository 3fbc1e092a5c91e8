"""The librdkafka source: one thread owns the consumer and hands over batches, each of one partition, a bounded number in flight.

It follows steps 1, 4 (commits) and 8 of the delivery protocol (`streams/delivery.py` has the others):

1. One thread owns the consumer. When the bound is reached it waits a moment, then pauses its partitions and keeps polling, since
   rebalances and `max.poll.interval.ms` depend on that.
2. A partition without a commit starts at its beginning, explicitly. A commit below the low watermark is a loss: it is reported, then the
   source goes on at the low watermark.
3. Offsets count only when a batch is done; only a contiguous prefix of done batches is committed, once a second.
4. Revoked partitions drain, commit synchronously inside the callback, and are forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import msgspec
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition
from mode import Service

from streams import telemetry
from streams.clients import Clients
from streams.message import KafkaRecord
from streams.topology import Topic

log = logging.getLogger("headwater.batches")

Place = tuple[str, int]  # topic name, partition
_PASSING = {KafkaError._PARTITION_EOF, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE}
FULL_WAIT_S = 0.25  # how long the thread waits for room before it pauses: a pause throws away what was fetched ahead
REOFFER_S = 5.0


class Lost(msgspec.Struct, frozen=True):
    """Offsets `first` to `last` of a partition that retention removed before they were read."""

    topic: Topic
    partition: int
    first: int
    last: int


class SourceFailed(RuntimeError):
    """The consumer cannot go on; the message says why and what to do."""


class Batch:
    """Records of one partition, in order. Whoever works on it calls `take` first and `done` when every output is on the broker."""

    __slots__ = ("_notify", "finished", "first", "forgotten", "last", "offered_at", "partition", "records", "taken", "topic")

    def __init__(self, topic: Topic, partition: int, records: Sequence[KafkaRecord], notify: Callable[[], None]) -> None:
        self.topic, self.partition, self.records = topic, partition, records
        self.first, self.last = records[0].offset(), records[-1].offset()
        self.taken = self.finished = self.forgotten = False
        self.offered_at = time.monotonic()
        self._notify = notify

    def take(self) -> bool:
        """Claim the batch; False if it was claimed before (it may be offered twice) or its partition has moved away."""
        if self.taken or self.forgotten:
            return False
        self.taken = True
        return True

    def done(self) -> None:
        """Every output is on the broker: the batch's offsets may be committed."""
        if not self.finished:
            self.finished = True
            self._notify()


Feed = Callable[[Batch], Awaitable[Any]]


class BatchSource(Service):
    """Feeds batches of some topics to a coroutine, as a service beside a Faust app.

    Parameters
    ----------
    topics
        What to read; the group keeps the offsets.
    feed
        Awaited for each batch; putting it on a channel is enough. A batch that nobody takes within `REOFFER_S` is offered again (a
        rebalance of Faust's own consumer may clear its channels).
    on_assigned
        Called in the consumer's thread for the partitions that came, before the first of their records is handed over: a stateful
        worker restores itself there.
    on_lost
        Called in the consumer's thread with offsets that retention removed before they were read.
    max_records, in_flight
        Records in a batch and batches handed over at most.
    """

    def __init__(
        self,
        clients: Clients,
        topics: Sequence[Topic],
        group: str,
        feed: Feed,
        *,
        on_assigned: Callable[[list[Place]], None] | None = None,
        on_revoked: Callable[[list[Place]], None] | None = None,
        on_lost: Callable[[Lost], None] | None = None,
        max_records: int = 64,
        in_flight: int = 4,
        commit_interval_s: float = 1.0,
        drain_s: float = 15.0,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.clients, self.group, self.feed = clients, group, feed
        self.topics = {topic.name: topic for topic in topics}
        self.on_assigned, self.on_revoked, self.on_lost = on_assigned, on_revoked, on_lost
        self.max_records, self.in_flight = max_records, in_flight
        self.commit_interval_s, self.drain_s = commit_interval_s, drain_s
        self.settings = settings or {}
        self.assigned: set[Place] = set()
        self._queue: dict[Place, deque[Batch]] = {}
        self._position: dict[Place, int] = {}
        self._committed: dict[Place, int] = {}
        self._epoch: dict[Place, int] = {}
        self._pending = 0
        self._paused = False
        self._held: Message | None = None
        self._held_epoch = 0
        self._changed = threading.Condition()
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        super().__init__(**kwargs)

    # ---- life cycle, on the event loop

    async def on_start(self) -> None:
        self._events = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name=f"source-{self.group}", daemon=True)
        self._thread.start()

    async def on_stop(self) -> None:
        self._halt.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, self.drain_s + 10)
            if self._thread.is_alive():
                log.error("the consumer did not stop in time; what it did since its last commit is read again", extra={"group": self.group})

    @Service.task
    async def _reoffer(self) -> None:
        while not self.should_stop:
            await self.sleep(REOFFER_S)
            late = time.monotonic() - REOFFER_S
            with self._changed:
                waiting = [b for q in self._queue.values() for b in q if not (b.taken or b.finished or b.forgotten) and b.offered_at < late]
            for batch in waiting:
                batch.offered_at = time.monotonic()
                self._offer(batch)

    def _offer(self, batch: Batch) -> None:
        task = asyncio.ensure_future(self.feed(batch))
        task.add_done_callback(self._offered)

    def _offered(self, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.add_future(self.crash(error))

    # ---- the consumer's thread

    def _main(self) -> None:
        try:
            self._consume()
        except Exception as error:  # the thread's last line of defence: the worker must know and stop
            log.exception("the consumer failed", extra={"group": self.group})
            asyncio.run_coroutine_threadsafe(self.crash(error), self._events)

    def _consume(self) -> None:
        consumer = self.clients.consumer(self.group, **{"on_commit": self._on_commit, **self.settings})
        try:
            consumer.subscribe(list(self.topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost_partitions)
            last_commit = time.monotonic()
            while not self._halt.is_set():
                if self._has_room(consumer):
                    self._take(consumer)
                if time.monotonic() - last_commit >= self.commit_interval_s:
                    last_commit = time.monotonic()
                    if offsets := self._finished():
                        consumer.commit(offsets=offsets, asynchronous=True)
                    self._measure(consumer)
            self._drain(list(self._queue))
            self._commit_now(consumer, self._finished())
        finally:
            consumer.close()

    def _has_room(self, consumer: Consumer) -> bool:
        """Wait a moment for room; without it, pause and poll once. True if a batch may be taken."""
        with self._changed:
            if self._pending >= self.in_flight:
                self._changed.wait_for(lambda: self._pending < self.in_flight or self._halt.is_set(), FULL_WAIT_S)
            full = self._pending >= self.in_flight
        mine = [TopicPartition(*place) for place in self.assigned]
        if full:
            if not self._paused and mine:
                consumer.pause(mine)
                self._paused = True
            if self._held is None:
                self._held = consumer.poll(0.0)  # serves rebalances; a record comes only where partitions were assigned just now
                self._held_epoch = self._epoch_of(self._held)
            return False
        if self._paused:
            consumer.resume(mine)
            self._paused = False
        return True

    def _take(self, consumer: Consumer) -> None:
        polled, epoch = self._held, self._held_epoch
        self._held = None
        if polled is None:
            polled = consumer.poll(0.1)
            epoch = self._epoch_of(polled)  # taken after poll: before it, an assignment within poll would look like a revocation
        if polled is None:
            return
        messages = [polled]
        if self.max_records > 1:
            messages += consumer.consume(self.max_records - 1, 0)
        if self._epoch_of(polled) != epoch:
            messages = messages[1:]  # its partition was revoked inside consume(): the new owner reads it again
        groups: dict[Place, list[KafkaRecord]] = {}
        for message in messages:
            error = message.error()
            if error is None:
                record = cast(KafkaRecord, message)
                groups.setdefault((record.topic(), record.partition()), []).append(record)
            elif not error.retriable() and error.code() not in _PASSING:
                raise SourceFailed(_explain(error, self.group))
        batches = [Batch(self.topics[topic], partition, records, self._notify) for (topic, partition), records in groups.items()]
        with self._changed:
            for batch in batches:
                self._queue.setdefault((batch.topic.name, batch.partition), deque()).append(batch)
            self._pending += len(batches)
            telemetry.IN_FLIGHT.set(self._pending)
        for batch in batches:
            self._events.call_soon_threadsafe(self._offer, batch)

    def _epoch_of(self, message: Message | None) -> int:
        return 0 if message is None else self._epoch.get(cast(Place, (message.topic(), message.partition())), 0)

    def _notify(self) -> None:
        with self._changed:
            self._pending -= 1
            telemetry.IN_FLIGHT.set(self._pending)
            self._changed.notify_all()

    # ---- offsets

    def _finished(self, places: Iterable[Place] | None = None) -> list[TopicPartition]:
        """Where each partition's contiguous prefix of done batches ends, where that is not committed yet."""
        wanted = None if places is None else set(places)
        with self._changed:
            for place, queue in self._queue.items():
                while queue and queue[0].finished:
                    self._position[place] = queue.popleft().last + 1
            return [
                TopicPartition(*place, offset)
                for place, offset in self._position.items()
                if (wanted is None or place in wanted) and self._committed.get(place) != offset
            ]

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """An asynchronous commit that failed is not marked, so the next round commits again."""
        for partition in partitions:
            if error is None and partition.error is None:
                self._committed[partition.topic, partition.partition] = partition.offset

    def _commit_now(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        if not offsets:
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # no longer the owner, or no broker: these records are read again, which changes nothing
            log.warning("commit failed: %s", error, extra={"group": self.group})

    def _drain(self, places: Iterable[Place]) -> bool:
        wanted = list(places)
        with self._changed:
            return self._changed.wait_for(
                lambda: all(batch.finished for place in wanted for batch in self._queue.get(place, ())), self.drain_s
            )

    # ---- rebalances, called within poll() and close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            place = (partition.topic, partition.partition)
            self._epoch[place] = self._epoch.get(place, 0) + 1
        places = [(p.topic, p.partition) for p in partitions]
        starts = self._starts(consumer, partitions)
        self.assigned = set(places)
        self._paused = False
        if self.on_assigned is not None:
            self.on_assigned(places)
        consumer.assign(starts)
        telemetry.READY.set(1)
        log.info("partitions assigned", extra={"group": self.group, "partitions": len(places)})

    def _starts(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Explicit start offsets: the commit, or the beginning; what retention took in between is reported."""
        starts = []
        for committed in _patiently(lambda: consumer.committed(partitions, timeout=10)):
            place = TopicPartition(committed.topic, committed.partition)
            low, _ = _patiently(partial(consumer.get_watermark_offsets, place, timeout=10))
            offset = committed.offset
            if offset == OFFSET_INVALID or offset < 0:
                offset = low
            elif offset < low:
                lost = Lost(self.topics[committed.topic], committed.partition, offset, low - 1)
                log.error(
                    "retention removed records that were not read yet",
                    extra={"topic": committed.topic, "partition": committed.partition, "first": lost.first, "last": lost.last},
                )
                if self.on_lost is not None:
                    self.on_lost(lost)
                offset = low
            starts.append(TopicPartition(committed.topic, committed.partition, offset))
        return starts

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = [(p.topic, p.partition) for p in partitions]
        start = time.monotonic()
        drained = self._drain(places)
        self._commit_now(consumer, self._finished(places))
        self._forget(places)
        log.info(
            "partitions revoked",
            extra={"group": self.group, "partitions": len(places), "drained": drained, "seconds": round(time.monotonic() - start, 3)},
        )

    def _on_lost_partitions(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget([(p.topic, p.partition) for p in partitions])
        log.warning("partitions lost: the group went on without us", extra={"group": self.group, "partitions": len(partitions)})

    def _forget(self, places: list[Place]) -> None:
        telemetry.READY.set(0)
        with self._changed:
            for place in places:
                self._epoch[place] = self._epoch.get(place, 0) + 1
                for batch in self._queue.pop(place, ()):
                    batch.forgotten = True
                    if not batch.finished and not batch.taken:
                        batch.finished = True
                        self._pending -= 1
                self._position.pop(place, None)
                self._committed.pop(place, None)
                self.assigned.discard(place)
            self._changed.notify_all()
        if self.on_revoked is not None:
            self.on_revoked(places)

    def _measure(self, consumer: Consumer) -> None:
        """Lag by topic, from the client's cached watermarks."""
        lag = dict.fromkeys(self.topics, 0)
        for topic, partition in self.assigned:
            try:
                _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            except KafkaException:
                continue  # not fetched from yet
            done = self._position.get((topic, partition), self._committed.get((topic, partition)))
            if done is not None and high > done:
                lag[topic] += high - done
        for topic, records in lag.items():
            telemetry.LAG.labels(topic).set(records)


def _patiently(call: Callable[[], Any], *, attempts: int = 6) -> Any:
    """Ask the broker again while the cause may pass; a rebalance must not fail because a broker is slow."""
    for attempt in range(attempts):
        try:
            return call()
        except KafkaException as error:
            if attempt == attempts - 1 or not (error.args[0].retriable() or error.args[0].code() in _PASSING):
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _explain(error: KafkaError, group: str) -> str:
    if error.code() == KafkaError.FENCED_INSTANCE_ID:
        return f"another worker of group {group} runs under the same instance number: give each its own (--instance N)"
    if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return f"{error.str()}: create the topics with `headwater topology create`"
    return f"the consumer of group {group} failed: {error.str()} ({error.name()})"
