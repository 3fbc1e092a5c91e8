"""The degradation ladder as a state machine: which of several steps judges the next frame, and when a broken one is tried again.

Pure: time and outcomes come in as arguments. What a step is (an engine and a model), and the threads that look, are `agents.sight`'s.

1. Each step has a breaker. `closed` steps are used, the first of them before the others.
2. A step opens when it hangs, when looks fail in a row or for a share of the recent ones, or when one look in twenty takes longer than
   the limit. Slowness opens a step only while a lower one is closed: a late answer is better than none.
3. After a wait that doubles each time (with jitter) an open step is half-open: it is tried, one look at a time, beside the stream. The
   nearest step above the one in use comes first, then those further up, then those below.
4. `TRIALS` good looks in a row, faster than the limit by a margin, close it; one bad look opens it again.
5. A step that stays closed for `SETTLED_S` has earned its first wait back.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection
from typing import Literal

import msgspec

from schemas.links import Breaker

TRIALS = 3
MARGIN = 0.8  # of the limit: what is tried must be this fast, so that it does not fall at once again
SETTLED_S = 60.0
_SHARE = 20  # looks from which on a share of them is judged

Cause = Literal["failed", "hung", "slow", "absent"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a step opens, and how long it stays so.

    Parameters
    ----------
    slow_s
        Longest time that 19 of 20 looks within `window_s` may take.
    failures
        Failed looks in a row that open a step.
    share
        Share of the looks within `window_s` that open it, once there are 20.
    backoff_s
        First and longest wait until an open step is tried.
    """

    slow_s: float
    failures: int = 3
    share: float = 0.3
    window_s: float = 10.0
    backoff_s: tuple[float, float] = (1.0, 300.0)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker that changed its state."""

    step: int
    was: Breaker
    now: Breaker
    cause: Cause | None = None  # of an opening
    reason: str = ""


class _Look(msgspec.Struct, frozen=True):
    at: float
    took_s: float
    failed: bool


class Step:
    """One step's breaker; what is public is read only."""

    def __init__(self) -> None:
        self.state = Breaker.CLOSED
        self.cause: Cause | None = None  # why it opened last; None once it is closed again
        self.reason = ""
        self.next_try_at = 0.0
        self.tries = 0  # openings since it was last settled
        self._closed_at = float("-inf")
        self._in_a_row = 0
        self._good = 0
        self._looks: deque[_Look] = deque()

    def _note(self, look: _Look, window_s: float) -> None:
        self._looks.append(look)
        while len(self._looks) > 1000 or look.at - self._looks[0].at > window_s:
            self._looks.popleft()
        self._in_a_row = self._in_a_row + 1 if look.failed else 0

    def _share_failed(self) -> float:
        return sum(look.failed for look in self._looks) / len(self._looks) if len(self._looks) >= _SHARE else 0.0

    def p95_s(self) -> float | None:
        """95th percentile of the recent looks' times; None with fewer than 20 of them."""
        times = sorted(look.took_s for look in self._looks if not look.failed)
        return times[int(0.95 * (len(times) - 1))] if len(times) >= _SHARE else None


class Ladder:
    """The steps from the first choice down. Not safe for several threads at a time: its user holds a lock.

    Parameters
    ----------
    steps
        How many there are; below the last there is no model.
    jitter
        A number from 0 to 1, for the waits.

    >>> ladder = Ladder(2, Limits(slow_s=1.0), jitter=lambda: 1.0)
    >>> ladder.choose()
    0
    >>> ladder.hung(0, "no answer", 10.0)
    >>> ladder.choose(), ladder.due(10.5), ladder.due(11.0)
    (1, None, 0)
    >>> for _ in range(TRIALS): ladder.took(0, 0.1, 11.0)
    >>> ladder.choose()
    0
    """

    def __init__(self, steps: int, limits: Limits, jitter: Callable[[], float] = random.random) -> None:
        self.steps = [Step() for _ in range(steps)]
        self.limits, self._jitter = limits, jitter
        self._changes: list[Change] = []

    def choose(self, passed_over: Collection[int] = ()) -> int | None:
        """The step for the next look: the first closed one that is not passed over; None if there is none."""
        return next((n for n, step in enumerate(self.steps) if step.state is Breaker.CLOSED and n not in passed_over), None)

    def changes(self) -> list[Change]:
        """What has changed since this was asked last."""
        found, self._changes = self._changes, []
        return found

    # ---- outcomes of looks, of the stream and of trials

    def took(self, number: int, seconds: float, now: float) -> None:
        """A look of a step has come to its end."""
        step = self.steps[number]
        if step.state is Breaker.OPEN:
            return  # it was begun before the step opened
        if step.state is Breaker.HALF_OPEN:
            self._tried(number, seconds, now)
            return
        step._note(_Look(now, seconds, False), self.limits.window_s)
        if step.tries and now - step._closed_at >= SETTLED_S:
            step.tries = 0
        if seconds <= self.limits.slow_s:
            return
        p95_s = step.p95_s()
        if p95_s is not None and p95_s > self.limits.slow_s and self._below(number):
            self._open(number, "slow", self._too_slow("one look in twenty takes", p95_s), now)

    def failed(self, number: int, reason: str, now: float) -> None:
        """A look of a step has failed by the engine's fault."""
        step = self.steps[number]
        if step.state is Breaker.HALF_OPEN:
            self._open(number, "failed", reason, now)
        elif step.state is Breaker.CLOSED:
            step._note(_Look(now, 0.0, True), self.limits.window_s)
            if step._in_a_row >= self.limits.failures or step._share_failed() > self.limits.share:
                self._open(number, "failed", reason, now)

    def hung(self, number: int, reason: str, now: float) -> None:
        """A look of a step was given up."""
        if self.steps[number].state is not Breaker.OPEN:
            self._open(number, "hung", reason, now)

    def broken(self, number: int, reason: str, now: float, *, absent: bool = False) -> None:
        """A step cannot be loaded; `absent`: this machine does not have its engine."""
        if self.steps[number].state is not Breaker.OPEN:
            self._open(number, "absent" if absent else "failed", reason, now)

    # ---- trials

    def due(self, now: float, stuck: Collection[int] = ()) -> int | None:
        """The step that is to be tried now, beside the stream; it is half-open from then on. The next call comes when its look has ended.

        Parameters
        ----------
        stuck
            Steps that a look has not come back from; they are not tried before it has.
        """
        current = self.choose()
        current = len(self.steps) if current is None else current
        order: list[int] = [*range(current - 1, -1, -1), *range(current + 1, len(self.steps))]
        for number in order:
            if self.steps[number].state is Breaker.HALF_OPEN:
                return number
        for number in order:
            step = self.steps[number]
            if step.state is Breaker.OPEN and now >= step.next_try_at and number not in stuck:
                self._set(number, Breaker.HALF_OPEN)
                step._good = 0
                return number
        return None

    def mended(self, number: int, now: float) -> None:
        """Something about an open step has changed, such as its file: it is tried without further waiting."""
        step = self.steps[number]
        if step.state is Breaker.OPEN:
            step.next_try_at, step.tries = now, 0

    def _tried(self, number: int, seconds: float, now: float) -> None:
        step = self.steps[number]
        if seconds > MARGIN * self.limits.slow_s and self._below(number):
            self._open(number, "slow", self._too_slow("a trial took", seconds), now)
            return
        step._good += 1
        if step._good >= TRIALS:
            step.cause, step.reason = None, ""
            step._looks.clear()
            step._in_a_row = 0
            step._closed_at = now
            self._set(number, Breaker.CLOSED)

    def _too_slow(self, what: str, seconds: float) -> str:
        return f"{what} {seconds * 1000:.0f} ms: the limit is {self.limits.slow_s * 1000:.0f} ms"

    # ---- changes of state

    def _below(self, number: int) -> bool:
        return any(step.state is Breaker.CLOSED for step in self.steps[number + 1 :])

    def _open(self, number: int, cause: Cause, reason: str, now: float) -> None:
        step, (first_s, longest_s) = self.steps[number], self.limits.backoff_s
        wait_s = min(longest_s, first_s * 2 ** min(step.tries, 30))
        step.next_try_at = now + wait_s * (0.5 + 0.5 * self._jitter())  # not all sites and steps at once
        step.tries += 1
        step.cause, step.reason = cause, reason
        step._looks.clear()
        step._in_a_row = 0
        self._set(number, Breaker.OPEN, cause, reason)

    def _set(self, number: int, state: Breaker, cause: Cause | None = None, reason: str = "") -> None:
        step = self.steps[number]
        self._changes.append(Change(step=number, was=step.state, now=state, cause=cause, reason=reason))
        step.state = state
