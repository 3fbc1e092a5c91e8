"""What a leaf does when the disk of its Kafka runs low: lower lanes go first, each loss explained, alerts and verdicts last.

The levels, one after the other as free space falls from `disk.low` to `disk.very_low`:

1. `carried`: what the link has carried of the escalations is deleted early. Nothing is lost.
2. `evidence`: evidence of unsure frames is not kept any more (their verdicts say so).
3. `pictures`: nor pictures of alerts; and frames that were answered are deleted early.
4. `backlog`: the older half of the escalations that wait is deleted, as drops of the stage `disk`; nor is evidence of alerts kept any more.
5. `frames`: frames are dropped at ingress, with the reason `disk`. What is on the broker already is still answered.

It climbs back a level at a time, when there is room again for a while. Kafka frees whole segments only, so space comes back in steps.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from confluent_kafka import KafkaException, TopicPartition
from mode import Service

from schemas.config import Disk
from schemas.identity import foreign_id
from schemas.intervals import Intervals
from schemas.messages import Drop
from streams import outputs, telemetry
from streams.account_read import settled_offsets
from streams.clients import BrokerUnavailable, Clients, ClusterInfo
from streams.laws import size_text
from streams.positions import read_positions
from streams.reader import bounds
from streams.sink import NotDelivered, Sink, SinkBroken
from streams.topology import Role, Topic, Topology, region_view

log = logging.getLogger("headwater.disk")

POLL_S = 1.0
HOLD_S = 15.0  # so long there must be room before a level is left
RELIEF_S = 10.0  # between deletions
SHED_S = 75.0  # between two halvings of what waits: Kafka looks at what may be freed every half minute, and only then is there room or not
STAGE = REASON = "disk"
SHED = "the leaf's disk is low: the region is not asked"  # what a verdict says
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_ASK_S = 15.0
FULL_BYTES = 8 << 20  # Kafka may end before the last byte is taken


class Level(enum.IntEnum):
    """How much is done without."""

    NORMAL = 0
    CARRIED = 1
    EVIDENCE = 2
    PICTURES = 3
    BACKLOG = 4
    FRAMES = 5


# From which level on nothing new is written of a lane.
_SHED_AT = {
    "escalations": Level.EVIDENCE,
    "alerts.evidence": Level.PICTURES,
    "escalations.alerts": Level.BACKLOG,
    "frames": Level.FRAMES,
}


class Shedding(Protocol):
    """What a stage asks before it writes what can be done without."""

    def allows(self, lane: str) -> bool:
        """Whether a topic, as code calls it, may be written to (`frames`: be taken in)."""
        ...


class Unguarded:
    """A disk that nobody watches."""

    def allows(self, lane: str) -> bool:
        return True


class Usage(msgspec.Struct, frozen=True):
    """A file system: bytes in all, and bytes that Kafka may still write."""

    total: int
    free: int


def usage(path: Path) -> Usage:
    """The file system that a folder is on; raises `OSError`."""
    found = os.statvfs(path)
    return Usage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def share_bytes(text: str, total: int) -> int:
    """`10%` of the disk, or `2 GiB`, in bytes.

    >>> share_bytes("10%", 1000), share_bytes("2 KiB", 1000)
    (100, 2048)
    """
    if text.endswith("%"):
        return int(total * float(text[:-1]) / 100)
    number, unit = re.fullmatch(r"(\d+) ?(\w*)", text).groups()  # type: ignore[union-attr]  # the configuration has checked it
    return int(number) * _UNITS[unit]


def most_bytes(topology: Topology) -> int:
    """The bytes that a site's topics take on its cluster's disks at most, all copies together: by the byte bound of each partition and
    the segment that is being written, and without Kafka's indexes (some MB a partition that is in use)."""
    return topology.config.topics.replication * sum(topic.most_bytes() for topic in topology)


class Levels:
    """Which level a disk's free space asks for. Pure: time comes in.

    Up at once, as many levels as needed; down one at a time, when there was room beyond its threshold for `HOLD_S`. The room asked for is
    a quarter of a level more, so that what a level frees does not end it at once.
    """

    def __init__(self, low: str, very_low: str) -> None:
        self._low, self._very_low = low, very_low
        self.level = Level.NORMAL
        self._roomy_since: float | None = None

    def threshold(self, level: Level, total: int) -> int:
        """Free bytes below which a level begins."""
        low = share_bytes(self._low, total)
        very_low = min(low, share_bytes(self._very_low, total))
        return low - (low - very_low) * (level - 1) // (len(Level) - 2)

    def update(self, found: Usage, now_s: float) -> bool:
        """Take in a measurement; True if the level changed."""
        wanted = max((level for level in Level if level and found.free < self.threshold(level, found.total)), default=Level.NORMAL)
        if wanted > self.level:
            self.level, self._roomy_since = wanted, None
            return True
        if self.level is Level.NORMAL:
            return False
        step = self.threshold(Level.CARRIED, found.total) - self.threshold(Level.EVIDENCE, found.total)
        if found.free < self.threshold(self.level, found.total) + max(step // 4, found.total // 200):
            self._roomy_since = None
            return False
        if self._roomy_since is None:
            self._roomy_since = now_s
        if now_s - self._roomy_since < HOLD_S:
            return False
        self.level, self._roomy_since = Level(self.level - 1), now_s
        return True


class DiskGuard(Service):
    """Watches the disk beside a leaf's agent, and makes room; it is `Shedding`.

    Parameters
    ----------
    folder
        Where the broker's log lies, on this machine.
    relief
        Makes room at a level; called in a thread, every `RELIEF_S` while the disk is low.
    measure
        How the disk is measured.
    """

    def __init__(
        self,
        config: Disk,
        folder: Path,
        relief: Callable[[Level], None],
        *,
        measure: Callable[[Path], Usage] = usage,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        self.folder, self._relief, self._measure, self._clock = folder, relief, measure, clock
        self._levels = Levels(config.low, config.very_low)
        self.leads: Callable[[], bool] = lambda: True
        """Whether it is this process that makes room, where several watch one disk."""
        self._relieved_s = float("-inf")
        self._blind = self._full = False
        super().__init__(**kwargs)

    @property
    def level(self) -> Level:
        return self._levels.level

    def allows(self, lane: str) -> bool:
        return self._levels.level < _SHED_AT.get(lane, len(Level))

    def look(self) -> None:
        """Measure once."""
        try:
            found = self._measure(self.folder)
        except OSError as error:
            if not self._blind:
                log.error("the disk cannot be measured: %s", error, extra={"path": str(self.folder)})
            self._blind = True
            return
        self._blind = False
        before = self.level
        telemetry.DISK_FREE.set(found.free)
        if self._levels.update(found, self._clock()):
            telemetry.DISK_LEVEL.set(self.level)
            log.log(
                logging.WARNING if self.level > before else logging.INFO,
                "disk %s: %s free of %s; %s",
                "low" if self.level else "well again",
                size_text(found.free),
                size_text(found.total),
                _DONE[self.level],
                extra={"path": str(self.folder), "free_bytes": found.free, "level": int(self.level)},
            )

        if (found.free < FULL_BYTES) != self._full:
            self._full = not self._full
            if self._full:
                log.critical(
                    "disk full: %s has %s bytes free: Kafka cannot write and stops; what it acknowledged is safe, the rest waits for room",
                    self.folder,
                    f"{found.free:,}",
                    extra={"path": str(self.folder), "free_bytes": found.free},
                )
            else:
                log.warning("the disk of %s has room again", self.folder, extra={"path": str(self.folder), "free_bytes": found.free})

    def make_room(self) -> None:
        """Delete what may go at this level, if that is due. It may take long: the region may not answer."""
        if self.level and self.leads() and self._clock() - self._relieved_s >= RELIEF_S:
            self._relieved_s = self._clock()
            self._relief(self.level)

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            await asyncio.to_thread(self.look)
            await self.sleep(POLL_S)

    @Service.task
    async def _relieve(self) -> None:
        while not self.should_stop:
            await asyncio.to_thread(self.make_room)
            await self.sleep(POLL_S)


_DONE = {
    Level.NORMAL: "nothing is done without",
    Level.CARRIED: "escalations that were carried are deleted early",
    Level.EVIDENCE: "the region is not asked about unsure frames any more",
    Level.PICTURES: "pictures of alerts are not kept any more, and answered frames are deleted early",
    Level.BACKLOG: "the older escalations that wait are deleted, and evidence of alerts is not kept any more",
    Level.FRAMES: "frames are dropped at ingress",
}


class Relief:
    """Deletes records early, by level. Everything that nobody has read is told as drops first.

    Parameters
    ----------
    sink
        Writes the drops.
    """

    def __init__(self, topology: Topology, clients: Clients, sink: Sink, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.topology, self.clients, self.sink = topology, clients, sink
        config = topology.config
        self._region = Clients(config.link.region, f"{topology.site}.disk") if config.link is not None else None
        self._said = threading.Event()
        self._clock, self._shed_at = clock, float("-inf")

    def __call__(self, level: Level) -> None:
        """Make room; what cannot be asked or deleted now is tried again the next time."""
        try:
            self._relieve(level)
            self._said.clear()
        except (BrokerUnavailable, KafkaException, SinkBroken, NotDelivered, TimeoutError) as error:
            if not self._said.is_set():
                log.warning("no room could be made on the disk: %s", error)
            self._said.set()

    def _relieve(self, level: Level) -> None:
        lanes = [self.topology.topic(base) for base in ("escalations", "escalations.alerts")]
        frames = self.topology.topic("frames")
        info = self.clients.cluster([topic.name for topic in (*lanes, frames)])
        if level >= Level.PICTURES:
            read = settled_offsets(self.clients, self.topology.group(Role.LEAF))
            answered = {place: each.offset for place, each in read.items() if place[0] == frames.name}
            self._delete([frames], answered, "answered")
        if level >= Level.BACKLOG and self._clock() - self._shed_at >= SHED_S:  # before the region is asked, which may be away
            self._shed(lanes[0], info)
            self._shed_at = self._clock()
        self._delete(lanes, self._carried(lanes, info), "carried")

    def _carried(self, lanes: list[Topic], info: ClusterInfo) -> dict[tuple[str, int], int]:
        """Up to where the link has carried everything of each partition. Raises `BrokerUnavailable` if the region does not answer."""
        if self._region is None:
            return {}
        view = region_view(self.topology.config)
        known = read_positions(self._region, view.role(Role.LINK).write("up.positions", self.topology.site))
        found = {}
        for topic in lanes:
            for partition in range(topic.partitions):
                position = known.get((info.id, topic.name, partition))
                if position is not None and position.topic_uuid == info.topics[topic.name][0]:
                    gaps = position.backfill.pairs
                    found[topic.name, partition] = min(position.next_offset, gaps[0][0]) if gaps else position.next_offset
        return found

    def _shed(self, topic: Topic, info: ClusterInfo) -> None:
        """Delete the older half of a lane, carried or not: a drop says which offsets, before they go."""
        there = bounds(self.clients, [topic], timeout_s=_ASK_S)
        halves = {place: low + (high - low + 1) // 2 for place, (low, high) in there.items() if high > low}
        now, drops = dt.datetime.now(dt.UTC), self.topology.role(Role.LEAF).write("drops")
        for place, end in halves.items():
            name = foreign_id(info.id, info.topics[topic.name][0], place[1], there[place][0])
            drop = Drop(
                source=name.source,
                epoch=name.epoch,
                site=self.topology.site,
                stage=STAGE,
                reason=REASON,
                ranges=Intervals([(there[place][0], end - 1)]).to_ranges(),
            )
            self.sink.write_blocking([outputs.drop(drops, drop, now)])
        self._delete([topic], halves, "shed")

    def _delete(self, topics: list[Topic], ends: dict[tuple[str, int], int], why: str) -> None:
        there = bounds(self.clients, topics, timeout_s=_ASK_S)
        wanted = {place: min(end, there[place][1]) for place, end in ends.items() if place in there and end > there[place][0]}
        if not wanted:
            return
        admin = self.clients.admin()
        places = [TopicPartition(*place, end) for place, end in wanted.items()]
        for place, future in admin.delete_records(places, request_timeout=_ASK_S).items():
            future.result(_ASK_S + 1)
            count = wanted[place.topic, place.partition] - there[place.topic, place.partition][0]
            base = next(topic.base for topic in topics if topic.name == place.topic)
            telemetry.DISK_DELETED.labels(base, why).inc(count)
        log.info("records were deleted early", extra={"why": why, "partitions": len(wanted)})
