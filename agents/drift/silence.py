"""A silent camera: no frame for longer than the source's own rhythm explains."""

from __future__ import annotations

import msgspec

from agents.drift.change import Change
from schemas.drift import Cause

LEAST_S = 2.0
GAPS = 8.0  # usual gaps that may pass without a frame
PEAKS = 3.0  # largest gaps of late
_LEARNT = 5  # gaps before a source has a rhythm
_MEMORY = 100.0  # gaps that the usual one is the mean of
_FADING = 0.999  # of the largest gap, from one to the next


class SilenceState(msgspec.Struct):
    """All that is remembered."""

    last_at: float | None = None
    gaps: int = 0
    usual_s: float = 0.0
    largest_s: float = 0.0
    open: bool = False


class Silence:
    """Notices that a source has fallen silent, and that it is heard again.

    What counts as silence comes from the source's own rhythm: 8 usual gaps, 3 of its largest gaps of late, and 2 seconds at least, so that
    neither a camera of one frame a minute nor one whose network stutters is called silent. A gap that was an alarm teaches it nothing.

    >>> silence = Silence()
    >>> [silence.arrived(tenth / 10) for tenth in range(20)] == [None] * 20
    True
    >>> silence.tick(3.8), silence.tick(4.0).after
    (None, 2.1)
    """

    def __init__(self, state: SilenceState | None = None) -> None:
        self.state = state or SilenceState()

    @property
    def limit_s(self) -> float | None:
        """Seconds without a frame that are an alarm; None as long as the rhythm is not known."""
        if self.state.gaps < _LEARNT:
            return None
        return max(LEAST_S, GAPS * self.state.usual_s, PEAKS * self.state.largest_s)

    def arrived(self, at: float) -> Change | None:
        """A frame came."""
        state, limit_s = self.state, self.limit_s
        gap_s = 0.0 if state.last_at is None else at - state.last_at
        first = state.last_at is None
        state.last_at = at
        if state.open:
            state.open = False
            return Change(Cause.SILENT, False, at, state.usual_s, state.usual_s, {"silent_s": round(gap_s, 3)}, recovered=True)
        if first or gap_s < 0 or (limit_s is not None and gap_s > limit_s):  # a clock that was set back; a silence that no tick came upon
            return None
        state.gaps += 1
        state.usual_s += (gap_s - state.usual_s) / min(state.gaps, _MEMORY)
        state.largest_s = max(gap_s, state.largest_s * _FADING)
        return None

    def tick(self, now: float) -> Change | None:
        """Time passes."""
        state, limit_s = self.state, self.limit_s
        if state.open or limit_s is None or state.last_at is None or now - state.last_at <= limit_s:
            return None
        state.open = True
        silent_s = round(now - state.last_at, 3)
        return Change(Cause.SILENT, True, now, state.usual_s, silent_s, {"limit_s": round(limit_s, 3)})

    def ended(self, at: float) -> Change | None:
        """The source says that it ends: what follows is no silence, and a later run has a rhythm of its own."""
        was, self.state = self.state, SilenceState()
        if not was.open:
            return None
        return Change(Cause.SILENT, False, at, was.usual_s, was.usual_s, {"ended": 1.0}, recovered=False)
