"""The DETR layout: queries with logits [1, queries, classes] and boxes [1, queries, 4], centre and size in shares of the input.

DETR has one more class than labels, "no object", last, and its scores are a softmax over all (Carion et al., 2020). RT-DETR and its kin
have no such class and a sigmoid for each (Zhao et al., 2023). The count of classes tells them apart. Queries are trained not to answer
twice, so one look needs no suppression of doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.inference.candidates import EMPTY, Candidates, strongest
from agents.inference.layouts import Misfit, Outputs
from agents.inference.network import Output
from agents.inference.tensors import IMAGENET_RGB, UNIT_RGB, Floats, Pixels, Placement, Prepared, squeeze

NAME = "detr"
EXPECTS = "logits [1, queries, classes (+ 1 for no object)] and boxes [1, queries, 4]"


class Layout(NamedTuple):
    """How the outputs are read."""

    logits: int  # which output
    boxes: int
    no_object: bool  # DETR; else RT-DETR


def fit(outputs: Sequence[Output], side: int, classes: int) -> Layout:
    names = [output.name for output in outputs]
    tables = [index for index, output in enumerate(outputs) if len(output.shape) == 3]
    if "logits" in names and "pred_boxes" in names:  # there may be more outputs, such as hidden states
        logits, boxes = names.index("logits"), names.index("pred_boxes")
    elif len(tables) == 2 and [outputs[index].shape[2] == 4 for index in tables].count(True) == 1:
        boxes = next(index for index in tables if outputs[index].shape[2] == 4)
        logits = next(index for index in tables if index != boxes)
    else:
        raise Misfit(f"outputs are {', '.join(map(str, outputs))}: expected {EXPECTS}")
    found, box_shape = outputs[logits].shape, outputs[boxes].shape
    if len(found) != 3 or box_shape != (found[0], found[1], 4) or found[2] not in (classes, classes + 1):
        raise Misfit(
            f"outputs are {outputs[logits]} and {outputs[boxes]}: expected {EXPECTS}; for {classes} labels the logits' last side is "
            f"{classes} (RT-DETR) or {classes + 1} (DETR)"
        )
    return Layout(logits, boxes, found[2] == classes + 1)


def prepare(pixels: Pixels, side: int, layout: Layout) -> Prepared:
    return squeeze(pixels, side, IMAGENET_RGB if layout.no_object else UNIT_RGB)


def unpack(outputs: Outputs, layout: Layout, placement: Placement, min_score: float) -> Candidates:
    """DETR: the best class of each query. RT-DETR: every class of a query that reaches `min_score`, as in its own post-processing."""
    logits = np.asarray(outputs[layout.logits][0], np.float32)
    if layout.no_object:
        shares = _softmax(logits)[:, :-1]
        classes = shares.argmax(axis=1)
        scores = shares[np.arange(len(shares)), classes]
        queries = np.flatnonzero(scores >= min_score)
        classes, scores = classes[queries], scores[queries]
    else:
        # the comparison is made on the logits, so that only what passes goes through the exponential
        queries, classes = np.nonzero(logits >= np.log(min_score / (1 - min_score)))
        scores = 1 / (1 + np.exp(-logits[queries, classes]))
    if len(queries) == 0:
        return EMPTY
    centre_and_size = np.asarray(outputs[layout.boxes][0, queries], np.float32)
    centre, half = centre_and_size[:, :2], centre_and_size[:, 2:] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    return strongest(Candidates(placement.to_image(boxes), scores, classes))


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return shares
