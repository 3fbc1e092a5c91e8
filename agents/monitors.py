"""The streams of one leaf process, watched for drift: what is told of, and what an alarm changes for its stream.

All times are the broker's, which takes every frame: no camera's clock makes an alarm. An alarm lets the stream take a larger share of the
budgets for a while, has more of its frames audited, and, where the picture is another one, makes the leaf forget what it learned of the
old one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection

from agents.audits import Audits
from agents.cascade.agreement import Counts
from agents.cascade.cascade import Cascade
from agents.drift.asks import ASKS
from agents.drift.monitor import MonitorState, StreamMonitor
from agents.drift.traits import Traits
from schemas.detections import Detections
from schemas.drift import Drift, DriftState
from streams import telemetry
from streams.partition import partition_of

log = logging.getLogger("headwater.drift")

SOURCES = 1000
EVERY_S = 0.09  # at 30 frames a second every third, although they come a little unevenly


class Monitors:
    """All is called on the event loop; what is returned is to be published."""

    def __init__(self, site: str, cascade: Cascade, audits: Audits) -> None:
        self.site, self.cascade, self.audits = site, cascade, audits
        self._of: OrderedDict[str, StreamMonitor] = OrderedDict()
        self._watched_at_s: dict[str, float] = {}

    def wants(self, source: str, at_s: float) -> bool:
        """Whether it should be measured what a source's next frame is like: a picture every tenth of a second tells as much as all."""
        watched_at_s = self._watched_at_s.get(source, float("-inf"))
        if 0 <= at_s - watched_at_s < EVERY_S:
            return False
        self._watched_at_s[source] = at_s
        if len(self._watched_at_s) > SOURCES:
            del self._watched_at_s[next(iter(self._watched_at_s))]
        return True

    def frame(self, source: str, at_s: float, picture: Traits | None, detections: Detections) -> list[Drift]:
        """The next frame of a source came, and was answered so.

        Parameters
        ----------
        at_s
            When the broker took it, in seconds since 1970.
        picture
            What it is like; None if that was not measured.
        """
        monitor = self._monitor(source)
        was_open = bool(monitor.open)
        told = monitor.frame(at_s, picture) + monitor.answer(at_s, detections)
        if was_open or told:
            asks = monitor.asks(at_s)
            self.cascade.claim(source, asks.budget)
            self.audits.raise_rate(source, asks.audits)
        return self._tell(told)

    def arrived(self, source: str, at_s: float) -> list[Drift]:
        """A frame of a source came, and nobody looked at it."""
        return self._tell(self._monitor(source).frame(at_s, None))

    def _monitor(self, source: str) -> StreamMonitor:
        found = self._of.get(source)
        if found is None:
            found = self._of[source] = StreamMonitor(source, self.site)
            if len(self._of) > SOURCES:
                self._of.popitem(last=False)
        return found

    def audited(self, source: str, at_s: float, counts: Counts) -> list[Drift]:
        """A frame of the audit sample was judged: what the leaf's answer had in common with the region's."""
        monitor = self._of.get(source)
        agreement = counts.f1
        return self._tell(monitor.audit(at_s, 1.0 if agreement is None else agreement)) if monitor is not None else []

    def tick(self, now_s: float) -> list[Drift]:
        """About once a second, and only while no frame waits to be read: a camera that is silent is noticed here."""
        return self._tell([drift for monitor in list(self._of.values()) for drift in monitor.tick(now_s)])

    def serve(self, partitions: Collection[int], count: int) -> None:
        """These of so many partitions are served here from now on: sources of others are not silent, they are elsewhere."""
        for source in [source for source in self._of if partition_of(source, count) not in partitions]:
            del self._of[source]

    # ---- what outlives the process

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._of)

    def dump(self, source: str) -> MonitorState | None:
        """What is remembered of a source; None if it is not known."""
        monitor = self._of.get(source)
        return None if monitor is None else monitor.state()

    def load(self, source: str, state: MonitorState) -> None:
        """Take up what `dump` gave, unless the source is watched already."""
        if source not in self._of:
            self._of[source] = StreamMonitor(source, self.site, state)

    def _tell(self, told: list[Drift]) -> list[Drift]:
        for drift in told:
            opened = drift.state is DriftState.OPENED
            if opened and ASKS[drift.cause].recalibrate:
                self.cascade.begin_again(drift.source)
                self.audits.begin_again(drift.source)
            telemetry.DRIFT.labels(drift.cause, drift.state).inc()
            log.log(
                logging.WARNING if opened else logging.INFO,
                "a stream drifts" if opened else "a stream is stable again",
                extra={"record": drift.source, "cause": drift.cause, "was": round(drift.before, 4), "now": round(drift.after, 4)},
            )
        return told
