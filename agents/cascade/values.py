"""The value of a look: how much an answer of the next tier is expected to change, by frame. What looks cost is not weighed here.

Values are compared with each other only, over all sources of a site, so a stream that turns difficult takes a larger share by itself.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from agents.cascade.boxes import Floats
from agents.cascade.stream import Heard, View

FRESH_S = 1.2  # how long a verdict on a track leaves little to ask about it
_IDLE = 0.01  # of a detection, a second: where nothing is expected, looks go to what was not looked at for longest
_NEW = 0.08  # of a box's probability: even a certain one may lie elsewhere
_FEATURES = 7
_PRIOR, _FORGET = 4.0, 0.998  # looks


class Value(Protocol):
    """Ranks frames by what a look at the next tier is worth; what is worth nothing is never looked at."""

    def worth(self, view: View, since_s: float) -> float:
        """The value of a look at a frame; `since_s` is how long ago its source was last asked about, infinite if it never was."""

    def learn(self, view: View, since_s: float, heard: Heard) -> None:
        """Take in what a look at a frame has changed."""

    def dump(self) -> list[list[float]]:
        """All that it has learned, as plain values."""

    def load(self, known: list[list[float]]) -> None:
        """Take up what `dump` gave; raises `ValueError` if it is anything else."""


class Uniform:
    """Frames at even distances in time, whatever is in them."""

    def worth(self, view: View, since_s: float) -> float:
        return min(since_s, 1e6)

    def learn(self, view: View, since_s: float, heard: Heard) -> None:
        """It learns nothing."""

    def dump(self) -> list[list[float]]:
        return []

    def load(self, known: list[list[float]]) -> None:
        """There is nothing to take up."""


class Uncertainty:
    """The sum over a frame's boxes of the variance p(1 - p) of whether they are right, less where the track was spoken of lately."""

    def worth(self, view: View, since_s: float) -> float:
        return float(_doubts(view).sum()) + _idle(since_s)

    def learn(self, view: View, since_s: float, heard: Heard) -> None:
        """Its probabilities are learned elsewhere."""

    def dump(self) -> list[list[float]]:
        return []

    def load(self, known: list[list[float]]) -> None:
        """There is nothing to take up."""


class ExpectedGain:
    """The number of detections that a look is expected to change, learned online from what looks have changed (ridge regression by
    recursive least squares with forgetting). It begins as the uncertainty does."""

    def __init__(self) -> None:
        self.weights = np.zeros(_FEATURES)
        self.weights[0] = 1.0
        self.information = np.eye(_FEATURES) * _PRIOR

    def worth(self, view: View, since_s: float) -> float:
        return max(0.0, float(_summary(view, since_s) @ self.weights)) + _idle(since_s)

    def learn(self, view: View, since_s: float, heard: Heard) -> None:
        known = _summary(view, since_s)
        self.information = _FORGET * self.information + np.outer(known, known) + np.eye(_FEATURES) * _PRIOR * (1 - _FORGET)
        self.weights = self.weights + np.linalg.solve(self.information, known * (heard.wrong + heard.missed - known @ self.weights))

    def dump(self) -> list[list[float]]:
        return [self.weights.tolist(), *self.information.tolist()]

    def load(self, known: list[list[float]]) -> None:
        table = np.asarray(known, np.float64)
        if table.shape != (1 + _FEATURES, _FEATURES) or not np.isfinite(table).all():
            raise ValueError(f"the value of a look of shape {table.shape}: expected finite {(1 + _FEATURES, _FEATURES)}")
        self.weights, self.information = table[0].copy(), table[1:].copy()


VALUES: dict[str, type[Uniform | Uncertainty | ExpectedGain]] = {
    "uniform": Uniform,
    "uncertainty": Uncertainty,
    "expected-gain": ExpectedGain,
}


def _idle(since_s: float) -> float:
    return _IDLE * min(since_s, 600.0)


def _doubts(view: View) -> Floats:
    chance = view.probability
    return np.asarray((chance * (1 - chance) + _NEW * chance) * (1 - np.exp(-view.known.age_s / FRESH_S)), np.float64)


def _summary(view: View, since_s: float) -> Floats:
    """[_FEATURES], cheap facts about a frame."""
    doubts, chance = _doubts(view), view.probability
    seen = np.arange(len(chance)) < view.followed.seen
    band = (view.followed.boxes.scores > 0.2) & (view.followed.boxes.scores < 0.6)
    return np.array(
        [
            doubts.sum(),
            1.0,
            chance.sum() / 5,
            band.sum() / 5,
            ((view.followed.hits == 1) * chance).sum(),
            (~seen * chance).sum(),
            1 - np.exp(-since_s / FRESH_S),
        ]
    )
