"""What is under way to one site: the frames that its Kafka client holds, oldest first, and how many it may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.production.window import Window

if TYPE_CHECKING:
    from streams.production.frames import FrameProducer, Held, Limits
    from streams.routing.way import Way


class Flight:
    """A frame that was handed to a site's Kafka client. `sent_s` is by the publisher's own clock, which stands still while the process
    does; `asked_s` is monotonic time."""

    __slots__ = ("asked_s", "held", "lane", "partition", "producer", "sent_s", "window")

    def __init__(self, lane: Lane, producer: FrameProducer, held: Held, partition: int, sent_s: float, asked_s: float) -> None:
        self.lane = lane
        self.window = lane.window
        self.producer = producer
        self.held = held
        self.partition = partition
        self.sent_s = sent_s
        self.asked_s = asked_s


class Lane:
    """The frames under way to one site."""

    def __init__(self, way: Way, limits: Limits) -> None:
        self.way = way
        self._limits = limits
        self.window = Window(limits.in_flight_frames, limits.in_flight_bytes)
        self.flights: dict[int, Flight] = {}
        self._known: set[int] = set()  # partitions that have taken a frame of this client
        self.refused: tuple[float, str] | None = None
        """Since when the site refuses frames that are not at fault themselves, and what it says; nothing is sent meanwhile."""

    @property
    def oldest(self) -> Flight | None:
        """The frame that waits longest for its acknowledgement."""
        return next(iter(self.flights.values()), None)

    @property
    def partitions(self) -> int:
        """Of the topic of frames."""
        return self.way.topics["frames"].partitions

    @property
    def warm(self) -> bool:
        """It has acknowledged something since its clients were made: connecting and a first producer id may take a while."""
        return bool(self._known)

    def admits(self, size: int, partition: int) -> bool:
        """Whether a frame of so many bytes may be handed over now. The first one of a client for a partition goes alone: until the
        broker knows the client, it cannot see that a frame before the one that it takes is missing (`streams.clients.only_inferred`).
        """
        if partition not in self._known and any(flight.partition == partition for flight in self.flights.values()):
            return False
        return self.window.admits(size)

    def took(self, flight: Flight) -> None:
        """The site has acknowledged a frame of the present client."""
        self._known.add(flight.partition)

    def take_back(self) -> int:
        """Give the frames under way back to their sources, to be sent again by another client; returns how many. Late reports on them
        change nothing but the ledger."""
        flights = list(self.flights.values())
        self.flights, self._known = {}, set()
        self.window = Window(self._limits.in_flight_frames, self._limits.in_flight_bytes)
        by_source: dict[FrameProducer, list[Held]] = {}
        for flight in flights:
            by_source.setdefault(flight.producer, []).append(flight.held)
        return sum(producer.take_back(held) for producer, held in by_source.items())
