"""The librdkafka source: one thread owns the consumer and hands over batches, each of one partition, a bounded number in flight.

It follows steps 1, 4 (commits) and 8 of the delivery protocol (`streams/delivery.py` has the others):

1. One thread owns the consumer. When the bound is reached it waits a moment, then pauses its partitions and keeps polling, since
   rebalances and `max.poll.interval.ms` depend on that.
2. A partition without a commit starts at its beginning, explicitly. A commit below the low watermark is a loss: it is reported, then the
   source goes on at the low watermark. The same holds where retention overtakes the source while it runs.
3. Offsets count only when a batch is done; only a contiguous prefix of done batches is committed, once a second.
4. Revoked partitions drain, commit synchronously inside the callback, and are forgotten. Lost ones cannot; if they come back, what was in
   work of them is finished first, so that whoever is restored from what was written finds all of it.

A commit carries the leader epoch of the last record that it counts, so that a log which a power cut made shorter and which was written on
since is told from the one that was read, and the topic's uuid (`streams/starts.py`). `streams/handover.py` keeps the batches in work.

A consumer that the group has not taken in for `REJOIN_S` is replaced by a new one. A single broker that had stood still is fenced for a
moment, and names no broker when it is asked, itself included; a group's consumer that asks just then (librdkafka 2.16) forgets the only
broker that it knows and never looks for another one (seen in 3 of 9 rounds with a broker that stood still for 14 s).

Neither a synchronous commit nor leaving the group ends while the broker is silent (measured: minutes, whatever the timeouts say), so a
stop waits for the consumer's thread `STOP_S` and a little more, and then goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from mode import Service

from streams import telemetry
from streams.clients import BrokerUnavailable, Clients
from streams.handover import Batch, Handover
from streams.message import KafkaRecord, readable
from streams.starts import PASSING, Lost, Mark, Place, Starts
from streams.topology import Topic

__all__ = ["Batch", "BatchSource", "Feed", "Lost", "Place", "SourceFailed"]

log = logging.getLogger("headwater.batches")

FULL_WAIT_S = 0.25  # how long the thread waits for room before it pauses: a pause throws away what was fetched ahead
REOFFER_S = 5.0
STOP_S = 10.0  # what batches in work get to end when the source is stopped
REJOIN_S = (20.0, 120.0)  # how long a consumer waits to be taken in; twice as long each time, since others may have good reasons
ASK_S = 2.0
COMMIT_PATIENCE_S = 60.0  # an unanswered commit holds back the next one for so long, so that an outage does not pile them up


class SourceFailed(RuntimeError):
    """The consumer cannot go on; the message says why and what to do."""


Feed = Callable[[Batch], Awaitable[Any]]


class BatchSource(Service):
    """Feeds batches of some topics to a coroutine, as a service beside a Faust app.

    Parameters
    ----------
    topics
        What to read; the group keeps the offsets.
    feed
        Awaited for each batch; putting it on a channel is enough. A batch that nobody takes within `REOFFER_S`, or that was given back
        unfinished, is offered again.
    on_assigned
        Called in the consumer's thread for the partitions that came, before the first of their records is handed over: a stateful
        worker restores itself there.
    on_lost
        Called in the consumer's thread with offsets that retention removed before they were read. It is called again for the same
        range if the worker ends before it has committed something beyond it.
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
        self.on_assigned, self.on_revoked = on_assigned, on_revoked
        self.max_records, self.in_flight = max_records, in_flight
        self.commit_interval_s, self.drain_s = commit_interval_s, drain_s
        self.settings = settings or {}
        self.assigned: set[Place] = set()
        self.lag: int | None = None  # records that are not finished, about a second ago; None before that is known
        self._committed: dict[Place, int] = {}
        self._commit_sent_at: float | None = None  # of the commit that is not answered yet
        self._next: dict[Place, Mark] = {}  # after the last record that the client gave us
        self._epoch: dict[Place, int] = {}
        self._paused = False
        self._held: list[tuple[Message, int]] = []  # polled while there was no room, with their epochs
        self._halt = threading.Event()
        self._handed = Handover(in_flight, self._halt)
        self._halted_at = float("inf")
        self._ended = threading.Event()
        self._starts = Starts(self.topics, on_lost, self._halt, clients)
        self._current: Consumer | None = None
        self._outside_since: float | None = None  # since when the group has given us nothing, not even "nothing for you"
        self._rejoin_s = REJOIN_S[0]
        self._thread: threading.Thread | None = None
        super().__init__(**kwargs)

    # ---- life cycle, on the event loop

    async def on_start(self) -> None:
        self._events = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name=f"source-{self.group}", daemon=True)
        self._thread.start()

    def leave(self, timeout_s: float = 5.0) -> None:
        """Leave the group, if the service has not stopped in order."""
        self._halt.set()
        self._handed.wake()
        if self._thread is not None:
            self._thread.join(timeout_s)

    async def on_stop(self) -> None:
        self._halted_at = time.monotonic()
        self._halt.set()
        self._handed.wake()
        if self._thread is not None and not await asyncio.to_thread(self._ended.wait, STOP_S + 5):
            log.error("the consumer did not stop in time; what it did since its last commit is read again", extra={"group": self.group})

    @Service.task
    async def _reoffer(self) -> None:
        while not self.should_stop:
            await self.sleep(REOFFER_S)
            for batch in self._handed.untaken(time.monotonic() - REOFFER_S):
                self._offer(batch)

    def _offer(self, batch: Batch) -> None:
        batch.offered_at = None
        task = asyncio.ensure_future(self.feed(batch))
        task.add_done_callback(partial(self._offered, batch))

    def _offered(self, batch: Batch, task: asyncio.Future[Any]) -> None:
        batch.offered_at = time.monotonic()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.add_future(self.crash(error))

    # ---- the consumer's thread

    def _main(self) -> None:
        try:
            self._consume()
        except Exception as error:  # the thread's last line of defence: the worker must know and stop
            if self._halt.is_set():
                log.warning("the consumer failed while it was stopped: %s", error, extra={"group": self.group})
            else:
                log.exception("the consumer failed", extra={"group": self.group})
                asyncio.run_coroutine_threadsafe(self.crash(error), self._events)
        finally:
            self._ended.set()

    def _consume(self) -> None:
        consumer = self._join()
        try:
            last_commit = time.monotonic()
            while not self._halt.is_set():
                if self._waits_in_vain():
                    self._current = None
                    threading.Thread(target=consumer.close, name=f"{self.group}-given-up", daemon=True).start()  # it may take minutes
                    consumer = self._join()
                if self._has_room(consumer):
                    self._take(consumer)
                if time.monotonic() - last_commit >= self.commit_interval_s:
                    last_commit = time.monotonic()
                    self._commit_soon(consumer)
                    self._measure(consumer)
        finally:
            consumer.close()  # revokes what is assigned: it drains and commits

    def _join(self) -> Consumer:
        self._outside_since = time.monotonic()
        consumer = self.clients.consumer(self.group, **{"on_commit": self._on_commit, **self.settings})
        self._current = consumer
        consumer.subscribe(list(self.topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost_partitions)
        return consumer

    def _waits_in_vain(self) -> bool:
        """Whether the group has not taken us in for so long that a new client is to try; while the broker is away none could."""
        if self._outside_since is None or time.monotonic() - self._outside_since < self._rejoin_s:
            return False
        self._outside_since = time.monotonic()
        try:
            self.clients.cluster([], timeout_s=ASK_S)
        except BrokerUnavailable:
            return False
        log.warning("the group has not taken us in; a new client tries", extra={"group": self.group, "waited_s": round(self._rejoin_s)})
        self._rejoin_s = min(REJOIN_S[1], 2 * self._rejoin_s)
        return True

    def _has_room(self, consumer: Consumer) -> bool:
        """Wait a moment for room; without it, pause and poll once. True if a batch may be taken."""
        if not self._handed.room(FULL_WAIT_S):
            if not self._paused and self.assigned:
                self._paused = True
                self._flow(consumer)
            polled = consumer.poll(0.0)  # serves rebalances
            if polled is not None and not self._fault(consumer, polled):
                self._held.append((polled, self._epoch_of(polled)))  # it cannot be given back
            return False
        if self._paused:
            self._paused = False
            self._flow(consumer)
        return True

    def _flow(self, consumer: Consumer) -> None:
        """Pause or resume what is assigned. The client remembers a pause beyond a revocation, so what comes is told its state anew."""
        if mine := [TopicPartition(*place) for place in self.assigned]:
            (consumer.pause if self._paused else consumer.resume)(mine)

    def _take(self, consumer: Consumer) -> None:
        polled, self._held = self._held, []
        if not polled:
            first = consumer.poll(0.1)
            if first is None:
                return
            polled = [(first, self._epoch_of(first))]  # taken after poll: before it, an assignment within poll would look like a revocation
        more = consumer.consume(self.max_records - len(polled), 0) if self.max_records > len(polled) else []
        messages = [message for message, epoch in polled if self._epoch_of(message) == epoch] + more  # others were revoked: read again
        groups: dict[Place, list[KafkaRecord]] = {}
        faults = []
        for message in messages:
            if message.error() is not None:
                faults.append(message)
                continue
            record = readable(cast(KafkaRecord, message))
            place = record.topic(), record.partition()
            groups.setdefault(place, []).append(record)
        batches = self._handed.batches((self.topics[topic], partition, records) for (topic, partition), records in groups.items())
        for batch in batches:
            self._next[batch.place] = batch.end
            self._events.call_soon_threadsafe(self._offer, batch)
        for message in faults:  # after the records: where a partition goes on is after the last of them
            self._fault(consumer, message)

    def _fault(self, consumer: Consumer, message: Message) -> bool:
        """See to a message that is an error; False if it is a record. Raises `SourceFailed` if the source cannot go on."""
        error = message.error()
        if error is None:
            return False
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._start_again(consumer, cast(Place, (message.topic(), message.partition())))
        elif not error.retriable() and error.code() not in PASSING:
            raise SourceFailed(_explain(error, self.group))
        return True

    def _start_again(self, consumer: Consumer, place: Place) -> None:
        """Go on where the log now begins in a partition whose next record is gone; the others go on where they are."""
        if place not in self.assigned:
            return
        self._next[place] = self._starts.within(consumer, place, self._next[place])
        consumer.assign([TopicPartition(*each, self._next[each].offset) for each in self.assigned])  # a seek is refused in this state
        self._flow(consumer)

    def _epoch_of(self, message: Message) -> int:
        return self._epoch.get(cast(Place, (message.topic(), message.partition())), 0)

    # ---- offsets

    def _finished(self, places: Iterable[Place] | None = None) -> list[TopicPartition]:
        """What is finished and not committed yet."""
        return [
            self._commit_of(place, mark)
            for place, mark in self._handed.reached(places).items()
            if self._committed.get(place) != mark.offset
        ]

    def _commit_of(self, place: Place, mark: Mark) -> TopicPartition:
        uuid = self._starts.uuid(place[0])
        if mark.epoch is None:
            return TopicPartition(*place, mark.offset, uuid)
        return TopicPartition(*place, mark.offset, uuid, leader_epoch=mark.epoch)

    def _commit_soon(self, consumer: Consumer) -> None:
        now = time.monotonic()
        if self._commit_sent_at is not None and now - self._commit_sent_at < COMMIT_PATIENCE_S:
            return
        if offsets := self._finished():
            consumer.commit(offsets=offsets, asynchronous=True)
            self._commit_sent_at = now

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """An asynchronous commit that failed is not marked, so the next round commits again."""
        self._commit_sent_at = None
        for partition in partitions:
            if error is None and partition.error is None:
                self._committed[partition.topic, partition.partition] = partition.offset

    def _commit_now(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        if not offsets:
            return
        try:
            self._on_commit(None, consumer.commit(offsets=offsets, asynchronous=False))
        except KafkaException as error:  # no longer the owner, or no broker: these records are read again, which changes nothing
            log.warning("commit failed: %s", error, extra={"group": self.group})

    def _drain(self, places: Iterable[Place]) -> bool:
        """Wait until what was handed over is finished; not for what has failed, and not long once the source is stopped."""
        return self._handed.drain(places, self._left_s())

    def _left_s(self) -> Callable[[], float]:
        until = time.monotonic() + self.drain_s
        return lambda: min(until, self._halted_at + STOP_S) - time.monotonic()

    # ---- rebalances, called within poll() and close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not self._current:
            return  # it was given up, and is told so late
        for partition in partitions:
            place = (partition.topic, partition.partition)
            self._epoch[place] = self._epoch.get(place, 0) + 1
        places = [(p.topic, p.partition) for p in partitions]
        if not self._handed.settled(places, self._left_s()):
            log.warning("work of the last time is not finished; some of it may be done twice", extra={"group": self.group})
        starts = self._starts.of(consumer, partitions)
        if self.on_assigned is not None:
            self.on_assigned(places)
        self._outside_since, self._rejoin_s = None, REJOIN_S[0]
        self.assigned = set(places)
        self._next.update(starts)
        consumer.assign([TopicPartition(*place, mark.offset) for place, mark in starts.items()])
        self._flow(consumer)
        telemetry.READY.set(1)
        log.info("partitions assigned", extra={"group": self.group, "partitions": len(places)})

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not self._current:
            return
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
        if consumer is not self._current:
            return
        self._forget([(p.topic, p.partition) for p in partitions])
        log.warning("partitions lost: the group went on without us", extra={"group": self.group, "partitions": len(partitions)})

    def _forget(self, places: list[Place]) -> None:
        self.lag = None
        telemetry.READY.set(0)
        self._outside_since = time.monotonic()
        self._commit_sent_at = None
        self._handed.forget(places)
        for place in places:
            self._epoch[place] = self._epoch.get(place, 0) + 1
            self._committed.pop(place, None)
            self._next.pop(place, None)
            self.assigned.discard(place)
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
            done = self._handed.first_open((topic, partition))
            lag[topic] += max(
                0, high - (self._next[topic, partition].offset if done is None else done)
            )  # `high` is negative where nothing was fetched yet
        self.lag = sum(lag.values())
        for topic, records in lag.items():
            telemetry.LAG.labels(topic).set(records)


def _explain(error: KafkaError, group: str) -> str:
    if error.code() == KafkaError.FENCED_INSTANCE_ID or "group.instance.id" in error.str():  # librdkafka hides the code in a fatal error
        return f"another worker of group {group} has taken the place of this one, since both run under one instance id: run one of them"
    if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return f"{error.str()}: create the topics with `headwater topology create`"
    return f"the consumer of group {group} failed: {error.str()} ({error.name()})"
