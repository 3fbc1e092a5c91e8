"""How long a stream's values remember: the length of the batches whose means are nearly independent, measured as the stream goes on."""

from __future__ import annotations

import math

import msgspec

LEVELS = 14  # lengths 1, 2, 4, ... 8192
ENOUGH = 48  # differences at the doubled length before a length is judged
LIMIT = 0.75  # of the variance that may be left when the length is doubled; 0.5 where batches are independent
_MEMORY = 512  # differences that a variance is the mean of
_DOUBT = 2.5  # standard errors
_OUTLIER = 4.0  # times the variance: larger squared differences are cut off there
_MEDIAN = 0.455  # of the squares of normal values of variance 1


class LevelOf(msgspec.Struct):
    """One length: the mean that waits for its neighbour, the last mean, and half of the mean squared difference of neighbours."""

    waiting: float | None = None
    last: float | None = None
    count: int = 0
    first: list[float] = msgspec.field(default_factory=list)  # halves of squared differences, until there are enough
    variance: float = 0.0

    def learn(self, square: float, floor: float) -> None:
        self.count += 1
        if self.count > ENOUGH:
            square = min(square, _OUTLIER * max(self.variance, floor))
            self.variance += (square - self.variance) / min(self.count, _MEMORY)
        elif self.count < ENOUGH:
            self.first.append(square)
        else:
            self.first.append(square)
            most = _OUTLIER * max(sorted(self.first)[ENOUGH // 2] / _MEDIAN, floor)
            self.variance = sum(min(square, most) for square in self.first) / ENOUGH
            self.first = []


class Rhythm:
    """The Allan variance of a stream at all doubled lengths at once.

    Neighbouring values of video are alike: the same people are in a hundred frames. ADWIN, as any test that compares means, takes its
    values for independent, and of alike ones it makes false alarms by the hundred. So it is fed with means of batches (Fishman, 1978), and
    the batch is as long as the stream needs: if batches are independent, the variance between neighbours halves when their length doubles.
    The shortest length is used from which on it falls to about `LIMIT` at most; for an exponentially fading memory that is 1.5 to 4 times
    its time constant, and neighbours then correlate by .15 to .4. A loop in the video counts as memory, too.

    The drift that is looked for must not itself look like memory: differences of neighbours (Allan, 1966) see a change of level but once,
    and then it is cut off as an outlier.

    Parameters
    ----------
    floor
        A variance of no interest: what is below it does not lengthen the batches.
    horizon
        Memories of 2**horizon values are looked for before anything is known.

    References
    ----------
    Allan, "Statistics of atomic frequency standards", Proceedings of the IEEE 54 (1966).
    Fishman, "Grouping observations in digital simulation", Management Science 24 (1978).
    """

    def __init__(self, levels: list[LevelOf] | None = None, *, floor: float = 0.0, horizon: int = 0) -> None:
        self.levels, self.floor, self.horizon = levels or [LevelOf() for _ in range(LEVELS)], floor, horizon

    def add(self, value: float) -> list[float]:
        """Take a value in; returns the means of the batches that it completes, the shortest (itself) first.

        >>> rhythm = Rhythm()
        >>> [rhythm.add(value) for value in (1.0, 2.0, 3.0, 6.0)]
        [[1.0], [2.0, 1.5], [3.0], [6.0, 4.5, 3.0]]
        """
        means = []
        for level in self.levels:
            means.append(value)
            if level.last is not None:
                difference = value - level.last
                level.learn(difference * difference / 2, self.floor)
            level.last = value
            if level.waiting is None:
                level.waiting = value
                break
            value = (level.waiting + value) / 2
            level.waiting = None
        return means

    def fits(self, index: int) -> bool | None:
        """Whether batches of 2**index values are nearly independent, and longer ones too; None as long as that is not known.

        A length is given the benefit of the doubt: 2.5 standard errors of its variance. But nothing is known before lengths up to
        2**`horizon` were seen often enough, since a short memory can hide a long one.
        """
        levels = self.levels
        for length in range(index, len(levels) - 1):
            doubled = levels[length + 1]
            if doubled.count < ENOUGH:
                return True if length >= max(self.horizon, index + 1) else None
            doubt = _DOUBT * math.sqrt(3 / min(doubled.count, _MEMORY))
            if doubled.variance > max(self.floor, LIMIT * (1 + doubt) * levels[length].variance):
                return False
        return True
