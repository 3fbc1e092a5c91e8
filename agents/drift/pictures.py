"""The fast path: blur, darkness, noise and a moved or frozen camera, noticed within seconds from what the pictures themselves are like.

A stream's pictures are judged second by second against what they were like before, and by what is usual in this stream.
"""

from __future__ import annotations

import copy
import math

import msgspec
import numpy as np

from agents.drift.change import Change
from agents.drift.levels import FLAT, Level, LevelState, Second, Sums, SumsState
from agents.drift.stillness import Stillness, StillnessState
from agents.drift.traits import Traits
from schemas.drift import Cause

# What explains most comes first: another view is brighter and sharper too, and with noise no picture is as sharp as it was.
ORDER = (Cause.VIEW, Cause.BRIGHTNESS, Cause.NOISE, Cause.BLUR)

# The least change that is an alarm, in logarithms of a ratio (for the view: the share of the usual correlation that is lost), and how many
# usual deviations it must be in a stream that changes much by itself; but no stream is so restless that more than MOST goes unnoticed.
LEAST = {Cause.VIEW: 0.5, Cause.BRIGHTNESS: math.log(1.5), Cause.NOISE: math.log(1.45), Cause.BLUR: math.log(2.2)}
MOST = {Cause.VIEW: 0.8, Cause.BRIGHTNESS: math.log(4), Cause.NOISE: math.log(4), Cause.BLUR: math.log(16)}
DEVIATIONS = 6.0

SECOND_S = 1.0
WARM = 8  # seconds before anything is usual
HOLD = 5  # seconds that a change must last
BACK = 3  # seconds back within half of the limit that close an alarm
SETTLE = 120  # seconds at one new level that make it the usual one

_MEMORY = 300.0  # seconds that a level is the mean of: minutes, so that dusk is no alarm
_VIEW_MEMORY = 120.0
_NEW_MEMORY = 10.0  # of a level that may become the usual one
_GONE = math.log(10)  # a sharpness that fell so far explains lost edges, unless they are found elsewhere
_ELSEWHERE = 0.1  # so much more do the edges correlate at another place then
_FOUND = 0.25  # with so much more the camera was surely moved, if only a little


class Doubt(msgspec.Struct):
    """How near an alarm is to opening (seconds outside) or, once open, to closing (seconds back)."""

    outside: int = 0
    open: bool = False
    back: int = 0
    before: float = 0.0


class PicturesState(msgspec.Struct):
    """All that is remembered of a stream's pictures."""

    stillness: StillnessState = msgspec.field(default_factory=StillnessState)
    second: SumsState | None = None
    usual: LevelState = msgspec.field(default_factory=LevelState)
    new: LevelState = msgspec.field(default_factory=LevelState)
    settled: int = 0
    spread: dict[Cause, float] = msgspec.field(default_factory=lambda: dict.fromkeys(ORDER, 0.0))
    doubts: dict[Cause, Doubt] = msgspec.field(default_factory=lambda: {cause: Doubt() for cause in ORDER})


class Pictures:
    """Notices blur, a change of brightness, noise, a moved and a frozen camera.

    The first 8 seconds say what is usual. Later a second is outside if a trait is further from its usual level than `LEAST` and than 6 of
    its own usual deviations. An alarm opens when the same trait was outside for 5 seconds, so 5 to 7 seconds after the change; what a
    stronger trait explains is not told of separately (`ORDER`). It closes when the trait was back within half of the limit for 3 seconds,
    or when the pictures have been alike for 2 minutes: that is then the usual level. Usual levels follow slowly (minutes) as long as
    nothing is outside. A picture that stands still teaches nothing, and one that shows nothing never becomes usual.
    """

    def __init__(self, state: PicturesState | None = None) -> None:
        state = copy.deepcopy(state) or PicturesState()
        self._stillness = Stillness(state.stillness)
        self._sums = None if state.second is None else Sums.restored(state.second)
        self._usual, self._new, self._settled = Level(state.usual), Level(state.new), state.settled
        self._spread, self._doubts = state.spread, state.doubts

    def state(self) -> PicturesState:
        """All that it remembers; a `Pictures` made of it goes on as this one would."""
        return PicturesState(
            stillness=copy.copy(self._stillness.state),
            second=None if self._sums is None else self._sums.state(),
            usual=self._usual.state(),
            new=self._new.state(),
            settled=self._settled,
            spread=dict(self._spread),
            doubts=copy.deepcopy(self._doubts),
        )

    def feed(self, at: float, seen: Traits) -> list[Change]:
        """Take in what a frame is like; returns the alarms that it opens or closes."""
        still, frozen = self._stillness.feed(at, seen.digest, flat=seen.contrast < FLAT)
        changes = [] if frozen is None else [frozen]
        sums = self._sums
        if sums is not None and not 0 <= at - sums.begun_at < SECOND_S:
            if at > sums.begun_at:  # else a clock was set back, and the second is of another time
                changes += self._judge(sums.mean(), at, moving=sums.moving > 0)
            sums = None
        if sums is None:
            sums = Sums(at)
        sums.add(seen, moving=not still)
        self._sums = sums
        return changes

    def _judge(self, seen: Second, at: float, *, moving: bool) -> list[Change]:
        usual = self._usual
        if usual.seconds < WARM:
            if moving and not seen.flat:
                self._learn(seen, usual.distances(seen) if usual.seconds else {})
            return []
        distances = usual.distances(seen)
        limits = {cause: min(MOST[cause], max(LEAST[cause], DEVIATIONS * self._spread[cause])) for cause in ORDER}
        outside = {cause: self._outside(cause, distances, limits[cause], seen) for cause in ORDER}
        changes = self._close(seen, distances, limits, at) + self._open(seen, distances, outside, at)
        if any(doubt.open for doubt in self._doubts.values()):
            if moving and not seen.flat:
                changes += self._settle(seen, limits, at)
        elif moving and not any(outside.values()):
            self._learn(seen, distances)
        return changes

    def _learn(self, seen: Second, distances: dict[Cause, float]) -> None:
        for cause, distance in distances.items():
            if not math.isnan(distance):  # a standard deviation of 1.25 goes with a mean absolute one of 1, for normal values
                self._spread[cause] += (1.25 * abs(distance) - self._spread[cause]) / min(self._usual.seconds, _MEMORY)
        self._usual.learn(seen, memory=_MEMORY, view_memory=_VIEW_MEMORY)

    def _outside(self, cause: Cause, distances: dict[Cause, float], limit: float, seen: Second) -> bool:
        match cause:
            case Cause.VIEW:
                if math.isnan(distances[cause]) or distances[cause] > -limit / 2:
                    return False
                elsewhere = self._usual.shift(seen).correlation - self._usual.correlation(seen)
                gone = distances[cause] < -limit and (distances[Cause.BLUR] > -_GONE or elsewhere > _ELSEWHERE)
                return gone or elsewhere > _FOUND
            case Cause.NOISE:  # less noise is no fault, and blur takes it away
                return distances[cause] > limit
        return abs(distances[cause]) > limit

    def _open(self, seen: Second, distances: dict[Cause, float], outside: dict[Cause, bool], at: float) -> list[Change]:
        changes = []
        explained = False
        for cause in ORDER:
            doubt = self._doubts[cause]
            doubt.outside = doubt.outside + 1 if outside[cause] and not explained else max(0, doubt.outside - 2)
            if doubt.outside >= HOLD and not doubt.open:
                if not any(other.open for other in self._doubts.values()):
                    self._new, self._settled = Level(), 0
                before, after = self._figures(cause, seen, distances)
                doubt.open, doubt.back, doubt.before = True, 0, before
                changes.append(Change(cause, True, at, before, after, self._evidence(cause, seen, distances)))
            explained = explained or outside[cause] or doubt.open
        return changes

    def _close(self, seen: Second, distances: dict[Cause, float], limits: dict[Cause, float], at: float) -> list[Change]:
        changes = []
        for cause, doubt in self._doubts.items():
            if not doubt.open:
                continue
            distance = distances[cause] if cause is Cause.NOISE else abs(distances[cause])
            doubt.back = doubt.back + 1 if distance < limits[cause] / 2 else 0
            if doubt.back >= BACK:
                after = self._figures(cause, seen, distances)[1]
                changes.append(Change(cause, False, at, doubt.before, after, {}, recovered=True))
                self._doubts[cause] = Doubt()
        return changes

    def _settle(self, seen: Second, limits: dict[Cause, float], at: float) -> list[Change]:
        """Learn the new level; when the pictures have stayed there, it is the usual one."""
        if self._new.seconds:
            strange = any(abs(distance) >= limits[cause] / 2 for cause, distance in self._new.distances(seen).items())  # NaN is not
            self._settled = 0 if strange else self._settled + 1
        self._new.learn(seen, memory=_NEW_MEMORY, view_memory=_NEW_MEMORY)
        if self._settled < SETTLE:
            return []
        distances, changes = self._usual.distances(seen), []
        for cause, doubt in self._doubts.items():
            if doubt.open:
                changes.append(Change(cause, False, at, doubt.before, self._figures(cause, seen, distances)[1], {}))
            self._doubts[cause] = Doubt()
        self._usual, self._new, self._settled = self._new, Level(), 0
        return changes

    def _figures(self, cause: Cause, seen: Second, distances: dict[Cause, float]) -> tuple[float, float]:
        """The usual level of a trait, and the one now."""
        usual = self._usual
        match cause:
            case Cause.VIEW:
                before, after = usual.view, usual.correlation(seen)
            case Cause.BRIGHTNESS:
                before, after = float(np.mean(usual.brightness)), float(np.mean(seen.brightness))
            case Cause.NOISE:
                before, after = usual.noise, seen.noise
            case _:
                before = math.exp(float(np.median(usual.sharpness)))
                after = before * math.exp(distances[cause])
        return round(before, 4), round(after, 4)

    def _evidence(self, cause: Cause, seen: Second, distances: dict[Cause, float]) -> dict[str, float]:
        """How every trait stands to its usual level: ratios, and for the view the correlation."""
        figures = {
            "correlation": self._usual.correlation(seen),
            "brightness_ratio": math.exp(distances[Cause.BRIGHTNESS]),
            "sharpness_ratio": math.exp(distances[Cause.BLUR]),
            "noise": seen.noise,
            "contrast": seen.contrast,
        }
        if cause is Cause.VIEW:
            shift = self._usual.shift(seen)
            figures |= {"shift_right": shift.right, "shift_down": shift.down, "shifted_correlation": shift.correlation}
        return {name: round(value, 4) for name, value in figures.items()}
