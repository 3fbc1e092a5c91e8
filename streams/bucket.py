"""A token bucket: what may be spent of something that comes at a steady rate."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """`rate` tokens a second, at most `rate * burst_s` saved up; it may go into debt, which is repaid before anything else is bought.

    >>> now = 0.0
    >>> bucket = TokenBucket(rate=10, burst_s=1, clock=lambda: now)
    >>> bucket.spend(15); bucket.level()
    -5.0
    >>> now = 1.0; bucket.level()
    5.0
    """

    def __init__(self, *, rate: float, burst_s: float, clock: Callable[[], float]) -> None:
        self._rate, self.burst_s, self._clock = rate, burst_s, clock
        self._level, self._at = rate * burst_s, clock()

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self.level()
        self._rate = rate

    @property
    def capacity(self) -> float:
        return self._rate * self.burst_s

    def level(self) -> float:
        """Tokens at hand, negative in debt."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def spend(self, tokens: float) -> None:
        self._level = self.level() - tokens
