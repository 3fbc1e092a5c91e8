"""What the lanes have still to carry: records, bytes, the age of the oldest, and when they will be empty. Looked at from the link's own
thread, with a client of its own, so that it is known during an outage too."""

from __future__ import annotations

import math
import time

from confluent_kafka import KafkaException, TopicPartition

from schemas.links import LaneState
from schemas.messages import Position
from streams import telemetry
from streams.clients import Clients
from streams.link.lane import Lane
from streams.link.session import Session
from streams.positions import read_positions
from streams.sink import BrokerClock

_PROBE = {"fetch.wait.max.ms": 20, "fetch.message.max.bytes": 1, "queued.min.messages": 1}


class Backlogs:
    """Measures the lanes of a session.

    Before a lane is open (its region is away since the start) the leaf's copy of the positions stands in.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._probe = clients.consumer(None, **_PROBE)
        self._hints: dict[tuple[str, str, int], Position] | None = None
        self._before: dict[str, tuple[float, int]] = {}
        self._rates: dict[str, float] = {}

    def close(self) -> None:
        self._probe.close()

    def measure(self, session: Session, wire_bytes_per_s: float) -> tuple[LaneState, ...]:
        """The state of every lane, the most urgent first; raises `KafkaException`, `BrokerUnavailable` if the leaf does not answer."""
        if self._hints is None:
            self._hints = read_positions(self._clients, session.positions["down"])
        budget = session.purse.bucket
        speed = budget.rate if budget is not None else wire_bytes_per_s
        found, before = [], 0.0
        for lane in session.lanes:
            waiting, oldest_s = self._up(lane, session.leaf_clock) if lane.mirror.direction == "up" else (self._down(lane), 0.0)
            size = int(waiting * lane.average)
            before += size * session.purse.ratio if lane.mirror.direction == "up" else size
            state = LaneState(
                topic=lane.base,
                direction=lane.mirror.direction,
                waiting=waiting,
                waiting_bytes=size,
                oldest_s=round(oldest_s, 1),
                rate=round(self._rate(lane), 1),
                drain_s=round(before / speed, 1) if waiting and speed > 0 else (None if waiting else 0.0),
                lost=lane.lost,
                paused=lane.paused,
            )
            found.append(state)
            labels = (state.direction, state.topic)
            telemetry.LINK_WAITING.labels(*labels).set(waiting)
            telemetry.LINK_WAITING_BYTES.labels(*labels).set(size)
            telemetry.LINK_OLDEST.labels(*labels).set(oldest_s)
            telemetry.LINK_DRAIN.labels(*labels).set(math.nan if state.drain_s is None else state.drain_s)
        return tuple(found)

    def _up(self, lane: Lane, clock: BrokerClock) -> tuple[int, float]:
        waiting, oldest_s = 0, 0.0
        name = lane.mirror.source.name
        for partition in range(lane.mirror.source.partitions):
            try:
                low, high = self._probe.get_watermark_offsets(TopicPartition(name, partition), timeout=2)
            except KafkaException:
                continue  # not made yet, or no leader at the moment
            track = lane.tracks.get(partition)
            if track is not None:
                open_, first = track.open(high), track.first_open()
            else:
                open_, first = self._hinted(name, partition, low, high)
            waiting += min(open_, high - low)
            if open_ and first < high:
                oldest_s = max(oldest_s, self._age_s(name, partition, max(first, low), clock))
        return waiting, oldest_s

    def _hinted(self, name: str, partition: int, low: int, high: int) -> tuple[int, int]:
        position = next((each for (_, topic, at), each in (self._hints or {}).items() if (topic, at) == (name, partition)), None)
        if position is None:
            return high - low, low
        gaps = [(max(first, low), last) for first, last in position.backfill.pairs if last >= low]
        open_ = max(0, high - max(low, position.next_offset)) + sum(last - first + 1 for first, last in gaps)
        return open_, gaps[0][0] if gaps else position.next_offset

    def _down(self, lane: Lane) -> int:
        return sum(track.open(lane.highs.get(partition, 0)) for partition, track in list(lane.tracks.items()))

    def _age_s(self, topic: str, partition: int, offset: int, clock: BrokerClock) -> float:
        self._probe.assign([TopicPartition(topic, partition, offset)])
        message = self._probe.poll(1.0)
        if message is None or message.error() is not None:
            return 0.0
        return clock.age_s(message.timestamp()[1])

    def _rate(self, lane: Lane) -> float:
        """Records a second, over the last few measurements."""
        now, (then, before) = time.monotonic(), self._before.get(lane.name, (0.0, 0))
        self._before[lane.name] = now, lane.carried
        if then and now > then:
            self._rates[lane.name] = self._rates.get(lane.name, 0.0) * 0.5 + 0.5 * (lane.carried - before) / (now - then)
        return self._rates.get(lane.name, 0.0)
