"""Routing on real brokers that break in turn, judged by a raw reader over all of them against the test's own manifest."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from prometheus_client import CollectorRegistry, generate_latest

from infra.kafka.broker import Broker
from infra.kafka.ports import free_port
from infra.kafka.settings import BrokerSettings, Wan
from infra.proxy import Proxy, Way
from schemas.config import Kafka, SiteConfig, Topics
from schemas.frames import Frame
from schemas.routing import Routing
from streams.clients import BrokerUnavailable, Clients
from streams.cluster import create_topics
from streams.partition import partition_of
from streams.production import publisher as publisher_module
from streams.production.frames import Limits, Outcome, PublisherClosed
from streams.production.publisher import FramePublisher
from streams.routing.metrics import RoutingCollector
from streams.routing.publisher import NoRoom, RoutedPublisher
from streams.routing.router import Event, Moved, Router, SiteChanged
from streams.routing.way import Site, WrongTopics
from streams.topology import Topology

JPEG = b"\xff\xd8\xff" + bytes(2000)
LIMIT_S = 40.0
# Patience is short, so that tests are; frames may wait long, so that a machine that is busy with other things loses none.
QUICK = Routing(hold_s=0.5, hold_max_s=8.0, probe_s=0.2, max_age_s=30.0, queue_frames=5000)


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        threading.Event().wait(0.01)


class SlowProxy(Proxy):
    """A proxy whose way is `delay_s` long in each direction. Requests larger than `mtu` bytes may get lost on it, as where packets are too
    large for a link and nobody says so; and of the next one that contains `damage` a bit is flipped, so that the broker refuses it."""

    delay_s = 0.0
    mtu: int | None = None
    damage: bytes | None = None
    closed_to_new = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed_to_new:
            writer.close()
        else:
            await super()._serve(reader, writer)

    async def _take(self, reader: asyncio.StreamReader, *, up: bool) -> bytes:
        """What is passed on next: a whole request, or some bytes of answers; empty at the end."""
        if not up:
            return await reader.read(64 << 10)
        try:
            size = await reader.readexactly(4)
            request = await reader.readexactly(int.from_bytes(size, "big"))
        except asyncio.IncompleteReadError:
            return b""
        if self.damage is not None and self.damage in request:
            at, self.damage = request.index(self.damage), None
            request = request[:at] + bytes([request[at] ^ 1]) + request[at + 1 :]
        return size + request

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        up = way is self.ways["up"]
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

        async def take() -> None:
            while chunk := await self._take(reader, up=up):
                await chunks.put((self._loop.time() + self.delay_s, chunk))
            await chunks.put((0.0, b""))

        taking = asyncio.ensure_future(take())
        try:
            while True:
                due_s, chunk = await chunks.get()
                if not chunk:
                    return
                await asyncio.sleep(max(0.0, due_s - self._loop.time()))
                await way.open.wait()
                while up and self.mtu is not None and len(chunk) > self.mtu:  # noqa: ASYNC110 - it is set from another thread
                    await asyncio.sleep(0.01)
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


class Leaf:
    """A broker that can be killed, and its way, which can be cut."""

    def __init__(self, name: str, broker: Broker, proxy: SlowProxy) -> None:
        self.name, self.broker, self.proxy = name, broker, proxy
        self.near = broker.kafka
        self.far = Kafka(bootstrap_servers=f"127.0.0.1:{proxy.port}")

    def config(self, prefix: str, *, through_proxy: bool = True, **properties: str) -> SiteConfig:
        own = {"reconnect.backoff.max.ms": "200", **{name.replace("_", "."): value for name, value in properties.items()}}
        kafka = msgspec.structs.replace(self.far if through_proxy else self.near, properties=own)
        return SiteConfig(name=self.name, tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2))

    def create(self, prefix: str) -> None:
        create_topics(Topology(self.config(prefix, through_proxy=False)), Clients(self.near, "test"))

    def kill(self) -> None:
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGKILL)

    def revive(self) -> None:
        self.broker.stop()
        self.broker.start()
        self.proxy._target = self.broker.wan_address  # it took another port

    def forbid(self, topic: str) -> Callable[[], None]:
        """Everything with a topic is allowed but to write to it."""
        admin = self.admin
        everybody = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*")
        rules = [
            AclBinding(*everybody, AclOperation.ALL, AclPermissionType.ALLOW),
            AclBinding(*everybody, AclOperation.WRITE, AclPermissionType.DENY),
        ]
        for future in admin.create_acls(rules).values():
            future.result(LIMIT_S)

        def allow() -> None:
            everything = AclBindingFilter(*everybody, AclOperation.ANY, AclPermissionType.ANY)
            for future in admin.delete_acls([everything]).values():
                future.result(LIMIT_S)

        return allow

    def fill_disk(self) -> None:
        """The next write to a log fails, as on a full disk: Kafka then gives up its folder, and ends."""
        assert self.broker.pid is not None
        resource.prlimit(self.broker.pid, resource.RLIMIT_FSIZE, (1, 1))

    @property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.near.bootstrap_servers})

    def delete(self, topic: str) -> None:
        admin = self.admin
        admin.delete_topics([topic], operation_timeout=LIMIT_S)[topic].result(LIMIT_S)

    def rows(self, topic: str) -> list[Any]:
        """Every record of a topic, with librdkafka alone, past the proxy."""
        reader = Consumer({"bootstrap.servers": self.near.bootstrap_servers, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
        deadline = time.monotonic() + LIMIT_S
        found: list[Any] = []
        try:
            for partition in range(2):
                place = TopicPartition(topic, partition, 0)
                while True:
                    try:
                        _, high = reader.get_watermark_offsets(place, timeout=5)
                        break
                    except KafkaException:  # one that was killed is not the leader again at once
                        assert time.monotonic() < deadline, f"{topic} of {self.name} could not be read"
                reader.assign([place])
                read = 0
                while read < high:
                    assert time.monotonic() < deadline, f"{topic} of {self.name} was not read to its end"
                    message = reader.poll(1.0)
                    if message is not None and message.error() is None:
                        read = message.offset() + 1
                        found.append(message)
        finally:
            reader.close()
        return found


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Leaf]]:

    def make(name: str, folder: Path) -> Leaf:
        proxy = SlowProxy()
        settings = BrokerSettings(
            name=name,
            folder=folder,
            port=free_port("127.0.0.1"),
            wan=Wan(advertised_port=proxy.port),
            properties={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found": "true",
            },
        )
        broker = Broker(settings).start()
        proxy.start(broker.wan_address)
        return Leaf(name, broker, proxy)

    names = ("gate", "hall")
    with ThreadPoolExecutor() as both:
        leaves = {leaf.name: leaf for leaf in both.map(make, names, [tmp_path_factory.mktemp(name) for name in names])}
    yield leaves
    for leaf in leaves.values():
        leaf.proxy.restore()
        leaf.proxy.stop()
    with ThreadPoolExecutor() as both:
        list(both.map(lambda leaf: leaf.broker.stop(), leaves.values()))


@pytest.fixture
def leaves(brokers: dict[str, Leaf], prefix: str) -> Iterator[dict[str, Leaf]]:
    """Both sites well, `gate` the nearer one."""
    for leaf in brokers.values():
        leaf.proxy.restore()
        leaf.proxy.mtu = leaf.proxy.damage = None
        leaf.create(prefix)
    brokers["gate"].proxy.delay_s, brokers["hall"].proxy.delay_s = 0.0, 0.01
    yield brokers
    for leaf in brokers.values():
        leaf.proxy.restore()


def gate_first(leaves: dict[str, Leaf], prefix: str, *, through_proxy: bool = True, **more: Any) -> FramePublisher:
    """A publisher for which `gate` is the nearer one however round trips sway on a busy machine; it is named last."""
    configs = [leaves["hall"].config(prefix), leaves["gate"].config(prefix, through_proxy=through_proxy)]
    hall, gate = (Site(clients=Clients(config.kafka, "test"), topology=Topology(config)) for config in configs)
    return FramePublisher(hall.clients, hall.topology, bias_s=10.0, others=[gate], **more)


class Camera:
    """Publishes at a steady rate whatever happens, and lists what it was given numbers for."""

    def __init__(self, publisher: FramePublisher, name: str = "cam", fps: float = 50.0) -> None:
        self.publisher = publisher
        self.producer = publisher.source(name)
        self.epoch = self.producer.begin(fps=fps)
        self.assigned: list[int] = []
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(fps,))
        self._thread.start()

    def _run(self, fps: float) -> None:
        while not self._halt.wait(1 / fps):
            self.assigned.append(self.producer.publish(JPEG).sequence)

    @property
    def acknowledged(self) -> int:
        return self.producer.counters().acknowledged

    def goes_on(self, count: int = 30) -> None:
        was = self.acknowledged
        wait_for(lambda: self.acknowledged >= was + count, "acknowledgements")

    def stop(self) -> None:
        self._halt.set()
        self._thread.join()


class Events:
    """What the publisher tells, with the time."""

    def __init__(self) -> None:
        self.all: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self.all.append((time.monotonic(), event))

    @property
    def moves(self) -> list[Moved]:
        return [event for _, event in self.all if isinstance(event, Moved)]


def stored(leaf: Leaf, prefix: str, epoch: str) -> list[int]:
    """Sequences on a site's `frames`, in their order."""
    ids = [dict(record.headers())["ce_id"].decode().split("/") for record in leaf.rows(f"{prefix}frames")]
    return [int(sequence) for _, found, sequence in ids if found == epoch]


def declared(leaf: Leaf, prefix: str, epoch: str) -> dict[str, set[int]]:
    """Sequences on a site's `drops`, by reason."""
    found: dict[str, set[int]] = {}
    for record in leaf.rows(f"{prefix}drops"):
        drop = json.loads(record.value())
        assert (drop["stage"], drop["site"]) == ("producer", leaf.name)
        if drop["epoch"] == epoch:
            found.setdefault(drop["reason"], set()).update(n for first, last in json.loads(drop["ranges"]) for n in range(first, last + 1))
    return found


def marks(leaf: Leaf, prefix: str, epoch: str) -> list[dict[str, Any]]:
    found = [json.loads(record.value()) for record in leaf.rows(f"{prefix}epochs")]
    assert all(mark["site"] == leaf.name for mark in found)
    return [mark for mark in found if mark["epoch"] == epoch]


def elsewhere(mark: dict[str, Any]) -> set[int]:
    return {n for pairs in json.loads(mark.get("elsewhere", "{}")).values() for first, last in pairs for n in range(first, last + 1)}


def judge(camera: Camera, leaves: dict[str, Leaf], prefix: str, *, gone: tuple[str, ...] = ()) -> dict[str, set[int]]:
    """Every sequence is stored somewhere or declared dropped, in order, and each site's marks tell the truth. Returns the drops by reason.
    The `frames` of a site that is `gone` cannot be read."""
    assert camera.assigned == list(range(len(camera.assigned)))
    at = {name: stored(leaf, prefix, camera.epoch) if name not in gone else [] for name, leaf in leaves.items()}
    lost = {name: declared(leaf, prefix, camera.epoch) for name, leaf in leaves.items()}
    told = {name: marks(leaf, prefix, camera.epoch) for name, leaf in leaves.items()}
    settled = {name: set(at[name]).union(*lost[name].values()) for name in leaves}
    everywhere = set().union(*settled.values())
    if not gone:
        assert everywhere == set(camera.assigned)
    assert any(lines and lines[-1]["state"] == "ended" for lines in told.values())
    for name, lines in told.items():
        if not lines:
            assert at[name] == []
            continue
        assert lines[0]["state"] == "started"
        last = max(lines, key=lambda mark: (mark["assigned"], mark["acknowledged"]))
        for mark in lines:
            if not gone:
                assert set(range(mark["acknowledged"])) <= everywhere
                assert set(range(mark["acknowledged"])) <= settled[name] | elsewhere(mark), (
                    "a site's own account waits for what is elsewhere"
                )
        if last["state"] == "ended":
            assert last["assigned"] == last["acknowledged"] == len(camera.assigned)
    drops: dict[str, set[int]] = {}
    for by_reason in lost.values():
        for reason, sequences in by_reason.items():
            drops.setdefault(reason, set()).update(sequences)
    return drops


# ---- faults: each breaks the site, shows that it is broken, and can be mended


def cut(leaf: Leaf, prefix: str) -> Callable[[], None]:
    leaf.proxy.cut()
    wait_for(lambda: leaf.proxy.cut_now, "the cut")
    return leaf.proxy.restore


def killed(leaf: Leaf, prefix: str) -> Callable[[], None]:
    leaf.kill()
    return leaf.revive


def disk_full(leaf: Leaf, prefix: str) -> Callable[[], None]:
    leaf.fill_disk()
    return leaf.revive


def forbidden(leaf: Leaf, prefix: str) -> Callable[[], None]:
    return leaf.forbid(f"{prefix}frames")


def large_lost(leaf: Leaf, prefix: str) -> Callable[[], None]:
    leaf.proxy.mtu = 1500

    def mend() -> None:
        leaf.proxy.mtu = None

    return mend


def deleted(leaf: Leaf, prefix: str) -> Callable[[], None]:
    leaf.delete(f"{prefix}frames")
    return lambda: leaf.create(prefix)


FAULTS = {"cut": cut, "killed": killed, "disk": disk_full, "forbidden": forbidden, "deleted": deleted, "large": large_lost}
EXPECTED = {
    "cut": {"silent", "unreachable"},
    "killed": {"silent", "unreachable"},
    "disk": {"silent", "unreachable", "topics"},
    "forbidden": {"refused"},
    "large": {"silent"},
    "deleted": {"topics", "silent"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_site_is_left_and_come_back_to(leaves: dict[str, Leaf], prefix: str, fault: str) -> None:
    gate, hall = leaves["gate"], leaves["hall"]
    events = Events()
    through_proxy = fault != "killed"  # without it, connections are refused
    publisher = gate_first(leaves, prefix, through_proxy=through_proxy, routing=QUICK, on_event=events).start()
    mend: Callable[[], None] | None = None
    camera = Camera(publisher)
    try:
        wait_for(lambda: publisher.site == "gate", "the nearest, not the first")
        camera.goes_on()
        moves = len(events.moves)
        mend = FAULTS[fault](gate, prefix)
        wait_for(lambda: publisher.site == "hall", "the move")
        camera.goes_on()
        mend()
        mend = None
        wait_for(lambda: publisher.site == "gate", "the return")
        camera.goes_on()
    finally:
        camera.stop()
        if mend is not None:
            mend()
    assert publisher.close(20.0) == []
    start, away, back = events.moves[0], events.moves[moves], events.moves[-1]
    assert (start.old, start.reason) == (None, "start")
    assert (away.old, away.new) == ("gate", "hall")
    assert away.reason in EXPECTED[fault]
    assert (back.old, back.new) == ("hall", "gate")
    assert [move.new for move in events.moves[:-1]] == [move.old for move in events.moves[1:]]
    assert sum(publisher.router.moves.values()) == len(events.moves) - 1
    drops = judge(camera, leaves, prefix, gone=("gate",) if fault == "deleted" else ())
    assert drops == {}, "the buffer holds what comes during a move"
    arrived = stored(hall, prefix, camera.epoch)
    assert arrived == sorted(set(arrived)), "in order and once on the site moved to"
    assert marks(hall, prefix, camera.epoch)[-1]["state"] == "ended", "the site that was left is told"
    if fault != "deleted":
        last = marks(gate, prefix, camera.epoch)[-1]
        assert last["state"] == "ended"
        assert set(arrived) - set(stored(gate, prefix, camera.epoch)) <= elsewhere(last) <= set(arrived)


@pytest.mark.parametrize("nearest", ["gate", "hall"])
def test_it_starts_at_the_nearest(leaves: dict[str, Leaf], prefix: str, nearest: str) -> None:
    for leaf in leaves.values():
        leaf.proxy.delay_s = 0.0 if leaf.name == nearest else 0.03
    events = Events()
    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], on_event=events) as publisher:
        assert publisher.site == nearest
        wait_for(lambda: all(state.ok for state in publisher.router.states()), "the far one, which is not long waited for")
        states = {state.site: state for state in publisher.router.states()}
        far = next(state for state in states.values() if not state.in_use)
        assert far.rtt_s is not None
        assert far.rtt_s > 0.06  # there and back: measured, not guessed
        registry = CollectorRegistry()
        registry.register(RoutingCollector(publisher.router))
        text = generate_latest(registry).decode()
        assert f'headwater_producer_site{{site="{nearest}"}} 1.0' in text
        assert f'headwater_producer_site{{site="{far.site}"}} 0.0' in text
        assert 'headwater_producer_site_rtt_seconds{site="gate"}' in text
    assert events.moves == [Moved(old=None, new=nearest, reason=events.moves[0].reason, why="")]


def test_connections_to_the_other_site_are_kept_open(leaves: dict[str, Leaf], prefix: str) -> None:
    gate, hall = leaves["gate"], leaves["hall"]
    publisher = gate_first(leaves, prefix, routing=msgspec.structs.replace(QUICK, probe_timeout_s=10.0)).start()
    camera = Camera(publisher)
    try:
        camera.goes_on()
        way = publisher.router.way("hall")
        assert way is not None
        wait_for(lambda: way.warmed, "a request over the standing connection")
        hall.proxy.closed_to_new = True
        gate.proxy.cut()
        wait_for(lambda: publisher.site == "hall", "the move")
        camera.goes_on()
    finally:
        hall.proxy.closed_to_new = False
        camera.stop()
    assert publisher.close(20.0) == []
    gate.proxy.restore()
    assert judge(camera, leaves, prefix) == {}


def test_a_flapping_site_costs_few_moves_and_no_frame(leaves: dict[str, Leaf], prefix: str) -> None:
    gate = leaves["gate"]
    events = Events()
    routing = msgspec.structs.replace(QUICK, hold_s=0.25, silent_s=0.5)
    publisher = gate_first(leaves, prefix, routing=routing, on_event=events).start()
    camera = Camera(publisher)
    began_s = time.monotonic()
    try:
        camera.goes_on()
        for _ in range(3):
            gate.proxy.cut()
            wait_for(lambda: publisher.site == "hall", "the move")
            gate.proxy.restore()
            wait_for(lambda: publisher.site == "gate" or time.monotonic() - began_s > 20, "the return, or patience")
            if publisher.site == "hall":
                break
        camera.goes_on()
    finally:
        gate.proxy.restore()
        camera.stop()
    took_s = time.monotonic() - began_s
    assert publisher.close(20.0) == []
    returns = [at for at, event in events.all if isinstance(event, Moved) and event.reason == "nearer"]
    assert len(returns) >= 2
    assert len(returns) <= took_s / routing.hold_s
    assert judge(camera, leaves, prefix) == {}


def test_when_all_sites_are_away_what_is_too_old_is_dropped_and_declared(leaves: dict[str, Leaf], prefix: str) -> None:
    routing = Routing(hold_s=60.0, hold_max_s=60.0, silent_s=0.5, max_age_s=0.8)
    publisher = RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], routing=routing).start()
    camera = Camera(publisher)
    try:
        camera.goes_on()
        for leaf in leaves.values():
            leaf.proxy.cut()
        wait_for(lambda: camera.producer.counters().dropped > 50, "drops")
        moved = dict(publisher.router.moves)
        leaves["hall"].proxy.restore()  # not the one in use
        camera.goes_on()
        assert publisher.site == "hall"
        assert sum(moved.values()) <= 1, "where nothing is known to be well nothing is gone to"
    finally:
        camera.stop()
    assert publisher.close(20.0) == []
    leaves["gate"].proxy.restore()
    drops = judge(camera, leaves, prefix)
    assert set(drops) == {"too-old"}
    assert set(declared(leaves["hall"], prefix, camera.epoch)) == {"too-old"}


def test_what_the_queue_cannot_hold_is_the_oldest_and_declared_where_it_can_be(leaves: dict[str, Leaf], prefix: str) -> None:
    limits = Limits(queue_frames=5, max_age_s=10.0)
    publisher = RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], limits=limits).start()
    camera = Camera(publisher)
    try:
        camera.goes_on()
        leaves["gate"].proxy.cut()
        wait_for(lambda: publisher.site == "hall", "the move")
        camera.goes_on()
    finally:
        camera.stop()
    assert publisher.close(20.0) == []
    leaves["gate"].proxy.restore()
    drops = judge(camera, leaves, prefix)
    assert set(drops) == {"broker-slow"}
    arrived = stored(leaves["hall"], prefix, camera.epoch)
    assert arrived == sorted(set(arrived))


def test_what_was_under_way_to_a_site_that_was_left_for_a_nearer_one_arrives_whatever_becomes_of_it(
    leaves: dict[str, Leaf], prefix: str
) -> None:
    gate, hall = leaves["gate"], leaves["hall"]
    gate.proxy.delay_s, hall.proxy.delay_s = 0.2, 0.08
    events = Events()

    def seen(event: Event) -> None:
        events(event)
        if isinstance(event, Moved) and event.reason == "nearer":
            hall.proxy.cut()  # frames are under way, for 0.08 s each way

    routing = msgspec.structs.replace(QUICK, probe_timeout_s=10.0, silent_s=2.0)
    publisher = RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], routing=routing, on_event=seen).start()
    camera = Camera(publisher)
    try:
        assert publisher.site == "hall"
        camera.goes_on()
        gate.proxy.delay_s = 0.0
        wait_for(lambda: publisher.site == "gate", "the move to the nearer one")
        camera.goes_on()
        wait_for(lambda: publisher.router.states()[1].why, "that hall is silent")
        camera.goes_on()
    finally:
        camera.stop()
    assert publisher.close(20.0) == []
    hall.proxy.restore()
    assert [(move.old, move.new, move.resent) for move in events.moves] == [(None, "hall", 0), ("hall", "gate", 0)]
    assert judge(camera, leaves, prefix) == {}


def test_dead_sites_do_not_hold_up_the_start(leaves: dict[str, Leaf], prefix: str) -> None:
    dead = SiteConfig(name="dead", tier="leaf", kafka=Kafka(bootstrap_servers="127.0.0.1:1"))
    events = Events()
    leaves["gate"].proxy.cut()
    other = leaves["hall"].config(f"{prefix}never.")  # its topics are not there
    sites = [dead, leaves["gate"].config(prefix), leaves["hall"].config(prefix)]
    began_s = time.monotonic()
    with RoutedPublisher(sites, routing=QUICK, on_event=events) as publisher:
        assert time.monotonic() - began_s < 8  # the limit for one that is not there is 10 s
        assert publisher.site == "hall"
        camera = Camera(publisher)
        camera.goes_on()
        leaves["gate"].proxy.restore()
        wait_for(lambda: publisher.site == "gate", "the nearer one, which came later")
        camera.goes_on()
        camera.stop()
    assert any(isinstance(event, SiteChanged) and (event.site, event.ok) == ("gate", True) for _, event in events.all)
    judge(camera, leaves, prefix)
    with pytest.raises(BrokerUnavailable, match=r"none of the 2 sites.*dead: no Kafka broker answered at 127\.0\.0\.1:1.*hall: .*no topic"):
        RoutedPublisher([dead, other]).start(timeout_s=0.5)
    gate = leaves["gate"].config(f"{prefix}never.")
    with pytest.raises(WrongTopics, match=r"none of the 2 sites.*headwater topology create"):
        RoutedPublisher([gate, other]).start()


def test_the_end_is_bounded_when_every_site_is_dead(leaves: dict[str, Leaf], prefix: str) -> None:
    publisher = RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()]).start()
    camera = Camera(publisher)
    camera.goes_on()
    for leaf in leaves.values():
        leaf.proxy.cut()
    was = camera.acknowledged
    wait_for(lambda: camera.producer.counters().open > 20, "open frames")
    camera.stop()
    outcomes: list[Outcome] = []
    camera.assigned.append(camera.producer.publish(JPEG, on_outcome=outcomes.append).sequence)
    began_s = time.monotonic()
    [left] = publisher.close(2.0)
    assert time.monotonic() - began_s < 15
    missing = {n for first, last in left.sequences.pairs for n in range(first, last + 1)}
    assert (left.epoch, left.ended) == (camera.epoch, False)
    assert [outcome.reason for outcome in outcomes] == ["closed"]
    assert missing >= set(range(was + 10, len(camera.assigned)))


def test_an_epoch_that_ends_while_its_first_site_is_dead_is_told_complete(leaves: dict[str, Leaf], prefix: str) -> None:
    publisher = gate_first(leaves, prefix, routing=QUICK).start()
    camera = Camera(publisher)
    camera.goes_on()
    leaves["gate"].proxy.cut()
    wait_for(lambda: publisher.site == "hall", "the move")
    camera.stop()
    assert publisher.close(20.0) == []
    leaves["gate"].proxy.restore()
    assert marks(leaves["gate"], prefix, camera.epoch)[-1]["state"] != "ended"
    last = marks(leaves["hall"], prefix, camera.epoch)[-1]
    assert (last["state"], last["acknowledged"]) == ("ended", len(camera.assigned))
    assert elsewhere(last) <= set(stored(leaves["gate"], prefix, camera.epoch))
    judge(camera, leaves, prefix)


def test_a_frame_that_is_itself_at_fault_moves_nobody(leaves: dict[str, Leaf], prefix: str) -> None:
    config = leaves["gate"].config(prefix)
    tight = SiteConfig(
        name="gate",
        tier="leaf",
        kafka=Kafka(bootstrap_servers=config.kafka.bootstrap_servers, properties={"message.max.bytes": "10000"}),
        topics=config.topics,
    )
    with RoutedPublisher([tight, leaves["hall"].config(prefix)]) as publisher:
        source = publisher.source("cam")
        epoch = source.begin()
        for size in (100, 50_000, 100):
            source.publish(b"\xff\xd8\xff" + bytes(size))
        wait_for(lambda: source.counters().open == 0, "all to end")
        assert publisher.site == "gate"
        assert not publisher.router.moves
    assert stored(leaves["gate"], prefix, epoch) == [0, 2]
    assert declared(leaves["gate"], prefix, epoch) == {"delivery-failed": {1}}


# ---- what looks like an acknowledgement


def test_a_producer_may_be_told_that_a_record_was_delivered_which_was_never_stored(leaves: dict[str, Leaf], prefix: str) -> None:
    """Of librdkafka and Kafka, not of ours: why the first frame of a client goes alone, and a report without an offset counts for nothing.
    If this fails with later versions, both can go."""
    gate, reports = leaves["gate"], {}
    gate.proxy.damage = b"number 0"
    producer = Producer(
        {"bootstrap.servers": gate.far.bootstrap_servers, "enable.idempotence": True, "linger.ms": 0, "batch.num.messages": 1}
    )
    for number in range(5):
        producer.produce(
            f"{prefix}frames",
            value=b"number %d" % number,
            partition=0,
            on_delivery=lambda error, message, number=number: reports.update({number: (error, message.offset())}),
        )
    assert producer.flush(LIMIT_S) == 0
    assert gate.proxy.damage is None, "it was damaged"
    assert reports == {0: (None, None), 1: (None, 0), 2: (None, 1), 3: (None, 2), 4: (None, 3)}
    assert [record.value() for record in gate.rows(f"{prefix}frames")] == [b"number %d" % number for number in range(1, 5)]


@pytest.mark.parametrize("damaged", [0, 1, 10])
def test_a_frame_that_is_damaged_on_the_way_is_stored_in_its_place(leaves: dict[str, Leaf], prefix: str, damaged: int) -> None:
    gate = leaves["gate"]
    gate.proxy.damage = b"number %d." % damaged
    sites = [leaf.config(prefix, batch_num_messages="1") for leaf in leaves.values()]  # so that each request holds one frame
    with RoutedPublisher(sites) as publisher:
        source = publisher.source("cam")
        epoch = source.begin()
        for number in range(20):
            source.publish(JPEG + b"number %d." % number)
    assert gate.proxy.damage is None, "it was damaged"
    assert stored(gate, prefix, epoch) == list(range(20))
    assert marks(gate, prefix, epoch)[-1]["acknowledged"] == 20


def test_a_mark_that_is_damaged_on_the_way_is_told_all_the_same(leaves: dict[str, Leaf], prefix: str) -> None:
    gate = leaves["gate"]
    first, second = [name for name in (f"cam-{number}" for number in range(20)) if partition_of(name, 2) == 0][:2]
    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()]) as publisher:
        gate.proxy.damage = b"started"
        epoch = publisher.source(first).begin()
        wait_for(lambda: gate.proxy.damage is None, "the damage")
        other = publisher.source(second).begin()  # it overtakes the damaged one, which is tried again a little later
        publisher.source(first).publish(JPEG)
    for each in (epoch, other):
        states = [mark["state"] for mark in marks(gate, prefix, each)]
        assert (states[0], states[-1]) == ("started", "ended")


def test_a_report_without_an_offset_is_no_acknowledgement(leaves: dict[str, Leaf], prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker also forgets producers that were idle for a day; the test does not wait for that."""
    doubted = {(f"{prefix}frames", 2)}  # by topic and offset
    monkeypatch.setattr(publisher_module, "only_inferred", lambda error, message: (message.topic(), message.offset()) in doubted)
    outcomes: list[Outcome] = []
    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()]) as publisher:
        source = publisher.source("cam")
        epoch = source.begin()
        for number in range(6):
            source.publish(JPEG, on_outcome=outcomes.append)
            wait_for(lambda number=number: len(outcomes) > number, "the outcome")
    assert stored(leaves["gate"], prefix, epoch) == [0, 1, 2, 2, 3, 4, 5]
    assert [(outcome.id.sequence, outcome.site) for outcome in outcomes] == [(number, "gate") for number in range(6)]


def test_whoever_asks_for_no_acknowledgements_gets_none(leaves: dict[str, Leaf], prefix: str) -> None:
    config = leaves["gate"].config(prefix)
    kafka = msgspec.structs.replace(config.kafka, properties={"acks": "0", "enable.idempotence": "false"})
    with RoutedPublisher([msgspec.structs.replace(config, kafka=kafka)]) as publisher:
        source = publisher.source("cam")
        epoch = source.begin()
        for _ in range(5):
            source.publish(JPEG)
        wait_for(lambda: source.counters().open == 0, "all to be sent")
        assert publisher.close(20.0) == []
    assert stored(leaves["gate"], prefix, epoch) == list(range(5))


# ---- what fails beside the frames


def test_callbacks_that_fail_end_nothing(leaves: dict[str, Leaf], prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise OSError("nobody reads this")

    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], on_event=fail) as publisher:
        source = publisher.source("cam")
        epoch = source.begin()
        for _ in range(3):
            source.publish(JPEG, on_outcome=fail)
        wait_for(lambda: source.counters().open == 0, "all to end")
    assert stored(leaves["gate"], prefix, epoch) == [0, 1, 2]
    assert {record.name for record in caplog.records if record.exc_info} == {"headwater.produce", "headwater.routing"}


def test_whoever_waits_is_told_when_the_publisher_fails(leaves: dict[str, Leaf], prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send() -> None:
        async with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], limits=Limits(queue_frames=4)) as publisher:
            publisher.source("scan").begin()
            leaves["gate"].proxy.cut()
            sent = asyncio.ensure_future(publisher.send("scan", JPEG))
            await asyncio.sleep(0)
            monkeypatch.setattr(publisher, "_route", lambda: 1 // 0)
            assert (await asyncio.wait_for(sent, LIMIT_S)).reason == "closed"
            with pytest.raises(PublisherClosed) as failed:
                await publisher.send("scan", JPEG)
            assert isinstance(failed.value.__cause__, ZeroDivisionError)

    asyncio.run(send())


def test_a_site_that_was_left_and_refuses_late_does_not_speak_against_the_one_in_use(leaves: dict[str, Leaf], prefix: str) -> None:
    refusal = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()]) as publisher:
        wait_for(lambda: all(state.ok for state in publisher.router.states()), "both")
        assert publisher.blames_site(refusal, publisher._lanes["hall"])
        assert (publisher._lane.refused, publisher._lanes["hall"].refused) == (None, None)
        assert publisher.blames_site(refusal, publisher._lanes["gate"])
        assert publisher._lane.refused is not None


# ---- the library from asyncio, and for sources that can wait


async def publish_from_asyncio(leaves: dict[str, Leaf], prefix: str) -> None:
    sites = [leaf.config(prefix) for leaf in leaves.values()]
    async with RoutedPublisher(sites, limits=Limits(queue_frames=4, max_age_s=60.0)) as publisher:
        epoch = publisher.source("scan").begin()
        outcomes = await asyncio.gather(*(publisher.send("scan", JPEG) for _ in range(20)))
        assert {outcome.site for outcome in outcomes} == {"gate"}
        leaves["gate"].proxy.cut()
        outcome = await asyncio.wait_for(publisher.send("scan", JPEG), LIMIT_S)
        assert (outcome.site, outcome.id.epoch, outcome.id.sequence) == ("hall", epoch, 20)
        leaves["hall"].proxy.cut()
        waiting = [asyncio.ensure_future(publisher.send("scan", JPEG, wait_s=0.2)) for _ in range(40)]
        _, pending = await asyncio.wait(waiting, timeout=1.5)
        assert 0 < len(pending) < 40  # what fits is under way or waits; the rest is told that there is no room
        with pytest.raises(NoRoom, match="no site has taken frames"):
            await next(task for task in waiting if task not in pending)
        leaves["hall"].proxy.restore()
        for outcome in await asyncio.wait_for(asyncio.gather(*pending), LIMIT_S):
            assert outcome.site is not None
    leaves["gate"].proxy.restore()


def test_async_clients_wait_for_room_and_for_the_outcome(leaves: dict[str, Leaf], prefix: str) -> None:
    asyncio.run(publish_from_asyncio(leaves, prefix))


def test_sources_that_can_wait_lose_nothing(leaves: dict[str, Leaf], prefix: str) -> None:
    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], limits=Limits(queue_frames=4)) as publisher:
        source = publisher.source("file")
        epoch = source.begin()
        for number in range(120):
            if number == 60:
                leaves["gate"].proxy.cut()
            assert source.wait_for_room(LIMIT_S)
            source.publish(JPEG)
    leaves["gate"].proxy.restore()
    found = {leaf.name: stored(leaf, prefix, epoch) for leaf in leaves.values()}
    assert set(found["gate"]) | set(found["hall"]) == set(range(120))
    assert found["hall"] == sorted(set(found["hall"]))
    assert found["hall"][-1] == 119
    assert declared(leaves["hall"], prefix, epoch) == {}


def test_sites_have_names_of_their_own(leaves: dict[str, Leaf], prefix: str) -> None:
    config = leaves["gate"].config(prefix)
    with pytest.raises(ValueError, match="each name once"):
        RoutedPublisher([config, config])
    with pytest.raises(ValueError, match="at least one"):
        RoutedPublisher([])
    with pytest.raises(ValueError, match="at least one"):
        Router([])
    site = Site(clients=Clients(config.kafka, "test"), topology=Topology(config))
    assert Router([site]).alone


def test_the_manifest_sees_every_frame_before_it_is_sent(leaves: dict[str, Leaf], prefix: str) -> None:
    listed: list[Frame] = []
    with RoutedPublisher([leaf.config(prefix) for leaf in leaves.values()], on_assigned=listed.append) as publisher:
        source = publisher.source("cam")
        source.begin()
        ids = [source.publish(JPEG) for _ in range(5)]
    assert [frame.id for frame in listed] == ids
