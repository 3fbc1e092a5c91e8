"""The link: carries topics between a leaf's Kafka and its region's. The leaf dials; both directions run here. At least once; nothing is
kept on the link's own disk.

1. The destination's positions say how far each partition was carried: `up.<site>.positions` at the region, `positions` at the leaf. They
   are bound to the source's cluster id and topic uuid.
2. On every (re)connect a lane reads them and goes on there.
3. Loop: take records within a bound of bytes; produce them idempotently with their keys and headers; after all acknowledgements, produce
   the position. A failure in between repeats records, which the join makes invisible.
4. Names differ on both ends (`streams.topology.mirrors`), so nothing can loop.
5. A position below the source's low watermark means that retention was shorter than the outage: the lost range is said exactly, and the
   position moves beyond it, so that it is said once. So it is with one record that the destination's topic is too small for: it must not
   hold back those behind it. A source's log that was cut (`streams.positions.go_on`) is carried on from where it was cut.

Each topic is a lane with a thread and a consumer of its own, so that a backlog of verdicts does not delay an alert.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.config import SiteConfig
from schemas.messages import Position
from streams import telemetry
from streams.clients import BrokerUnavailable, Clients, ClusterInfo
from streams.message import KafkaRecord, Pairs, readable
from streams.outbound import LinkFailed, Outbound
from streams.partition import partition_of
from streams.positions import go_on, headers_of, read_positions, start_of
from streams.topology import Mirror, Role, Topology, mirrors, region_view

log = logging.getLogger("headwater.link")

# What people do not wait for is gathered for a moment: fewer requests, and batches that compress well.
GATHER_S = {"verdicts": 0.5, "drops": 0.5, "epochs": 1.0}
RETRY_S = (0.2, 5.0)
EPOCH_S = 5.0
SILENT_S = 3.0  # requests without an answer for so long: the region is away, though the socket still stands
# An outage is noticed by requests that time out, and must not hide behind the defaults of a minute.
_THIN = {"socket.timeout.ms": 10_000, "socket.connection.setup.timeout.ms": 5_000, "statistics.interval.ms": 1_000}

_PROBE = {"fetch.wait.max.ms": 50, "fetch.message.max.bytes": 1, "queued.min.messages": 1}  # one record, for what is known by it


class Link:
    """Runs every lane of a leaf until it is stopped.

    Parameters
    ----------
    config
        The leaf's configuration, with `[link]`.
    """

    def __init__(self, config: SiteConfig) -> None:
        leaf, region = Topology(config), region_view(config)
        self.mirrors = mirrors(leaf, region)
        self.name = f"{config.name}.link"
        self.writer = f"{config.name}-{uuid.uuid4().hex[:12]}"
        self.leaf = Clients(config.kafka, self.name)
        self.region = Clients(region.config.kafka, self.name)
        self.batch_bytes = config.link.batch_bytes if config.link else 0
        self.positions = {"up": region.role(Role.LINK).write("up.positions", config.name), "down": leaf.role(Role.LINK).write("positions")}
        self.wire = Wire()
        self.halt = threading.Event()
        self._lanes: list[Lane] = []
        self._running: set[str] = set()

    def start(self) -> None:
        """Start the lanes; each waits for its clusters by itself."""
        thin = {**_THIN, "stats_cb": self.wire.watch("producer"), "compression.type": "zstd"}
        self._up = Outbound(partial(self.region.producer, linger_ms=5, **thin), "up")
        self._down = Outbound(partial(self.leaf.producer, linger_ms=1), "down")
        for mirror in self.mirrors:
            lane = Lane(self, mirror, self._up if mirror.direction == "up" else self._down)
            self._lanes.append(lane)
            lane.start()

    def opened(self, lane: Lane) -> None:
        self._running.add(lane.name)
        telemetry.READY.set(int(len(self._running) == len(self.mirrors)))

    def closed(self, lane: Lane) -> None:
        self._running.discard(lane.name)
        telemetry.READY.set(0)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop the lanes; what was carried without a position is carried again at the next start."""
        self.halt.set()
        until = time.monotonic() + timeout_s
        for lane in self._lanes:
            lane.join(max(0.1, until - time.monotonic()))
        for outbound in (self._up, self._down):
            outbound.close()


class Lane(threading.Thread):
    """Carries one topic, partition by partition, in order."""

    def __init__(self, link: Link, mirror: Mirror, outbound: Outbound) -> None:
        super().__init__(name=f"lane-{mirror.source.base}", daemon=True)
        self.link, self.mirror, self.outbound = link, mirror, outbound
        upward = mirror.direction == "up"
        self.source_clients, self.target_clients = (link.leaf, link.region) if upward else (link.region, link.leaf)
        self.positions = link.positions[mirror.direction]
        self.gather_s = GATHER_S.get(mirror.source.base, 0.0)
        self._labels = (mirror.direction, mirror.source.base)

    def run(self) -> None:
        attempt = 0
        while not self.link.halt.is_set():
            started = time.monotonic()
            try:
                self._carry()
            except (BrokerUnavailable, LinkFailed, KafkaException) as error:
                attempt = 1 if time.monotonic() - started > 60 else attempt + 1
                if attempt == 1 and not self.link.halt.is_set():
                    log.warning("a lane stopped and will go on: %s", error, extra={"lane": self.mirror.source.name})
                first, longest = RETRY_S
                highest = first * 2 ** min(attempt, 16)  # bounded: an outage may last for days
                self.link.halt.wait(random.uniform(first, min(longest, highest)))  # noqa: S311 - jitter
            except Exception:  # a lane's last line of defence: said loudly, then tried again, since a link must not die silently
                log.exception("a lane failed", extra={"lane": self.mirror.source.name})
                self.link.halt.wait(RETRY_S[1])

    def _carry(self) -> None:
        source = self.mirror.source
        info = self.source_clients.cluster([source.name])
        if source.name not in info.topics:
            raise LinkFailed(f"topic {source.name} does not exist yet: `headwater topology create` makes it")
        known = read_positions(self.target_clients, self.positions)
        settings: dict[str, Any] = {"fetch.wait.max.ms": 500, "fetch.message.max.bytes": max(source.max_message_bytes, 1 << 20)}
        if self.mirror.direction == "down":
            settings |= {**_THIN, "stats_cb": self.link.wire.watch(self.name), "fetch.wait.max.ms": 5_000}
        starts = self._starts(known, info)
        consumer = self.source_clients.consumer(None, **settings)
        try:
            consumer.assign(starts)
            moved = [start for start in starts if (at := known.get((source.name, start.partition))) and at.next_offset != start.offset]
            self._commit({start.partition: (start.offset, -1) for start in moved}, info)
            self.link.opened(self)
            log.info("lane open", extra={"lane": source.name, "direction": self.mirror.direction})
            while not self.link.halt.is_set():
                batch = self._gather(consumer)
                if batch:
                    self._send(batch)
                    ends = {record.partition(): (record.offset() + 1, cast(Message, record).leader_epoch()) for record in batch}
                    self._commit(ends, info)
        finally:
            self.link.closed(self)
            consumer.close()

    def _starts(self, known: dict[tuple[str, int], Position], info: ClusterInfo) -> list[TopicPartition]:
        # With a client of its own: the lane's fetches wait long for records, and a fetch under way delays the next partition's.
        probe = self.source_clients.consumer(None, **_PROBE)
        try:
            return [self._start(probe, known, partition, info) for partition in range(info.topics[self.mirror.source.name][1])]
        finally:
            probe.close()

    def _start(self, consumer: Consumer, known: dict[tuple[str, int], Position], partition: int, info: ClusterInfo) -> TopicPartition:
        source = self.mirror.source
        position = known.get((source.name, partition))
        offset = start_of(position, source, partition, info)
        low, high = consumer.get_watermark_offsets(TopicPartition(source.name, partition), timeout=10)
        if offset < low:
            if position is not None:
                telemetry.LINK_LOST.labels(source.base).inc(low - offset)
                log.error(
                    "retention removed records before the link carried them",
                    extra={"lane": source.name, "partition": partition, "first": offset, "last": low - 1},
                )
            offset = low
        elif position is not None and offset == position.next_offset and "compact" not in source.cleanup:
            offset = go_on(position, low, high, partial(self._epoch_at, consumer, partition))
            if offset != position.next_offset:
                log.error(
                    "the source's log was cut behind our position; the link goes on where it was cut",
                    extra={"lane": source.name, "partition": partition, "position": position.next_offset, "at": offset},
                )
        return TopicPartition(source.name, partition, offset)

    def _epoch_at(self, consumer: Consumer, partition: int, offset: int) -> int | None:
        """The leader epoch of the first record at or after an offset; None if none comes, as beyond a transaction's last record."""
        consumer.assign([TopicPartition(self.mirror.source.name, partition, offset)])
        until = time.monotonic() + EPOCH_S
        while time.monotonic() < until and not self.link.halt.is_set():
            message = consumer.poll(0.2)
            if message is not None and (error := message.error()) is not None:
                self._check(error)
            elif message is not None:
                return message.leader_epoch()
        return None

    def _gather(self, consumer: Consumer) -> list[KafkaRecord]:
        """Records up to the bound of bytes, gathered for a moment where nobody waits for them."""
        first = consumer.poll(0.5)
        if first is None:
            return []
        if self.gather_s:
            self.link.halt.wait(self.gather_s)
        batch: list[KafkaRecord] = []
        size = 0
        messages = [first]
        while messages:
            for message in messages:
                if (error := message.error()) is not None:
                    self._check(error)
                    continue
                batch.append(readable(cast(KafkaRecord, message)))
                size += len(message)
            left = self.link.batch_bytes - size
            messages = consumer.consume(min(32, 1 + left * len(batch) // max(1, size)), 0) if left > 0 else []
        return batch

    def _check(self, error: KafkaError) -> None:
        if not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT):
            raise LinkFailed(f"{self.mirror.source.name}: {error.str()} ({error.name()})")

    def _send(self, batch: Sequence[KafkaRecord]) -> None:
        refused = self._produce(batch)
        if len(batch) > 1:  # a request that is too large takes others down with it: each has a try of its own
            refused = [record for record in refused if self._produce([record])]
        for record in refused:
            telemetry.LINK_LOST.labels(self.mirror.source.base).inc()
            log.error(
                "the destination's topic takes no record so large; it is left behind",
                extra={"lane": self.mirror.source.name, "partition": record.partition(), "first": record.offset(), "last": record.offset()},
            )
        telemetry.LINK_RECORDS.labels(*self._labels).inc(len(batch) - len(refused))

    def _produce(self, batch: Sequence[KafkaRecord]) -> list[KafkaRecord]:
        """Produce records and wait for all; returns those that are too large for their topic."""
        target = self.mirror.target
        acks = self.outbound.open(self.link.halt)
        size = 0
        for index, message in enumerate(batch):
            headers = message.headers() or []
            partition = partition_of(_source_of(message, headers), target.partitions) if target.by_source else 0
            acks.produce(target.name, message.key(), message.value(), headers, partition, index)
            size += len(message.key() or b"") + len(message.value() or b"") + sum(len(name) + len(value or b"") for name, value in headers)
        refused = acks.wait()
        telemetry.LINK_PAYLOAD.labels(*self._labels).inc(size)
        return [batch[index] for index in refused]

    def _commit(self, ends: Mapping[int, tuple[int, int | None]], info: ClusterInfo) -> None:
        """Write positions: per partition the next offset and, if known, the leader epoch of the record before it."""
        source = self.mirror.source
        acks = self.outbound.open(self.link.halt)
        for partition, (offset, epoch) in ends.items():
            position = Position(
                cluster=info.id,
                topic=source.name,
                topic_uuid=info.topics[source.name][0],
                partition=partition,
                next_offset=offset,
                leader_epoch=-1 if epoch is None else epoch,
                writer=self.link.writer,
            )
            headers = headers_of(position, self.link.name, dt.datetime.now(dt.UTC))
            acks.produce(self.positions.name, f"{source.name}/{partition}".encode(), position.to_bytes(), headers, 0)
        if acks.wait():
            raise LinkFailed(f"{self.positions.name} takes no position: its max.message.bytes is too small")


class Wire:
    """What the clients of the region count themselves: bytes on the wire, and whether the region answers."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], int] = {}
        self._answered: tuple[int, float] = (0, time.monotonic())
        self._lock = threading.Lock()
        telemetry.LINK_UP.set(0)

    def watch(self, client: str) -> Any:
        """A statistics callback for one client."""

        def report(text: str) -> None:
            stats = json.loads(text)
            with self._lock:
                for direction, field in (("up", "txbytes"), ("down", "rxbytes")):
                    total = stats.get(field, sum(broker.get(field, 0) for broker in stats["brokers"].values()))
                    key = (client, direction)
                    before = self._seen.get(key, 0)
                    telemetry.LINK_WIRE.labels(direction).inc(total - before if total >= before else total)
                    self._seen[key] = total
                if client == "producer":
                    self._judge(stats["brokers"].values())

        return report

    def _judge(self, brokers: Any) -> None:
        answers = sum(broker["rx"] for broker in brokers)
        waiting = sum(broker["waitresp_cnt"] + broker["outbuf_cnt"] for broker in brokers)
        count, at = self._answered
        now = time.monotonic()
        if answers != count or not waiting:
            self._answered = (answers, now)
            at = now
        up = any(broker["state"] == "UP" for broker in brokers) and now - at < SILENT_S
        telemetry.LINK_UP.set(int(up))


def _source_of(message: KafkaRecord, headers: Pairs) -> str:
    """The source that decides the partition; every producer of ours names it, a foreign one's key stands in."""
    for name, value in headers:
        if name == "ce_source" and value:
            return str(value.decode(errors="replace"))
    key = message.key()
    return key.decode(errors="replace") if key else ""
