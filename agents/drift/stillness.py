"""A frozen camera: frames come, and not one of their pixels changes, not even by the sensor's noise."""

from __future__ import annotations

import msgspec

from agents.drift.change import Change
from schemas.drift import Cause

LEAST_S = 5.0
MOST_S = 60.0
FRAMES = 5  # that must be the same at least
_UNKNOWN_S = 8.0  # for a stream that has never moved
_RUNS = 3.0  # times the longest still time that ended by itself
_FADING = 0.9999  # of that longest, from one frame that moves to the next
_MEMORY = 300.0  # frames that the usual share of new ones is the mean of


class StillnessState(msgspec.Struct):
    """All that is remembered."""

    digest: int | None = None
    at: float = 0.0  # of the last frame
    since: float | None = None
    frames: int = 0  # that were the same since then
    longest_s: float = 0.0
    seen: int = 0
    new: float = 0.0  # the share of frames that differ from the one before
    open: bool = False


class Stillness:
    """Notices that a camera's picture stands still, and that it moves again.

    A frame is still if its contents are those of the frame before (`Traits.digest`). How long it may be still comes from the stream: three
    times the longest still time that ended by itself, 5 to 60 seconds; a source that sends each picture twice, or a static scene behind an
    encoder that skips what is unchanged, is not frozen. A picture that stands still under a clock that goes on is not noticed.
    """

    def __init__(self, state: StillnessState | None = None) -> None:
        self.state = state or StillnessState()

    @property
    def limit_s(self) -> float:
        """Seconds of stillness that are an alarm."""
        if self.state.new == 0.0:
            return _UNKNOWN_S
        return min(MOST_S, max(LEAST_S, _RUNS * self.state.longest_s))

    def feed(self, at: float, digest: int, *, flat: bool) -> tuple[bool, Change | None]:
        """Take a frame in; returns whether it is still, and what changed.

        Parameters
        ----------
        digest
            Of the picture's contents.
        flat
            Whether it shows nothing, as under a cap: it is then still for another cause, and no alarm opens.
        """
        state = self.state
        last_at, known = state.at, state.digest is not None
        same = state.digest == digest
        state.digest, state.at = digest, at
        if not known:
            return False, None
        if not same:
            return False, self._moved(at)
        if state.since is None or at < state.since:
            state.since, state.frames = min(last_at, at), 0
        state.frames += 1
        still_s = at - state.since
        if state.open or flat or state.frames < FRAMES or still_s < self.limit_s:
            return True, None
        state.open = True
        return True, Change(Cause.FROZEN, True, at, state.new, 0.0, {"still_s": round(still_s, 3), "frames": float(state.frames)})

    def _moved(self, at: float) -> Change | None:
        state, change = self.state, None
        still_s = 0.0 if state.since is None else max(0.0, at - state.since)
        if state.open:
            change = Change(Cause.FROZEN, False, at, 0.0, state.new, {"still_s": round(still_s, 3)}, recovered=True)
        else:
            state.longest_s = max(still_s, state.longest_s * _FADING)
            for _ in range(min(state.frames, int(_MEMORY))):
                self._learn(0.0)
            self._learn(1.0)
        state.open, state.since, state.frames = False, None, 0
        return change

    def _learn(self, new: float) -> None:
        self.state.seen += 1
        self.state.new += (new - self.state.new) / min(self.state.seen, _MEMORY)
