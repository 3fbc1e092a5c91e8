"""What the tests of the streams share: topics made for one test, raw clients to look at what is truly there, and sources with a loop of
their own. What is read and written here goes past the code under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, ConsumerGroupTopicPartitions, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings, Wan
from infra.proxy import Proxy
from schemas.config import Kafka, SiteConfig, Topics
from schemas.config import Link as LinkConfig
from schemas.messages import Tier
from streams.clients import Clients
from streams.cluster import create_topics
from streams.link import Link
from streams.topology import Topic, Topology, mirrors, region_view

LIMIT_S = 30.0  # longest wait for anything in these tests


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait for a condition; returns its value."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        threading.Event().wait(0.02)
    return value


class Host:
    """A service on an event loop of its own, in a thread, as if in another process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop
        self.service: Any = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def start(self) -> Host:
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        return self

    async def _main(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            self.service = self._make()
            await self.service.start()
            self._ready.set()
            await self._stop.wait()
            await self.service.stop()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._ready.set()

    def stop(self, limit_s: float = LIMIT_S) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(limit_s)
        assert not self._thread.is_alive(), "the service did not stop in time"
        assert self.failure is None, self.failure

    close = stop

    @property
    def crash(self) -> BaseException | None:
        return self.service.crash_reason if self.service is not None else None

    def __enter__(self) -> Host:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Rig:
    """One cluster as a test sees it."""

    Host = Host
    until = staticmethod(until)

    def __init__(self, kafka: Kafka, prefix: str) -> None:
        self.kafka, self.prefix = kafka, prefix
        self.servers = kafka.bootstrap_servers
        self.admin = AdminClient({"bootstrap.servers": self.servers})
        self.clients = Clients(kafka, "test")
        self._count = itertools.count()

    def topic(self, base: str, partitions: int = 1, **settings: str) -> Topic:
        """A new topic, declared and made."""
        name = f"{self.prefix}{base}"
        topic = declared(name, partitions)
        self.make(topic, **settings)
        return topic

    def make(self, topic: Topic, **settings: str) -> None:
        config = {"message.timestamp.type": "LogAppendTime", **{key.replace("_", "."): value for key, value in settings.items()}}
        self.admin.create_topics([NewTopic(topic.name, topic.partitions, 1, config=config)], operation_timeout=LIMIT_S)[topic.name].result(
            LIMIT_S
        )
        until(lambda: self._has_leaders(topic), f"leaders of {topic.name}")

    def _has_leaders(self, topic: Topic) -> bool:
        found = self.admin.list_topics(topic.name, timeout=LIMIT_S).topics[topic.name]
        return len(found.partitions) == topic.partitions and all(each.leader >= 0 for each in found.partitions.values())

    def delete(self, topic: Topic) -> None:
        self.admin.delete_topics([topic.name], operation_timeout=LIMIT_S)[topic.name].result(LIMIT_S)
        until(lambda: topic.name not in self.admin.list_topics(timeout=LIMIT_S).topics, f"the end of {topic.name}")

    def put(self, topic: Topic | str, values: Iterable[bytes | tuple[Any, ...] | None], partition: int = 0, *, apart: bool = False) -> None:
        """Write values, or (key, value, headers), or (key, value, headers, partition), and wait for the broker. `apart`: each in a batch
        of its own on the broker's disk."""
        name = topic if isinstance(topic, str) else topic.name
        producer = Producer(
            {"bootstrap.servers": self.servers, "linger.ms": 1, "message.max.bytes": 30 << 20, "batch.num.messages": 1 if apart else 10_000}
        )
        failures = []
        for value in values:
            key, data, headers, *place = value if isinstance(value, tuple) else (None, value, None)
            while True:
                try:
                    producer.produce(
                        name,
                        data,
                        key=key,
                        headers=headers,
                        partition=place[0] if place else partition,
                        on_delivery=lambda error, _: failures.append(error) if error else None,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(LIMIT_S) == 0
        assert not failures, failures[0]

    def rows(self, topic: Topic | str, partitions: int | None = None) -> list[Message]:
        """Every record that is in a topic now, partition by partition."""
        name = topic if isinstance(topic, str) else topic.name
        count = partitions or len(self.admin.list_topics(name, timeout=LIMIT_S).topics[name].partitions)
        consumer = self._reader()
        found: list[Message] = []
        try:
            for partition in range(count):
                low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=LIMIT_S)
                if high == low:
                    continue
                consumer.assign([TopicPartition(name, partition, low)])
                end = time.monotonic() + LIMIT_S
                while True:
                    message = consumer.poll(0.5)
                    assert time.monotonic() < end, f"{name} was not read to its end"
                    if message is None:
                        continue
                    if message.error() is not None:
                        break  # the end of the partition
                    found.append(message)
                    if message.offset() + 1 >= high:
                        break
        finally:
            consumer.close()
        return found

    def end(self, topic: Topic | str, partition: int = 0) -> int:
        name = topic if isinstance(topic, str) else topic.name
        consumer = self._reader()
        try:
            return int(consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=LIMIT_S)[1])
        finally:
            consumer.close()

    def _reader(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": f"{self.prefix}rig",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.message.max.bytes": 20 << 20,
                "fetch.wait.max.ms": 20,
            }
        )

    def committed(self, group: str, topic: Topic) -> dict[int, int]:
        """What a group has committed, by partition."""
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic.name, partition) for partition in range(topic.partitions)])
        found = self.admin.list_consumer_group_offsets([asked])[group].result(LIMIT_S).topic_partitions
        return {each.partition: each.offset for each in found if each.offset != OFFSET_INVALID and each.offset >= 0}

    def commit(self, group: str, topic: Topic, offsets: dict[int, int]) -> None:
        """Set what a group without members has committed."""
        places = [TopicPartition(topic.name, partition, offset) for partition, offset in offsets.items()]
        self.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])[group].result(LIMIT_S)

    def trim(self, topic: Topic, offset: int, partition: int = 0) -> None:
        """Remove the records before an offset, as retention does."""
        place = TopicPartition(topic.name, partition, offset)
        self.admin.delete_records([place])[place].result(LIMIT_S)

    def group_state(self, group: str) -> str:
        return str(self.admin.describe_consumer_groups([group])[group].result(LIMIT_S).state.name)


def declared(name: str, partitions: int = 1) -> Topic:
    return Topic(
        base=name.rpartition(".")[2],
        name=name,
        tier=Tier.LEAF,
        key="source",
        value="bytes",
        content_type="application/octet-stream",
        description="a test's",
        writers=frozenset(),
        readers=frozenset(),
        partitions=partitions,
        by_source=partitions > 1,
    )


@pytest.fixture(scope="session")
def make_rig() -> Callable[[Kafka], Rig]:
    """Makes a rig whose topics are no other's, for fixtures that live longer than one test."""
    return lambda kafka: Rig(kafka, f"m{uuid.uuid4().hex[:10]}.")


@pytest.fixture
def rig(kafka: Kafka, prefix: str) -> Rig:
    """The suite's cluster, with topics of this test's own."""
    return Rig(kafka, prefix)


class Far:
    """A second cluster, behind a way that can be cut: `kafka` goes straight to it, `wan` through the proxy."""

    def __init__(self, broker: Broker, proxy: Proxy) -> None:
        self.broker, self.proxy = broker, proxy
        self.kafka = broker.kafka
        self.wan = Kafka(bootstrap_servers=f"127.0.0.1:{proxy.port}")


@pytest.fixture(scope="session")
def far_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    proxy = Proxy()
    with Broker(
        BrokerSettings(name="far", folder=tmp_path_factory.mktemp("far"), port=0, wan=Wan(advertised_port=proxy.port), heap_mb=768)
    ) as broker:
        yield Far(broker, proxy.start(broker.wan_address))
        proxy.restore()
        proxy.stop()


@pytest.fixture
def far(far_cluster: Far) -> Iterator[Far]:
    """The second cluster, its way open at the start and at the end of every test."""
    yield far_cluster
    far_cluster.proxy.restore()


@pytest.fixture
def far_rig(far: Far, prefix: str) -> Rig:
    """The second cluster as `rig` sees the first; `rig.clients` do not go through the proxy."""
    return Rig(far.kafka, prefix)


@pytest.fixture(scope="session", name="declared")
def declared_fixture() -> Callable[..., Topic]:
    """Declares a topic that need not be there: `declared(name, partitions)`."""
    return declared


# ---- the link

SITE = "leaf-1"
LINK_LIMIT_S = 60.0


class Way:
    """A leaf's cluster and its region's, with the link's topics on both."""

    def __init__(self, leaf: Any, region: Any, wan: Any, **link: Any) -> None:
        self.leaf, self.region = leaf, region
        self.config = SiteConfig(
            name=SITE, tier="leaf", kafka=leaf.kafka, topics=Topics(prefix=leaf.prefix, partitions=2), link=LinkConfig(region=wan, **link)
        )
        create_topics(Topology(self.config), Clients(leaf.kafka, "test"))
        create_topics(region_view(self.config), Clients(region.kafka, "test"))
        self.mirrors = {mirror.source.base: mirror for mirror in mirrors(Topology(self.config), region_view(self.config))}

    def source(self, base: str) -> Any:
        return self.leaf if self.mirrors[base].direction == "up" else self.region

    def target(self, base: str) -> Any:
        return self.region if self.mirrors[base].direction == "up" else self.leaf

    def put(self, base: str, rows: list[Any]) -> None:
        self.source(base).put(self.mirrors[base].source, rows)

    def arrived(self, base: str) -> list[Any]:
        return self.target(base).rows(self.mirrors[base].target)

    def values(self, base: str) -> Counter[bytes]:
        return Counter(row.value() for row in self.arrived(base))

    def wait(self, base: str, values: set[bytes]) -> None:
        self.leaf.until(lambda: set(self.values(base)) >= values, f"{len(values)} records of {base}", LINK_LIMIT_S)

    def positions(self, direction: str = "up") -> dict[tuple[str, int], dict[str, Any]]:
        """The latest positions, as they stand in their topic."""
        rows = (
            self.region.rows(f"{self.region.prefix}up.{SITE}.positions")
            if direction == "up"
            else self.leaf.rows(f"{self.leaf.prefix}positions")
        )
        latest = {row.key(): json.loads(row.value()) for row in rows}
        return {(value["topic"], value["partition"]): value for value in latest.values()}

    def wait_positions(self, base: str, total: int) -> None:
        """Wait until the positions of a topic say that so many records were carried."""
        mirror = self.mirrors[base]
        name = mirror.source.name

        def carried() -> int:
            return sum(value["next_offset"] for (topic, _), value in self.positions(mirror.direction).items() if topic == name)

        self.leaf.until(lambda: carried() == total, f"positions of {base}", LINK_LIMIT_S)

    @contextlib.contextmanager
    def link(self) -> Iterator[Link]:
        link = Link(self.config)
        link.start()
        try:
            yield link
        finally:
            link.stop()
            assert not any(lane.is_alive() for lane in link.session.lanes)

    @contextlib.contextmanager
    def process(self, hook: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """The link in a process of its own, which can be killed."""
        code = PROCESS.replace("HOOK", hook)
        argv = [sys.executable, "-c", code, self.leaf.servers, self.config.link.region.bootstrap_servers, self.leaf.prefix]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            try:
                yield process
            finally:
                process.kill()


PROCESS = """
import signal, sys, threading
from schemas.config import Kafka, Link as LinkConfig, SiteConfig, Topics
from streams.link import Link
from streams.link.session import Session
leaf, region, prefix = sys.argv[1:4]
config = SiteConfig(name="leaf-1", tier="leaf", kafka=Kafka(bootstrap_servers=leaf), topics=Topics(prefix=prefix, partitions=2),
                    link=LinkConfig(region=Kafka(bootstrap_servers=region)))
HOOK
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: over.set())
link = Link(config)
link.start()
print("started", flush=True)
while not over.wait(0.2):
    pass
link.stop(1.0)
print("stopped", flush=True)
"""


@pytest.fixture(scope="session")
def way_between() -> type[Way]:
    """`way_between(leaf_rig, region_rig, wan, **link)`: for clusters of a test's own."""
    return Way


@pytest.fixture
def make_way(rig: Rig, far: Far, far_rig: Rig) -> Callable[..., Way]:
    """Makes a leaf's and a region's cluster, with the link's settings that are given."""
    return lambda **link: Way(rig, far_rig, far.wan, **link)


@pytest.fixture
def way(make_way: Callable[..., Way]) -> Way:
    """A leaf's cluster and its region's, behind a way that can be cut."""
    return make_way()
