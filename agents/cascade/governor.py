"""Which frames are worth what looks cost: a threshold on the value of a look that follows the budget.

Proportional-integral control of the threshold's logarithm keeps the spending at the budget's rate, so that what is scarce goes to the
frames of the greatest value, in time and among sources. It rations; that a budget is never passed is the token buckets' part.
"""

from __future__ import annotations

import math

_FOLLOW_S = 3.3  # over which spending is averaged, or over so many looks:
_FOLLOW_LOOKS = 3.0
_PROPORTIONAL, _INTEGRAL = 0.6, 0.15  # of the relative error; the second a second
_MOST_OVER = 4.0
_START = math.log(0.5)
_BOUND = 20.0  # of the logarithm


class Governor:
    """The threshold of one budget, or of the one that binds.

    Attributes
    ----------
    threshold
        The value above which a look is worth its cost now.
    """

    def __init__(self) -> None:
        self._integral, self._rate, self._look_s = _START, 1.0, 0.0

    @property
    def threshold(self) -> float:
        return math.exp(self._integral + _PROPORTIONAL * self._error)

    @property
    def _error(self) -> float:
        return min(max(self._rate - 1, -1.0), _MOST_OVER)

    def passes(self, worth: float) -> bool:
        return worth > self.threshold

    def account(self, spent: float, passed_s: float) -> None:
        """Take in what a frame that passed would take, as a multiple of what the budget gives in a second, whether it got it or not.

        Parameters
        ----------
        spent
            Seconds of the budget that the frame would take; 0 if it did not pass. Of several budgets the largest.
        passed_s
            Since the frame before it, of whichever source; above 0.
        """
        if spent:
            self._look_s = min(spent, 60.0)
        share = 1 - math.exp(-passed_s / max(_FOLLOW_S, _FOLLOW_LOOKS * self._look_s))
        self._rate += share * (spent / passed_s - self._rate)
        self._integral = min(max(self._integral + _INTEGRAL * passed_s * self._error, -_BOUND), _BOUND)
