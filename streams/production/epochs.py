"""One run of a source: its ledger, and what `drops` and `epochs` are told of it, at every site that it has been published to.

Numbers are those of the protocol in `streams.production.frames`. A source may move between sites. Then the site in use is told all that is
new (drops, a mark every second, the end), and a site that was left is told, as long as it answers, which sequences are elsewhere, so that
its own account does not wait for them.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError

from schemas.identity import new_epoch
from schemas.messages import Drop, EpochMark, EpochState, Ranges
from streams.production.ledger import Ledger

if TYPE_CHECKING:
    from streams.production.publisher import FramePublisher
    from streams.routing.way import Way

STAGE = "producer"
LEFT_EVERY_S = 10.0  # between marks for a site that is no longer in use
GRACE_S = 3.0  # for sites that were left to take the end of an epoch


class _Told:
    """What one site knows of an epoch."""

    __slots__ = ("ended", "last", "next_s", "pending", "started")

    def __init__(self) -> None:
        self.started = self.ended = False
        self.pending: object | None = None  # a mark that is on its way
        self.last = (-1, -1)  # assigned and acknowledged in the last mark that arrived
        self.next_s = 0.0


class Epoch:
    """One run of a source. Everything is called under the publisher's lock."""

    def __init__(self, source: str, width: int, height: int, fps: float, publisher: FramePublisher) -> None:
        self.source = source
        self.name = new_epoch()
        self.width, self.height, self.fps = width, height, fps
        self.started_at: dt.datetime = publisher.wall_clock()
        self.ledger = Ledger()
        self.ending = False  # no more sequences will be given out
        self.ended = False  # and a site's `epochs` says so
        self._ended_s = 0.0
        self._publisher = publisher
        self._declaring: tuple[str, Ranges, Way] | None = None
        self._told: dict[str, _Told] = {}
        self._waits = False  # for the next tick, after a record about it was not taken

    def visits(self, way: Way) -> None:
        """It is published to this site."""
        if way.name not in self._told:
            self._told[way.name] = _Told()

    def tick(self) -> None:
        """Once a second: declare drops, mark, and tell the sites that were left."""
        self._waits = False
        current = self._publisher.way
        self.declare()
        if not self.ending or not self._told_of(current).started:
            self.mark(current)
        now_s = time.monotonic()
        for way, told in self._left():
            news = (self.ledger.assigned, self.ledger.prefix) != told.last
            if way.health.distrusted or (news and now_s >= told.next_s):
                self.mark(way)

    def settle(self) -> None:
        """If it is over, say so as soon as all in it is settled."""
        if not self.ending or self._waits:
            return
        if not self.ended:
            self.declare()
            if self.ledger.settled or not self._told_of(self._publisher.way).started:
                self.mark(self._publisher.way)
        else:
            for way in self._uninformed():
                self.mark(way)

    @property
    def done(self) -> bool:
        """It is over and everybody who can be told knows it."""
        return self.ended and (not self._uninformed() or time.monotonic() - self._ended_s > GRACE_S)

    def lost_way(self, way: Way) -> None:
        """The site was left, or its clients replaced: what was on its way there is told anew (and if it arrived all the same, no harm)."""
        if way.name in self._told:
            self._told[way.name].pending = None
            self._told[way.name].next_s = 0.0
        if self._declaring is not None and self._declaring[2] is way:
            reason, ranges, _ = self._declaring
            self._declaring = None
            self.ledger.undeclared(reason, ranges)

    def declare(self) -> None:
        """Publish some drops, unless a record of drops is still on its way (protocol 4)."""
        if self._declaring is not None:
            return
        taken = self.ledger.declare()
        if taken is None:
            return
        reason, ranges = taken
        way = self._publisher.way
        pending = self._declaring = (reason, ranges, way)

        def delivered(error: KafkaError | None) -> None:
            mine = self._declaring is pending
            if error is None:
                self.ledger.declared(reason, ranges, way.name)
            elif mine:
                self.ledger.undeclared(reason, ranges)
                self._waits = True
            if mine:
                self._declaring = None
                if error is None:
                    self.declare()

        self.visits(way)
        drop = Drop(source=self.source, epoch=self.name, site=way.name, stage=STAGE, reason=reason, ranges=ranges)
        if not self._publisher.announce(drop, way, delivered):
            self._declaring = None
            self.ledger.undeclared(reason, ranges)
            self._waits = True

    def mark(self, way: Way) -> None:
        """Tell a site how far the epoch has come, unless such a record is still on its way there (protocol 5)."""
        told = self._told_of(way)
        if told.pending is not None or told.ended:
            return
        over = told.started and self.ending and self.ledger.settled
        state = EpochState.ENDED if over else EpochState.MARK if told.started else EpochState.STARTED
        mark = EpochMark(
            source=self.source,
            epoch=self.name,
            site=way.name,
            state=state,
            assigned=self.ledger.assigned,
            acknowledged=self.ledger.prefix,
            started_at=self.started_at,
            width=self.width,
            height=self.height,
            fps=self.fps,
            elsewhere=self.ledger.elsewhere(way.name),
        )
        pending = told.pending = object()

        def delivered(error: KafkaError | None) -> None:
            if told.pending is not pending:
                return
            told.pending = None
            if error is None:
                told.started, told.ended = True, over
                told.last = (mark.assigned, mark.acknowledged)
                told.next_s = time.monotonic() + LEFT_EVERY_S
                way.health.proved()
                if over and not self.ended:
                    self.ended, self._ended_s = True, time.monotonic()
            else:
                self._waits = True

        if not self._publisher.announce(mark, way, delivered):
            told.pending = None
            self._waits = True

    def _told_of(self, way: Way) -> _Told:
        self.visits(way)
        return self._told[way.name]

    def _uninformed(self) -> list[Way]:
        """Of an epoch that is over: the sites that answer and have not been told so."""
        current = self._publisher.way
        ways = [(current, self._told.get(current.name)), *self._left()]
        return [way for way, told in ways if told is not None and not told.ended]

    def _left(self) -> list[tuple[Way, _Told]]:
        """The sites that it was published to before the one in use, as far as they answer."""
        current = self._publisher.way
        ways = [(self._publisher.router.way(name), told) for name, told in self._told.items()]
        return [(way, told) for way, told in ways if way is not None and way is not current and way.health.reachable]


Delivered = Callable[[KafkaError | None], Any]
