"""Overlap: two leaves that process one source, cameras that see one place, and workers that are killed in between give one result a record,
one alert, and one incident an event. The joiner of incidents by itself, then resolvers as people run them, on a real Kafka, judged by a
plain reader against what the test has published."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.incidents import Gathered, Incidents
from schemas.config import Incidents as IncidentsConfig
from schemas.config import Kafka, SharedZone, SiteConfig, Topics, parse
from schemas.detections import Detections
from schemas.identity import alert_id
from schemas.incidents import Incident, events, incident_of
from schemas.messages import RANK, Alert, AlertState, Status, Tier, Verdict
from schemas.rules import Zone
from streams import outputs
from streams.clients import Clients
from streams.cluster import create_topics
from streams.delivery import Rejected
from streams.partition import partition_of
from streams.sink import Sink
from streams.topology import Role, Topology

LIMIT_S = 60.0
PARTITIONS = 4
GATE = SharedZone(name="gate", sources=("cam-1", "cam-2"))


def alert(tools: ModuleType, source: str, number: int, at_s: float, state: AlertState = AlertState.RAISED, **changes: Any) -> Alert:
    record = f"{source}/e/{number}"
    fields: dict[str, Any] = {
        "id": alert_id("door", record),
        "rule": "door",
        "source": source,
        "site": "leaf-1",
        "record": record,
        "captured_at": tools.NOON + dt.timedelta(seconds=at_s),
        "state": state,
        "version": state.height,
        "label": "person",
        "min_score": 0.5,
        "zone": Zone(),
        "seen": Detections([tools.person()]),
        "score": 0.9,
        "held_s": 0.0,
        "model_digest": "d" * 64,
        "deadline_ms": 1000,
        **changes,
    }
    return Alert(**fields)


def verdict(tools: ModuleType, source: str, number: int, at_s: float, site: str, tier: Tier = Tier.LEAF, seen: bool = True) -> Verdict:
    return Verdict(
        id=f"{source}/e/{number}",
        source=source,
        captured_at=tools.NOON + dt.timedelta(seconds=at_s),
        status=Status.FINAL if tier is Tier.REGION else Status.PROVISIONAL,
        detections=Detections([tools.person()] if seen else []),
        confidence=0.5,
        tier=tier,
        site=site,
        rank=RANK[tier],
        generation=0,
        model="m",
        model_digest="d" * 64,
        deadline_ms=None if tier is Tier.REGION else 3_600_000,
    )


# ---- the joiner by itself

states = st.sampled_from([AlertState.RAISED, AlertState.UNREVIEWED, AlertState.RETRACTED, AlertState.CONFIRMED])
some = st.lists(st.tuples(st.sampled_from(["cam-1", "cam-2", "cam-3"]), st.integers(0, 12), states), min_size=1, max_size=14)


@given(some, st.data())
@settings(deadline=None, max_examples=150)
def test_in_any_order_and_batching_and_through_restarts_the_incidents_are_those_of_all_alerts(
    tools: ModuleType, given_: list[tuple[str, int, AlertState]], data: st.DataObject
) -> None:
    config = tools.leaf_site(shared_zones=(GATE,), incidents=IncidentsConfig(gap_s=15.0))
    alerts = [alert(tools, source, n, 12.0 * n, state, order=f"1.{state.height}" if state.height else "") for source, n, state in given_]
    order = data.draw(st.permutations(alerts + data.draw(st.lists(st.sampled_from(alerts), max_size=5))))
    gathered = Gathered(config)
    log: list[Incident] = []
    taken: list[Alert] = []
    while order:
        count = data.draw(st.integers(1, 4))
        batch, order = order[:count], order[count:]
        if data.draw(st.booleans(), label="restart"):  # perhaps before what was taken last was written
            gathered = Gathered(config)
            gathered.take(taken + (batch if data.draw(st.booleans()) else []))
            for incident in log:
                gathered.note(incident)
        changed = gathered.changed(gathered.take(batch))
        gathered.wrote(changed)
        log += changed
        taken += batch
    last = {incident.id: incident for incident in log}
    live = {name: incident for name, incident in last.items() if incident.merged_into is None}

    latest: dict[str, Alert] = {}
    for each in alerts:
        latest[each.id] = max(latest.get(each.id, each), each, key=lambda a: a.version)
    at_gate, alone = ([a for a in latest.values() if (a.source == "cam-3") is apart] for apart in (False, True))
    groups = [("zone:gate", at_gate), ("cam-3", alone)]
    expected = [incident_of(event, place) for place, group in groups for event in events(group, 15.0)]
    assert live == {incident.id: incident for incident in expected}
    for incident in last.values():  # who was merged says into what, and the way ends
        seen = {incident.id}
        while incident.merged_into is not None:
            assert incident.merged_into not in seen
            seen.add(incident.merged_into)
            incident = last[incident.merged_into]


def test_what_changes_nothing_is_not_written_again(tools: ModuleType) -> None:
    gathered = Gathered(tools.leaf_site())
    first = alert(tools, "cam-3", 0, 0.0)
    changed = gathered.changed(gathered.take([first]))
    assert len(changed) == 1
    assert gathered.changed(gathered.take([first])) == changed, "not before it was written"
    gathered.wrote(changed)
    assert gathered.changed(gathered.take([first])) == []


def test_what_is_kept_is_bounded_and_whole_incidents_go(tools: ModuleType) -> None:
    gathered = Gathered(tools.leaf_site(), limit=20)
    for n in range(300):
        changed = gathered.changed(gathered.take([alert(tools, "cam-3", n, 1000.0 * (n // 3) + n % 3)]))
        gathered.wrote(changed)
        assert {incident.alerts for incident in changed} == {n % 3 + 1}
    assert len(gathered._written) <= 20
    assert sum(map(len, gathered._groups.values())) <= 20


def test_a_record_that_is_no_alert_is_rejected_and_the_rest_are_joined(tools: ModuleType) -> None:
    config = tools.leaf_site()
    role = Topology(config).role(Role.RESOLVER)
    joiner = Incidents(config, role, Clients(Kafka(bootstrap_servers="127.0.0.1:9"), "test"))
    topic = role.read("incidents.alerts")
    good = [alert(tools, "cam-3", n, float(n)).to_bytes() for n in range(2)]
    records = [tools.Record(in_topic=topic.name, data=data) for data in (good[0], b"{}", good[1], None)]
    items = asyncio.run(tools.collect(joiner.work(topic, 0, records)))
    assert sorted(item.index for item in items) == [0, 1, 2, 3]
    assert sorted(item.index for item in items if isinstance(item, Rejected)) == [1, 3]
    (incident,) = tools.values(items, "incidents", Incident)
    assert incident.alerts == 2


def test_after_a_restart_the_joiner_goes_on_where_it_was(tools: ModuleType, kafka: Kafka, prefix: str) -> None:
    config = tools.leaf_site(kafka=kafka, topics=Topics(prefix=prefix, partitions=1))
    clients = Clients(kafka, "test")
    create_topics(Topology(config), clients)
    role = Topology(config).role(Role.RESOLVER)
    topic = role.read("incidents.alerts")
    first, second, late = (alert(tools, "cam-3", n, at_s) for n, at_s in ((0, 0.0), (1, 50.0), (2, 25.0)))

    def work(joiner: Incidents, *alerts: Alert) -> list[Any]:
        records = [tools.Record(in_topic=topic.name, data=each.to_bytes()) for each in alerts]
        found: list[Any] = tools.outputs_of(asyncio.run(tools.collect(joiner.work(topic, 0, records))))
        return found

    async def write(written: Sequence[Any]) -> None:
        sink = Sink(clients)
        try:
            await sink.write(written)
        finally:
            sink.close()

    joiner = Incidents(config, role, clients)
    joiner.restore([(topic.name, 0)])
    asyncio.run(write([outputs.placed(topic, each, "cam-3") for each in (first, second)] + work(joiner, first, second)))
    again = Incidents(config, role, clients)
    again.restore([(topic.name, 0)])
    assert work(again, first, second) == [], "a replay writes nothing"
    told = [Incident.from_bytes(output.value) for output in work(again, late)]
    assert [(incident.alerts, incident.merged_into is None) for incident in told] == [(3, True), (3, False)]
    again.forget([(topic.name, 0)])
    assert again._gathered == {}


# ---- resolvers as people run them


class Region:
    """A region of two leaves: its topics, its resolver's process, and what the leaves' links bring."""

    def __init__(self, tools: ModuleType, folder: Path, kafka: Kafka, prefix: str) -> None:
        self.tools, self.folder, self.kafka, self.prefix = tools, folder, kafka, prefix
        self.path = folder / "site.toml"
        site = {
            "name": "region-1",
            "tier": "region",
            "data_dir": str(folder / "data"),
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
            "topics": {"prefix": prefix, "partitions": PARTITIONS},
            "region": {"sites": ["leaf-1", "leaf-2"]},
            "shared_zones": [{"name": "gate", "sources": ["cam-1", "cam-2"]}],
            "incidents": {"gap_s": 15.0},
        }
        self.path.write_text(tomli_w.dumps(site), encoding="utf-8")
        self.config: SiteConfig = parse(self.path.read_text(encoding="utf-8"), os.environ)
        self.topology = Topology(self.config)
        create_topics(self.topology, Clients(kafka, "test"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 5})
        self._consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": f"{prefix}test"})
        self.records: dict[str, list[Message]] = {"results": [], "alerts": [], "incidents": []}
        self._consumer.assign([TopicPartition(prefix + base, n, OFFSET_BEGINNING) for base in self.records for n in range(PARTITIONS)])

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / f"resolver-{len(self.processes)}.log").open("wb") as output:
            command = [sys.executable, "-m", "infra.cli", "run", "region", "-c", str(self.path), "--role", "resolver"]
            self.processes.append(subprocess.Popen(command, stdout=output, stderr=output))
        return self.processes[-1]

    def send(self, base: str, site: str, values: Sequence[Verdict | Alert], waited_ms: int = 0) -> None:
        """As a link brings them."""
        topic = self.topology.topic(base, site)
        for value in values:
            output = outputs.alert(topic, value) if isinstance(value, Alert) else outputs.answer(topic, value)
            self._producer.produce(
                topic.name,
                value=output.value,
                key=output.key,
                headers=[*output.headers, ("ce_appendedms", b"%d" % (time.time() * 1000 - waited_ms))],
                partition=partition_of(value.source, PARTITIONS),
            )
        assert self._producer.flush(LIMIT_S) == 0

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S:g} s\n{self.latest('incidents')}\n{logs}"
            assert all(process.poll() in (None, -signal.SIGKILL) for process in self.processes), logs
            message = self._consumer.poll(0.2)
            if message is not None and message.error() is None:
                self.records[(message.topic() or "").removeprefix(self.prefix)].append(message)

    def latest(self, base: str) -> dict[str, Any]:
        """What a compacted topic means: the value that was written last for each key."""
        return {(m.key() or b"").decode(): json.loads(m.value() or b"") for m in self.records[base]}

    def incidents(self) -> list[Any]:
        return [incident for incident in self.latest("incidents").values() if "merged_into" not in incident]

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(LIMIT_S)
        self._consumer.close()


@pytest.fixture
def region(tools: ModuleType, tmp_path: Path, kafka: Kafka, prefix: str) -> Iterator[Region]:
    made = Region(tools, tmp_path, kafka, prefix)
    yield made
    made.end()


def test_two_leaves_one_source_and_cameras_of_one_place_through_a_kill(tools: ModuleType, region: Region) -> None:
    assert len({partition_of(source, PARTITIONS) for source in ("cam-1", "cam-2")}) == 2, "their alerts lie apart"
    chance = random.Random(4)
    times = {"cam-1": [0.0, 10.0, 100.0], "cam-2": [4.0, 55.0, 112.0], "cam-9": [3.0]}  # two events at the gate and a third by itself
    frames = [(source, n, at_s) for source, all_of in times.items() for n, at_s in enumerate(all_of)]
    said: list[tuple[str, str, Verdict | Alert]] = []
    for source, n, at_s in frames:
        for site in ("leaf-1", "leaf-2") if source == "cam-1" else ("leaf-1",):  # two leaves process cam-1
            said.append(("up.verdicts", site, verdict(tools, source, n, at_s, site)))
            said.append(("up.alerts", site, alert(tools, source, n, at_s, site=site)))
            said.append(("down.verdicts", site, verdict(tools, source, n, at_s, "region-1", Tier.REGION, seen=at_s < 100)))
    said += chance.sample(said, 8)  # the link brings some twice
    chance.shuffle(said)

    resolver = region.start()
    half = len(said) // 2
    for base, site, value in said[:half]:
        region.send(base, site, [value])
    region.until(lambda: region.records["results"], "the resolver is at work")
    resolver.kill()
    resolver.wait(LIMIT_S)
    for base, site, value in said[half:]:
        region.send(base, site, [value])
    region.start()
    expected = {f"{source}/e/{n}" for source, n, _ in frames}

    def settled() -> bool:
        results, alerts = region.latest("results"), region.latest("alerts")
        return (
            set(results) == expected
            and all(result["tier"] == "region" for result in results.values())
            and {each["record"]: each["state"] for each in alerts.values()}
            == {f"{source}/e/{n}": "confirmed" if at_s < 100 else "retracted" for source, n, at_s in frames}
            and sorted((i["place"], i["alerts"], i["state"]) for i in region.incidents()) == wanted
            and {(w["source"], w["record"], w["site"]) for i in region.incidents() for w in json.loads(i["witnesses"])} == witnesses
        )

    wanted = [("cam-9", 1, "confirmed"), ("zone:gate", 1, "confirmed"), ("zone:gate", 2, "retracted"), ("zone:gate", 3, "confirmed")]
    witnesses = {(source, f"{source}/e/{n}", "leaf-2" if source == "cam-1" else "leaf-1") for source, n, _ in frames}
    region.until(settled, "one result a record, one alert a frame, one incident an event")
    both = next(i for i in region.incidents() if i["alerts"] == 3)
    assert json.loads(both["sources"]) == ["cam-1", "cam-2"]

    before = {base: region.latest(base) for base in region.records}  # a replay of everything, after all was final
    for base, site, value in said:
        region.send(base, site, [value], waited_ms=3_600_000)
    marker = verdict(tools, "cam-1", 99, 999.0, "leaf-1"), verdict(tools, "cam-2", 99, 999.0, "leaf-1")
    region.send("up.verdicts", "leaf-1", [*marker, verdict(tools, "cam-9", 99, 999.0, "leaf-1")])
    region.send("up.alerts", "leaf-1", [alert(tools, source, 99, 999.0) for source in times])
    region.until(
        lambda: len(region.latest("results")) == len(expected) + 3 and sum(i["alerts"] for i in region.incidents()) == len(expected) + 3,
        "what came after the replay is there",
    )
    for base, then in before.items():
        now = region.latest(base)
        assert {key: now[key] for key in then} == then, "the replay has changed nothing, nor marked anything late"
