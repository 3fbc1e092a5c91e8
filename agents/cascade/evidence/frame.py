"""A frame as a JPEG: small, as evidence, or at its full size with some of it covered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg

from agents.cascade.evidence.pixels import scaled
from agents.cascade.evidence.redaction import Area, cover
from agents.inference.images import decode
from agents.inference.tensors import Pixels

PICTURE_QUALITY = 90  # of what is encoded anew at full size
_ANY_SIDE = 1 << 20  # larger than any picture: no scaling


def encode_frame(jpeg: bytes, *, side: int, quality: int, areas: Sequence[Area] = ()) -> bytes:
    """A frame as a JPEG of `side` x `side` pixels, with some areas covered; `pixels.scaled` says how it is made and what it raises."""
    return encode_pixels(scaled(jpeg, side, areas), quality)


def redacted(jpeg: bytes, areas: Sequence[Area]) -> bytes:
    """A picture of the same size with some areas covered; its own bytes where there are none. Raises `UndecodableImage`."""
    return encode_pixels(cover(decode(jpeg, _ANY_SIDE).pixels, areas), PICTURE_QUALITY) if areas else jpeg


def encode_pixels(pixels: Pixels, quality: int) -> bytes:
    """BGR pixels as a JPEG, its colours at half the resolution."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="BGR", colorsubsampling="420", fastdct=True
    )
    return encoded
