"""Two sites on this machine as a service manager would run them: a broker each, every role a process of its own, a proxy on the link
between them, producers, and a judge that reads along. What is done to them is in `infra.faults.catalogue`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from infra.cli.run import ROLES, role_process
from infra.demo.scrape import Scrape, scrape
from infra.faults.clocks import clock_environment
from infra.faults.judge import Judge, Settled
from infra.faults.manifest import Writing
from infra.faults.oracle import EvidenceOracle, Oracle
from infra.faults.raw import Admin, Writer, frame_headers, murmur2
from infra.faults.service import Death, Keeper, Service
from infra.faults.sites import LEAF, PARTITIONS, REGION, Workload, detector_of, leaf_site, read_site, region_site
from infra.kafka.broker import Broker
from infra.kafka.ports import free_port
from infra.kafka.settings import BrokerSettings, Wan
from infra.processes import Child
from infra.proxy import Proxy
from schemas.errors import Fault
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

READY_S = 90.0


class FleetFailed(Fault, RuntimeError):
    """The sites did not come up, or do not come back; the message says what is missing and where its log is."""


class Fleet:
    """A leaf and its region.

    Parameters
    ----------
    folder
        All files: configuration, logs, brokers' data, manifests.
    fps, sources
        Frames a second of each source, and how many there are.
    leaf_clock_s
        How wrong the clock of the leaf's broker and processes is (a C compiler is needed).
    leaf_topics, ingress, policy, engine
        Settings of the leaf that differ from the usual ones.
    leaf_properties, region_properties
        Settings of the brokers.
    """

    def __init__(
        self,
        folder: Path,
        workload: Workload,
        *,
        sources: int = 4,
        fps: float = 20.0,
        seed: int = 0,
        leaf_clock_s: float = 0.0,
        leaf_topics: dict[str, Any] | None = None,
        ingress: dict[str, Any] | None = None,
        policy: dict[str, Any] | None = None,
        engine: dict[str, Any] | None = None,
        leaf_properties: dict[str, str] | None = None,
        region_properties: dict[str, str] | None = None,
        leaf_folder: Path | None = None,
        leaf_disk: dict[str, str] | None = None,
        region_folder: Path | None = None,
    ) -> None:
        self.folder, self.workload, self.fps = folder, workload, fps
        self.leaf_name, self.region_name, self.partitions = LEAF, REGION, PARTITIONS
        self.names = [f"{workload.name}-{number + 1}" for number in range(sources)]
        self.clock_s, self.environment = leaf_clock_s, clock_environment(folder, leaf_clock_s) if leaf_clock_s else {}
        self.manifests, self.logs = folder / "manifests", folder / "logs"
        self.proxy = Proxy(seed=seed)
        self.keeper = Keeper()
        self.judged_until = 0.0  # what was published before has been judged (by the monotonic clock)
        taken: set[int] = set()

        def port() -> int:
            taken.add(found := free_port(taken=frozenset(taken)))
            return found

        fast = {"log.retention.check.interval.ms": "1000", "log.initial.task.delay.ms": "1000"}
        self.leaf_broker = Broker(
            BrokerSettings(
                name="leaf",
                folder=leaf_folder or folder / "kafka-leaf",
                port=port(),
                controller_port=port(),
                properties={**fast, **(leaf_properties or {})},
            )
        )
        self.region_broker = Broker(
            BrokerSettings(
                name="region",
                folder=region_folder or folder / "kafka-region",
                port=port(),
                controller_port=port(),
                wan=Wan(port=port(), advertised_port=self.proxy.port),
                properties={**fast, **(region_properties or {})},
                min_free_bytes=32 << 20,
            )
        )
        leaf, region = self.leaf_broker.bootstrap_servers, self.region_broker.bootstrap_servers
        wan = f"127.0.0.1:{self.proxy.port}"
        self._leaf: dict[str, Any] = {
            "name": LEAF,
            "kafka": leaf,
            "region": wan,
            "topics": leaf_topics,
            "ingress": ingress,
            "policy": policy,
            "engine": engine,
            "disk": leaf_disk and {"path": str(self.leaf_broker.settings.folder), **leaf_disk},
        }
        self.leaf_file, leaf_ports = leaf_site(folder, workload, **self._leaf)
        self.region_file, region_ports = region_site(folder, workload, sites=[LEAF], kafka=region)
        self.leaf_servers, self.region_servers = leaf, region
        self.services: dict[str, Service] = {}
        self._ports: dict[str, int] = {}
        self._add("leaf broker", self.leaf_broker, lambda: True)
        self._add("region broker", self.region_broker, lambda: True)
        for role in ROLES["region"]:
            self._add_role("region", role, self.region_file, region_ports[role], {})
        for role in ROLES["leaf"]:
            self._add_role("leaf", role, self.leaf_file, leaf_ports[role], self.environment)
        self._add("producer", self._producer(), lambda: True)

    # ---- life

    def start(self) -> Self:
        """Start everything, and return when every process takes records."""
        with self._leaf_clock():
            self.leaf_broker.spawn()
        self.region_broker.spawn()
        for broker in (self.leaf_broker, self.region_broker):
            broker.wait_ready(READY_S)
        self.proxy.start(self.region_broker.wan_address)
        leaf, region = read_site(self.leaf_file), read_site(self.region_file)
        for site in (leaf, region):
            create_topics(Topology(site), Clients(site.kafka, "faults"))
        oracle, oracle_up = Oracle(detector_of(leaf)), EvidenceOracle(detector_of(region))
        for picture in self.workload.pictures.iterdir():
            oracle.learn(picture.read_bytes())
        self.judge = Judge(self.leaf_servers, self.region_servers, LEAF, self.manifests, oracle, oracle_up, leaf_clock_s=self.clock_s)
        self.judge.book.uuids["cluster"] = self.leaf.cluster_id()
        self.judge.start()
        for name, service in self.services.items():
            if name.endswith("broker"):
                service.adopt()
            elif name != "producer":
                service.start()
        for service in self.services.values():
            self.keeper.add(service)
        self.wait_ready()
        self.services["producer"].start()
        self.wait("the first results", lambda: bool(self.judge.book.tally.outputs["region results"]))
        return self

    def stop(self) -> None:
        self.proxy.restore()
        self.keeper.stop()
        if hasattr(self, "judge"):
            self.judge.stop()
        self.proxy.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- what a fault works on

    @cached_property
    def leaf(self) -> Admin:
        return Admin(self.leaf_servers)

    @cached_property
    def region(self) -> Admin:
        return Admin(self.region_servers)

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    def metrics(self, name: str) -> Scrape | None:
        """What a process says of itself; None while it does not answer."""
        return scrape(self._ports[name])

    def set_rate(self, fps: float) -> None:
        """Give the sources another rate; their producer is restarted for it, in order."""
        producer = self.services["producer"]
        producer.stop()
        self.fps = fps
        producer.life = self._producer()
        producer.start()

    def second_agent(self) -> Service:
        """A further worker of the leaf's agent, with its own file; made once, started by whoever asks."""
        name = "leaf agent 2"
        if name not in self.services:
            file, ports = leaf_site(self.folder, self.workload, file="leaf-2.toml", **self._leaf)
            self._add_role("leaf", "agent", file, ports["agent"], self.environment, name=name)
            self.keeper.add(self.services[name])
        return self.services[name]

    def inject(self, source: str, pictures: Sequence[bytes], *, topic: str = "frames", epoch: str = "") -> list[str]:
        """Publish pictures past Headwater's producer, as a foreign one with our headers does; each is in the manifest first."""
        epoch = epoch or f"raw-{time.monotonic_ns()}"
        ids = []
        with Writing(self.manifests) as manifest:
            writer = Writer(self.leaf_servers)
            for sequence, picture in enumerate(pictures):
                ids.append(record := f"{source}/{epoch}/{sequence}")
                manifest.write(record, self.judge.oracle.learn(picture), time.monotonic())
                headers = frame_headers(source, epoch, sequence, dt.datetime.now(dt.UTC))
                writer.write(topic, partition_of(source), source.encode(), picture, headers)
            writer.flush()
        if writer.refused:
            raise FleetFailed(f"the broker refused {len(writer.refused)} injected records: {writer.refused[0]}")
        return ids

    def inject_foreign(self, records: Sequence[tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]], int]]) -> list[str]:
        """Publish (key, value, headers, partition) without an envelope of ours; their ids are where Kafka puts them."""
        place = f"kafka/{self.leaf.cluster_id()}/{self.leaf.uuid('frames')}"
        ids: list[str] = []
        with Writing(self.manifests) as manifest:
            writer = Writer(self.leaf_servers)
            for key, value, headers, partition in records:
                digest = self.judge.oracle.learn(value or b"")

                def written(partition: int, offset: int, digest: str = digest) -> None:
                    ids.append(record := f"{place}/{partition}/{offset}")
                    manifest.write(record, digest, time.monotonic())

                writer.write("frames", partition, key, value, headers, written)
            writer.flush()
        return ids

    def deaths(self) -> list[Death]:
        return sorted((death for service in self.services.values() for death in service.deaths), key=lambda death: death.at)

    def start_leaf_broker(self) -> None:
        with self._leaf_clock():
            self.services["leaf broker"].start()

    # ---- waiting

    def wait(self, what: str, until: Callable[[], Any], limit_s: float = READY_S) -> Any:
        """Wait for a condition and return its value; raises `FleetFailed` in the end, or when a process gave up."""
        end = time.monotonic() + limit_s
        while not (value := until()):
            self.watch()
            if time.monotonic() > end:
                refusals = "; ".join(f"{service.name}: {service.refusal}" for service in self.services.values() if service.refusal)
                raise FleetFailed(f"waited {limit_s:g} s for {what}: see the logs in {self.logs}" + (f" ({refusals})" if refusals else ""))
            time.sleep(0.05)
        return value

    def wait_ready(self, limit_s: float = READY_S) -> None:
        """Wait until every process that is wanted takes records."""
        wanted = [service for service in self.services.values() if service.wanted]
        for service in wanted:
            self.wait(f"{service.name} to take records", lambda service=service: service.alive and service.ready(), limit_s)  # type: ignore[misc]

    def watch(self) -> None:
        """Raise what makes waiting useless: a process that gave up, a broker that cannot start again, a judge that failed."""
        for service in self.services.values():
            if service.gave_up:
                raise FleetFailed(f"{service.name} gave up (exit code 78): see {self.logs / (service.name.replace(' ', '-') + '.log')}")
        for error in (self.keeper.error, self.judge.error if hasattr(self, "judge") else None):
            if error is not None:
                raise error

    def settle(self, before: float | None = None, limit_s: float = 90.0) -> Settled:
        """Wait until what was published before now (or a time) has ended everywhere."""
        return self.judge.settle(time.monotonic() if before is None else before, limit_s, self.watch)

    # ---- inside

    def _add(self, name: str, life: Any, ready: Callable[[], bool]) -> None:
        self.services[name] = Service(name, life, ready=ready)

    def _add_role(self, tier: str, role: str, file: Path, port: int, environment: dict[str, str], *, name: str = "") -> None:
        name = name or (role if role == "link" else f"{tier} {role}")
        child = role_process(str(file), tier, role, log_path=self.logs / f"{name.replace(' ', '-')}.log")
        child.env = {**os.environ, **environment}
        self._ports[name] = port

        def ready() -> bool:
            found = self.metrics(name)
            return found is not None and bool(found.total("headwater_ready"))

        self._add(name, child, ready)

    def _producer(self) -> Child:
        argv = [sys.executable, "-m", "infra.faults.source", str(self.leaf_file), "--pictures", str(self.workload.pictures)]
        argv += ["--manifests", str(self.manifests), "--fps", str(self.fps)]
        for name in self.names:
            argv += ["--name", name]
        return Child("producer", argv, env={**os.environ, **self.environment}, log_path=self.logs / "producer.log", grace_s=20.0)

    @contextlib.contextmanager
    def _leaf_clock(self) -> Iterator[None]:
        """The broker takes our environment: it is the leaf's while the leaf's broker is started."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def partition_of(source: str, partitions: int = PARTITIONS) -> int:
    """Kafka's default partition of a source, for records that are written past Headwater."""
    return (murmur2(source.encode()) & 0x7FFFFFFF) % partitions
