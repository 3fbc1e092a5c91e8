"""How long a stream's values remember: the length of the batches whose means are nearly independent, measured as the stream goes on."""

from __future__ import annotations

import math

import msgspec

LEVELS = 14  # lengths 1, 2, 4, ... 8192
ENOUGH = 24  # differences at the doubled length before a length is judged
LIMIT = 0.75  # of the variance that may be left when the length is doubled; 0.5 where batches are independent
_MEMORY = 256.0  # differences that a variance is the mean of
_DOUBT = 2.0
_OUTLIER = 9.0  # times the variance: larger squared differences are cut off there, or one jump would look like a long memory


class LevelOf(msgspec.Struct):
    """One length: the mean that waits for its neighbour, the last mean, and half of the mean squared difference of neighbours."""

    waiting: float | None = None
    last: float | None = None
    count: int = 0
    variance: float = 0.0


class Rhythm:
    """The Allan variance of a stream at all doubled lengths at once.

    Neighbouring values of video are alike: the same people are in a hundred frames. ADWIN, as any test that compares means, takes its
    values for independent, and of alike ones it makes false alarms by the hundred. So it is fed with means of batches (Fishman, 1978), and
    the batch is as long as the stream needs: if batches are independent, the variance between neighbours halves when their length doubles.
    The shortest length is used from which on it falls to `LIMIT` at most; for an exponentially fading memory that is 2 to 4 times its time
    constant, and neighbours then correlate by .15 to .33. Differences of neighbours (Allan, 1966) see a change of level but once, so the
    drift that is looked for does not itself lengthen the batches. A loop in the video counts as memory, too.

    >>> rhythm = Rhythm()
    >>> for index in range(400): _ = rhythm.add(float(index % 2))
    >>> rhythm.fits(0), rhythm.variances()[:2]
    (True, [0.5, 0.0])

    Parameters
    ----------
    floor
        A variance of no interest: what falls below it does not lengthen the batches.

    References
    ----------
    Allan, "Statistics of atomic frequency standards", Proceedings of the IEEE 54 (1966).
    Fishman, "Grouping observations in digital simulation", Management Science 24 (1978).
    """

    def __init__(self, levels: list[LevelOf] | None = None, *, floor: float = 0.0, horizon: int = 0) -> None:
        self.levels, self.floor, self.horizon = levels or [LevelOf() for _ in range(LEVELS)], floor, horizon

    def add(self, value: float) -> list[float]:
        """Take a value in; returns the means of the batches that it completes, the shortest (itself) first."""
        means = []
        for level in self.levels:
            means.append(value)
            if level.last is not None:
                difference = value - level.last
                square = difference * difference / 2
                level.count += 1
                if level.count > ENOUGH and square > _OUTLIER * level.variance > 0:
                    square = _OUTLIER * level.variance
                level.variance += (square - level.variance) / (level.count if level.count < _MEMORY else _MEMORY)
            level.last = value
            if level.waiting is None:
                level.waiting = value
                break
            value = (level.waiting + value) / 2
            level.waiting = None
        return means

    def variances(self) -> list[float]:
        """Of the means at each length."""
        return [level.variance for level in self.levels]

    def fits(self, index: int) -> bool | None:
        """Whether batches of 2**index values are nearly independent, and longer ones too; None as long as that is not known.

        A variance is known to a share of about sqrt(3 / differences) of it: within twice that, it is believed. And nothing is known
        before lengths up to 2**`horizon` were seen often enough: a short memory can hide a long one.
        """
        levels = self.levels
        for length in range(index, len(levels) - 1):
            here, doubled = levels[length], levels[length + 1]
            if doubled.count < ENOUGH:
                return True if length >= max(self.horizon, index + 1) else None
            doubt = _DOUBT * math.sqrt(3 / min(doubled.count, _MEMORY))
            if doubled.variance > max(self.floor, LIMIT * here.variance * (1 + doubt)):
                return False
        return True
