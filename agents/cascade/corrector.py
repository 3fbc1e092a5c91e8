"""A small model of one stream that a higher tier's verdicts teach: how likely each box of the leaf is right, and where it really lies.

The score is a logistic regression that begins as the identity and is learned by an online Newton step with forgetting (Hazan et al., 2007;
the recursion of the extended Kalman filter for a Bernoulli outcome). The box is a ridge regression of its four offsets, learned by
recursive least squares. Both are a few kilobytes, whatever a stream has seen.
"""

from __future__ import annotations

from typing import Self

import msgspec
import numpy as np

from agents.cascade.boxes import Boxes, Floats, centred, cornered, sigmoid
from agents.cascade.features import BOX_FEATURES, IDENTITY, SCORE_FEATURES, Features

_PRIOR, _BOX_PRIOR = 20.0, 5.0  # boxes that the identity counts for
_FORGET, _BOX_FORGET = 0.999, 0.999  # a box
_LARGEST_SHIFT = 0.3  # of a box's side
_RIDGE = 0.02  # a frame, so that forgetting never leaves a direction without a prior


class Learned(msgspec.Struct, frozen=True):
    """All that a corrector knows, as plain values."""

    weights: list[float]
    information: list[list[float]]
    box_weights: list[list[float]]
    box_information: list[list[float]]
    boxes: int


class Corrector:
    """Rescores and moves the boxes of one stream. Until it has learned anything it changes nothing."""

    def __init__(self) -> None:
        self.weights = np.zeros(SCORE_FEATURES)
        self.weights[IDENTITY] = 1.0
        self.information = np.eye(SCORE_FEATURES) * _PRIOR
        self.box_weights = np.zeros((BOX_FEATURES, 4))
        self.box_information = np.eye(BOX_FEATURES) * _BOX_PRIOR
        self.boxes = 0  # learned from

    def scores(self, known: Features) -> Floats:
        """[n], the probability that a higher tier sees each box too."""
        return sigmoid(known.score @ self.weights)

    def moved(self, boxes: Boxes, known: Features) -> Floats:
        """[n, 4] corners of where each object is expected to be seen by a higher tier."""
        place = centred(boxes.corners)
        size = np.concatenate([place[:, 2:], place[:, 2:]], axis=1)
        shifted = place + np.clip(known.box @ self.box_weights, -_LARGEST_SHIFT, _LARGEST_SHIFT) * size
        return np.clip(cornered(shifted), 0.0, 1.0)

    def learn(self, known: Features, right: Floats) -> None:
        """Take in how a higher tier judged the boxes of one frame.

        Parameters
        ----------
        right
            [n], 0 to 1: whether the box is right; between where the higher tier is unsure itself.
        """
        if not len(right):
            return
        believed = self.scores(known)
        weight = (believed * (1 - believed) + 0.01)[:, None]
        self.information = (
            _FORGET ** len(right) * self.information + (known.score * weight).T @ known.score + np.eye(SCORE_FEATURES) * _RIDGE
        )
        self.weights = self.weights + np.linalg.solve(self.information, known.score.T @ (right - believed))
        self.boxes += len(right)

    def learn_boxes(self, known: Floats, offset: Floats) -> None:
        """Take in where a higher tier saw boxes.

        Parameters
        ----------
        known
            [m, BOX_FEATURES], those of the boxes that it saw too.
        offset
            [m, 4], as `features.offsets` gives them.
        """
        if not len(offset):
            return
        forget = _BOX_FORGET ** len(offset)
        self.box_information = forget * self.box_information + known.T @ known + np.eye(BOX_FEATURES) * _RIDGE / 4
        self.box_weights = self.box_weights + np.linalg.solve(self.box_information, known.T @ (offset - known @ self.box_weights))

    def dump(self) -> Learned:
        return Learned(
            self.weights.tolist(), self.information.tolist(), self.box_weights.tolist(), self.box_information.tolist(), self.boxes
        )

    @classmethod
    def load(cls, learned: Learned) -> Self:
        """What `dump` gave; raises `ValueError` if it is of another shape or not finite."""
        made = cls()
        for name in ("weights", "information", "box_weights", "box_information"):
            value = np.asarray(getattr(learned, name), np.float64)
            if value.shape != getattr(made, name).shape or not np.isfinite(value).all():
                raise ValueError(f"{name} of a corrector has shape {value.shape}: expected finite {getattr(made, name).shape}")
            setattr(made, name, value)
        made.boxes = learned.boxes
        return made
