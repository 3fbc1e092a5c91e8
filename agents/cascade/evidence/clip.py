"""A clip: frames of one source as H.264 that can be decoded alone.

It is a raw byte stream (Annex B) and no MP4. The question beside it says what a container would: which frame is whose, and when it was
taken; a container of one second's frames costs a kilobyte, as much as a frame of a quiet scene; and a region would need a parser for it,
for bytes from elsewhere. Any player of H.264 plays it all the same.

Each clip has an encoder of its own, opened for its first frame (half a millisecond) and gone with its last: so a clip begins with a whole
picture and depends on nothing before it, and a source that is silent or moves away leaves nothing open.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2

from agents.cascade.evidence.annexb import without_remarks
from agents.inference.tensors import Pixels
from schemas.errors import Fault

LEAST_SIDE = 16  # pixels: a block
# Of `veryfast` what costs time and saves next to nothing at these sizes is left out: motion of quarter pictures in parts of 8 x 8 (a fifth
# of the time for a twentieth of the bytes), and weights for fades.
_OPTIONS = {"preset": "veryfast", "tune": "zerolatency", "x264-params": "partitions=i4x4,i8x8:weightp=0:sliced-threads=0:log=none"}
_NEVER = 10_000  # frames between whole pictures: only the first is one
_RATE = 10  # frames a second, as far as the encoder knows; true times are in the question


class NoPyAV(Fault, RuntimeError):
    """Clips were asked for and cannot be made or read; the message says what to install."""


def pyav() -> Any:
    """The PyAV module; raises `NoPyAV`."""
    try:
        import av
    except ImportError as error:
        raise NoPyAV(
            f"clips need PyAV, which is not usable here ({error}): install it with `pip install 'headwater[camera]'`, "
            "or set evidence.form = 'frame' at the leaf"
        ) from None
    if "libx264" not in av.codecs_available:
        raise NoPyAV("clips need libx264, which this PyAV was built without: install PyAV's own wheel, or set evidence.form = 'frame'")
    return av


class ClipEncoder:
    """Makes one clip. Not for several threads at a time.

    Parameters
    ----------
    width, height
        Of its frames in pixels, both even and at least `LEAST_SIDE`.
    crf
        x264's rate factor: 6 less doubles the bytes.
    """

    def __init__(self, width: int, height: int, crf: int) -> None:
        self._av = pyav()
        self.width, self.height, self.crf = width, height, crf
        self._parts: list[bytes] = []
        encoder = self._av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, _RATE), Fraction(_RATE)
        encoder.thread_count, encoder.gop_size = 1, _NEVER
        encoder.options = {**_OPTIONS, "crf": str(crf)}
        self._encoder: Any = encoder

    def __len__(self) -> int:
        """Frames in it so far."""
        return len(self._parts)

    def add(self, pixels: Pixels) -> int:
        """Take in the next frame (BGR, of the clip's size); returns how many bytes it takes."""
        if pixels.shape != (self.height, self.width, 3):
            raise ValueError(f"a frame of {pixels.shape[1]} x {pixels.shape[0]} in a clip of {self.width} x {self.height}")
        planes = cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420)
        frame = self._av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts = len(self._parts)
        packets = b"".join(map(bytes, self._encoder.encode(frame)))  # without look-ahead each frame comes out at once
        part = packets if self._parts else without_remarks(packets)
        self._parts.append(part)
        return len(part)

    def finish(self) -> bytes:
        """The whole clip; the encoder is gone after it."""
        self._parts += map(bytes, self._encoder.encode(None))
        self._encoder = None
        return b"".join(self._parts)
