"""A plain classifier: one output [1, classes]. Its answer is one detection that covers the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.inference.candidates import EMPTY, Candidates
from agents.inference.layouts import Misfit, Outputs
from agents.inference.network import Output
from agents.inference.tensors import IMAGENET_RGB, Pixels, Placement, Prepared, squeeze

NAME = "classifier"
EXPECTS = "one output [1, classes]"


class Layout(NamedTuple):
    """How the output is read."""

    logits: bool  # else the network's last operator has made scores of them


def fit(outputs: Sequence[Output], side: int, classes: int) -> Layout:
    shape = outputs[0].shape if len(outputs) == 1 else ()
    if len(shape) < 2 or shape[1] != classes or any(length != 1 for length in shape[2:]):
        raise Misfit(f"outputs are {', '.join(map(str, outputs))}: expected {EXPECTS}, with {classes} classes, one a label")
    return Layout(logits=outputs[0].operator not in ("Softmax", "Sigmoid"))


def prepare(pixels: Pixels, side: int, layout: Layout) -> Prepared:
    return squeeze(pixels, side, IMAGENET_RGB)


def unpack(outputs: Outputs, layout: Layout, placement: Placement, min_score: float) -> Candidates:
    """The best class, if it reaches `min_score`. Logits go through a softmax."""
    values = outputs[0].reshape(-1).astype(np.float64)
    if layout.logits:
        values = np.exp(values - values.max())
        values /= values.sum()
    best = int(values.argmax())
    if not values[best] >= min_score:
        return EMPTY
    return Candidates(np.array([[0, 0, 1, 1]], np.float32), values[[best]].astype(np.float32), np.array([best]))
