"""The two scarce things that an escalation spends: bytes on the link and inferences at the region. Both are token buckets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from schemas.messages import Reason

Budget = Literal["bytes", "inferences"]


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


class Budgets:
    """Both budgets of a site.

    An alert's frame may use all that is saved up and run into debt by as much again; anything else must leave a quarter in hand, so that
    an alert finds something to spend. Over time neither budget is passed.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    RESERVE = 0.25

    def __init__(self, *, bytes_per_s: float, inferences_per_s: float, burst_s: float, clock: Callable[[], float]) -> None:
        self.bytes = TokenBucket(rate=bytes_per_s, burst_s=burst_s, clock=clock)
        self.inferences = TokenBucket(rate=inferences_per_s, burst_s=burst_s, clock=clock)

    def forbids(self, reason: Reason, size: float) -> Budget | None:
        """Which budget does not allow a look of that many bytes now, or None if both do."""
        for name, bucket, cost in (("bytes", self.bytes, size), ("inferences", self.inferences, 1.0)):
            floor = -bucket.capacity if reason is Reason.ALERT else min(self.RESERVE * bucket.capacity, bucket.capacity - cost)
            if bucket.level() - cost < floor:
                return "bytes" if name == "bytes" else "inferences"
        return None
