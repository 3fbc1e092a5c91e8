"""What the sources of one process share: a Kafka client for frames, one for what is said about them, and the thread that serves both.

Two clients, because at the end what was not sent of the frames is thrown away, and what is said about them must still get through.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.frames import Frame
from schemas.messages import Drop, EpochMark, Ranges
from streams import outputs
from streams.clients import BrokerUnavailable, Clients
from streams.production.frames import CLOSED, DELIVERY_FAILED, PURGED, Counters, FrameProducer, Limits, OnAssigned, PublisherClosed
from streams.production.window import Window
from streams.sink import Output
from streams.topology import Role, Topic, Topology

log = logging.getLogger("headwater.produce")

POLL_S = 0.05
TICK_S = 1.0
LOOK_TIMEOUT_S = 2.0
Delivered = Callable[[KafkaError | None, Any], None]


class WrongTopics(LookupError):
    """Topics that a producer writes do not exist on the cluster, or not as declared; the message names them and what to do."""


class Unaccounted(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of which a producer could not say before it had to end what became of them; `ended` is False if it could not even say
    that the epoch is over."""

    source: str
    epoch: str
    sequences: Ranges
    ended: bool


class FramePublisher:
    """The producers of one process. Use it as a context manager, or call `start` and `close`.

    Parameters
    ----------
    clients
        Makes the Kafka clients.
    topology
        The leaf's topics.
    limits
        What each source may hold.
    on_assigned
        Called with every frame when it is given its sequence (for manifests). It must be quick.
    silent_s
        When a client has reported nothing for so long, though it holds records, the topics are looked at: librdkafka never finds the
        way to a topic that was made anew (or lost its history with the broker's disk), so its clients are then replaced.
    """

    def __init__(
        self,
        clients: Clients,
        topology: Topology,
        *,
        limits: Limits | None = None,
        on_assigned: OnAssigned | None = None,
        silent_s: float = 10.0,
        wall_clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        view = topology.role(Role.PRODUCER)
        self._topics: dict[str, Topic] = {base: view.write(base) for base in ("frames", "drops", "epochs")}
        self._clients = clients
        self._limits = limits or Limits()
        self._on_assigned = on_assigned
        self.site = topology.site
        self.max_frame_bytes = topology.config.ingress.max_frame_bytes
        self.wall_clock = wall_clock
        self.lock = threading.RLock()
        self.window = Window(self._limits.in_flight_frames, self._limits.in_flight_bytes)
        self.purge_reason = DELIVERY_FAILED
        self.error: Exception | None = None
        """Why the thread ended before its time, if it did."""
        self._sources: dict[str, FrameProducer] = {}
        self._turn: list[FrameProducer] = []
        self._refusing: set[str] = set()
        self._fatal = False
        self._silent_s = silent_s
        self._heard_s = [0.0, 0.0]  # of the client for frames, and of the one for what is said about them
        self._looked_s = 0.0
        self._uuids: dict[str, str] = {}
        self._closed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frames.publisher", daemon=True)
        self._frames: Producer
        self._control: Producer

    def start(self, *, timeout_s: float = 10.0) -> Self:
        """Find the topics and begin.

        Raises
        ------
        BrokerUnavailable
            If no broker answers in time.
        WrongTopics
            If topics that are written here are not there, or have another number of partitions.
        """
        info = self._clients.cluster([topic.name for topic in self._topics.values()], timeout_s=timeout_s)
        missing = [topic.name for topic in self._topics.values() if topic.name not in info.topics]
        if missing:
            raise WrongTopics(
                f"the cluster at {self._clients.kafka.bootstrap_servers} has no topic {', '.join(missing)}: "
                "`headwater topology create` makes them"
            )
        wrong = [topic for topic in self._topics.values() if info.topics[topic.name][1] != topic.partitions]
        if wrong:
            raise WrongTopics(
                f"topic {wrong[0].name} has {info.topics[wrong[0].name][1]} partitions, and topics.partitions says {wrong[0].partitions}: "
                "set it to what is there (`headwater topology check` tells more); partition counts never change in place"
            )
        self._uuids = {name: uuid for name, (uuid, _) in info.topics.items()}
        self._connect()
        self._thread.start()
        return self

    def counters(self) -> list[Counters]:
        """What became of the frames of every source so far."""
        with self.lock:
            sources = list(self._sources.values())
        return [source.counters() for source in sources]

    def source(self, name: str) -> FrameProducer:
        """The producer of one source, made on first use; raises `InvalidIdentity` for a name that cannot be."""
        with self.lock:
            self.check_open()
            if name not in self._sources:
                self._sources[name] = FrameProducer(name, self, self._limits, self._on_assigned)
                self._turn.append(self._sources[name])
            return self._sources[name]

    def close(self, timeout_s: float = 10.0) -> list[Unaccounted]:
        """End all epochs, wait for the broker, and tell what could not be accounted for (also on the log). Takes `timeout_s` at most,
        of which the last quarter is for declaring dropped what was not acknowledged before it.
        """
        with self.lock:
            if self._closed:
                return []
            self._closed = True
            for source in self._sources.values():
                source.end()
        deadline_s = time.monotonic() + timeout_s
        if not self._wait(time.monotonic() + min(1.0, timeout_s / 4)):
            log.warning("waiting up to %.0f s for the broker to take what is under way", timeout_s, extra={"timeout_s": timeout_s})
        if not self._wait(deadline_s - timeout_s / 4):
            with self.lock:
                self.purge_reason = CLOSED
                for source in self._sources.values():
                    source.drop_waiting(CLOSED)
                frames = self._frames
            frames.purge()
            self._wait(deadline_s)
        self._stop.set()
        self._thread.join(timeout_s)
        left = self._unaccounted()
        for rest in left:
            log.error(
                "%s: ended without the broker: epoch %s, sequences %s are neither acknowledged nor declared dropped%s",
                rest.source,
                rest.epoch,
                rest.sequences.to_json(),
                "" if rest.ended else ", and its end is not announced",
                extra={"source": rest.source, "epoch": rest.epoch, "sequences": rest.sequences.to_json()},
            )
        for client in (self._frames, self._control):
            client.purge()
            client.poll(0)
        return left

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # What follows is for the sources.

    def check_open(self) -> None:
        """Raise `PublisherClosed` after `close`, and when the thread has failed."""
        if self.error is not None:
            raise PublisherClosed("the publisher's thread has failed") from self.error
        if self._closed:
            raise PublisherClosed("the publisher is closed")

    def pump(self) -> None:
        """Hand waiting frames to the Kafka client while it may hold more, one of each source in turn."""
        turn = self._turn
        while sum(source.send_next() for source in turn):
            turn.append(turn.pop(0))

    def send(self, frame: Frame, delivered: Delivered) -> None:
        """Hand a frame to the Kafka client; raises `BufferError` or `KafkaException`."""

        def report(error: KafkaError | None, message: Any) -> None:
            self._heard_s[0] = time.monotonic()
            delivered(error, message)

        output = Output(self._topics["frames"], frame.source, frame.source, frame.jpeg, frame.to_headers())
        self._produce(self._frames, output, report)

    def announce(self, value: Drop | EpochMark, delivered: Delivered) -> bool:
        """Hand over a record about an epoch; False if the client takes none now."""
        now = self.wall_clock()
        drops, epochs = self._topics["drops"], self._topics["epochs"]
        output = outputs.drop(drops, value, now) if isinstance(value, Drop) else outputs.epoch(epochs, value, now)

        def report(error: KafkaError | None, message: Any) -> None:
            self._heard_s[1] = time.monotonic()
            self._heard(output.topic.name, error)
            delivered(error, message)

        try:
            self._produce(self._control, output, report)
        except BufferError:
            return False
        except KafkaException as error:
            self._heard(output.topic.name, error.args[0])
            return False
        return True

    def _heard(self, topic: str, error: KafkaError | None) -> None:
        """Log, once per change of state, that a topic refuses what is said about epochs, and that it takes it again."""
        refused = error is not None and error.code() not in PURGED
        if refused and topic not in self._refusing:
            self._refusing.add(topic)
            why = error.str() if error is not None else ""
            log.error("%s refuses records, which are sent again: %s", topic, why, extra={"topic": topic})
        elif error is None and topic in self._refusing:
            self._refusing.discard(topic)
            log.warning("%s takes records again", topic, extra={"topic": topic})

    def _produce(self, client: Producer, output: Output, delivered: Delivered) -> None:
        if not len(client):  # what follows silence is not its fault
            self._heard_s[client is self._control] = time.monotonic()
        client.produce(
            output.topic.name,
            value=output.value,
            key=output.key,
            partition=output.partition,
            headers=[*output.headers],
            on_delivery=delivered,
        )

    def failed(self, error: KafkaError) -> None:
        """A frame was refused; a fatal error means that this client will refuse all others too."""
        self._fatal = self._fatal or error.fatal() or error.code() == KafkaError._FATAL

    def _wait(self, until_s: float) -> bool:
        """Wait until every epoch is over; False if that takes too long."""
        while not all(source.done for source in self._sources.values()):
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not self._thread.is_alive():
                return False
            self._stop.wait(min(left_s, POLL_S / 2))
        return True

    def _unaccounted(self) -> list[Unaccounted]:
        with self.lock:
            return [
                Unaccounted(source=source.name, epoch=epoch.name, sequences=epoch.ledger.unaccounted().to_ranges(), ended=epoch.ended)
                for source in self._sources.values()
                for epoch in source.epochs
                if not epoch.ended
            ]

    def _run(self) -> None:
        next_tick_s = time.monotonic() + TICK_S
        try:
            while not self._stop.is_set():
                self._frames.poll(POLL_S)
                self._control.poll(0)
                with self.lock:
                    sources = list(self._sources.values())
                for source in sources:
                    source.settle()
                if time.monotonic() >= next_tick_s:
                    next_tick_s = max(next_tick_s + TICK_S, time.monotonic())
                    if self._fatal:
                        self._replace("the Kafka client has failed for good")
                    elif self._replaced_topics():
                        self._replace("topics were made anew")
                    for source in sources:
                        source.tick()
                    with self.lock:
                        self.pump()
        except Exception as error:
            self.error = error
            log.exception("the publisher's thread has failed")

    def _connect(self) -> None:
        self._frames = self._clients.producer(linger_ms=0)
        self._control = self._clients.producer(linger_ms=5)
        self._heard_s = [time.monotonic()] * 2
        self._fatal = False

    def _replaced_topics(self) -> bool:
        """Whether a client has been silent for long and the topics are not those that it knows."""
        now_s = time.monotonic()
        silent_s = max(
            now_s - heard_s if len(client) else 0 for client, heard_s in zip((self._frames, self._control), self._heard_s, strict=True)
        )
        if min(silent_s, now_s - self._looked_s) < self._silent_s:
            return False
        try:
            found = self._clients.cluster(list(self._uuids), timeout_s=LOOK_TIMEOUT_S).topics
        except BrokerUnavailable:
            return False
        finally:
            self._looked_s = time.monotonic()
        uuids = {name: uuid for name, (uuid, _) in found.items()}
        if uuids == self._uuids or len(uuids) < len(self._uuids):  # the same, or some are still to be made
            return False
        self._uuids = uuids
        return True

    def _replace(self, why: str) -> None:
        """Take new clients. What was with the old ones comes back out of the purge: frames as drops, the rest to be sent again."""
        log.warning("%s: connecting anew", why, extra={"site": self.site})
        with self.lock:
            old = self._frames, self._control
            self._connect()
        for client in old:
            client.purge()
            client.flush(1.0)
