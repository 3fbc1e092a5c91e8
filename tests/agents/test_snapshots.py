"""Snapshots of the resolver's memory, on a real Kafka: with one, without one, or with a bad one, the memory is the same; only how much is
read differs."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicPartition

import agents.snapshots
from agents.memory import Memory
from agents.snapshots import LAYOUT, Restored, Snapshots, Snapshotter
from schemas.config import Kafka, Topics
from schemas.detections import Detections
from schemas.identity import alert_id
from schemas.messages import RANK, Alert, AlertState, Result, Status, Tier, Verdict
from schemas.resolution import result_of, unanswered
from schemas.rules import Zone
from schemas.snapshots import Snapshot
from streams import outputs
from streams.clients import Clients
from streams.cluster import create_topics
from streams.outputs import SNAPSHOT_KEY
from streams.partition import partition_of
from streams.restore import to_end
from streams.sink import Output, Sink
from streams.topology import Topology

PARTITION = 1
SOURCE = next(f"cam-{n}" for n in range(99) if partition_of(f"cam-{n}", 2) == PARTITION)


def small() -> Memory:
    return Memory(recent=20, asked=10, waiting=10, keep_s=1e6)


class Rig:
    """The logs of one site with two partitions, of which the tests use one."""

    def __init__(self, tools: ModuleType, kafka: Kafka, prefix: str) -> None:
        self.tools, self.kafka = tools, kafka
        config = tools.leaf_site(kafka=kafka, topics=Topics(prefix=prefix, partitions=2))
        self.clients = Clients(kafka, "test")
        self.topology = Topology(config)
        create_topics(self.topology, self.clients)
        self.results, self.alerts, self.memory = (self.topology.topic(base) for base in ("results", "alerts", "resolver.memory"))
        self.snapshots = Snapshots(self.clients, self.results, self.alerts, self.memory, small, "leaf-1")
        self.next = 0

    def put(self, written: Sequence[Output]) -> None:
        async def write() -> None:
            sink = Sink(self.clients, linger_ms=5)
            try:
                await sink.write(written)
            finally:
                sink.close()

        asyncio.run(write())

    def result(self, n: int, tier: Tier = Tier.LEAF, status: Status = Status.FINAL) -> Result:
        record = f"{SOURCE}/e/{n}"
        verdict = Verdict(
            id=record,
            source=SOURCE,
            captured_at=self.tools.NOON,
            status=Status.PROVISIONAL if status is Status.UNANSWERED else status,
            detections=Detections([self.tools.person()]),
            confidence=0.5,
            tier=tier,
            site="leaf-1",
            rank=RANK[tier],
            generation=0,
            model="m",
            model_digest="d" * 64,
            deadline_ms=10_000 if status in (Status.PROVISIONAL, Status.UNANSWERED) else None,
        )
        return result_of(unanswered(verdict) if status is Status.UNANSWERED else verdict)

    def alert(self, n: int) -> Alert:
        record = f"{SOURCE}/e/{n}"
        return Alert(
            id=alert_id("r", record),
            rule="r",
            source=SOURCE,
            site="leaf-1",
            record=record,
            captured_at=self.tools.NOON,
            state=AlertState.RAISED,
            version=0,
            label="person",
            min_score=0.5,
            zone=Zone(),
            seen=Detections([self.tools.person()]),
            score=0.9,
            held_s=0.0,
            model_digest="d" * 64,
            deadline_ms=1000,
        )

    def live(self, count: int = 120) -> None:
        """So many more records as a resolver writes them: some wait, some are answered, a few raised alerts."""
        written = []
        for n in range(self.next, self.next + count):
            kind = n % 6
            if kind < 3:
                written.append(outputs.answer(self.results, self.result(n)))
            else:
                written.append(outputs.answer(self.results, self.result(n, status=Status.PROVISIONAL)))
                if kind == 4:
                    written.append(outputs.answer(self.results, self.result(n, status=Status.UNANSWERED)))
                if kind == 5:
                    written.append(outputs.answer(self.results, self.result(n, Tier.REGION)))
            if n % 10 == 0:
                written.append(outputs.alert(self.alerts, self.alert(n)))
        self.next += count
        self.put(written)

    def snapshot(self) -> list[Output]:
        return self.snapshots.advance([PARTITION], dt.datetime.now(dt.UTC))

    def restore(self) -> Restored:
        return self.snapshots.restore([PARTITION])[PARTITION]

    def told(self) -> Snapshot:
        """The snapshot that holds."""
        return Snapshot.from_bytes([r.value() for r in to_end(self.clients, [(self.memory.name, PARTITION)]) if r.key() == b"snapshot"][-1])

    def tell(self, **changes: Any) -> None:
        self.put([outputs.snapshot(self.memory, msgspec.structs.replace(self.told(), **changes), "leaf-1", dt.datetime.now(dt.UTC))])


@pytest.fixture
def rig(tools: ModuleType, kafka: Kafka, prefix: str) -> Rig:
    return Rig(tools, kafka, prefix)


def content(memory: Memory) -> Any:
    state = memory.dump()
    return [*map(_plain, state.settled)], sorted(state.kept), sorted(state.due), sorted(state.alerts)


def _plain(settled: dict[str, dict[str, list[int]]]) -> Any:
    return sorted((stream, head, flat) for stream, heads in settled.items() for head, flat in heads.items())


def by_hand(rig: Rig) -> Memory:
    """The whole logs, decoded and joined one by one as live work does."""
    memory = small()
    for record in to_end(rig.clients, [(rig.results.name, PARTITION)]):
        memory.learn(Result.from_bytes(record.value()), record.timestamp()[1])
    for record in to_end(rig.clients, [(rig.alerts.name, PARTITION)]):
        memory.keep_alert(Alert.from_bytes(record.value()))
    return memory


def test_with_a_snapshot_only_the_end_of_the_logs_is_read_and_the_memory_is_the_same(rig: Rig) -> None:
    rig.live()
    without = rig.restore()
    assert (without.fresh, content(without.memory)) == (True, content(by_hand(rig)))
    assert without.records > 120
    for _ in range(3):  # each made from the one before
        rig.put(rig.snapshot())
        taken = rig.restore()
        assert (taken.fresh, taken.records) == (False, 0)
        assert content(taken.memory) == content(by_hand(rig))
        rig.live(60)
        taken = rig.restore()
        assert 60 <= taken.records < 120
        assert content(taken.memory) == content(by_hand(rig))
    assert rig.snapshots.restore([0])[0].records == 0, "the other partition is another one"


def test_parts_are_split_and_put_together_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.snapshots, "PART_BYTES", 500)
    rig.live()
    written = rig.snapshot()
    assert len(written) > 4
    assert [output.partition for output in written] == [PARTITION] * len(written)
    rig.put(written)
    assert not rig.restore().fresh


def test_a_crash_before_a_snapshot_was_whole_leaves_the_one_before(rig: Rig) -> None:
    rig.live()
    rig.put(rig.snapshot())
    rig.live(60)
    unfinished = rig.snapshot()
    rig.put(unfinished[:-1])
    taken = rig.restore()
    assert not taken.fresh
    assert taken.records >= 60, "what the unfinished one would have held is read"
    assert content(taken.memory) == content(by_hand(rig))
    rig.put(unfinished[-1:])
    assert rig.restore().records == 0


def broken_part(rig: Rig) -> None:
    told = rig.told()
    rig.put([outputs.snapshot_part(rig.memory, told, 0, b"torn", "leaf-1", dt.datetime.now(dt.UTC))])


def another_version(rig: Rig) -> None:
    rig.tell(layout=LAYOUT + 1)


def another_state(rig: Rig) -> None:
    data = b"something else"
    rig.put([outputs.snapshot_part(rig.memory, rig.told(), 0, data, "leaf-1", dt.datetime.now(dt.UTC))])
    rig.tell(digest=hashlib.sha256(data).hexdigest(), parts=1)


def another_cluster(rig: Rig) -> None:
    rig.tell(cluster="another")


def another_partition(rig: Rig) -> None:
    rig.tell(partition=PARTITION)  # itself, to be sure that telling breaks nothing
    assert not rig.restore().fresh
    moved = msgspec.structs.replace(rig.told(), partition=0)
    rig.put([msgspec.structs.replace(outputs.snapshot(rig.memory, moved, "leaf-1", dt.datetime.now(dt.UTC)), at=PARTITION)])


def unreadable(rig: Rig) -> None:
    rig.put([Output(rig.memory, "leaf-1", SNAPSHOT_KEY, b"{}", [], at=PARTITION)])


def a_shorter_log(rig: Rig) -> None:
    told = rig.told()
    rig.tell(logs=tuple(msgspec.structs.replace(log, next_offset=log.next_offset + 1000) for log in told.logs))


def a_log_that_was_cut_and_written_anew(rig: Rig) -> None:
    rig.tell(logs=tuple(msgspec.structs.replace(log, mark="0" * 32) for log in rig.told().logs))


@pytest.mark.parametrize(
    "spoil",
    [
        broken_part,
        another_version,
        another_state,
        another_cluster,
        another_partition,
        unreadable,
        a_shorter_log,
        a_log_that_was_cut_and_written_anew,
    ],
)
def test_a_snapshot_that_does_not_hold_is_passed_over_and_the_logs_are_read(rig: Rig, spoil: Callable[[Rig], None]) -> None:
    rig.live()
    rig.put(rig.snapshot())
    assert not rig.restore().fresh
    spoil(rig)
    taken = rig.restore()
    assert taken.fresh
    assert content(taken.memory) == content(by_hand(rig))
    rig.put(rig.snapshot())  # and the next one is good again
    assert not rig.restore().fresh


def test_a_recreated_topic_is_not_taken_for_the_old_one(rig: Rig, eventually: Callable[..., None]) -> None:
    rig.live()
    rig.put(rig.snapshot())
    known = rig.restore().memory
    assert known.improved(rig.result(0)) is None
    admin = rig.clients.admin()
    admin.delete_topics([rig.results.name])[rig.results.name].result(20)
    eventually(lambda: rig.results.name not in rig.clients.cluster([rig.results.name]).topics)
    create_topics(rig.topology, rig.clients)
    eventually(lambda: rig.results.name in rig.clients.cluster([rig.results.name]).topics)
    taken = rig.restore()
    assert taken.fresh
    assert taken.memory.improved(rig.result(0)) is not None, "its result is gone: it must be written again"


def test_what_retention_has_taken_is_still_known(rig: Rig) -> None:
    rig.live()
    rig.put(rig.snapshot())
    whole = content(rig.restore().memory)
    end = next(log.next_offset for log in rig.told().logs if log.topic == rig.results.name)
    place = TopicPartition(rig.results.name, PARTITION, end)
    admin = rig.clients.admin()  # it must live as long as its answer is waited for
    admin.delete_records([place])[place].result(20)
    taken = rig.restore()
    assert (taken.fresh, taken.records, content(taken.memory)) == (False, 0, whole)
    rig.live(12)
    assert rig.restore().records >= 12


def test_a_result_that_was_not_written_is_in_no_snapshot(rig: Rig) -> None:
    """What a running resolver remembers is ahead of its log; a snapshot of that would make a verdict old whose result never was."""
    rig.live()
    running = rig.restore()
    assert running.memory.learn(rig.result(9999)) is not None
    rig.put(rig.snapshot())
    assert rig.restore().memory.improved(rig.result(9999)) is not None


def test_snapshots_are_written_when_enough_has_come_and_what_fails_is_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.live()
    grown = {PARTITION: 120, 0: 99}

    async def drive() -> None:
        sink = Sink(rig.clients)
        try:
            service = Snapshotter(rig.snapshots, sink, grown, every=100)
            missing = msgspec.structs.replace(rig.results, name="nowhere")
            nothing = Snapshotter(Snapshots(rig.clients, missing, rig.alerts, rig.memory, small, "leaf-1"), sink, grown, every=100)
            await nothing.write_due()
            assert grown == {PARTITION: 120, 0: 99}
            await service.write_due()
            assert grown == {PARTITION: 0, 0: 99}
            await service.write_due()
        finally:
            sink.close()

    asyncio.run(drive())
    assert "no snapshot could be written" in caplog.text
    assert not rig.restore().fresh
    manifests = [record for record in to_end(rig.clients, [(rig.memory.name, PARTITION)]) if record.key() == b"snapshot"]
    assert len(manifests) == 1
    assert [*to_end(rig.clients, [(rig.memory.name, 0)])] == []
