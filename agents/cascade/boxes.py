"""Detections as arrays: what tracks and teaching compute with, frame by frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.detections import MAX_DETECTIONS, Detection, Detections

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FLOOR = 1e-4  # scores are kept this far from 0 and 1, so that their logits are finite


class Boxes(NamedTuple):
    """The detections of one frame, best first."""

    labels: tuple[str, ...]
    scores: Floats  # [n], 0 to 1
    corners: Floats  # [n, 4]: x0, y0, x1, y1 as shares of the picture, 0 to 1

    def take(self, chosen: Ints | NDArray[np.bool_]) -> Boxes:
        """Those at the given indexes, or where a mask is true."""
        indexes = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Boxes(tuple(self.labels[index] for index in indexes), self.scores[indexes], self.corners[indexes])


def boxes_of(detections: Detections) -> Boxes:
    """The detections as arrays, in their order."""
    table = np.asarray([(d.score, d.x0, d.y0, d.x1, d.y1) for d in detections], np.float64).reshape(-1, 5)
    return Boxes(tuple(d.label for d in detections), table[:, 0], table[:, 1:])


def best_of(seen: Boxes | Detections, most: int) -> Boxes:
    """The first of what was seen, as arrays."""
    boxes = seen if isinstance(seen, Boxes) else boxes_of(seen)
    return boxes if len(boxes.labels) <= most else Boxes(boxes.labels[:most], boxes.scores[:most], boxes.corners[:most])


def detections_of(boxes: Boxes, tracks: Ints | None = None) -> Detections:
    """The arrays as records, best first, cut to the picture; boxes without an area and those beyond `MAX_DETECTIONS` are left out.

    Parameters
    ----------
    tracks
        [n], the track of each box; below 0 for none.
    """
    corners = np.clip(boxes.corners, 0.0, 1.0)
    solid = np.flatnonzero((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1]))
    best = solid[np.argsort(-boxes.scores[solid], kind="stable")][:MAX_DETECTIONS]
    numbers = tracks.tolist() if tracks is not None else [-1] * len(boxes.labels)
    return Detections(_detection(boxes.labels[i], float(boxes.scores[i]), corners[i].tolist(), numbers[i]) for i in best)


def _detection(label: str, score: float, box: list[float], track: int) -> Detection:
    x0, y0, x1, y1 = box
    return Detection(label, score, x0, y0, x1, y1, track if track >= 0 else None)


def ious(first: Floats, second: Floats) -> Floats:
    """Intersection over union of each of [n, 4] boxes with each of [m, 4], as [n, m]."""
    shared = _shared(first, second, 0)
    shared *= _shared(first, second, 1)
    total = np.add.outer(areas(first), areas(second))
    total -= shared
    total[total <= 0] = 1.0
    shared /= total
    return shared


def _shared(first: Floats, second: Floats, axis: int) -> Floats:
    """[n, m], how much of an axis each two boxes have in common."""
    length = np.minimum.outer(first[:, axis + 2], second[:, axis + 2])
    length -= np.maximum.outer(first[:, axis], second[:, axis])
    return np.asarray(np.maximum(length, 0.0, out=length), np.float64)


def areas(corners: Floats) -> Floats:
    """[n], of [n, 4] boxes."""
    return np.asarray((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]), np.float64)


def centred(corners: Floats) -> Floats:
    """[n, 4] boxes as centre x, centre y, width, height."""
    low, high = corners[:, :2], corners[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def cornered(centres: Floats) -> Floats:
    """The inverse of `centred`."""
    middle, half = centres[:, :2], centres[:, 2:] / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def logit(scores: Floats) -> Floats:
    """Log odds; scores near 0 and 1 are held at a ten-thousandth from them."""
    held = np.clip(scores, _FLOOR, 1 - _FLOOR)
    return np.asarray(np.log(held / (1 - held)), np.float64)


def sigmoid(values: Floats) -> Floats:
    """The inverse of `logit`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -30, 30))), np.float64)


def greedy(overlap: Floats, least: float) -> Ints:
    """The partner of each row among the columns, or -1: rows choose in their order, the best that is still free at `least` or more.

    With rows best first this is the matching that average precision counts with (Pascal VOC, COCO).
    """
    partner = np.full(len(overlap), -1, np.int64)
    if overlap.size == 0:
        return partner
    free = overlap.copy()
    for row in np.flatnonzero(overlap.max(axis=1) >= least):
        column = int(free[row].argmax())
        if free[row, column] >= least:
            partner[row] = column
            free[:, column] = -1.0
    return partner


def same_label(first: tuple[str, ...], second: tuple[str, ...]) -> NDArray[np.bool_]:
    """Whether each of n labels is each of m, as [n, m]."""
    numbers: dict[str, int] = {}
    one, two = ([numbers.setdefault(label, len(numbers)) for label in labels] for labels in (first, second))
    return np.asarray(np.equal.outer(np.asarray(one, np.int64), np.asarray(two, np.int64)), np.bool_)


def members(values: Ints, among: Ints) -> NDArray[np.bool_]:
    """[n], which values are among others that stand in ascending order. A frame asks this often of few: `numpy.isin` is made for many."""
    if not len(among):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return np.asarray(among[at] == values, np.bool_)
