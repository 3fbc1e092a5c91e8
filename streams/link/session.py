"""A session of the link with one region: its clients, its lanes in both directions, and the positions that say how far they came.

Positions are written once a second for what was acknowledged since; a link that is killed in between carries that again. A copy of those at
the region stays at the leaf, as a hint where to begin at a second region.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.config import SiteConfig
from schemas.identity import foreign_id
from schemas.intervals import Intervals
from schemas.links import Breaker
from schemas.messages import Drop, Position, Ranges
from streams import outputs, telemetry
from streams.clients import Clients, ClusterInfo
from streams.link.carried import Carried
from streams.link.gate import Gate, Purse
from streams.link.lane import Lane
from streams.link.outbound import LinkFailed, Outbound
from streams.link.wire import STATISTICS_MS, Wire
from streams.positions import go_on, headers_of, key_of, position_of, read_positions
from streams.sink import BrokerClock
from streams.starts import latest_epochs
from streams.topology import Mirror, Role, Topology, mirrors

log = logging.getLogger("headwater.link")

EPOCH_S = 5.0
HINT_S = 5.0
# An outage is noticed by requests that time out, and must not hide behind the defaults of a minute; after it, a way is tried again soon.
_THIN = {
    "socket.timeout.ms": 10_000,
    "socket.connection.setup.timeout.ms": 4_000,
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1_000,
    "statistics.interval.ms": STATISTICS_MS,
}
_PROBE = {"fetch.wait.max.ms": 50, "fetch.message.max.bytes": 1, "queued.min.messages": 1}  # one record, for what is known by it


class Session:
    """Carries between a leaf and one region, while it is told to.

    Parameters
    ----------
    second
        Whether it is the second region; it begins where the first one's copy of positions says.
    """

    def __init__(self, config: SiteConfig, leaf: Topology, region: Topology, writer: str, purse: Purse, *, second: bool) -> None:
        assert config.link is not None
        self.config, self.writer, self.purse, self.second = config, writer, purse, second
        self.name = f"{config.name}.link"
        self.region_name = region.site
        self.leaf, self.region = Clients(config.kafka, self.name), Clients(region.config.kafka, self.name)
        self.leaf_clock, self.region_clock = BrokerClock(), BrokerClock()
        self.several = config.link.second is not None
        self.wire = Wire(self._count)
        self.halt = threading.Event()
        self.carrying = threading.Event()  # this link holds the site
        self.since = time.monotonic()  # when it took the site
        self.turn = 0  # grows when the lanes must open anew
        self.generation = 0
        self.mirrors = mirrors(leaf, region)
        link = leaf.role(Role.LINK)
        self.drops = link.write("drops")
        self.positions = {"up": region.role(Role.LINK).write("up.positions", config.name), "down": link.write("positions")}
        self.gates = {
            "urgent": Gate(purse, "up", self.halt),
            "up": Gate(purse, "up", self.halt),
            "down": Gate(purse, "down", self.halt),
        }
        self.outbounds: dict[str, Outbound] = {}
        self.lanes: list[Lane] = []
        self._running: set[str] = set()
        self._hinted: dict[tuple[str, int], tuple[int, Any]] = {}
        self._hinted_at = 0.0

    # ---- life cycle

    def start(self) -> None:
        """Start the lanes; each waits for its clusters by itself, and all until this link holds the site."""
        thin = {**_THIN, "compression.type": "zstd"}
        urgent = {**thin, "stats_cb": self.wire.watch("urgent", judge=True)}
        bulk = {**thin, "stats_cb": self.wire.watch("bulk")}
        self.outbounds = {
            "urgent": Outbound(partial(self.region.producer, linger_ms=1, **urgent), "urgent"),
            "up": Outbound(partial(self.region.producer, linger_ms=5, **bulk), "up"),
            "down": Outbound(partial(self.leaf.producer, linger_ms=1), "down"),
        }
        up = [mirror for mirror in self.mirrors if mirror.direction == "up"]
        for name, mine in (("urgent", up[:1]), ("up", up[1:])):
            self.outbounds[name].seek([mirror.target.name for mirror in mine], lambda: self.wire.breaker is not Breaker.CLOSED)
        for priority, mirror in enumerate(up):
            self.lanes.append(Lane(self, mirror, priority))
        self.lanes += [Lane(self, mirror, 0) for mirror in self.mirrors if mirror.direction == "down"]
        for lane in self.lanes:
            lane.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop the lanes; what was carried without a position is carried again at the next start."""
        until = time.monotonic() + timeout_s
        self.halt.set()
        for gate in self.gates.values():
            gate.wake()
        for lane in self.lanes:
            lane.join(max(0.1, until - time.monotonic()))
        answers = self.wire.breaker is not Breaker.OPEN
        if answers and self.outbounds:
            for outbound in self.outbounds.values():
                outbound.flush(max(0.1, min(1.0, until - time.monotonic())))
            if self.carrying.is_set():  # else they are another link's to write
                self.write_positions(hint=True)
            for outbound in (self.outbounds["urgent"], self.outbounds["down"]):
                outbound.flush(max(0.1, min(1.0, until - time.monotonic())))
        for outbound in self.outbounds.values():
            outbound.close()

    def carry(self, mine: bool, generation: int) -> None:
        """Carry while this link holds the site, stand by while it does not."""
        self.generation = generation
        if mine and not self.carrying.is_set():
            self.turn += 1
            self.since = time.monotonic()
            self.carrying.set()
        elif not mine and self.carrying.is_set():
            self.carrying.clear()
            self.turn += 1

    def answered(self) -> None:
        """The region has acknowledged something."""
        if self.wire.breaker is not Breaker.CLOSED:
            self.wire.acknowledged()
            self.tick()

    def tick(self) -> None:
        """Called several times a second: the breaker opens and closes the gates."""
        answers = self.wire.breaker is Breaker.CLOSED
        for gate in self.gates.values():
            gate.open(answers)
        telemetry.LINK_WINDOW.set(self.gates["up"].window.limit)

    def _count(self) -> None:
        """What the clients have counted corrects the budget."""
        unsent = sum(
            self.gates[gate].window.in_flight * self.wire.unsent(client) for gate, client in (("urgent", "urgent"), ("up", "bulk"))
        )
        self.purse.correct(self.wire.bytes, unsent)

    # ---- for lanes

    def way(self, direction: Literal["up", "down"], *, urgent: bool) -> tuple[Gate, Outbound]:
        name = "urgent" if urgent else direction
        return self.gates[name], self.outbounds[name]

    def consumer_settings(self, direction: str, name: str) -> dict[str, Any]:
        """What a consumer of a direction needs: across the link it waits long, fetches little ahead, and counts its bytes."""
        if direction == "up":
            return {}
        return {
            **_THIN,
            "stats_cb": self.wire.watch(name),
            "fetch.wait.max.ms": 5_000,
            "queued.max.messages.kbytes": 512,
            "fetch.message.max.bytes": 256 << 10,
        }

    def opened(self, lane: Lane) -> None:
        self._running.add(lane.name)
        telemetry.READY.set(int(len(self._running) == len(self.mirrors)))

    def closed(self, lane: Lane) -> None:
        self._running.discard(lane.name)
        telemetry.READY.set(0)

    def explain(self, lane: Lane, partition: int, ranges: Sequence[tuple[int, int]], reason: str) -> None:
        """Write a drop of offsets that the link does not carry, and wait until the leaf has it; raises `LinkFailed`."""
        assert lane.info is not None
        place = foreign_id(lane.info.id, lane.info.topics[lane.mirror.source.name][0], partition, ranges[0][0])
        pairs = Intervals(ranges).to_ranges()
        drop = Drop(source=place.source, epoch=place.epoch, site=self.config.name, stage="link", reason=reason, ranges=pairs)
        output = outputs.drop(self.drops, drop, dt.datetime.now(dt.UTC), lane.base)
        acks = self.outbounds["down"].open(self.halt)
        key = output.key.encode() if isinstance(output.key, str) else output.key
        acks.send(self.drops.name, key, output.value, output.headers, output.partition)
        if acks.wait():
            raise LinkFailed(f"{self.drops.name} takes no drop: its max.message.bytes is too small")

    def lose(self, lane: Lane, partition: int, track: Carried, low: int) -> None:
        """Explain what retention removed below `low` before it was carried, and go on there."""
        ranges = track.below(low)
        if not ranges:
            return
        log.error(
            "retention removed records before the link carried them",
            extra={"lane": lane.mirror.source.name, "partition": partition, "first": ranges[0][0], "last": ranges[-1][1], "ranges": ranges},
        )
        lane.explain(partition, ranges, "retention")  # before a position may say that they are seen to
        for first, last in ranges:
            track.settle(first, last, track.epoch)

    # ---- where to begin

    def starts(self, lane: Lane) -> tuple[dict[int, Carried], ClusterInfo]:
        """What was carried of each partition of a lane's topic, by the destination's positions; raises `LinkFailed`."""
        mirror = lane.mirror
        source = mirror.source
        info = lane.source_clients.cluster([source.name])
        lane.info = info
        if source.name not in info.topics:
            raise LinkFailed(f"topic {source.name} does not exist yet: `headwater topology create` makes it")
        known = read_positions(self.region if mirror.direction == "up" else self.leaf, self.positions[mirror.direction])
        hints = read_positions(self.leaf, self.positions["down"]) if mirror.direction == "up" and self.several else {}
        count = info.topics[source.name][1]
        latest = latest_epochs(lane.source_clients, [(source.name, partition) for partition in range(count)])
        # With a client of its own: the lane's fetches wait long for records, and a fetch under way delays the next partition's.
        probe = lane.source_clients.consumer(None, **_PROBE)
        try:
            found = {}
            for partition in range(count):
                position = position_of(known, source, partition, info, several=self.several)
                hint = hints.get((info.id, source.name, partition))
                if hint is not None and hint.topic_uuid == info.topics[source.name][0] and self._prefers(hint, position, lane):
                    position = hint
                found[partition] = self._start(lane, probe, position, partition, latest.get((source.name, partition), -1))
            return found, info
        finally:
            probe.close()

    def _prefers(self, hint: Position, position: Position | None, lane: Lane) -> bool:
        """Whether the leaf's copy says more: a second region begins where the first one was, and evidence that one of them was asked about
        is not sent to the other."""
        return (
            position is None
            if self.second and not lane.expires
            else lane.expires and (position is None or hint.next_offset > position.next_offset)
        )

    def _start(self, lane: Lane, probe: Consumer, position: Position | None, partition: int, latest: int) -> Carried:
        name = lane.mirror.source.name
        offset, backfill = (position.next_offset, position.backfill.pairs) if position is not None else (0, ())
        low, high = probe.get_watermark_offsets(TopicPartition(name, partition), timeout=10)
        # If the epoch at the log's end is that of the position, nothing was written after a cut: no record need be fetched to see it.
        if position is not None and not lane.ordered and (offset > high or not 0 <= latest == position.leader_epoch):
            at = go_on(position, low, high, partial(self._epoch_at, probe, name, partition))
            if at < offset:
                log.error(
                    "the source's log was cut behind our position; the link goes on where it was cut",
                    extra={"lane": name, "partition": partition, "position": offset, "at": at},
                )
                offset = at
        track = Carried(offset, backfill)
        if position is not None:
            track.epoch = position.leader_epoch if offset == position.next_offset else -1
            track.changed = offset != position.next_offset
            self.lose(lane, partition, track, low)
        else:
            track.drop_below(low)
            track.changed = False
        if not lane.ordered:
            track.jump(high)
        track.live_epoch = latest if track.next == high else -1
        lane.highs[partition] = high
        return track

    def _epoch_at(self, consumer: Consumer, topic: str, partition: int, offset: int) -> int | None:
        """The leader epoch of the first record at or after an offset; None if none comes, as beyond a transaction's last record."""
        consumer.assign([TopicPartition(topic, partition, offset)])
        until = time.monotonic() + EPOCH_S
        while time.monotonic() < until and not self.halt.is_set():
            message = consumer.poll(0.2)
            if message is not None and (error := message.error()) is not None:
                if not error.retriable():
                    raise LinkFailed(f"{topic}: {error.str()} ({error.name()})")
            elif message is not None:
                return message.leader_epoch()
        return None

    # ---- positions

    def write_positions(self, *, hint: bool = False) -> None:
        """Write the positions that have changed; a copy of those of the region goes to the leaf now and then, or with `hint`."""
        now = time.monotonic()
        hint = hint or now - self._hinted_at > HINT_S
        if hint:
            self._hinted_at = now
        for lane in self.lanes:
            for partition, track in list(lane.tracks.items()):
                changed = track.changed
                if changed:
                    position = self._position(lane, partition, track)
                    self._write(lane.mirror, position, track)
                if hint and lane.mirror.direction == "up":
                    self._hint(lane, partition, track)

    def _position(self, lane: Lane, partition: int, track: Carried, *, peek: bool = False) -> Position:
        assert lane.info is not None
        offset, gaps = track.position(peek=peek)
        source = lane.mirror.source.name
        return Position(
            cluster=lane.info.id,
            topic=source,
            topic_uuid=lane.info.topics[source][0],
            partition=partition,
            next_offset=offset,
            leader_epoch=track.epoch,
            backfill=Ranges(gaps),
            generation=self.generation,
            writer=self.writer,
        )

    def _write(self, mirror: Mirror, position: Position, track: Carried) -> None:
        topic = self.positions[mirror.direction]
        outbound = self.outbounds["urgent" if mirror.direction == "up" else "down"]

        def report(error: KafkaError | None, _: Message | None) -> None:
            if error is not None:
                outbound.failed(error)
                track.changed = True
                log.warning("a position could not be written: %s", error.str(), extra={"topic": topic.name})

        headers = headers_of(position, self.name, dt.datetime.now(dt.UTC))
        outbound.send(topic.name, key_of(position), position.to_bytes(), headers, 0, report)

    def _hint(self, lane: Lane, partition: int, track: Carried) -> None:
        position = self._position(lane, partition, track, peek=True)
        state = position.next_offset, position.backfill
        if self._hinted.get((position.topic, partition)) == state or not position.next_offset:
            return
        self._hinted[position.topic, partition] = state

        def report(error: KafkaError | None, _: Message | None) -> None:
            if error is not None:
                self._hinted.pop((position.topic, partition), None)

        headers = headers_of(position, self.name, dt.datetime.now(dt.UTC))
        self.outbounds["down"].send(self.positions["down"].name, key_of(position), position.to_bytes(), headers, 0, report)
