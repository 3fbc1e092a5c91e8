"""The two scarce things that an escalation spends: bytes on the link and inferences at the region. Both are token buckets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from schemas.messages import Reason
from streams.bucket import TokenBucket

Budget = Literal["bytes", "inferences"]


class Budgets:
    """Both budgets of a site.

    An alert's frame may use all that is saved up and run into debt by as much again, an audited one all that is saved up; anything else
    must leave a quarter in hand, so that these find something to spend. Over time neither budget is passed. A look that costs more than may
    be saved up is allowed when the bucket is full, so that a small budget buys few looks and not none; a rate of 0 buys none.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    RESERVE = 0.25
    FLOORS: Mapping[Reason, float] = {Reason.ALERT: -1.0, Reason.AUDIT: 0.0}  # shares of what may be saved up

    def __init__(self, *, bytes_per_s: float, inferences_per_s: float, burst_s: float, clock: Callable[[], float]) -> None:
        self.bytes = TokenBucket(rate=bytes_per_s, burst_s=burst_s, clock=clock)
        self.inferences = TokenBucket(rate=inferences_per_s, burst_s=burst_s, clock=clock)

    def forbids(self, reason: Reason, size: float) -> Budget | None:
        """Which budget does not allow a look of that many bytes now, or None if both do."""
        bounds: tuple[tuple[Budget, TokenBucket, float], ...] = (("bytes", self.bytes, size), ("inferences", self.inferences, 1.0))
        for name, bucket, cost in bounds:
            floor = self.FLOORS.get(reason, self.RESERVE) * bucket.capacity
            if bucket.rate <= 0 or bucket.level() - cost < min(floor, bucket.capacity - cost):
                return name
        return None

    def full(self) -> bool:
        """Whether what is saved up has reached its bound in both, so that what comes now would be lost."""
        return all(bucket.level() >= (1 - 1e-9) * bucket.capacity for bucket in (self.bytes, self.inferences))

    def take(self, reason: Reason, size: float) -> Budget | None:
        """Charge one look of that many bytes if both budgets allow it; else which one does not."""
        if (forbidding := self.forbids(reason, size)) is None:
            self.spend(size)
        return forbidding

    def spend(self, size: float) -> None:
        """Charge one look of that many bytes."""
        self.bytes.spend(size)
        self.inferences.spend(1.0)

    def refund(self, size: float) -> None:
        """Give back one look that was not sent after all."""
        self.bytes.spend(-size)
        self.inferences.spend(-1.0)
