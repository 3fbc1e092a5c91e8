"""One picture as it is published: JPEG bytes with their size in pixels, made from pixels by libjpeg-turbo. Nothing is read here."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # height x width x 3

JPEG_START = b"\xff\xd8\xff"
MAX_PIXELS = 64_000_000  # as the detectors' decoder has it
MAX_SIDE = 65_500  # pixels that libjpeg-turbo encodes


class CaptureFailed(OSError):
    """A source that gives no pictures; the message says which (without its secrets), why, and often what to do."""


class Picture(NamedTuple):
    """JPEG bytes, and their width and height in pixels (0 where the bytes do not say)."""

    jpeg: bytes
    width: int
    height: int


class Look(NamedTuple):
    """How pictures are made: scaled to `width` pixels (None: as they are) with their aspect kept, at a JPEG `quality` of 1 to 100."""

    width: int | None = None
    quality: int = 85


def encode(pixels: Pixels, look: Look, colours: Literal["RGB", "BGR"]) -> Picture:
    """Pixels (height x width x 3, uint8) as a picture; raises `CaptureFailed` if it would be larger than a JPEG can be."""
    height, width = pixels.shape[:2]
    to_width, to_height = scaled(width, height, look.width)
    if max(to_width, to_height) > MAX_SIDE:  # before memory is taken for it
        raise CaptureFailed(f"a picture of {to_width} x {to_height} pixels: a JPEG has at most {MAX_SIDE} a side")
    if (to_width, to_height) != (width, height):
        shrinks = to_width < width
        pixels = np.asarray(
            cv2.resize(pixels, (to_width, to_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
        )
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=look.quality, colorspace=colours, colorsubsampling="420")
    return Picture(jpeg, to_width, to_height)


def scaled(width: int, height: int, to_width: int | None) -> tuple[int, int]:
    """Width and height after scaling to a width.

    >>> scaled(768, 576, 320), scaled(768, 576, None)
    ((320, 240), (768, 576))
    """
    if to_width is None:
        return width, height
    return to_width, max(1, round(height * to_width / width))


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height from a JPEG's header; (0, 0) if it cannot be read."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return 0, 0
    return int(width), int(height)


def decode(data: bytes) -> Any | None:
    """BGR pixels of any image that OpenCV reads; None if it reads none, or if it is a JPEG of more than `MAX_PIXELS`."""
    width, height = jpeg_size(data) if data.startswith(JPEG_START) else (0, 0)
    if width * height > MAX_PIXELS:  # OpenCV's own limit, a thousand million, takes 3 GB
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
