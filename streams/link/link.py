"""The link's own thread: who carries, which region, whether it answers, what people ordered, and what is said of all that."""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.config import SiteConfig
from schemas.links import Breaker, Lanes, LaneState, LinkHold, LinkOrder, LinkState
from schemas.records import InvalidRecord
from streams import outputs, telemetry
from streams.clients import BrokerUnavailable, Clients
from streams.link.backlogs import Backlogs
from streams.link.gate import Purse
from streams.link.hold import Hold
from streams.link.outbound import LinkFailed
from streams.link.session import Session
from streams.sink import Output
from streams.topology import Role, Topic, Topology, region_view

log = logging.getLogger("headwater.link")

TICK_S = 0.1
POSITIONS_S = 1.0
STATE_S = 5.0
PROBE_S = 10.0
LOOK_S = 5.0

T = TypeVar("T")


class Link:
    """Carries for one leaf until it is stopped.

    Parameters
    ----------
    config
        The leaf's configuration, with `[link]`.
    """

    def __init__(self, config: SiteConfig) -> None:
        assert config.link is not None
        self.config = config
        self.leaf = Topology(config)
        self.writer = f"{config.name}-{uuid.uuid4().hex[:12]}"
        self.purse = Purse(config.link.budget_bytes_per_s, config.link.burst_s)
        self.halt = threading.Event()
        self.session: Session
        self.order: LinkOrder | None = None
        self.lanes: tuple[LaneState, ...] = ()
        self._clients = Clients(config.kafka, f"{config.name}.link")
        self._thread = threading.Thread(target=self._main, name="link", daemon=True)
        self._since = dt.datetime.now(dt.UTC)
        self._said: tuple[Breaker, bool, bool] | None = None
        self._stop_s = 5.0

    def start(self) -> None:
        """Start the link; it waits for its clusters by itself."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop the lanes; what was carried without a position is carried again at the next start."""
        self._stop_s = timeout_s
        self.halt.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 5)

    # ---- the thread

    def _main(self) -> None:
        second = False
        while not self.halt.is_set():
            try:
                second = self._with(second)
            except Exception:  # the link's last line of defence: said loudly, then tried again, since it must not die silently
                log.exception("the link failed")
                self.halt.wait(5)

    def _with(self, second: bool) -> bool:
        """Carry with one region until the link ends or turns to the other; returns whether the second one is to be tried."""
        region = region_view(self.config, second=second)
        self.purse.restart()
        session = Session(self.config, self.leaf, region, self.writer, self.purse, second=second)
        self.session = session
        desk = _Desk(self, session, region)
        session.start()
        log.info("link started", extra={"region": region.site, "second": second})
        try:
            return desk.run()
        finally:
            session.stop(self._stop_s)
            desk.close()


class _Desk:
    """What the link's thread does for one session, several times a second."""

    def __init__(self, link: Link, session: Session, region: Topology) -> None:
        self.link, self.session, self.config = link, session, link.config
        own = LinkHold(
            site=link.config.name, writer=link.writer, generation=0, host=socket.gethostname()[:128], pid=os.getpid(), since=link._since
        )
        self.hold = Hold(own, _gone)
        self.holder_topic = region.role(Role.LINK).write("up.holder", link.config.name)
        role = link.leaf.role(Role.LINK)
        self.state_topic, order_topic = role.write("link.state"), role.read("link.orders")
        self._holds = _Tail(session.region, self.holder_topic, LinkHold.from_bytes, session.consumer_settings("down", "holder"))
        self._orders = _Tail(link._clients, order_topic, LinkOrder.from_bytes, {"fetch.wait.max.ms": 1000})
        self.backlogs = Backlogs(link._clients)
        self._away_since: float | None = time.monotonic()
        self._first_well_since: float | None = None
        self._probe: threading.Thread | None = None
        self._probed = 0.0
        self._wire: tuple[float, int, int] = (time.monotonic(), 0, 0)
        self._wire_rate = self._evidence_rate = 0.0
        self._since = dt.datetime.now(dt.UTC)
        self._last: tuple[Breaker, bool, bool] | None = None
        self._admin = link._clients.admin()
        self._looked = time.monotonic()

    def close(self) -> None:
        for each in (self._holds, self._orders, self.backlogs):
            each.close()

    def run(self) -> bool:
        """Until the link is stopped or turns; returns whether the second region is to be tried next."""
        session, halt = self.session, self.link.halt
        positions = state = 0.0
        while not halt.wait(TICK_S):
            now = time.monotonic()
            session.tick()
            self._heed()
            self._settle_holder(now)
            if now - self._looked >= LOOK_S:
                self._looked = now
                self._look_for_new_topics()
            if now - positions >= POSITIONS_S and self.hold.mine:
                positions = now
                session.write_positions()
            if now - state >= STATE_S or self._state() != self._last:
                state = now
                self._tell(now)
            if (turn := self._turn(now)) is not None:
                return turn
        if (end := self.hold.release()) is not None and session.wire.breaker is not Breaker.OPEN:
            self._write(outputs.link_hold(self.holder_topic, end, dt.datetime.now(dt.UTC)), "urgent")
        return session.second

    # ---- who carries

    def _settle_holder(self, now: float) -> None:
        before = self.hold.mine
        for record in self._holds.read():
            if self.hold.heard(record, now) and record.writer != self.hold.me.writer and not record.released:
                log.warning(
                    "the link of this site is held by another one; this one stands by" if not before else "another link took over",
                    extra={"site": self.config.name, "host": record.host, "pid": record.pid, "since": record.since.isoformat()},
                )
        answers = self.session.wire.breaker is Breaker.CLOSED or self._holds.heard_lately(now)
        if (record_to_write := self.hold.due(now, listening=answers and self._holds.caught_up)) is not None:
            self._write(outputs.link_hold(self.holder_topic, record_to_write, dt.datetime.now(dt.UTC)), "urgent")
        mine = self.hold.mine
        telemetry.LINK_HELD.set(int(mine))
        self.session.carry(mine, self.hold.holder.generation if self.hold.holder is not None else 0)

    # ---- whether the leaf's topics are still the same

    def _look_for_new_topics(self) -> None:
        """A topic that was deleted and made again starts at 0 under its old name; a consumer that runs may never notice (and waits for
        the offset that it stood at), so the uuids are compared."""
        lanes = [lane for lane in self.session.lanes if lane.mirror.direction == "up" and lane.info is not None]
        names = sorted({lane.mirror.source.name for lane in lanes})
        try:
            found = self.link._clients.cluster(names, timeout_s=2.0, admin=self._admin) if names else None
        except BrokerUnavailable:
            return  # nothing is carried from it meanwhile
        for lane in lanes:
            name = lane.mirror.source.name
            if found is not None and lane.info is not None and name in found.topics and found.topics[name] != lane.info.topics.get(name):
                lane.open_anew()

    # ---- what people ordered

    def _heed(self) -> None:
        for order in self._orders.read():
            if order != self.link.order:
                log.info("the link is ordered to %s", "pause" if order.paused else "go on", extra={"by": order.by, "lanes": order.lanes})
            self.link.order = order
        order_now = self.link.order
        for lane in self.session.lanes:
            lane.paused = order_now is not None and order_now.paused and (not order_now.lanes or lane.base in order_now.lanes)

    # ---- which region

    def _turn(self, now: float) -> bool | None:
        link = self.config.link
        assert link is not None
        if link.second is None:
            return None
        if self.session.wire.breaker is Breaker.CLOSED:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        if self.session.second:
            well = self._first_is_well(now)
            if well and now - well >= link.second.return_after_s:
                log.warning("the first region answers again; the link turns back", extra={"region": link.region_name})
                return False
        if self._away_since is not None and now - self._away_since >= link.second.after_s:
            other = link.region_name if self.session.second else link.second.region_name
            log.warning("the region is away; the link turns to the other", extra={"region": self.session.region_name, "other": other})
            return not self.session.second
        return None

    def _first_is_well(self, now: float) -> float | None:
        """Since when the first region has answered every probe; probes have a thread of their own, since they may hang."""
        if (self._probe is None or not self._probe.is_alive()) and now - self._probed >= PROBE_S:
            self._probed = now

            def probe() -> None:
                try:
                    Clients(region_view(self.config).config.kafka, self.session.name).cluster([], timeout_s=5)
                except BrokerUnavailable:
                    self._first_well_since = None
                else:
                    self._first_well_since = self._first_well_since or time.monotonic()

            self._probe = threading.Thread(target=probe, name="link-probe", daemon=True)
            self._probe.start()
        return self._first_well_since

    # ---- what is said

    def _state(self) -> tuple[Breaker, bool, bool]:
        return self.session.wire.breaker, self.hold.mine, self.link.order is not None and self.link.order.paused

    def _tell(self, now: float) -> None:
        breaker, mine, paused = state = self._state()
        if state != self._last:
            self._since = dt.datetime.now(dt.UTC)
            if self._last is None or breaker is not self._last[0]:
                log.log(
                    logging.INFO if breaker is Breaker.CLOSED else logging.WARNING,
                    "the region %s",
                    "answers" if breaker is Breaker.CLOSED else "does not answer",
                    extra={"region": self.session.region_name, "breaker": str(breaker)},
                )
            self._last = state
        telemetry.BREAKER.labels("link").set(list(Breaker).index(breaker))
        telemetry.LINK_UP.set(int(breaker is Breaker.CLOSED))
        then, *before = self._wire
        total, evidence = self.session.wire.bytes, sum(lane.carried_bytes for lane in self.session.lanes if lane.expires)
        if now - then > 0.5:
            self._wire = now, total, evidence
            self._wire_rate, self._evidence_rate = (
                (each - old) / (now - then) for each, old in zip((total, evidence), before, strict=True)
            )
        try:
            self.link.lanes = self.backlogs.measure(self.session, self._wire_rate)
        except (KafkaException, BrokerUnavailable) as error:
            log.warning("the backlog could not be measured: %s", error)
        holder = self.hold.holder
        if not mine and holder is not None:
            return  # whoever holds the link speaks for it
        value = LinkState(
            site=self.config.name,
            region=self.session.region_name,
            breaker=breaker,
            since=self._since,
            writer=self.link.writer,
            generation=self.session.generation,
            paused=paused,
            note=None if mine else "no link holds this site yet",
            lanes=Lanes(self.link.lanes),
            budget_bytes_per_s=int(self.session.purse.bucket.rate) if self.session.purse.bucket is not None else 0,
            wire_bytes_per_s=round(self._wire_rate, 1),
            evidence_bytes_per_s=round(self._evidence_rate, 1),
        )
        self._write(outputs.link_state(self.state_topic, value, dt.datetime.now(dt.UTC)), "down")

    def _write(self, output: Output, way: str) -> None:
        key = output.key.encode() if isinstance(output.key, str) else output.key
        sent_s = time.monotonic()

        def report(error: KafkaError | None, message: Message | None) -> None:
            if error is not None:
                self.session.outbounds[way].failed(error)
                log.warning("the link could not say how it stands: %s", error.str(), extra={"topic": output.topic.name})
            elif message is not None:
                kind, appended_ms = message.timestamp()
                if way == "urgent":
                    self.session.answered()
                if kind == 2:
                    clock = self.session.leaf_clock if way == "down" else self.session.region_clock
                    clock.observe(sent_s, time.monotonic(), appended_ms)

        try:
            self.session.outbounds[way].send(output.topic.name, key, output.value, output.headers, output.partition, report)
        except LinkFailed as error:
            log.warning("the link could not say how it stands: %s", error, extra={"topic": output.topic.name})


class _Tail(Generic[T]):
    """The records of a compacted topic of one partition, from its beginning on, read a little at a time."""

    def __init__(self, clients: Clients, topic: Topic, decode: Callable[[bytes | None], T], settings: dict[str, object]) -> None:
        self._topic, self._decode = topic, decode
        self._consumer: Consumer = clients.consumer(
            None, **{"enable.partition.eof": True, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 1000, **settings}
        )
        self._consumer.assign([TopicPartition(topic.name, 0, OFFSET_BEGINNING)])
        self.caught_up = False
        self._heard_s = float("-inf")

    def heard_lately(self, now: float) -> bool:
        """Whether the cluster has answered this reader in the last seconds."""
        return now - self._heard_s < 10

    def read(self) -> list[T]:
        found: list[T] = []
        for message in self._consumer.consume(100, 0):
            error = message.error()
            if error is None:
                self._heard_s = time.monotonic()
                try:
                    found.append(self._decode(message.value()))
                except InvalidRecord as wrong:
                    log.error("a record cannot be read and is passed over: %s", wrong, extra={"topic": self._topic.name})
            elif error.code() == KafkaError._PARTITION_EOF:
                self.caught_up, self._heard_s = True, time.monotonic()
        return found

    def close(self) -> None:
        self._consumer.close()


def _gone(record: LinkHold) -> bool:
    """Whether the process that wrote a beat ran on this machine and has ended."""
    if record.host != socket.gethostname()[:128] or record.pid == os.getpid():
        return False
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
