"""Pacing by the monotonic clock: frame k is due at start + k / fps, so that errors of single waits do not add up. No I/O, no sleeping."""

from __future__ import annotations


class Pace:
    """When the next frame is due, for recordings that are played in real time.

    A machine that falls behind delivers late frames at once, but only the last `burst` of them: what it is further behind is given up by
    moving the whole schedule. No frame is skipped for it; the rate is then below the one asked for, and `slipped_s` says by how
    much.

    Parameters
    ----------
    fps
        Frames a second, above 0.
    start_s
        When frame 0 is due, in seconds of the clock that `wait_s` and `take` are called with.
    burst
        How many late frames may follow one another at once, so that a time W never holds more than W * fps + burst + 1 frames. More
        lets the mean rate survive longer hiccups, and makes the wave that follows one larger.

    >>> pace = Pace(10, start_s=100.0); pace.take(100.0); round(pace.wait_s(100.02), 2)
    0.08
    """

    __slots__ = ("_k", "_start_s", "burst", "fps", "late", "slipped_s")

    def __init__(self, fps: float, *, start_s: float, burst: int = 5) -> None:
        if not fps > 0 or burst < 0:
            raise ValueError(f"fps {fps} and burst {burst}: expected fps above 0 and burst from 0")
        self.fps = fps
        self.burst = burst
        self._start_s = start_s
        self._k = 0
        self.late = 0
        """Frames delivered more than one interval after they were due."""
        self.slipped_s = 0.0
        """By how much the schedule was moved, in total."""

    @property
    def due_s(self) -> float:
        """When the next frame is due."""
        return self._start_s + self._k / self.fps

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next frame is due; 0 if it is due or late."""
        return max(0.0, self.due_s - now_s)

    def take(self, now_s: float) -> None:
        """The next frame is delivered now."""
        behind_s = now_s - self.due_s
        if behind_s > 1 / self.fps:
            self.late += 1
        excess_s = behind_s - self.burst / self.fps
        if excess_s > 0:
            self._start_s += excess_s
            self.slipped_s += excess_s
        self._k += 1


class Thinning:
    """Which frames of a live stream to keep so that at most `fps` a second remain, evenly spread.

    >>> thin = Thinning(10); [thin.keep(k / 30) for k in range(7)]
    [True, False, False, True, False, False, True]
    """

    __slots__ = ("_next_s", "fps")

    def __init__(self, fps: float | None) -> None:
        if fps is not None and not fps > 0:
            raise ValueError(f"fps {fps}: expected a number above 0")
        self.fps = fps
        self._next_s: float | None = None

    def keep(self, now_s: float) -> bool:
        """Whether a frame that arrives now is kept."""
        if self.fps is None:
            return True
        interval_s = 1 / self.fps
        if self._next_s is None:
            self._next_s = now_s
        if now_s < self._next_s - 0.1 * interval_s:  # a tenth early counts as on time: arrivals jitter around their grid
            return False
        self._next_s = max(self._next_s + interval_s, now_s - interval_s)
        return True
