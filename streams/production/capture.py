"""Pictures from a video file, decoded by FFmpeg (PyAV), each frame encoded once and replayed from a cache. Nothing is paced here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streams.production.address import redact
from streams.production.cache import FrameCache, Recording
from streams.production.pictures import CaptureFailed, Look, Picture, Pixels, encode, scaled

log = logging.getLogger("headwater.produce")

DEFAULT_FPS = 25.0  # of a file that does not say
MAX_BAD_PACKETS = 300  # in a row: ten seconds of a usual stream; then it is not a damaged stream but none

Progress = Callable[[int, int | None], None]  # frames done, frames in all if known


def pyav() -> Any:
    """The PyAV module; raises `CaptureFailed` with the way to get it."""
    try:
        import av
    except ImportError as error:
        raise CaptureFailed(
            f"reading video needs PyAV, which is not usable here ({error}): install it with `pip install 'headwater[camera]'`"
        ) from None
    return av


def open_video(av: Any, url: str, shown: str, **settings: Any) -> tuple[Any, Any]:
    """Open a container and its first video stream; raises `CaptureFailed`, with secrets hidden."""
    try:
        container = av.open(url, **settings)
    except av.error.InvalidDataError as error:
        raise CaptureFailed(f"{shown}: it is not a video that FFmpeg can read ({reason(error, url)})") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise CaptureFailed(f"{shown}: {reason(error, url)}") from None
    stream = next(iter(container.streams.video), None)
    if container.format.name == "tty":  # FFmpeg paints any text file as a terminal would
        container.close()
        raise CaptureFailed(f"{shown}: it is not a video but text")
    if stream is None:
        container.close()
        raise CaptureFailed(f"{shown}: there is no video in it")
    return container, stream


def reason(error: BaseException, address: str = "") -> str:
    """What an FFmpeg or system error says, without the address, which its reader puts in front."""
    return redact(str(getattr(error, "strerror", None) or error) or type(error).__name__, address)


def decoded(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream. Damaged packets are passed over; raises FFmpeg's error if nothing else comes for long."""
    bad = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            if bad > MAX_BAD_PACKETS:
                raise
            continue
        if frames:
            bad = 0
        yield from frames


def pixels_of(frame: Any) -> Pixels:
    """A decoded frame as upright RGB pixels."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    turns = round((frame.rotation or 0) / 90) % 4
    return np.rot90(pixels, turns) if turns else pixels


class VideoFile:
    """A video file.

    Parameters
    ----------
    path
        The file.
    look
        How its frames are encoded.
    cache
        Where encoded frames are kept and looked for; None: they are not.

    Raises
    ------
    CaptureFailed
        If there is no such file, or no video in it, or PyAV is missing.
    """

    def __init__(self, path: Path, look: Look, cache: FrameCache | None = None) -> None:
        self._av = pyav()
        self.path = path
        self.look = look
        self._total = 0
        if path.is_dir():
            raise CaptureFailed(f"{path} is a folder: `headwater produce images {path}` sends the images in it")
        if not path.exists():
            raise CaptureFailed(f"{path}: there is no such file")
        self.recording: Recording | None = cache.recording((path.resolve(), look)) if cache else None
        container, stream = self._open()
        with container:
            try:
                first = next(decoded(self._av, container, stream), None)
            except self._av.FFmpegError as error:
                raise CaptureFailed(f"{path}: {reason(error)}") from None
            if first is None:
                raise CaptureFailed(f"{path}: not one frame of its video can be decoded")
            height, width = pixels_of(first).shape[:2]
            self.width, self.height = scaled(width, height, look.width)
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else DEFAULT_FPS
            self.estimate: int | None = stream.frames or (
                round(container.duration / self._av.time_base * self.fps) if container.duration else None
            )

    def pictures(self, *, start_s: float = 0.0, loop: bool = False) -> Iterator[Picture]:
        """The file's pictures in order, from a position in it to its end, or on and on.

        A position beyond the end is counted on from the start. Reaching a position in a file that is not in the cache costs the
        decoding of what lies before it, once, before the first picture.

        Raises
        ------
        CaptureFailed
            If the file cannot be read any longer.
        """
        skip = round(start_s * self.fps)
        while True:
            if self.recording is not None and self.recording.total:
                skip %= self.recording.total
            count = 0
            for picture in self._once(skip):
                count += 1
                yield picture
            if count == 0 and (skip == 0 or not self._total):
                raise CaptureFailed(f"{self.path}: not one frame of its video can be decoded")
            if count == 0:  # the position was beyond the end, and now the end is known
                skip %= self._total
            elif loop:
                skip = 0
            else:
                return

    def preload(self, progress: Progress = lambda done, total: None) -> bool:
        """Encode the whole file into the cache; False if the cache is too small for it."""
        if self.recording is None:
            raise ValueError("preload needs a cache")
        for done, _ in enumerate(self._once(0), 1):
            progress(done, self.estimate)
            if len(self.recording) < done:
                return False
        return self.recording.complete

    def _once(self, skip: int) -> Iterator[Picture]:
        """One pass over the file, from frame number `skip` on."""
        kept = self.recording
        if kept is not None and kept.complete:
            for index in range(skip, kept.total or 0):
                picture = kept.get(index)
                assert picture is not None
                yield picture
            return
        container, stream = self._open()
        index = -1
        with container:
            stream.thread_type = "AUTO"
            try:
                # A cached frame is decoded all the same: a decoder cannot be left behind and catch up without a stall.
                for index, frame in enumerate(decoded(self._av, container, stream)):
                    if index < skip:
                        continue
                    picture = kept.get(index) if kept is not None else None
                    if picture is None:
                        picture = encode(pixels_of(frame), self.look, "RGB")
                        if kept is not None:
                            kept.put(index, picture)
                    yield picture
            except self._av.FFmpegError as error:
                raise CaptureFailed(f"{self.path}: {reason(error)} after frame {index}") from None
        self._total = index + 1
        if kept is not None:
            kept.total = index + 1

    def _open(self) -> tuple[Any, Any]:
        return open_video(self._av, f"file:{self.path}", str(self.path))
