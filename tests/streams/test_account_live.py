"""The account of real topics: read from a broker, kept by an accountant that is stopped and started, outliving what it was counted from."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from schemas.accounts import AccountSet, Outcome
from schemas.config import Region as RegionConfig
from schemas.config import SiteConfig, Topics
from schemas.identity import RecordId, foreign_id, new_epoch
from schemas.intervals import Intervals
from schemas.messages import Drop, EpochMark, EpochState, RangesBySite
from streams import outputs
from streams.account_read import binding, look_around, positions, read_account
from streams.accounts import Accountant
from streams.clients import Clients
from streams.cluster import create_topics
from streams.delivery import bury
from streams.sink import Output, Sink
from streams.topology import Role, Topology

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def mark(source: str, epoch: str, state: EpochState, *, acknowledged: int, assigned: int) -> EpochMark:
    return EpochMark(source=source, epoch=epoch, site="leaf-1", state=state, assigned=assigned, acknowledged=acknowledged, started_at=NOW)


@pytest.fixture
def config(rig: Any) -> SiteConfig:
    config = SiteConfig(name="leaf-1", tier="leaf", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2))
    create_topics(Topology(config), Clients(rig.kafka, "test"))
    return config


class Site:
    """Writes what the stages of a leaf write."""

    def __init__(self, config: SiteConfig) -> None:
        self.topology, self.clients = Topology(config), Clients(config.kafka, "test")
        self.sink = Sink(self.clients)
        roles = {role: self.topology.role(role) for role in Role}
        self._results, self._drops = roles[Role.RESOLVER].write("results"), roles[Role.LEAF].write("drops")
        self._epochs = roles[Role.PRODUCER].write("epochs")

    def write(self, *values: Output) -> None:
        self.sink.write_blocking(values)

    def result(self, source: str, epoch: str, sequence: int) -> Output:
        return Output(self._results, source, str(RecordId(source, epoch, sequence)), b"{}", [])

    def drop(self, source: str, epoch: str, pairs: list[tuple[int, int]], reason: str = "stale") -> Output:
        value = Drop(source=source, epoch=epoch, site="leaf-1", stage="leaf", reason=reason, ranges=Intervals(pairs).to_ranges())
        return outputs.drop(self._drops, value, NOW, "cam-1")

    def mark(self, source: str, epoch: str, acknowledged: int, state: EpochState = EpochState.MARK, more: int = 0) -> Output:
        return outputs.epoch(self._epochs, mark(source, epoch, state, acknowledged=acknowledged, assigned=acknowledged + more), NOW)

    def account(self, **how: Any) -> Any:
        return read_account(self.topology, self.clients, **how)


@pytest.fixture
def site(config: SiteConfig) -> Iterator[Site]:
    found = Site(config)
    yield found
    found.sink.close()


class Record:
    """A record of `frames` as delivery buries it."""

    def __init__(self, topic: str, offset: int, headers: list[tuple[str, bytes | None]]) -> None:
        self._topic, self._offset, self._headers = topic, offset, headers

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return b"no image"

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 2, 0


def test_the_account_of_real_topics(site: Site) -> None:
    """Our records and foreign ones, what is written twice, and what nobody can read."""
    topology = site.topology
    leaf, producer, resolver = (topology.role(role) for role in (Role.LEAF, Role.PRODUCER, Role.RESOLVER))
    frames, results = leaf.read("frames"), resolver.write("results")
    info = site.clients.cluster([frames.name])
    uuid = info.topics[frames.name][0]
    epoch = new_epoch()
    place = foreign_id(info.id, uuid, 1, 0)

    async def letters() -> None:
        own, verdicts = leaf.write("frames.dlq"), resolver.write("verdicts.dlq")
        named = [("ce_id", f"cam-1/{epoch}/6".encode())]
        await bury(site.sink, own, Record(frames.name, 900, named), ValueError("bad"), "leaf", None)
        await bury(site.sink, own, Record(frames.name, 77, [("ce_id", b"\xff broken")]), ValueError("bad"), "leaf", None)
        await bury(site.sink, own, Record(frames.name, 77, []), ValueError("bad"), "leaf", None)
        await bury(site.sink, verdicts, Record("verdicts", 3, [("ce_id", f"cam-1/{epoch}/8".encode())]), ValueError("bad"), "joiner", None)
        bad = [("__connect.errors.partition", b"one"), ("__connect.errors.offset", b"-4")]
        await site.sink.write([Output(own, "", None, b"from elsewhere", bad), Output(own, "", None, b"", [])])

    site.write(site.mark("cam-1", epoch, 0, EpochState.STARTED), site.mark("cam-1", epoch, 10, more=3))
    site.write(*[site.result("cam-1", epoch, n) for n in (0, 1, 2, 2, 5)] * 2)
    site.write(site.drop("cam-1", epoch, [(3, 5)]), site.drop("cam-1", epoch, [(4, 4)]), site.drop("kafka", place.epoch, [(100, 109)]))
    site.write(*[Output(results, "cam-1", str(place._replace(sequence=n)), b"{}", []) for n in (7, 8)])
    for topic in (results, leaf.write("drops"), producer.write("epochs")):  # not ours
        site.write(Output(topic, "x", b"\xff\xfe", b"\xff not json", []))
        site.write(Output(topic, "x", b"cam-1/e/\xc2\xb2", b"", []), Output(topic, "x", b"cam-1/e/" + b"9" * 30, b"", []))
    asyncio.run(letters())
    account = site.account()
    ours, foreign = account.lines
    assert (ours.source, ours.epoch, ours.state) == ("cam-1", epoch, "mark")
    assert (ours.produced, ours.results, ours.dead, ours.drops, ours.unsent) == (10, 4, 2, {"leaf: stale": 2}, 3)
    assert ours.open == ((7, 7), (9, 9))
    assert (foreign.source, foreign.epoch) == ("kafka", f"{info.id}/{uuid}/1")
    assert (foreign.results, foreign.dead, foreign.dropped, foreign.missing) == (2, 1, 10, 0)
    assert not account.adds_up
    assert account.missing == 2
    young = site.account(young_s=60)
    assert (young.missing, young.lines[0].in_flight) == (0, ((7, 7), (9, 9)))
    around = look_around(topology, site.clients, account)
    assert [(each.first, each.last, each.source) for each in around] == [(7, 7, "cam-1"), (9, 9, "cam-1")]
    assert all(each.before is not None and each.after is not None and each.after <= each.before for each in around)


def test_an_empty_site_adds_up(site: Site) -> None:
    account = site.account()
    assert account.lines == ()
    assert account.adds_up


def test_the_accountant_keeps_what_retention_takes(site: Site, rig: Any, eventually: Callable[..., None]) -> None:
    """Counted, stopped, gone from the topics, and counted on: the account stays whole, and a part that was read again changes nothing."""
    epoch = new_epoch()
    results, epochs = site.topology.topic("results"), site.topology.topic("epochs")

    def accountant() -> Accountant:
        return Accountant(site.topology, site.clients, site.sink, flush_s=0.2)

    def committed() -> int:
        info = site.clients.cluster([topic.name for topic in site.topology])
        return sum(positions(site.topology, site.clients, info, site.topology).values())

    site.write(site.mark("cam-1", epoch, 100), *[site.result("cam-1", epoch, n) for n in range(60)], site.drop("cam-1", epoch, [(60, 69)]))
    first = accountant()
    first.start()
    eventually(lambda: committed() == 62)
    first.stop()
    for topic in (results, epochs, site.topology.topic("drops")):
        for partition in range(topic.partitions):
            rig.trim(topic, rig.end(topic, partition), partition)
    line = site.account().lines[0]
    assert (line.produced, line.results, line.dropped, line.open) == (100, 60, 10, ((70, 99),))
    site.write(*[site.result("cam-1", epoch, n) for n in range(70, 90)], site.mark("cam-1", epoch, 95, EpochState.ENDED))
    assert site.account().lines[0].open == ((90, 99),), "what the accountant has not counted yet is read from the topics"
    second = accountant()
    second.start()
    eventually(lambda: committed() == 83)
    second.stop()
    for partition in range(results.partitions):
        rig.trim(results, rig.end(results, partition), partition)
    line = site.account().lines[0]
    assert (line.state, line.results, line.open) == ("ended", 80, ((90, 99),))
    assert site.account(trust_accountant=False).lines == site.account().lines


def test_an_accounts_topic_made_anew_is_counted_anew(site: Site, rig: Any, eventually: Callable[..., None]) -> None:
    """Commits without the sets that they stand for are void: otherwise the account would miss what is still stored."""
    epoch = new_epoch()
    site.write(site.mark("cam-1", epoch, 5), *[site.result("cam-1", epoch, n) for n in range(5)])
    accounts = site.topology.topic("accounts")

    def counted() -> int:
        info = site.clients.cluster([topic.name for topic in site.topology])
        return sum(positions(site.topology, site.clients, info, site.topology).values())

    first = Accountant(site.topology, site.clients, site.sink, flush_s=0.2)
    first.start()
    eventually(lambda: counted() == 6)
    first.stop()
    rig.delete(accounts)
    rig.make(accounts, **{name.replace(".", "_"): value for name, value in accounts.settings().items()})
    assert counted() == 0
    assert site.account().lines[0].results == 5
    info = site.clients.cluster([accounts.name, "none"])
    assert binding(info, accounts, accounts).startswith(info.topics[accounts.name][0])


def test_topics_have_uuids_that_ids_can_hold(rig: Any) -> None:
    """A foreign record is named after its topic's uuid: of many topics, none may have one that breaks the name."""
    topics = [rig.topic(f"t{number}") for number in range(12)]
    info = Clients(rig.kafka, "test").cluster([topic.name for topic in topics])
    for topic in topics:
        name = foreign_id(info.id, info.topics[topic.name][0], 0, 7)
        assert RecordId.parse(str(name)) == name


def test_a_region_adds_up_a_source_that_moved_and_believes_the_topic_not_the_payload(rig: Any) -> None:
    """Two sites' own topics at their region: epochs, drops and accounts of each, and the region's results."""
    sites = RegionConfig(sites=("leaf-1", "leaf-2"))
    config = SiteConfig(name="region", tier="region", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2), region=sites)
    topology, clients = Topology(config), Clients(rig.kafka, "test")
    create_topics(topology, clients)
    sink, epoch = Sink(clients), new_epoch()
    link, resolver = topology.role(Role.LINK), topology.role(Role.RESOLVER)

    def at(site: str, acknowledged: int, elsewhere: dict[str, list[tuple[int, int]]]) -> Output:
        there = RangesBySite({name: Intervals(pairs).to_ranges() for name, pairs in elsewhere.items()})
        value = EpochMark(
            source="gate",
            epoch=epoch,
            site=site,
            state=EpochState.MARK,
            assigned=acknowledged,
            acknowledged=acknowledged,
            started_at=NOW,
            elsewhere=there,
        )
        return outputs.epoch(link.write("up.epochs", site), value, NOW)

    kept = AccountSet(
        source="gate",
        epoch=epoch,
        site="leaf-2",
        outcome=Outcome.DEAD,
        stage="delivery",
        ranges=Intervals([(25, 26)]).to_ranges(),
        seen_at=NOW,
    )
    forged = Drop(source="gate", epoch=epoch, site="leaf-1", stage="leaf", reason="stale", ranges=Intervals([(20, 24)]).to_ranges())
    sink.write_blocking([at("leaf-1", 20, {}), at("leaf-2", 50, {"leaf-1": [(0, 19)], "leaf-9": [(40, 49)]})])
    sink.write_blocking([outputs.account(link.write("up.accounts", "leaf-2"), kept)])
    sink.write_blocking([outputs.drop(link.write("up.drops", "leaf-2"), forged, NOW)])
    results = resolver.write("results")
    sink.write_blocking([Output(results, "gate", str(RecordId("gate", epoch, n)), b"{}", []) for n in [*range(18), *range(27, 40)]])
    sink.close()
    (line,) = read_account(topology, clients).lines
    assert (line.produced, line.results, line.dead, line.drops) == (40, 31, 2, {"leaf: stale": 5})
    assert line.open == ((18, 19),), "what leaf-1 should have, and has not, is missing though leaf-2 says that it is there"
    assert line.elsewhere == {"leaf-9": 10}, "a site of another region answers for its own"
    assert line.sites == ("leaf-1", "leaf-2")
    found = [each for each in look_around(topology, clients, read_account(topology, clients)) if each.first == 18]
    assert found[0].site in {"leaf-1", "leaf-2"}
