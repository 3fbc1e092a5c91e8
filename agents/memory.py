"""What the resolver remembers of one partition: the results and alerts that verdicts may still change, which records are settled, and
which deadlines are open. Pure but for what it remembers: topics and clocks are the resolver's."""

from __future__ import annotations

import heapq
from collections import OrderedDict

from schemas.identity import RecordId
from schemas.intervals import Intervals
from schemas.messages import RANK, Alert, Result, Status, Tier
from schemas.resolution import join

RECENT = 5_000  # results of a partition that are kept whole (about 2 KB each)
ASKED = 5_000  # older ones that a higher tier was asked about; beyond it the oldest are settled, and their deadlines pass unsaid
ALERTS = 10_000
KEEP_S = 8 * 86_400
_HEAD = len("1.10.3.0000000000")  # of an order of preference: not failed, rank, status, generation

Settled = dict[str, dict[str, Intervals]]  # by head of the order, then by epoch


class Memory:
    """Joins results and alerts of one partition. What it returns is what must be written; what it knew already returns None.

    The most recent results are kept whole, and for longer those that wait for a higher tier's answer or have it, since they decide what
    becomes of alerts. Older ones are settled: kept as interval sets of sequences, by epoch and by what decided between them (rank, status,
    generation). A verdict on a settled record that is no better in these is old.

    Parameters
    ----------
    recent, asked
        How many results are kept whole, and how many older ones that a higher tier was asked about.
    keep_s
        How long settled records are remembered at least, by the broker's time; longer than any input can be replayed.
    """

    def __init__(self, recent: int = RECENT, *, asked: int = ASKED, keep_s: float = KEEP_S) -> None:
        self._limits, self._keep_ms = (recent, asked), keep_s * 1000
        self._recent: OrderedDict[str, Result] = OrderedDict()
        self._asked: OrderedDict[str, Result] = OrderedDict()
        self._settled: tuple[Settled, Settled] = ({}, {})  # the younger ones, and those of the time before
        self._turned_ms = 0.0
        self._alerts: OrderedDict[str, Alert] = OrderedDict()
        self._by_record: dict[str, set[str]] = {}
        self._due: list[tuple[float, str]] = []

    # ---- results

    def result(self, record: str) -> Result | None:
        """What is believed of a record, if it is kept whole."""
        return self._recent.get(record) or self._asked.get(record)

    def improved(self, new: Result) -> Result | None:
        """The join of a result with what is known of its record, or None if it changes nothing. Remembers nothing."""
        known = self.result(new.id)
        if known is None:
            return None if self._is_settled(new) else new
        joined = join(known, new)
        return None if joined.order == known.order else joined

    def keep(self, joined: Result, at_ms: float) -> None:
        """Remember what `improved` returned, once it is certain to be written. `at_ms` is when the broker took what it came from."""
        known = self.result(joined.id)
        self._asked.pop(joined.id, None)
        self._recent[joined.id] = joined
        if joined.deadline_ms is not None and (known is None or known.deadline_ms is None):  # it runs from the first such answer on
            heapq.heappush(self._due, (at_ms + joined.deadline_ms, joined.id))
        while len(self._recent) > self._limits[0]:
            self._set_aside(self._recent.popitem(last=False)[1], at_ms)

    def learn(self, new: Result, at_ms: float = 0.0) -> Result | None:
        """Join a result in and remember it; returns the joined one if it is a new one."""
        joined = self.improved(new)
        if joined is not None:
            self.keep(joined, at_ms)
        return joined

    def overdue(self, now_ms: float) -> list[Result]:
        """The results whose deadline has passed and that nobody has answered; each is told once."""
        found = []
        while self._due and self._due[0][0] <= now_ms:
            result = self.result(heapq.heappop(self._due)[1])
            if result is not None and result.status is Status.PROVISIONAL:
                found.append(result)
        return found

    @property
    def open(self) -> int:
        """Deadlines that have not passed."""
        return len(self._due)

    def _set_aside(self, result: Result, at_ms: float) -> None:
        if result.status is Status.PROVISIONAL or result.rank > RANK[Tier.LEAF]:
            self._asked[result.id] = result
            if len(self._asked) <= self._limits[1]:
                return
            result = self._asked.popitem(last=False)[1]
        if at_ms - self._turned_ms > self._keep_ms:
            self._settled, self._turned_ms = ({}, self._settled[0]), at_ms
        name = RecordId.parse(result.id)
        self._settled[0].setdefault(result.order[:_HEAD], {}).setdefault(name.stream, Intervals()).add(name.sequence)

    def _is_settled(self, new: Result) -> bool:
        name, head = RecordId.parse(new.id), new.order[:_HEAD]
        return any(
            known >= head and (sequences := streams.get(name.stream)) is not None and name.sequence in sequences
            for settled in self._settled
            for known, streams in settled.items()
        )

    # ---- alerts

    def alert(self, new: Alert) -> Alert | None:
        """Join an alert in by its version; returns it if it is later than what was known."""
        known = self._alerts.get(new.id)
        if known is not None and known.version >= new.version:
            return None
        self._alerts[new.id] = new
        self._by_record.setdefault(new.record, set()).add(new.id)
        while len(self._alerts) > ALERTS:
            _, old = self._alerts.popitem(last=False)
            of_record = self._by_record.get(old.record, set())
            of_record.discard(old.id)
            if not of_record:
                self._by_record.pop(old.record, None)
        return new

    def alerts_of(self, record: str) -> list[Alert]:
        """The alerts that a record raised, as they stand."""
        return [self._alerts[alert] for alert in sorted(self._by_record.get(record, ()))]
