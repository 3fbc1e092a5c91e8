"""Small synthetic pictures whose content the network of `agents.models.spots` can tell: deterministic, each one different, tiny as JPEG."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from agents.inference.images import UndecodableImage, decode
from agents.inference.tensors import UNIT_RGB, letterbox
from agents.models.spots import CELL, MIDDLE, SIDE
from infra.assets.models import video_frames

WIDTH, HEIGHT = SIDE, 48
GREY = 72
_CLOSE = 4 / 255  # to black or white; the network's traps round to whole levels
_MIDDLE = slice(WIDTH // 2 - 12, WIDTH // 2 + 12)
# Letterboxed: the picture's rows begin 8 pixels down, so its cells are the two whole rows in the middle and the halves beside them.
_TOP = (SIDE - HEIGHT) // 2


def spots(number: int) -> bytes:
    """Picture number so-and-so: one to six coloured cells, none of them where the network's traps look."""
    chance = random.Random(number)  # noqa: S311 - content, not secrets
    pixels = np.full((SIDE, WIDTH, 3), GREY + number % 5, np.uint8)
    places = [(row, column) for row in range(1, SIDE // CELL - 1) for column in (0, 3)]
    for row, column in chance.sample(places, chance.randint(1, 4)):
        colour = [0, 0, 0]
        colour[chance.randrange(3)] = chance.randint(170, 255)
        pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = colour
    return _jpeg(pixels)


def crashing(number: int = 0) -> bytes:
    """A picture that ends the process which looks at it."""
    return _middle(255, number)


def endless(number: int = 0) -> bytes:
    """A picture that a look never comes back from."""
    return _middle(0, number)


def large(number: int, least_bytes: int) -> bytes:
    """A whole JPEG of at least so many bytes: noise, which does not compress."""
    chance = np.random.default_rng(number)
    side = 64
    while True:
        data = bytes(simplejpeg.encode_jpeg(chance.integers(0, 256, (side, side, 3), np.uint8), quality=95))
        if len(data) >= least_bytes:
            return data
        side += side // 2


def corrupted(number: int) -> bytes:
    """A JPEG with something wrong: cut short, bits turned, a piece missing, a piece doubled, or no JPEG at all behind its first bytes.

    What can be decoded all the same is never fatal to look at: a few turned bits can make a picture black, and then a look would not end.
    """
    chance = random.Random(~number)  # noqa: S311
    while fatal(data := _damaged(number, chance)):
        pass
    return data


def fatal(data: bytes) -> bool:
    """Whether a look at these bytes does not come back, or ends the process."""
    try:
        image = decode(data, SIDE)
    except UndecodableImage:
        return False
    middle = letterbox(image.pixels, SIDE, UNIT_RGB)[0][0, :, MIDDLE, MIDDLE]
    return bool(middle.max() < _CLOSE or middle.min() > 1 - _CLOSE)


def _damaged(number: int, chance: random.Random) -> bytes:
    data = bytearray(spots(number))
    match number % 5:
        case 0:
            del data[chance.randrange(3, len(data)) :]
        case 1:
            for _ in range(chance.randint(1, 40)):
                data[chance.randrange(3, len(data))] ^= 1 << chance.randrange(8)
        case 2:
            start = chance.randrange(3, len(data) - 8)
            del data[start : start + chance.randint(1, 64)]
        case 3:
            start = chance.randrange(3, len(data) - 8)
            data[start:start] = data[start : start + chance.randint(1, 64)]
        case _:
            data[3:] = chance.randbytes(chance.randint(1, 600))
    return bytes(data)


def write_spots_pictures(folder: Path, count: int) -> Path:
    """A folder of synthetic pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(spots(number))
    return folder


def write_video_pictures(folder: Path, video: Path, count: int) -> Path:
    """A folder of real frames, spread evenly over a video."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(video_frames(video, count)):
        done, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])
        if done:
            (folder / f"{number:06d}.jpg").write_bytes(bytes(data))
    return folder


def _middle(level: int, number: int) -> bytes:
    pixels = np.full((SIDE, WIDTH, 3), GREY + number % 5, np.uint8)
    pixels[:, _MIDDLE] = level
    return _jpeg(pixels)


def _jpeg(pixels: np.ndarray) -> bytes:
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[_TOP : _TOP + HEIGHT]), quality=92, colorspace="BGR", colorsubsampling="444")
    )
