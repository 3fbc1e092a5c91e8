"""How many bytes may be on their way to the region at a time: enough to fill the link, too few to queue on it for long.

What waits in a socket cannot be overtaken, so an alert would wait behind it. The window is steered by delay, as LEDBAT is (RFC 6817): the
least delay seen lately is the way itself, what is beyond it is a queue, and the queue is held near a target. Once a round trip the window
becomes what the link took in that time, for as long as the way and the target last.
"""

from __future__ import annotations

TARGET_S = 0.2  # delay that our own bytes may add
LEAST, MOST = 16 << 10, 16 << 20
MEMORY_S = 60.0  # how long the least delay holds: ways change


class Window:
    """Counts bytes in flight and steers their limit.

    Attributes
    ----------
    limit
        Bytes that may be in flight; a record larger than that goes alone.
    """

    def __init__(self, *, start: int = 32 << 10) -> None:
        self.limit = float(start)
        self.in_flight = 0
        self._full = False  # whether the limit has been felt since it was set
        self._set_s = float("-inf")
        self._least: list[tuple[float, float]] = []  # (since, least delay) of this period and the one before

    def room(self, size: int) -> bool:
        """Whether so many bytes may be sent now."""
        fits = self.in_flight == 0 or self.in_flight + size <= self.limit
        self._full = self._full or not fits
        return fits

    def sent(self, size: int) -> None:
        self.in_flight += size

    def left(self, size: int) -> None:
        """Bytes that will not be acknowledged."""
        self.in_flight = max(0, self.in_flight - size)

    def acked(self, size: int, delay_s: float, now: float) -> None:
        """So many bytes were acknowledged, `delay_s` after they were sent."""
        self.left(size)
        base_s = self._base(delay_s, now)
        if now - delay_s < self._set_s:
            return  # it was sent under an earlier limit, and says nothing of this one
        factor = (base_s + TARGET_S) / max(delay_s, 1e-4)
        if factor < 1 or self._full:
            self.limit = min(MOST, max(LEAST, self.limit * min(2.0, max(0.25, factor))))
            self._set_s, self._full = now, False

    def _base(self, delay_s: float, now: float) -> float:
        if not self._least or now - self._least[-1][0] > MEMORY_S:
            self._least = [*self._least[-1:], (now, delay_s)]
        since, least = self._least[-1]
        self._least[-1] = since, min(least, delay_s)
        return min(least for _, least in self._least)
