"""Which offsets of one partition the link has carried: interval sets, so that the newest can go first and the gap behind them later.

Pure: nothing here talks to Kafka or knows the time. One thread hands offsets out, another settles them; both go through one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from schemas.intervals import Intervals, Pair

MAX_GAPS = 100  # gaps that a position names; the closest of more are told as one, and what lies between is carried again


class Carried:
    """The offsets of one partition: settled (carried, or lost and explained), on their way, waiting as backfill, or to come.

    Parameters
    ----------
    start
        The offset after the highest that was carried.
    backfill
        Inclusive ranges below `start` that were not.

    Attributes
    ----------
    next
        The offset that the live consumer hands out next.
    """

    def __init__(self, start: int, backfill: Iterable[Pair] = ()) -> None:
        self.next = start
        self.epoch = -1  # leader epoch of the highest record that was carried
        self.live_epoch = -1  # and of the last record before `next`, as far as it is known
        self._top = start
        self._waiting = Intervals((first, min(last, start - 1)) for first, last in backfill if first < start)
        self._settled = (Intervals([(0, start - 1)]) if start else Intervals()) - self._waiting
        self._lock = threading.Lock()
        self.changed = False  # since the last call of `position`

    # ---- handing out

    def jump(self, to: int) -> None:
        """The live consumer passes over what lies before `to`; it becomes backfill."""
        with self._lock:
            if to > self.next:
                self._waiting.add(self.next, to - 1)
                self.next = to

    def live(self, last: int) -> Pair:
        """Hand out what the live consumer read, up to and including `last`: offsets that it skipped do not exist."""
        with self._lock:
            first, self.next = min(self.next, last), max(self.next, last + 1)
            return first, last

    def newest(self, limit: int) -> Pair | None:
        """Hand out at most `limit` offsets from the end of the newest gap; None if none waits."""
        with self._lock:
            if not self._waiting:
                return None
            first, last = self._waiting.last()
            first = max(first, last - limit + 1)
            self._waiting = self._waiting - Intervals([(first, last)])
            return first, last

    def oldest(self, limit: int) -> Pair | None:
        """Hand out at most `limit` offsets from the start of the oldest gap, for topics whose order matters."""
        with self._lock:
            if not self._waiting:
                return None
            first, last = self._waiting.first()
            last = min(last, first + limit - 1)
            self._waiting = self._waiting - Intervals([(first, last)])
            return first, last

    def give_back(self, first: int, last: int) -> None:
        """What was handed out was not sent."""
        if first <= last:
            with self._lock:
                self._waiting = (self._waiting | Intervals([(first, last)])) - self._settled

    def below(self, low: int) -> list[Pair]:
        """Hand out what is no longer in the log: the ranges below `low` that wait. They are settled by whoever has explained them."""
        with self._lock:
            lost = self._waiting & Intervals([(0, low - 1)]) if low > 0 else Intervals()
            if self.next < low:
                lost.add(self.next, low - 1)
                self.next = low
            self._waiting = self._waiting - lost
            return lost.pairs()

    def drop_below(self, low: int) -> list[Pair]:
        """Settle what is no longer in the log, and return it."""
        lost = self.below(low)
        with self._lock:
            for first, last in lost:
                self._settle(first, last)
        return lost

    # ---- settling

    def settle(self, first: int, last: int, epoch: int = -1) -> None:
        """The destination has acknowledged these offsets, or they are explained."""
        with self._lock:
            self._settle(first, last)
            if last + 1 >= self._top:
                self.epoch = epoch
            self._top = max(self._top, last + 1)

    def _settle(self, first: int, last: int) -> None:
        self._settled.add(first, last)
        self.changed = True

    # ---- what is known

    def position(self, *, peek: bool = False) -> tuple[int, tuple[Pair, ...]]:
        """The offset after the highest that is settled, and the gaps below it: what a link that starts here has still to carry. Whoever
        peeks does not write it down: it still counts as changed."""
        with self._lock:
            self.changed = self.changed and peek
            top = self._settled.last()[1] + 1 if self._settled else 0
            gaps = (Intervals([(0, top - 1)]) - self._settled).pairs() if top else []
        return top, tuple(_fewer(gaps, MAX_GAPS))

    def waiting(self) -> bool:
        """Whether there is backfill to hand out."""
        return bool(self._waiting)

    def open(self, high: int) -> int:
        """How many offsets below `high` are not settled."""
        with self._lock:
            return max(0, high - (self._settled & Intervals([(0, high - 1)])).count()) if high else 0

    def first_open(self) -> int:
        """The lowest offset that is not settled."""
        with self._lock:
            first = self._settled.first() if self._settled else (0, -1)
            return first[1] + 1 if first[0] == 0 else 0


def _fewer(gaps: list[Pair], most: int) -> list[Pair]:
    """At most so many ranges that hold all of these: the closest neighbours become one."""
    while len(gaps) > most:
        at = min(range(len(gaps) - 1), key=lambda index: gaps[index + 1][0] - gaps[index][1])
        gaps[at : at + 2] = [(gaps[at][0], gaps[at + 1][1])]
    return gaps
