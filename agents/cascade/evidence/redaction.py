"""What never leaves a leaf: zones, and objects of some classes, covered in the pixels of every picture before it is encoded.

Objects are found by the leaf's own detector: all that it sees with a score far below the one that it reports (`Redact.min_score`), in boxes
that are enlarged (`Redact.margin`), since a box too many costs little and a person too few may not happen. Still, what the detector does
not see at all stays visible: where nothing may show, cover the zone. A frame that no model has looked at is not sent where a class is to
be covered.

A blur leaves patches of an eighth of the area's longer side, and of at least four pixels: nothing finer is in the picture any more, so
nothing can bring it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agents.inference.detector import Watch
from agents.inference.tensors import Pixels
from schemas.config import Redact
from schemas.detections import Detection
from schemas.rules import Point

PATCHES = 8  # along the longer side of what is blurred
LEAST_PATCH = 4  # pixels
_GRID = 256  # cells a side, for whether a box touches a zone

Box = tuple[float, float, float, float]


class NotLookedAt(ValueError):
    """A frame in which a class is to be covered, and that no model has looked at: it must not leave."""


class Area(NamedTuple):
    """A part of a picture that is covered, in shares of its width and height: a box or a polygon."""

    how: Literal["blur", "mask"]
    box: Box
    zone: tuple[Point, ...] = ()


class Redaction:
    """What a site's file wants covered."""

    def __init__(self, rules: Sequence[Redact]) -> None:
        self._rules = [(rule, _cells(rule.zone)) for rule in rules]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def needs_look(self, source: str) -> bool:
        """Whether only a look at the frame tells what is to be covered."""
        return any(rule.label for rule, _ in self._of(source))

    def areas(self, source: str, spotted: Sequence[Detection] | None) -> tuple[Area, ...]:
        """What is covered in a frame.

        Parameters
        ----------
        spotted
            What the look saw of the classes in `watch_of`, faint ones included; None: nobody has looked.

        Raises
        ------
        NotLookedAt
            If nobody has looked, and a class is to be covered.
        """
        found = []
        for rule, cells in self._of(source):
            if not rule.label:
                found.append(Area(rule.how, _around(rule.zone), rule.zone))
                continue
            if spotted is None:
                raise NotLookedAt(f"{rule.label!r} is covered in pictures of {source}, and no model has looked at this one")
            for each in spotted:
                if each.label == rule.label and each.score >= rule.min_score:
                    box = _enlarged(each, rule.margin)
                    if _touches(box, cells):
                        found.append(Area(rule.how, box))
        return tuple(found)

    def _of(self, source: str) -> Iterable[tuple[Redact, NDArray[np.bool_] | None]]:
        return ((rule, cells) for rule, cells in self._rules if not rule.sources or source in rule.sources)


def watch_of(rules: Sequence[Redact]) -> Watch | None:
    """What detectors have to tell of beyond what they report; None if nothing."""
    labels = frozenset(rule.label for rule in rules if rule.label)
    return Watch(labels, min(rule.min_score for rule in rules if rule.label)) if labels else None


def cover(pixels: Pixels, areas: Sequence[Area]) -> Pixels:
    """The pixels with some areas covered, in place."""
    height, width = pixels.shape[:2]
    for how, (x0, y0, x1, y1), zone in areas:
        left, top = max(0, math.floor(x0 * width)), max(0, math.floor(y0 * height))
        right, bottom = min(width, math.ceil(x1 * width) + 1), min(height, math.ceil(y1 * height) + 1)
        part = pixels[top:bottom, left:right]
        if not part.size:
            continue
        covering = np.zeros_like(part) if how == "mask" else _coarse(part)
        if zone:
            inside = _polygon(zone, width, height)[top:bottom, left:right]
            part[inside] = covering[inside]
        else:
            part[:] = covering
    return pixels


def _coarse(part: Pixels) -> Pixels:
    height, width = part.shape[:2]
    patch = max(LEAST_PATCH, max(height, width) / PATCHES)
    small = cv2.resize(part, (max(1, round(width / patch)), max(1, round(height / patch))), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _polygon(zone: Sequence[Point], width: int, height: int) -> NDArray[np.bool_]:
    """Where a polygon lies, its border and a pixel around it included."""
    points = np.round(np.array(zone) * (width, height)).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points], 1)
    cv2.polylines(mask, [points], True, 1, thickness=3)
    return mask.astype(bool)


def _cells(zone: Sequence[Point]) -> NDArray[np.bool_] | None:
    return _polygon(zone, _GRID, _GRID) if zone else None


def _touches(box: Box, cells: NDArray[np.bool_] | None) -> bool:
    if cells is None:
        return True
    x0, y0, x1, y1 = (int(share * _GRID) for share in box)
    return bool(cells[y0 : y1 + 1, x0 : x1 + 1].any())


def _around(zone: Sequence[Point]) -> Box:
    xs, ys = zip(*zone, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _enlarged(seen: Detection, margin: float) -> Box:
    wide, high = margin * (seen.x1 - seen.x0), margin * (seen.y1 - seen.y0)
    return max(0.0, seen.x0 - wide), max(0.0, seen.y0 - high), min(1.0, seen.x1 + wide), min(1.0, seen.y1 + high)
