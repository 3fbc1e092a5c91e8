"""The guard of a low disk: which level a disk asks for, and what is deleted of a real cluster's topics, with its explanation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Disk, Link, SiteConfig, Topics
from schemas.messages import Drop, Position, Ranges
from streams.account_read import read_account
from streams.clients import Clients
from streams.cluster import create_topics
from streams.disk import HOLD_S, DiskGuard, Level, Levels, Relief, Usage, share_bytes, usage
from streams.sink import Sink
from streams.topology import Role, Topology, region_view

TOTAL = 1_000_000


@settings(deadline=None)
@given(free=st.lists(st.integers(0, TOTAL), min_size=1, max_size=60), low=st.integers(5, 30), very_low=st.integers(0, 30))
def test_levels_rise_at_once_and_fall_one_at_a_time(free: list[int], low: int, very_low: int) -> None:
    levels = Levels(f"{low}%", f"{very_low}%")
    before = Level.NORMAL
    for second, now in enumerate(free):
        levels.update(Usage(TOTAL, now), float(second))
        wanted = max((level for level in Level if level and now < levels.threshold(level, TOTAL)), default=Level.NORMAL)
        assert levels.level >= wanted, "what the disk asks for is done without at once"
        assert levels.level == wanted or levels.level in (before, before - 1)
        before = levels.level
    for second in range(len(free), len(free) + 6 * int(HOLD_S) + 6):
        levels.update(Usage(TOTAL, TOTAL), float(second))
    assert levels.level is Level.NORMAL, "it climbs all the way back"


def test_a_level_is_not_left_at_its_own_edge() -> None:
    """Free space that swings around a threshold must not switch evidence on and off each second."""
    levels = Levels("10%", "2%")
    changes = [levels.update(Usage(TOTAL, 79_900 if second % 2 else 80_100), float(second)) for second in range(100)]
    assert levels.level is Level.EVIDENCE
    assert sum(changes) == 2, "into the first level, then into the second"


def test_thresholds_lie_between_low_and_very_low() -> None:
    levels = Levels("100 MiB", "20 MiB")
    assert [levels.threshold(level, 1 << 40) >> 20 for level in Level if level] == [100, 80, 60, 40, 20]
    assert share_bytes("2 GiB", 0) == 2 << 30
    assert share_bytes("512", 0) == 512
    assert levels.threshold(Level.FRAMES, 0) == 20 << 20


def test_the_guard_measures_a_real_disk_and_says_each_change_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [Usage(TOTAL << 20, free << 20) for free in (500_000, 95_000, 95_000, 10_000)]
    relieved: list[Level] = []
    now = [0.0]
    guard = DiskGuard(Disk(), tmp_path, relieved.append, measure=lambda _: found.pop(0), clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "headwater.disk"):
        while found:
            guard.look()
            guard.make_room()
            now[0] += 4
    assert [record.level for record in caplog.records] == [Level.CARRIED, Level.FRAMES]  # type: ignore[attr-defined]
    assert relieved == [Level.CARRIED], "not more often than Kafka frees"
    assert not any(guard.allows(lane) for lane in ("escalations", "alerts.evidence", "escalations.alerts", "frames"))
    assert all(guard.allows(lane) for lane in ("alerts", "verdicts", "results", "drops"))
    real = usage(tmp_path)
    assert 0 < real.free <= real.total
    gone = DiskGuard(Disk(), tmp_path / "gone", relieved.append)
    with caplog.at_level(logging.ERROR, "headwater.disk"):
        caplog.clear()
        gone.look()
        gone.look()
    assert len(caplog.records) == 1
    assert gone.allows("frames"), "a disk that cannot be seen is not called full"


def test_a_full_disk_is_said_plainly_and_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [Usage(1 << 40, free) for free in (1 << 40, 0, 0, 4096, 1 << 39)]
    guard = DiskGuard(Disk(), tmp_path, lambda _: None, measure=lambda _: found.pop(0))
    with caplog.at_level(logging.INFO, "headwater.disk"):
        while found:
            guard.look()
    told = [record.getMessage() for record in caplog.records if "level" not in vars(record)]
    assert told[0] == (
        f"disk full: {tmp_path} has 0 bytes free: Kafka cannot write and stops; what it acknowledged is safe, the rest waits for room"
    )
    assert told[1:] == [f"the disk of {tmp_path} has room again"]


class Leaf:
    """A leaf whose region is the same cluster under other names."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.config = SiteConfig(
            name="leaf-1", tier="leaf", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2), link=Link(region=rig.kafka)
        )
        self.topology, self.clients = Topology(self.config), Clients(rig.kafka, "test")
        self.region = region_view(self.config)
        create_topics(self.topology, self.clients)
        create_topics(self.region, self.clients)
        self.sink = Sink(self.clients)
        self.lane, self.alerts, self.frames = (self.topology.topic(base) for base in ("escalations", "escalations.alerts", "frames"))
        self.info = self.clients.cluster([self.lane.name, self.frames.name])
        self.relief = Relief(self.topology, self.clients, self.sink)

    def carried(self, partition: int, next_offset: int, backfill: tuple[tuple[int, int], ...] = (), uuid: str | None = None) -> None:
        position = Position(
            cluster=self.info.id,
            topic=self.lane.name,
            topic_uuid=uuid or self.info.topics[self.lane.name][0],
            partition=partition,
            next_offset=next_offset,
            backfill=Ranges(backfill),
            writer="link",
        )
        topic = self.region.role(Role.LINK).write("up.positions", "leaf-1")
        self.rig.put(topic, [(f"{self.lane.name}/{partition}".encode(), position.to_bytes(), None)])

    def begins(self, topic: Any, partition: int) -> int:
        from streams.reader import bounds

        return bounds(self.clients, [topic])[topic.name, partition][0]


@pytest.fixture
def leaf(rig: Any) -> Iterator[Leaf]:
    found = Leaf(rig)
    yield found
    found.sink.close()


def test_what_was_carried_goes_first_and_nothing_else(leaf: Leaf) -> None:
    for partition in (0, 1):
        leaf.rig.put(leaf.lane, [b"evidence"] * 20, partition)
    leaf.carried(0, 18, ((12, 14),))  # newest first: what waits behind is not carried yet
    leaf.carried(1, 18, uuid="of-a-topic-that-was-there-before")
    leaf.relief(Level.CARRIED)
    assert (leaf.begins(leaf.lane, 0), leaf.begins(leaf.lane, 1)) == (12, 0)
    assert not leaf.rig.rows(leaf.topology.topic("drops")), "nothing was lost"


def test_answered_frames_and_the_older_backlog_go_next_and_are_explained(leaf: Leaf) -> None:
    leaf.rig.put(leaf.frames, [b"frame"] * 10, 1)
    leaf.rig.put(leaf.lane, [b"evidence"] * 20, 1)
    leaf.rig.put(leaf.alerts, [b"evidence of an alert"] * 4, 1)
    leaf.rig.commit(leaf.topology.group(Role.LEAF), leaf.frames, {1: 7})
    leaf.relief(Level.PICTURES)
    assert (leaf.begins(leaf.frames, 1), leaf.begins(leaf.lane, 1)) == (7, 0)
    leaf.relief(Level.BACKLOG)
    assert leaf.begins(leaf.lane, 1) == 10
    assert leaf.begins(leaf.alerts, 1) == 0, "what waits about alerts is kept"
    (drop,) = [Drop.from_bytes(message.value()) for message in leaf.rig.rows(leaf.topology.topic("drops"))]
    assert (drop.stage, drop.reason, drop.ranges.pairs) == ("disk", "disk", ((0, 9),))
    assert drop.epoch == f"{leaf.info.id}/{leaf.info.topics[leaf.lane.name][0]}/1"
    assert not read_account(leaf.topology, leaf.clients).lines, "copies for the region: the records have their results"
