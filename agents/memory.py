"""What the resolver remembers of one partition: the results and alerts that verdicts may still change, and which records are settled."""

from __future__ import annotations

from collections import OrderedDict

from schemas.identity import RecordId
from schemas.intervals import Intervals
from schemas.messages import RANK, Alert, Result, Tier
from schemas.resolution import join

RECENT = 20_000  # results of a partition that are kept whole
ALERTS = 20_000


class Memory:
    """Joins results and alerts of one partition. What it returns is what must be written; what it knew already returns None.

    The most recent results are kept whole. Older ones are kept as their order of preference where a higher tier answered, and as one
    interval set an epoch where only the leaf did.
    """

    def __init__(self, recent: int = RECENT) -> None:
        self._limit = recent
        self._recent: OrderedDict[str, Result] = OrderedDict()
        self._ranked: dict[str, str] = {}
        self._settled: dict[str, Intervals] = {}
        self._alerts: OrderedDict[str, Alert] = OrderedDict()
        self._by_record: dict[str, set[str]] = {}

    def result(self, record: str) -> Result | None:
        return self._recent.get(record)

    def learn(self, new: Result) -> Result | None:
        """Join a result in; returns the joined one if it is a new one."""
        known = self._recent.get(new.id)
        if known is None and self._is_old(new):
            return None
        joined = join(known, new)
        if known is not None and joined.order == known.order:
            return None
        self._recent[new.id] = joined
        while len(self._recent) > self._limit:
            self._settle(self._recent.popitem(last=False)[1])
        return joined

    def _is_old(self, new: Result) -> bool:
        """Whether what is known of a settled record is at least as good."""
        ranked = self._ranked.get(new.id)
        if ranked is not None:
            return new.order <= ranked
        name = RecordId.parse(new.id)
        settled = self._settled.get(name.stream)
        return settled is not None and name.sequence in settled and new.rank <= RANK[Tier.LEAF]

    def _settle(self, result: Result) -> None:
        if result.rank > RANK[Tier.LEAF]:
            self._ranked[result.id] = result.order
        else:
            name = RecordId.parse(result.id)
            self._settled.setdefault(name.stream, Intervals()).add(name.sequence)

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
