"""The accountant of a site: counts what ended, as interval sets in the compacted topic `accounts`, so that the account is small and
outlives the records themselves.

1. It takes what it has written before as its memory, and goes on reading where it had come to.
2. It folds records into sets in memory. Every `FLUSH_S` the pieces of sets that changed are written.
3. When they are on the broker, its offsets are committed, and only then: what is committed is in `accounts`. A crash in between counts
   the same records again, which changes no set. A commit is bound to the topics' uuids (`account_read.binding`): a topic made anew is
   read anew.
4. A set that has grown too ragged for memory is sealed: what was written of it stays, and what comes is written beside it. Readers unite.
5. An epoch of which nothing was heard for `keep_s` becomes numbers (`AccountPast`), and its sets go.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from mode import Service

from schemas.accounts import AccountPast, AccountSet, Outcome, parts
from schemas.identity import FOREIGN, RecordId
from schemas.intervals import Intervals, Pair
from schemas.messages import Drop, EpochMark, EpochState, Ranges
from streams import outputs, telemetry
from streams.account import Ledger, Line, counts
from streams.account_read import Intake, binding, kept_entries
from streams.clients import BrokerUnavailable, Clients, ClusterInfo
from streams.sink import NotDelivered, Output, Sink, SinkBroken
from streams.topology import Role, Topology

log = logging.getLogger("headwater.accounts")

FLUSH_S = 30.0
FLUSH_RECORDS = 50_000  # read since the last flush: while catching up, so that little is read again after a crash
MAX_LIVE = 50_000  # ranges of one set in memory (some 4 MB)
KEPT_LIVE = 1_000  # and of these, the highest that stay when it is sealed
RETRY_S = (1.0, 30.0)
_EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)

Name = tuple[str, str, Outcome, str, str | None]  # source, epoch, outcome, stage, reason


class Kept:
    """One set: what of it is in memory, and what of it is written."""

    __slots__ = ("assigned", "changed", "generation", "live", "seen_ms", "state", "written")

    def __init__(self) -> None:
        self.live = Intervals()
        self.generation = 0
        self.written: dict[str, tuple[Pair, ...]] = {}  # by part, of this generation
        self.seen_ms = 0
        self.assigned = 0
        self.state: EpochState | None = None
        self.changed = False


class Sets:
    """The sets of all epochs; it is `Facts`. Pure: it sends nothing.

    Parameters
    ----------
    site
        Whose accountant this is.
    max_live
        Ranges of one set that are held in memory.
    """

    def __init__(self, site: str, *, max_live: int = MAX_LIVE) -> None:
        self.site, self._max_live = site, max_live
        self._sets: dict[Name, Kept] = {}
        self._past: dict[str, AccountPast] = {}

    # ---- facts

    def epoch(self, mark: EpochMark, at_ms: int = 0) -> None:
        kept = self._kept((mark.source, mark.epoch, Outcome.PRODUCED, "producer", None), at_ms)
        if mark.acknowledged:
            self._add(kept, 0, mark.acknowledged - 1)
        state = kept.state if kept.state is EpochState.ENDED else mark.state
        if (mark.assigned > kept.assigned) or state is not kept.state:
            kept.assigned, kept.state, kept.changed = max(kept.assigned, mark.assigned), state, True
        for site, ranges in mark.elsewhere.items():
            there = self._kept((mark.source, mark.epoch, Outcome.ELSEWHERE, "producer", site), at_ms)
            for first, last in ranges.pairs:
                self._add(there, first, last)

    def result(self, record: RecordId, at_ms: int = 0) -> None:
        self._add(self._kept((record.source, record.epoch, Outcome.RESULT, "resolver", None), at_ms), record.sequence, record.sequence)

    def dead_letter(self, record: RecordId, at_ms: int = 0) -> None:
        self._add(self._kept((record.source, record.epoch, Outcome.DEAD, "delivery", None), at_ms), record.sequence, record.sequence)

    def drop(self, drop: Drop, at_ms: int = 0) -> None:
        if not counts(drop) or not drop.ranges.pairs:
            return
        kept = self._kept((drop.source, drop.epoch, Outcome.DROPPED, drop.stage, drop.reason), at_ms)
        for first, last in drop.ranges.pairs:
            self._add(kept, first, last)

    def _kept(self, name: Name, at_ms: int) -> Kept:
        kept = self._sets.get(name)
        if kept is None:
            kept = self._sets[name] = Kept()
        if at_ms > kept.seen_ms:
            kept.seen_ms = at_ms
        return kept

    @staticmethod
    def _add(kept: Kept, first: int, last: int) -> None:
        if first not in kept.live or (first != last and Intervals([(first, last)]) - kept.live):
            kept.live.add(first, last)
            kept.changed = True

    # ---- what was written

    def learn(self, entry: AccountSet | AccountPast) -> None:
        """Take up what this accountant wrote before. A sealed generation is not taken into memory."""
        if entry.site != self.site:
            return
        if isinstance(entry, AccountPast):
            self._past[entry.source] = entry
            return
        name = (entry.source, entry.epoch, entry.outcome, entry.stage, entry.reason)
        generation, _, part = entry.part.partition("-")
        kept = self._kept(name, int(entry.seen_at.timestamp() * 1000))
        kept.assigned, kept.state = max(kept.assigned, entry.assigned), entry.state or kept.state
        number = int(generation, 16) if part and generation.isalnum() else 0
        if number > kept.generation:
            kept.generation, kept.live, kept.written = number, Intervals(), {}
        if number == kept.generation:
            kept.written[part] = entry.ranges.pairs
            for first, last in entry.ranges.pairs:
                kept.live.add(first, last)

    def changes(self) -> Iterator[tuple[str, str, AccountSet | None, Callable[[], None]]]:
        """What must be written: key, source, value (None: a tombstone), and what to call once it is on the broker. Additions come before
        the tombstones of the pieces that they replace, so that nothing is missing at any moment."""
        for name, kept in self._sets.items():
            if not kept.changed:
                continue
            now = {part: tuple(pairs) for part, pairs in parts(kept.live.pairs())} or {"0.63": ()}
            for part, pairs in now.items():
                if kept.written.get(part) != pairs or name[2] is Outcome.PRODUCED:
                    value = self._entry(name, kept, part, pairs)
                    yield value.key, name[0], value, _set(kept.written, part, pairs)
            for part in [part for part in kept.written if part not in now]:
                yield self._entry(name, kept, part, ()).key, name[0], None, _drop(kept.written, part)

    def _entry(self, name: Name, kept: Kept, part: str, pairs: tuple[Pair, ...]) -> AccountSet:
        source, epoch, outcome, stage, reason = name
        return AccountSet(
            source=source,
            epoch=epoch,
            site=self.site,
            outcome=outcome,
            stage=stage,
            reason=reason,
            part=f"{kept.generation:x}-{part}",
            ranges=Ranges(pairs),
            seen_at=_at(kept.seen_ms),
            assigned=kept.assigned,
            state=kept.state,
        )

    def written(self) -> None:
        """Everything that `changes` gave is on the broker; sets that are too ragged are sealed."""
        for kept in self._sets.values():
            kept.changed = False
            pairs = kept.live.pairs()
            if len(pairs) > self._max_live:
                kept.live = Intervals(pairs[-min(KEPT_LIVE, self._max_live) :])
                kept.generation, kept.written, kept.changed = kept.generation + 1, {}, True

    # ---- epochs of long ago

    def old(self, before_ms: int) -> dict[str, list[str]]:
        """Epochs by source of which nothing was heard since a time, and that may become numbers."""
        heard: dict[tuple[str, str], int] = {}
        for (source, epoch, *_), kept in self._sets.items():
            heard[source, epoch] = max(heard.get((source, epoch), 0), kept.seen_ms)
        found: dict[str, list[str]] = {}
        for (source, epoch), at_ms in heard.items():
            if at_ms < before_ms and source != FOREIGN:
                found.setdefault(source, []).append(epoch)
        return found

    def fold(self, source: str, lines: list[Line]) -> AccountPast:
        """The numbers of a source's old epochs, those added that are not in them yet."""
        past = self._past.get(source) or AccountPast(
            source=source, site=self.site, epochs=0, produced=0, results=0, dead=0, dropped=0, missing=0, seen_at=_EPOCH
        )
        new = [line for line in lines if line.epoch not in past.folded]
        return AccountPast(
            source=source,
            site=self.site,
            epochs=past.epochs + len(new),
            produced=past.produced + sum(line.produced for line in new),
            results=past.results + sum(line.results for line in new),
            dead=past.dead + sum(line.dead for line in new),
            dropped=past.dropped + sum(line.dropped for line in new),
            missing=past.missing + sum(line.missing + line.in_work for line in new),
            folded=tuple(line.epoch for line in lines),
            seen_at=max([past.seen_at, *(line.last_at for line in new if line.last_at)]),
        )

    def forget(self, past: AccountPast) -> None:
        self._past[past.source] = past
        gone = set(past.folded)
        for name in [name for name in self._sets if name[0] == past.source and name[1] in gone]:
            del self._sets[name]


def _set(written: dict[str, tuple[Pair, ...]], part: str, pairs: tuple[Pair, ...]) -> Callable[[], None]:
    return lambda: written.__setitem__(part, pairs)


def _drop(written: dict[str, tuple[Pair, ...]], part: str) -> Callable[[], None]:
    def forget() -> None:
        written.pop(part, None)

    return forget


def _at(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)


class Accountant:
    """Runs in a thread of its own until it is stopped; a broker that is away is waited for.

    Parameters
    ----------
    instance
        Its number among the accountants of the site; they share the partitions.
    keep_s
        How long after the last word of an epoch its sets are kept.
    """

    def __init__(
        self,
        topology: Topology,
        clients: Clients,
        sink: Sink,
        *,
        instance: int = 1,
        flush_s: float = FLUSH_S,
        keep_s: float | None = None,
    ) -> None:
        self.instance = instance
        self.topology, self.clients, self.sink, self.flush_s = topology, clients, sink, flush_s
        self.keep_s = topology.config.topics.accounts_keep_s if keep_s is None else keep_s
        self.role = topology.role(Role.ACCOUNTANT)
        self.accounts = self.role.write("accounts")
        self.sets = Sets(topology.site)
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="accountant", daemon=True)
        self._next: dict[tuple[str, int], int] = {}  # offsets after what is folded and not committed yet
        self._mine: set[tuple[str, int]] = set()
        self._folded = 0
        self._info: ClusterInfo

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Write what was counted and end."""
        self._halt.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause = RETRY_S[0]
        while not self._halt.is_set():
            started = time.monotonic()
            try:
                self._count()
            except (BrokerUnavailable, KafkaException, SinkBroken, NotDelivered) as error:
                log.warning("the accountant stopped and will go on: %s", error)
            except Exception:  # the thread's last line of defence: an account that lags is told by its age, results must not wait for it
                log.exception("the accountant failed and starts again")
            if time.monotonic() - started > 60:
                pause = RETRY_S[0]
            self._halt.wait(pause)
            pause = min(RETRY_S[1], pause * 2)

    def _count(self) -> None:
        self._info = self.clients.cluster([topic.name for topic in self.topology])
        group = self.role.group()
        consumer = self.clients.consumer(
            group,
            **{
                "group.instance.id": group + (f".{self.instance}" if self.instance > 1 else ""),  # a restart goes on at once
                "auto.offset.reset": "earliest",  # what retention took before it was counted is told as open
                "queued.max.messages.kbytes": 16 << 10,
                "fetch.message.max.bytes": 1 << 20,
                "fetch.wait.max.ms": 1_000,
                "fetch.min.bytes": 64 << 10,  # nobody waits for it: few requests
                "max.poll.interval.ms": 3_600_000,
            },
        )
        intake: Intake | None = None

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            nonlocal intake
            self.sets = self._recall()
            self._mine = {(each.topic, each.partition) for each in partitions}
            self._next.clear()
            intake = Intake(self.topology, self.sets, self._info, Role.ACCOUNTANT)
            consumer.assign(self._starts(consumer, partitions))

        def revoked(consumer: Consumer, _: list[TopicPartition]) -> None:
            self._flush(consumer)

        def lost(_: Consumer, __: list[TopicPartition]) -> None:
            self._next.clear()

        try:
            names = [topic.name for topic in Intake(self.topology, self.sets, self._info, Role.ACCOUNTANT).topics]
            consumer.subscribe(names, on_assign=assigned, on_revoke=revoked, on_lost=lost)
            due = time.monotonic() + self.flush_s
            while not self._halt.is_set():
                for message in consumer.consume(1_000, 0.25):
                    error = message.error()
                    if error is not None:
                        if not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                            raise KafkaException(error)
                        continue
                    assert intake is not None  # records come after an assignment
                    intake.take(message)
                    self._next[cast(str, message.topic()), cast(int, message.partition())] = cast(int, message.offset()) + 1
                    self._folded += 1
                if time.monotonic() >= due or self._folded >= FLUSH_RECORDS:
                    self._flush(consumer)
                    if (self.role.read("results").name, 0) in self._mine:  # one of several does it
                        self._retire()
                    due = time.monotonic() + self.flush_s
        finally:
            consumer.close()  # revokes what is assigned: it writes and commits

    def _recall(self) -> Sets:
        """What this accountant wrote before."""
        sets = Sets(self.topology.site)
        for entry in kept_entries(self.clients, [self.accounts]):
            sets.learn(entry)
        return sets

    def _starts(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        starts = []
        for found in consumer.committed(partitions, timeout=10):
            low, _ = consumer.get_watermark_offsets(TopicPartition(found.topic, found.partition), timeout=10)
            valid = found.offset >= 0 and found.metadata == self._binding(found.topic)
            if valid and found.offset < low:
                log.error(
                    "retention removed records before they were counted: their sequences stay open in the account",
                    extra={"topic": found.topic, "partition": found.partition, "first": found.offset, "last": low - 1},
                )
            starts.append(TopicPartition(found.topic, found.partition, max(low, found.offset) if valid else low))
        return starts

    def _binding(self, topic: str) -> str:
        return binding(self._info, self.accounts, self.topology.topics[topic])

    def _flush(self, consumer: Consumer) -> None:
        """Steps 2 and 3."""
        ends, self._folded = dict(self._next), 0
        changes = list(self.sets.changes())
        for values in ([change for change in changes if change[2] is not None], [change for change in changes if change[2] is None]):
            for start in range(0, len(values), 500):
                some = values[start : start + 500]
                self.sink.write_blocking([self._output(key, source, value) for key, source, value, _ in some])
                for *_, done in some:
                    done()
        self.sets.written()
        if ends:
            offsets = [TopicPartition(*place, offset, metadata=self._binding(place[0])) for place, offset in ends.items()]
            found: Any = consumer.commit(offsets=offsets, asynchronous=False)
            if error := next((each.error for each in found if each.error is not None), None):
                raise KafkaException(error)
            self._next = {place: offset for place, offset in self._next.items() if ends.get(place) != offset}
        telemetry.ACCOUNTED.set_to_current_time()

    def _output(self, key: str, source: str, value: AccountSet | None) -> Output:
        if value is not None:
            return outputs.account(self.accounts, value)
        return Output(self.accounts, source, key, None, [("ce_source", source.encode())])

    def _retire(self) -> None:
        """Step 5. The numbers are written before the sets go."""
        old = self.sets.old(int((time.time() - self.keep_s) * 1000))
        if not old:
            return
        ledger, keys = Ledger(), dict[tuple[str, str], list[str]]()
        for entry in kept_entries(self.clients, [self.accounts]):
            if isinstance(entry, AccountSet) and entry.site == self.topology.site and entry.epoch in old.get(entry.source, ()):
                ledger.known(entry)
                keys.setdefault((entry.source, entry.epoch), []).append(entry.key)
        lines = {(line.source, line.epoch): line for line in ledger.account().lines}
        for source, epochs in old.items():
            past = self.sets.fold(source, [lines[source, epoch] for epoch in epochs if (source, epoch) in lines])
            self.sink.write_blocking([outputs.account(self.accounts, past)])
            gone = sorted({key for epoch in epochs for key in keys.get((source, epoch), ())})
            self.sink.write_blocking([self._output(key, source, None) for key in gone])
            self.sets.forget(msgspec.structs.replace(past, folded=tuple(epochs)))
            log.info("old epochs became numbers", extra={"source": source, "epochs": len(epochs), "missing": past.missing})


class Accounting(Service):
    """The accountant as a service beside a worker."""

    def __init__(self, topology: Topology, clients: Clients, sink: Sink, *, instance: int = 1, **kwargs: Any) -> None:
        self.accountant = Accountant(topology, clients, sink, instance=instance)
        super().__init__(**kwargs)

    async def on_start(self) -> None:
        self.accountant.start()

    async def on_stop(self) -> None:
        await asyncio.to_thread(self.accountant.stop)
