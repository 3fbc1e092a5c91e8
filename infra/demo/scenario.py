"""The demo's course: brokers, sites, cameras, an outage in the proxy, the end of the work, the account. What is seen meanwhile is
`infra.demo.view`'s; what it adds up to is `infra.demo.report`'s.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from infra.cli.run import role_process
from infra.demo.figures import Tally
from infra.demo.machine import FPS, QUALITY, Measured
from infra.demo.observer import Line
from infra.demo.scrape import Scrape, scrape
from infra.demo.sites import leaf_site, region_site
from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings, Wan
from infra.processes import Child, Group
from infra.proxy import Proxy
from schemas.config import SiteConfig, parse
from schemas.errors import Fault
from streams.account import Account
from streams.account_read import read_account
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

READY_S = 90.0
SETTLE_S = 40.0  # for the last answers after the cameras have stopped
REGION_NICE = 10  # the region would be another machine: here it takes what the leaf leaves
BUDGET_BYTES_PER_S = 96 << 10


class DemoFailed(Fault, RuntimeError):
    """The demo could not be run to its end; the message says what failed and where its log is."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `outage` is (start, length) in seconds from the first frame; `degrade` spoils the first camera on purpose.
    `link_bytes_per_s` is a budget of all that crosses the link (0: none), `looks_per_s` the region's capacity, where it is not to be what
    this machine can carry."""

    video: Path
    seconds: float
    cameras: int
    outage: tuple[float, float] | None
    folder: Path
    measured: Measured
    degrade: str | None = None
    budget_bytes_per_s: int = BUDGET_BYTES_PER_S
    link_bytes_per_s: int = 0
    looks_per_s: float | None = None


class Demo:
    """One run. `prepare`, `play`, `settle` in this order; `close` always.

    Attributes
    ----------
    tally
        What the observer has read.
    produced
        The producer's last counters.
    scrapes
        The latest metrics of each process, by name such as `leaf agent`.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan, self.say = plan, say
        self.tally = Tally()
        self.produced: dict[str, Any] = {}
        self.scrapes: dict[str, Scrape] = {}
        self.group = Group()
        self.proxy = Proxy()
        self.began_at = 0.0  # seconds since 1970, of the first frame
        self.cut_at = self.restored_at = 0.0
        self.wire_before = (0, 0)
        self._ports: dict[str, int] = {}
        self._observer: subprocess.Popen[bytes] | None = None
        self._halt = threading.Event()
        self._threads: list[threading.Thread] = []

    # ---- before

    def prepare(self) -> None:
        """Start brokers and sites and wait until every process takes records."""
        folder = self.plan.folder
        self.say("starting two Kafka brokers, the leaf's and the region's")
        leaf_broker = Broker(BrokerSettings(name="leaf", folder=folder / "kafka-leaf", port=0))
        wan = Wan(advertised_port=self.proxy.port)
        region_broker = Broker(BrokerSettings(name="region", folder=folder / "kafka-region", port=0, wan=wan))
        for broker in (leaf_broker, region_broker):
            broker.spawn()
            self.group.adopt(broker)
        for broker in (leaf_broker, region_broker):
            broker.wait_ready(READY_S)
        self.proxy.start(region_broker.wan_address)
        looks = self.plan.looks_per_s or self.plan.measured.inferences_per_s
        self.leaf_file, leaf_ports = leaf_site(
            folder,
            kafka=leaf_broker.bootstrap_servers,
            region=f"127.0.0.1:{self.proxy.port}",
            inferences_per_s=looks,
            budget_bytes_per_s=self.plan.budget_bytes_per_s,
            link_bytes_per_s=self.plan.link_bytes_per_s,
        )
        self.region_kafka = region_broker.bootstrap_servers
        self.region_file, region_ports = region_site(folder, kafka=region_broker.bootstrap_servers, inferences_per_s=looks)
        self.leaf = _load(self.leaf_file)
        for file in (self.leaf_file, self.region_file):
            config = _load(file)
            create_topics(Topology(config), Clients(config.kafka, "demo"))
        self.say("starting leaf, link and region")
        for tier, file, ports, nice in (("region", self.region_file, region_ports, REGION_NICE), ("leaf", self.leaf_file, leaf_ports, 0)):
            for role, port in ports.items():
                self._ports[f"{tier} {role}"] = port
                log_path = folder / "logs" / f"{tier}-{role}.log"
                self.group.start(role_process(str(file), tier, role, log_path=log_path, nice=nice))
        self._wait("the processes to take records", self._all_ready, READY_S)
        self._observe()

    def _all_ready(self) -> bool:
        for name, port in self._ports.items():
            found = scrape(port)
            if found is None or not found.total("headwater_ready"):
                return False
            self.scrapes[name] = found
        return True

    def _observe(self) -> None:
        errors = (self.plan.folder / "logs" / "observer.log").open("ab")
        argv = [sys.executable, "-m", "infra.demo.observer", str(self.leaf_file)]
        self._observer = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True)
        for target in (self._listen, self._scrape_all):
            thread = threading.Thread(target=target, name=target.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _listen(self) -> None:
        assert self._observer is not None
        assert self._observer.stdout is not None
        decoder = msgspec.json.Decoder(Line)
        for line in self._observer.stdout:
            self.tally.take(decoder.decode(line))

    def _scrape_all(self) -> None:
        while not self._halt.wait(1.0):
            self.refresh()

    def refresh(self) -> None:
        """Read every process's metrics now."""
        for name, port in self._ports.items():
            if (found := scrape(port)) is not None:
                self.scrapes[name] = found

    # ---- during

    def play(self) -> Iterator[float]:
        """Run the cameras, with the outage; yields the seconds since the first frame, several times a second."""
        plan = self.plan
        self.say(f"encoding {plan.video.name} once, to be replayed by {plan.cameras} camera{'s' if plan.cameras > 1 else ''}")
        argv = [sys.executable, "-m", "infra.cli", "produce", "video", *[str(plan.video)] * plan.cameras, "-c", str(self.leaf_file)]
        argv += ["--fps", str(FPS), "--loop", "--preload", "--quality", str(QUALITY), "--seconds", str(plan.seconds), "--stagger", "17"]
        argv += ["--manifest", str(plan.folder / "manifest.jsonl"), "--json"]
        argv += ["--degrade", plan.degrade] if plan.degrade else []
        for number in range(plan.cameras):
            argv += ["--name", f"cam-{number + 1}"]
        self._counters = plan.folder / "logs" / "cameras.jsonl"
        cameras = Child("cameras", argv, log_path=self._counters, grace_s=20.0)
        cameras.start()
        self.group.adopt(_Ends(cameras))
        self._wait("the first frame", lambda: bool(self.tally.verdict_ms) or cameras.poll() is not None, READY_S)
        began = time.monotonic()
        self.began_at = time.time()
        self.wire_before = (self.proxy.sent, self.proxy.received)
        while (code := cameras.poll()) is None:
            elapsed = time.monotonic() - began
            if elapsed > plan.seconds + 60:
                raise DemoFailed(f"the cameras did not end: see {self._counters}")
            self._outage(elapsed)
            self._read_counters()
            self._alive()
            yield elapsed
            self._halt.wait(0.1)
        self.proxy.restore()
        self._read_counters()
        if code:
            raise DemoFailed(f"the cameras failed (exit code {code}): see {self._counters}")

    def _outage(self, elapsed: float) -> None:
        if self.plan.outage is None:
            return
        start, length = self.plan.outage
        if not self.cut_at and elapsed >= start:
            self.proxy.cut()
            self.cut_at = time.time()
        if self.cut_at and not self.restored_at and elapsed >= start + length:
            self.proxy.restore()
            self.restored_at = time.time()

    @property
    def cut_now(self) -> bool:
        return bool(self.cut_at) and not self.restored_at

    def _read_counters(self) -> None:
        with self._counters.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 16_384))
            lines = file.read().splitlines()
        for line in reversed(lines):
            with contextlib.suppress(ValueError):  # not a whole line: an older one is
                found = json.loads(line)
                if isinstance(found, dict) and found.get("type") in ("counters", "summary"):
                    self.produced = found
                    return

    # ---- after

    def settle(self) -> Account:
        """Wait, for a time, until every frame has ended, every alert was reviewed or its deadline has passed, and the region has answered
        what it was asked; returns the account."""
        topology, clients = Topology(self.leaf), Clients(self.leaf.kafka, "demo")
        end = time.monotonic() + SETTLE_S
        self.say("the cameras have stopped: waiting for the last answers")
        account = read_account(topology, clients)
        while time.monotonic() < end and not (account.adds_up and account.produced and self._all_answered()):
            self._halt.wait(1.0)
            self._alive()
            account = read_account(topology, clients)
        self.refresh()
        return account

    def _all_answered(self) -> bool:
        agent = self.scrapes.get("leaf agent")
        if any(alert.state == "raised" for alert in list(self.tally.alerts.values())):
            return False
        return agent is not None and len(self.tally.answers) >= agent.total("headwater_escalations_total")

    def close(self) -> None:
        """Stop everything, the last started first."""
        self._halt.set()
        if self._observer is not None:
            self._observer.terminate()
            try:
                self._observer.wait(5)
            except subprocess.TimeoutExpired:
                self._observer.kill()
        self.group.stop(40.0)
        self.proxy.stop()

    def _alive(self) -> None:
        if (ended := self.group.ended()) is not None:
            where = self.plan.folder / "logs"
            raise DemoFailed(f"{ended.name} ended before its time (exit code {ended.poll()}): see its log in {where}")
        if self._observer is not None and self._observer.poll() is not None:
            raise DemoFailed(f"the observer ended: see {self.plan.folder / 'logs' / 'observer.log'}")

    def _wait(self, what: str, until: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not until():
            self._alive()
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {timeout_s:g} s for {what}: see the logs in {self.plan.folder / 'logs'}")
            self._halt.wait(0.25)


class _Ends:
    """A child whose end is expected: it counts as running for the group."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.name = child.name

    def start(self) -> object:
        return self.child.start()

    def stop(self, timeout_s: float) -> object:
        return self.child.stop(timeout_s)

    def poll(self) -> int | None:
        return None


def _load(path: Path) -> SiteConfig:
    return parse(path.read_text(encoding="utf-8"), {}, where=str(path))
