"""Whether what a corrector says is better than what it was given: judged on frames that it had not learned from yet.

Each verdict of a higher tier is first an exam and only then a lesson (prequential evaluation; Dawid, 1984). The mark is what people
measure detectors by, average precision at two overlaps, over the last frames that were looked at, and an advantage counts only where it
exceeds its own standard error over blocks of them (a delete-one-block jackknife).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.cascade.boxes import Boxes, Floats, greedy, ious, same_label

WINDOW = 96  # frames
EVERY = 8  # frames between two choices, each of which costs some milliseconds
LEAST_FRAMES, LEAST_TRUTHS = 16, 40
_BLOCKS = 8
_OVERLAPS = (0.5, 0.75)


class Mark(msgspec.Struct, frozen=True):
    """How one frame was answered: score and rightness at each overlap of every box, and how many there were to be found."""

    scores: list[float]
    right: list[list[bool]]  # [overlaps][n]
    truths: int


class Examined(msgspec.Struct, frozen=True):
    """All that a gate knows, as plain values."""

    marks: list[tuple[Mark, ...]]
    chosen: int
    examined: int


def mark(answer: Boxes, truth: Boxes, sure: NDArray[np.bool_]) -> Mark:
    """Judge an answer by boxes that are taken for true where they are `sure`; what matches another one counts neither way."""
    order = np.argsort(-answer.scores, kind="stable")
    best = answer.take(order)
    overlap = np.where(same_label(best.labels, truth.labels), ious(best.corners, truth.corners), 0.0)
    counted = np.append(sure, True)  # the last stands for those without a partner
    partners = [greedy(overlap, least) for least in _OVERLAPS]
    kept = counted[partners[0]]
    right = [((partner >= 0) & counted[partner])[kept].tolist() for partner in partners]
    return Mark([round(score, 4) for score in best.scores[kept].tolist()], right, int(sure.sum()))


def average_precision(marks: Sequence[Mark], overlap: int = 0) -> float:
    """Area under the interpolated precision-recall curve over some frames, 0 to 1; 0 where nothing was to be found."""
    return float(average_precisions(marks, np.ones((1, len(marks)), np.bool_))[0, overlap])


def average_precisions(marks: Sequence[Mark], parts: NDArray[np.bool_]) -> Floats:
    """The same of several parts of the frames, sorted once for all.

    Parameters
    ----------
    parts
        [p, frames], which frames are in each part.

    Returns
    -------
    Floats
        [p, overlaps].
    """
    truths = parts @ np.array([each.truths for each in marks], np.float64)
    scores = np.array([score for each in marks for score in each.scores], np.float64)
    frame = np.repeat(np.arange(len(marks)), [len(each.scores) for each in marks])
    order = np.argsort(-scores, kind="stable")
    among = parts[:, frame[order]]
    ranked = np.maximum(np.cumsum(among, axis=1), 1)
    found_of_all = []
    for overlap in range(len(_OVERLAPS)):
        right = np.array([each for one in marks for each in one.right[overlap]], np.float64)[order] * among
        precision = np.cumsum(right, axis=1) / ranked
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found_of_all.append(np.sum(precision * right, axis=1) / np.maximum(truths, 1))
    return np.stack(found_of_all, axis=1) * (truths > 0)[:, None]


class Gate:
    """Chooses among ways of answering by their marks; the first way is what holds until another has shown that it is better.

    Parameters
    ----------
    ways
        How many.
    """

    def __init__(self, ways: int) -> None:
        self.marks: deque[tuple[Mark, ...]] = deque(maxlen=WINDOW)
        self.chosen = 0
        self.allowed = frozenset(range(ways))  # the first way is, whatever this says
        self._ways = ways
        self._examined = 0

    def examine(self, answers: Sequence[Boxes], truth: Boxes, sure: NDArray[np.bool_]) -> int:
        """Take in how each way would have answered a frame; the way that is chosen from now on."""
        self.marks.append(tuple(mark(answer, truth, sure) for answer in answers))
        self._examined += 1
        if self._examined % EVERY == 0:
            self.chosen = self._choose()
        return self.chosen

    def _choose(self) -> int:
        if len(self.marks) < LEAST_FRAMES or sum(each[0].truths for each in self.marks) < LEAST_TRUTHS:
            return 0
        frames = np.arange(len(self.marks))
        parts = np.array([frames >= 0, *(~np.isin(frames, block) for block in np.array_split(frames, _BLOCKS))])
        qualities = np.stack([average_precisions([each[way] for each in self.marks], parts) for way in range(self._ways)], axis=1)
        whole, without = qualities[0], qualities[1:]
        best, most = 0, 0.0
        for way in sorted(self.allowed - {0}):
            gain, gains = whole[way] - whole[0], (without[:, way] - without[:, 0]).mean(axis=1)
            error = np.sqrt((_BLOCKS - 1) / _BLOCKS * np.sum((gains - gains.mean()) ** 2))
            certain = gain.mean() - (0.0 if way == self.chosen else error)  # what is in use stays until it is no better
            if gain[0] >= 0 and certain > most:
                best, most = way, certain
        return best

    def dump(self) -> Examined:
        return Examined(list(self.marks), self.chosen, self._examined)

    def load(self, known: Examined) -> None:
        """Take up what `dump` gave; raises `ValueError` if it is of another number of ways."""
        if not 0 <= known.chosen < self._ways or any(len(marks) != self._ways for marks in known.marks):
            raise ValueError(f"a gate of other ways: expected {self._ways}")
        self.marks = deque(known.marks, maxlen=WINDOW)
        self.chosen, self._examined = known.chosen, known.examined
