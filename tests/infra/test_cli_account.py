"""`headwater account` as a person and a program see it, on a real cluster."""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.config import Kafka, SiteConfig, Topics
from schemas.identity import RecordId
from schemas.intervals import Intervals
from schemas.messages import Drop, EpochMark, EpochState, RangesBySite
from streams import outputs
from streams.clients import Clients
from streams.cluster import create_topics
from streams.sink import Output, Sink
from streams.topology import Role, Topology

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
EPOCH = "0190e0a0-0000-7000-8000-000000000001"


class Site:
    """A leaf's cluster, written to as its stages do."""

    def __init__(self, kafka: Kafka, prefix: str, folder: Path) -> None:
        self.config = SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2))
        self.topology = Topology(self.config)
        clients = Clients(kafka, "test")
        create_topics(self.topology, clients)
        self.sink = Sink(clients)
        self.file = folder / "leaf.toml"
        self.file.write_text(
            f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
            f'[topics]\nprefix = "{prefix}"\npartitions = 2\n'
        )

    def results(self, source: str, sequences: Any) -> None:
        topic = self.topology.role(Role.RESOLVER).write("results")
        self.sink.write_blocking([Output(topic, source, str(RecordId(source, EPOCH, n)), b"{}", []) for n in sequences])

    def drop(self, source: str, first: int, last: int) -> None:
        ranges = Intervals([(first, last)]).to_ranges()
        value = Drop(source=source, epoch=EPOCH, site="leaf-1", stage="leaf", reason="stale", ranges=ranges)
        self.sink.write_blocking([outputs.drop(self.topology.role(Role.LEAF).write("drops"), value, NOW)])

    def mark(self, source: str, acknowledged: int, state: EpochState = EpochState.ENDED, **more: Any) -> None:
        fields = {"site": "leaf-1", "assigned": acknowledged, **more}
        value = EpochMark(source=source, epoch=EPOCH, state=state, acknowledged=acknowledged, started_at=NOW, **fields)
        self.sink.write_blocking([outputs.epoch(self.topology.role(Role.PRODUCER).write("epochs"), value, NOW)])


@pytest.fixture
def site(kafka: Kafka, prefix: str, tmp_path: Path) -> Any:
    found = Site(kafka, prefix, tmp_path)
    yield found
    found.sink.close()


def test_missing_records_are_named_with_where_to_look(site: Site, headwater: Callable[..., Any]) -> None:
    site.mark("gate", 0, EpochState.STARTED)
    frames = site.topology.role(Role.PRODUCER).write("frames")
    site.sink.write_blocking([Output(frames, "gate", "gate", b"jpeg", []) for _ in range(12)])
    site.mark("gate", 100)
    site.results("gate", [*range(40), *range(45, 90)])
    site.drop("gate", 90, 99)
    ran = headwater("account", "gate", "-c", site.file, "--grace", 0)
    assert ran.code == 1
    assert "missing of gate" in ran.out
    assert "40-44" in ran.out
    assert "10 leaf: stale" in ran.out
    assert "taken by the broker of leaf-1 between" in ran.out
    assert re.search(r"frames partition \d, offsets 0-11", ran.out), "where to look for them while they are stored"
    assert "5 records of 100 missing" in ran.out
    told = json.loads(headwater("account", "--all", "-c", site.file, "--grace", 0, "--json").out)
    assert (told["produced"], told["results"], told["dropped"], told["missing"], told["adds_up"]) == (100, 85, 10, 5, False)
    assert told["lines"][0]["open"] == [[40, 44]]
    assert told["around"][0]["first"] == 40


def test_young_records_are_in_flight_and_waiting_ends_when_they_have_ended(site: Site, headwater: Callable[..., Any]) -> None:
    site.mark("gate", 50)
    site.results("gate", range(45))
    ran = headwater("account", "gate", "-c", site.file, "--grace", 600)
    assert ran.code == 0
    assert "adds up: all 50 records are accounted for, 5 of them in flight" in ran.out
    late = threading.Timer(1.0, lambda: site.results("gate", range(45, 50)))
    late.start()
    told = json.loads(headwater("account", "gate", "-c", site.file, "--grace", 600, "--wait", 30, "--json").out)
    late.join()
    assert (told["results"], told["in_work"], told["adds_up"]) == (50, 0, True)


def test_a_source_that_moved_away_is_told_as_elsewhere(site: Site, headwater: Callable[..., Any]) -> None:
    site.mark("gate", 50, EpochState.MARK, elsewhere=RangesBySite({"leaf-2": Intervals([(20, 49)]).to_ranges()}))
    site.results("gate", range(20))
    ran = headwater("account", "gate", "-c", site.file, "--grace", 0)
    assert ran.code == 0
    assert "30 at leaf-2" in ran.out


def test_what_cannot_be_answered_is_said(site: Site, headwater: Callable[..., Any]) -> None:
    assert "nothing was produced yet" in headwater("account", "--all", "-c", site.file).out
    site.results("gate", range(3))
    ran = headwater("account", "gaet", "-c", site.file)
    assert (ran.code, "known are gate" in ran.err) == (1, True)
    assert headwater("account", "-c", site.file).code == 2
    assert headwater("account", "gate", "--since", "yesterday", "-c", site.file).code == 2
    assert "adds up" in headwater("account", "gate", "--since", "1h", "-c", site.file).out
    assert "nothing was produced" in headwater("account", "gate", "--since", "2100-01-01T00:00:00Z", "-c", site.file).out
