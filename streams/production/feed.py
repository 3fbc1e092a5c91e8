"""One source at work: a thread that takes pictures from a recording, paced by the clock, or from a live camera, and publishes them."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import msgspec

from streams.production.frames import FrameProducer, PublisherClosed
from streams.production.live import Camera, Connection, Newest, NotLive
from streams.production.pace import Pace, Thinning
from streams.production.pictures import CaptureFailed, Picture

log = logging.getLogger("headwater.produce")


class Recorded(Protocol):
    """Pictures that can be had at any speed: `VideoFile`, `ImageFolder`."""

    width: int
    height: int
    fps: float

    def pictures(self, *, start_s: float = 0.0, loop: bool = False) -> Iterator[Picture]: ...


class Until(msgspec.Struct, frozen=True, kw_only=True):
    """When a feed ends by itself: after some seconds, some frames, or neither."""

    seconds: float | None = None
    frames: int | None = None


class Feed:
    """The life cycle of one source's thread: `start`, `stop` (asks), `join` (waits). It ends by itself when its source or its limit does.

    `error` is then what went wrong, if anything; `running_s` counts from the first frame.
    """

    def __init__(self, producer: FrameProducer, until: Until) -> None:
        self.producer = producer
        self.until = until
        self.error: Exception | None = None
        self.skipped = 0
        """Frames of a live camera that were not taken, because newer ones came first or fewer a second were wanted; they have no
        sequence."""
        self.late = 0
        self.slipped_s = 0.0
        self.published = 0
        self._halt = threading.Event()
        self._started_s: float | None = None
        self._thread = threading.Thread(target=self._guarded, name=f"{producer.name}.feed", daemon=True)

    @property
    def name(self) -> str:
        return self.producer.name

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the feed to end. Never waits."""
        self._halt.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; False if it takes longer."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _guarded(self) -> None:
        try:
            self._run()
        except PublisherClosed:
            return  # whoever closed it, or whatever stopped it, has said so
        except Exception as error:
            self.error = error
            if not isinstance(error, OSError):
                log.exception("%s: the feed has failed", self.name, extra={"source": self.name})
        finally:
            self.producer.end()

    def _run(self) -> None:
        raise NotImplementedError

    def _over(self) -> bool:
        """Whether to end: asked to, or a limit is reached."""
        if self._halt.is_set() or (self.until.frames is not None and self.published >= self.until.frames):
            return True
        return self._left_s() <= 0

    def _left_s(self) -> float:
        """Seconds until the limit; without one, infinity."""
        if self.until.seconds is None or self._started_s is None:
            return float("inf")
        return self._started_s + self.until.seconds - time.monotonic()

    def _pause(self, seconds: float) -> None:
        """Wait, unless asked to end or the limit comes first."""
        self._halt.wait(max(0.0, min(seconds, self._left_s())))


class RecordedFeed(Feed):
    """Plays a recording in real time.

    Parameters
    ----------
    fps
        Frames a second; None: the recording's own.
    start_s
        Where in the recording to begin, in seconds of its own rate.
    loop
        Begin again at its end, in the same epoch.
    """

    def __init__(
        self,
        producer: FrameProducer,
        recording: Recorded,
        until: Until,
        *,
        fps: float | None = None,
        start_s: float = 0.0,
        loop: bool = False,
    ) -> None:
        super().__init__(producer, until)
        self.recording = recording
        self.fps = fps or recording.fps
        self._start_s = start_s
        self._loop = loop

    def _run(self) -> None:
        pictures = self.recording.pictures(start_s=self._start_s, loop=self._loop)
        picture = next(pictures, None)  # what lies before the first picture is read before the clock starts
        self.producer.begin(width=self.recording.width, height=self.recording.height, fps=self.fps)
        self._started_s = time.monotonic()
        pace = Pace(self.fps, start_s=self._started_s)
        while picture is not None:
            self._pause(pace.wait_s(time.monotonic()))
            if self._over():
                return
            slipping = pace.slipped_s > 0
            pace.take(time.monotonic())
            self.producer.publish(picture.jpeg)
            self.published += 1
            self.late, self.slipped_s = pace.late, pace.slipped_s
            if pace.slipped_s > 0 and not slipping:
                log.warning(
                    "%s: this machine does not keep up with %g frames/s (%.2f s behind so far)",
                    self.name,
                    self.fps,
                    pace.slipped_s,
                    extra={"source": self.name, "fps": self.fps, "slipped_s": round(pace.slipped_s, 3)},
                )
            picture = next(pictures, None)


def backoff_s(attempt: int, chance: float, *, base_s: float = 0.5, cap_s: float = 15.0) -> float:
    """How long to wait before connecting again: exponential, between half and all of it by chance, so that many do not come at once.

    >>> [backoff_s(attempt, 1.0) for attempt in (0, 1, 2, 9)]
    [0.5, 1.0, 2.0, 15.0]
    """
    return float(min(cap_s, base_s * 2 ** min(attempt, 30))) * (0.5 + 0.5 * chance)


class LiveFeed(Feed):
    """Publishes a live camera's newest frames, and connects again when it goes: each connection is an epoch of its own.

    Parameters
    ----------
    fps
        Frames a second at most; None: all that come.
    once
        Do not connect again: it is an error if the camera does not answer or breaks off.
    silent_s
        A connection that gives no frame for so long is given up.
    """

    def __init__(
        self, producer: FrameProducer, camera: Camera, until: Until, *, fps: float | None = None, once: bool = False, silent_s: float = 10.0
    ) -> None:
        super().__init__(producer, until)
        self.camera = camera
        self.fps = fps
        self.once = once
        self.silent_s = silent_s
        self.connected = False
        self._said = ""

    def _run(self) -> None:
        self._started_s = time.monotonic()
        attempt = 0
        while not self._over():
            before = self.published
            try:
                connection = self.camera.connect()
            except NotLive:
                raise
            except CaptureFailed as error:
                failure: CaptureFailed | None = error
                if self.camera.attached and not self.published:
                    raise
            else:
                failure = self._watch(connection)
                self.connected = False
            if self._over():
                return
            if self.once:
                if failure is not None:
                    raise failure
                return
            if self.published > before:
                attempt = 0
            delay_s = backoff_s(attempt, random.random())  # noqa: S311
            attempt += 1
            self._say(str(failure or f"{self.camera.shown}: the stream has ended"))
            self._pause(delay_s)

    def _watch(self, connection: Connection) -> CaptureFailed | None:
        """Publish one connection's frames until it ends; returns why, if it broke."""
        newest = Newest(connection, self.name)
        thinning = Thinning(self.fps)
        heard_s = time.monotonic()
        skipped = self.skipped
        try:
            while not self._over():
                taken = newest.take(min(0.2, max(0.0, self._left_s())))
                now_s = time.monotonic()
                self.skipped = skipped + newest.overwritten
                if taken is None:
                    if newest.ended:
                        return newest.error
                    if now_s - heard_s > self.silent_s:
                        return CaptureFailed(f"{self.camera.shown}: no frame came for {self.silent_s:g} s")
                    continue
                heard_s = now_s
                if not thinning.keep(now_s):
                    skipped += 1
                    continue
                captured_at, frame = taken
                try:
                    picture = connection.picture(frame)
                except CaptureFailed as error:
                    return error
                if not self.connected:
                    self.connected = True
                    epoch = self.producer.begin(width=picture.width, height=picture.height, fps=self.fps or connection.fps)
                    self._said = ""
                    log.info("%s: connected to %s", self.name, self.camera.shown, extra={"source": self.name, "epoch": epoch})
                self.producer.publish(picture.jpeg, captured_at)
                self.published += 1
            return None
        finally:
            self.producer.end()
            newest.close()

    def _say(self, why: str) -> None:
        if why != self._said:  # once per change of state, not once per attempt
            self._said = why
            log.warning("%s: %s; trying again until it answers", self.name, why, extra={"source": self.name, "reason": why})
