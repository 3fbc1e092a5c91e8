"""A leaf and its region, each with a broker and all its processes, in two networks that a wire joins; and a raw look at what came of a run.

What is counted here is read by librdkafka alone and taken apart as plain JSON: nothing of the product judges itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import msgspec

from infra.cli.run import ROLES, role_process
from infra.demo.scrape import scrape
from infra.faults import raw
from infra.faults.network import NetworkUnavailable
from infra.faults.network.wire import Wire
from infra.faults.sites import LEAF, leaf_site, read_site, region_site, spots_workload
from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings, Wan
from infra.processes import Child, Group
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

WAN_PORT = 9094
READY_S = 120.0
CARRIED = ("verdicts", "alerts", "escalations", "escalations.alerts")  # topics of which each record must be at the region, or explained
_UP = f"up.{LEAF}."


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """One topic's way over the link: records at the leaf, of them at the region, of the others those that the link explains, and how many
    came more than once."""

    sent: int
    arrived: int
    explained: int
    repeated: int

    @property
    def missing(self) -> int:
        return self.sent - self.arrived - self.explained


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a raw reader found. `unaccounted` are records of the manifest that are no result, drop or dead letter at the leaf;
    `repeated_results` are results that did not surpass the one before; pauses are the longest times (s) between two appends."""

    produced: int
    results: int
    drops: int
    dead_letters: int
    unaccounted: tuple[str, ...]
    repeated_results: int
    carried: dict[str, Carried]
    leaf_pause_s: float
    region_pause_s: float

    @property
    def missing(self) -> int:
        """Records that are not at the region and that nothing explains."""
        return sum(each.missing for each in self.carried.values())


class TwoSites:
    """Brokers and processes of a leaf (near) and its region (far): a `with` block, within that of its wire.

    Parameters
    ----------
    folder
        Logs, data and manifests.
    policy
        Fields of the leaf's `[policy]` that differ from the fault suite's.
    """

    def __init__(self, folder: Path, wire: Wire, *, policy: dict[str, object] | None = None) -> None:
        self.folder, self.wire, self.policy = folder.absolute(), wire, policy
        self.group = Group()
        self.source: Child | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.group.stop(60.0)

    def _start(self) -> None:
        near, far, folder = self.wire.near, self.wire.far, self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.workload = spots_workload(folder)
        wan = Wan(host=far.address, port=WAN_PORT, advertised_host=far.address, advertised_port=WAN_PORT)
        self.leaf_broker = Broker(BrokerSettings(name="leaf", folder=folder / "kafka-leaf", port=0))
        self.region_broker = Broker(BrokerSettings(name="region", folder=folder / "kafka-region", port=0, wan=wan))
        places = ((self.leaf_broker, near), (self.region_broker, far))
        for broker, space in places:
            with space.inside():
                broker.spawn()
                self.group.adopt(broker)
        for broker, space in places:
            with space.inside():
                broker.wait_ready()
        self.leaf_file, leaf_ports = leaf_site(
            folder,
            self.workload,
            name=LEAF,
            kafka=self.leaf_broker.bootstrap_servers,
            region=f"{far.address}:{WAN_PORT}",
            policy=self.policy,
        )
        self.region_file, region_ports = region_site(folder, self.workload, sites=[LEAF], kafka=self.region_broker.bootstrap_servers)
        for tier, file, ports, space in (("region", self.region_file, region_ports, far), ("leaf", self.leaf_file, leaf_ports, near)):
            config = read_site(file)
            with space.inside():
                create_topics(Topology(config), Clients(config.kafka, "network"))
                for role in ROLES[tier]:
                    self.group.start(role_process(str(file), tier, role, log_path=folder / "logs" / f"{tier}-{role}.log"))
                self._wait(f"the {tier} to take records", lambda ports=ports, tier=tier: all(_ready(ports[role]) for role in ROLES[tier]))  # type: ignore[misc]

    def play(self, *, fps: float, sources: int = 2) -> None:
        """Start the cameras."""
        argv = [sys.executable, "-m", "infra.faults.source", str(self.leaf_file), "--pictures", str(self.workload.pictures)]
        argv += ["--manifests", str(self.folder / "manifests"), "--fps", str(fps)]
        for number in range(sources):
            argv += ["--name", f"cam-{number + 1}"]
        with self.wire.near.inside():
            self.source = Child("cameras", argv, log_path=self.folder / "logs" / "cameras.log", grace_s=20.0).start()

    def end_play(self) -> None:
        """Stop the cameras, in order."""
        if self.source is not None:
            self.source.stop(30.0)

    def alive(self) -> None:
        """Raise `NetworkUnavailable` if a process ended that should not have."""
        if (ended := self.group.ended()) is not None:
            raise NetworkUnavailable(f"{ended.name} ended before its time (code {ended.poll()}): see its log in {self.folder / 'logs'}")

    def settle(self, limit_s: float, say: Callable[[str], None] = lambda _: None) -> Seen:
        """Look until everything is accounted for and carried, for some seconds at most; returns the last look."""
        end = time.monotonic() + limit_s
        while True:
            seen = self.look()
            left = len(seen.unaccounted) + seen.missing
            if not left or time.monotonic() > end:
                return seen
            say(f"{len(seen.unaccounted)} records are open, {seen.missing} are not at the region yet")
            self.alive()
            time.sleep(2.0)

    def look(self) -> Seen:
        """Read both sites to their present end, and compare them with the manifest."""
        with self.wire.near.inside():
            leaf = self._read(self.leaf_broker.bootstrap_servers, ("results", "drops", "frames.dlq", *CARRIED))
            uuids = {raw.Admin(self.leaf_broker.bootstrap_servers).uuid(name): name for name in CARRIED}
        with self.wire.far.inside():
            region = self._read(self.region_broker.bootstrap_servers, tuple(_UP + name for name in CARRIED))
        promised = {json.loads(line)["id"] for line in _lines(self.folder / "manifests") if b'"event"' not in line}
        ended: dict[str, set[str]] = {"results": set(), "drops": set(), "frames.dlq": set()}
        orders: dict[str, str] = {}
        repeated = 0
        explained: dict[str, set[tuple[int, int]]] = {name: set() for name in CARRIED}
        for row in leaf["results"]:
            answer = json.loads(row.value or b"{}")
            repeated += answer["order"] <= orders.get(answer["id"], "")
            orders[answer["id"]] = max(answer["order"], orders.get(answer["id"], ""))
            ended["results"].add(answer["id"])
        for row in leaf["drops"]:
            drop = json.loads(row.value or b"{}")
            for first, last in json.loads(drop["ranges"]):
                if drop["source"] != "kafka":
                    ended["drops"] |= {f"{drop['source']}/{drop['epoch']}/{sequence}" for sequence in range(first, last + 1)}
                elif (name := uuids.get(drop["epoch"].split("/")[1])) is not None:
                    partition = int(drop["epoch"].split("/")[2])
                    explained[name] |= {(partition, offset) for offset in range(first, last + 1)}
        ended["frames.dlq"] = {row.headers.get("headwater.record", b"").decode() for row in leaf["frames.dlq"]}
        return Seen(
            produced=len(promised),
            results=len(promised & ended["results"]),
            drops=len(promised & ended["drops"]),
            dead_letters=len(promised & ended["frames.dlq"]),
            unaccounted=tuple(sorted(promised.difference(*ended.values()))),
            repeated_results=repeated,
            carried={name: _carried(leaf[name], region[_UP + name], explained[name]) for name in CARRIED},
            leaf_pause_s=_pause(row.at_ms for row in leaf["verdicts"] if b'"seen"' in (row.value or b"")),  # not a deadline's
            region_pause_s=_pause(row.at_ms for row in region[_UP + "verdicts"]),
        )

    def _read(self, servers: str, names: tuple[str, ...]) -> dict[str, list[_Row]]:
        found: dict[str, list[_Row]] = {name: [] for name in names}
        for message in raw.everything(servers, names):
            pairs: Any = message.headers() or ()
            headers: dict[str, bytes] = {name: value or b"" for name, value in pairs}
            row = _Row(int(message.partition() or 0), int(message.offset() or 0), message.timestamp()[1], message.value(), headers)
            found[str(message.topic())].append(row)
        return found

    def _wait(self, what: str, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not until():
            self.alive()
            if time.monotonic() > deadline:
                raise NetworkUnavailable(f"waited {READY_S:g} s for {what}: see the logs in {self.folder / 'logs'}")
            time.sleep(0.25)


class _Row(msgspec.Struct, frozen=True, gc=False):
    partition: int
    offset: int
    at_ms: int
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def mark(self) -> bytes:
        """What tells records apart wherever they are."""
        return self.headers.get("ce_id", b"") + hashlib.sha256(self.value or b"").digest()


def _ready(port: int) -> bool:
    found = scrape(port)
    return found is not None and found.total("headwater_ready") > 0


def _lines(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.jsonl")):
        with contextlib.suppress(FileNotFoundError):
            yield from path.read_bytes().splitlines()


def _carried(leaf: list[_Row], region: list[_Row], explained: set[tuple[int, int]]) -> Carried:
    there = {row.mark for row in region}
    sent = {row.mark: row for row in leaf}
    return Carried(
        sent=len(sent),
        arrived=sum(mark in there for mark in sent),
        explained=sum(mark not in there and (row.partition, row.offset) in explained for mark, row in sent.items()),
        repeated=len(region) - len(there),
    )


def _pause(times_ms: Iterator[int]) -> float:
    ordered = sorted(times_ms)
    return max((after - before for before, after in pairwise(ordered)), default=0) / 1000
