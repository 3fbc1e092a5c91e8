"""Boxes as arrays between a network's output and `Detections`: choosing the strongest, and removing doubles (non-maximum suppression)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.detections import COORDINATE_DIGITS, MAX_DETECTIONS, Detection, Detections

MAX_CANDIDATES = 1000


class Candidates(NamedTuple):
    """Boxes that a network proposes for one picture."""

    boxes: NDArray[np.float32]  # [n, 4]: x0, y0, x1, y1 as shares of the picture, 0 to 1
    scores: NDArray[np.float32]  # [n], 0 to 1
    classes: NDArray[np.intp]  # [n], index of the label

    def take(self, chosen: Any) -> Candidates:
        """Those at the given indexes, or where a mask is true."""
        return Candidates(self.boxes[chosen], self.scores[chosen], self.classes[chosen])


EMPTY = Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.intp))


def united(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several looks at one picture, as one."""
    if len(parts) == 1:
        return parts[0]
    boxes, scores, classes = zip(*parts, strict=True)
    return Candidates(np.concatenate(boxes), np.concatenate(scores), np.concatenate(classes))


def strongest(candidates: Candidates, limit: int = MAX_CANDIDATES) -> Candidates:
    """Sort by score, best first, and keep `limit` at most. Equal scores keep their order, so the answer does not depend on chance."""
    return candidates.take(np.argsort(-candidates.scores, kind="stable")[:limit])


def suppress(candidates: Candidates, iou: float) -> Candidates:
    """Greedy non-maximum suppression within each class: of two boxes that overlap by more than `iou` the weaker one goes. Best first."""
    if len(candidates.scores) < 2:
        return candidates
    candidates = strongest(candidates)
    corners_and_sizes = candidates.boxes.copy()
    corners_and_sizes[:, 2:] -= corners_and_sizes[:, :2]
    # lists: OpenCV's binding reads them twice as fast as arrays
    kept = cv2.dnn.NMSBoxesBatched(corners_and_sizes.tolist(), candidates.scores.tolist(), candidates.classes.tolist(), 0.0, iou)
    return candidates.take(np.asarray(kept, np.intp))


def to_detections(candidates: Candidates, labels: Sequence[str]) -> Detections:
    """As records, best first; boxes without an area (off the picture's edge) and those beyond `MAX_DETECTIONS` are left out."""
    boxes = candidates.boxes
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    best = strongest(candidates.take(solid), MAX_DETECTIONS)
    rows = zip(best.boxes.tolist(), best.scores.tolist(), best.classes.tolist(), strict=True)
    return Detections(Detection(labels[index], min(score, 1.0), *box) for box, score, index in rows)


def rounded(shares: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shares as a record carries them (`Detections`), cut to 0 to 1."""
    steps = 10**COORDINATE_DIGITS
    return np.asarray(np.floor(np.clip(shares.astype(np.float64), 0.0, 1.0) * steps + 0.5) / steps, np.float64)
