"""The slow path: ADWIN on the means of batches, finds that the level of a stream of numbers has shifted, and says so once it matters."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agents.drift.rhythm import ENOUGH, LEVELS, LevelOf, Rhythm

DELTA = 1e-6
CAPACITY = 1024  # batch means that are kept
RECENT = 256  # of them that are all kept when it is full; of the older ones every other
SETTLE = 32  # batch means without a further shift that end an alarm
_DIGITS = 4  # decimals of a mean that is kept


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers are.

    `base` values make the shortest batch, and a memory of `base` * 2**`horizon` values is looked for before anything is told. `grain` is a
    standard deviation below which no stream's spread is taken; `least`, or the share `least_share` of the level, is the smallest shift that
    matters.
    """

    base: int
    grain: float
    least: float
    horizon: int
    least_share: float = 0.0

    def matters(self, before: float, after: float) -> bool:
        return abs(after - before) >= max(self.least, self.least_share * abs(before))


class ShiftsState(msgspec.Struct):
    """All that is remembered. `means` are those that the detector has seen since it was made anew; so they are its state."""

    base_sum: float = 0.0
    base_count: int = 0
    rhythm: list[LevelOf] = msgspec.field(default_factory=lambda: [LevelOf() for _ in range(LEVELS)])
    length: int = 0  # of a batch: 2**length times the base
    armed: bool = False
    judged: int = 0  # means since then
    remeasured: bool = False  # the rhythm, since an alarm closed, for the batches may be too long now
    means: list[float] = msgspec.field(default_factory=list)
    centre: float = 0.0
    scale: float = 1.0
    level: float | None = None  # that shifts are measured from
    shifted: bool = False  # since then
    open: bool = False
    stable: int = 0  # batches


class Shift(NamedTuple):
    """An alarm opens, or closes."""

    opened: bool
    before: float
    after: float
    batches: int  # that show it
    batch: int  # values in each
    recovered: bool = False


def change_point(means: list[float]) -> int:
    """The index from which on the level is most likely another one: where means before and after differ most, in standard errors.

    >>> change_point([1.0, 2.0, 1.0, 2.0, 8.0, 9.0])
    4
    """
    values = np.array(means)
    before = np.arange(1, len(values))
    after = len(values) - before
    sums = np.cumsum(values)[:-1]
    difference = sums / before - (values.sum() - sums) / after
    return 1 + int(np.argmax(np.abs(difference) * np.sqrt(before * after)))


class Shifts:
    """Watches the level of one stream of numbers.

    Values are gathered into batches as long as the stream's own memory (`Rhythm`). Nothing is told before that is known; from then on each
    batch's mean goes to ADWIN (Bifet & Gavalda, 2007), in units of its own deviation: the bound of ADWIN has a term that presumes a range
    of 1, and in units of a confidence a shift of ten deviations would wait for it. ADWIN's own check is made at every mean, not every 32nd.
    Once ADWIN saw a shift, it is an alarm as soon as the level is further than matters from the one that was last known to be stable, so
    that a creeping change does not escape by small steps. ADWIN says that there was a shift, but keeps some of what came before it; where
    it was, and the level since then, is found by the most likely point of change (Hinkley, 1970) in the means. The alarm closes after 32
    batches without a further shift. Batches grow whenever the stream's memory has; they can become shorter again after an alarm, once the
    rhythm of the new level is known.

    ADWIN's state is that of a library. What is kept instead are the means that it has seen since it was made anew, at most 1024: fed again,
    they give the same state. It is made anew when the batches grow, after each shift, and when they are full: then every other of the
    older ones goes, so that the level of long ago is still known while a small shift is under way.

    References
    ----------
    Hinkley, "Inference about the change-point in a sequence of random variables", Biometrika 57 (1970).
    Bifet & Gavalda, "Learning from time-changing data with adaptive windowing", SIAM International Conference on Data Mining (2007).
    """

    def __init__(self, kind: Kind, state: ShiftsState | None = None) -> None:
        self.kind = kind
        self._state = copy.deepcopy(state) or ShiftsState()
        self._rhythm = Rhythm(self._state.rhythm, floor=kind.grain**2, horizon=kind.horizon)
        self._adwin: Any = None
        if self._state.armed:
            self._feed()

    def state(self) -> ShiftsState:
        """All that it remembers; a `Shifts` made of it goes on as this one would."""
        return copy.deepcopy(self._state)

    @property
    def armed(self) -> bool:
        """Whether the stream's rhythm is known."""
        return self._state.armed

    @property
    def judged(self) -> int:
        """Batches that were judged so far."""
        return self._state.judged

    @property
    def batch(self) -> int:
        """Values in a batch."""
        return self.kind.base << self._state.length

    def add(self, value: float) -> Shift | None:
        """Take a value in; returns an alarm that it opens or closes."""
        state = self._state
        state.base_sum += value
        state.base_count += 1
        if state.base_count < self.kind.base:
            return None
        mean = state.base_sum / state.base_count
        state.base_sum, state.base_count = 0.0, 0
        return self.add_mean(mean)

    def add_mean(self, mean: float) -> Shift | None:
        """Take the mean of `kind.base` values in."""
        state = self._state
        means = self._rhythm.add(mean)
        if len(means) <= state.length:
            return None
        fits = self._rhythm.fits(state.length)
        value = round(means[state.length], _DIGITS)
        state.means.append(value)
        if fits is False and not state.open:
            return self._grow()
        if not state.armed:
            if fits:
                return self._arm()
            del state.means[:-CAPACITY]
            return None
        state.judged += 1
        if state.remeasured and fits and not state.open and self._shorten():
            return None
        self._adwin.update((value - state.centre) / state.scale)
        if self._adwin.drift_detected:
            return self._shifted()
        if len(state.means) >= CAPACITY:
            state.means = state.means[:-RECENT:2] + state.means[-RECENT:]
            return self._shifted() if self._renew() else None
        state.stable += 1
        return self._weigh()

    def _arm(self) -> Shift | None:
        state = self._state
        state.armed = True
        self._renew()  # what shifted before is how the stream began
        state.level = self._mean(state.means)
        return None

    def _grow(self) -> Shift | None:
        """Batches of twice the length: pairs of the means, and of the rhythm's own pairs, so that what comes fits on."""
        state = self._state
        means = state.means
        if self._rhythm.levels[state.length].waiting is not None:
            means = means[:-1]
        if len(means) % 2:
            means = means[1:]
        state.means = [round((one + other) / 2, _DIGITS) for one, other in zip(means[::2], means[1::2], strict=True)]
        state.length += 1
        if not state.armed:
            return None
        return self._shifted() if self._renew() else None

    def _remeasure(self) -> None:
        """Forget the rhythm: jumps are in it that are explained now, and the new level may have a rhythm of its own."""
        self._state.rhythm[:] = [LevelOf() for _ in range(LEVELS)]
        self._state.remeasured = True

    def _shorten(self) -> bool:
        """Batches as short as the rhythm since the last alarm allows; the means of the longer ones say nothing of their spread, and go."""
        state = self._state
        length = next((length for length in range(state.length) if self._rhythm.fits(length)), state.length)
        state.remeasured = False
        if length == state.length:
            return False
        state.length, state.means = length, []
        self._renew()
        return True

    def _renew(self) -> bool:
        """Make the detector anew with the means that are kept; returns whether they show a shift, which is then cut off."""
        state = self._state
        level = self._rhythm.levels[state.length]
        if level.count >= ENOUGH:
            state.scale = max(self.kind.grain, math.sqrt(level.variance))
        state.centre = self._mean(state.means) if state.means else 0.0
        shifted = False
        while self._feed():
            shifted = True
        return shifted

    def _feed(self) -> bool:
        """Feed the detector with what it has seen; if that shows a shift, keep what came after it, and say so."""
        # Imported when it is used: it brings most of scipy along, 36 to 86 MB that a process without slow drift need not have.
        from river.drift import ADWIN

        state = self._state
        self._adwin = ADWIN(delta=DELTA, clock=1)  # type: ignore[no-untyped-call]
        for index, mean in enumerate(state.means):
            self._adwin.update((mean - state.centre) / state.scale)
            if self._adwin.drift_detected:
                state.means = state.means[change_point(state.means[: index + 1]) :]
                return True
        return False

    def _shifted(self) -> Shift | None:
        state = self._state
        if self._adwin.drift_detected:
            state.means = state.means[change_point(state.means) :]
            self._renew()
        state.shifted, state.stable = True, 0
        return self._weigh()

    def _weigh(self) -> Shift | None:
        """Whether an alarm opens or closes, now that ADWIN saw no more."""
        state = self._state
        if not state.shifted or state.level is None:
            return None
        before, after = state.level, self._mean(state.means)
        if not state.open:
            if not self.kind.matters(before, after):
                return None
            state.open = True
        elif state.stable < SETTLE or self.kind.matters(after, self._mean(state.means[-SETTLE // 2 :])):
            return None
        else:
            state.open, state.shifted, state.stable, state.level = False, False, 0, after
            self._remeasure()
        return Shift(state.open, before, after, len(state.means), self.batch, recovered=not self.kind.matters(before, after))

    @staticmethod
    def _mean(values: list[float]) -> float:
        return math.fsum(values) / max(1, len(values))
