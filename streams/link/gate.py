"""Who may send next: lanes by priority, within the window of their direction and the site's byte budget.

The budget is one token bucket over all lanes and both directions. What a batch will cost on the wire is estimated when it is let through,
by the share of its payload that lately arrived there (the client compresses, and tells only after sending); the estimate is put right by
what the clients have truly sent and received.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from streams.bucket import TokenBucket
from streams.link.window import Window

SLICE_S = 0.2  # of the budget that a lane takes at a time: what a more urgent one may have to wait for
_RATIO = (0.02, 1.5)  # bounds of what is believed of compression


class Purse:
    """The byte budget of a site; without one (`rate` 0) nothing is ever refused. Safe for threads."""

    def __init__(self, rate: float, burst_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.bucket = TokenBucket(rate=rate, burst_s=burst_s, clock=clock) if rate > 0 else None
        self.ratio = 1.0  # of bytes on the wire to bytes of payload, upwards
        self._lock = threading.Lock()
        self._paid = 0.0  # what was charged, corrections included
        self._seen = 0.0  # what was on the wire at the last correction
        self._acked = 0  # payload acknowledged since then
        self._lately = 0.0, 0.0  # bytes on the wire and of payload, the older counting less

    def wait_s(self, *, urgent: bool) -> float:
        """Seconds until something may be sent; 0 if it may be now. What is urgent may run into debt by all that can be saved up."""
        if self.bucket is None:
            return 0.0
        with self._lock:
            level, floor = self.bucket.level(), -self.bucket.capacity if urgent else 0.0
            return 0.0 if level > floor else max(0.001, (floor - level) / self.bucket.rate)

    def slice(self, window: float) -> int:
        """Payload bytes that a lane takes at a time."""
        if self.bucket is None:
            return max(4096, int(min(window / 4, 256 << 10)))
        return max(2048, int(min(self.bucket.rate * SLICE_S / self.ratio, window / 2, 256 << 10)))

    def charge(self, payload: int) -> None:
        """Pay for what is about to be sent."""
        with self._lock:
            self._pay(payload * self.ratio)

    def acked(self, payload: int) -> None:
        with self._lock:
            self._acked += payload

    def correct(self, wire: float, unsent: float) -> None:
        """Put the estimate right, as the clients have just counted: `wire` bytes have gone and come in all, `unsent` bytes of payload are
        paid for and not on the wire yet."""
        with self._lock:
            sent, payload = (0.8 * old + new for old, new in zip(self._lately, (wire - self._seen, self._acked), strict=True))
            self._seen, self._acked, self._lately = wire, 0, (sent, payload)
            if payload > 4096 and sent > 0:
                self.ratio = min(_RATIO[1], max(_RATIO[0], sent / payload))
            self._pay(wire + unsent * self.ratio - self._paid)

    def restart(self) -> None:
        """New clients count from 0 again."""
        with self._lock:
            self._paid = self._seen = 0.0
            self._acked, self._lately = 0, (0.0, 0.0)

    def _pay(self, tokens: float) -> None:
        self._paid += tokens
        if self.bucket is not None:
            self.bucket.spend(tokens)


class Stopping(Exception):
    """The link ends, or this lane does."""


class Gate:
    """Lets lanes of one direction through, the most urgent first."""

    def __init__(self, purse: Purse, direction: Literal["up", "down"], halt: threading.Event) -> None:
        self.purse, self.direction, self.window, self._halt = purse, direction, Window(), halt
        self._waiting: list[int] = []
        self._changed = threading.Condition()
        self._open = False  # whether the region answers; what is urgent is sent even then, and waits in the client

    def enter(self, priority: int, size: int, *, urgent: bool) -> None:
        """Wait until a lane of this priority (0 comes first) may send `size` bytes of payload; raises `Stopping`.

        Whoever enters tells `acked` or `left` of the same bytes, once.
        """
        with self._changed:
            self._waiting.append(priority)
            try:
                while not self._halt.is_set():
                    wait_s = self._wait_s(priority, size, urgent)
                    if wait_s == 0.0:
                        self.window.sent(size)
                        break
                    self._changed.wait(min(wait_s, 0.5))
                else:
                    raise Stopping
            finally:
                self._waiting.remove(priority)
                self._changed.notify_all()
        if self.direction == "up":
            self.purse.charge(size)

    def _wait_s(self, priority: int, size: int, urgent: bool) -> float:
        """0 if a lane may go now; else how long to wait before asking again, unless something happens."""
        if min(self._waiting) < priority or not (self._open or urgent) or not self.window.room(size):
            return 0.5
        return self.purse.wait_s(urgent=urgent)

    def acked(self, size: int, delay_s: float) -> None:
        with self._changed:
            self.window.acked(size, delay_s, time.monotonic())
            self._changed.notify_all()
        if self.direction == "up":
            self.purse.acked(size)

    def left(self, size: int) -> None:
        """Bytes that will not be acknowledged: the client gave them up."""
        with self._changed:
            self.window.left(size)
            self._changed.notify_all()

    def open(self, answers: bool) -> None:
        """Whether the region answers."""
        with self._changed:
            self._open = answers
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
