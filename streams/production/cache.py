"""Encoded frames of recordings, kept so that a loop, or a second source on the same file, encodes nothing again. Bounded in bytes."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from streams.production.pictures import Picture


class FrameCache:
    """The encoded frames of all recordings of a process.

    When it is full it keeps what it has: a loop reads all frames in turn, so making room would only throw away what is needed next.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._lock = threading.Lock()
        self._recordings: dict[Hashable, Recording] = {}

    def recording(self, key: Hashable) -> Recording:
        """The recording that a key stands for: a file with the settings it is encoded with."""
        with self._lock:
            return self._recordings.setdefault(key, Recording(self))

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if self.bytes + size > self.max_bytes:
                return False
            self.bytes += size
            return True


class Recording:
    """The frames of one recording, by their number in it. `total` is their number, once its end was seen."""

    def __init__(self, cache: FrameCache) -> None:
        self._cache = cache
        self._frames: dict[int, Picture] = {}
        self._lock = threading.Lock()
        self.total: int | None = None
        self.encoded = 0
        """How many times a frame was encoded; with everything in the cache it stays at `total`."""

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, index: int) -> Picture | None:
        return self._frames.get(index)

    def put(self, index: int, picture: Picture) -> bool:
        """Keep a frame if there is room; says whether it is kept."""
        with self._lock:
            self.encoded += 1
            if index in self._frames:
                return True
            if not self._cache._reserve(len(picture.jpeg)):
                return False
            self._frames[index] = picture
            return True

    @property
    def complete(self) -> bool:
        """Every frame is here: the file need not be opened again."""
        return self.total is not None and len(self._frames) == self.total > 0
