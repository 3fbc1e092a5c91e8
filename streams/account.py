"""The account: what became of every record that was produced, per epoch, as set unions and never sums.

produced = results + dead letters + drops + open, with that precedence (a replay may process what was dropped; a dead letter that a person
has discarded is a drop). Produced is the larger of the producers' acknowledged marks and the highest sequence that any stage has seen; what
a producer numbered beyond that is with it still, or was lost with it (`unsent`). Foreign records are accounted by partition, by their
offsets; what of a partition carries our ids is not counted there. Pure: `streams/account_read.py` reads the topics,
`streams/accounts.py` keeps what outlives them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Protocol

import msgspec

from schemas.accounts import AccountPast, AccountSet, Outcome, mark_of
from schemas.identity import FOREIGN, RecordId
from schemas.intervals import Intervals, Pair
from schemas.messages import Drop, EpochMark, EpochState, Ranges

# Stages that name places on other topics than `frames`: what they lost are copies, the records themselves have their leaf results.
OF_COPIES = frozenset({"link", "disk"})


DISCARDED = "dlq: discarded"  # stage and reason of the drops that settle dead letters


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """How the records of one epoch ended.

    `open` names the sequences that nothing is known of, `in_flight` those of them that are so young that they may still be in work.
    `unsent` counts those that the producer has given out beyond `produced`, of which no broker knows. `elsewhere` counts by site what this
    account does not see because a site that is not in it has it; it is no part of `produced`. `sites` have said something of the epoch,
    `last_at` is when one last did.
    """

    source: str
    epoch: str
    state: str
    produced: int
    results: int
    dead: int
    drops: dict[str, int]
    open: tuple[Pair, ...]
    in_flight: tuple[Pair, ...] = ()
    unsent: int = 0
    elsewhere: dict[str, int] = {}
    sites: tuple[str, ...] = ()
    last_at: dt.datetime | None = None

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())

    @property
    def missing(self) -> int:
        return sum(last - first + 1 for first, last in self.open)

    @property
    def in_work(self) -> int:
        return sum(last - first + 1 for first, last in self.in_flight)

    @property
    def foreign(self) -> bool:
        return self.source == FOREIGN


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a site. `past` are the epochs of which only numbers are kept."""

    lines: tuple[Line, ...]
    past: tuple[AccountPast, ...] = ()

    @property
    def produced(self) -> int:
        return sum(line.produced for line in self.lines)

    @property
    def results(self) -> int:
        return sum(line.results for line in self.lines)

    @property
    def dead(self) -> int:
        return sum(line.dead for line in self.lines)

    @property
    def dropped(self) -> int:
        return sum(line.dropped for line in self.lines)

    @property
    def missing(self) -> int:
        return sum(line.missing for line in self.lines)

    @property
    def in_work(self) -> int:
        return sum(line.in_work for line in self.lines)

    @property
    def adds_up(self) -> bool:
        """Whether every record that was produced is known to have ended, but for those that are still in work."""
        return not self.missing

    @property
    def settled(self) -> bool:
        """Whether nothing is missing and nothing is in work."""
        return not self.missing and not self.in_work

    def of(self, sources: Iterable[str], since: dt.datetime | None = None) -> Account:
        """The lines of some sources (none: all) whose epochs were heard of at a time or later."""
        wanted = set(sources)

        def chosen(source: str, at: dt.datetime | None) -> bool:
            return (not wanted or source in wanted) and (since is None or (at is not None and at >= since))

        return Account(
            lines=tuple(line for line in self.lines if chosen(line.source, line.last_at)),
            past=tuple(past for past in self.past if chosen(past.source, past.seen_at)),
        )


class Facts(Protocol):
    """What takes in what topics say. `at_ms` is when a broker took the record."""

    def epoch(self, mark: EpochMark, at_ms: int = 0) -> None: ...
    def result(self, record: RecordId, at_ms: int = 0) -> None: ...
    def dead_letter(self, record: RecordId, at_ms: int = 0) -> None: ...
    def drop(self, drop: Drop, at_ms: int = 0) -> None: ...


class _Stream:
    """What is known of one epoch while topics are read."""

    __slots__ = ("assigned", "dead", "drops", "elsewhere", "last_ms", "mark", "old_top", "results", "sites", "state", "top")

    def __init__(self) -> None:
        self.mark = self.assigned = 0
        self.top = 0  # one beyond the highest sequence that was seen
        self.old_top = 0  # the same, as it was a while ago: what is open below it is not in work any more
        self.last_ms = 0
        self.state = ""
        self.results, self.dead = Intervals(), Intervals()
        self.drops: dict[str, Intervals] = {}
        self.elsewhere: dict[str, Intervals] = {}
        self.sites: set[str] = set()

    def line(self, source: str, epoch: str) -> Line:
        discarded = self.drops.get(DISCARDED, Intervals())  # a person has settled these letters: they are dead no more, but dropped
        dead = self.dead - discarded
        ended = self.results | dead
        dropped = Intervals()
        drops: dict[str, int] = {}
        for name, sequences in sorted(self.drops.items()):
            new = sequences - ended - dropped
            if new:
                drops[name] = new.count()
            dropped = dropped | sequences
        known = ended | dropped
        top = max(self.mark, self.top)
        produced = Intervals([(0, top - 1)]) if top else Intervals()
        if source == FOREIGN:  # a partition's other offsets belong to our own producers
            produced = known
        elsewhere: dict[str, int] = {}
        for site, sequences in sorted(self.elsewhere.items()):
            there = (sequences & produced) - known
            if there:
                elsewhere[site] = there.count()
                produced = produced - there
        left = produced - known
        old = left & Intervals([(0, self.old_top - 1)]) if self.old_top else Intervals()
        return Line(
            source=source,
            epoch=epoch,
            state=self.state or "unannounced",
            produced=produced.count(),
            results=self.results.count(),
            dead=(dead - self.results).count(),
            drops=drops,
            open=tuple(old.pairs()),
            in_flight=tuple((left - old).pairs()),
            unsent=max(0, self.assigned - top) if source != FOREIGN else 0,
            elsewhere=elsewhere,
            sites=tuple(sorted(self.sites)),
            last_at=dt.datetime.fromtimestamp(self.last_ms / 1000, dt.UTC) if self.last_ms else None,
        )


class Ledger:
    """Takes in facts, in any order and however often, and draws the account.

    Parameters
    ----------
    sites
        The sites whose topics are taken in: what a producer says that another site has is not looked for here.
    young_ms
        What brokers took later than this (ms since 1970) may speak of records that are still in work. None: nothing counts as such.
    """

    def __init__(self, sites: Iterable[str] = (), young_ms: int | None = None) -> None:
        self.sites, self.young_ms = frozenset(sites), young_ms
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._past: dict[str, AccountPast] = {}

    def _stream(self, source: str, epoch: str, at_ms: int, top: int) -> _Stream:
        stream = self._streams.get((source, epoch))
        if stream is None:
            stream = self._streams[source, epoch] = _Stream()
        if at_ms > stream.last_ms:
            stream.last_ms = at_ms
        if top > stream.old_top and (self.young_ms is None or at_ms <= self.young_ms):
            stream.old_top = top
        return stream

    def epoch(self, mark: EpochMark, at_ms: int = 0) -> None:
        stream = self._stream(mark.source, mark.epoch, at_ms, mark.acknowledged)
        stream.mark, stream.assigned = max(stream.mark, mark.acknowledged), max(stream.assigned, mark.assigned)
        stream.sites.add(mark.site)
        if stream.state != EpochState.ENDED:
            stream.state = mark.state
        for site, ranges in mark.elsewhere.items():
            self._elsewhere(stream, site, ranges)

    def _elsewhere(self, stream: _Stream, site: str, ranges: Ranges) -> None:
        if site in self.sites:
            return
        known = stream.elsewhere.setdefault(site, Intervals())
        for first, last in ranges.pairs:
            known.add(first, last)

    def result(self, record: RecordId, at_ms: int = 0) -> None:
        source, epoch, sequence = record
        stream = self._stream(source, epoch, at_ms, sequence + 1)
        stream.results.add(sequence)
        stream.top = max(stream.top, sequence + 1)

    def dead_letter(self, record: RecordId, at_ms: int = 0) -> None:
        stream = self._stream(record.source, record.epoch, at_ms, record.sequence + 1)
        stream.dead.add(record.sequence)
        stream.top = max(stream.top, record.sequence + 1)

    def drop(self, drop: Drop, at_ms: int = 0) -> None:
        if not counts(drop) or not drop.ranges.pairs:
            return
        top = drop.ranges.pairs[-1][1] + 1
        stream = self._stream(drop.source, drop.epoch, at_ms, top)
        known = stream.drops.setdefault(f"{drop.stage}: {drop.reason}", Intervals())
        for first, last in drop.ranges.pairs:
            known.add(first, last)
        stream.top = max(stream.top, top)
        stream.sites.add(drop.site)

    def known(self, entry: AccountSet | AccountPast) -> None:
        """Take in what an accountant has kept."""
        if isinstance(entry, AccountPast):
            before = self._past.get(entry.key)
            if before is None or before.epochs <= entry.epochs:
                self._past[entry.key] = entry
            return
        at_ms = int(entry.seen_at.timestamp() * 1000)
        if (mark := mark_of(entry)) is not None:
            self.epoch(mark, at_ms)
        if entry.outcome is Outcome.PRODUCED or not entry.ranges.pairs:
            return
        if entry.outcome is Outcome.ELSEWHERE:
            self._elsewhere(self._stream(entry.source, entry.epoch, at_ms, 0), entry.reason or "", entry.ranges)
            return
        top = entry.ranges.pairs[-1][1] + 1
        stream = self._stream(entry.source, entry.epoch, at_ms, top)
        if entry.outcome is Outcome.RESULT:
            sequences = stream.results
        elif entry.outcome is Outcome.DEAD:
            sequences = stream.dead
        else:
            sequences = stream.drops.setdefault(f"{entry.stage}: {entry.reason}", Intervals())
        for first, last in entry.ranges.pairs:
            sequences.add(first, last)
        stream.top = max(stream.top, top)
        stream.sites.add(entry.site)

    def account(self) -> Account:
        return Account(
            lines=tuple(stream.line(*name) for name, stream in sorted(self._streams.items())),
            past=tuple(past for _, past in sorted(self._past.items())),
        )


def counts(drop: Drop) -> bool:
    """Whether a drop is of a source's records, not of copies of them on the link's topics."""
    return not (drop.source == FOREIGN and drop.stage in OF_COPIES)
