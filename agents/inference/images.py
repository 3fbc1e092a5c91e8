"""JPEG bytes to pixels, no larger than the model needs. What a model makes of pixels does not live here."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

MAX_PIXELS = 64_000_000

# Frames are worked on by several threads at a time; OpenCV's own pool on top of them only costs.
cv2.setNumThreads(1)


class UndecodableImage(ValueError):
    """Bytes that are not a whole JPEG of a size that may be decoded. A record that carries them will never succeed."""


class Image(NamedTuple):
    """A decoded image."""

    pixels: NDArray[np.uint8]  # [height, width, 3], BGR, perhaps reduced
    width: int  # of the image as it was encoded
    height: int


def decode(jpeg: bytes, min_side: int) -> Image:
    """Decode at the smallest of libjpeg's scales (eighths) whose sides are both at least `min_side`, else at full size.

    Scaling in the decoder costs less than full size does and averages, so that nothing aliases. Recoverable errors of the decoder count as
    errors: it would fill the missing part of a truncated picture with grey, and the detector would report on that.

    Raises
    ------
    UndecodableImage
        If it is not a JPEG, is truncated or damaged, or has more than `MAX_PIXELS` pixels.
    """
    if not jpeg.startswith(b"\xff\xd8"):
        raise UndecodableImage(f"not a JPEG: {len(jpeg)} bytes that begin with {bytes(jpeg[:4]).hex(' ') or 'nothing'} (expected ff d8)")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if height * width > MAX_PIXELS:
            raise UndecodableImage(f"{width} x {height} pixels: at most {MAX_PIXELS // 1_000_000} million are decoded")
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(jpeg, "BGR", min_height=min_side, min_width=min_side)
    except UndecodableImage:
        raise
    except ValueError as error:
        raise UndecodableImage(f"a damaged or truncated JPEG of {len(jpeg)} bytes: {error}") from None
    return Image(pixels, width, height)
