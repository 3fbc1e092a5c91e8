"""Pixels to the tensor that a network takes, and where the picture lies in it. Shared by the detector families."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Placement(NamedTuple):
    """Where the picture lies in a square input, in shares of the input's side (0 to 1)."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0

    def to_image(self, boxes: Floats) -> Floats:
        """Boxes `x0, y0, x1, y1` [n, 4] in shares of the input, as shares of the picture, cut off at its edges."""
        if self == _WHOLE:
            return _clipped(boxes)
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        size = np.array([self.width, self.height, self.width, self.height], np.float32)
        return _clipped((boxes - offset) / size)


_WHOLE = Placement()


def _clipped(boxes: Floats) -> Floats:
    inside: Floats = np.clip(boxes, 0.0, 1.0)
    return inside


class Prepared(NamedTuple):
    """The tensor [1, 3, side, side] float32, and where the picture lies in it."""

    tensor: Floats
    placement: Placement


class Colours(NamedTuple):
    """How a network wants its colours: channel order, then (value - mean) / std."""

    rgb: bool
    mean: tuple[float, float, float]  # in the network's channel order, of values 0 to 255
    std: tuple[float, float, float]


UNIT_RGB = Colours(True, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
IMAGENET_RGB = Colours(True, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def squeeze(pixels: Pixels, side: int, colours: Colours) -> Prepared:
    """Resize to the square, whatever the picture's shape."""
    square: Any = cv2.resize(pixels, (side, side))
    return Prepared(_planes(square, colours), _WHOLE)


def letterbox(pixels: Pixels, side: int, colours: Colours, fill: int = 114) -> Prepared:
    """Resize with the picture's shape kept, in the middle of a grey square (as Ultralytics' networks are trained)."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side - inner_width) // 2, (side - inner_height) // 2
    canvas = np.full((side, side, 3), fill, np.uint8)
    cv2.resize(pixels, (inner_width, inner_height), dst=canvas[top : top + inner_height, left : left + inner_width])
    return Prepared(_planes(canvas, colours), Placement(left / side, top / side, inner_width / side, inner_height / side))


def _planes(pixels: Pixels, colours: Colours) -> Floats:
    """BGR [side, side, 3] to normalised planes [1, 3, side, side]; one plane at a time, because it then stays in the cache."""
    side = pixels.shape[0]
    tensor = np.empty((1, 3, side, side), np.float32)
    planes = cv2.split(pixels)
    for index, plane in enumerate(reversed(planes) if colours.rgb else planes):
        mean, std = colours.mean[index], colours.std[index]
        np.multiply(plane, np.float32(1 / std), out=tensor[0, index])
        if mean:
            tensor[0, index] -= np.float32(mean / std)
    return tensor
