"""Lost offset ranges of `frames`: every sequence that was in one is named, and no other, on random logs and on a real broker."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.accounts import AccountSet, Outcome
from schemas.config import SiteConfig, Topics
from schemas.identity import RecordId, new_epoch
from schemas.intervals import Intervals
from schemas.messages import Drop, EpochMark, EpochState, Ranges
from streams import outputs
from streams.account_read import read_account
from streams.clients import Clients
from streams.cluster import create_topics
from streams.lost_frames import Before, drops_of, sequences_lost
from streams.partition import partition_of
from streams.sink import Output, Sink
from streams.starts import Lost
from streams.topology import Role, Topology

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    cut=st.tuples(st.integers(0, 40), st.integers(1, 15)),
    not_sent=st.sets(st.integers(0, 11), max_size=3),
    repeats=st.integers(0, 5),
    seed=st.integers(0, 1 << 32),
)
def test_what_was_in_the_range_is_named_and_nothing_else(
    lengths: list[int], cut: tuple[int, int], not_sent: set[int], repeats: int, seed: int
) -> None:
    """A partition's log of several epochs, some sequences never sent, some twice; a range of it is lost before it was read."""
    chance = random.Random(seed)
    log: list[tuple[int, int]] = []
    left = {epoch: [n for n in range(length) if n not in not_sent] for epoch, length in enumerate(lengths)}
    while any(left.values()):
        epoch = chance.choice([epoch for epoch, waiting in left.items() if waiting])
        log.append((epoch, left[epoch].pop(0)))
    for _ in range(min(repeats, len(log))):  # a retry of a producer: a frame of before comes again
        at = chance.randrange(len(log))
        log.insert(min(len(log), at + chance.randint(1, 3)), log[at])
    first, last = cut[0], min(cut[0] + cut[1], len(log)) - 1
    before, lost, after = log[:first], log[first : last + 1], log[last + 1 :]
    for epoch, length in enumerate(lengths):
        known = Before()
        known.last = max((n for each, n in before if each == epoch), default=-1)
        known.marked = length
        known.not_sent = Intervals((n, n) for n in not_sent if n < length)
        found = Intervals((n, n) for each, n in after if each == epoch and n > known.last)
        named = set(sequences_lost(known, found, complete=True))
        seen = {n for each, n in [*before, *after] if each == epoch}
        assert named == {n for each, n in lost if each == epoch} - seen
        first_found = min(found, default=0)
        told = set(sequences_lost(known, found, complete=False))
        assert told == {n for n in named if n < first_found}, "what was not read to its end claims less, never more"


def test_a_lost_range_of_a_real_partition_adds_up(rig: Any) -> None:
    """Three epochs: one goes on behind the range, one ended in it, one began in it and is silent; and a foreign record."""
    config = SiteConfig(name="leaf-1", tier="leaf", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2))
    topology, clients = Topology(config), Clients(rig.kafka, "test")
    create_topics(topology, clients)
    frames = topology.topic("frames")
    source = next(name for name in (f"cam-{n}" for n in range(50)) if partition_of(name, 2) == 0)
    other = next(name for name in (f"cam-{n}" for n in range(50)) if partition_of(name, 2) == 1)
    running, ended, silent = new_epoch(), new_epoch(), new_epoch()
    sink = Sink(clients)

    def frame(epoch: str, sequence: int) -> tuple[Any, ...]:
        return (source.encode(), b"jpeg", [("ce_id", str(RecordId(source, epoch, sequence)).encode())])

    def mark(name: str, epoch: str, acknowledged: int, state: EpochState) -> Output:
        value = EpochMark(
            source=name, epoch=epoch, site="leaf-1", state=state, assigned=acknowledged, acknowledged=acknowledged, started_at=NOW
        )
        return outputs.epoch(topology.role(Role.PRODUCER).write("epochs"), value, NOW)

    def result(epoch: str, sequence: int) -> Output:
        return Output(topology.role(Role.RESOLVER).write("results"), source, str(RecordId(source, epoch, sequence)), b"{}", [])

    answered = [frame(running, n) for n in range(10)] + [frame(ended, n) for n in range(4)]
    gone = [frame(running, n) for n in range(10, 15)] + [frame(ended, n) for n in range(4, 6)] + [frame(silent, n) for n in range(3)]
    gone += [(b"kcat", b"jpeg", None), frame(running, 14)]  # a foreign one, and one that is there twice
    kept = [frame(running, 9), *(frame(running, n) for n in range(16, 20))]
    rig.put(frames, answered + gone + kept)
    refused = Drop(
        source=source, epoch=running, site="leaf-1", stage="producer", reason="broker-slow", ranges=Intervals([(15, 15)]).to_ranges()
    )
    sink.write_blocking([result(running, n) for n in range(10)] + [result(ended, n) for n in range(3)])
    verdicts = topology.role(Role.LEAF).write("verdicts")  # answered, and not joined yet
    sink.write_blocking([Output(verdicts, source, str(RecordId(source, ended, 3)), b"{}", [])])
    sink.write_blocking([outputs.drop(topology.role(Role.PRODUCER).write("drops"), refused, NOW)])
    sink.write_blocking(
        [
            mark(source, running, 18, EpochState.MARK),
            mark(source, ended, 6, EpochState.ENDED),
            mark(source, silent, 3, EpochState.MARK),
            mark(other, "elsewhere", 50, EpochState.MARK),  # of another partition: none of its business
        ]
    )
    kept_of_other = AccountSet(
        source=other,
        epoch="elsewhere",
        site="leaf-1",
        outcome=Outcome.PRODUCED,
        stage="producer",
        ranges=Ranges([(0, 49)]),
        seen_at=NOW,
        state=EpochState.MARK,
    )
    sink.write_blocking([outputs.account(topology.role(Role.ACCOUNTANT).write("accounts"), kept_of_other)])
    rig.trim(frames, len(answered + gone), 0)
    info = clients.cluster([frames.name])
    lost = Lost(frames, 0, len(answered), len(answered + gone) - 1)
    drops = drops_of(topology, clients, info, lost)
    named = {(drop.epoch, drop.ranges.pairs) for drop in drops if drop.source == source}
    assert named == {(running, ((10, 14),)), (ended, ((4, 5),)), (silent, ((0, 2),))}
    assert {drop.source for drop in drops} == {source, "kafka"}, "nothing of what lives in another partition"
    (place,) = [drop for drop in drops if drop.source == "kafka"]
    assert place.ranges.pairs == ((lost.first, lost.last),), "more offsets than sequences: the place is told as well"
    topic = topology.role(Role.LEAF).write("drops")
    sink.write_blocking([outputs.drop(topic, drop, NOW) for drop in drops])
    sink.write_blocking([result(running, n) for n in range(16, 20)] + [result(ended, 3)])
    lines = {line.epoch: line for line in read_account(topology, clients).lines if line.source == source}
    assert all(not line.open for line in lines.values())
    assert lines[running].drops == {"leaf: retention": 5, "producer: broker-slow": 1}
    again = [drop for drop in drops_of(topology, clients, info, lost) if drop.source == source]
    assert not again, "told again after a crash, it claims nothing new"
    sink.close()
