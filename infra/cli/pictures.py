"""The picture of an alert: its boxes and zone drawn on it, and the picture itself drawn in a terminal with half-block characters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rich.color import Color
from rich.style import Style
from rich.text import Text

from infra.cli.common import CommandFailed
from schemas.detections import Detection
from schemas.rules import Zone

Image = NDArray[np.uint8]  # height, width, 3: blue, green, red

MAX_PIXELS = 100_000_000
LEAF_COLOUR, HIGHER_COLOUR, ZONE_COLOUR = (0, 200, 255), (80, 220, 80), (255, 160, 60)  # blue, green, red


def decoded(jpeg: bytes) -> Image:
    """A JPEG as pixels; raises `CommandFailed` for what is not one, or is too large."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
        if height * width > MAX_PIXELS:
            raise CommandFailed(f"the picture has {width}x{height} pixels: at most {MAX_PIXELS} are decoded")
        pixels: Image = simplejpeg.decode_jpeg(jpeg, colorspace="BGR", strict=False)
    except (ValueError, KeyError) as error:  # KeyError: a header without a colour space
        raise CommandFailed(f"the picture cannot be decoded: {error}") from None
    return pixels


def annotated(image: Image, boxes: Iterable[tuple[Detection, tuple[int, int, int]]], zone: Zone) -> Image:
    """A copy with boxes (each with its colour) and the rule's zone."""
    drawn = image.copy()
    height, width = drawn.shape[:2]
    thick = max(1, round(max(height, width) / 400))
    if zone.points:
        outline = np.array([(round(x * (width - 1)), round(y * (height - 1))) for x, y in zone.points], dtype=np.int32)
        cv2.polylines(drawn, [outline], True, ZONE_COLOUR, thick, cv2.LINE_AA)
    for box, colour in boxes:
        left, top = round(box.x0 * (width - 1)), round(box.y0 * (height - 1))
        right, bottom = round(box.x1 * (width - 1)), round(box.y1 * (height - 1))
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick)
        size = max(0.4, max(height, width) / 1600)
        words = f"{box.label} {box.score:.2f}".encode("ascii", "replace").decode()  # the fonts of OpenCV hold nothing else
        below = colour == HIGHER_COLOUR  # so that the words on two boxes of one object do not cover each other
        place = (left, min(height - 4, bottom + round(30 * size))) if below else (left, max(12, top - 4))
        cv2.putText(drawn, words, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)
    return drawn


def save(image: Image, path: str) -> None:
    """Write a picture in the format that its name ends in; raises `CommandFailed`."""
    suffix = Path(path).suffix.lower() or ".jpg"
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise CommandFailed(f"{path}: pictures can be written as .jpg, .png or .webp, not as {suffix}")
    try:
        Path(path).write_bytes(data.tobytes())
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from None


def half_blocks(image: Image, columns: int, rows: int) -> Text:
    """A picture as lines of upper half blocks, two pixels a character, that fit into some columns and rows."""
    height, width = image.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    across, down = max(1, round(width * scale)), max(2, round(height * scale) // 2 * 2)
    small = cv2.resize(image, (across, down), interpolation=cv2.INTER_AREA)
    text = Text(no_wrap=True, end="")
    for row in range(0, down, 2):
        for upper, lower in zip(small[row], small[row + 1], strict=True):
            text.append("▀", Style(color=_colour(upper), bgcolor=_colour(lower)))
        text.append("\n")
    return text


def _colour(pixel: NDArray[np.uint8]) -> Color:
    blue, green, red = (int(part) for part in pixel)
    return Color.from_rgb(red, green, blue)
