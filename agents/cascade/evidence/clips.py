"""The clips that are being made: at most one of a stream at a time, each ended by its number of frames, by time or by its stream's
silence, whichever is first.

A stream is silent when nothing has come for four of the pauses that it usually makes. Then nothing is gained by waiting on; and where a
record is worked on with nothing else in work, since it is suspected of having ended the process, it must not wait for frames that cannot
come.

Each frame is encoded as it comes, in one thread, in the order in which it was asked about. Who brought the first frame of a clip waits
for its end and gets the clip to write it; the others are told at once that their frame is in. That keeps the delivery protocol without
holding anything up: the record of a clip's first frame is open until the clip is written, and since only a contiguous prefix of a
partition is committed, nothing of that clip is, though its other records are finished. A process that dies with an open clip finds all of
its frames again. So an open clip costs one batch in flight, and not one for each frame.

If the first one's work is broken off (its batch failed for another reason, and is tried again), the clip goes on: the same record takes it
up again when it comes back, or else the next frame that goes into it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from typing import Generic, NamedTuple, TypeVar

from agents.cascade.evidence.clip import ClipEncoder
from agents.inference.images import UndecodableImage
from agents.inference.tensors import Pixels
from schemas.config import Evidence

log = logging.getLogger("headwater.evidence")

FULL_BYTES = 2 << 20  # a clip ends with the frame that takes it beyond; topics take twice as much
SILENT_S = 0.5  # at least; also where a stream's pauses are not known yet
PAUSES = 4
STREAMS = 1000  # whose pauses are remembered
KEPT = 64  # clips that nobody has taken up; the oldest go

T = TypeVar("T")


class Made(NamedTuple, Generic[T]):
    """A clip: its bytes, what came with each of its frames, the size of each in bytes, and the rate factor of all."""

    data: bytes
    items: tuple[T, ...]
    sizes: tuple[int, ...]
    crf: int


class _Clip(Generic[T]):
    """One clip in the making. `taken` and what is about its end belong to the event loop, the rest to the encoding thread."""

    def __init__(self, key: Hashable, crf: int, loop: asyncio.AbstractEventLoop) -> None:
        self.key, self.crf = key, crf
        self.taken, self.last = 0, -1
        self.begun_s = loop.time()
        self.writer: str | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False
        self.made: asyncio.Future[Made[T]] = loop.create_future()
        self.items: dict[str, tuple[T, int]] = {}  # what came with a frame and its size, by record
        self.told: set[str] = set()  # records of which somebody was told the size
        self._encoder: ClipEncoder | None = None

    def encode(self, record: str, item: T, load: Callable[[], Pixels]) -> int | None:
        """Take in a frame; its size in bytes, or None if there is no room for it, or its pixels do not fit to those before it."""
        if record in self.items:  # its work was broken off while it was encoded
            return self.items[record][1]
        if self.size >= FULL_BYTES:
            return None
        pixels = load()
        height, width = pixels.shape[:2]
        if self._encoder is None:
            self._encoder = ClipEncoder(width, height, self.crf)
        if (width, height) != (self._encoder.width, self._encoder.height):
            return None
        size = self._encoder.add(pixels)
        self.items[record] = (item, size)
        return size

    def finish(self) -> Made[T]:
        encoder, self._encoder = self._encoder, None
        items, sizes = zip(*self.items.values(), strict=True) if self.items else ((), ())
        return Made(encoder.finish() if encoder is not None else b"", items, sizes, self.crf)

    @property
    def size(self) -> int:
        return sum(size for _, size in list(self.items.values()))


class _Pauses:
    """How long streams are silent between two of their frames."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[float, float | None]] = OrderedDict()  # when the last one came, and the mean pause

    def silence_s(self, key: Hashable, now_s: float) -> float:
        """A frame has come: after how long without another one the stream is silent."""
        last_s, mean_s = self._known.pop(key, (None, None))
        if last_s is not None:
            pause_s = min(60.0, max(0.0, now_s - last_s))
            mean_s = pause_s if mean_s is None else mean_s + 0.2 * (pause_s - mean_s)
        self._known[key] = (now_s, mean_s)
        if len(self._known) > STREAMS:
            self._known.popitem(last=False)
        return max(SILENT_S, PAUSES * (mean_s or 0.0))


class Clips(Generic[T]):
    """The clips of one process. Its methods are called on the event loop.

    Parameters
    ----------
    pool
        One thread, in which frames are decoded and encoded.
    """

    def __init__(self, settings: Evidence, pool: Executor) -> None:
        self.settings, self._pool = settings, pool
        self._open: dict[Hashable, _Clip[T]] = {}  # the oldest first
        self._pauses = _Pauses()
        self._unwritten: dict[int, _Clip[T]] = {}

    def __len__(self) -> int:
        """Clips that take frames."""
        return len(self._open)

    def open(self, key: Hashable) -> bool:
        """Whether a clip of a stream takes frames."""
        return key in self._open

    def holds(self, record: str) -> bool:
        """Whether a frame is in a clip that nobody has written yet."""
        return any(record in clip.told for clip in self._unwritten.values())

    async def add(
        self,
        key: Hashable,
        record: str,
        sequence: int,
        item: T,
        load: Callable[[], Pixels],
        crf: int,
        encoded: Callable[[int], None] = lambda size: None,
    ) -> Made[T] | None:
        """Put a frame into its stream's clip, or into a new one.

        Parameters
        ----------
        key
            The stream: frames of one clip are of one.
        record, sequence
            The frame's id and its number in the stream. One that is in a clip which nobody has written yet is not put into another; one
            that is not newer than the last in the clip begins a new one, since the first of a clip holds back the commits of all others.
        load
            Gives the frame's pixels, in the encoding thread.
        encoded
            Called with the size of the encoded frame; 0 if it was in before.

        Returns
        -------
        The clip, once it has ended, if the caller is to write it; None if somebody else is, or has.

        Raises
        ------
        UndecodableImage
            What `load` raises; the clip goes on without the frame.
        """
        clip = next((each for each in self._unwritten.values() if record in each.told), None)
        if clip is not None:
            encoded(0)
        while clip is None:
            place = self._place(key, sequence, crf)
            job = asyncio.get_running_loop().run_in_executor(self._pool, place.encode, record, item, load)
            if place.taken >= self.settings.clip_frames:
                self._end(place)  # behind the frame: the thread works in order
            try:
                size = await job
            except (UndecodableImage, asyncio.CancelledError):
                raise
            except Exception:
                self._end(place)  # the next frame gets another encoder
                raise
            if size is None:
                self._end(place)
                continue
            clip = place
            clip.told.add(record)
            encoded(size)
            if clip.size >= FULL_BYTES:
                self._end(clip)
        return await self._written(record, clip)

    async def _written(self, record: str, clip: _Clip[T]) -> Made[T] | None:
        if clip.writer is not None:
            return None
        clip.writer = record
        try:
            made = await asyncio.shield(clip.made)
        except asyncio.CancelledError:
            clip.writer = None
            raise
        except Exception:
            self._unwritten.pop(id(clip), None)
            raise
        self._unwritten.pop(id(clip), None)
        return made

    def close(self) -> None:
        """Let go of what is open, when nobody waits for it any more."""
        self._open.clear()
        self._unwritten.clear()

    def _place(self, key: Hashable, sequence: int, crf: int) -> _Clip[T]:
        """A place in the stream's clip."""
        loop = asyncio.get_running_loop()
        clip = self._open.get(key)
        if clip is not None and sequence <= clip.last:
            self._end(clip)
            clip = None
        if clip is None:
            while len(self._open) >= self.settings.open_clips:
                self._end(next(iter(self._open.values())))
            clip = self._open[key] = _Clip(key, crf, loop)
            self._unwritten[id(clip)] = clip
            self._forget()
        clip.taken, clip.last = clip.taken + 1, sequence
        if clip.timer is not None:
            clip.timer.cancel()
        until_s = min(clip.begun_s + self.settings.clip_s, loop.time() + self._pauses.silence_s(key, loop.time()))
        clip.timer = loop.call_at(until_s, self._end, clip)
        return clip

    def _forget(self) -> None:
        for number, clip in list(self._unwritten.items()):
            if len(self._unwritten) <= KEPT:
                break
            if clip.ended and clip.writer is None:
                log.warning("a clip was not written: its frames stay unanswered", extra={"records": len(clip.items)})
                del self._unwritten[number]

    def _end(self, clip: _Clip[T]) -> None:
        """No frame more; the clip is there when what was taken is encoded."""
        if clip.ended:
            return
        clip.ended = True
        if clip.timer is not None:
            clip.timer.cancel()
        if self._open.get(clip.key) is clip:
            del self._open[clip.key]

        def tell(job: asyncio.Future[Made[T]]) -> None:
            if clip.made.done():
                return
            if job.cancelled():
                clip.made.cancel()
            elif (error := job.exception()) is not None:
                clip.made.set_exception(error)
                clip.made.exception()  # nobody may be waiting
            else:
                clip.made.set_result(job.result())
                if not clip.items:
                    self._unwritten.pop(id(clip), None)

        asyncio.get_running_loop().run_in_executor(self._pool, clip.finish).add_done_callback(tell)
