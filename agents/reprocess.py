"""Judging again what retention still has: frames of a time range by another model, whose verdicts are of a later generation.

What such a verdict changes is the join's decision alone: it stands above the leaf's own answer of an earlier generation, and below any of a
higher tier. Ids are those of the frames, so doing it twice changes nothing. The live path goes first: there is a pace, and a pause while
the leaf is behind. Ages of frames do not matter here. Reading, writing and showing are the caller's.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal

import msgspec

from agents.alerts import AlertRules
from agents.inference.detector import Detector
from agents.inference.images import UndecodableImage
from agents.leaf import confidence
from schemas.config import SiteConfig
from schemas.detections import Detection, Detections
from schemas.frames import Frame, InvalidFrame, Origin, read_frame
from schemas.messages import RANK, Alert, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.resolution import order_of
from streams.lag import Lag
from streams.reader import Stored

NOTE = "reprocessed"
SAME_IOU = 0.5  # two boxes of one class that overlap by this much are one object

Outcome = Literal["unreadable", "done", "new", "same", "changed", "kept"]


class Known(msgspec.Struct, frozen=True):
    """What is believed of a frame before it is judged again."""

    order: str
    detections: Detections
    tier: Tier
    status: Status
    model_digest: str
    generation: int


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one record.

    Attributes
    ----------
    outcome
        `unreadable`: no whole frame; `done`: this model's verdict holds already; `new`: there was no result; `same`: it sees the same
        objects; `changed`: it does not, and its verdict will hold; `kept`: another answer stands above it (a higher tier's, or a passed
        deadline).
    before, after
        Objects by class, as believed and as seen now.
    """

    source: str
    outcome: Outcome
    verdict: Verdict | None = None
    alerts: tuple[Alert, ...] = ()
    frame: Frame | None = None
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()


class Reprocess:
    """Judges stored frames with one detector.

    Parameters
    ----------
    generation
        Of its verdicts; it should be above that of the site's model.
    known
        What is believed so far, by record id.
    rules
        Raise alerts too, marked with how late they are; None: raise none.
    """

    def __init__(
        self,
        config: SiteConfig,
        detector: Detector,
        generation: int,
        known: dict[str, Known],
        *,
        cluster: str,
        frames_uuid: str,
        rules: AlertRules | None = None,
        age_s: Callable[[int], float] = lambda appended_ms: 0.0,
    ) -> None:
        self.config, self.detector, self.generation, self.known = config, detector, generation, known
        self.cluster, self.frames_uuid, self.rules, self._age_s = cluster, frames_uuid, rules, age_s

    def judge(self, stored: Stored) -> Judged:
        """Judge one record of `frames`."""
        try:
            frame = self._read(stored)
        except InvalidFrame:
            return Judged(source="", outcome="unreadable")
        known = self.known.get(str(frame.id))
        if known is not None and (known.model_digest, known.generation) == (self.detector.digest, self.generation) and self.rules is None:
            return Judged(source=frame.source, outcome="done")
        try:
            look = self.detector.look(frame.jpeg)
        except UndecodableImage:
            return Judged(source=frame.source, outcome="unreadable")
        verdict = self._verdict(frame, look.detections)
        alerts: list[Alert] = []
        if self.rules is not None:
            at = stored.appended_at or frame.captured_at
            alerts = self.rules.judge(frame, look.detections, self.detector.digest, age_s=self._age_s(round(at.timestamp() * 1000)))
        before = Detections() if known is None else known.detections
        return Judged(
            source=frame.source,
            outcome=_outcome(known, verdict),
            verdict=verdict,
            alerts=tuple(alerts),
            frame=frame,
            before=Counter(d.label for d in before),
            after=Counter(d.label for d in look.detections),
        )

    def _read(self, stored: Stored) -> Frame:
        origin = Origin(
            cluster=self.cluster,
            topic=stored.topic.name,
            topic_uuid=self.frames_uuid,
            partition=stored.partition,
            offset=stored.offset,
            appended_at=stored.appended_at or dt.datetime.fromtimestamp(0, dt.UTC),
        )
        return read_frame(stored.value, stored.key, stored.headers, origin, max_bytes=self.config.ingress.max_frame_bytes)

    def _verdict(self, frame: Frame, detections: Detections) -> Verdict:
        return Verdict(
            id=str(frame.id),
            source=frame.source,
            captured_at=frame.captured_at,
            status=Status.FINAL,
            detections=detections,
            confidence=confidence(detections),
            tier=Tier.LEAF,
            site=self.config.name,
            rank=RANK[Tier.LEAF],
            generation=self.generation,
            model=self.detector.name,
            model_digest=self.detector.digest,
            note=NOTE,
        )


def _outcome(known: Known | None, verdict: Verdict) -> Outcome:
    if known is None:
        return "new"
    if order_of(verdict) <= known.order:
        return "kept" if known.order > order_of(verdict) else "done"
    return "same" if _same(known.detections, verdict.detections) else "changed"


def _same(one: Iterable[Detection], other: Iterable[Detection]) -> bool:
    """Whether two answers see the same objects: each box of one has a box of its class in the other, for itself, that overlaps enough."""
    left = list(other)
    for mine in one:
        best = max((each for each in left if each.label == mine.label), key=mine.iou, default=None)
        if best is None or mine.iou(best) < SAME_IOU:
            return False
        left.remove(best)
    return not left


def believed(results: Iterable[Stored], sources: Collection[str]) -> dict[str, Known]:
    """The best result of each frame among some records of `results`, of these sources, or of all if there are none."""
    found: dict[str, Known] = {}
    for stored in results:
        try:
            result = Result.from_bytes(stored.value or b"")
        except InvalidRecord:
            continue
        known = found.get(result.id)
        if (sources and result.source not in sources) or (known is not None and known.order >= result.order):
            continue
        found[result.id] = Known(result.order, result.detections, result.tier, result.status, result.model_digest, result.generation)
    return found


class Yielding:
    """When to go on beside a running leaf. Pure.

    Parameters
    ----------
    max_lag
        Records that the leaf may be behind by.
    patience_s
        A leaf that finishes nothing for so long does not run: it is not waited for.

    >>> rule = Yielding(10, 60.0)
    >>> rule.may_go(Lag(50, 100), 0.0), rule.may_go(Lag(60, 140), 1.0), rule.may_go(Lag(5, 300), 2.0)
    (False, False, True)
    >>> rule.may_go(Lag(50, 300), 10.0), rule.may_go(Lag(90, 300), 63.0)
    (False, True)
    """

    def __init__(self, max_lag: int, patience_s: float = 30.0) -> None:
        self.max_lag, self.patience_s = max_lag, patience_s
        self._committed, self._moved_at = -1, 0.0

    def may_go(self, lag: Lag, now: float) -> bool:
        if lag.committed != self._committed:
            self._committed, self._moved_at = lag.committed, now
        return lag.records <= self.max_lag or now - self._moved_at > self.patience_s


def paced(
    items: Iterable[Stored], rate_per_s: float, wait: Callable[[float], object], clock: Callable[[], float] = time.monotonic
) -> Iterator[Stored]:
    """The items, no faster than so many a second."""
    due = clock()
    for item in items:
        now = clock()
        if due > now:
            wait(due - now)
        due = max(due, now - 1.0) + 1.0 / rate_per_s  # what was missed is not made up for by more than a second's worth
        yield item
