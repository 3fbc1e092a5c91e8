"""The link between two real clusters, with a way between them that goes black: what arrives, where it goes on, what it says of losses."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from prometheus_client import REGISTRY

import streams.link.lane
import streams.link.link
import streams.link.wire
from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from schemas.config import Link as LinkConfig
from schemas.config import SiteConfig, Topics
from schemas.messages import Position
from streams.link.gate import Purse
from streams.link.lane import Lane
from streams.link.outbound import LinkFailed
from streams.link.session import Session
from streams.partition import partition_of
from streams.positions import key_of
from streams.topology import Mirror, Topology, mirrors, region_view

LIMIT_S = 60.0
SITE = "leaf-1"

Row = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


# Between the acknowledgements and the position: exactly there it stands still, and is killed.
STAND_STILL = """
write = Session.write_positions
def stand_still(session, **hint):
    if any(lane.carried for lane in session.lanes if lane.base == "verdicts"):
        print("acknowledged", flush=True)
        threading.Event().wait(60)
    write(session, **hint)
Session.write_positions = stand_still
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less gathering, and a region that counts as away sooner."""
    monkeypatch.setattr(streams.link.lane, "GATHER_S", {"verdicts": 0.05, "epochs": 0.05})
    monkeypatch.setattr(streams.link.wire, "SILENT_S", 1.5)


def record(source: str, number: int, value: bytes | None = None, partitions: int = 2) -> tuple[Any, ...]:
    headers = [("ce_id", b"%s/e/%d" % (source.encode(), number)), ("ce_source", source.encode()), ("empty", b""), ("none", None)]
    return b"%s/e/%d" % (source.encode(), number), value or b"%s-%d" % (source.encode(), number), headers, partition_of(source, partitions)


def rows(records: list[Any]) -> Counter[Row]:
    """Records as they were written: without the link's own header."""
    return Counter((row.key(), row.value(), tuple(each for each in row.headers() or () if each[0] != "ce_appendedms")) for row in records)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


SOURCES = ["cam-1", "cam-2", "cam-3", "gate", "yard"]


def test_everything_is_carried_exactly_once_both_ways_and_nothing_loops(way: Any) -> None:
    sent = {base: [record(SOURCES[n % 5], n, b"%s %d" % (base.encode(), n)) for n in range(40)] for base in way.mirrors}
    for base, records in sent.items():
        way.put(base, records)
    before = metric("headwater_link_records_total", direction="up", topic="verdicts")
    with way.link():
        for base, records in sent.items():
            way.wait(base, {value for _, value, _, _ in records})
            way.wait_positions(base, 40)
        way.leaf.until(lambda: metric("headwater_ready"), "every lane open")
        way.leaf.until(lambda: metric("headwater_link_up"), "a link that says that it is up", LIMIT_S)
    for base, records in sent.items():
        arrived = way.arrived(base)
        assert rows(arrived) == Counter((key, value, tuple(headers)) for key, value, headers, _ in records)
        for row in arrived:  # partition by source, whatever the key
            assert row.partition() == partition_of(dict(row.headers())["ce_source"].decode(), 2)
        assert rows(way.source(base).rows(way.mirrors[base].source)) == rows(arrived)  # nothing came back
    assert metric("headwater_link_records_total", direction="up", topic="verdicts") == before + 40
    name = way.mirrors["alerts"].source.name
    found = way.positions()
    assert sum(found[name, partition]["next_offset"] for partition in range(2)) == 40
    assert {found[name, partition]["cluster"] for partition in range(2)} == {way.leaf.admin.describe_cluster().result(LIMIT_S).cluster_id}
    topic = way.leaf.admin.describe_topics(TopicCollection([name]))[name].result(LIMIT_S)
    uuid = str(topic.topic_id).replace("+", "-").replace("/", "_")  # as Kafka itself writes it
    assert {found[name, partition]["topic_uuid"] for partition in range(2)} == {uuid}
    with way.link():  # a second start goes on behind what was carried
        for base in way.mirrors:
            way.put(base, [record("cam-1", 41, b"one more")])
            way.wait(base, {b"one more"})
    for base in way.mirrors:
        assert len(way.arrived(base)) == 41


def test_a_link_killed_between_acknowledgement_and_position_repeats_and_loses_nothing(way: Any) -> None:
    values = [record(SOURCES[n % 5], n) for n in range(60)]
    wanted = {value for _, value, _, _ in values}
    way.put("verdicts", values)
    with way.process(STAND_STILL) as process:
        assert process.stdout is not None
        assert b"started" in process.stdout.readline()
        assert b"acknowledged" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    there = way.values("verdicts")
    assert there  # acknowledged by the region, and no position says so
    assert not way.positions()
    with way.link():
        way.wait("verdicts", wanted)
        way.wait_positions("verdicts", 60)
    found = way.values("verdicts")
    assert set(found) == wanted
    assert sum(found.values()) == 60 + sum(there.values())


def test_a_link_goes_on_after_a_black_hole_and_says_what_it_sees(way: Any, far: Any) -> None:
    """For some seconds nothing passes, with records on their way in both directions: afterwards none is missing."""
    sent: dict[str, list[bytes]] = {"verdicts": [], "alerts": [], "down.verdicts": []}
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.05):
            for base, values in sent.items():
                batch = [record(SOURCES[n % 5], n, b"%s %d" % (base.encode(), n)) for n in range(len(values), len(values) + 10)]
                way.put(base, batch)
                values.extend(value for _, value, _, _ in batch)

    publisher = threading.Thread(target=publish)
    with way.link():
        publisher.start()
        try:
            way.leaf.until(lambda: metric("headwater_link_up") and way.arrived("alerts"), "a link that is up", LIMIT_S)
            far.proxy.cut()
            way.leaf.until(lambda: not metric("headwater_link_up"), "a link that says that it is down", LIMIT_S)
            far.proxy.restore()
            way.leaf.until(lambda: metric("headwater_link_up"), "a link that is up again", LIMIT_S)
        finally:
            over.set()
            publisher.join(LIMIT_S)
        for base, values in sent.items():
            way.wait(base, set(values))
    for base, values in sent.items():
        assert set(way.values(base)) == set(values)


def test_a_link_waits_for_a_region_that_is_away_and_its_end_does_not(way: Any, far: Any) -> None:
    """Started during an outage; it is told to end during the next, and does."""
    far.proxy.cut()
    way.put("alerts", [record("cam-1", n) for n in range(3)])
    with way.process() as process:
        try:
            assert process.stdout is not None
            assert b"started" in process.stdout.readline()
            far.proxy.restore()
            way.wait_positions("alerts", 3)
            far.proxy.cut()
            way.put("alerts", [record("cam-1", n) for n in range(3, 6)])
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_recreated_topic_is_carried_from_its_beginning_and_that_is_said_once(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    topic = way.mirrors["alerts"].source
    way.put("alerts", [record("cam-1", n, b"old %d" % n) for n in range(5)])
    with way.link():
        way.wait_positions("alerts", 5)
    way.leaf.delete(topic)
    way.leaf.make(topic)
    way.put("alerts", [record("cam-1", n, b"new %d" % n) for n in range(8)])  # more than the old one had
    with way.link():
        way.wait("alerts", {b"new %d" % n for n in range(8)})
        way.wait_positions("alerts", 8)
    assert way.values("alerts") == Counter([b"old %d" % n for n in range(5)] + [b"new %d" % n for n in range(8)])
    said = [r for r in caplog.records if "the source was replaced" in r.message]
    assert [(r.lane if hasattr(r, "lane") else r.topic, r.partition, r.replaced) for r in said] == [
        (topic.name, partition_of("cam-1", 2), "topic")
    ]
    assert metric("headwater_link_lost_records_total", topic="alerts", reason="retention") == 0


def test_a_topic_made_anew_under_a_running_link_is_carried_from_its_beginning(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.link.link, "LOOK_S", 0.5)
    topic = way.mirrors["verdicts"].source
    way.put("verdicts", [record("cam-1", n, b"old %d" % n) for n in range(30)])
    with way.link():
        way.wait_positions("verdicts", 30)
        way.leaf.delete(topic)
        way.leaf.make(topic)
        way.put("verdicts", [record("cam-1", n, b"new %d" % n) for n in range(8)])  # fewer than the old one had
        way.wait("verdicts", {b"new %d" % n for n in range(8)})
    assert way.values("verdicts") == Counter([b"old %d" % n for n in range(30)] + [b"new %d" % n for n in range(8)])


def test_positions_of_another_cluster_are_not_taken_for_this_one(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = way.mirrors["drops"].source
    partition = partition_of("cam-1", 2)
    way.put("drops", [record("cam-1", n) for n in range(4)])
    foreign = Position(cluster="another", topic=topic.name, topic_uuid="x", partition=partition, next_offset=3, writer="w")
    way.region.put(f"{way.region.prefix}up.{SITE}.positions", [(f"another/{topic.name}/{partition}".encode(), foreign.to_bytes(), [])])
    with way.link():
        way.wait_positions("drops", 4)
    assert len(way.arrived("drops")) == 4
    assert [r.replaced for r in caplog.records if "the source was replaced" in r.message] == ["cluster"]


def test_what_retention_took_is_said_exactly_counted_and_said_once(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = way.mirrors["verdicts"].source
    partition = partition_of("cam-1", 2)
    way.put("verdicts", [record("cam-1", n) for n in range(10)])
    with way.link():
        way.wait_positions("verdicts", 10)
    way.put("verdicts", [record("cam-1", n) for n in range(10, 50)])
    way.leaf.trim(topic, 50, partition)
    before = metric("headwater_link_lost_records_total", topic="verdicts", reason="retention")
    with way.link():
        way.wait_positions("verdicts", 50)
    said = [(r.lane, r.partition, r.first, r.last) for r in caplog.records if "retention removed" in r.message]
    assert said == [(topic.name, partition, 10, 49)]
    way.put("verdicts", [record("cam-1", 50)])
    with way.link():  # nothing had come: the loss is not told again
        way.wait("verdicts", {b"cam-1-50"})
    assert caplog.text.count("retention removed") == 1
    assert metric("headwater_link_lost_records_total", topic="verdicts", reason="retention") == before + 40
    assert len(way.arrived("verdicts")) == 11


def test_a_log_that_was_cut_is_carried_on_from_the_cut(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The position says more than the leaf's log holds, after a power cut; what came since must not be passed over."""
    topic = way.mirrors["alerts"].source
    partition = partition_of("cam-1", 2)
    way.put("alerts", [record("cam-1", n) for n in range(6)])
    with way.link():
        way.wait_positions("alerts", 6)
    ahead = Position(**{**_fields(way.positions()[topic.name, partition]), "next_offset": 90, "leader_epoch": -1})
    way.region.put(f"{way.region.prefix}up.{SITE}.positions", [(key_of(ahead), ahead.to_bytes(), [])])
    way.put("alerts", [record("cam-1", n) for n in range(6, 9)])
    with way.link():
        way.wait("alerts", {b"cam-1-%d" % n for n in range(9)})
        way.wait_positions("alerts", 9)
    assert "cut behind our position" in caplog.text


def test_a_leaf_that_lost_power_loses_nothing_that_it_still_has(
    way_between: Any, far: Any, far_rig: Any, prefix: str, tmp_path: Path
) -> None:
    """A real broker is killed, the tail of its log cut off, and records are written on beyond the link's position before the link is
    back: those between the cut and the position are carried, and nothing is carried twice."""
    settings = BrokerSettings(name="leaf", folder=tmp_path / "leaf", port=0)
    values = [b"old %d" % n for n in range(15)]
    broker = Broker(settings).start()
    try:
        way = way_between(type(far_rig)(broker.kafka, prefix), far_rig, far.wan)
        topic, partition = way.mirrors["alerts"].source, partition_of("cam-1", 2)
        way.leaf.put(topic, [record("cam-1", n, value) for n, value in enumerate(values)], apart=True)
        with way.link():
            way.wait_positions("alerts", 15)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        way.leaf.until(lambda: broker.poll() is not None, "the end of the broker")
        broker.stop()
        (log,) = (tmp_path / "leaf" / "data" / f"{topic.name}-{partition}").glob("*.log")
        os.truncate(log, log.stat().st_size * 2 // 3)
        broker = Broker(msgspec.structs.replace(settings, port=broker.settings.port)).start()
        cut = way.leaf.end(topic, partition)
        assert 0 < cut < 15
        way.put("alerts", [record("cam-1", n, b"new %d" % n) for n in range(40)])
        assert way.leaf.end(topic, partition) > 15
        with way.link():
            way.wait_positions("alerts", cut + 40)
        assert way.values("alerts") == Counter([*values, *(b"new %d" % n for n in range(40))])
    finally:
        broker.stop()


def _fields(position: dict[str, Any]) -> dict[str, Any]:
    return {name: position[name] for name in Position.__struct_fields__ if name in position and name != "backfill"}


ODD_HEADERS = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Odd(str):
    def encode(self, *_):
        return b"\\xff\\xfe"

async def main():
    async with AIOKafkaProducer(bootstrap_servers=sys.argv[1]) as producer:
        await producer.send_and_wait(sys.argv[2], b"odd header", partition=1, headers=[(Odd("x"), b"1")])

asyncio.run(main())
"""


def test_foreign_records_in_an_outbox_are_carried_as_they_are(way: Any) -> None:
    """Whoever wrote them: no headers, no key, bytes that are no text; none of them holds back what is behind it."""
    name = way.mirrors["alerts"].source.name
    foreign = [
        (None, b"bare", None, 1),
        (b"gate 3", b"by key", None, 1),
        (b"\xff\xfe", b"\x00\xff", [("x", b"\xff"), ("x", None)], 1),
        (b"null", None, None, 1),
        (None, b"", [("ce_source", None)], 1),
    ]
    way.put("alerts", foreign)
    plain = {**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}
    subprocess.run([sys.executable, "-c", ODD_HEADERS, way.leaf.servers, name], env=plain, check=True, timeout=LIMIT_S)
    way.put("alerts", [record("cam-1", 1, b"behind"), (None, b"last", None, 1)])
    with way.link():
        way.wait("alerts", {b"behind", b"last", b"odd header"})
    arrived = way.arrived("alerts")
    assert len(arrived) == len(foreign) + 3
    found = rows(arrived)
    for key, value, headers, _ in foreign:
        assert found[key, value, tuple(headers or ())] == 1
    by_value = {row.value(): row for row in arrived}
    assert by_value[b"by key"].partition() == partition_of("gate 3", 2)


def test_a_record_that_the_region_takes_not_is_left_behind_alone(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is said and counted, and holds back nothing."""
    topic = way.mirrors["escalations"]
    resource = ConfigResource(ResourceType.TOPIC, topic.target.name)
    resource.add_incremental_config(ConfigEntry("max.message.bytes", "20000", incremental_operation=AlterConfigOpType.SET))
    way.region.admin.incremental_alter_configs([resource])[resource].result(LIMIT_S)
    noise = os.urandom(60_000)
    way.put("escalations", [record("cam-1", 0), record("cam-1", 1, noise), *[record("cam-1", n) for n in range(2, 6)]])
    before = metric("headwater_link_lost_records_total", topic="escalations", reason="too-large")
    with way.link():
        way.wait("escalations", {b"cam-1-%d" % n for n in (0, 2, 3, 4, 5)})
        way.wait_positions("escalations", 6)
    assert metric("headwater_link_lost_records_total", topic="escalations", reason="too-large") == before + 1
    said = [r for r in caplog.records if "takes no record so large" in r.message]
    assert [(r.lane, r.offset) for r in said] == [(topic.source.name, 1)]
    assert noise not in way.values("escalations")


def test_a_producer_that_has_failed_for_good_is_replaced(way: Any) -> None:
    with way.link() as link:
        way.put("alerts", [record("cam-1", 1)])
        way.wait("alerts", {b"cam-1-1"})
        urgent = link.session.outbounds["urgent"]
        old = urgent.producer
        urgent._broken.set()  # what a fatal error of the idempotent producer does
        way.put("alerts", [record("cam-1", 2)])
        way.wait("alerts", {b"cam-1-2"})
        assert urgent.producer is not old


def test_names_differ_on_both_ends_and_each_way_has_its_own() -> None:
    for prefix in ("", "x."):
        config = SiteConfig(name=SITE, tier="leaf", topics=Topics(prefix=prefix), link=LinkConfig())
        pairs: list[Mirror] = mirrors(Topology(config), region_view(config))
        assert {mirror.direction for mirror in pairs} == {"up", "down"}
        leaf = {mirror.source.name if mirror.direction == "up" else mirror.target.name for mirror in pairs}
        region = {mirror.target.name if mirror.direction == "up" else mirror.source.name for mirror in pairs}
        assert len(leaf) == len(region) == len(pairs)
        assert not leaf & region  # also if both ends were one cluster, nothing could loop
        for mirror in pairs:
            far = mirror.target if mirror.direction == "up" else mirror.source
            assert far.name.startswith(f"{prefix}{mirror.direction}.{SITE}.")
            assert far.site == SITE
            assert mirror.source.partitions == mirror.target.partitions
            assert mirror.source.max_message_bytes <= mirror.target.max_message_bytes


def test_a_lane_that_is_refused_for_days_goes_on_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait between attempts is bounded, whatever their number; the first is said, the others are not."""
    config = SiteConfig(name=SITE, tier="leaf", link=LinkConfig())
    leaf = Topology(config)
    session = Session(config, leaf, region_view(config), "w", Purse(0, 1), second=False)
    session.outbounds = dict.fromkeys(("urgent", "up", "down"))  # type: ignore[assignment]
    waits: list[float] = []

    class Halt(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            if len(waits) == 5000:
                self.set()
            return self.is_set()

    def refuse(_: Any) -> None:
        raise LinkFailed("no")

    session.halt = Halt()
    monkeypatch.setattr(Lane, "_carry", refuse)
    lane = Lane(session, session.mirrors[0], 0)
    start = time.monotonic()
    lane.run()
    assert time.monotonic() - start < LIMIT_S
    assert len(waits) == 5000
    assert 0.2 <= min(waits) <= max(waits) <= 5.0
