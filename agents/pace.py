"""How often something happens: a rate over the last seconds."""

from __future__ import annotations

import math

OVER_S = 5.0
_LEAST = 1e-3  # a second


class Pace:
    """The rate of events, as a mean that fades (an exponentially weighted count)."""

    def __init__(self, over_s: float = OVER_S) -> None:
        self._over_s, self._count, self._at_s = over_s, 0.0, 0.0

    def add(self, now_s: float) -> None:
        """One has happened."""
        self._fade(now_s)
        self._count += 1

    def rate(self, now_s: float) -> float:
        """Events a second, above 0."""
        self._fade(now_s)
        return max(self._count / self._over_s, _LEAST)

    def _fade(self, now_s: float) -> None:
        if now_s > self._at_s:
            self._count *= math.exp(-(now_s - self._at_s) / self._over_s)
            self._at_s = now_s
