"""What was handed over and how far it is: batches in work, the bound on their number, and the contiguous prefix of each partition that is
done. The consumer's thread and the event loop meet here; nothing here knows the consumer (`streams/batches.py` does).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from confluent_kafka import Message

from streams import telemetry
from streams.message import KafkaRecord
from streams.starts import Mark, Place
from streams.topology import Topic


class Batch:
    """Records of one partition, in order. Whoever works on it calls `take` first and `done` when every output is on the broker."""

    __slots__ = ("_notify", "failed", "finished", "first", "forgotten", "last", "offered_at", "partition", "records", "taken", "topic")

    def __init__(self, topic: Topic, partition: int, records: Sequence[KafkaRecord], notify: Callable[[Batch], None]) -> None:
        self.topic, self.partition, self.records = topic, partition, records
        self.first, self.last = records[0].offset(), records[-1].offset()
        self.taken = self.finished = self.forgotten = self.failed = False
        self.offered_at: float | None = time.monotonic()  # None while an offer is under way
        self._notify = notify

    @property
    def place(self) -> Place:
        return self.topic.name, self.partition

    @property
    def end(self) -> Mark:
        return Mark(self.last + 1, cast(Message, self.records[-1]).leader_epoch())

    def take(self) -> bool:
        """Claim the batch; False if it was claimed before (it may be offered twice) or its partition has moved away."""
        if self.taken or self.forgotten:
            return False
        self.taken = True
        return True

    def done(self) -> None:
        """Every output is on the broker: the batch's offsets may be committed."""
        self.finished = True
        self._notify(self)

    def release(self) -> None:
        """Give the batch back unfinished: it is offered again, unless its partition has moved away."""
        self.taken = False
        if self.forgotten:
            self.done()

    def fail(self) -> None:
        """It will not be finished and the worker stops: nobody waits for it, and nothing beyond it is committed."""
        self.failed = True
        self._notify(self)


class Handover:
    """Batches handed over, in the order of their partitions.

    Parameters
    ----------
    in_flight
        Batches in work at most.
    halt
        Once it is set, nobody waits for room.
    """

    def __init__(self, in_flight: int, halt: threading.Event) -> None:
        self.in_flight, self._halt = in_flight, halt
        self._queue: dict[Place, deque[Batch]] = {}
        self._reached: dict[Place, Mark] = {}
        self._open: set[Batch] = set()  # not finished, of partitions that moved away too
        self._changed = threading.Condition()

    def batches(self, groups: Iterable[tuple[Topic, int, Sequence[KafkaRecord]]]) -> list[Batch]:
        """Make batches of records, and count them as handed over."""
        made = [Batch(topic, partition, records, self._notify) for topic, partition, records in groups]
        with self._changed:
            for batch in made:
                self._queue.setdefault(batch.place, deque()).append(batch)
            self._open.update(made)
            telemetry.IN_FLIGHT.set(len(self._open))
        return made

    def room(self, wait_s: float) -> bool:
        """Whether one more may be handed over, after waiting for that a moment."""
        with self._changed:
            if len(self._open) >= self.in_flight:
                self._changed.wait_for(lambda: len(self._open) < self.in_flight or self._halt.is_set(), wait_s)
            return len(self._open) < self.in_flight

    def untaken(self, before: float) -> list[Batch]:
        """Those that nobody took, offered before a time (of the monotonic clock)."""
        with self._changed:
            return [
                batch
                for queue in self._queue.values()
                for batch in queue
                if not (batch.taken or batch.finished or batch.forgotten)
                and batch.offered_at is not None  # what waits in `feed` is under way still: offers must not pile up there
                and batch.offered_at < before
            ]

    def reached(self, places: Iterable[Place] | None = None) -> dict[Place, Mark]:
        """Where each partition's contiguous prefix of done batches ends."""
        wanted = None if places is None else set(places)
        with self._changed:
            for place, queue in self._queue.items():
                while queue and queue[0].finished:
                    self._reached[place] = queue.popleft().end
            return {place: mark for place, mark in self._reached.items() if wanted is None or place in wanted}

    def first_open(self, place: Place) -> int | None:
        """The offset of the first record that is not finished; None if all that was handed over is."""
        queue = self._queue.get(place)
        return queue[0].first if queue else None

    def drain(self, places: Iterable[Place], left_s: Callable[[], float]) -> bool:
        """Wait until what was handed over of some partitions is finished; not for what has failed, nor longer than `left_s` says."""
        wanted = list(places)

        def drained() -> bool:
            return all(batch.finished or batch.failed for place in wanted for batch in self._queue.get(place, ()))

        with self._changed:
            while not drained():
                if (wait_s := left_s()) <= 0:
                    return False
                self._changed.wait(wait_s)
        return True

    def settled(self, places: Iterable[Place], left_s: Callable[[], float]) -> bool:
        """Wait until nothing is in work of some partitions, nor of their time before they moved away; as long as `left_s` says."""
        wanted = set(places)

        def idle() -> bool:
            return not any(batch.place in wanted and batch.taken and not batch.failed for batch in self._open)

        with self._changed:
            while not idle():
                if (wait_s := left_s()) <= 0:
                    return False
                self._changed.wait(wait_s)
        return True

    def forget(self, places: Iterable[Place]) -> None:
        """Partitions moved away: what is in work of them still counts for the bound, and for nothing else."""
        with self._changed:
            for place in places:
                for batch in self._queue.pop(place, ()):
                    batch.forgotten = True
                    if not batch.taken:
                        self._open.discard(batch)
                self._reached.pop(place, None)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def _notify(self, batch: Batch) -> None:
        with self._changed:
            if batch.finished:
                self._open.discard(batch)
                telemetry.IN_FLIGHT.set(len(self._open))
            self._changed.notify_all()
