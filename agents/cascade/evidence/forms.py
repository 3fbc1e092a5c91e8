"""In which form a frame is sent, and how good: a picture of its own or a place in a clip, by what both cost on its source, and the budgets.

The rules, all of them on what was measured on the source itself (before that, on what is usual):

1. A look may cost as many bytes as the byte budget gives for each look that the region affords: bytes a second / looks a second.
2. A picture has the best quality of `QUALITIES` whose size, as measured on that source, is within that; else the lowest. A clip likewise,
   of `RATES`, by its size for each frame. Better ones are not worth their bytes: facts say that a detector sees no more in them.
3. `auto`: a frame goes into a clip if, of as many frames as were asked about within the last `clip_s`, a clip takes at most `HALF` of the
   bytes of pictures, and `clip_s` is at most `HALF` of the time that an answer is waited for. Otherwise it goes at once.

A clip of n frames takes `first + (n - 1) x later`. What is learned of a form that is not used fades to what is usual, so that a scene that
was restless once is tried again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from schemas.config import Evidence

QUALITIES = (20, 30, 40, 50)
RATES = (33, 30, 28)  # x264's rate factor, the coarsest first
HALF = 0.5
STREAMS = 1000  # that are remembered; those not heard of for longest are forgotten
_GAIN = 0.1  # of a new measurement in what is known
_FADE = 0.01  # of what is usual, with each look in the other form
_USUAL_BYTES = 24_000.0  # of a picture of 512 x 512 at quality 40
# Sizes in shares of a picture at quality 40: pictures; the first frame of a clip at rate factor 28, and a later one of a restless scene.
_PICTURE = {20: 0.64, 30: 0.83, 40: 1.0, 50: 1.16}
_FIRST, _LATER = 1.07, 0.25


class Form(NamedTuple):
    """How a frame is sent: in a clip or by itself, at which rate factor or quality, and about how many bytes it takes."""

    clip: bool
    setting: int
    size: float


class _Stream:
    """What is known of the frames of one source."""

    __slots__ = ("asked", "first", "later", "measured", "pictures", "scale")

    def __init__(self, asked: int) -> None:
        self.scale, self.measured = _USUAL_BYTES, False  # bytes of a picture at quality 40
        self.pictures: dict[int, float] = {}  # bytes by quality
        self.first, self.later = _FIRST, _LATER  # at rate factor 28, in shares of `scale`
        self.asked: deque[float] = deque(maxlen=asked)

    def learn_scale(self, scale: float) -> None:
        self.scale = self.scale + _GAIN * (scale - self.scale) if self.measured else scale
        self.measured = True


class Forms:
    """Chooses the form of each look.

    Parameters
    ----------
    deadline_ms
        How long an answer is waited for.
    clips
        Whether clips can be made here at all.
    """

    def __init__(self, settings: Evidence, *, deadline_ms: int, clips: bool) -> None:
        self.settings = settings
        self.may_clip = clips and settings.form != "frame"
        self.in_time = settings.clip_s * 1000 <= HALF * deadline_ms
        self._streams: OrderedDict[Hashable, _Stream] = OrderedDict()

    def choose(self, key: Hashable, now_s: float, look_bytes: float, *, at_once: bool = False) -> Form:
        """The form of a look that is asked for now. `look_bytes`: what the budgets allow it to cost. `at_once`: it may not wait."""
        stream = self._of(key)
        stream.asked.append(now_s)
        picture = self._picture(stream, look_bytes)
        if at_once or not self.may_clip:
            return picture
        while stream.asked[0] <= now_s - self.settings.clip_s:
            stream.asked.popleft()
        clip = self._clip(stream, len(stream.asked), look_bytes)
        wanted = self.settings.form == "clip" or (self.in_time and clip.size <= HALF * picture.size)
        return clip if wanted else picture

    def sent_picture(self, key: Hashable, quality: int, size: int) -> None:
        """Learn from a picture that was made."""
        stream = self._of(key)
        stream.learn_scale(size / _share(quality))
        known = stream.pictures.get(quality, float(size))
        stream.pictures[quality] = known + _GAIN * (size - known)
        stream.first += _FADE * (_FIRST - stream.first)
        stream.later += _FADE * (_LATER - stream.later)

    def sent_clip(self, key: Hashable, crf: int, sizes: Sequence[int]) -> None:
        """Learn from a clip that was made, from the sizes of its frames."""
        stream = self._of(key)
        if not stream.measured:
            stream.learn_scale(sizes[0] / (_FIRST * _coarseness(crf)))
        unit = stream.scale * _coarseness(crf)
        stream.first += _GAIN * (sizes[0] / unit - stream.first)
        for size in sizes[1:]:
            stream.later += _GAIN / 2 * (size / unit - stream.later)

    def _picture(self, stream: _Stream, look_bytes: float) -> Form:
        def size(quality: int) -> float:
            return stream.pictures.get(quality, stream.scale * _share(quality))

        chosen = self.settings.quality or next((each for each in reversed(QUALITIES) if size(each) <= look_bytes), QUALITIES[0])
        return Form(False, chosen, size(chosen))

    def _clip(self, stream: _Stream, frames: int, look_bytes: float) -> Form:
        mean = stream.scale * (stream.first + (frames - 1) * stream.later) / frames
        fitting = (each for each in reversed(RATES) if mean * _coarseness(each) <= look_bytes)
        chosen = self.settings.crf or next(fitting, RATES[0])
        return Form(True, chosen, mean * _coarseness(chosen))

    def _of(self, key: Hashable) -> _Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(self.settings.clip_frames)
            if len(self._streams) > STREAMS:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(key)
        return stream


def _share(quality: int) -> float:
    """The size of a picture in shares of that at quality 40."""
    return float(np.interp(quality, list(_PICTURE), list(_PICTURE.values())))


def _coarseness(crf: int) -> float:
    """The size of a clip's frame in shares of that at rate factor 28: 6 more halve it."""
    return float(2.0 ** ((28 - crf) / 6))
