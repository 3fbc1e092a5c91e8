"""Producers on a real Kafka, judged by a raw reader of the topics: numbers, places, epochs, drops, and a broker that goes away."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from infra.kafka.broker import Broker
from infra.kafka.ports import free_port
from infra.kafka.settings import BrokerSettings
from schemas.config import Ingress, Kafka, SiteConfig, Topics
from schemas.frames import InvalidFrame
from streams.clients import BrokerUnavailable, Clients
from streams.cluster import create_topics
from streams.production.feed import RecordedFeed, Until
from streams.production.frames import Limits, PublisherClosed
from streams.production.images import ImageFolder
from streams.production.manifest import Manifest
from streams.production.pictures import Look
from streams.production.publisher import FramePublisher, WrongTopics
from streams.topology import Topology

JPEG = b"\xff\xd8\xff" + bytes(2000)
PARTITIONS = 4


def site(kafka: Kafka, prefix: str, **more: Any) -> SiteConfig:
    return SiteConfig(name="hall", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=PARTITIONS), **more)


def publisher_of(config: SiteConfig, **more: Any) -> FramePublisher:
    return FramePublisher(Clients(config.kafka, "test"), Topology(config), **more)


def read_all(kafka: Kafka, topic: str) -> list[Any]:
    """Every record of a topic, with librdkafka alone."""
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    records, ends = [], {}
    deadline = time.monotonic() + 30
    left = list(reader.list_topics(topic, timeout=10).topics[topic].partitions)
    while left:
        try:
            _, ends[left[-1]] = reader.get_watermark_offsets(TopicPartition(topic, left[-1]), timeout=10)
            left.pop()
        except KafkaException:  # a broker that was stopped is not the leader again at once
            if time.monotonic() > deadline:
                raise
    ends = {partition: end for partition, end in ends.items() if end}
    reader.assign([TopicPartition(topic, partition, 0) for partition in ends])
    while ends:
        assert time.monotonic() < deadline, f"{topic} was not read to its end"
        message = reader.poll(1.0)
        if message is None:
            continue
        assert message.error() is None, message.error()
        if message.partition() not in ends:  # it came after the end was looked up
            continue
        records.append(message)
        if message.offset() + 1 >= ends[message.partition()]:
            del ends[message.partition()]
    reader.close()
    return records


def headers_of(record: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers()}


def sequences(kafka: Kafka, prefix: str) -> dict[tuple[str, str], list[int]]:
    """The sequences on `frames` by source and epoch, from the ids in their headers."""
    found: dict[tuple[str, str], list[int]] = {}
    for record in read_all(kafka, f"{prefix}frames"):
        source, epoch, sequence = headers_of(record)["ce_id"].split("/")
        found.setdefault((source, epoch), []).append(int(sequence))
    return found


def declared(kafka: Kafka, prefix: str) -> dict[tuple[str, str], dict[str, set[int]]]:
    """The sequences on `drops` by source and epoch, and reason."""
    found: dict[tuple[str, str], dict[str, set[int]]] = {}
    for record in read_all(kafka, f"{prefix}drops"):
        drop = json.loads(record.value())
        assert drop["stage"] == "producer"
        assert record.key().decode() == f"{drop['source']}/{drop['epoch']}/{drop['site']}/producer"
        numbers = {number for first, last in json.loads(drop["ranges"]) for number in range(first, last + 1)}
        found.setdefault((drop["source"], drop["epoch"]), {}).setdefault(drop["reason"], set()).update(numbers)
    return found


def marks(kafka: Kafka, prefix: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in read_all(kafka, f"{prefix}epochs"):
        mark = json.loads(record.value())
        found.setdefault((mark["source"], mark["epoch"]), []).append(mark)
    return found


def manifest_of(path: Path) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        found.setdefault((entry["source"], entry["epoch"]), []).append(entry["sequence"])
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


@pytest.fixture
def config(kafka: Kafka, prefix: str) -> SiteConfig:
    config = site(kafka, prefix)
    create_topics(Topology(config), Clients(kafka, "test"))
    return config


def test_sequences_are_dense_and_epochs_are_announced(config: SiteConfig, kafka: Kafka, prefix: str) -> None:
    started = dt.datetime.now(dt.UTC)
    with publisher_of(config) as publisher:
        gate, door = publisher.source("gate"), publisher.source("door")
        epoch = gate.begin(width=64, height=48, fps=20.0)
        door.begin()
        for number in range(30):
            assert gate.publish(JPEG).sequence == number
            if number % 3 == 0:
                door.publish(JPEG)
        wait_for(lambda: len(marks(kafka, prefix).get(("gate", epoch), [])) >= 3)  # a mark every second
        second = gate.begin()
        gate.publish(JPEG)
        assert publisher.close(20.0) == []
        assert gate.counters().assigned == gate.counters().acknowledged == 31
        assert gate.counters().epochs == 2
    found = sequences(kafka, prefix)
    assert found[("gate", epoch)] == list(range(30))
    assert found[("gate", second)] == [0]
    assert sorted(len(numbers) for numbers in found.values()) == [1, 10, 30]
    assert declared(kafka, prefix) == {}
    told = marks(kafka, prefix)
    assert set(told) == set(found)
    for key, lines in told.items():
        assert [line["state"] for line in lines] == ["started", *["mark"] * (len(lines) - 2), "ended"]
        assert {line["site"] for line in lines} == {"hall"}
        assert all(line["acknowledged"] <= line["assigned"] for line in lines)
        assert [line["acknowledged"] for line in lines] == sorted(line["acknowledged"] for line in lines)
        assert lines[-1]["assigned"] == lines[-1]["acknowledged"] == len(found[key])
    first = told[("gate", epoch)][0]
    assert (first["width"], first["height"], first["fps"]) == (64, 48, 20.0)
    assert started <= dt.datetime.fromisoformat(first["started_at"]) <= dt.datetime.now(dt.UTC)


def test_a_frame_carries_its_name_its_time_and_a_trace_of_its_own(config: SiteConfig, kafka: Kafka, prefix: str) -> None:
    taken = dt.datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=dt.UTC)
    with publisher_of(config) as publisher:
        gate = publisher.source("gate")
        epoch = gate.begin()
        gate.publish(JPEG, taken)
        gate.publish(JPEG)
    first, second = map(headers_of, read_all(kafka, f"{prefix}frames"))
    traces = {headers.pop("ce_traceparent") for headers in (first, second)}
    assert first == {
        "ce_specversion": "1.0",
        "ce_id": f"gate/{epoch}/0",
        "ce_source": "gate",
        "ce_type": "headwater.frame.v1",
        "ce_time": "2026-01-31T12:00:00.123456Z",
        "ce_sequence": "0000000000000000000",
        "content-type": "image/jpeg",
    }
    assert abs(dt.datetime.fromisoformat(second["ce_time"]) - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    assert len(traces) == 2
    assert all(re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]", trace) for trace in traces)


# Kafka's own test vectors of murmur2 (org.apache.kafka.common.utils.UtilsTest), where they are names that a source can have.
JAVA = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829}


def test_all_of_a_source_lies_where_java_would_put_it(config: SiteConfig, kafka: Kafka, prefix: str) -> None:
    with publisher_of(config) as publisher:
        for name in JAVA:
            source = publisher.source(name)
            source.begin()
            source.publish(JPEG)
            source.publish(b"\xff\xd8\xff" + bytes(publisher.max_frame_bytes))  # too large: makes a record on drops
    expected = {name: (value & 0x7FFFFFFF) % PARTITIONS for name, value in JAVA.items()}
    for topic in ("frames", "drops", "epochs"):
        places = {record.key().decode().partition("/")[0]: record.partition() for record in read_all(kafka, f"{prefix}{topic}")}
        assert places == expected, topic
    assert {headers_of(record)["ce_source"] for record in read_all(kafka, f"{prefix}epochs")} == set(JAVA)


def test_what_the_site_does_not_take_is_a_drop_with_its_reason(kafka: Kafka, prefix: str) -> None:
    config = site(kafka, prefix, ingress=Ingress(max_frame_bytes=4096))
    create_topics(Topology(config), Clients(kafka, "test"))
    with publisher_of(config) as publisher:
        gate = publisher.source("gate")
        epoch = gate.begin()
        for size in (100, 5000, 100, 5000, 5000):
            gate.publish(b"\xff\xd8\xff" + bytes(size))
        with pytest.raises(InvalidFrame):
            gate.publish(b"no JPEG")
    assert sequences(kafka, prefix) == {("gate", epoch): [0, 2]}
    assert declared(kafka, prefix) == {("gate", epoch): {"too-large": {1, 3, 4}}}
    assert marks(kafka, prefix)[("gate", epoch)][-1]["acknowledged"] == 5


def test_what_the_broker_refuses_is_a_drop(config: SiteConfig, kafka: Kafka, prefix: str) -> None:
    limited = site(Kafka(bootstrap_servers=kafka.bootstrap_servers, properties={"message.max.bytes": "10000"}), prefix)
    with publisher_of(limited) as publisher:  # the client itself is told to take less than the site does
        gate = publisher.source("gate")
        epoch = gate.begin()
        for size in (100, 50_000, 100):
            gate.publish(b"\xff\xd8\xff" + bytes(size))
    assert sequences(kafka, prefix) == {("gate", epoch): [0, 2]}
    assert declared(kafka, prefix) == {("gate", epoch): {"delivery-failed": {1}}}


def allow(kafka: Kafka, topic: str, size: str) -> None:
    """Set the largest record that a topic takes, behind the producer's back."""
    entry = ConfigEntry("max.message.bytes", size, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(20)


def test_what_is_said_of_an_epoch_is_said_again_if_the_broker_refused_it(
    config: SiteConfig, kafka: Kafka, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with publisher_of(config) as publisher:
        gate = publisher.source("gate")
        epoch = gate.begin()
        gate.publish(JPEG)
        wait_for(lambda: len(marks(kafka, prefix).get(("gate", epoch), [])) >= 2)
        for topic in ("drops", "epochs"):
            allow(kafka, f"{prefix}{topic}", "100")
        gate.publish(b"\xff\xd8\xff" + bytes(publisher.max_frame_bytes))
        wait_for(lambda: all(f"{prefix}{topic} refuses records" in caplog.text for topic in ("drops", "epochs")))
        assert declared(kafka, prefix) == {}
        for topic in ("drops", "epochs"):
            allow(kafka, f"{prefix}{topic}", "1048576")
        wait_for(lambda: bool(declared(kafka, prefix)))
    assert caplog.text.count("refuses records") == caplog.text.count("takes records again") == 2
    assert declared(kafka, prefix) == {("gate", epoch): {"too-large": {1}}}
    assert marks(kafka, prefix)[("gate", epoch)][-1]["state"] == "ended"


def test_a_manifest_that_cannot_be_written_leaves_no_hole(config: SiteConfig, kafka: Kafka, prefix: str) -> None:
    def full(frame: object) -> None:
        raise OSError("no space left on device")

    with publisher_of(config, on_assigned=full) as publisher:
        gate = publisher.source("gate")
        epoch = gate.begin()
        with pytest.raises(OSError, match="no space"):
            gate.publish(JPEG)
    assert declared(kafka, prefix) == {("gate", epoch): {"unlisted": {0}}}
    assert marks(kafka, prefix)[("gate", epoch)][-1]["state"] == "ended"


def test_after_the_end_nothing_is_taken(config: SiteConfig) -> None:
    publisher = publisher_of(config).start()
    gate = publisher.source("gate")
    gate.begin()
    assert publisher.close() == []
    for act in (lambda: gate.publish(JPEG), gate.begin, lambda: publisher.source("other")):
        with pytest.raises(PublisherClosed):
            act()
    assert publisher.close() == []


def test_missing_topics_and_brokers_are_told(kafka: Kafka, prefix: str) -> None:
    with pytest.raises(WrongTopics, match=rf"{prefix}frames.*headwater topology create"):
        publisher_of(site(kafka, prefix)).start()
    create_topics(Topology(site(kafka, prefix)), Clients(kafka, "test"))
    with pytest.raises(WrongTopics, match=r"has 4 partitions.*says 7"):
        publisher_of(SiteConfig(name="hall", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=7))).start()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 "):
        publisher_of(site(Kafka(bootstrap_servers="127.0.0.1:1"), prefix)).start(timeout_s=0.5)


def test_a_folder_of_images_is_played_to_its_end(config: SiteConfig, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.full((32, 32, 3), 50 * number, np.uint8))
    with publisher_of(config) as publisher:
        feed = RecordedFeed(publisher.source("shelf"), ImageFolder(tmp_path, Look()), Until(frames=10), fps=50, loop=True)
        feed.start()
        assert feed.join(20)
        assert feed.error is None
    values = [record.value() for record in read_all(kafka, f"{prefix}frames")]
    files = [(tmp_path / f"{number}.jpg").read_bytes() for number in range(4)]
    assert values == list(itertools.islice(itertools.cycle(files), 10))


# ---- a broker that goes away


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of this module's own, which may be stopped."""
    settings = BrokerSettings(name="stopped", folder=tmp_path_factory.mktemp("stopped"), port=free_port("127.0.0.1"))
    with Broker(settings) as broker:
        yield broker


class Camera:
    """Publishes from a thread of its own at a steady rate, whatever the broker does."""

    def __init__(self, publisher: FramePublisher, name: str, fps: float) -> None:
        self.producer = publisher.source(name)
        self.epoch = self.producer.begin(fps=fps)
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(fps,))
        self._thread.start()

    def _run(self, fps: float) -> None:
        while not self._halt.wait(1 / fps):
            self.producer.publish(JPEG)

    def stop(self) -> None:
        self._halt.set()
        self._thread.join()


def test_a_killed_broker_costs_drops_that_are_told_when_it_is_back(own: Broker, prefix: str, tmp_path: Path) -> None:
    config = site(own.kafka, prefix)
    create_topics(Topology(config), Clients(own.kafka, "test"))
    with Manifest(tmp_path / "manifest.jsonl") as manifest:
        publisher = publisher_of(config, on_assigned=manifest).start()
        cameras = [Camera(publisher, name, 60.0) for name in ("gate", "door")]
        try:
            wait_for(lambda: all(camera.producer.counters().acknowledged > 20 for camera in cameras))
            assert own.pid is not None
            os.kill(own.pid, signal.SIGKILL)
            wait_for(lambda: all(camera.producer.counters().dropped > 60 for camera in cameras))
            own.stop()
            counters = [camera.producer.counters() for camera in cameras]
            own.start()
            wait_for(
                lambda: all(c.producer.counters().acknowledged > was.acknowledged + 60 for c, was in zip(cameras, counters, strict=True))
            )
        finally:
            for camera in cameras:
                camera.stop()
        assert publisher.close(20.0) == []
    given = manifest_of(tmp_path / "manifest.jsonl")
    stored, dropped, told = sequences(own.kafka, prefix), declared(own.kafka, prefix), marks(own.kafka, prefix)
    assert set(given) == {(camera.producer.name, camera.epoch) for camera in cameras}
    for key, numbers in given.items():
        assert numbers == list(range(len(numbers)))
        lost = set().union(*dropped[key].values())
        assert set(stored[key]) | lost == set(numbers)
        assert dropped[key]["broker-slow"]
        assert set(stored[key]) & dropped[key]["broker-slow"] == set()
        assert told[key][-1]["state"] == "ended"
        assert told[key][-1]["assigned"] == told[key][-1]["acknowledged"] == len(numbers)
        for mark in told[key]:  # a mark never claims what was not so
            assert set(range(mark["acknowledged"])) <= set(stored[key]) | lost


def test_a_broker_that_lost_its_disk_is_found_again(own: Broker, prefix: str) -> None:
    config = site(own.kafka, prefix)
    create_topics(Topology(config), Clients(own.kafka, "test"))
    publisher = publisher_of(config, silent_s=1.0).start()
    camera = Camera(publisher, "gate", 60.0)
    try:
        wait_for(lambda: camera.producer.counters().acknowledged > 20)
        own.stop()
        shutil.rmtree(own.settings.folder)
        own.settings.folder.mkdir()
        own.start()
        was = camera.producer.counters()
        create_topics(Topology(config), Clients(own.kafka, "test"))
        wait_for(lambda: camera.producer.counters().acknowledged > was.acknowledged + 60)
    finally:
        camera.stop()
    assert publisher.close(20.0) == []
    stored = set(sequences(own.kafka, prefix)[("gate", camera.epoch)])
    lost = set().union(*declared(own.kafka, prefix)[("gate", camera.epoch)].values())
    last = marks(own.kafka, prefix)[("gate", camera.epoch)][-1]
    assert last["state"] == "ended"
    assert stored | lost >= set(range(was.assigned, last["assigned"]))  # what came before is gone with the disk


def test_the_oldest_waiting_frame_is_the_one_that_is_dropped(own: Broker, prefix: str) -> None:
    config = site(own.kafka, prefix)
    create_topics(Topology(config), Clients(own.kafka, "test"))
    assert own.pid is not None
    publisher = publisher_of(config, limits=Limits(queue_frames=10)).start()
    gate = publisher.source("gate")
    epoch = gate.begin()
    for _ in range(3):
        gate.publish(JPEG)
    wait_for(lambda: gate.counters().acknowledged == 3)
    os.kill(own.pid, signal.SIGSTOP)  # it holds its connections and does nothing
    try:
        for _ in range(100):
            gate.publish(JPEG)
        held = gate.counters()
        assert held.assigned == 103
        assert held.open < 103 - held.dropped
    finally:
        os.kill(own.pid, signal.SIGCONT)
    assert publisher.close(20.0) == []
    [stored] = sequences(own.kafka, prefix).values()
    lost = declared(own.kafka, prefix)[("gate", epoch)]["broker-slow"]
    assert stored == sorted(stored)
    assert set(stored) | lost == set(range(103))
    assert stored[-10:] == list(range(93, 103))  # the newest were kept
    assert lost == set(range(min(lost), 93))  # in one piece, up to the oldest that was kept


@pytest.mark.parametrize("back", [True, False])
def test_the_end_is_bounded_in_time_and_tells_the_truth(own: Broker, prefix: str, caplog: pytest.LogCaptureFixture, *, back: bool) -> None:
    config = site(own.kafka, prefix)
    create_topics(Topology(config), Clients(own.kafka, "test"))
    assert own.pid is not None
    pid = own.pid
    publisher = publisher_of(config).start()
    gate = publisher.source("gate")
    epoch = gate.begin()
    for _ in range(5):
        gate.publish(JPEG)
    wait_for(lambda: gate.counters().acknowledged == 5)
    os.kill(pid, signal.SIGSTOP)
    purged = threading.Event()
    try:
        for _ in range(20):
            gate.publish(JPEG)

        def resume() -> None:
            wait_for(lambda: gate.counters().dropped == 20)  # given up: what is left of the time is for declaring it
            purged.set()
            if back:
                os.kill(pid, signal.SIGCONT)

        resumed = threading.Thread(target=resume)
        resumed.start()
        began = time.monotonic()
        left = publisher.close(6.0 if back else 2.0)
        took_s = time.monotonic() - began
        resumed.join()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert purged.is_set()
    assert took_s < 15
    stored = set(sequences(own.kafka, prefix)[("gate", epoch)])
    if back:
        assert left == []
        assert stored | declared(own.kafka, prefix)[("gate", epoch)]["closed"] == set(range(25))
        assert marks(own.kafka, prefix)[("gate", epoch)][-1]["state"] == "ended"
        assert marks(own.kafka, prefix)[("gate", epoch)][-1]["assigned"] == 25
    else:
        assert [(rest.epoch, rest.sequences.pairs, rest.ended) for rest in left] == [(epoch, ((5, 24),), False)]
        assert f"gate: ended without the broker: epoch {epoch}, sequences [[5,24]]" in caplog.text
