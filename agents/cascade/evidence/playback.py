"""Clips read again: their frames as pixels, the same from the same bytes, however often and wherever.

A clip is checked before a decoder sees it (`annexb`): its bytes, its number of frames, their size. Then it is decoded by libavcodec in one
thread, one frame after another, and none is kept: a clip of absurd length costs time, and no memory. Where the decoder has filled in for
what was damaged it marks the frame, and the clip is refused. (Its filling in stays on for that: without it nothing is marked. Of single
bits that were turned over in a clip, nine in ten are noticed so; the digest of the evidence notices all.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from agents.cascade.evidence.annexb import InvalidClip, Outline, outline
from agents.cascade.evidence.clip import pyav
from agents.inference.tensors import Pixels
from schemas.config_cascade import MAX_CLIP_FRAMES, MAX_CLIP_SIDE

MAX_CLIP_BYTES = 4 << 20


def pictures(data: bytes, count: int) -> Iterator[Pixels]:
    """The frames of a clip in order, as BGR pixels. It is decoded once to its end before the first of them is given, so that no answer is
    given to a part of a clip that is damaged further on; that costs a hundredth of what looking at it does.

    Parameters
    ----------
    count
        How many frames there must be: as many as records are asked about.

    Raises
    ------
    InvalidClip
        Before the first picture, for anything else than a whole clip of so many frames.
    clip.NoPyAV
        If clips cannot be read here.
    """
    found = check(data, count)
    for _ in _decoded(found):
        pass
    for frame in _decoded(found):
        planes = frame.to_ndarray()
        yield np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), np.uint8)


def check(data: bytes, count: int) -> Outline:
    """What a clip is, seen from outside; raises `InvalidClip` if it may not be decoded, or does not have `count` frames."""
    if len(data) > MAX_CLIP_BYTES:
        raise InvalidClip(f"a clip of {len(data)} bytes: at most {MAX_CLIP_BYTES} are read")
    if count > MAX_CLIP_FRAMES:
        raise InvalidClip(f"{count} records in one clip: at most {MAX_CLIP_FRAMES}")
    found = outline(data, max_frames=MAX_CLIP_FRAMES, max_side=MAX_CLIP_SIDE)
    if len(found.frames) != count:
        raise InvalidClip(f"a clip of {len(found.frames)} frames for {count} records: expected one for each")
    if found.width % 2 or found.height % 2:
        raise InvalidClip(f"frames of {found.width} x {found.height} pixels: expected even numbers")
    return found


def _decoded(clip: Outline) -> Iterator[Any]:
    av = pyav()
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoder.flags |= av.codec.context.Flags.low_delay
    count = 0
    try:
        for part in (*clip.frames, None):
            for frame in decoder.decode(None if part is None else av.Packet(part)):
                if (frame.width, frame.height, frame.format.name) != (clip.width, clip.height, "yuv420p"):
                    raise InvalidClip(f"frame {count} is {frame.format.name} of {frame.width} x {frame.height}, its header says otherwise")
                if frame.is_corrupt:
                    raise InvalidClip(f"frame {count} is damaged")
                count += 1
                yield frame
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, InvalidClip):
            raise
        raise InvalidClip(f"frame {count} cannot be decoded: {getattr(error, 'strerror', None) or error}") from None
    if count != len(clip.frames):
        raise InvalidClip(f"{count} frames could be decoded of {len(clip.frames)}")
