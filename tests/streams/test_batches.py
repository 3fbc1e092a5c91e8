"""The source against a real broker: what is handed over, what is committed, and what happens when partitions, retention or room move."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from confluent_kafka import Consumer, Producer

from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from schemas.config import Kafka
from streams import batches
from streams.batches import Batch, BatchSource, Lost, SourceFailed
from streams.handover import Handover
from streams.message import UNREADABLE
from streams.topology import Topic

LIMIT_S = 30.0


class Hands:
    """Takes up every batch that is offered and keeps it; `finish` ends it from any thread."""

    def __init__(self) -> None:
        self.offered: list[Batch] = []
        self.changed = threading.Condition()

    async def feed(self, batch: Batch) -> None:
        batch.take()
        with self.changed:
            self.offered.append(batch)
            self.changed.notify_all()

    def wait(self, count: int) -> list[Batch]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.offered) >= count, LIMIT_S), f"{len(self.offered)} of {count} batches came"
            return list(self.offered)

    def ranges(self) -> list[tuple[int, int]]:
        return [(batch.first, batch.last) for batch in self.offered]


def source(rig: Any, topic: Topic, feed: Any, **options: Any) -> Callable[[], BatchSource]:
    options = {"commit_interval_s": 0.1, "max_records": 10, "in_flight": 4, "drain_s": 0.2, **options}
    options["settings"] = {"heartbeat.interval.ms": 100, **options.get("settings", {})}  # rebalances are noticed sooner
    return lambda: BatchSource(rig.clients, [topic], f"{rig.prefix}group", feed, **options)


class Held(NamedTuple):
    """A source that has held its one batch since the first test of this module."""

    host: Any
    hands: Hands
    revoked: list[Any]
    since_s: float


@pytest.fixture(scope="module", autouse=True)
def held(kafka: Kafka, make_rig: Callable[[Kafka], Any]) -> Iterator[Held]:
    """It is looked at in the last test: meanwhile `max.poll.interval.ms` passes, and the others need not wait for it."""
    rig = make_rig(kafka)
    topic = rig.topic("in")
    rig.put(topic, [b"%d" % number for number in range(500)])
    short = {"max.poll.interval.ms": 6000, "session.timeout.ms": 6000}
    hands, revoked = Hands(), []
    with rig.Host(source(rig, topic, hands.feed, in_flight=1, on_revoked=revoked.append, settings=short)) as host:
        hands.wait(1)
        rig.until(lambda: host.service._paused, "a full source")
        yield Held(host, hands, revoked, time.monotonic())


# ---- rebalances


def test_nothing_is_lost_while_workers_come_and_go(rig: Any) -> None:
    """Ids are counted: two workers over four partitions, one of which joins and leaves under load, again and again."""
    topic = rig.topic("in", partitions=4)
    group = f"{rig.prefix}group"
    seen: list[tuple[bytes, str]] = []
    sent: list[bytes] = []
    over = threading.Event()

    def publish() -> None:
        producer = Producer({"bootstrap.servers": rig.servers, "linger.ms": 1})
        while not over.wait(0.005):
            for _ in range(20):
                value = b"%d" % len(sent)
                producer.produce(topic.name, value, partition=len(sent) % 4)
                sent.append(value)
            producer.poll(0)
        assert producer.flush(LIMIT_S) == 0

    def worker(name: str) -> Any:
        async def feed(batch: Batch) -> None:
            if batch.take():
                await asyncio.sleep(0)
                seen.extend((record.value(), name) for record in batch.records)
                batch.done()

        return rig.Host(source(rig, topic, feed, max_records=50, commit_interval_s=0.5, drain_s=LIMIT_S))

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        with worker("stays"):
            for name in ("guest 1", "guest 2", "guest 3", "guest 4"):
                with worker(name) as guest:
                    rig.until(lambda: len(guest.service.assigned) == 2, f"partitions for {name}")
                    rig.until(lambda name=name: sum(who == name for _, who in seen[-2000:]) > 200, f"records for {name}")
            over.set()
            publisher.join(LIMIT_S)
            rig.until(lambda: len({value for value, _ in seen}) >= len(sent), "every record")
            ends = {partition: rig.end(topic, partition) for partition in range(4)}
            rig.until(lambda: rig.committed(group, topic) == ends, "the commits to reach the end")
    finally:
        over.set()
        publisher.join(LIMIT_S)
    assert len(sent) > 2000
    assert {value for value, _ in seen} == set(sent)
    assert {who for _, who in seen} == {"stays", "guest 1", "guest 2", "guest 3", "guest 4"}
    # Every hand-over drained and committed: what is read twice is at most what was in flight when a partition moved.
    assert len(seen) - len(sent) <= 8 * 4 * 50


def test_a_revoked_partition_drains_and_commits_before_the_next_owner_starts(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draining = threading.Event()
    drain = BatchSource._drain

    def seen(self: BatchSource, places: Any) -> bool:
        draining.set()
        return drain(self, places)

    monkeypatch.setattr(BatchSource, "_drain", seen)
    topic = rig.topic("in", partitions=2)
    group = f"{rig.prefix}group"
    for partition in range(2):
        rig.put(topic, [b"%d" % number for number in range(5)], partition)
    first, second = Hands(), Hands()
    with rig.Host(source(rig, topic, first.feed, drain_s=LIMIT_S)):
        held = first.wait(2)
        assert not rig.committed(group, topic)
        with rig.Host(source(rig, topic, second.feed)) as newcomer:
            assert draining.wait(LIMIT_S)  # the newcomer asks for a share, and what is in work is waited for
            assert not newcomer.service.assigned
            assert not rig.committed(group, topic)
            for batch in held:
                batch.done()
            rig.until(lambda: newcomer.service.assigned, "a share for the newcomer")
            rig.until(lambda: rig.committed(group, topic) == {0: 5, 1: 5}, "the commit of the drained batches")
            rig.put(topic, [b"new"], 0)
            rig.put(topic, [b"new"], 1)
            first.wait(3)[2].done()
            second.wait(1)
    assert second.ranges() == [(5, 5)]  # nothing a second time


# ---- commits and starts


def test_only_the_contiguous_prefix_is_committed(rig: Any) -> None:
    topic = rig.topic("in", partitions=2)
    group = f"{rig.prefix}group"
    rig.put(topic, [b"%d" % number for number in range(40)], 0)
    rig.put(topic, [b"marker"], 1)
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed, in_flight=9)):
        rig.until(lambda: sum(len(batch.records) for batch in hands.offered) == 41, "all records")
        marker = next(batch for batch in hands.offered if batch.partition == 1)
        mine = [batch for batch in hands.offered if batch.partition == 0]
        assert len(mine) >= 4
        for batch in mine[1:-1]:
            batch.done()
        marker.done()
        rig.until(lambda: 1 in rig.committed(group, topic), "the commit of the other partition")
        assert rig.committed(group, topic) == {1: 1}  # a commit was made, and the gap held this partition back
        mine[0].done()
        rig.until(lambda: rig.committed(group, topic).get(0) == mine[-1].first, "the prefix")
        last = mine[-1].first
    again = Hands()
    with rig.Host(source(rig, topic, again.feed, in_flight=9)):
        found = again.wait(1)
    assert (found[0].partition, found[0].first) == (0, last)  # the batch that was not done, from its start


def test_a_partition_without_a_commit_starts_at_its_beginning(rig: Any) -> None:
    topic = rig.topic("in")
    rig.put(topic, [b"%d" % number for number in range(7)])
    rig.trim(topic, 2)
    lost: list[Lost] = []
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed, on_lost=lost.append)):
        assert hands.wait(1)[0].first == 2
    assert not lost  # nobody was promised what was there before


def test_a_commit_below_the_low_watermark_is_a_loss_that_is_told(rig: Any) -> None:
    topic = rig.topic("in")
    group = f"{rig.prefix}group"
    rig.put(topic, [b"%d" % number for number in range(60)])
    rig.commit(group, topic, {0: 30})
    rig.trim(topic, 50)
    lost: list[Lost] = []
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed, on_lost=lost.append)):
        found = hands.wait(1)
        assert lost == [Lost(topic, 0, 30, 49)]
        assert found[0].first == 50
        found[0].done()
        rig.until(lambda: rig.committed(group, topic) == {0: 60}, "the commit")


def test_retention_that_overtakes_a_running_source_is_told_too(rig: Any) -> None:
    """The broker answers `offset out of range`: the lost range is told, and this partition and the others go on."""
    topic = rig.topic("in", partitions=2)
    small = {"queued.min.messages": 1, "fetch.message.max.bytes": 1000}
    rig.put(topic, [b"x" * 900] * 200, 0)
    rig.put(topic, [b"x"] * 5, 1)
    lost: list[Lost] = []
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed, max_records=1, in_flight=2, on_lost=lost.append, settings=small)) as host:
        hands.wait(2)
        rig.until(lambda: host.service._paused, "a full source")  # what was fetched ahead is thrown away with the pause
        rig.trim(topic, 150, 0)
        done = 0
        while sum(batch.partition == 1 or batch.last >= 150 for batch in hands.offered) < 55:
            assert host.crash is None
            for batch in hands.wait(done + 1)[done:]:
                batch.done()
                done += 1
    before = {batch.last for batch in hands.offered if batch.partition == 0 and batch.last < 150}
    assert len(lost) == 1
    assert (lost[0].partition, lost[0].last) == (0, 149)
    assert lost[0].first == max(before) + 1
    assert {batch.last for batch in hands.offered if batch.partition == 0} == {*range(lost[0].first), *range(150, 200)}


def test_a_log_that_was_cut_behind_the_commit_is_read_again(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    """After a power cut a log may be shorter than what was committed: the source must not stand still for ever."""
    topic = rig.topic("in")
    rig.put(topic, [b"%d" % number for number in range(5)])
    rig.commit(f"{rig.prefix}group", topic, {0: 90})
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed)):
        assert hands.wait(1)[0].first == 0
    assert "cut behind our commit" in caplog.text


def test_after_a_power_cut_what_was_written_since_is_read(make_rig: Callable[[Kafka], Any], tmp_path: Path) -> None:
    """A real broker is killed, the tail of its log cut off, and records are written: those between the cut and the commit are new."""
    settings = BrokerSettings(name="cut", folder=tmp_path / "cut", port=0)
    broker = Broker(settings).start()
    try:
        rig = make_rig(broker.kafka)
        topic, group = rig.topic("in"), f"{rig.prefix}group"
        rig.put(topic, [b"old %d" % number for number in range(15)], apart=True)
        seen: list[tuple[int, bytes]] = []

        async def feed(batch: Batch) -> None:
            if batch.take():
                seen.extend((record.offset(), record.value() or b"") for record in batch.records)
                batch.done()

        with rig.Host(source(rig, topic, feed)):
            rig.until(lambda: rig.committed(group, topic) == {0: 15}, "the commit")
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        rig.until(lambda: broker.poll() is not None, "the end of the broker")
        broker.stop()
        (log,) = (tmp_path / "cut" / "data" / f"{topic.name}-0").glob("*.log")
        os.truncate(log, log.stat().st_size * 2 // 3)
        broker = Broker(msgspec.structs.replace(settings, port=broker.settings.port)).start()
        cut = rig.end(topic)
        assert 0 < cut < 13
        seen.clear()
        new, written = [b"new %d" % number for number in range(40)], 40
        rig.put(topic, new)
        assert rig.end(topic) > 15  # the commit is within the log again: by its offset alone nothing would be told
        with rig.Host(source(rig, topic, feed)):
            rig.until(lambda: len(seen) >= written, "what is new")
            rig.until(lambda: rig.committed(group, topic) == {0: cut + written}, "the commit of what is new")
        assert seen == list(enumerate(new, cut))  # from the cut on, and nothing before it again
        seen.clear()
        rig.put(topic, [b"last"])
        with rig.Host(source(rig, topic, feed)):  # an ordinary start since
            rig.until(lambda: rig.committed(group, topic) == {0: cut + written + 1}, "the last commit")
        assert seen == [(cut + written, b"last")]
    finally:
        broker.stop()


def test_a_source_whose_broker_stood_still_goes_on(
    make_rig: Callable[[Kafka], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So long that the group is lost; no new client is made while none could do better."""
    monkeypatch.setattr(batches, "REJOIN_S", (1.0, 4.0))
    with Broker(BrokerSettings(name="still", folder=tmp_path / "still", port=0)) as broker:
        rig = make_rig(broker.kafka)
        topic, group = rig.topic("in"), f"{rig.prefix}group"
        rig.put(topic, [b"%d" % number for number in range(10)])
        seen: list[int] = []

        async def feed(batch: Batch) -> None:
            if batch.take():
                seen.extend(record.offset() for record in batch.records)
                batch.done()

        assert broker.pid is not None
        with rig.Host(source(rig, topic, feed)):
            rig.until(lambda: rig.committed(group, topic) == {0: 10}, "the commit")
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                rig.until(lambda: "partitions lost" in caplog.text, "a group that went on without it")
                begun = time.monotonic()
                rig.until(lambda: time.monotonic() - begun > 4, "a while")
                assert "a new client tries" not in caplog.text
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            rig.put(topic, [b"%d" % number for number in range(10, 30)])
            rig.until(lambda: rig.committed(group, topic) == {0: 30}, "the commit of what came afterwards")
    assert sorted(set(seen)) == list(range(30))


@pytest.mark.parametrize("written", [5, 40])  # fewer records than the commit says, and more
def test_a_topic_that_was_made_anew_is_read_from_its_beginning(rig: Any, written: int) -> None:
    """A commit that is sent after the topic was replaced is about the old one: by its offset and epoch alone nothing would tell."""
    topic, group = rig.topic("in"), f"{rig.prefix}group"
    rig.put(topic, [b"old %d" % number for number in range(20)])
    old, new = Hands(), Hands()
    with rig.Host(source(rig, topic, old.feed, commit_interval_s=LIMIT_S)):
        for batch in old.wait(2):
            batch.done()
        rig.delete(topic)
        rig.make(topic)
        rig.put(topic, [b"new %d" % number for number in range(written)])
    assert rig.committed(group, topic) == {0: 20}
    with rig.Host(source(rig, topic, new.feed, max_records=written)):
        (batch,) = new.wait(1)
    assert [record.value() for record in batch.records] == [b"new %d" % number for number in range(written)]


def test_work_of_partitions_that_were_lost_is_waited_for(declared: Callable[..., Topic]) -> None:
    """What is restored from what was written must find what is still being written."""
    topic, handed = declared("in", 2), Handover(4, threading.Event())
    record: Any = SimpleNamespace(offset=lambda: 7, leader_epoch=lambda: 0)
    taken, untaken, other = handed.batches([(topic, 0, [record]), (topic, 0, [record]), (topic, 1, [record])])
    taken.take()
    other.take()
    handed.forget([taken.place, other.place])
    assert not handed.settled([taken.place], lambda: 0.0)
    waiting = threading.Thread(target=lambda: handed.settled([taken.place], lambda: LIMIT_S))
    waiting.start()
    taken.done()
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    assert handed.settled([untaken.place], lambda: 0.0)  # nobody will take it any more
    assert not handed.settled([other.place], lambda: 0.0)


# ---- room


def test_a_source_that_its_group_does_not_take_in_tries_with_a_new_client(
    rig: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A member that never polls holds the group up: the broker waits for it before it answers those who join."""
    monkeypatch.setattr(batches, "REJOIN_S", (0.5, 2.0))
    topic = rig.topic("in")
    rig.put(topic, [b"%d" % number for number in range(20)])
    settings = {
        "bootstrap.servers": rig.kafka.bootstrap_servers,
        "group.id": f"{rig.prefix}group",
        "partition.assignment.strategy": "range",
    }
    idle = Consumer(settings)
    idle.subscribe([topic.name])
    rig.until(lambda: idle.poll(0.1) is None and idle.assignment(), "a member")
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed)):
        rig.until(lambda: caplog.text.count("a new client tries") >= 2, "a second new client")
        assert not hands.offered
        idle.close()
        hands.wait(2)
    assert hands.ranges() == [(0, 9), (10, 19)]
    waits = [entry.waited_s for entry in caplog.records if "a new client tries" in entry.message]
    assert waits[:2] == [0, 1], "each wait is twice as long"  # of half a second, rounded


def test_a_full_source_takes_part_in_rebalances(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions that come while there is no room stay silent until there is some, and polling goes on."""
    looks: list[BatchSource] = []
    has_room = BatchSource._has_room
    monkeypatch.setattr(BatchSource, "_has_room", lambda self, consumer: (looks.append(self), has_room(self, consumer))[1])
    topic = rig.topic("in", partitions=2)
    for partition in range(2):
        rig.put(topic, [b"%d" % number for number in range(100)], partition)
    hands, others = Hands(), Hands()
    with rig.Host(source(rig, topic, others.feed)) as other:
        rig.until(lambda: len(other.service.assigned) == 2, "both partitions for the other")
        host = rig.Host(source(rig, topic, hands.feed, in_flight=1)).start()
        rig.until(lambda: host.service._paused, "a full source")
        assert len(host.service.assigned) == 1
    with contextlib.closing(host) as host:
        rig.until(lambda: len(host.service.assigned) == 2, "a rebalance that is served while there is no room")
        looks.clear()
        rig.until(lambda: len(looks) > 4, "more polls")
        assert len(hands.offered) == 1
        assert not host.service._held
        done = 0
        while len({(batch.partition, record.offset()) for batch in hands.offered for record in batch.records}) < 200:
            for batch in hands.wait(done + 1)[done:]:
                batch.done()
                done += 1


def test_a_partition_that_left_while_paused_flows_when_it_comes_back(rig: Any) -> None:
    """The client remembers the pause of a partition beyond its revocation."""
    topic = rig.topic("in", partitions=2)
    for partition in range(2):
        rig.put(topic, [b"x"] * 50, partition)
    hands = Hands()
    finish = threading.Event()

    async def feed(batch: Batch) -> None:
        await hands.feed(batch)
        if finish.is_set():
            batch.done()

    with rig.Host(source(rig, topic, feed, in_flight=1)) as host:
        held = hands.wait(1)
        rig.until(lambda: host.service._paused, "a full source")
        with rig.Host(source(rig, topic, Hands().feed)) as newcomer:
            rig.until(lambda: newcomer.service.assigned and len(host.service.assigned) == 1, "a share for the newcomer")
            (gone,) = newcomer.service.assigned
            finish.set()
            for batch in held:
                batch.done()
            rig.until(lambda: not host.service._paused, "room")
        rig.until(lambda: len(host.service.assigned) == 2, "both partitions again")
        rig.put(topic, [b"last"], gone[1])
        rig.until(lambda: any(b"last" in [r.value() for r in batch.records] for batch in hands.offered), "its last record")


# ---- offers


def test_a_batch_that_nobody_takes_is_offered_again(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "REOFFER_S", 0.2)
    topic = rig.topic("in")
    rig.put(topic, [b"x"])
    offers: list[Batch] = []

    async def feed(batch: Batch) -> None:
        offers.append(batch)

    with rig.Host(source(rig, topic, feed)):
        rig.until(lambda: len(offers) >= 3, "the third offer")
        assert len({id(batch) for batch in offers}) == 1
        assert offers[0].take()
        assert not offers[0].take()  # whoever comes second is refused
        offers[0].done()
        rig.until(lambda: rig.committed(f"{rig.prefix}group", topic) == {0: 1}, "the commit")


def test_offers_do_not_pile_up_behind_a_feed_that_waits(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "REOFFER_S", 0.05)
    topic = rig.topic("in")
    rig.put(topic, [b"x"])
    waiting = Counter[str]()
    go = threading.Event()

    async def feed(batch: Batch) -> None:
        waiting["now"] += 1
        waiting["most"] = max(waiting["most"], waiting["now"])
        while not go.is_set():
            waiting["looks"] += 1
            await asyncio.sleep(0.01)
        waiting["now"] -= 1
        if batch.take():
            batch.done()

    with rig.Host(source(rig, topic, feed)):
        rig.until(lambda: waiting["looks"] > 30, "several times the interval")
        go.set()
        rig.until(lambda: rig.committed(f"{rig.prefix}group", topic) == {0: 1}, "the commit")
    assert waiting["most"] == 1


def test_a_batch_that_was_given_back_is_offered_again(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "REOFFER_S", 0.1)
    topic = rig.topic("in")
    rig.put(topic, [b"x"])
    offers: list[bool] = []

    async def feed(batch: Batch) -> None:
        offers.append(batch.take())
        if len(offers) == 1:
            batch.release()
        else:
            batch.done()

    with rig.Host(source(rig, topic, feed)):
        rig.until(lambda: rig.committed(f"{rig.prefix}group", topic) == {0: 1}, "the commit")
    assert offers[:2] == [True, True]


# ---- failures and the end


def test_a_stop_waits_for_what_is_in_work_and_commits_it(rig: Any) -> None:
    topic = rig.topic("in")
    rig.put(topic, [b"x"] * 3)
    hands = Hands()
    host = rig.Host(source(rig, topic, hands.feed, commit_interval_s=60.0, drain_s=LIMIT_S)).start()
    held = hands.wait(1)[0]
    stopping = threading.Thread(target=host.stop)
    stopping.start()
    rig.until(host.service._halt.is_set, "the stop to begin")
    held.done()
    stopping.join(LIMIT_S)
    assert not stopping.is_alive()
    assert rig.committed(f"{rig.prefix}group", topic) == {0: 3}


def test_a_stop_does_not_wait_for_what_has_failed(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "STOP_S", 600.0)
    topic = rig.topic("in")
    rig.put(topic, [b"x"] * 3)
    hands = Hands()
    host = rig.Host(source(rig, topic, hands.feed, drain_s=600.0)).start()
    hands.wait(1)[0].fail()
    host.stop()
    assert not rig.committed(f"{rig.prefix}group", topic)


def test_a_missing_topic_ends_the_source_and_says_what_to_do(rig: Any) -> None:
    missing = msgspec.structs.replace(rig.topic("in"), name=f"{rig.prefix}nowhere")
    with rig.Host(source(rig, missing, Hands().feed)) as host:
        failure = rig.until(lambda: host.crash, "the failure")
    assert isinstance(failure, SourceFailed)
    assert "headwater topology create" in str(failure)


def test_a_second_worker_of_the_same_instance_is_told_so(rig: Any) -> None:
    topic = rig.topic("in")
    static = {"group.instance.id": "one"}
    with rig.Host(source(rig, topic, Hands().feed, settings=static)) as first:
        rig.until(lambda: first.service.assigned, "the assignment")
        with rig.Host(source(rig, topic, Hands().feed, settings=static)):
            failure = rig.until(lambda: first.crash, "the failure of the first")
    assert "another worker of group" in str(failure)


ODD_HEADERS = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Odd(str):
    def encode(self, *_):
        return b"\\xff\\xfe\\x80"

async def main():
    async with AIOKafkaProducer(bootstrap_servers=sys.argv[1]) as producer:
        for _ in range(50):
            await producer.send(sys.argv[2], b"odd", partition=0, headers=[(Odd("x"), b"1")])
            await producer.send(sys.argv[2], b"plain", partition=0, headers=[("name", b"2")])

asyncio.run(main())
"""


def test_header_names_that_are_not_utf8_do_no_harm(rig: Any) -> None:
    """The client library fails at such names, and a second look at them ends the process."""
    topic = rig.topic("in")
    without_extensions = {**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}  # its Python code lets odd names through
    subprocess.run([sys.executable, "-c", ODD_HEADERS, rig.servers, topic.name], env=without_extensions, check=True, timeout=LIMIT_S)
    hands = Hands()
    with rig.Host(source(rig, topic, hands.feed, in_flight=20)):
        rig.until(lambda: sum(len(batch.records) for batch in hands.offered) == 100, "all records")
    records = [record for batch in hands.offered for record in batch.records]
    for _ in range(3):
        headers = [dict(record.headers()) for record in records]
    assert [list(pairs) for pairs in headers[::2]] == [[UNREADABLE]] * 50
    assert headers[1::2] == [{"name": b"2"}] * 50
    assert [record.value() for record in records] == [b"odd", b"plain"] * 50


# ---- at the end, since it needs time


def test_a_full_source_keeps_polling_and_loses_nothing(rig: Any, held: Held) -> None:
    """It has held its one batch for longer than `max.poll.interval.ms`: the group must not have gone on without it."""
    hands = held.hands
    rig.until(lambda: time.monotonic() - held.since_s > 7.5, "the poll interval to pass")
    assert len(hands.offered) == 1
    assert not held.revoked
    assert held.host.service.assigned
    done = 0
    while sum(len(batch.records) for batch in hands.offered) < 500 or done < len(hands.offered):
        for batch in hands.wait(done + 1)[done:]:
            batch.done()
            done += 1
    assert [offset for batch in hands.offered for offset in range(batch.first, batch.last + 1)] == list(range(500))
