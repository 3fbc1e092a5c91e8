"""Lost offset ranges of `verdicts`: every record that nothing will end any more is named, no other, on random logs and a real broker."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import SiteConfig, Topics
from schemas.identity import RecordId, new_epoch
from schemas.intervals import Intervals
from schemas.messages import EpochMark, EpochState
from streams import outputs
from streams.account_read import read_account
from streams.clients import Clients
from streams.cluster import create_topics
from streams.lost_frames import Before
from streams.lost_verdicts import drops_of, never_resolved
from streams.partition import partition_of
from streams.sink import Output, Sink
from streams.starts import Lost
from streams.topology import Role, Topology

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


@settings(deadline=None)
@given(
    length=st.integers(0, 40),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 20)),
    waiting=st.integers(0, 10),
    ended_above=st.sets(st.integers(0, 49), max_size=6),
    seed=st.integers(0, 1 << 32),
)
def test_what_nothing_will_end_is_named_and_nothing_else(
    length: int, cut: tuple[int, int], waiting: int, ended_above: set[int], seed: int
) -> None:
    """An epoch of which `length` frames are answered and `waiting` are not; a range of the verdicts is gone; the region ended some."""
    chance = random.Random(seed)
    dropped = {n for n in range(length) if chance.random() < 0.1}  # by the leaf: never a verdict
    log = [n for n in range(length) if n not in dropped]
    first, last = cut[0], cut[0] + cut[1]
    resolved, gone, behind = log[:first], log[first:last], log[last:]
    known = Before()
    ended = {*resolved, *dropped, *(n for n in ended_above if n < length)}
    known.ended = Intervals((n, n) for n in ended)
    known.marked = length + waiting
    to_come = Intervals((n, n) for n in [*behind, *range(length, length + waiting)])
    assert set(never_resolved(known, to_come, complete=True)) == set(gone) - ended
    told = set(never_resolved(known, to_come, complete=False))
    assert told == {n for n in set(gone) - ended if n < min(to_come, default=0)}, "what was not read to its end claims less, never more"


def test_a_resolver_that_was_overtaken_explains_what_it_will_never_see(rig: Any) -> None:
    """One run goes on behind the range, and a later frame of it the region has answered already; one ended in the range; one is still
    to be answered by the leaf."""
    config = SiteConfig(name="leaf-1", tier="leaf", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2))
    topology, clients = Topology(config), Clients(rig.kafka, "test")
    create_topics(topology, clients)
    frames, verdicts = topology.topic("frames"), topology.topic("verdicts")
    source = next(name for name in (f"cam-{n}" for n in range(50)) if partition_of(name, 2) == 0)
    running, ended, fresh = new_epoch(), new_epoch(), new_epoch()
    sink = Sink(clients)

    def record(epoch: str, sequence: int) -> tuple[Any, ...]:
        return (source.encode(), b"x", [("ce_id", str(RecordId(source, epoch, sequence)).encode())])

    def mark(epoch: str, acknowledged: int, state: EpochState) -> Output:
        value = EpochMark(
            source=source, epoch=epoch, site="leaf-1", state=state, assigned=acknowledged, acknowledged=acknowledged, started_at=NOW
        )
        return outputs.epoch(topology.role(Role.PRODUCER).write("epochs"), value, NOW)

    def result(epoch: str, sequence: int) -> Output:
        return Output(topology.role(Role.RESOLVER).write("results"), source, str(RecordId(source, epoch, sequence)), b"{}", [])

    taken = [record(running, n) for n in range(12)] + [record(ended, n) for n in range(4)]
    rig.put(frames, [*taken, *(record(running, n) for n in (12, 13)), record(fresh, 0)])
    rig.commit(topology.group(Role.LEAF), frames, {0: len(taken)})
    resolved = [record(running, n) for n in range(3)]
    gone = [record(running, n) for n in range(3, 9)] + [record(ended, n) for n in range(4)]
    rig.put(verdicts, [*resolved, *gone, *(record(running, n) for n in range(9, 12))])
    sink.write_blocking([*(result(running, n) for n in range(3)), result(running, 5), result(running, 11)])
    sink.write_blocking(
        [mark(running, 14, EpochState.MARK), mark(ended, 4, EpochState.ENDED), mark(fresh, 1, EpochState.MARK)],
    )
    rig.trim(verdicts, len(resolved) + len(gone), 0)
    lost = Lost(verdicts, 0, len(resolved), len(resolved) + len(gone) - 1)
    drops = drops_of(topology, clients, lost)
    assert {(drop.epoch, drop.ranges.pairs) for drop in drops} == {(running, ((3, 4), (6, 8))), (ended, ((0, 3),))}
    sink.write_blocking([outputs.drop(topology.role(Role.RESOLVER).write("drops"), drop, NOW) for drop in drops])
    sink.write_blocking([*(result(running, n) for n in range(9, 14)), result(fresh, 0)])
    lines = {line.epoch: line for line in read_account(topology, clients).lines if line.source == source}
    assert all(not line.open for line in lines.values())
    assert lines[running].drops == {"resolver: retention": 5}
    assert not drops_of(topology, clients, lost), "told again after a crash, it claims nothing new"
    sink.close()
