"""Tracks of one source: which detection of a frame is the same object as one of an earlier frame.

A track moves on with constant velocity and is corrected by what the detector sees: an alpha-beta filter, the steady state of a Kalman
filter whose noise does not change (Kalata, 1984), which costs a few operations on arrays. Strong detections choose their tracks first and
weak ones take what is left (Zhang et al., ByteTrack, ECCV 2022), each by the assignment of greatest overlap. What teaching knows of a
track does not live here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from agents.cascade.boxes import Boxes, Floats, Ints, centred, cornered, ious, logit, members, same_label

STRONG = 0.3  # detections from this score on choose first
STRONG_IOU, WEAK_IOU = 0.3, 0.35
COAST_S = 0.8  # a track that nothing supports is forgotten after this time
BRIEF_FRAMES = 2  # and one that was seen once, after so many frames
CONFIRMED_HITS = 3  # a track that was seen so often is believed to be there while it is not seen
MAX_TRACKS = 600
_POSITION, _VELOCITY, _GROWTH = 0.6, 0.25, 0.5  # shares of a residual; sizes change less steadily than places
_MEMORY = 0.7  # of a track's strength, a frame
_LONGEST_S = 2.0  # a track moves on for so long at most
_SHORTEST_S = 1e-3
_NONE: Ints = np.empty(0, np.int64)


class Followed(NamedTuple):
    """What tracking makes of one frame: its detections first, then the tracks that are believed to be there unseen, with score 0."""

    boxes: Boxes  # [n]
    seen: int  # how many of them are detections
    tracks: Ints  # [n], numbers from 1 on, never used again
    hits: Ints  # [n], frames in which the track was seen, this one included
    missed: Ints  # [n], frames since it was last seen
    strength: Floats  # [n], the running mean of the logit of the track's scores
    expected: Floats  # [n, 4], where the track should be, as centre and size; the box itself where the track is new


class Tracker:
    """The tracks of one source, as arrays of equal length."""

    def __init__(self) -> None:
        self._next = 1
        self._at_s = -np.inf
        self._labels: tuple[str, ...] = ()
        self._numbers: Ints = np.empty(0, np.int64)
        self._places: Floats = np.empty((0, 4))  # centre and size when last corrected
        self._speeds: Floats = np.empty((0, 4))  # a second
        self._seen_at: Floats = np.empty(0)
        self._hits: Ints = np.empty(0, np.int64)
        self._missed: Ints = np.empty(0, np.int64)
        self._strength: Floats = np.empty(0)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def alive(self) -> Ints:
        """The numbers of the tracks that may still be seen, ascending."""
        return self._numbers

    def follow(self, boxes: Boxes, at_s: float, known: Ints = _NONE) -> Followed:
        """Take in the detections of the next frame.

        Parameters
        ----------
        at_s
            When it was taken, in seconds; a clock that runs backwards is held at the last frame's.
        known
            Numbers, ascending, of tracks that are believed to be there unseen however seldom they were seen.
        """
        at_s = self._at_s = max(at_s, self._at_s)
        self._forget(at_s, known)
        places = self._expected(at_s)
        chosen = self._assign(boxes, places)
        old, new = np.flatnonzero(chosen >= 0), np.flatnonzero(chosen < 0)
        expected = centred(boxes.corners)
        expected[old] = places[chosen[old]]
        unseen = self._free(chosen)
        self._missed[unseen] += 1
        self._correct(chosen[old], boxes.take(old), expected[old], at_s)
        coasting = unseen[self._believed(unseen, places, known)]
        rows = chosen.copy()
        rows[new] = len(self) + np.arange(len(new))
        self._begin(boxes.take(new), at_s)
        rows = np.concatenate([rows, coasting])
        together = Boxes(
            (*boxes.labels, *(self._labels[row] for row in coasting.tolist())),
            np.concatenate([boxes.scores, np.zeros(len(coasting))]),
            np.concatenate([boxes.corners, cornered(places[coasting])]),
        )
        return Followed(
            together,
            len(boxes.labels),
            self._numbers[rows],
            self._hits[rows],
            self._missed[rows],
            self._strength[rows],
            np.concatenate([expected, places[coasting]]),
        )

    def add(self, boxes: Boxes, at_s: float) -> Ints:
        """Begin tracks that a higher tier saw and this one did not, at a time that is not later than the last frame's; their numbers."""
        first = self._next
        self._begin(boxes, min(at_s, self._at_s))
        return np.arange(first, self._next)

    def _expected(self, at_s: float) -> Floats:
        places = self._places + self._speeds * np.clip(at_s - self._seen_at, 0.0, _LONGEST_S)[:, None]
        places[:, 2:] = np.maximum(places[:, 2:], self._places[:, 2:] / 2)
        return places

    def _believed(self, rows: Ints, places: Floats, known: Ints) -> NDArray[np.bool_]:
        """Which of some unseen tracks are believed to be there, within the picture."""
        corners = cornered(places[rows])
        inside = np.all((corners[:, :2] < 0.99) & (corners[:, 2:] > 0.01), axis=1)
        return np.asarray(inside & ((self._hits[rows] >= CONFIRMED_HITS) | members(self._numbers[rows], known)))

    def _assign(self, boxes: Boxes, places: Floats) -> Ints:
        """The row of each detection's track, or -1."""
        chosen = np.full(len(boxes.labels), -1, np.int64)
        if not len(boxes.labels) or not len(self):
            return chosen
        overlap = np.where(same_label(boxes.labels, self._labels), ious(boxes.corners, cornered(places)), 0.0)
        strong = boxes.scores >= STRONG
        for mask, least in ((strong, STRONG_IOU), (~strong, WEAK_IOU)):
            ours, free = np.flatnonzero(mask), self._free(chosen)
            part = overlap[np.ix_(ours, free)]
            part[part < least] = 0.0
            rows, columns = linear_sum_assignment(part, maximize=True)
            paired = part[rows, columns] > 0
            chosen[ours[rows[paired]]] = free[columns[paired]]
        return chosen

    def _free(self, chosen: Ints) -> Ints:
        """The rows that no detection has chosen."""
        free = np.ones(len(self), np.bool_)
        free[chosen[chosen >= 0]] = False
        return np.flatnonzero(free)

    def _correct(self, rows: Ints, boxes: Boxes, expected: Floats, at_s: float) -> None:
        passed = np.maximum(at_s - self._seen_at[rows], _SHORTEST_S)[:, None]
        residual = centred(boxes.corners) - expected
        self._places[rows] = expected + _POSITION * residual
        self._speeds[rows] += _VELOCITY * residual / passed
        self._speeds[rows, 2:] *= _GROWTH
        self._seen_at[rows] = at_s
        self._hits[rows] += 1
        self._missed[rows] = 0
        self._strength[rows] = _MEMORY * self._strength[rows] + (1 - _MEMORY) * logit(boxes.scores)

    def _begin(self, boxes: Boxes, at_s: float) -> None:
        count = len(boxes.labels)
        self._numbers = np.concatenate([self._numbers, np.arange(self._next, self._next + count)])
        self._next += count
        self._labels = (*self._labels, *boxes.labels)
        self._places = np.concatenate([self._places, centred(boxes.corners)])
        self._speeds = np.concatenate([self._speeds, np.zeros((count, 4))])
        self._seen_at = np.concatenate([self._seen_at, np.full(count, at_s)])
        self._hits = np.concatenate([self._hits, np.ones(count, np.int64)])
        self._missed = np.concatenate([self._missed, np.zeros(count, np.int64)])
        self._strength = np.concatenate([self._strength, logit(boxes.scores)])

    def _forget(self, at_s: float, known: Ints) -> None:
        """Let go of what was not seen for too long, and of the oldest beyond the bound."""
        brief = (self._hits < 2) & (self._missed >= BRIEF_FRAMES) & ~members(self._numbers, known)
        rows = np.flatnonzero((at_s - self._seen_at <= COAST_S) & ~brief)
        if len(rows) > MAX_TRACKS:
            rows = np.sort(rows[np.argsort(-self._seen_at[rows], kind="stable")][:MAX_TRACKS])
        if len(rows) == len(self):
            return
        self._labels = tuple(self._labels[row] for row in rows.tolist())
        self._numbers, self._places, self._speeds = self._numbers[rows], self._places[rows], self._speeds[rows]
        self._seen_at, self._hits = self._seen_at[rows], self._hits[rows]
        self._missed, self._strength = self._missed[rows], self._strength[rows]
