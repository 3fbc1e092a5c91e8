"""One source's way to Kafka: frames get their sequence first, wait in a short queue, and every one ends as acknowledged or dropped.

The protocol, which the code follows by these numbers:

1. A frame gets its sequence, dense from 0 within the epoch, before anything can refuse it.
2. It waits in a queue that is bounded in frames and bytes. When the broker is slow or away and the queue is full, the *oldest waiting*
   frame is dropped: what is sent is the newest that there is. A few frames are with the Kafka client at a time; those are not dropped,
   since they may have arrived: they are sent late. Only when their site is left, or its clients are replaced, are they taken back, to be
   sent again first, in their order and under the same ids. What then is too old for a live stream is dropped.
3. A delivery report settles it: acknowledged, or dropped with the reason. Only what a broker has said itself counts; a report that the
   client inferred (`streams.clients.only_inferred`) means that it is sent again. The first frame of a client for a partition goes alone.
4. Drops are published to `drops` as ranges, one record at a time, so that they gather while the broker is away and go out in few
   records when it is back. Only a drop whose record is on the broker counts as declared.
5. `epochs` says once a second how many sequences were given out and how many, from 0 on without a gap, are acknowledged or declared;
   first `started`, and `ended` when the epoch is over and everything in it is settled. Of several sites, each is told which are elsewhere.
"""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from confluent_kafka import KafkaError, KafkaException

from schemas.frames import Frame
from schemas.identity import RecordId, check_source
from streams.production.epochs import Epoch

if TYPE_CHECKING:
    from streams.production.lanes import Flight, Lane
    from streams.production.publisher import FramePublisher

log = logging.getLogger("headwater.produce")

BROKER_SLOW = "broker-slow"  # the queue was full: the broker is slow or away
TOO_LARGE = "too-large"  # larger than the site takes (ingress.max_frame_bytes)
TOO_OLD = "too-old"  # it waited longer than a live stream can use
DELIVERY_FAILED = "delivery-failed"  # the broker refused it
UNLISTED = "unlisted"  # the manifest could not take it
CLOSED = "closed"  # not acknowledged when the producer had to end
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # errors of what we threw away ourselves


class PublisherClosed(RuntimeError):
    """A frame came after the publisher was closed, or after its thread had failed; nothing was done with it."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a frame ended: acknowledged by a `site`, or dropped for a `reason`."""

    id: RecordId
    site: str | None = None
    reason: str | None = None


OnAssigned = Callable[[Frame], None]
OnOutcome = Callable[[Outcome], None]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be held at most: waiting, by one source; and with the Kafka client, by all of a process. One frame always fits. `max_age_s`
    is how long a frame may wait before it is too old for a live stream; None: without limit."""

    queue_frames: int = 32
    queue_bytes: int = 16 << 20
    in_flight_frames: int = 64
    in_flight_bytes: int = 16 << 20
    max_age_s: float | None = None


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """One source since its start, all epochs together. `open` frames wait or are with the Kafka client; `bytes` are acknowledged."""

    source: str
    epoch: str
    epochs: int
    assigned: int
    acknowledged: int
    dropped: int
    open: int
    bytes: int


class Held:
    """A frame that has not ended yet; `held_s` is when it came, in monotonic time, and `number` counts those of its source."""

    __slots__ = ("epoch", "frame", "held_s", "number", "on_outcome")

    def __init__(self, number: int, epoch: Epoch, frame: Frame, held_s: float, on_outcome: OnOutcome | None) -> None:
        self.number = number
        self.epoch = epoch
        self.frame = frame
        self.held_s = held_s
        self.on_outcome = on_outcome

    @property
    def size(self) -> int:
        return len(self.frame.jpeg)


class FrameProducer:
    """Publishes the frames of one source. Made by `FramePublisher.source`; all methods may be called from any thread.

    Parameters
    ----------
    name
        The source's name; raises `InvalidIdentity` for one that cannot be.
    on_assigned
        Called with each frame that was given a sequence, in order, before it is sent.
    """

    def __init__(self, name: str, publisher: FramePublisher, limits: Limits, on_assigned: OnAssigned | None) -> None:
        self.name = check_source(name)
        self._publisher = publisher
        self._limits = limits
        self._on_assigned = on_assigned
        self._lock = publisher.lock
        self._room = threading.Condition(publisher.lock)
        self._waiting: deque[Held] = deque()
        self._numbers = itertools.count()
        self._waiting_bytes = 0
        self._bytes = 0
        self._slow_since: int | None = None
        self._said: set[str] = set()  # reasons of drops that were logged
        self._past = [0, 0, 0, 0]  # epochs, assigned, acknowledged, dropped of epochs that are over and done
        self.epochs: list[Epoch] = []

    def begin(self, *, width: int = 0, height: int = 0, fps: float = 0.0) -> str:
        """Start a new epoch and return its id; the running one, if any, ends. Never waits.

        Parameters
        ----------
        width, height, fps
            What the source is expected to give, in pixels and frames a second; 0 if not known.
        """
        with self._lock:
            self._publisher.check_open()
            self.end()
            epoch = Epoch(self.name, width, height, min(fps, 10_000.0), self._publisher)
            self.epochs.append(epoch)
            epoch.mark(self._publisher.way)
            return epoch.name

    def publish(self, jpeg: bytes, captured_at: dt.datetime | None = None, *, on_outcome: OnOutcome | None = None) -> RecordId:
        """Give a frame its id and send it, or drop an older one if the broker is behind. Never waits.

        Parameters
        ----------
        captured_at
            When the frame was taken (UTC); None: now.
        on_outcome
            Called once, from any thread, when the frame has ended; it must be quick.

        Raises
        ------
        InvalidFrame
            If the bytes are no JPEG image. Nothing was assigned then.
        PublisherClosed
            After the publisher's end.
        """
        with self._lock:
            self._publisher.check_open()
            if not self.epochs or self.epochs[-1].ending:
                raise RuntimeError(f"source {self.name} has no running epoch: call begin() first")
            epoch = self.epochs[-1]
            frame = Frame(
                id=RecordId(self.name, epoch.name, epoch.ledger.assigned),
                source=self.name,
                captured_at=captured_at or self._publisher.wall_clock(),
                jpeg=jpeg,
                traceparent=new_traceparent(),
            )
            epoch.ledger.assign()  # protocol 1
            held = Held(next(self._numbers), epoch, frame, time.monotonic(), on_outcome)
            if self._on_assigned is not None:
                try:
                    self._on_assigned(frame)
                except Exception:
                    self.drop(held, UNLISTED)
                    raise
            if len(jpeg) > self._publisher.max_frame_bytes:
                self.drop(held, TOO_LARGE, f"a frame of {len(jpeg)} bytes; the site takes {self._publisher.max_frame_bytes}")
                return frame.id
            self._waiting.append(held)
            self._waiting_bytes += held.size
            self._publisher.pump()
            self._shed()
            return frame.id

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a frame can be taken without another one being dropped for it (for sources that can wait, such as files); False if
        that takes longer, or the publisher has ended."""
        with self._lock:
            full = self._room.wait_for(lambda: self.has_room or not self._publisher.open, timeout_s)
            return full and self.has_room

    @property
    def has_room(self) -> bool:
        """A frame can be taken without another one being dropped for it."""
        return len(self._waiting) < self._limits.queue_frames and self._waiting_bytes < self._limits.queue_bytes

    def end(self) -> None:
        """End the running epoch; what is open is still sent, and `ended` follows when all is settled. Never waits."""
        with self._lock:
            if self.epochs:
                self.epochs[-1].ending = True

    def counters(self) -> Counters:
        with self._lock:
            ledgers = [epoch.ledger for epoch in self.epochs]
            epochs, assigned, acknowledged, dropped = self._past
            assigned += sum(ledger.assigned for ledger in ledgers)
            acknowledged += sum(ledger.acknowledged for ledger in ledgers)
            dropped += sum(ledger.dropped for ledger in ledgers)
            return Counters(
                source=self.name,
                epoch=self.epochs[-1].name if self.epochs else "",
                epochs=epochs + len(ledgers),
                assigned=assigned,
                acknowledged=acknowledged,
                dropped=dropped,
                open=assigned - acknowledged - dropped,
                bytes=self._bytes,
            )

    # What follows is called by the publisher's thread, or under the lock.

    def send_next(self) -> bool:
        """Hand the oldest waiting frame to the Kafka client, if there is one and it may hold one more (protocol 2); says if it did."""
        while self._waiting and self._waiting[0].epoch.ledger.ended(self._waiting[0].frame.id.sequence):
            self._forget_oldest()  # the site that was left has it after all
        if not self._waiting or not self._publisher.admits(self._waiting[0].size, self.name):
            return False
        held = self._waiting[0]
        try:
            self._publisher.hand_over(held, self)
        except BufferError:  # the client's own queue is full: the next delivery report, or tick, tries again
            return False
        except KafkaException as error:
            if self._publisher.blames_site(error.args[0]):
                return False
            self._forget_oldest()
            self.refuse(held, error.args[0])
            return True
        self._forget_oldest()
        return True

    def take_back(self, flying: list[Held]) -> int:
        """Frames that were under way wait again, in the order in which they came; returns how many."""
        back = [held for held in flying if not held.epoch.ledger.ended(held.frame.id.sequence)]
        self._waiting = deque(sorted([*back, *self._waiting], key=lambda held: held.number))
        self._waiting_bytes += sum(held.size for held in back)
        return len(back)

    def tick(self) -> None:
        """Once a second: declare drops and mark every epoch; retry what could not be handed over."""
        with self._lock:
            for epoch in self.epochs:
                epoch.tick()
            self.settle()

    def settle(self) -> None:
        """Drop what is too old; say of epochs that are over that they are, as soon as all in them is settled."""
        with self._lock:
            self._expire()
            for epoch in self.epochs:
                epoch.settle()
            for epoch in [epoch for epoch in self.epochs[:-1] if epoch.done]:
                self.epochs.remove(epoch)
                ledger = epoch.ledger
                for at, number in enumerate((1, ledger.assigned, ledger.acknowledged, ledger.dropped)):
                    self._past[at] += number

    def drop_waiting(self, reason: str) -> None:
        """Drop all that was not handed to the Kafka client."""
        with self._lock:
            while self._waiting:
                self.drop(self._forget_oldest(), reason)
            self._room.notify_all()

    @property
    def done(self) -> bool:
        """All epochs are over, and `epochs` says so."""
        with self._lock:
            return all(epoch.done for epoch in self.epochs)

    def lost_way(self, lane: Lane) -> None:
        """What was said on this way may not have arrived: it is said again."""
        for epoch in self.epochs:
            epoch.lost_way(lane.way)

    def delivered(self, flight: Flight) -> None:
        """A site has acknowledged a frame (protocol 3), maybe after it was taken back."""
        held = flight.held
        if held.epoch.ledger.acknowledge(held.frame.id.sequence, flight.lane.way.name):
            self._bytes += held.size
            self._tell(held, site=flight.lane.way.name)
        self._said -= {DELIVERY_FAILED, TOO_OLD}

    def refuse(self, held: Held, error: KafkaError) -> None:
        """A frame will not be taken, or was thrown away at the end (protocol 3)."""
        if error.code() in PURGED:
            self.drop(held, self._publisher.purge_reason)
        else:
            self.drop(held, DELIVERY_FAILED, error.str())

    def relieved(self) -> None:
        """After an acknowledgement: say so if the queue had been full and is empty again."""
        if not self._waiting and self._slow_since is not None:
            dropped = self.counters().dropped - self._slow_since
            self._slow_since = None
            log.warning(
                "%s: the broker takes frames again; %d were dropped meanwhile",
                self.name,
                dropped,
                extra={"source": self.name, "dropped": dropped},
            )

    def _forget_oldest(self) -> Held:
        held = self._waiting.popleft()
        self._waiting_bytes -= held.size
        self._room.notify_all()
        return held

    def _expire(self) -> None:
        """Drop waiting frames that are too old for a live stream (protocol 2)."""
        limit_s = self._limits.max_age_s
        if limit_s is None:
            return
        oldest_s = time.monotonic() - limit_s
        while self._waiting and self._waiting[0].held_s < oldest_s:
            self.drop(self._forget_oldest(), TOO_OLD, f"no site took them within {limit_s:g} s; they are declared later")

    def _shed(self) -> None:
        """Drop the oldest waiting frames until the queue is within its bounds (protocol 2)."""
        limits = self._limits
        while len(self._waiting) > limits.queue_frames or (len(self._waiting) > 1 and self._waiting_bytes > limits.queue_bytes):
            if self._slow_since is None:
                self._slow_since = self.counters().dropped
                log.warning(
                    "%s: the broker is slow or away: the oldest waiting frames are dropped, and declared later",
                    self.name,
                    extra={"source": self.name, "waiting": len(self._waiting), "reason": BROKER_SLOW},
                )
            self.drop(self._forget_oldest(), BROKER_SLOW)

    def drop(self, held: Held, reason: str, why: str = "") -> None:
        """A frame will not be sent (again); `why` is logged."""
        sequence = held.frame.id.sequence
        if not held.epoch.ledger.drop(sequence, reason):
            return
        self._tell(held, reason=reason)
        if why and reason not in self._said:  # once per change of state, not once per frame
            self._said.add(reason)
            log.error("%s: frames are dropped: %s", self.name, why, extra={"source": self.name, "sequence": sequence, "reason": reason})

    @staticmethod
    def _tell(held: Held, *, site: str | None = None, reason: str | None = None) -> None:
        if held.on_outcome is None:
            return
        try:
            held.on_outcome(Outcome(id=held.frame.id, site=site, reason=reason))
        except Exception:  # what somebody does with one frame's outcome must not end the frames of all
            log.exception("%s: a callback for an outcome failed", held.frame.source, extra={"source": held.frame.source})


def new_traceparent() -> str:
    """A fresh W3C trace context (version 00), not sampled: whoever samples decides later.

    >>> len(new_traceparent())
    55
    """
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
