"""What the sources of one process share: the sites that they may publish to, the Kafka clients of each, and the thread that serves all.

Each site has two clients, because at the end what was not sent of the frames is thrown away, and what is said about them must still get
through. Where to publish is the router's decision (`streams.routing`); here the frames are moved.
"""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.messages import Drop, EpochMark, Ranges
from schemas.routing import Routing
from streams import outputs
from streams.clients import Clients, only_inferred
from streams.partition import partition_of
from streams.production.epochs import Delivered
from streams.production.frames import (
    CLOSED,
    DELIVERY_FAILED,
    PURGED,
    Counters,
    FrameProducer,
    Held,
    Limits,
    OnAssigned,
    PublisherClosed,
)
from streams.production.lanes import Flight, Lane
from streams.routing.choice import Broken, Reason
from streams.routing.router import Moved, OnEvent, Router
from streams.routing.way import Site, Way, WrongTopics
from streams.sink import Output
from streams.topology import Topology

__all__ = ["FramePublisher", "Unaccounted", "WrongTopics"]

log = logging.getLogger("headwater.produce")

POLL_S = 0.05
TICK_S = 1.0
STALL_S = 0.25  # a longer pause of our own thread is no fault of a site
FIRST = 2  # times silent_s: for the first record of new clients
ITS_OWN_FAULT = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD})


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
    others
        Further leaf sites: it starts at the nearest that is well, and moves between them.
    bias_s
        Added to the first site's measured round trip; the others have their own.
    routing
        When it moves.
    limits
        What each source may hold; the default with several sites is what `routing` says, so that a move loses nothing.
    on_assigned
        Called with every frame when it is given its sequence (for manifests). It must be quick.
    on_event
        Called with moves and with changes of the sites' state. It must be quick.
    silent_s
        When a client has reported nothing for so long, though it holds records, the topics are looked at: librdkafka never finds the
        way to a topic that was made anew (or lost its history with the broker's disk), so its clients are then replaced.
    """

    def __init__(
        self,
        clients: Clients,
        topology: Topology,
        *,
        others: Sequence[Site] = (),
        bias_s: float = 0.0,
        routing: Routing | None = None,
        limits: Limits | None = None,
        on_assigned: OnAssigned | None = None,
        on_event: OnEvent | None = None,
        silent_s: float = 10.0,
        wall_clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        sites = [Site(clients=clients, topology=topology, bias_s=bias_s), *others]
        self.routing = routing or Routing()
        self.router = Router(sites, self.routing, on_event=on_event)
        self._limits = limits or (_several(self.routing) if others else Limits())
        self._lanes = {way.name: Lane(way, self._limits) for way in self.router.ways}
        self._lane = self._lanes[topology.site]
        self._on_assigned = on_assigned
        self.max_frame_bytes = min(site.topology.config.ingress.max_frame_bytes for site in sites)
        self.wall_clock = wall_clock
        self.lock = threading.RLock()
        self.purge_reason = DELIVERY_FAILED
        self.error: Exception | None = None
        """Why the thread ended before its time, if it did."""
        self._sources: dict[str, FrameProducer] = {}
        self._turn: list[FrameProducer] = []
        self._refusing: set[tuple[str, str]] = set()
        self._silent_s = silent_s
        self._heard_s = {way.name: [0.0, 0.0] for way in self.router.ways}  # of the client for frames, and of the one for the rest
        self._looked_s = 0.0
        self._tickets = itertools.count()
        self._seen_s = time.monotonic()  # when our thread last looked
        self._observed_s = 0.0  # how long it has looked, its own pauses left out
        self._closed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frames.publisher", daemon=True)

    @property
    def way(self) -> Way:
        """The site that is published to."""
        return self._lane.way

    @property
    def site(self) -> str:
        """The name of the site that is published to."""
        return self._lane.way.name

    @property
    def open(self) -> bool:
        return not self._closed and self.error is None

    def start(self, *, timeout_s: float = 10.0) -> Self:
        """Find the sites and their topics, and begin with the nearest.

        Raises
        ------
        BrokerUnavailable
            If no broker answers in time.
        WrongTopics
            If topics that are written here are not there, or have another number of partitions.
        """
        self._lane = self._lanes[self.router.start(timeout_s=timeout_s).name]
        self._mend()
        self._seen_s = time.monotonic()
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
                clients = [lane.way.records for lane in self._lanes.values()]
            for client in clients:
                if client is not None:
                    client.purge()
            self._wait(deadline_s)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._give_up()
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
        self.router.close()
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

    def admits(self, size: int, source: str) -> bool:
        """Whether the site in use may be sent a frame of so many bytes of a source now."""
        lane = self._lane
        return lane.way.records is not None and lane.refused is None and lane.admits(size, partition_of(source, lane.partitions))

    def hand_over(self, held: Held, producer: FrameProducer) -> None:
        """Hand a frame to the Kafka client; raises `BufferError` or `KafkaException`."""
        lane, frame = self._lane, held.frame
        assert lane.way.records is not None  # `admits` has said so
        output = Output(lane.way.topics["frames"], frame.source, frame.source, frame.jpeg, frame.to_headers())
        ticket, flight = next(self._tickets), Flight(lane, producer, held, output.partition, self._observed_s, time.monotonic())

        def report(error: KafkaError | None, message: Message) -> None:
            self._reported(ticket, flight, error, inferred=lane.way.answers and only_inferred(error, message))

        self._produce(lane.way.records, output, report, self._heard_s[lane.way.name], 0)
        held.epoch.visits(lane.way)
        lane.flights[ticket] = flight
        lane.window.enter(held.size)

    def announce(self, value: Drop | EpochMark, way: Way, delivered: Delivered) -> bool:
        """Hand over a record about an epoch for a site; False if its client takes none now."""
        client = way.control
        if client is None:
            return False
        now, asked_s = self.wall_clock(), time.monotonic()
        drops, epochs = way.topics["drops"], way.topics["epochs"]
        output = outputs.drop(drops, value, now) if isinstance(value, Drop) else outputs.epoch(epochs, value, now)

        def report(error: KafkaError | None, message: Message) -> None:
            self._heard_s[way.name][1] = time.monotonic()
            if way.answers and only_inferred(error, message):
                error = KafkaError(KafkaError._FAIL, "it was not acknowledged itself")  # it is said again
            with self.lock:
                if error is None:
                    way.health.heard(asked_s=asked_s, now_s=time.monotonic())
                self._heard(way, output.topic.name, error)
                delivered(error)

        try:
            self._produce(client, output, report, self._heard_s[way.name], 1)
        except BufferError:
            return False
        except KafkaException as error:
            self._heard(way, output.topic.name, error.args[0])
            return False
        return True

    def blames_site(self, error: KafkaError, lane: Lane | None = None) -> bool:
        """Whether a refused frame is kept, because the fault is the site's and another site is well; nothing more is sent to this one.
        A fatal error means that this client will refuse all others too."""
        lane = lane or self._lane
        if error.fatal() or error.code() == KafkaError._FATAL:
            log.warning("the Kafka client has failed for good: connecting anew", extra={"site": lane.way.name})
            lane.way.renewed = True
        if self.router.alone or error.code() in ITS_OWN_FAULT or self._closed:
            return False
        if lane is not self._lane:  # it was left: the frame goes to the one in use
            return True
        if not any(state.ok and not state.in_use for state in self.router.states()):
            return False
        if lane.refused is None:
            lane.refused = (time.monotonic(), error.str())
        return True

    def _reported(self, ticket: int, flight: Flight, error: KafkaError | None, *, inferred: bool) -> None:
        """A delivery report on a frame. Of one that was taken back meanwhile only an acknowledgement counts."""
        now_s = time.monotonic()
        lane, producer = flight.lane, flight.producer
        self._heard_s[lane.way.name][0] = now_s
        with self.lock:
            acknowledged = error is None and not inferred
            mine = lane.flights.pop(ticket, None) is not None
            if mine:
                flight.window.leave(flight.held.size, acknowledged=acknowledged)
                if acknowledged:
                    lane.took(flight)
                    lane.way.health.heard(asked_s=flight.asked_s, now_s=now_s)
            if acknowledged:
                producer.delivered(flight)
            elif mine and inferred:
                log.warning("%s: a frame was not acknowledged itself: it is sent again", producer.name, extra={"site": lane.way.name})
                producer.take_back([flight.held])
            elif mine and error is not None:
                if error.code() not in PURGED and self.blames_site(error, lane):
                    producer.take_back([flight.held])
                else:
                    producer.refuse(flight.held, error)
            self.pump()
            if acknowledged:
                producer.relieved()

    def _heard(self, way: Way, topic: str, error: KafkaError | None) -> None:
        """Log, once per change of state, that a topic refuses what is said about epochs, and that it takes it again."""
        refused, known = error is not None and error.code() not in PURGED, (way.name, topic)
        if refused and known not in self._refusing:
            self._refusing.add(known)
            why = error.str() if error is not None else ""
            log.error("%s refuses records, which are sent again: %s", topic, why, extra={"topic": topic, "site": way.name})
        elif error is None and known in self._refusing:
            self._refusing.discard(known)
            log.warning("%s takes records again", topic, extra={"topic": topic, "site": way.name})

    @staticmethod
    def _produce(client: Producer, output: Output, delivered: Callable[..., None], heard_s: list[float], which: int) -> None:
        if not len(client):  # what follows silence is not its fault
            heard_s[which] = time.monotonic()
        client.produce(
            output.topic.name,
            value=output.value,
            key=output.key,
            partition=output.partition,
            headers=[*output.headers],
            on_delivery=delivered,
        )

    def _wait(self, until_s: float) -> bool:
        """Wait until every epoch is over; False if that takes too long."""
        while not all(source.done for source in self._sources.values()):
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not self._thread.is_alive():
                return False
            self._stop.wait(min(left_s, POLL_S / 2))
        return True

    def _give_up(self) -> None:
        """Nobody will send or hear of what is still open: tell those who wait for it."""
        with self.lock:
            for lane in self._lanes.values():
                lane.take_back()
            for source in self._sources.values():
                source.drop_waiting(CLOSED)

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
                self._poll()
                with self.lock:
                    sources = list(self._sources.values())
                for source in sources:
                    source.settle()
                self._mend()
                self._route()
                if time.monotonic() >= next_tick_s:
                    next_tick_s = max(next_tick_s + TICK_S, time.monotonic())
                    self._suspect()
                    for source in sources:
                        source.tick()
                    with self.lock:
                        self.pump()
        except Exception as error:
            self.error = error
            log.exception("the publisher's thread has failed")
            self._give_up()

    def _poll(self) -> None:
        """Take in delivery reports, waiting a little for those of the site in use."""
        current = self._lane.way.records
        if current is None:
            self._stop.wait(POLL_S)
        else:
            current.poll(POLL_S)
        for lane in self._lanes.values():
            for client in (lane.way.records, lane.way.control):
                if client is not None and client is not current:
                    client.poll(0)
        now_s = time.monotonic()
        self._observed_s += min(now_s - self._seen_s, STALL_S)
        self._seen_s = now_s

    def _mend(self) -> None:
        """Connect to sites that are well and have no clients, or none that are still good."""
        for lane in self._lanes.values():
            way = lane.way
            if way.renewed or (way.records is None and way.health.reachable):
                with self.lock:
                    lane.take_back()
                    for source in self._sources.values():
                        source.lost_way(lane)
                    way.connect()
                    self.pump()

    def _route(self) -> None:
        """Look whether the site in use takes records, ask the router, and move."""
        limit_s = self.routing.silent_s * (1 if self._lane.warm else FIRST)
        with self.lock:
            lane, oldest, refused = self._lane, self._lane.oldest, self._lane.refused
        broken = None
        waits_s = self._observed_s - oldest.sent_s if oldest is not None else 0.0
        if refused is not None:
            broken = Broken(since_s=refused[0] - limit_s, reason=Reason.REFUSED, why=refused[1])
        elif oldest is not None and waits_s > limit_s:
            broken = Broken(since_s=oldest.asked_s, reason=Reason.SILENT, why=f"a record was not acknowledged for {waits_s:.1f} s")
        elif waits_s > limit_s / 2:
            self.router.hurry()
        choice = self.router.step(broken)
        if choice is not None:
            self._move(lane, self._lanes[choice.site], choice.reason, choice.why)
        elif refused is not None and time.monotonic() - refused[0] > limit_s:  # nowhere to go: try again here
            lane.refused = None
        self._reclaim()

    def _move(self, old: Lane, new: Lane, reason: Reason, why: str) -> None:
        """From one site to another. What is under way to a broken one is taken along; at one that is well it arrives."""
        broken = reason is not Reason.NEARER
        if broken and old.way.records is not None:
            old.way.records.poll(0)  # acknowledgements that are here already
        with self.lock:
            resent = old.take_back() if broken else 0
            self._lane = new
            old.refused = new.refused = None
            if new.way.records is None:
                new.way.connect()
            if broken:
                for source in self._sources.values():
                    source.lost_way(old)
                old.way.retire()
            self.pump()
            for source in self._sources.values():
                source.tick()
        self.router.moved(Moved(old=old.way.name, new=new.way.name, reason=reason, why=why, resent=resent))

    def _reclaim(self) -> None:
        """What a site that was left for a nearer one still has not acknowledged is sent again to the one in use."""
        for lane in self._lanes.values():
            oldest = lane.oldest
            if lane is not self._lane and oldest is not None and self._observed_s - oldest.sent_s > self.routing.silent_s:
                why = "a record was not acknowledged after it was left"
                lane.way.health.broke(since_s=oldest.asked_s, now_s=time.monotonic(), reason=Reason.SILENT, why=why)
                with self.lock:
                    lane.take_back()
                    for source in self._sources.values():
                        source.lost_way(lane)
                    lane.way.retire()
                    self.pump()

    def _suspect(self) -> None:
        """If a client of the site in use has been silent for long, have its topics looked at."""
        now_s, way = time.monotonic(), self._lane.way
        clients = zip((way.records, way.control), self._heard_s[way.name], strict=True)
        silent_s = max(now_s - heard_s if client is not None and len(client) else 0 for client, heard_s in clients)
        if min(silent_s, now_s - self._looked_s) >= self._silent_s:
            self._looked_s = now_s
            way.suspect = True
            self.router.hurry()


def _several(routing: Routing) -> Limits:
    """What a source may hold when there are several sites: what comes while it moves."""
    return Limits(queue_frames=routing.queue_frames, queue_bytes=routing.queue_bytes, max_age_s=routing.max_age_s)
