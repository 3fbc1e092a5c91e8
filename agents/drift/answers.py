"""What a stream's answers are like over hours: confidence, count, mix of classes and agreement of the audits, each watched for a shift."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType

import msgspec

from agents.drift.change import Change
from agents.drift.shifts import Kind, Shift, Shifts, ShiftsState
from schemas.detections import Detections
from schemas.drift import Cause

KINDS = MappingProxyType(
    {
        Cause.CONFIDENCE: Kind(base=8, grain=0.005, least=0.05, horizon=6),
        Cause.COUNT: Kind(base=8, grain=0.05, least=0.5, least_share=0.3, horizon=6),
        Cause.CLASSES: Kind(base=8, grain=0.01, least=0.1, horizon=6),
        Cause.AGREEMENT: Kind(base=4, grain=0.02, least=0.08, horizon=2),  # audits are few, and far between: nearly independent
    }
)
_CLASSES = 3  # that are watched, the most common ones
_FIRST = 2048  # detections that say which those are
_LABELS = 64  # that are counted
_FADING = 1 << 15  # detections after which the counts are halved


class AnswersState(msgspec.Struct):
    """All that is remembered."""

    confidence: ShiftsState = msgspec.field(default_factory=ShiftsState)
    count: ShiftsState = msgspec.field(default_factory=ShiftsState)
    agreement: ShiftsState = msgspec.field(default_factory=ShiftsState)
    shares: dict[str, ShiftsState] = msgspec.field(default_factory=dict)
    labels: dict[str, int] = msgspec.field(default_factory=dict)
    moved: list[str] = msgspec.field(default_factory=list)  # classes whose share has an open alarm
    returned: bool = True  # those that closed since the alarm opened were back where they were


class Answers:
    """Notices that a stream's answers are no longer what they were.

    Watched are: the mean confidence of each frame that has detections, the number of detections of each frame, the shares that the three
    most common classes have of a frame's detections, and of each audit how far the next tier agreed. They have one alarm each; that of the
    mix opens with the first share that moves, and closes with the last.
    """

    def __init__(self, state: AnswersState | None = None) -> None:
        state = state or AnswersState()
        self._confidence = Shifts(KINDS[Cause.CONFIDENCE], state.confidence)
        self._count = Shifts(KINDS[Cause.COUNT], state.count)
        self._agreement = Shifts(KINDS[Cause.AGREEMENT], state.agreement)
        self._shares = {label: Shifts(KINDS[Cause.CLASSES], shifts) for label, shifts in state.shares.items()}
        self._labels, self._moved, self._returned = dict(state.labels), list(state.moved), state.returned

    def state(self) -> AnswersState:
        """All that it remembers; an `Answers` made of it goes on as this one would."""
        return AnswersState(
            confidence=self._confidence.state(),
            count=self._count.state(),
            agreement=self._agreement.state(),
            shares={label: shifts.state() for label, shifts in self._shares.items()},
            labels=dict(self._labels),
            moved=list(self._moved),
            returned=self._returned,
        )

    @property
    def armed(self) -> tuple[Cause, ...]:
        """What can be told by now: the rhythm of the others is not known yet."""
        shares = bool(self._shares) and all(shifts.armed for shifts in self._shares.values())
        watched = ((Cause.CONFIDENCE, self._confidence.armed), (Cause.COUNT, self._count.armed), (Cause.CLASSES, shares))
        return tuple(cause for cause, armed in (*watched, (Cause.AGREEMENT, self._agreement.armed)) if armed)

    def answered(self, at: float, detections: Detections) -> list[Change]:
        """Take the answer to one frame in."""
        number = len(detections)
        told = [_told(Cause.COUNT, at, self._count.add(float(number)))]
        if number:
            labels = Counter(detection.label for detection in detections)
            told.append(_told(Cause.CONFIDENCE, at, self._confidence.add(sum(detection.score for detection in detections) / number)))
            self._count_labels(labels)
            for label, shifts in tuple(self._shares.items()):
                shift = shifts.add(labels[label] / number)
                if shift is not None:
                    told.append(self._share_moved(at, label, shift))
        return [change for change in told if change is not None]

    def audited(self, at: float, agreement: float) -> list[Change]:
        """Take in how far the next tier agreed with one audited answer, 0 to 1."""
        told = _told(Cause.AGREEMENT, at, self._agreement.add(agreement))
        return [] if told is None else [told]

    def _count_labels(self, labels: Counter[str]) -> None:
        for label, number in labels.items():
            if label in self._labels or len(self._labels) < _LABELS:
                self._labels[label] = self._labels.get(label, 0) + number
        total = sum(self._labels.values())
        if not self._shares and total >= _FIRST:
            self._choose()
        if total >= _FADING:
            self._labels = {label: number // 2 for label, number in self._labels.items() if number > 1}

    def _choose(self) -> None:
        """Watch the most common classes; what is known of those that are watched already is kept."""
        common = sorted(self._labels, key=lambda label: (-self._labels[label], label))[:_CLASSES]
        self._shares = {label: self._shares.get(label) or Shifts(KINDS[Cause.CLASSES]) for label in common}

    def _share_moved(self, at: float, label: str, shift: Shift) -> Change | None:
        first = not self._moved
        if shift.opened:
            self._moved.append(label)
            self._returned = self._returned or first
        else:
            self._moved.remove(label)
            self._returned = self._returned and shift.recovered
        if not first and self._moved:
            return None
        change = _told(Cause.CLASSES, at, shift)
        assert change is not None
        if not shift.opened:
            self._choose()
        share = {f"share of {label} before": change.before, f"share of {label} after": change.after}
        return change._replace(evidence={**change.evidence, **share}, recovered=not shift.opened and self._returned)


def _told(cause: Cause, at: float, shift: Shift | None) -> Change | None:
    if shift is None:
        return None
    figures = {"batches": float(shift.batches), "batch": float(shift.batch)}
    return Change(cause, shift.opened, at, round(shift.before, 4), round(shift.after, 4), figures, shift.recovered)
