"""A frame at the size that is sent: decoded no larger than needed, covered where it must be, squeezed as the detectors' own input is."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from agents.cascade.evidence.redaction import Area, cover
from agents.inference.images import decode
from agents.inference.tensors import Pixels


def scaled(jpeg: bytes, side: int, areas: Sequence[Area] = (), *, block: int = 0) -> Pixels:
    """BGR pixels of `side` x `side`; boxes keep their place in shares of the image. A frame that is no larger is not enlarged.

    Parameters
    ----------
    areas
        What is covered, before anything else is made of the pixels.
    block
        For an encoder that takes nothing smaller, and even numbers only: colours of video have half the resolution.

    Raises
    ------
    UndecodableImage
        As the detectors' own decoder does, for what is not a whole JPEG.
    """
    image = decode(jpeg, _least(jpeg, side))
    pixels = cover(image.pixels, areas)
    width, height = min(side, image.width), min(side, image.height)
    if block:
        width, height = max(block, width - width % 2), max(block, height - height % 2)
    return pixels if pixels.shape[:2] == (height, width) else resized(pixels, width, height)


def _least(jpeg: bytes, side: int) -> int:
    """The shorter side to decode to: halved as often as `side` allows. Only halves have fast code in the decoder: 6/8 takes half as long
    again as the whole."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except (ValueError, TypeError, KeyError):
        return side  # decoding says what is wrong
    shorter, halves = min(height, width), 0
    while halves < 3 and -(-shorter >> (halves + 1)) >= side:
        halves += 1
    return max(side, -(-shorter >> halves)) if shorter >= side else side


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """The decoder leaves less than twice the shorter side; only where the other must shrink by more would linear filtering alias."""
    far = pixels.shape[1] > 2 * width or pixels.shape[0] > 2 * height
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if far else cv2.INTER_LINEAR), np.uint8)
