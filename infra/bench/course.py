"""One run of the comparison: two brokers with a thin link between, a contender that carries, an outage, and what the region has afterwards.

All is measured from outside. When a record was at the region is the time at which the region's broker appended it; when an alert was raised
is its capture time; both are of this machine's clock. Bytes are counted in the proxy.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import tomli_w

from infra.bench.contenders import Contender, Process
from infra.bench.shaping import ThinProxy
from infra.bench.workload import Workload
from infra.kafka.broker import Broker
from infra.kafka.ports import free_port
from infra.kafka.settings import BrokerSettings, Wan
from infra.processes import Group
from schemas.config import Link, SiteConfig, parse
from schemas.errors import Fault
from streams.clients import Clients
from streams.cluster import create_topics
from streams.reader import bounds
from streams.restore import to_end
from streams.sink import Output
from streams.topology import Topic, Topology

SITE = "bench"
READY_S = 120.0
STEADY_RATE = 200  # records a second, before the outage
ALERT_EVERY_S = 0.1
SAMPLE_S = 0.1
LAST_S = 60.0
AFTER_S = 2.0  # after the backlog is through, what still comes counts too: duplicates, the last alerts


class BenchFailed(Fault, RuntimeError):
    """A run could not be brought to its end; the message says why and where its logs are."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What every contender has to do. `limit_bytes_per_s` is that of the link after the outage, both ways; None: none."""

    records: int
    outage_s: float
    steady_s: float
    limit_bytes_per_s: int | None
    drain_limit_s: float
    seed: int = 1


class Sample(msgspec.Struct, frozen=True):
    """One look: wall clock, bytes up and down through the proxy, the contender's memory and the CPU time that it has used."""

    at: float
    sent: int
    received: int
    resident_bytes: int
    cpu_s: float


class Written(msgspec.Struct, frozen=True):
    """A record that was written at the leaf."""

    id: str
    at: float
    alert: bool
    size: int


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one run; times are seconds since 1970. `arrivals` are (id, time at the region) of every record there, in the order
    of each partition; `written` are ids, when each was raised or captured, whether it is an alert, and its bytes."""

    started_at: float
    ready_at: float
    cut_at: float
    restored_at: float
    ended_at: float
    written: list[Written]
    arrivals: list[tuple[str, float]]
    samples: list[Sample]


def run(contender: Contender, case: Case, folder: Path, say: Callable[[str, float], None]) -> Course:
    """One run in a folder of its own; leaves nothing running.

    Parameters
    ----------
    say
        Takes what is going on, and how much of the backlog is through (0 to 1).

    Raises
    ------
    BenchFailed, KafkaFailed, ProcessFailed
    """
    with contextlib.ExitStack() as stack:
        proxy, group = ThinProxy(), Group()
        stack.callback(proxy.stop)  # last, when nobody is connected any more
        stack.callback(group.stop, 40.0)
        say("starting two brokers", 0.0)
        leaf_broker = Broker(BrokerSettings(name="leaf", folder=folder / "kafka-leaf", port=0))
        region_broker = Broker(BrokerSettings(name="region", folder=folder / "kafka-region", port=0, wan=Wan(advertised_port=proxy.port)))
        for broker in (leaf_broker, region_broker):
            broker.spawn()
            group.adopt(broker)
        for broker in (leaf_broker, region_broker):
            broker.wait_ready()
        proxy.start(region_broker.wan_address)
        file, site = _leaf(folder, leaf_broker.bootstrap_servers, f"127.0.0.1:{proxy.port}", case)
        region = _region(site, region_broker.bootstrap_servers)
        at_leaf, at_region = Clients(site.kafka, "bench"), Clients(region.config.kafka, "bench")
        create_topics(Topology(site), at_leaf)
        create_topics(region, at_region)
        process = contender.make(file, site, folder)
        started_at = time.time()
        process.start()
        stack.callback(process.stop, 20.0)
        stage = _Stage(case, folder, site, region, at_leaf, at_region, proxy, process, group, say)
        stack.callback(stage.close)
        return stage.play(started_at)


def _leaf(folder: Path, kafka: str, region: str, case: Case) -> tuple[Path, SiteConfig]:
    link: dict[str, Any] = {"region": {"bootstrap_servers": region}}
    if case.limit_bytes_per_s and "budget_bytes_per_s" in Link.__struct_fields__:
        link["budget_bytes_per_s"] = case.limit_bytes_per_s
    values = {
        "name": SITE,
        "tier": "leaf",
        "data_dir": str(folder / "site"),
        "kafka": {"bootstrap_servers": kafka},
        "link": link,
        "metrics": {"ports": {"link": free_port()}},
    }
    text = tomli_w.dumps(values)
    file = folder / "leaf.toml"
    file.write_text(text, encoding="utf-8")
    return file, parse(text, {}, where=str(file))


def _region(leaf: SiteConfig, kafka: str) -> Topology:
    text = tomli_w.dumps({"name": "region", "tier": "region", "kafka": {"bootstrap_servers": kafka}, "region": {"sites": [leaf.name]}})
    return Topology(parse(text, {}, where="the region's file"))


class _Stage:
    """The parts of one run while it plays."""

    def __init__(
        self,
        case: Case,
        folder: Path,
        site: SiteConfig,
        region: Topology,
        at_leaf: Clients,
        at_region: Clients,
        proxy: ThinProxy,
        process: Process,
        group: Group,
        say: Callable[[str, float], None],
    ) -> None:
        leaf = Topology(site)
        self.case, self.folder, self.proxy, self.process, self.group, self.say = case, folder, proxy, process, group, say
        self.at_region = at_region
        self.targets: list[Topic] = [region.topic("up.alerts", SITE), region.topic("up.verdicts", SITE)]
        self.workload = Workload(SITE, leaf.topic("verdicts"), leaf.topic("alerts"), case.seed)
        self.live = Workload(SITE, leaf.topic("verdicts"), leaf.topic("alerts"), case.seed + 10_000)  # other epochs of the same cameras
        self.producer = at_leaf.producer(linger_ms=5)
        self.written: list[Written] = []
        self.samples: list[Sample] = []
        self.halt = threading.Event()
        self.failure: Exception | None = None
        self._writing = threading.Lock()
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in (self._alerts, self._sample)]

    def play(self, started_at: float) -> Course:
        case = self.case
        for thread in self._threads:
            thread.start()
        self.say("waiting until it carries", 0.0)
        self._wait(lambda: self._there([self.targets[0]]) > 0, READY_S, "the first alert at the region")
        ready_at = time.time()
        self.say("in steady work", 0.0)
        self._write(round(case.steady_s * STEADY_RATE), case.steady_s)
        self._wait(lambda: self._there(self.targets) >= self._count() - 5, READY_S, "the records before the outage at the region")
        self.say(f"link cut for {case.outage_s:g} s", 0.0)
        self.proxy.cut()
        cut_at = time.time()
        self._write(case.records, case.outage_s * 0.95)
        self._wait(lambda: time.time() - cut_at >= case.outage_s, case.outage_s + 1, "the end of the outage")
        before = self._count()
        self.proxy.limit(case.limit_bytes_per_s)
        there = self._there(self.targets)
        self.proxy.restore()
        restored_at = time.time()
        self._alert()
        self._drain(before, there)
        return Course(
            started_at=started_at,
            ready_at=ready_at,
            cut_at=cut_at,
            restored_at=restored_at,
            ended_at=time.time(),
            written=self._all_written(),
            arrivals=self._arrivals(),
            samples=list(self.samples),
        )

    def _drain(self, before: int, there: int) -> None:
        """Until everything is at the region: by number first, and, since some may be there twice, by their ids then."""
        deadline = time.monotonic() + self.case.drain_limit_s
        while True:
            found = self._there(self.targets)
            self.say("draining the backlog", min(1.0, (found - there) / max(1, before - there)))
            if found >= before:
                self.halt.wait(AFTER_S)
                if self._all_there(self._all_written()[:before]):
                    break
            self._check()
            if time.monotonic() > deadline:
                raise BenchFailed(
                    f"{found - there} of {before - there} records were at the region {self.case.drain_limit_s:g} s after the outage: "
                    f"see the logs in {self.folder}"
                )
            self.halt.wait(0.5)
        self.halt.set()
        for thread in self._threads:
            thread.join(10)
        self._wait(lambda: self._all_there(self._all_written()), LAST_S, "the last alerts at the region", every_s=1.0)

    def _write(self, count: int, seconds: float) -> None:
        """Write records at an even pace, as fast as it goes if it does not keep up."""
        began, start = time.monotonic(), dt.datetime.now(dt.UTC)
        for number, output in enumerate(self.workload.backlog(count, start, seconds)):
            self._put(output, output.topic.base == "alerts")
            if number % 50 == 0:
                self._check()
                if (early_s := began + seconds * number / count - time.monotonic()) > 0.01:
                    self.halt.wait(early_s)

    def _alert(self) -> None:
        now = dt.datetime.now(dt.UTC)
        with self._writing:
            output = self.live.alert(now)
        self._put(output, True)

    def _put(self, output: Output, alert: bool) -> None:
        value, key = output.value or b"", str(output.key)
        names = dict(output.headers)
        at = dt.datetime.fromisoformat((names["ce_time"] or b"").decode()).timestamp()
        size = len(key) + len(value) + sum(len(name) + len(part or b"") for name, part in output.headers)
        while True:
            try:
                self.producer.produce(output.topic.name, value, key, output.partition, headers=list(output.headers))
                break
            except BufferError:
                self.producer.poll(0.05)
        self.producer.poll(0)
        with self._writing:
            self.written.append(Written((names["ce_id"] or b"").decode(), at, alert, size))

    def _alerts(self) -> None:
        while not self.halt.wait(ALERT_EVERY_S):
            self._alert()
        if self.producer.flush(30):
            raise BenchFailed("the leaf's own broker did not take everything")

    def _sample(self) -> None:
        assert self.process.pid is not None
        process = psutil.Process(self.process.pid)
        while not self.halt.wait(SAMPLE_S):
            with contextlib.suppress(psutil.NoSuchProcess):  # `_check` says that it ended
                times = process.cpu_times()
                self.samples.append(
                    Sample(time.time(), self.proxy.sent, self.proxy.received, int(process.memory_info().rss), times.user + times.system)
                )

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the main thread raises it (`_check`)
            self.failure = error

    def _there(self, topics: list[Topic]) -> int:
        return sum(high for _, high in bounds(self.at_region, topics).values())

    def _all_there(self, written: list[Written]) -> bool:
        return {each.id for each in written} <= {name for name, _ in self._arrivals()}

    def _arrivals(self) -> list[tuple[str, float]]:
        """What a raw reader finds at the region, duplicates and all."""
        places = [(topic.name, partition) for topic in self.targets for partition in range(topic.partitions)]
        found = []
        for record in to_end(self.at_region, places):
            name = next((value for name, value in record.headers() or () if name == "ce_id"), None)
            found.append(((name or b"").decode(), record.timestamp()[1] / 1000))
        return found

    def _count(self) -> int:
        with self._writing:
            return len(self.written)

    def _all_written(self) -> list[Written]:
        with self._writing:
            return list(self.written)

    def _wait(self, until: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.1) -> None:
        deadline = time.monotonic() + timeout_s
        while not until():
            self._check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"waited {timeout_s:g} s for {what}: see the logs in {self.folder}")
            threading.Event().wait(every_s)

    def _check(self) -> None:
        if self.failure is not None:
            raise BenchFailed(f"the bench itself failed: {self.failure!r}") from self.failure
        if (code := self.process.poll()) is not None:
            raise BenchFailed(f"the contender ended by itself with code {code}: see the logs in {self.folder}")
        if (ended := self.group.ended()) is not None:
            raise BenchFailed(f"broker {ended.name} ended by itself: see the logs in {self.folder}")

    def close(self) -> None:
        self.halt.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(35)


def orders(contenders: list[Contender], repeats: int) -> Iterator[tuple[int, Contender]]:
    """Who runs when: in turn, each repeat starting with another, so that a machine that slows down slows all."""
    for repeat in range(repeats):
        for number in range(len(contenders)):
            yield repeat, contenders[(number + repeat) % len(contenders)]
