"""What a corrector knows of each box of a frame: the detector's score, the track behind it, and what a higher tier said of that track."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.cascade.boxes import Floats, Ints, centred, ious, logit, members
from agents.cascade.tracks import Followed

LABEL_SLOTS = 6  # classes that have a bias of their own on a stream; those that come later share none
SCORE_FEATURES = 14 + LABEL_SLOTS
BOX_FEATURES = 10
IDENTITY = 0  # the feature that is the logit of the detector's own score

_SHORT_S, _MIDDLE_S, _LONG_S = 1.0, 3.0, 6.0  # over which what was said of a track fades
_LARGEST_OFFSET = 0.5  # of a box's side


class Told:
    """What a higher tier last said of each track of a source, as arrays in the order of the tracks' numbers."""

    def __init__(self) -> None:
        self.tracks: Ints = np.empty(0, np.int64)
        self._logits: Floats = np.empty(0)  # of the score that it gave; below zero where it saw nothing
        self._at_s: Floats = np.empty(0)  # when the frame was taken
        self._offsets: Floats = np.empty((0, 4))  # its box's centre and size against ours, in shares of our box's size

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def seen(self) -> Ints:
        """The tracks where it saw something, ascending."""
        return self.tracks[self._logits > 0]

    def note(self, tracks: Ints, logits: Floats, at_s: float, offsets: Floats, alive: Ints) -> None:
        """Take in what was said of the tracks of a frame, unless a later frame's verdict has come first.

        Parameters
        ----------
        tracks
            [n], each once.
        alive
            The tracks that may still be seen, ascending; what was said of others is let go.
        """
        known, at = self._find(tracks)
        news = members(tracks, alive)
        news[known] &= self._at_s[at[known]] <= at_s
        kept = members(self.tracks, alive) & ~np.isin(self.tracks, tracks[news])
        together = np.concatenate([self.tracks[kept], tracks[news]])
        order = np.argsort(together)
        self.tracks = together[order]
        self._logits = np.concatenate([self._logits[kept], logits[news]])[order]
        self._at_s = np.concatenate([self._at_s[kept], np.full(int(news.sum()), at_s)])[order]
        self._offsets = np.concatenate([self._offsets[kept], offsets[news]])[order]

    def of(self, tracks: Ints, at_s: float) -> tuple[Floats, Floats, Floats]:
        """What was said of each of some tracks: the logits [n], how long ago [n], and the offsets [n, 4]; nothing, infinitely long ago, of
        those that nothing was said of."""
        logits, age_s, offsets = np.zeros(len(tracks)), np.full(len(tracks), np.inf), np.zeros((len(tracks), 4))
        known, at = self._find(tracks)
        at = at[known]
        logits[known], offsets[known] = self._logits[at], self._offsets[at]
        age_s[known] = np.maximum(0.0, at_s - self._at_s[at])
        return logits, age_s, offsets

    def _find(self, tracks: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Of which tracks something is known, and the rows of those."""
        at = np.searchsorted(self.tracks, tracks)
        return members(tracks, self.tracks), at


class Features(NamedTuple):
    """What is known of each box of a frame."""

    score: Floats  # [n, SCORE_FEATURES]
    box: Floats  # [n, BOX_FEATURES]
    age_s: Floats  # [n], since a higher tier spoke of the track; infinite if it never did


class Labels:
    """The classes of a stream that have a slot, in the order in which they came."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names[:LABEL_SLOTS]

    def slots(self, labels: tuple[str, ...]) -> Ints:
        """[n], the slot of each label, or -1."""
        if len(self.names) < LABEL_SLOTS:
            self.names = tuple(dict.fromkeys((*self.names, *labels)))[:LABEL_SLOTS]
        found = {name: slot for slot, name in enumerate(self.names)}
        return np.fromiter((found.get(label, -1) for label in labels), np.int64, len(labels))


def features(followed: Followed, told: Told, labels: Labels, at_s: float) -> Features:
    """The features of one frame's boxes. All are of the order of one, so that one prior serves them all."""
    boxes, count = followed.boxes, len(followed.tracks)
    place = centred(boxes.corners)
    size = np.maximum(np.concatenate([place[:, 2:], place[:, 2:]], axis=1), 1e-3)
    seen = np.arange(count) < followed.seen
    opinion, age_s, offset = told.of(followed.tracks, at_s)
    score = np.zeros((count, SCORE_FEATURES))
    score[:, IDENTITY] = np.where(seen, logit(boxes.scores), 0.0)
    score[:, 1] = 1.0
    score[:, 2] = ~seen
    score[:, 3] = followed.strength
    score[:, 4] = np.log1p(np.minimum(followed.hits, 30)) / 3
    score[:, 5] = np.minimum(followed.missed, 10) / 5
    score[:, 6] = opinion * np.exp(-age_s / _SHORT_S)
    score[:, 7] = opinion * np.exp(-age_s / _LONG_S)
    score[:, 8] = np.exp(-age_s / _MIDDLE_S)
    score[:, 9] = np.log(size[:, 1]) + 1.6
    score[:, 10] = place[:, 1] - 0.5
    score[:, 11] = _crowding(boxes.corners)
    score[:, 12] = np.log(size[:, 0] / size[:, 1]) + 0.9
    score[:, 13] = followed.hits == 1
    slots = labels.slots(boxes.labels)
    known = slots >= 0
    score[known, 14 + slots[known]] = 1.0
    box = np.zeros((count, BOX_FEATURES))
    box[:, 0] = 1.0
    steady = followed.hits > 2
    box[steady, 1:5] = np.clip((followed.expected[steady] - place[steady]) / size[steady], -_LARGEST_OFFSET, _LARGEST_OFFSET)
    box[:, 5:9] = offset * np.exp(-age_s / 2)[:, None]
    box[:, 9] = score[:, 9]
    return Features(score, box, age_s)


def offsets(ours: Floats, theirs: Floats) -> Floats:
    """[n, 4], where their boxes lie against ours: differences of centre and size in shares of our size, bounded."""
    mine = centred(ours)
    size = np.maximum(np.concatenate([mine[:, 2:], mine[:, 2:]], axis=1), 1e-3)
    return np.asarray(np.clip((centred(theirs) - mine) / size, -_LARGEST_OFFSET, _LARGEST_OFFSET), np.float64)


def _crowding(corners: Floats) -> Floats:
    """[n], the greatest overlap of each box with one that stands before it."""
    if len(corners) < 2:
        return np.zeros(len(corners))
    overlap = ious(corners, corners)
    overlap *= np.tri(len(corners), k=-1)
    return np.asarray(overlap.max(axis=1), np.float64)
