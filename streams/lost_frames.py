"""Which sequences a lost offset range of `frames` held: offsets that retention removed become drops of the epochs they belonged to.

Frames of one source are in one partition, in their order. So what an epoch lost lies between the last sequence that the leaf has answered
before the range and the first one that is found after it, or is what its producer knows to be on the broker and is not found after it.
Nothing beyond what can be known is claimed: what stays unknown stays open in the account.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from confluent_kafka import KafkaError, TopicPartition

from schemas.accounts import AccountSet, Outcome, mark_of
from schemas.identity import InvalidIdentity, RecordId, foreign_id
from schemas.intervals import Intervals
from schemas.messages import Drop, EpochMark
from streams.account_read import Intake, Place, kept_entries, positions, read_places, settled_offsets
from streams.clients import Clients, ClusterInfo
from streams.message import KafkaRecord, readable
from streams.partition import partition_of
from streams.starts import Lost
from streams.topology import Role, Topic, Topology

log = logging.getLogger("headwater.lost")

STAGE, REASON = "leaf", "retention"
LIMIT_S = 60.0  # of reading on, within a rebalance: below the time after which the group goes on without us
_PRODUCER = "producer"

Stream = tuple[str, str]  # source, epoch


class Before:
    """What is known of one epoch when the range was found lost."""

    __slots__ = ("elsewhere", "ended", "last", "marked", "not_sent")

    def __init__(self) -> None:
        self.ended = Intervals()  # what the leaf has answered, buried or dropped
        self.last = -1  # the highest of these
        self.marked = 0  # sequences that the producer knows to be on a broker, or has dropped
        self.not_sent = Intervals()  # what the producer dropped
        self.elsewhere = Intervals()  # what another site has


def sequences_lost(before: Before, after: Intervals, *, complete: bool) -> Intervals:
    """What of an epoch was in the lost range.

    Parameters
    ----------
    after
        The sequences above `before.last` that were found beyond the range.
    complete
        Whether all was read that was on the broker when the marks were: then what the producer knows to be there, and is neither before
        nor after the range, was in it. Otherwise only what lies below the first one found.
    """
    end = max(after.pairs()[0][0] if after else 0, before.marked if complete else 0)
    if end <= before.last + 1:
        return Intervals()
    return Intervals([(before.last + 1, end - 1)]) - after - before.not_sent - before.elsewhere


class Memory:
    """What the topics say of the epochs of one partition; it is `Facts`."""

    def __init__(self, partition: int, partitions: int) -> None:
        self.streams: dict[Stream, Before] = {}
        self._place = (partition, partitions)

    def of(self, source: str, epoch: str) -> Before:
        return self.streams.setdefault((source, epoch), Before())

    def _ours(self, source: str) -> bool:
        return partition_of(source, self._place[1]) == self._place[0]

    def epoch(self, mark: EpochMark, at_ms: int = 0) -> None:
        if self._ours(mark.source):
            before = self.of(mark.source, mark.epoch)
            before.marked = max(before.marked, mark.acknowledged)
            for _, ranges in mark.elsewhere.items():
                before.elsewhere = before.elsewhere | Intervals(ranges.pairs)

    def result(self, record: RecordId, at_ms: int = 0) -> None:
        if not record.foreign and self._ours(record.source):
            self._ended(self.of(record.source, record.epoch), ((record.sequence, record.sequence),))

    dead_letter = result

    def drop(self, drop: Drop, at_ms: int = 0) -> None:
        if self._ours(drop.source) and drop.ranges.pairs:
            self._dropped(self.of(drop.source, drop.epoch), drop.stage, drop.ranges.pairs)

    @staticmethod
    def _ended(before: Before, pairs: tuple[tuple[int, int], ...]) -> None:
        if len(pairs) == 1 and pairs[0][0] == pairs[0][1]:
            before.ended.add(pairs[0][0])
        else:
            before.ended = before.ended | Intervals(pairs)
        before.last = max(before.last, pairs[-1][1])

    def _dropped(self, before: Before, stage: str, pairs: tuple[tuple[int, int], ...]) -> None:
        if stage == _PRODUCER:
            before.not_sent = before.not_sent | Intervals(pairs)
        else:
            self._ended(before, pairs)

    def known(self, entry: AccountSet) -> None:
        if not self._ours(entry.source):
            return
        if (mark := mark_of(entry)) is not None:
            self.epoch(mark)
        if not entry.ranges.pairs or entry.outcome is Outcome.PRODUCED:
            return
        before = self.of(entry.source, entry.epoch)
        if entry.outcome is Outcome.ELSEWHERE:
            before.elsewhere = before.elsewhere | Intervals(entry.ranges.pairs)
        elif entry.outcome is Outcome.DROPPED:
            self._dropped(before, entry.stage, entry.ranges.pairs)
        else:
            self._ended(before, entry.ranges.pairs)


def drops_of(topology: Topology, clients: Clients, info: ClusterInfo, lost: Lost, *, limit_s: float = LIMIT_S) -> list[Drop]:
    """The drops that explain a lost range of `frames`: of each epoch the sequences, and of the partition the offsets if these were more
    than the sequences (foreign records, or some that were there twice).

    Raises
    ------
    BrokerUnavailable
        If the cluster does not answer; then the range must not be passed over.
    """
    memory = remember(topology, clients, lost)
    _unresolved(topology, clients, lost, memory)
    after, complete = _look_on(clients, lost, memory, limit_s)
    drops, count = [], 0
    for (source, epoch), before in sorted(memory.streams.items()):
        sequences = sequences_lost(before, after.get((source, epoch), Intervals()), complete=complete)
        if sequences:
            count += sequences.count()
            drops.append(_drop(topology, source, epoch, sequences))
    if count < lost.last - lost.first + 1:
        place = foreign_id(info.id, info.topics[lost.topic.name][0], lost.partition, lost.first)
        drops.append(_drop(topology, place.source, place.epoch, Intervals([(lost.first, lost.last)])))
    log.error(
        "the lost frames are explained as drops",
        extra={
            "topic": lost.topic.name,
            "partition": lost.partition,
            "offsets": lost.last - lost.first + 1,
            "sequences": count,
            "complete": complete,
        },
    )
    return drops


def _drop(topology: Topology, source: str, epoch: str, sequences: Intervals) -> Drop:
    return Drop(source=source, epoch=epoch, site=topology.site, stage=STAGE, reason=REASON, ranges=sequences.to_ranges())


def remember(topology: Topology, clients: Clients, lost: Lost) -> Memory:
    """What the accountant has kept of the partition, and what came since."""
    memory = Memory(lost.partition, lost.topic.partitions)
    known = clients.cluster([topic.name for topic in topology])
    intake = Intake(topology, memory, known)
    starts = positions(topology, clients, known, intake.topics)
    for entry in kept_entries(clients, [topology.topic("accounts")]):
        if isinstance(entry, AccountSet):
            memory.known(entry)
    places: dict[Place, int | None] = {}
    for topic in intake.topics:
        for partition in [lost.partition] if topic.by_source else range(topic.partitions):
            places[topic.name, partition] = starts.get((topic.name, partition))
    for message in read_places(clients, places):
        intake.take(message)
    return memory


def _unresolved(topology: Topology, clients: Clients, lost: Lost, memory: Memory) -> None:
    """The verdicts that are no results yet: their frames are answered."""
    verdicts = topology.topic("verdicts")
    resolved = settled_offsets(clients, topology.group(Role.RESOLVER)).get((verdicts.name, lost.partition))
    for message in read_places(clients, {(verdicts.name, lost.partition): None if resolved is None else resolved.offset}):
        with contextlib.suppress(InvalidIdentity):
            memory.result(RecordId.parse((message.key() or b"").decode(errors="replace")))


def _look_on(clients: Clients, lost: Lost, memory: Memory, limit_s: float) -> tuple[dict[Stream, Intervals], bool]:
    """Read `frames` behind the range to where it ends now; returns the new sequences of each epoch, and whether all was read in time."""
    found: dict[Stream, Intervals] = {}
    for record in records_behind(clients, lost.topic, lost.partition, lost.last + 1, limit_s):
        if record is None:
            return found, False
        try:
            name = RecordId.parse((dict(record.headers() or ()).get("ce_id") or b"").decode(errors="replace"))
        except InvalidIdentity:  # foreign: accounted by its place
            continue
        if name.sequence > memory.of(name.source, name.epoch).last:
            found.setdefault((name.source, name.epoch), Intervals()).add(name.sequence)
    return found, True


def records_behind(clients: Clients, topic: Topic, partition: int, first: int, limit_s: float) -> Iterator[KafkaRecord | None]:
    """The partition's records from an offset on up to where it ends now; None if the time is up before that."""
    until = time.monotonic() + limit_s
    consumer = clients.consumer(
        None,
        **{"enable.partition.eof": True, "fetch.message.max.bytes": topic.max_message_bytes, "queued.max.messages.kbytes": 16 << 10},
    )
    place = (topic.name, partition)
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(*place), timeout=10)
        start = max(low, first)
        if start >= high:
            return
        consumer.assign([TopicPartition(*place, start)])
        while time.monotonic() < until:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                continue
            record = readable(message)  # type: ignore[arg-type]
            yield record
            if record.offset() + 1 >= high:
                return
        yield None
    finally:
        consumer.close()
