"""One source's cascade: what the leaf believes of each frame, and what it learns from a higher tier's verdicts on some of them.

A frame's detections are the model's own; tracks and what was learned come after. A verdict comes late, for a frame that has passed: it is
held against a snapshot of what was known of that frame then, and only what was learned reaches later frames. All times come from the
frames, so that the same frames and verdicts in the same order give the same beliefs, offline and online.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec
import numpy as np

from agents.cascade.boxes import Boxes, Floats, best_of, boxes_of, detections_of, greedy, ious, logit, same_label
from agents.cascade.calibrator import Calibrator
from agents.cascade.corrector import Corrector, Learned
from agents.cascade.features import Features, Labels, Told, features, offsets
from agents.cascade.gate import Examined, Gate
from agents.cascade.tracks import Followed, Tracker
from agents.inference.detector import FAINT_BOXES
from schemas.detections import Detections

MOST_BOXES = FAINT_BOXES  # of a frame, the best
FAINT_FROM = 0.05  # the score that a model should see boxes down to, so that what is learned can raise them
SNAPSHOTS = 400  # frames of a source whose answers are waited for
SURE, UNSURE = 0.4, 0.25  # a higher tier's detection from SURE on is taken for true, below UNSURE for nothing; between it is unsure itself
SAME_IOU, NEAR_IOU = 0.5, 0.3
_NOTHING = -2.5  # the logit of a higher tier that saw nothing where a track is
_PLAIN, _RESCORED, _MOVED = range(3)  # ways of answering
_WAYS = 3
_MODELS = 8  # that a stream may be looked at with and come back to
_DOUBLE_IOU = 0.6
_BIRTH_S = 0.3


class View(NamedTuple):
    """A frame as the leaf understands it."""

    at_s: float
    raw: Boxes  # what the model saw
    followed: Followed
    known: Features
    probability: Floats  # [n], that each box is right
    believed: Boxes  # what the frame is answered with
    tracks: tuple[int, ...]  # of the boxes that it is answered with
    model: str  # that looked


class Heard(msgspec.Struct, frozen=True):
    """What a verdict changed: how many of the leaf's detections the higher tier did not see, and how many of its own the leaf had not."""

    wrong: int
    missed: int
    shared: int


class Taught(msgspec.Struct, frozen=True):
    """All that was learned of one model's answers, as plain values."""

    corrector: Learned
    gate: Examined
    calibrator: list[list[float]]


class Remembered(msgspec.Struct, frozen=True):
    """What is worth keeping of a stream when its process ends, as plain values: what was learned, by model. Tracks are not: by the time
    that they are taken up they are over."""

    labels: list[str]
    models: dict[str, Taught]


class _Lessons:
    """What was learned of one model's answers."""

    def __init__(self, calibrator: Calibrator | None = None) -> None:
        self.corrector, self.gate, self.calibrator = Corrector(), Gate(_WAYS), calibrator or Calibrator()

    def dump(self) -> Taught:
        return Taught(self.corrector.dump(), self.gate.dump(), self.calibrator.dump())

    @classmethod
    def load(cls, known: Taught) -> _Lessons:
        made = cls(Calibrator.load(known.calibrator))
        made.corrector = Corrector.load(known.corrector)
        made.gate.load(known.gate)
        return made


class Stream:
    """The cascade's memory of one source.

    Parameters
    ----------
    publish_from
        Score below which a box is not part of an answer. The model should see boxes far below it, since what is learned may raise them.
    teach
        Whether verdicts teach; without it frames have tracks, and their boxes are the model's.
    """

    def __init__(self, *, publish_from: float, teach: bool = True) -> None:
        self.publish_from, self.teach = publish_from, teach
        self.tracker, self.labels = Tracker(), Labels()
        self._lessons: OrderedDict[str, _Lessons] = OrderedDict({"": _Lessons()})  # by model; the last is in use
        self._told = Told()
        self.asked: OrderedDict[str, View] = OrderedDict()  # frames whose answers are waited for, oldest first
        self._at_s = -np.inf

    @property
    def model(self) -> str:
        """The model that looks at the stream now."""
        return next(reversed(self._lessons))

    @property
    def corrector(self) -> Corrector:
        return self._lessons[self.model].corrector

    @property
    def gate(self) -> Gate:
        return self._lessons[self.model].gate

    @property
    def calibrator(self) -> Calibrator:
        return self._lessons[self.model].calibrator

    # ---- frames

    def see(self, at_s: float, seen: Boxes | Detections) -> View:
        """Take in the next frame.

        Parameters
        ----------
        at_s
            When it was taken, in seconds.
        seen
            What the model saw in it, best first; what is beyond `MOST_BOXES` is left out.
        """
        at_s = self._at_s = max(at_s, self._at_s)
        raw = best_of(seen, MOST_BOXES)
        followed = self.tracker.follow(raw, at_s, self._told.seen)
        known = features(followed, self._told, self.labels, at_s)
        probability = self.corrector.scores(known)
        believed, tracks = self._answer(self.gate.chosen, followed, known, probability)
        return View(at_s, raw, followed, known, probability, believed, tracks, self.model)

    def detections(self, view: View) -> Detections:
        """What a frame is answered with, as a record."""
        return detections_of(view.believed, np.asarray(view.tracks, np.int64))

    def _answer(self, way: int, followed: Followed, known: Features, probability: Floats) -> tuple[Boxes, tuple[int, ...]]:
        if way == _PLAIN:
            seen = followed.boxes.take(np.arange(followed.seen))
            boxes = seen._replace(scores=self.calibrator.of(seen.scores)) if self.teach else seen
            chosen = np.flatnonzero(boxes.scores >= self.publish_from)
            return boxes.take(chosen), tuple(followed.tracks[chosen].tolist())
        corners = self.corrector.moved(followed.boxes, known) if way == _MOVED else followed.boxes.corners
        order = np.argsort(-probability, kind="stable")
        order = order[probability[order] >= self.publish_from]
        boxes = Boxes(followed.boxes.labels, probability, corners).take(order)
        alone = _without_doubles(boxes)
        return boxes.take(alone), tuple(followed.tracks[order[alone]].tolist())

    def look_with(self, model: str, calibrator: Calibrator | None = None) -> None:
        """Another model looks at the stream from the next frame on: what its scores mean is something else. Tracks go on, and what was
        learned of a model is there again when it comes back.

        Parameters
        ----------
        calibrator
            Of the new model, if it was judged before without having looked at the stream.
        """
        if model == self.model:
            return
        self._lessons[model] = self._lessons.pop(model) if model in self._lessons else _Lessons(calibrator)
        if len(self._lessons) > _MODELS:
            self._lessons.popitem(last=False)

    def forget(self) -> None:
        """What was learned does not hold any more, of whichever model; answers to what was asked before teach nothing."""
        self._lessons = OrderedDict({self.model: _Lessons()})
        self.asked.clear()

    # ---- what outlives the process

    def dump(self) -> Remembered:
        return Remembered(list(self.labels.names), {model: lessons.dump() for model, lessons in self._lessons.items() if model})

    def load(self, known: Remembered) -> None:
        """Take up what `dump` gave; the model that looked last looks on. Raises `ValueError` if it is anything else."""
        lessons = {model: _Lessons.load(taught) for model, taught in known.models.items()}
        if lessons:
            self._lessons = OrderedDict(lessons)
        self.labels = Labels(tuple(known.labels))

    # ---- verdicts

    def ask(self, key: str, view: View) -> None:
        """Remember a frame that a higher tier is asked about."""
        self.asked[key] = view
        if len(self.asked) > SNAPSHOTS:
            self.asked.popitem(last=False)

    def hear(self, key: str, verdict: Detections) -> Heard | None:
        """Learn from a higher tier's verdict; None if the frame is not remembered, or was answered before."""
        view = self.asked.pop(key, None)
        if view is None:
            return None
        theirs = boxes_of(verdict)
        theirs = theirs.take(theirs.scores >= UNSURE)
        sure = theirs.scores >= SURE
        heard = _compare(view.believed, theirs.take(sure))
        if not self.teach or view.model != self.model:
            return heard
        probability = self.corrector.scores(view.known)
        ways = (_PLAIN, _RESCORED, _MOVED)
        self.gate.examine([self._answer(way, view.followed, view.known, probability)[0] for way in ways], theirs, sure)
        self._learn(view, theirs)
        return heard

    def _learn(self, view: View, theirs: Boxes) -> None:
        boxes = view.followed.boxes
        self.calibrator.learn(view.raw.scores, rightness(view.raw, theirs))
        overlap = np.where(same_label(boxes.labels, theirs.labels), ious(boxes.corners, theirs.corners), 0.0)
        best = np.argsort(-self.corrector.scores(view.known), kind="stable")
        same, near = np.full(len(best), -1, np.int64), np.full(len(best), -1, np.int64)
        same[best], near[best] = greedy(overlap[best], SAME_IOU), greedy(overlap[best], NEAR_IOU)
        certainty = np.clip((theirs.scores - UNSURE) / (SURE - UNSURE), 0.0, 1.0)
        right = np.where(same >= 0, certainty[same] if len(certainty) else 0.0, 0.0)
        self.corrector.learn(view.known, right)
        placed = np.flatnonzero(near >= 0)
        shift = offsets(boxes.corners[placed], theirs.corners[near[placed]])
        firm = theirs.scores[near[placed]] >= SURE
        self.corrector.learn_boxes(view.known.box[placed][firm], shift[firm])
        opinion, offset = np.full(len(near), _NOTHING), np.zeros((len(near), 4))
        opinion[placed], offset[placed] = logit(theirs.scores)[near[placed]], shift
        self._told.note(view.followed.tracks, opinion, view.at_s, offset, self.tracker.alive)
        self._begin(view, theirs, near)

    def _begin(self, view: View, theirs: Boxes, near: np.ndarray) -> None:
        """Begin tracks on what only the higher tier saw, unless that was long ago."""
        if self._at_s - view.at_s > _BIRTH_S:
            return
        news = np.setdiff1d(np.flatnonzero(theirs.scores >= SURE), near)
        begun = self.tracker.add(theirs.take(news), view.at_s)
        self._told.note(begun, logit(theirs.scores[news]), view.at_s, np.zeros((len(news), 4)), self.tracker.alive)


def rightness(ours: Boxes, theirs: Boxes) -> Floats:
    """[n], 0 to 1: whether a higher tier saw each of our boxes too, between where it is unsure itself. The better boxes choose first."""
    if not len(theirs.labels):
        return np.zeros(len(ours.labels))
    best = np.argsort(-ours.scores, kind="stable")
    overlap = np.where(same_label(ours.labels, theirs.labels), ious(ours.corners, theirs.corners), 0.0)
    same = np.full(len(best), -1, np.int64)
    same[best] = greedy(overlap[best], SAME_IOU)
    certainty = np.clip((theirs.scores - UNSURE) / (SURE - UNSURE), 0.0, 1.0)
    return np.where(same >= 0, certainty[same], 0.0)


def _without_doubles(boxes: Boxes) -> np.ndarray:
    """Of boxes, best first, those that no better one of their label covers."""
    covers = (ious(boxes.corners, boxes.corners) >= _DOUBLE_IOU) & same_label(boxes.labels, boxes.labels)
    covers &= np.tri(len(boxes.labels), k=-1, dtype=np.bool_)
    kept = np.ones(len(boxes.labels), np.bool_)
    for row in np.flatnonzero(covers.any(axis=1)):
        kept[row] = not covers[row, kept].any()
    return np.flatnonzero(kept)


def _compare(ours: Boxes, theirs: Boxes) -> Heard:
    ours = ours.take(ours.scores >= SURE)
    overlap = np.where(same_label(ours.labels, theirs.labels), ious(ours.corners, theirs.corners), 0.0)
    shared = int((greedy(overlap, SAME_IOU) >= 0).sum())
    return Heard(len(ours.labels) - shared, len(theirs.labels) - shared, shared)
