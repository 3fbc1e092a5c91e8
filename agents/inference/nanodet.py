"""The NanoDet layout: for each stride, class scores [1, cells, classes] and, for each of a box's four sides, a distribution of distances.

A side's distance from the cell's centre is the expectation over its bins, in strides (Li et al., Generalized Focal Loss, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.inference.candidates import EMPTY, MAX_CANDIDATES, Candidates
from agents.inference.layouts import Misfit, Outputs
from agents.inference.network import Output
from agents.inference.tensors import Colours, Floats, Pixels, Placement, Prepared, squeeze

NAME = "nanodet"
EXPECTS = "for each stride, scores [1, cells, classes] and boxes [1, cells, 4 x bins]"
COLOURS = Colours(False, (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))


class Level(NamedTuple):
    """The outputs of one stride."""

    scores: int  # which output
    boxes: int
    centres: NDArray[np.float32]  # [cells, 2], in shares of the input's side
    stride: float  # likewise


class Layout(NamedTuple):
    """How the outputs are read."""

    levels: tuple[Level, ...]
    classes: int


def fit(outputs: Sequence[Output], side: int, classes: int) -> Layout:
    scores: dict[int, int] = {}
    boxes: dict[int, int] = {}
    for index, (name, shape, _) in enumerate(outputs):
        if len(shape) == 3 and shape[2] == classes and shape[1] not in scores and "box" not in name:
            scores[shape[1]] = index
        elif len(shape) == 3 and shape[2] % 4 == 0:
            boxes[shape[1]] = index
    grids = {cells: math.isqrt(cells) for cells in scores}
    square = all(grid > 0 and grid * grid == cells and side % grid == 0 for cells, grid in grids.items())
    if not scores or scores.keys() != boxes.keys() or len(scores) + len(boxes) != len(outputs) or not square:
        found = ", ".join(map(str, outputs))
        raise Misfit(f"outputs are {found}: expected, {EXPECTS} with {classes} classes and (input side / stride)^2 cells")
    return Layout(tuple(_level(scores[cells], boxes[cells], grid) for cells, grid in sorted(grids.items(), reverse=True)), classes)


def _level(scores: int, boxes: int, grid: int) -> Level:
    middle = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    centres = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    return Level(scores, boxes, np.ascontiguousarray(centres), 1 / grid)


def prepare(pixels: Pixels, side: int, layout: Layout) -> Prepared:
    return squeeze(pixels, side, COLOURS)


def unpack(outputs: Outputs, layout: Layout, placement: Placement, min_score: float) -> Candidates:
    """Every class of a cell that reaches `min_score` is a candidate of its own, as in NanoDet's own post-processing."""
    scores, classes, bins, centres, strides = [], [], [], [], []
    for level in layout.levels:
        flat = outputs[level.scores].reshape(-1)
        hits = np.flatnonzero(flat >= min_score)
        if len(hits) > MAX_CANDIDATES:
            hits = hits[np.argsort(-flat[hits], kind="stable")[:MAX_CANDIDATES]]
        if len(hits) == 0:
            continue
        cells, kinds = np.divmod(hits, layout.classes)
        scores.append(flat[hits])
        classes.append(kinds)
        bins.append(outputs[level.boxes][0, cells])
        centres.append(level.centres[cells])
        strides.append(np.full((len(hits), 1), level.stride, np.float32))
    if not scores:
        return EMPTY
    centre = np.concatenate(centres)
    distances = _expectation(np.concatenate(bins)) * np.concatenate(strides)
    boxes = np.concatenate([centre - distances[:, :2], centre + distances[:, 2:]], axis=1)
    return Candidates(placement.to_image(boxes), np.concatenate(scores), np.concatenate(classes))


def _expectation(bins: Floats) -> Floats:
    """[n, 4 x bins] to the mean bin of each side, [n, 4]."""
    sides = bins.reshape(len(bins), 4, -1)
    weights = np.exp(sides - sides.max(axis=2, keepdims=True))
    mean: Floats = weights @ np.arange(sides.shape[2], dtype=np.float32) / weights.sum(axis=2)
    return mean
