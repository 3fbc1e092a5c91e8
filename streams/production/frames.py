"""One source's way to Kafka: frames get their sequence first, wait in a short queue, and every one ends as acknowledged or dropped.

The protocol, which the code follows by these numbers:

1. A frame gets its sequence, dense from 0 within the epoch, before anything can refuse it.
2. It waits in a queue that is bounded in frames and bytes. When the broker is slow or away and the queue is full, the *oldest waiting*
   frame is dropped: what is sent is the newest that there is. A few frames are with the Kafka client at a time; those are never taken
   back, since they may have arrived: they are sent late.
3. A delivery report settles it: acknowledged, or dropped with the reason.
4. Drops are published to `drops` as ranges, one record at a time, so that they gather while the broker is away and go out in few
   records when it is back. Only a drop whose record is on the broker counts as declared.
5. `epochs` says once a second how many sequences were given out and how many, from 0 on without a gap, are acknowledged or declared;
   first `started`, and `ended` when the epoch is over and everything in it is settled.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaError, KafkaException

from schemas.frames import Frame
from schemas.identity import RecordId, check_source, new_epoch
from schemas.messages import Drop, EpochMark, EpochState
from streams.production.ledger import Ledger

if TYPE_CHECKING:
    from streams.production.publisher import FramePublisher

log = logging.getLogger("headwater.produce")

STAGE = "producer"
BROKER_SLOW = "broker-slow"  # the queue was full: the broker is slow or away
TOO_LARGE = "too-large"  # larger than the site takes (ingress.max_frame_bytes)
DELIVERY_FAILED = "delivery-failed"  # the broker refused it
UNLISTED = "unlisted"  # the manifest could not take it
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # errors of what we threw away ourselves
CLOSED = "closed"  # not acknowledged when the producer had to end


class PublisherClosed(RuntimeError):
    """A frame came after the publisher was closed, or after its thread had failed; nothing was done with it."""


OnAssigned = Callable[[Frame], None]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be held at most: waiting, by one source; and with the Kafka client, by all of a process. One frame always fits."""

    queue_frames: int = 32
    queue_bytes: int = 16 << 20
    in_flight_frames: int = 64
    in_flight_bytes: int = 16 << 20


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


class Epoch:
    """One run of a source: its ledger, and what of it `drops` and `epochs` know."""

    def __init__(self, source: str, width: int, height: int, fps: float, started_at: dt.datetime) -> None:
        self.source = source
        self.name = new_epoch()
        self.width, self.height, self.fps = width, height, fps
        self.started_at = started_at
        self.ledger = Ledger()
        self.ending = False  # no more sequences will be given out
        self.ended = False  # and `epochs` says so
        self.started = False
        self.drop_in_flight = False
        self.mark_in_flight = False
        self.waits = False  # for the next tick, after a record about it was not taken


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
        self._waiting: deque[tuple[Epoch, Frame]] = deque()
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
            epoch = Epoch(self.name, width, height, min(fps, 10_000.0), self._publisher.wall_clock())
            self.epochs.append(epoch)
            self._mark(epoch)
            return epoch.name

    def publish(self, jpeg: bytes, captured_at: dt.datetime | None = None) -> RecordId:
        """Give a frame its id and send it, or drop an older one if the broker is behind. Never waits.

        Parameters
        ----------
        captured_at
            When the frame was taken (UTC); None: now.

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
            sequence = epoch.ledger.assign()  # protocol 1
            if self._on_assigned is not None:
                try:
                    self._on_assigned(frame)
                except Exception:
                    epoch.ledger.drop(sequence, UNLISTED)
                    raise
            if len(jpeg) > self._publisher.max_frame_bytes:
                self._drop(epoch, sequence, TOO_LARGE, f"a frame of {len(jpeg)} bytes; the site takes {self._publisher.max_frame_bytes}")
                return frame.id
            self._waiting.append((epoch, frame))
            self._waiting_bytes += len(jpeg)
            self._publisher.pump()
            self._shed()
            return frame.id

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
        publisher = self._publisher
        if not self._waiting or not publisher.window.admits(len(self._waiting[0][1].jpeg)):
            return False
        epoch, frame = self._waiting[0]
        try:
            publisher.send(frame, partial(self._delivered, epoch, frame))
        except BufferError:  # the client's own queue is full: the next delivery report, or tick, tries again
            return False
        except KafkaException as error:
            self._forget_oldest()
            self._refuse(epoch, frame.id.sequence, error.args[0])
            return True
        self._forget_oldest()
        publisher.window.enter(len(frame.jpeg))
        return True

    def tick(self) -> None:
        """Once a second: declare drops and mark every epoch; retry what could not be handed over."""
        with self._lock:
            for epoch in self.epochs:
                epoch.waits = False
                self._declare(epoch)
                if not epoch.ending or not epoch.started:
                    self._mark(epoch)
            self.settle()

    def settle(self) -> None:
        """Say of epochs that are over that they are, as soon as all in them is settled."""
        with self._lock:
            for epoch in self.epochs:
                if epoch.ending and not epoch.ended and not epoch.waits:
                    self._declare(epoch)
                    if epoch.ledger.settled or not epoch.started:
                        self._mark(epoch)
            for epoch in [epoch for epoch in self.epochs[:-1] if epoch.ended]:
                self.epochs.remove(epoch)
                ledger = epoch.ledger
                for at, number in enumerate((1, ledger.assigned, ledger.acknowledged, ledger.dropped)):
                    self._past[at] += number

    def drop_waiting(self, reason: str) -> None:
        """Drop all that was not handed to the Kafka client."""
        with self._lock:
            while self._waiting:
                epoch, frame = self._forget_oldest()
                epoch.ledger.drop(frame.id.sequence, reason)

    @property
    def done(self) -> bool:
        """All epochs are over, and `epochs` says so."""
        with self._lock:
            return all(epoch.ended for epoch in self.epochs)

    def _forget_oldest(self) -> tuple[Epoch, Frame]:
        epoch, frame = self._waiting.popleft()
        self._waiting_bytes -= len(frame.jpeg)
        return epoch, frame

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
            epoch, frame = self._forget_oldest()
            epoch.ledger.drop(frame.id.sequence, BROKER_SLOW)

    def _delivered(self, epoch: Epoch, frame: Frame, error: KafkaError | None, _: Any) -> None:
        """A delivery report (protocol 3)."""
        with self._lock:
            self._publisher.window.leave(len(frame.jpeg), acknowledged=error is None)
            if error is None:
                epoch.ledger.acknowledge(frame.id.sequence)
                self._bytes += len(frame.jpeg)
                self._said.discard(DELIVERY_FAILED)
            elif error.code() in PURGED:
                epoch.ledger.drop(frame.id.sequence, self._publisher.purge_reason)
            else:
                self._refuse(epoch, frame.id.sequence, error)
            self._publisher.pump()
            if error is None and not self._waiting and self._slow_since is not None:
                dropped = self.counters().dropped - self._slow_since
                self._slow_since = None
                log.warning(
                    "%s: the broker takes frames again; %d were dropped meanwhile",
                    self.name,
                    dropped,
                    extra={"source": self.name, "dropped": dropped},
                )

    def _refuse(self, epoch: Epoch, sequence: int, error: KafkaError) -> None:
        self._publisher.failed(error)
        self._drop(epoch, sequence, DELIVERY_FAILED, error.str())

    def _drop(self, epoch: Epoch, sequence: int, reason: str, why: str) -> None:
        epoch.ledger.drop(sequence, reason)
        if reason not in self._said:  # once per change of state, not once per frame
            self._said.add(reason)
            log.error("%s: frames are dropped: %s", self.name, why, extra={"source": self.name, "sequence": sequence, "reason": reason})

    def _declare(self, epoch: Epoch) -> None:
        """Publish some drops of an epoch, unless a record of its drops is still on its way (protocol 4)."""
        if epoch.drop_in_flight:
            return
        taken = epoch.ledger.declare()
        if taken is None:
            return
        reason, ranges = taken

        def delivered(error: KafkaError | None, _: Any) -> None:
            with self._lock:
                epoch.drop_in_flight = False
                if error is None:
                    epoch.ledger.declared(reason, ranges)
                    self._declare(epoch)
                else:
                    epoch.ledger.undeclared(reason, ranges)
                    epoch.waits = True

        drop = Drop(source=self.name, epoch=epoch.name, site=self._publisher.site, stage=STAGE, reason=reason, ranges=ranges)
        epoch.drop_in_flight = self._publisher.announce(drop, delivered)
        if not epoch.drop_in_flight:
            epoch.ledger.undeclared(reason, ranges)
            epoch.waits = True

    def _mark(self, epoch: Epoch) -> None:
        """Publish how far an epoch has come, unless such a record is still on its way (protocol 5)."""
        if epoch.mark_in_flight or epoch.ended:
            return
        over = epoch.started and epoch.ending and epoch.ledger.settled
        state = EpochState.ENDED if over else EpochState.MARK if epoch.started else EpochState.STARTED

        def delivered(error: KafkaError | None, _: Any) -> None:
            with self._lock:
                epoch.mark_in_flight = False
                if error is None:
                    epoch.started = True
                    epoch.ended = over
                else:
                    epoch.waits = True

        mark = EpochMark(
            source=self.name,
            epoch=epoch.name,
            site=self._publisher.site,
            state=state,
            assigned=epoch.ledger.assigned,
            acknowledged=epoch.ledger.prefix,
            started_at=epoch.started_at,
            width=epoch.width,
            height=epoch.height,
            fps=epoch.fps,
        )
        epoch.mark_in_flight = self._publisher.announce(mark, delivered)
        epoch.waits = epoch.waits or not epoch.mark_in_flight


def new_traceparent() -> str:
    """A fresh W3C trace context (version 00), not sampled: whoever samples decides later.

    >>> len(new_traceparent())
    55
    """
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
