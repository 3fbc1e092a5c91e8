"""How many frames the Kafka client may hold at a time: few, since what it holds can be neither dropped nor overtaken. Pure."""

from __future__ import annotations

# As many as the client has requests in flight. When more wait and the broker is silent, librdkafka (2.16) spins on a whole core.
FLOOR = 5


class Window:
    """Counts what is with the client, and widens when the way to the broker is long.

    It allows twice what was in flight on average when an acknowledgement came, so that it grows, up to `frames`, while it is what holds
    the rate back, and stays small where answers come at once. While none come it stays as it is.

    Parameters
    ----------
    frames, bytes
        What it allows at most. One frame is allowed whatever its size.
    """

    __slots__ = ("_mean", "bytes", "bytes_in_flight", "frames", "frames_in_flight")

    def __init__(self, frames: int, bytes: int) -> None:
        self.frames = frames
        self.bytes = bytes
        self.frames_in_flight = 0
        self.bytes_in_flight = 0
        self._mean = 0.0

    @property
    def allowed(self) -> int:
        """Frames that may be in flight now."""
        return min(self.frames, max(FLOOR, round(2 * self._mean)))

    def admits(self, size: int) -> bool:
        """Whether a frame of so many bytes may be handed over now."""
        if not self.frames_in_flight:
            return True
        return self.frames_in_flight < self.allowed and self.bytes_in_flight + size <= self.bytes

    def enter(self, size: int) -> None:
        """A frame was handed over."""
        self.frames_in_flight += 1
        self.bytes_in_flight += size

    def leave(self, size: int, *, acknowledged: bool) -> None:
        """The client has reported on a frame."""
        if acknowledged:
            self._mean += (self.frames_in_flight - self._mean) / 8
        self.frames_in_flight -= 1
        self.bytes_in_flight -= size
