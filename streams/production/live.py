"""Live cameras: a network stream (RTSP, HTTP, ...) or one at this machine. Only the newest frame is kept, so that none ever lags."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import cv2

from streams.production.address import redact
from streams.production.capture import decoded, open_video, pixels_of, pyav, reason
from streams.production.pictures import CaptureFailed, Look, Picture, encode

log = logging.getLogger("headwater.produce")


class Connection(Protocol):
    """An open camera. `frames` blocks in the camera's own time and ends, or raises `CaptureFailed`, when the camera is gone; so does
    `picture` when it gives what is no picture."""

    fps: float

    def frames(self) -> Iterator[Any]: ...
    def picture(self, frame: Any) -> Picture: ...
    def close(self) -> None: ...


class Camera(Protocol):
    """A camera that can be connected to, again and again. `shown` is its address without secrets; `attached` that it is at this machine,
    so that one which does not answer at first is not there."""

    shown: str
    attached: bool

    def connect(self) -> Connection: ...


class NetworkCamera:
    """A camera behind a URL. Its address is shown without user, password and query everywhere.

    Parameters
    ----------
    timeout_s
        How long connecting, and waiting for the next frame, may take.
    """

    attached = False

    def __init__(self, url: str, look: Look, *, timeout_s: float = 10.0) -> None:
        self._av = pyav()
        self._url = url
        self.shown = redact(url)
        self.look = look
        self.timeout_s = timeout_s

    def connect(self) -> Connection:
        """Open the stream; raises `CaptureFailed`."""
        scheme = urlsplit(self._url).scheme.lower()
        options = {"analyzeduration": "2000000", "fflags": "nobuffer"}
        if scheme.startswith("rtsp"):
            options |= {"rtsp_transport": "tcp"}  # UDP loses packets silently, and firewalls stop it
        container, stream = open_video(self._av, self._url, self.shown, options=options, timeout=(self.timeout_s, self.timeout_s))
        if scheme in {"http", "https"} and container.duration:
            container.close()
            raise NotLive(f"{self.shown} is a recording, not a live stream: download it and name the file")
        stream.thread_type = "SLICE"  # threads by frame would hold frames back
        return _Stream(self, container, stream)


class NotLive(CaptureFailed):
    """A URL that gives a recording: trying again will not help."""


class _Stream:
    def __init__(self, camera: NetworkCamera, container: Any, stream: Any) -> None:
        self._camera, self._container, self._stream = camera, container, stream
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else 0.0

    def frames(self) -> Iterator[Any]:
        av = self._camera._av
        try:
            yield from decoded(av, self._container, self._stream)
        except (av.FFmpegError, OSError) as error:
            raise CaptureFailed(f"{self._camera.shown}: {reason(error, self._camera._url)}") from None

    def picture(self, frame: Any) -> Picture:
        try:
            return encode(pixels_of(frame), self._camera.look, "RGB")
        except (self._camera._av.FFmpegError, ValueError) as error:
            raise CaptureFailed(f"{self._camera.shown}: a frame cannot be converted: {reason(error, self._camera._url)}") from None

    def close(self) -> None:
        self._container.close()


class AttachedCamera:
    """A camera at this machine, by its index, read by OpenCV."""

    attached = True

    def __init__(self, index: int, look: Look) -> None:
        self.index = index
        self.shown = f"camera {index}"
        self.look = look

    def connect(self) -> Connection:
        """Open the camera; raises `CaptureFailed`."""
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would tell of a missing camera in its own words too
        device = cv2.VideoCapture(self.index)
        if not device.isOpened():
            device.release()
            raise CaptureFailed(f"{self.shown}: there is no such camera, or another program holds it (on Linux: ls /dev/video*)")
        device.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return _Device(self, device)


class _Device:
    def __init__(self, camera: AttachedCamera, device: Any) -> None:
        self._camera, self._device = camera, device
        self.fps = max(0.0, float(device.get(cv2.CAP_PROP_FPS)))

    def frames(self) -> Iterator[Any]:
        while True:
            good, pixels = self._device.read()
            if not good:
                raise CaptureFailed(f"{self._camera.shown}: it gives no more pictures")
            yield pixels

    def picture(self, frame: Any) -> Picture:
        return encode(frame, self._camera.look, "BGR")

    def close(self) -> None:
        self._device.release()


class Newest:
    """Reads a connection in a thread of its own and keeps only the newest frame, with the time when it came."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.overwritten = 0
        """Frames that were never taken because a newer one came first: they were not produced, and have no sequence."""
        self.error: CaptureFailed | None = None
        self._slot: tuple[dt.datetime, Any] | None = None
        self._ended = False
        self._closing = False
        self._changed = threading.Condition()
        # A daemon: it may hang in the camera's driver, or in FFmpeg until its timeout, and must not hold up the end of the process.
        self._thread = threading.Thread(target=self._read, name=f"{name}.reader", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> tuple[dt.datetime, Any] | None:
        """The newest frame; None if none came in time or the stream has ended (see `ended`)."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self._ended, timeout_s)
            slot, self._slot = self._slot, None
            return slot

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        """Let go of the stream; its thread closes it as soon as it comes back from the camera."""
        self._closing = True

    def _read(self) -> None:
        try:
            for frame in self.connection.frames():
                if self._closing:
                    return
                with self._changed:
                    self.overwritten += self._slot is not None
                    self._slot = (dt.datetime.now(dt.UTC), frame)
                    self._changed.notify_all()
        except CaptureFailed as error:
            self.error = error
        finally:
            self.connection.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()
