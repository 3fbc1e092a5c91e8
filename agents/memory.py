"""What the resolver remembers of one partition: the results and alerts that verdicts may still change, which records are settled, and
which deadlines are open. Pure but for what it remembers: topics and clocks are the resolver's.

It is a fold over the partition's logs of results and alerts, in their order, and can be written down and taken up again (`dump`, `load`).
What is read back from a log is decoded only as far as it decides; the rest waits until somebody asks for it.
"""

from __future__ import annotations

import heapq
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec

from schemas.alerts import latest
from schemas.intervals import Intervals
from schemas.messages import RANK, Alert, Result, Status, Tier
from schemas.records import InvalidRecord

log = logging.getLogger("headwater.resolver")

RECENT = 5_000  # results of a partition that are kept whole (below 1 KB each)
ASKED = 5_000  # older ones that a higher tier has answered
WAITING = 20_000  # older ones that wait for an answer; beyond it the oldest wait no more: their deadline passes early
ALERTS = 10_000
KEEP_S = 8 * 86_400
COPIES = 8  # messages of one alert that wait to be joined
_HEAD = len("1.10.3.0000000000")  # of an order of preference: not failed, rank, status, generation
_RANK = slice(2, 4)  # of an order
_LEAF = f"{RANK[Tier.LEAF]:02d}"

Settled = dict[str, dict[str, Intervals]]  # by epoch, then by head of the order


class _Head(msgspec.Struct):
    """Of a result as it lies in the log, what decides."""

    id: str
    order: str
    status: str
    deadline_ms: int | None = None


class _AlertHead(msgspec.Struct):
    id: str
    record: str


class _Kept:
    """A result that is kept whole: as it was joined, or as it lay in the log."""

    __slots__ = ("deadline_ms", "order", "value", "waits")

    def __init__(self, order: str, waits: bool, deadline_ms: int | None, value: Result | bytes) -> None:
        self.order, self.waits, self.deadline_ms, self.value = order, waits, deadline_ms, value


class State(msgspec.Struct, frozen=True):
    """A memory as it is written down. `settled` holds both ages, by epoch and head of the order, as first and last sequences in turn;
    `kept` the results that are kept whole, the oldest first; `due` when deadlines pass, by record."""

    turned_ms: float
    settled: tuple[dict[str, dict[str, list[int]]], dict[str, dict[str, list[int]]]]
    kept: list[bytes]
    due: list[tuple[float, str]]
    alerts: list[bytes]


_head = msgspec.json.Decoder(_Head)
_alert_head = msgspec.json.Decoder(_AlertHead)


class Memory:
    """Joins results and alerts of one partition. What it returns is what must be written; what it knew already returns None.

    The most recent results are kept whole, and for longer those that wait for a higher tier's answer or have it, since they decide what
    becomes of alerts. Older ones are settled: kept as interval sets of sequences, by epoch and by what decided between them (rank, status,
    generation). A verdict on a settled record that is no better in these is old.

    Parameters
    ----------
    recent, asked, waiting
        How many results are kept whole, and how many older ones that a higher tier has answered, or was asked about and has not.
    keep_s
        How long settled records are remembered at least, by the broker's time; longer than any input can be replayed.
    """

    def __init__(self, recent: int = RECENT, *, asked: int = ASKED, waiting: int = WAITING, keep_s: float = KEEP_S) -> None:
        self._limits, self._keep_ms = (recent, asked, waiting), keep_s * 1000
        self._recent: OrderedDict[str, _Kept] = OrderedDict()
        self._asked: OrderedDict[str, _Kept] = OrderedDict()
        self._waiting: OrderedDict[str, _Kept] = OrderedDict()
        self._settled: tuple[Settled, Settled] = ({}, {})  # the younger ones, and those of the time before
        self._turned_ms = 0.0
        self._alerts: OrderedDict[str, Alert | list[bytes]] = OrderedDict()
        self._record_of: dict[str, str] = {}  # by alert
        self._by_record: dict[str, set[str]] = {}
        self._due: list[tuple[float, str]] = []
        self._early: deque[Result] = deque(maxlen=waiting + 1000)

    # ---- results

    def result(self, record: str) -> Result | None:
        """What is believed of a record, if it is kept whole."""
        kept = self._find(record)
        if kept is None:
            return None
        if isinstance(kept.value, bytes):
            try:
                kept.value = Result.from_bytes(kept.value)
            except InvalidRecord as error:  # only the resolver writes there: an older version's value
                log.warning("a result could not be read back: %s", error, extra={"record": record})
                return None
        return kept.value

    def is_final(self, record: str) -> bool:
        """Whether a record has a result that waits for nobody."""
        kept = self._find(record)
        return not kept.waits if kept is not None else self._is_settled(record, "")

    def improved(self, new: Result) -> Result | None:
        """The join of a result with what is known of its record, or None if it changes nothing. Remembers nothing."""
        kept = self._find(new.id)
        if kept is None:
            return None if self._is_settled(new.id, new.order) else new
        return new if new.order > kept.order else None

    def keep(self, joined: Result, at_ms: float) -> None:
        """Remember what `improved` returned, once it is certain to be written. `at_ms` is when the broker took what it came from."""
        kept = _Kept(joined.order, joined.status is Status.PROVISIONAL, joined.deadline_ms, joined)
        self._keep(joined.id, kept, at_ms, self._find(joined.id))

    def learn(self, new: Result, at_ms: float = 0.0) -> Result | None:
        """Join a result in and remember it; returns the joined one if it is a new one."""
        joined = self.improved(new)
        if joined is not None:
            self.keep(joined, at_ms)
        return joined

    def read_result(self, data: bytes, at_ms: float) -> None:
        """Join in a result as it lies in the log; raises `InvalidRecord` for what is none."""
        try:
            head = _head.decode(data)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"not a Result: {error}") from None
        known = self._find(head.id)
        if head.order <= known.order if known is not None else self._is_settled(head.id, head.order):
            return
        self._keep(head.id, _Kept(head.order, head.status == "provisional", head.deadline_ms, data), at_ms, known)

    def overdue(self, now_ms: float) -> list[Result]:
        """The results whose deadline has passed and that nobody has answered; each is told once."""
        found = list(self._early)
        self._early.clear()
        while self._due and self._due[0][0] <= now_ms:
            record = heapq.heappop(self._due)[1]
            kept = self._find(record)
            if kept is not None and kept.waits and (result := self.result(record)) is not None:
                found.append(result)
        return found

    @property
    def open(self) -> int:
        """Deadlines that have not passed."""
        return len(self._due)

    def _find(self, record: str) -> _Kept | None:
        return self._recent.get(record) or self._waiting.get(record) or self._asked.get(record)

    def _keep(self, record: str, kept: _Kept, at_ms: float, known: _Kept | None) -> None:
        if known is not None:
            self._waiting.pop(record, None)
            self._asked.pop(record, None)
        self._recent[record] = kept
        if kept.deadline_ms is not None and (known is None or known.deadline_ms is None):  # it runs from the first such answer on
            heapq.heappush(self._due, (at_ms + kept.deadline_ms, record))
            if len(self._due) > 2 * (self._limits[0] + self._limits[2]) + 1000:
                self._due = self._open_deadlines()
        while len(self._recent) > self._limits[0]:
            self._set_aside(*self._recent.popitem(last=False), at_ms)

    def _open_deadlines(self) -> list[tuple[float, str]]:
        """The deadlines of what still waits, as a heap."""
        return sorted((at, record) for at, record in self._due if (kept := self._find(record)) is not None and kept.waits)

    def _set_aside(self, record: str, kept: _Kept, at_ms: float) -> None:
        if kept.waits:
            self._waiting[record] = kept
            if len(self._waiting) <= self._limits[2]:
                return
            oldest = next(iter(self._waiting))
            if (result := self.result(oldest)) is not None:
                self._early.append(result)
            record, kept = self._waiting.popitem(last=False)
        elif kept.order[_RANK] > _LEAF:
            self._asked[record] = kept
            if len(self._asked) <= self._limits[1]:
                return
            record, kept = self._asked.popitem(last=False)
        if at_ms - self._turned_ms > self._keep_ms:
            self._settled, self._turned_ms = ({}, self._settled[0]), at_ms
        stream, _, sequence = record.rpartition("/")
        heads = self._settled[0].get(stream)
        if heads is None:
            heads = self._settled[0][stream] = {}
        head = kept.order[:_HEAD]
        sequences = heads.get(head)
        if sequences is None:
            sequences = heads[head] = Intervals()
        sequences.add(int(sequence))

    def _is_settled(self, record: str, order: str) -> bool:
        stream, _, sequence = record.rpartition("/")
        for settled in self._settled:
            heads = settled.get(stream)
            if heads is not None:
                for known, sequences in heads.items():
                    if known >= order[:_HEAD] and int(sequence) in sequences:
                        return True
        return False

    # ---- alerts

    def alert(self, alert: str) -> Alert | None:
        """An alert as it stands, by its id."""
        known = self._alerts.get(alert)
        if isinstance(known, list):
            found = []
            for data in known:
                try:
                    found.append(Alert.from_bytes(data))
                except InvalidRecord as error:  # as above
                    log.warning("an alert could not be read back: %s", error, extra={"alert": alert})
            if not found:
                return None
            known = self._alerts[alert] = latest(*found)
        return known

    def keep_alert(self, joined: Alert) -> None:
        """Remember an alert as it stands now: the join of what was known and what came."""
        self._index(joined.id, joined.record)
        self._alerts[joined.id] = joined
        self._bound_alerts()

    def read_alert(self, data: bytes) -> None:
        """Join in an alert as it lies in the log; raises `InvalidRecord` for what is none."""
        try:
            head = _alert_head.decode(data)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"not an Alert: {error}") from None
        self._index(head.id, head.record)
        known = self._alerts.get(head.id)
        if known is None:
            self._alerts[head.id] = [data]
        else:
            copies = known if isinstance(known, list) else [known.to_bytes()]
            self._alerts[head.id] = [*copies, data]
            if len(copies) >= COPIES:
                self.alert(head.id)
        self._bound_alerts()

    def alerts_of(self, record: str) -> list[Alert]:
        """The alerts that a record raised, as they stand."""
        return [found for alert in sorted(self._by_record.get(record, ())) if (found := self.alert(alert)) is not None]

    def _index(self, alert: str, record: str) -> None:
        self._record_of[alert] = record
        self._by_record.setdefault(record, set()).add(alert)

    def _bound_alerts(self) -> None:
        while len(self._alerts) > ALERTS:
            alert, _ = self._alerts.popitem(last=False)
            record = self._record_of.pop(alert)
            of_record = self._by_record[record]
            of_record.discard(alert)
            if not of_record:
                del self._by_record[record]

    # ---- written down, and taken up again

    def dump(self) -> State:
        """All that is remembered. The memory must not change meanwhile."""
        kept = [*self._asked.values(), *self._waiting.values(), *self._recent.values()]
        return State(
            turned_ms=self._turned_ms,
            settled=(_written(self._settled[0]), _written(self._settled[1])),
            kept=[each.value if isinstance(each.value, bytes) else each.value.to_bytes() for each in kept],
            due=self._open_deadlines(),
            alerts=[alert.to_bytes() for name in list(self._alerts) if (alert := self.alert(name)) is not None],
        )

    def load(self, state: State) -> None:
        """Take up what `dump` has written down, into an empty memory.

        Raises
        ------
        InvalidRecord, ValueError
            If it is not what `dump` writes.
        """
        self._turned_ms = state.turned_ms
        self._settled = _read(state.settled[0]), _read(state.settled[1])
        for data in state.kept:
            try:
                head = _head.decode(data)
            except (ValueError, RecursionError) as error:
                raise InvalidRecord(f"not a Result: {error}") from None
            self._recent[head.id] = _Kept(head.order, head.status == "provisional", head.deadline_ms, data)
        while len(self._recent) > self._limits[0]:
            self._set_aside(*self._recent.popitem(last=False), self._turned_ms)
        self._due = sorted(state.due)
        for alert in state.alerts:
            self.read_alert(alert)


def _written(settled: Settled) -> dict[str, dict[str, list[int]]]:
    return {
        stream: {head: [number for pair in sequences.pairs() for number in pair] for head, sequences in heads.items()}
        for stream, heads in settled.items()
    }


def _read(settled: dict[str, dict[str, list[int]]]) -> Settled:
    return {stream: {head: Intervals(_pairs(flat)) for head, flat in heads.items()} for stream, heads in settled.items()}


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
