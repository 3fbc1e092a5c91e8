"""Workers: each role of a site put together and run until it is told to stop. Which process runs which role is decided above."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import faust
from mode import Service

from agents.cascade.budgets import Budgets
from agents.cascade.cascade import Cascade
from agents.cascade.stream import FAINT_FROM
from agents.cascade.values import VALUES
from agents.hearing import Hearing
from agents.incidents import Incidents
from agents.inference.detector import Detector, load
from agents.leaf import Leaf
from agents.lessons import Lessons
from agents.questions import Questions
from agents.reach import Reach
from agents.region import Region
from agents.reports import Reports
from agents.resolver import Resolver
from agents.sight import Sight, slow_limit_s
from agents.sizes import OtherSizes
from agents.snapshots import Snapshotter
from agents.steps import rungs_of
from schemas.config import SiteConfig
from schemas.errors import Fault
from schemas.labels import Label
from schemas.links import LinkState
from schemas.messages import Alert, Control, Drop, Verdict
from schemas.records import InvalidRecord
from streams import lost_frames, lost_verdicts, outputs, telemetry
from streams.accounts import Accounting
from streams.app import ColdRecord, cold_agent, hot_agent, make_app, run_worker
from streams.batches import BatchSource, Lost, Place
from streams.clients import BrokerUnavailable, Clients, ClusterInfo
from streams.delivery import Delivery, Emitted, Rejected
from streams.disk import DiskGuard, Relief
from streams.laws import own
from streams.merging import ReadRefused, TopicMissing
from streams.message import KafkaRecord
from streams.quarantine import Quarantine
from streams.reader import Stored, read
from streams.same_topics import SameTopics
from streams.sink import Sink
from streams.topology import Role, RoleView, Topic, Topology

log = logging.getLogger("headwater.worker")

ANNOUNCE_S = 15.0  # Faust takes up a cold topic where it left it, so a leaf that restarts hears its region again within this time
DEADLINE_CHECK_S = 0.25
SILENCE_CHECK_S = 1.0
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


class Silences(Service):
    """Notices cameras that are silent: looks about once a second, and only while no frame waits to be read."""

    def __init__(self, leaf: Leaf, sink: Sink, frames: BatchSource, **kwargs: Any) -> None:
        self.leaf, self.sink, self.frames = leaf, sink, frames
        super().__init__(**kwargs)

    @Service.task
    async def _watch(self) -> None:
        known_for = 0
        while not self.should_stop:
            before_s = time.monotonic()
            await self.sleep(SILENCE_CHECK_S)
            stood_still = time.monotonic() - before_s > 3 * SILENCE_CHECK_S  # we did, not the cameras: what came meanwhile is not read yet
            known_for = known_for + 1 if self.frames.lag == 0 and not stood_still else 0
            if known_for > 2 and (found := self.leaf.tick()):
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
    asks = config.link is not None and config.policy.mode != "off"
    others = OtherSizes(config, models, faint_from=FAINT_FROM) if asks and config.policy.teach else None
    sight = Sight(
        rungs_of(config, models, FAINT_FROM),
        others=others,
        slow_s=slow_limit_s(config),
        hang_s=config.engine.hang_ms / 1000,
        load_s=config.engine.load_s,
        workers=config.engine.workers,
    )
    sight.start()
    sink = Sink(clients)
    budgets = Budgets(
        bytes_per_s=config.policy.budget_bytes_per_s,
        inferences_per_s=config.policy.inferences_per_s,
        burst_s=config.policy.burst_s,
        clock=time.monotonic,
    )
    frames = role.read("frames")
    cascade = Cascade(  # where nobody is asked nobody teaches, and frames have tracks
        mode=config.policy.mode if asks else "off",
        value=VALUES[config.policy.value](),
        budgets=budgets,
        choices=[config.detector.sizes] if others is None else others.sets,
        publish_from=config.detector.min_score,
        teach=asks and config.policy.teach,
    )
    reach = Reach()
    guard = _disk_guard(config, topology, clients, sink)
    questions = Questions(config, role, cascade, reach, guard)
    in_flight = 4 + questions.held_batches
    leaf = Leaf(
        config,
        role,
        sight,
        questions,
        cluster=info.id,
        frames_uuid=info.topics[frames.name][0],
        clock=sink.clock,
    )
    lessons = Lessons(clients, role.read("lessons"), sink, cascade, leaf.audits, leaf.monitors, site=config.name)
    reports = Reports(leaf.audits, sink, role.write("accuracy"))
    app = make_app(config, role, folder)

    async def heed(record: ColdRecord) -> None:
        leaf.heed(Control.from_bytes(record.value() or b""))

    # Every worker hears both below; this one sees to dead letters, and Faust starts no agent without a topic of its own.
    cold_agent(app, role.read("control"), role.write("control.dlq"), heed, lambda: sink, role.group())

    def hear_link(stored: Stored) -> None:
        appended = stored.appended_at
        age_s = 0.0 if appended is None else sink.clock.age_s(round(appended.timestamp() * 1000))
        questions.hear_link(LinkState.from_bytes(stored.value or b""), age_s, dt.datetime.now(dt.UTC))

    def hear_control(stored: Stored) -> None:
        leaf.heed(Control.from_bytes(stored.value or b""))

    def hear_region(stored: Stored) -> None:
        sink.post(leaf.hear(Verdict.from_bytes(stored.value or b"")))
        telemetry.LOOK_THRESHOLD.set(cascade.governor.threshold)

    def hear_label(stored: Stored) -> None:
        leaf.audits.label(Label.from_bytes(stored.value or b""))

    # Answers to frames that were asked about before a restart teach nothing: what was known of those frames is gone with the process.
    heard = {role.read("link.state"): hear_link, role.read("control"): hear_control, role.read("region.verdicts"): hear_region}
    if asks:
        heard[role.read("labels")] = hear_label
    hearing = Hearing(clients, heard)

    def explain(lost: Lost) -> None:
        """Offsets that retention took become drops of the epochs they belonged to, written before anything beyond them is read."""
        telemetry.DROPPED.labels("retention").inc(lost.last - lost.first + 1)
        _tell(sink, role, lost_frames.drops_of(topology, clients, info, lost))

    # Frames may be read again that are as old as is let in; the alerts on them, and those that muted others then, are known again.
    horizon_s = max((rule.cooldown_s for rule in config.rules), default=0.0) + config.ingress.max_age_ms / 1000 + RECALL_S

    def recall(places: list[Place]) -> None:
        """Partitions come with what was raised on them lately, whoever raised it, and with their share of the site's budgets."""
        questions.share(len(places) / frames.partitions)
        lessons.restore(partition for _, partition in places)
        lessons.events.call_soon_threadsafe(leaf.monitors.serve, frozenset(partition for _, partition in places), frames.partitions)
        if config.rules:
            leaf.recall(_alerts_since(clients, role.read("alerts"), horizon_s))

    quarantine = Quarantine(folder, role.role, work_limit_s=config.engine.work_limit_s)
    places = {frames.name: (info.id, info.topics[frames.name][0])}
    delivery = Delivery(sink, leaf.work, _dead_letters(role), role.group(), quarantine=quarantine, places=places)
    source = BatchSource(
        clients,
        [frames],
        role.group(),
        hot_agent(app, f"{role.group()}.frames", delivery, concurrency=in_flight),
        on_assigned=recall,
        on_revoked=lambda _: lessons.hand_over(),
        on_lost=explain,
        max_records=8,
        in_flight=in_flight,
        settings={"fetch.message.max.bytes": frames.max_message_bytes, "queued.max.messages.kbytes": 16 << 10},
    )
    silences = Silences(leaf, sink, source)
    if guard is not None:
        guard.leads = lambda: (frames.name, 0) in source.assigned  # of several workers one makes room
    return _run(
        app, sink, leaf, quarantine, lessons, reports, source, hearing, silences, _same(clients, info, [frames]), *filter(None, [guard])
    )


def run_region(config: SiteConfig, folder: Path, models: Path) -> int:
    """Run the region agent; returns its exit code. Raises as `run_leaf` does."""
    role = Topology(config).role(Role.REGION)
    clients = Clients(config.kafka, f"{config.name}.region")
    info = _existing(clients, role)
    detector = _detector(config, models)
    sink = Sink(clients)
    region = Region(config, role, detector, sink.clock)
    app = make_app(config, role, folder)
    quarantine = Quarantine(folder, role.role, work_limit_s=config.engine.work_limit_s)
    delivery = Delivery(sink, region.work, _dead_letters(role), role.group(), quarantine=quarantine)
    source = BatchSource(
        clients,
        role.reads(),
        role.group(),
        hot_agent(app, f"{role.group()}.escalations", delivery, concurrency=4),
        max_records=4,
        in_flight=4,
        settings={"fetch.message.max.bytes": 4 << 20},
    )
    return _run(app, sink, region, quarantine, source, Announcements(region, sink), _same(clients, info, role.reads()))


def run_resolver(config: SiteConfig, folder: Path, instance: int = 1) -> int:
    """Run the resolver of either tier; returns its exit code. Raises as `run_leaf` does.

    Parameters
    ----------
    instance
        Its place in the group, which is fixed: two processes of one number would end each other, those of different ones share the work.
    """
    role = Topology(config).role(Role.RESOLVER)
    clients = Clients(config.kafka, f"{config.name}.resolver")
    info = _existing(clients, role)
    _existing(clients, role.topology.role(Role.ACCOUNTANT))
    sink = Sink(clients, linger_ms=2)
    resolver, incidents = Resolver(config, role, clients), Incidents(config, role, clients)

    def assigned(places: list[Place]) -> None:
        resolver.restore(places)
        incidents.restore(places)

    def revoked(places: list[Place]) -> None:
        resolver.forget(places)
        incidents.forget(places)

    def work(topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        return (incidents if topic.name == incidents.alerts.name else resolver).work(topic, partition, records)

    def explain(lost: Lost) -> None:
        """Records that are left without an end, since retention took their verdicts, become drops; the region has none to explain."""
        if lost.topic.base == "verdicts":
            _tell(sink, role, lost_verdicts.drops_of(role.topology, clients, lost))

    app = make_app(config, role, folder)
    quarantine = Quarantine(folder, role.role, work_limit_s=config.engine.work_limit_s)
    delivery = Delivery(sink, work, _dead_letters(role), role.group(), quarantine=quarantine)
    source = BatchSource(
        clients,
        [topic for topic in role.reads() if not own(topic, Role.RESOLVER)],  # what only it writes is what it restores itself from
        role.group(),
        hot_agent(app, f"{role.group()}.verdicts", delivery, concurrency=8),
        on_assigned=assigned,
        on_revoked=revoked,
        on_lost=explain,
        max_records=500,
        in_flight=8,
        settings={
            "group.instance.id": role.group()
            + (f".{instance}" if instance > 1 else ""),  # a restart takes up the same partitions, and both inputs stay together
            "max.poll.interval.ms": 3_600_000,  # restoring is done within a poll, and may have gigabytes to read
        },
    )
    return _run(
        app,
        sink,
        resolver,
        quarantine,
        source,
        Deadlines(resolver, sink),
        Snapshotter(resolver.snapshots, sink, resolver.grown),
        Accounting(role.topology, clients, sink, instance=instance),
        _same(clients, info, role.reads()),
    )


def _run(app: faust.App, sink: Sink, agent: Any, quarantine: Quarantine, *services: Service) -> int:
    # Faust's own group has nothing that could not wait, and its app does not start before it: a worker that was killed and starts again
    # takes its old place in it at once. The place goes with the journal, which one process holds at a time.
    place = f"{socket.gethostname()}.{quarantine.journal.path}"
    app.conf.consumer_group_instance_id = f"{quarantine.journal.path.stem}.{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    code = 1
    try:
        code = run_worker(app, quarantine, *services)
        return code
    finally:
        sink.close()
        if hasattr(agent, "close"):
            agent.close()
        if getattr(agent, "stuck", 0):
            log.warning("threads hang in an engine: the process ends without waiting for them", extra={"threads": agent.stuck})
            logging.shutdown()
            os._exit(code)  # libraries' own clean-up is not made for threads that still run in them


def _tell(sink: Sink, role: RoleView, drops: Sequence[Drop]) -> None:
    """Write drops, before anything is read beyond what they explain."""
    now, topic = dt.datetime.now(dt.UTC), role.write("drops")
    sink.write_blocking([outputs.drop(topic, drop, now) for drop in drops])


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


def _disk_guard(config: SiteConfig, topology: Topology, clients: Clients, sink: Sink) -> DiskGuard | None:
    """The guard of the disk that the broker's log lies on; None where that is not this machine's."""
    if not config.disk.path:
        return None
    return DiskGuard(config.disk, Path(config.disk.path), Relief(topology, clients, sink))


def _same(clients: Clients, info: ClusterInfo, topics: Sequence[Topic]) -> SameTopics:
    """Ends the worker when a topic that it reads is made anew."""
    return SameTopics(clients, {topic.name: info.topics[topic.name][0] for topic in topics})


def _existing(clients: Clients, role: RoleView) -> ClusterInfo:
    """The cluster, once it has every topic of the role; raises `TopicsMissing`."""
    wanted = {topic.name for topic in (*role.reads(), *role.writes())}
    info = clients.cluster(sorted(wanted))
    if missing := sorted(wanted - set(info.topics)):
        raise TopicsMissing(f"{clients.kafka.bootstrap_servers} lacks topics {', '.join(missing)}: `headwater topology create` makes them")
    return info
