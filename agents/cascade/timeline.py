"""The time of one stream as its frames tell it: which frame is new, and when it was taken, on a clock that never goes back."""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict

_SET_BACK_S = 1.0  # frames may pass each other by less; beyond it the camera's clock was set
_STEP_S = 0.1  # what is taken to lie between two frames then
_EPOCHS = 16  # runs of the source that are known again


class Timeline:
    """Places frames on a stream's own time."""

    def __init__(self) -> None:
        self._highest: OrderedDict[str, int] = OrderedDict()  # sequence, by epoch
        self._origin: dt.datetime | None = None
        self._at_s = 0.0
        self._shift_s = 0.0

    def place(self, epoch: str, sequence: int, captured_at: dt.datetime) -> float | None:
        """When a frame was taken, in seconds since the first one, which do not decrease; None if it or a later one of its run was placed
        before."""
        if sequence <= self._highest.get(epoch, -1):
            return None
        self._highest[epoch] = sequence
        self._highest.move_to_end(epoch)
        if len(self._highest) > _EPOCHS:
            self._highest.popitem(last=False)
        if self._origin is None:
            self._origin = captured_at
        at_s = (captured_at - self._origin).total_seconds() + self._shift_s
        if at_s < self._at_s - _SET_BACK_S:
            self._shift_s += self._at_s + _STEP_S - at_s
            at_s = self._at_s + _STEP_S
        self._at_s = max(at_s, self._at_s)
        return self._at_s
