"""The YOLOv8 layout (v8, v9, v11): one output [1, 4 + classes, anchors], boxes as centre and size in input pixels, scores 0 to 1.

The input is letterboxed, RGB, 0 to 1: so these networks are trained, and a squeezed picture costs them accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.inference.candidates import EMPTY, Candidates, strongest
from agents.inference.layouts import Misfit, Outputs
from agents.inference.network import Output
from agents.inference.tensors import UNIT_RGB, Pixels, Placement, Prepared, letterbox

NAME = "yolov8"
EXPECTS = "one output [1, 4 + classes, anchors]"


class Layout(NamedTuple):
    """How the output is read."""

    side: int


def fit(outputs: Sequence[Output], side: int, classes: int) -> Layout:
    if len(outputs) != 1 or len(outputs[0].shape) != 3 or outputs[0].shape[1] != 4 + classes:
        found = ", ".join(map(str, outputs))
        raise Misfit(f"outputs are {found}: expected {EXPECTS}, that is [1, {4 + classes}, anchors] for {classes} labels")
    return Layout(side)


def prepare(pixels: Pixels, side: int, layout: Layout) -> Prepared:
    return letterbox(pixels, side, UNIT_RGB)


def unpack(outputs: Outputs, layout: Layout, placement: Placement, min_score: float) -> Candidates:
    """One candidate an anchor, of its best class, as in Ultralytics' own prediction."""
    table = outputs[0][0]
    hits = np.flatnonzero(table[4:].max(axis=0) >= min_score)
    if len(hits) == 0:
        return EMPTY
    chosen = table[:, hits]
    classes = chosen[4:].argmax(axis=0)
    centre, half = chosen[:2].T / layout.side, chosen[2:4].T / (2 * layout.side)
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    scores = chosen[4:][classes, np.arange(len(hits))].astype(np.float32)
    return strongest(Candidates(placement.to_image(boxes), scores, classes))
