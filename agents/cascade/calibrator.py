"""A detector's scores as probabilities, learned as the stream goes: so that answers of different models, and of a model before and after
it was taught, are on one scale.

It is the online form of Platt's calibration (`agents.cascade.calibration` has the exact fit on a window): a logistic regression on the
score's logit alone, with forgetting. It keeps the order of scores.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from agents.cascade.boxes import Floats, logit, sigmoid

_PRIOR = 30.0  # boxes that the identity counts for
_FORGET = 0.9995  # a box
_LEAST_SLOPE = 0.1
_FAR = 4.6  # logits beyond it tell no more than those there


class Calibrator:
    """p = sigmoid(slope * logit(score) + shift), learned online. It begins as the identity."""

    def __init__(self) -> None:
        self.weights = np.array([1.0, 0.0])
        self._information = np.eye(2) * _PRIOR / 4

    def of(self, scores: Floats) -> Floats:
        """The probabilities that scores stand for."""
        return sigmoid(self.weights[0] * logit(scores) + self.weights[1])

    def learn(self, scores: Floats, right: Floats) -> None:
        """Take in how the boxes of one frame were judged: [n] scores, and [n] from 0 (wrong) to 1 (right)."""
        if not len(scores):
            return
        known = np.stack([np.clip(logit(scores), -_FAR, _FAR), np.ones(len(scores))], axis=1)
        believed = sigmoid(known @ self.weights)
        weight = (believed * (1 - believed) + 0.01)[:, None]
        self._information = _FORGET ** len(scores) * self._information + (known * weight).T @ known + np.eye(2) * 0.01
        self.weights = self.weights + np.linalg.solve(self._information, known.T @ (right - believed))
        self.weights[0] = max(self.weights[0], _LEAST_SLOPE)

    def dump(self) -> list[list[float]]:
        """All that it knows, as plain values."""
        return [self.weights.tolist(), *self._information.tolist()]

    @classmethod
    def load(cls, learned: list[list[float]]) -> Self:
        """What `dump` gave; raises `ValueError` if it is anything else."""
        table = np.asarray(learned, np.float64)
        if table.shape != (3, 2) or not np.isfinite(table).all():
            raise ValueError(f"a calibrator of shape {table.shape}: expected three finite pairs")
        made = cls()
        made.weights, made._information = table[0].copy(), table[1:].copy()
        return made
