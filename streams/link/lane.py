"""A lane: carries one topic. Its thread owns the lane's consumers: one at the end of the log, so that what is new goes first, and one for
the gaps behind it, the newest first. A topic whose order matters (a compacted one) is carried in its order.

Acknowledgements come in another thread and settle what they are about; nobody waits for them, so that a long way does not make a slow lane.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.envelope import InvalidEnvelope
from schemas.records import InvalidRecord
from streams import telemetry
from streams.clients import BrokerUnavailable, ClusterInfo
from streams.link.backfill import Backfill, Chunk, Gone
from streams.link.batch import Batch, Ready, UnderWay, epoch_of, ready
from streams.link.carried import Carried
from streams.link.gate import Stopping
from streams.link.outbound import LinkFailed, refusal
from streams.message import KafkaRecord, readable
from streams.outputs import escalation_of
from streams.partition import partition_of
from streams.topology import Mirror

if TYPE_CHECKING:
    from streams.link.session import Session

log = logging.getLogger("headwater.link")

# What people do not wait for is gathered for a moment: fewer requests, and batches that compress well.
GATHER_S = {"verdicts": 0.5, "drops": 0.5, "epochs": 1.0, "accounts": 1.0}
RETRY_S = (0.2, 5.0)
BEHIND_S = 2.0  # a lane whose live consumer is so far behind goes to the end of the log, and leaves a gap
MOST_RECORDS = 1000  # of a batch
CHUNK_RECORDS = 50_000  # of a gap that is read without looking for a newer one, and without a budget
CHUNK_S = 4.0  # of the budget, with one
BACKFILLS = 2  # partitions of a lane whose gaps are read at a time
WAIT_S = 0.01
GAP_S = 0.02  # how long a gap's next records are waited for before it is looked whether there is something new
LIVE_WAIT_MS = 500  # how long the leaf's broker holds a request for what is new; one that is under way delays a jump to the end of the log
URGENT_WAIT_MS = 100
MEASURE_S = 2.0
CLOCKS_S = 10.0  # a broker that has not told its time by then keeps producers' own: it is no reason to carry nothing
_TRANSIENT = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)


class Lane(threading.Thread):
    """Carries one topic of one direction for a session with a region.

    Attributes
    ----------
    tracks
        What was carried of each partition; empty while the lane is not open.
    highs
        Where each partition's log ended when it was last looked at.
    """

    def __init__(self, session: Session, mirror: Mirror, priority: int) -> None:
        super().__init__(name=f"lane-{mirror.source.base}", daemon=True)
        self.session, self.mirror, self.priority = session, mirror, priority
        self.base = mirror.source.base if mirror.direction == "up" else mirror.target.base
        upward = mirror.direction == "up"
        self.urgent = upward and priority == 0
        self.gate, self.outbound = session.way(mirror.direction, urgent=self.urgent)
        self.source_clients = session.leaf if upward else session.region
        self.clock = session.leaf_clock if upward else session.region_clock
        self.target_clock = session.region_clock if upward else session.leaf_clock
        self.ordered = "compact" in mirror.source.cleanup and "delete" not in mirror.source.cleanup
        self.expires = self.base.startswith("escalations")
        self.gather_s = GATHER_S.get(self.base, 0.0)
        self.tracks: dict[int, Carried] = {}
        self.highs: dict[int, int] = {}
        self.average = 500.0  # bytes of a record, lately
        self.carried = self.lost = 0  # records
        self.carried_bytes = 0
        self.paused = False
        self.halt = session.halt
        self.info: ClusterInfo | None = None
        self._failed: KafkaError | None = None
        self._alone: deque[Batch] = deque()
        self._anew = threading.Event()
        self._backfills: list[Backfill] = []
        self._held: dict[int, list[KafkaRecord]] = {}  # what the live consumer has read and is not sent yet
        self._under_way = UnderWay()
        self._measured = 0.0
        self._labels = (mirror.direction, mirror.source.base)

    # ---- life cycle

    def open_anew(self) -> None:
        """Look at the log again, from the positions on; may be called from any thread."""
        self._anew.set()

    def run(self) -> None:
        attempt = 0
        while not self.halt.is_set():
            started = time.monotonic()
            try:
                self._carry()
            except Stopping:
                continue
            except (BrokerUnavailable, LinkFailed, KafkaException) as error:
                attempt = 1 if time.monotonic() - started > 60 else attempt + 1
                if attempt == 1 and not self.halt.is_set():
                    log.warning("a lane stopped and will go on: %s", error, extra={"lane": self.mirror.source.name})
                first, longest = RETRY_S
                highest = first * 2 ** min(attempt, 16)  # bounded: an outage may last for days
                self.halt.wait(random.uniform(first, min(longest, highest)))  # noqa: S311 - jitter
            except Exception:  # a lane's last line of defence: said loudly, then tried again, since a link must not die silently
                log.exception("a lane failed", extra={"lane": self.mirror.source.name})
                self.halt.wait(RETRY_S[1])

    def _carry(self) -> None:
        if not self.session.carrying.wait(0.5):
            return
        if not (self.clock.known and self.target_clock.known) and time.monotonic() - self.session.since < CLOCKS_S:
            self.halt.wait(0.05)  # both clusters have just been written to, so both clocks are known soon
            return
        turn = self.session.turn
        source = self.mirror.source
        self._failed = None
        self._anew.clear()
        self._alone.clear()
        self._held.clear()
        starts, self.info = self.session.starts(self)
        settings: dict[str, Any] = {
            "fetch.wait.max.ms": URGENT_WAIT_MS if self.urgent else LIVE_WAIT_MS,
            "fetch.message.max.bytes": max(source.max_message_bytes, 1 << 20),
        }
        settings |= self.session.consumer_settings(self.mirror.direction, f"{self.name}-live")
        live = self.source_clients.consumer(None, **settings)
        self._backfills = [
            Backfill(
                self.source_clients,
                source.name,
                self.session.consumer_settings(self.mirror.direction, f"{self.name}-back{number}"),
                self._check,
            )
            for number in range(BACKFILLS if self.mirror.direction == "up" else 1)  # another one's fetching would cross the link too
        ]
        try:
            self.tracks = starts
            live.assign([TopicPartition(source.name, partition, track.next) for partition, track in starts.items()])
            self.session.opened(self)
            log.info("lane open", extra={"lane": source.name, "direction": self.mirror.direction})
            while not self.halt.is_set() and self.session.turn == turn:
                self._step(live)
        finally:
            self.session.closed(self)
            live.close()
            for backfill in self._backfills:
                backfill.close()

    def _step(self, live: Consumer) -> None:
        if self._failed is not None:
            raise LinkFailed(refusal(self._failed))
        if self._anew.is_set():
            raise LinkFailed(f"{self.mirror.source.name} was made anew")
        while self._alone:
            self._send_alone(self._alone.popleft())
        if self.paused:
            self.halt.wait(0.2)
            self._measure(live)
            return
        self._read_live(live)
        if not (self._send_live(live) or self._send_gap()) and not self._idle():
            self._under_way.wait(WAIT_S)  # what is under way may be acknowledged any moment
        self._measure(live)

    def _idle(self) -> bool:
        """Whether nothing waits to be sent, as far as it is known."""
        return (
            not self._held
            and not any(each.chunk is not None for each in self._backfills)
            and not any(map(Carried.waiting, self.tracks.values()))
        )

    def _count(self) -> int:
        """How many records make a batch."""
        return max(1, min(MOST_RECORDS, int(self.session.purse.slice(self.gate.window.limit) / self.average)))

    # ---- what is new

    def _read_live(self, live: Consumer) -> None:
        count = self._count()
        if self.ordered and sum(map(len, self._held.values())) >= count:
            return
        idle = self._idle()
        first = live.poll(0.5 if idle else 0)
        if first is None:
            return
        if self.gather_s and idle:
            self.halt.wait(self.gather_s)
        for message in [first, *(live.consume(count - 1, 0) if count > 1 else ())]:
            if (error := message.error()) is not None:
                self._check(live, message, error)
            else:
                record = readable(cast(KafkaRecord, message))
                self._held.setdefault(record.partition(), []).append(record)
        if not self.ordered:
            self._let_go(count)

    def _let_go(self, count: int) -> None:
        """What has gathered behind a batch that is not acknowledged becomes a gap, so that one partition does not hold up the others."""
        for partition, records in list(self._held.items()):
            if len(records) >= count and not self._under_way.free(partition):
                self.tracks[partition].jump(records[-1].offset() + 1)
                del self._held[partition]

    def _send_live(self, live: Consumer) -> bool:
        """Send what is new of those partitions of which nothing is under way; returns whether anything was done."""
        done = False
        for partition, records in list(self._held.items()):
            if not self._under_way.free(partition):
                continue
            if self._behind(live, partition, records):
                self._jump(live)
                return True
            track = self.tracks[partition]
            now, later = records[: self._count()], records[self._count() :]
            self._same_log(track, now)
            first, last = track.live(now[-1].offset())
            if later:
                self._held[partition] = later
            else:
                del self._held[partition]
            self._send(track, partition, first, last, now)
            done = True
        return done

    def _same_log(self, track: Carried, records: Sequence[KafkaRecord]) -> None:
        """A record of a later leader epoch: the log may have been cut behind us and written on (a power cut), so it is opened anew, which
        finds where. Once such a record were carried, nothing would tell."""
        epoch = epoch_of(records[-1])
        if 0 <= track.live_epoch < epoch:
            raise LinkFailed(f"{self.mirror.source.name} has a new leader: its log is looked at again")
        track.live_epoch = epoch

    def _behind(self, live: Consumer, partition: int, records: Sequence[KafkaRecord]) -> bool:
        """Whether much newer records wait at the end of the log."""
        if self.ordered or self.clock.age_s(records[0].timestamp()[1]) < BEHIND_S:
            return False
        high = _high(live, self.mirror.source.name, partition)
        return high is not None and high > records[-1].offset() + 1 + len(records)

    def _jump(self, live: Consumer) -> None:
        """Go to the end of every partition; what is passed over is a gap from now on."""
        name = self.mirror.source.name
        for partition, track in self.tracks.items():
            track.jump(_high(live, name, partition) or track.next)
        self._held.clear()
        live.assign([TopicPartition(name, partition, track.next) for partition, track in self.tracks.items()])

    # ---- what is behind

    def _send_gap(self) -> bool:
        """Send a portion of a gap; returns whether anything was done. Two partitions take turns: a client has one request of a partition on
        its way at a time, and meanwhile the other's can be sent."""
        self._begin_gaps()
        turns = [each for each in self._backfills if each.chunk is not None and self._under_way.free(each.chunk.partition)]
        for patience_s in (0.0, GAP_S):
            for backfill in turns:
                chunk = backfill.chunk
                assert chunk is not None
                track = self.tracks[chunk.partition]
                try:
                    portion = backfill.read(self._count(), patience_s)
                except Gone:
                    backfill.chunk = None
                    track.give_back(chunk.at, chunk.last)
                    self._lose_below(backfill.consumer, chunk.partition)
                    return True
                if portion is None:
                    continue
                self._backfills.remove(backfill)
                self._backfills.append(backfill)
                if not portion.records:  # compacted away, or the end of a transaction: nothing of it is there
                    track.settle(portion.first, portion.last)
                    return True
                try:
                    self._send(track, chunk.partition, portion.first, portion.last, portion.records)
                except BaseException:
                    track.give_back(portion.first, chunk.last)
                    backfill.chunk = None
                    raise
                return True
        return False

    def _begin_gaps(self) -> None:
        for backfill in self._backfills:
            if backfill.chunk is None and (chunk := self._take_gap()) is not None:
                backfill.begin(chunk)

    def _take_gap(self) -> Chunk | None:
        budget = self.session.purse.bucket
        limit = CHUNK_RECORDS if budget is None else max(200, int(CHUNK_S * budget.rate / self.session.purse.ratio / self.average))
        if self.mirror.direction == "down":
            limit = 1 << 62  # what a consumer fetched beyond a chunk would cross the link again
        read = {each.chunk.partition for each in self._backfills if each.chunk is not None}
        partitions = [partition for partition, track in self.tracks.items() if partition not in read and track.waiting()]
        random.shuffle(partitions)  # fair among partitions
        for partition in partitions:
            found = self.tracks[partition].oldest(limit) if self.ordered else self.tracks[partition].newest(limit)
            if found is not None:
                return Chunk(partition, *found)
        return None

    # ---- sending

    def _send(self, track: Carried, partition: int, first: int, last: int, records: Sequence[KafkaRecord]) -> None:
        """Send records of one partition; offsets from `first` to `last` are settled when they are acknowledged."""
        if self.expires:
            records = self._unexpired(records)
        if not records:
            track.settle(first, last)
            return
        shift_ms = self._shift_ms()
        batch = Batch(track, partition, first, last, [ready(record, shift_ms) for record in records], self.arrived, self.outbound.failed)
        self.average += 0.1 * (batch.size / len(records) - self.average)
        self.gate.enter(self.priority, batch.size, urgent=self.urgent)
        if self.expires and any(map(self._is_expired, records)):  # it may have waited there for a whole outage
            self.gate.left(batch.size)
            self._send(track, partition, first, last, records)
            return
        batch.sent_s = time.monotonic()
        self._under_way.sent(partition)
        name, send = self.mirror.target.name, self.outbound.send
        for index, each in enumerate(batch.records):
            record = each.record
            send(name, record.key(), record.value(), each.headers, self._partition(each), partial(batch.report, index))

    def _partition(self, each: Ready) -> int:
        """Where a record goes; every producer of ours names its source, a foreign one's key stands in."""
        target = self.mirror.target
        if not target.by_source:
            return 0
        return partition_of((each.source or each.record.key() or b"").decode(errors="replace"), target.partitions)

    def _shift_ms(self) -> float:
        """What the destination's clock is ahead of the source's: a time in one becomes a time in the other."""
        return self.target_clock.now_ms() - self.clock.now_ms()

    def _unexpired(self, records: Sequence[KafkaRecord]) -> list[KafkaRecord]:
        """Those that are still worth sending; the others are explained."""
        kept: list[KafkaRecord] = []
        expired: list[KafkaRecord] = []
        for record in records:
            (expired if self._is_expired(record) else kept).append(record)
        if expired:
            self.explain(expired[0].partition(), [(record.offset(), record.offset()) for record in expired], "ttl")
        return kept

    def _is_expired(self, record: KafkaRecord) -> bool:
        return self._ttl_s(record) < self.clock.age_s(record.timestamp()[1])

    def _ttl_s(self, record: KafkaRecord) -> float:
        try:
            return escalation_of(record.headers()).ttl_s
        except (InvalidRecord, InvalidEnvelope):
            return float("inf")  # nothing of ours: the region's own reader judges it

    def arrived(self, batch: Batch, message: Message | None) -> None:
        """A batch has its last report; called in the producer's thread."""
        now = time.monotonic()
        self.gate.acked(batch.size, now - batch.sent_s)
        self._under_way.done(batch.partition, now - batch.sent_s)
        if message is not None and not batch.refused:
            kind, appended_ms = message.timestamp()
            if kind == 2:
                self.target_clock.observe(batch.sent_s, now, appended_ms)
            if self.mirror.direction == "up":
                self.session.answered()
        if batch.refused is not None:
            self._failed = batch.refused
        else:
            self._count_carried(len(batch.records) - len(batch.large), batch.size)
            if batch.large:
                self._alone.append(batch)
            else:
                batch.track.settle(batch.first, batch.last, batch.epoch)
        batch.records = ()

    def _count_carried(self, records: int, size: int) -> None:
        self.carried += records
        self.carried_bytes += size
        telemetry.LINK_RECORDS.labels(*self._labels).inc(records)
        telemetry.LINK_PAYLOAD.labels(*self._labels).inc(size)

    def _send_alone(self, batch: Batch) -> None:
        """A request that is too large takes others down with it, so each of them has a try of its own; what is too large by itself must
        not hold back those behind it."""
        refused = []
        for record in batch.large:
            each = ready(record, self._shift_ms())
            acks = self.outbound.open(self.halt)
            acks.send(self.mirror.target.name, record.key(), record.value(), each.headers, self._partition(each))
            if acks.wait():
                refused.append((record.offset(), record.offset()))
                log.error(
                    "the destination's topic takes no record so large; it is left behind",
                    extra={"lane": self.mirror.source.name, "partition": record.partition(), "offset": record.offset()},
                )
        if refused:
            self.explain(batch.large[0].partition(), refused, "too-large")
        self._count_carried(len(batch.large) - len(refused), 0)
        batch.track.settle(batch.first, batch.last, batch.epoch)

    # ---- what is lost

    def explain(self, partition: int, ranges: Sequence[tuple[int, int]], reason: str) -> None:
        """Write what becomes of offsets that are not carried; raises `LinkFailed` if that cannot be written: then they are not settled."""
        count = sum(last - first + 1 for first, last in ranges)
        self.lost += count
        telemetry.LINK_LOST.labels(self.mirror.source.base, reason).inc(count)
        self.session.explain(self, partition, ranges, reason)

    def _lose_below(self, consumer: Consumer, partition: int) -> None:
        low, _ = consumer.get_watermark_offsets(TopicPartition(self.mirror.source.name, partition), timeout=10)
        self.session.lose(self, partition, self.tracks[partition], low)

    def _check(self, consumer: Consumer, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # retention overtook us, or the log was cut: opening it anew tells which
            raise LinkFailed(f"{self.mirror.source.name}/{message.partition()}: {error.str()}: its log is looked at again")
        if not error.retriable() and error.code() not in _TRANSIENT:
            raise LinkFailed(f"{self.mirror.source.name}: {error.str()} ({error.name()})")

    # ---- what it says of itself

    def _measure(self, live: Consumer) -> None:
        now = time.monotonic()
        if now - self._measured < MEASURE_S:
            return
        self._measured = now
        for partition in self.tracks:
            high = _high(live, self.mirror.source.name, partition)
            if high is not None:
                self.highs[partition] = high


def _high(consumer: Consumer, topic: str, partition: int) -> int | None:
    """Where a partition's log ends, as the consumer last heard; None if it has not."""
    try:
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
    except KafkaException:
        return None
    return high if high >= 0 else None
