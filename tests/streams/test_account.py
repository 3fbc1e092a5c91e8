"""The account's laws against plain Python sets, and the account of real topics against what was written to them."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import SiteConfig, Topics
from schemas.identity import RecordId, foreign_id, new_epoch
from schemas.intervals import Intervals
from schemas.messages import Drop, EpochMark, EpochState
from streams import outputs
from streams.account import Ledger, read_account
from streams.clients import Clients
from streams.cluster import create_topics
from streams.delivery import bury
from streams.sink import Output, Sink
from streams.topology import Role, Topology

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)

Streams = st.sampled_from([("cam-1", "e1"), ("cam-1", "e2"), ("cam-2", "e1"), ("kafka", "cluster/uuid/0"), ("kafka", "cluster/uuid/1")])
Sequences = st.integers(0, 40)
Ranges = st.lists(st.tuples(Sequences, st.integers(0, 6)), min_size=1, max_size=4)
Facts = st.one_of(
    st.tuples(st.just("result"), Streams, Sequences),
    st.tuples(st.just("dead"), Streams, Sequences),
    st.tuples(st.just("drop"), Streams, Ranges, st.sampled_from(["stale", "retention"]), st.sampled_from(["leaf", "producer"])),
    st.tuples(st.just("mark"), Streams, Sequences, Sequences, st.sampled_from(list(EpochState))),
)


def draw(facts: list[Any]) -> Any:
    ledger = Ledger()
    for kind, (source, epoch), *rest in facts:
        if kind == "result":
            ledger.result(RecordId(source, epoch, rest[0]))
        elif kind == "dead":
            ledger.dead_letter(RecordId(source, epoch, rest[0]))
        elif kind == "drop":
            ranges = Intervals((first, first + more) for first, more in rest[0]).to_ranges()
            ledger.drop(Drop(source=source, epoch=epoch, site="leaf-1", stage=rest[2], reason=rest[1], ranges=ranges))
        elif source != "kafka":
            ledger.epoch(mark(source, epoch, rest[2], acknowledged=rest[0], assigned=rest[0] + rest[1]))
    return ledger.account()


def mark(source: str, epoch: str, state: EpochState, *, acknowledged: int, assigned: int) -> EpochMark:
    return EpochMark(source=source, epoch=epoch, site="leaf-1", state=state, assigned=assigned, acknowledged=acknowledged, started_at=NOW)


@given(facts=st.lists(Facts, max_size=60), seed=st.integers())
def test_the_account_is_set_unions_whatever_the_order_and_however_often(facts: list[Any], seed: int) -> None:
    results, dead, drops, marks, given_out, ended = (defaultdict(set) for _ in range(6))
    for kind, stream, *rest in facts:
        if kind == "result":
            results[stream].add(rest[0])
        elif kind == "dead":
            dead[stream].add(rest[0])
        elif kind == "drop":
            for first, more in rest[0]:
                drops[stream].update((f"{rest[2]}: {rest[1]}", number) for number in range(first, first + more + 1))
        elif stream[0] != "kafka":
            marks[stream].update(range(rest[0]))
            given_out[stream].update(range(rest[0] + rest[1]))
            ended[stream].add(rest[2])
    account = draw(facts)
    assert [(line.source, line.epoch) for line in account.lines] == sorted({*results, *dead, *drops, *ended})
    for line in account.lines:
        stream = (line.source, line.epoch)
        dropped = {number for _, number in drops[stream]}
        seen = results[stream] | dead[stream] | dropped
        dense = set(range(max([len(marks[stream]), *(number + 1 for number in seen)])))
        produced = seen if line.source == "kafka" else dense  # what else is in a partition is of our own producers
        assert line.produced == len(produced)
        assert line.results == len(results[stream])
        assert line.dead == len(dead[stream] - results[stream])  # a replay may answer what was buried
        assert line.dropped == len(dropped - results[stream] - dead[stream])  # or process what was dropped
        assert {n for first, last in line.open for n in range(first, last + 1)} == produced - seen
        assert line.produced == line.results + line.dead + line.dropped + line.missing
        assert line.unsent == (0 if line.source == "kafka" else len(given_out[stream] - produced))
        assert set(line.drops) <= {reason for reason, _ in drops[stream]}
        if EpochState.ENDED in ended[stream]:
            assert line.state == "ended"
        if not ended[stream]:
            assert line.state == "unannounced"
    assert account.adds_up == all(not line.open for line in account.lines)
    assert account.produced == account.results + account.dead + account.dropped + account.missing
    # Order and repetition change nothing but which state of an epoch that has not ended is the latest.
    again = facts * 2
    random.Random(seed).shuffle(again)
    for mine, other in zip(account.lines, draw(again).lines, strict=True):
        if mine.state != other.state:
            assert {mine.state, other.state} <= {"started", "mark"}
        assert [getattr(mine, name) for name in mine.__struct_fields__ if name != "state"] == [
            getattr(other, name) for name in other.__struct_fields__ if name != "state"
        ]


@pytest.fixture
def config(rig: Any) -> SiteConfig:
    config = SiteConfig(name="leaf-1", tier="leaf", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2))
    create_topics(Topology(config), Clients(rig.kafka, "test"))
    return config


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


def test_the_account_of_real_topics(rig: Any, config: SiteConfig) -> None:
    """Our records and foreign ones, what is written twice, and what nobody can read."""
    topology = Topology(config)
    leaf, producer, resolver = (topology.role(role) for role in (Role.LEAF, Role.PRODUCER, Role.RESOLVER))
    frames, results = leaf.read("frames"), resolver.write("results")
    info = Clients(rig.kafka, "test").cluster([frames.name])
    uuid = info.topics[frames.name][0]
    epoch = new_epoch()
    place = foreign_id(info.id, uuid, 1, 0)
    sink = Sink(rig.clients)

    def result(record: str) -> Output:
        return Output(results, "cam-1", record, b"{}", [])

    def drop(source: str, epoch: str, pairs: list[tuple[int, int]]) -> Output:
        value = Drop(source=source, epoch=epoch, site="leaf-1", stage="leaf", reason="stale", ranges=Intervals(pairs).to_ranges())
        return outputs.drop(leaf.write("drops"), value, NOW, "cam-1")

    def announce(state: EpochState, acknowledged: int) -> Output:
        value = mark("cam-1", epoch, state, acknowledged=acknowledged, assigned=acknowledged + 3)
        return outputs.epoch(producer.write("epochs"), value, NOW)

    async def main() -> None:
        await sink.write([announce(EpochState.STARTED, 0), announce(EpochState.MARK, 10)])
        await sink.write([result(f"cam-1/{epoch}/{n}") for n in (0, 1, 2, 2, 5)] * 2)
        await sink.write([drop("cam-1", epoch, [(3, 5)]), drop("cam-1", epoch, [(4, 4)]), drop("kafka", place.epoch, [(100, 109)])])
        await sink.write([result(str(place._replace(sequence=n))) for n in (7, 8)])
        for topic in (results, leaf.write("drops"), producer.write("epochs")):  # not ours
            await sink.write([Output(topic, "x", b"\xff\xfe", b"\xff not json", [])])
        letters, verdict_letters = leaf.write("frames.dlq"), resolver.write("verdicts.dlq")
        named = [("ce_id", f"cam-1/{epoch}/6".encode())]
        await bury(sink, letters, Record(frames.name, 900, named), ValueError("bad"), "leaf", None)
        await bury(sink, letters, Record(frames.name, 77, [("ce_id", b"\xff broken")]), ValueError("bad"), "leaf", None)
        await bury(sink, letters, Record(frames.name, 77, []), ValueError("bad"), "leaf", None)
        await bury(
            sink, verdict_letters, Record("verdicts", 3, [("ce_id", f"cam-1/{epoch}/8".encode())]), ValueError("bad"), "joiner", None
        )
        bad = [("__connect.errors.partition", b"one"), ("__connect.errors.offset", b"-4")]
        await sink.write([Output(letters, "", None, b"from elsewhere", bad), Output(letters, "", None, b"", [])])

    asyncio.run(main())
    sink.close()
    account = read_account(topology, Clients(rig.kafka, "test"))
    ours, foreign = account.lines
    assert (ours.source, ours.epoch, ours.state) == ("cam-1", epoch, "mark")
    assert (ours.produced, ours.results, ours.dead, ours.drops, ours.unsent) == (10, 4, 2, {"leaf: stale": 2}, 3)
    assert ours.open == ((7, 7), (9, 9))
    assert (foreign.source, foreign.epoch) == ("kafka", f"{info.id}/{uuid}/1")
    assert (foreign.results, foreign.dead, foreign.dropped, foreign.missing) == (2, 1, 10, 0)
    assert not account.adds_up
    assert account.missing == 2


def test_an_empty_site_adds_up(config: SiteConfig, rig: Any) -> None:
    account = read_account(Topology(config), Clients(rig.kafka, "test"))
    assert account.lines == ()
    assert account.adds_up


def test_topics_have_uuids_that_ids_can_hold(rig: Any) -> None:
    """A foreign record is named after its topic's uuid: of many topics, none may have one that breaks the name."""
    topics = [rig.topic(f"t{number}") for number in range(12)]
    info = Clients(rig.kafka, "test").cluster([topic.name for topic in topics])
    for topic in topics:
        name = foreign_id(info.id, info.topics[topic.name][0], 0, 7)
        assert RecordId.parse(str(name)) == name
