"""Snapshots of the resolver's memory, so that a restart reads the end of its logs and not all of them.

A snapshot is a fold of the logs alone, up to an offset of each: never of what a running resolver remembers, which may be ahead of what it
has written. It is made by taking up the last one and reading on, which is also how a memory is restored. So a snapshot can be missing,
old, torn by a crash, of a replaced cluster or topic, or of another version: it is then passed over, and the logs are read from their
beginning, which is slower and ends the same.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from mode import Service

from agents.memory import Memory, State
from schemas.records import InvalidRecord
from schemas.snapshots import LogPlace, Snapshot
from streams import outputs
from streams.clients import Clients, ClusterInfo
from streams.message import KafkaRecord
from streams.outputs import SNAPSHOT_KEY
from streams.restore import Place, batches_to_end, ends_of
from streams.sink import NotDelivered, Output, Sink, SinkBroken
from streams.topology import Topic

log = logging.getLogger("headwater.resolver")

LAYOUT = 1  # of `State` and its parts; another one is passed over
EVERY = 100_000  # records of a partition that a restart may have to read beyond its snapshot: about a second
CHECK_S = 30.0
PART_BYTES = 900 << 10
MAX_BYTES = 256 << 20  # of a memory as it is written down; a larger one is not taken up
_LEVEL = 1  # of zlib: results are alike, and it must not cost the resolver its time

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


class Restored(msgspec.Struct):
    """A partition's memory taken up from its logs, how far it reaches into each, and how many records were read."""

    memory: Memory
    logs: dict[str, LogPlace]
    records: int = 0
    slot: str = "b"  # of the snapshot that it began with
    fresh: bool = True  # no snapshot could be used


class Snapshots:
    """Restores memories and writes snapshots of them.

    Parameters
    ----------
    results, alerts
        The logs that a memory is a fold of.
    snapshots
        Where snapshots lie; partition by partition as the logs.
    make
        An empty memory.
    site
        Who writes them.
    """

    def __init__(self, clients: Clients, results: Topic, alerts: Topic, snapshots: Topic, make: Callable[[], Memory], site: str) -> None:
        self.clients, self.results, self.alerts, self.snapshots = clients, results, alerts, snapshots
        self.make, self.site = make, site

    def restore(self, partitions: Iterable[int]) -> dict[int, Restored]:
        """The memory of each partition, up to the end that its logs have now. Blocks; raises `BrokerUnavailable`."""
        wanted = sorted(set(partitions))
        info = self.clients.cluster([self.results.name, self.alerts.name])
        found = self._taken_up(wanted, info)
        cut = self._read_on(found, info)
        if cut:  # a log that a snapshot had read was cut and written anew: what the snapshot holds may be gone
            log.warning("a log was cut behind a snapshot; it is read from its beginning", extra={"partitions": sorted(cut)})
            again = {partition: self._fresh(info) for partition in cut}
            self._read_on(again, info)
            found |= again
        return found

    def advance(self, partitions: Iterable[int], now: dt.datetime) -> list[Output]:
        """New snapshots of some partitions, ready to be written in this order: parts, then what makes them hold. Blocks."""
        info = self.clients.cluster([self.results.name, self.alerts.name])
        written: list[Output] = []
        for partition in partitions:  # one after the other: only one memory more at a time
            written += self._snapshot(partition, self.restore([partition])[partition], info, now)
        return written

    # ---- reading

    def _fresh(self, info: ClusterInfo) -> Restored:
        places = {
            topic.name: LogPlace(topic=topic.name, topic_uuid=info.topics[topic.name][0], next_offset=0)
            for topic in (self.results, self.alerts)
        }
        return Restored(self.make(), places)

    def _taken_up(self, partitions: list[int], info: ClusterInfo) -> dict[int, Restored]:
        found = {partition: self._fresh(info) for partition in partitions}
        parts: dict[int, dict[str, bytes]] = {partition: {} for partition in partitions}
        for batch in batches_to_end(self.clients, [(self.snapshots.name, partition) for partition in partitions]):
            for record in batch:
                key, value = record.key(), record.value()
                if key is not None and value is not None:
                    parts[record.partition()][key.decode(errors="replace")] = value
        for partition, given in parts.items():
            if SNAPSHOT_KEY not in given:
                continue
            try:
                taken = self._assembled(partition, given, info)
            except (InvalidRecord, ValueError, zlib.error) as error:
                log.warning("a snapshot is not used: %s", error, extra={"partition": partition})
            else:
                found[partition] = taken
        return found

    def _assembled(self, partition: int, parts: dict[str, bytes], info: ClusterInfo) -> Restored:
        """The memory of a snapshot; raises `InvalidRecord`, `ValueError` or `zlib.error` if it is not one of these logs, or not whole."""
        told = Snapshot.from_bytes(parts[SNAPSHOT_KEY])
        logs = {place.topic: place for place in told.logs}
        if told.layout != LAYOUT or told.partition != partition:
            raise ValueError(f"it has layout {told.layout} and is of partition {told.partition}: expected {LAYOUT} and {partition}")
        if told.cluster != info.id or any(
            name not in logs or logs[name].topic_uuid != info.topics[name][0] for name in (self.results.name, self.alerts.name)
        ):
            raise ValueError("it is of a cluster or a topic that was replaced")
        data = b"".join(parts.get(f"{told.slot}/{number}", b"") for number in range(told.parts))
        if hashlib.sha256(data).hexdigest() != told.digest:
            raise ValueError("its parts are not those that it was made of: a crash tore it, or two resolvers wrote at a time")
        unpacker = zlib.decompressobj()
        state = unpacker.decompress(data, MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        memory = self.make()
        memory.load(_decoder.decode(state))
        return Restored(memory, logs, slot=told.slot, fresh=False)

    def _read_on(self, found: dict[int, Restored], info: ClusterInfo) -> set[int]:
        """Join in what the logs hold beyond each memory. Returns the partitions whose logs are not those that the memory was made of."""
        places: list[Place] = [(name, partition) for partition, taken in found.items() for name in taken.logs]
        starts: dict[Place, int] = {}
        cut: set[int] = set()
        for partition, taken in found.items():
            for name, reached in taken.logs.items():
                if reached.mark_offset >= 0:
                    starts[name, partition] = reached.mark_offset  # read again, to see that it is still there
        if starts:
            cut |= {
                place[1] for place, end in ends_of(self.clients, list(starts)).items() if end < found[place[1]].logs[place[0]].next_offset
            }
        last: dict[Place, KafkaRecord] = {}
        for batch in batches_to_end(self.clients, [place for place in places if place[1] not in cut], starts):
            for record in batch:
                place = record.topic(), record.partition()
                taken = found[place[1]]
                known = taken.logs[place[0]]
                if record.offset() < known.next_offset:
                    if record.offset() == known.mark_offset and _mark(record) != known.mark:
                        cut.add(place[1])
                    continue
                self._join(taken, record)
                last[place] = record
        for (name, partition), record in last.items():
            reached = found[partition].logs[name]
            found[partition].logs[name] = msgspec.structs.replace(
                reached, next_offset=record.offset() + 1, mark_offset=record.offset(), mark=_mark(record)
            )
        return cut

    def _join(self, taken: Restored, record: KafkaRecord) -> None:
        value = record.value()
        taken.records += 1
        if value is None:
            return
        try:
            if record.topic() == self.results.name:
                taken.memory.read_result(value, record.timestamp()[1])
            else:
                taken.memory.read_alert(value)
        except InvalidRecord as error:  # only we write there: an older version's value; it is joined anew if its verdicts come again
            log.warning("a result could not be read back: %s", error, extra={"topic": record.topic(), "offset": record.offset()})

    # ---- writing

    def _snapshot(self, partition: int, taken: Restored, info: ClusterInfo, now: dt.datetime) -> list[Output]:
        state = zlib.compress(_encoder.encode(taken.memory.dump()), _LEVEL)
        slot = "a" if taken.slot == "b" else "b"
        parts = [state[at : at + PART_BYTES] for at in range(0, len(state), PART_BYTES)]
        told = Snapshot(
            layout=LAYOUT,
            partition=partition,
            cluster=info.id,
            logs=tuple(taken.logs.values()),
            slot=slot,
            parts=len(parts),
            digest=hashlib.sha256(state).hexdigest(),
        )
        return [
            *(outputs.snapshot_part(self.snapshots, told, number, part, self.site, now) for number, part in enumerate(parts)),
            outputs.snapshot(self.snapshots, told, self.site, now),
        ]


class Snapshotter(Service):
    """Writes a snapshot of each partition whenever its logs have grown by `every` records; `grown` says by how many each has."""

    def __init__(self, snapshots: Snapshots, sink: Sink, grown: dict[int, int], *, every: int = EVERY, **kwargs: Any) -> None:
        self.snapshots, self.sink, self.grown, self.every = snapshots, sink, grown, every
        super().__init__(**kwargs)

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            await self.sleep(CHECK_S)
            await self.write_due()

    async def write_due(self) -> None:
        """Write the snapshots that are due. What fails is tried again at the next check: a snapshot only saves time."""
        for partition in [partition for partition, count in list(self.grown.items()) if count >= self.every]:
            start, behind = time.monotonic(), self.grown.get(partition, 0)
            try:
                written = await asyncio.to_thread(self.snapshots.advance, [partition], dt.datetime.now(dt.UTC))
                await self.sink.write(written[:-1])
                await self.sink.write(written[-1:])
            except (OSError, NotDelivered, SinkBroken, LookupError) as error:
                log.warning("no snapshot could be written: %s", error, extra={"partition": partition})
                continue
            if partition in self.grown:
                self.grown[partition] -= behind
            log.info(
                "snapshot written",
                extra={
                    "partition": partition,
                    "bytes": sum(len(output.value or b"") for output in written),
                    "seconds": round(time.monotonic() - start, 2),
                },
            )


def _mark(record: KafkaRecord) -> str:
    parts = (record.key() or b"", str(record.timestamp()[1]).encode(), record.value() or b"")
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:32]
