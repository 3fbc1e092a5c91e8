"""Workers: each role of a site put together and run until it is told to stop. Which process runs which role is decided above."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faust
from mode import Service

from agents.cascade.budgets import Budgets
from agents.cascade.policy import make_policy
from agents.inference.detector import Detector, load
from agents.leaf import Leaf
from agents.region import Region
from agents.resolver import Resolver
from schemas.config import SiteConfig
from schemas.errors import Fault
from schemas.identity import foreign_id
from schemas.intervals import Intervals
from schemas.messages import Alert, Control, Drop
from schemas.records import InvalidRecord
from streams import outputs, telemetry
from streams.app import ColdRecord, cold_agent, hot_agent, make_app, run_worker
from streams.batches import BatchSource, Lost
from streams.clients import BrokerUnavailable, Clients
from streams.delivery import Delivery
from streams.merging import ReadRefused, TopicMissing
from streams.reader import read
from streams.sink import Sink
from streams.topology import Role, RoleView, Topic, Topology

log = logging.getLogger("headwater.worker")

ANNOUNCE_S = 15.0  # Faust takes up a cold topic where it left it, so a leaf that restarts hears its region again within this time
DEADLINE_CHECK_S = 0.25
RECALL_S = 60.0  # beyond the longest cool-down: what a frame may wait, and clocks may differ


class TopicsMissing(Fault, LookupError):
    """Topics that this role needs do not exist."""


class Deadlines(Service):
    """Publishes `unanswered` for the records whose deadline has passed."""

    def __init__(self, resolver: Resolver, sink: Sink, **kwargs: Any) -> None:
        self.resolver, self.sink = resolver, sink
        super().__init__(**kwargs)

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            await self.sleep(DEADLINE_CHECK_S)
            if found := self.resolver.overdue(self.sink.clock.now_ms()):
                await self.sink.write(found)


class Announcements(Service):
    """Tells every leaf what the region can afford for it, again and again."""

    def __init__(self, region: Region, sink: Sink, **kwargs: Any) -> None:
        self.region, self.sink = region, sink
        super().__init__(**kwargs)

    @Service.task
    async def _announce(self) -> None:
        while not self.should_stop:
            await self.sink.write(self.region.announcements(dt.datetime.now(dt.UTC)))
            await self.sleep(ANNOUNCE_S)


def run_leaf(config: SiteConfig, folder: Path, models: Path) -> int:
    """Run the leaf agent; returns its exit code.

    Raises
    ------
    BrokerUnavailable, TopicsMissing
        Before anything is started.
    """
    topology = Topology(config)
    role = topology.role(Role.LEAF)
    clients = Clients(config.kafka, f"{config.name}.leaf")
    info = _existing(clients, role)
    detector = _detector(config, models)
    sink = Sink(clients)
    budgets = Budgets(
        bytes_per_s=config.policy.budget_bytes_per_s,
        inferences_per_s=config.policy.inferences_per_s,
        burst_s=config.policy.burst_s,
        clock=time.monotonic,
    )
    frames = role.read("frames")
    leaf = Leaf(
        config,
        role,
        detector,
        make_policy(config.policy),
        budgets,
        cluster=info.id,
        frames_uuid=info.topics[frames.name][0],
        clock=sink.clock,
    )
    app = make_app(config, role, folder)

    async def heed(record: ColdRecord) -> None:
        leaf.heed(Control.from_bytes(record.value() or b""))

    cold_agent(app, role.read("control"), role.write("control.dlq"), heed, lambda: sink, role.group())

    def explain(lost: Lost) -> None:
        """Offsets that retention took become a drop of the partition, as foreign records are accounted; it is written before anything
        beyond them is read."""
        place = foreign_id(info.id, info.topics[lost.topic.name][0], lost.partition, lost.first)
        drop = Drop(
            source=place.source,
            epoch=place.epoch,
            site=config.name,
            stage="leaf",
            reason="retention",
            ranges=Intervals([(lost.first, lost.last)]).to_ranges(),
        )
        telemetry.DROPPED.labels("retention").inc(lost.last - lost.first + 1)
        sink.write_blocking([outputs.drop(role.write("drops"), drop, dt.datetime.now(dt.UTC))])

    def recall(_: object) -> None:
        """Partitions come with what was raised on them lately, whoever raised it."""
        if config.rules:
            leaf.recall(_alerts_since(clients, role.read("alerts"), max(rule.cooldown_s for rule in config.rules) + RECALL_S))

    delivery = Delivery(sink, leaf.work, _dead_letters(role), role.group())
    source = BatchSource(
        clients,
        [frames],
        role.group(),
        hot_agent(app, f"{role.group()}.frames", delivery, concurrency=4),
        on_assigned=recall,
        on_lost=explain,
        max_records=8,
        in_flight=4,
        settings={"fetch.message.max.bytes": frames.max_message_bytes, "queued.max.messages.kbytes": 16 << 10},
    )
    return _run(app, sink, leaf, source)


def run_region(config: SiteConfig, folder: Path, models: Path) -> int:
    """Run the region agent; returns its exit code. Raises as `run_leaf` does."""
    role = Topology(config).role(Role.REGION)
    clients = Clients(config.kafka, f"{config.name}.region")
    _existing(clients, role)
    detector = _detector(config, models)
    sink = Sink(clients)
    region = Region(config, role, detector)
    app = make_app(config, role, folder)
    delivery = Delivery(sink, region.work, _dead_letters(role), role.group())
    source = BatchSource(
        clients,
        role.reads(),
        role.group(),
        hot_agent(app, f"{role.group()}.escalations", delivery, concurrency=4),
        max_records=4,
        in_flight=4,
        settings={"fetch.message.max.bytes": 4 << 20},
    )
    return _run(app, sink, region, source, Announcements(region, sink))


def run_resolver(config: SiteConfig, folder: Path) -> int:
    """Run the resolver of either tier; returns its exit code. Raises as `run_leaf` does."""
    role = Topology(config).role(Role.RESOLVER)
    clients = Clients(config.kafka, f"{config.name}.resolver")
    _existing(clients, role)
    sink = Sink(clients, linger_ms=2)
    resolver = Resolver(config, role, clients)
    app = make_app(config, role, folder)
    delivery = Delivery(sink, resolver.work, _dead_letters(role), role.group())
    source = BatchSource(
        clients,
        [topic for topic in role.reads() if topic.writers != {Role.RESOLVER}],  # what only it writes is what it restores itself from
        role.group(),
        hot_agent(app, f"{role.group()}.verdicts", delivery, concurrency=8),
        on_assigned=resolver.restore,
        on_revoked=resolver.forget,
        max_records=500,
        in_flight=8,
        settings={
            "group.instance.id": role.group(),  # a restart takes up the same partitions, and both inputs stay together
            "max.poll.interval.ms": 3_600_000,  # restoring is done within a poll, and may have gigabytes to read
        },
    )
    return _run(app, sink, resolver, source, Deadlines(resolver, sink))


def _run(app: faust.App, sink: Sink, agent: Any, *services: Service) -> int:
    try:
        return run_worker(app, *services)
    finally:
        sink.close()
        if hasattr(agent, "close"):
            agent.close()


def _alerts_since(clients: Clients, topic: Topic, age_s: float) -> Iterator[Alert]:
    """The alerts that the broker took in the last seconds. Without them the leaf goes on: an alert may then be raised twice."""
    try:
        for record in read(clients, [topic], start=dt.timedelta(seconds=age_s)):
            with contextlib.suppress(InvalidRecord):  # nothing that we wrote, or by another version: the resolver says so
                yield Alert.from_bytes(record.value)
    except (BrokerUnavailable, ReadRefused, TopicMissing) as error:
        log.warning("the latest alerts could not be read, so one may be raised again: %s", error, extra={"topic": topic.name})


def _detector(config: SiteConfig, models: Path) -> Detector:
    detector = load(config.detector, config.engine, models)
    detector.warm_up()
    telemetry.ENGINE.info({"asked": ",".join(config.engine.prefer), "got": detector.got, "model": detector.name})
    log.info(
        "engine ready",
        extra={"asked": ",".join(config.engine.prefer), "got": detector.got, "model": detector.name, "digest": detector.digest[:16]},
    )
    return detector


def _dead_letters(role: RoleView) -> Any:
    def find(topic: Topic) -> Topic:
        return role.write(f"{topic.base}.dlq", topic.site)

    return find


def _existing(clients: Clients, role: RoleView) -> Any:
    """The cluster, once it has every topic of the role; raises `TopicsMissing`."""
    wanted = {topic.name for topic in (*role.reads(), *role.writes())}
    info = clients.cluster(sorted(wanted))
    if missing := sorted(wanted - set(info.topics)):
        raise TopicsMissing(f"{clients.kafka.bootstrap_servers} lacks topics {', '.join(missing)}: `headwater topology create` makes them")
    return info
