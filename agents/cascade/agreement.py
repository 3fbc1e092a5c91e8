"""Whether two answers to one frame are the same: object by object, and for a reader who acts on them.

Pure; which of the two is right is not asked here. Against true labels the same functions say how right an answer is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from schemas.detections import Detection, Detections
from schemas.rules import Rule, Zone, best_match

IOU = 0.5  # boxes that overlap less are of different objects
SCORE = 0.5  # an object with a lower score is not reported to anybody, unless a rule says otherwise


class Counts(msgspec.Struct, frozen=True):
    """Of one answer against another: objects in both (`tp`), in the first only (`fp`), and in the second only (`fn`)."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def same(self) -> bool:
        """Whether both hold the same objects."""
        return not self.fp and not self.fn

    @property
    def precision(self) -> float | None:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def partners(first: Sequence[Detection], second: Sequence[Detection], *, iou: float = IOU) -> list[int | None]:
    """For each detection of the first set the index of the one in the second that is the same object, or None.

    In the order of their scores, each of the first takes the one of the second that overlaps it most, has its class, and was not taken
    before (as COCO and PASCAL VOC evaluate [1]_). Only within a class: a reader acts on the class, so an object of another class is another
    object, and counts as one that was invented and one that was missed.

    Examples
    --------
    >>> a = [Detection("person", 0.9, 0.1, 0.1, 0.2, 0.4), Detection("dog", 0.8, 0.5, 0.5, 0.7, 0.7)]
    >>> b = [Detection("cat", 0.9, 0.5, 0.5, 0.7, 0.7), Detection("person", 0.6, 0.1, 0.1, 0.2, 0.39)]
    >>> partners(a, b)
    [1, None]

    References
    ----------
    .. [1] Everingham et al. (2010). The PASCAL Visual Object Classes (VOC) Challenge. IJCV 88, section 4.2.
    """
    left: dict[str, list[int]] = {}
    for index, each in enumerate(second):
        left.setdefault(each.label, []).append(index)
    found: list[int | None] = [None] * len(first)
    for index in sorted(range(len(first)), key=lambda i: -first[i].score):
        free = left.get(first[index].label, ())
        best, most = None, iou
        for other in free:
            overlap = first[index].iou(second[other])
            if overlap > most or (overlap == most and best is None):
                best, most = other, overlap
        if best is not None and isinstance(free, list):
            free.remove(best)
        found[index] = best
    return found


def reported(detections: Iterable[Detection], score: float) -> list[Detection]:
    """The detections that are reported at an operating score."""
    return [each for each in detections if each.score >= score]


def compare(
    first: Iterable[Detection], second: Iterable[Detection], *, score: float = SCORE, second_score: float | None = None, iou: float = IOU
) -> Counts:
    """What the first answer has in common with the second, and what not.

    Parameters
    ----------
    score
        The operating score of the first: what has less is not reported. A model that is compared at a score at which nobody reads it is
        judged for what nobody sees.
    second_score
        That of the second, if it is another one; 0 for labels.
    """
    mine, theirs = reported(first, score), reported(second, score if second_score is None else second_score)
    tp = sum(partner is not None for partner in partners(mine, theirs, iou=iou))
    return Counts(tp, len(mine) - tp, len(theirs) - tp)


def judged_scores(
    first: Iterable[Detection], second: Iterable[Detection], *, second_score: float = SCORE, iou: float = IOU
) -> list[tuple[float, bool]]:
    """Each score of the first answer, and whether the second has that object: what a calibration is fitted on. Weak detections of the
    first count too, since a calibration is to say how weak they are."""
    mine = list(first)
    found = partners(mine, reported(second, second_score), iou=iou)
    return [(each.score, partner is not None) for each, partner in zip(mine, found, strict=True)]


def agree(
    first: Detections,
    second: Detections,
    rules: Sequence[tuple[Rule, Zone]] = (),
    *,
    score: float = SCORE,
    second_score: float | None = None,
    tolerance: float = 0.0,
    iou: float = IOU,
) -> bool:
    """Whether a reader of either answer would do the same.

    Where a site has rules for the source, they say what is acted upon: the answers agree if every rule finds its object in both or in
    neither, in its zone. Without rules a reader may act on any object: they agree if both hold the same ones.

    Parameters
    ----------
    rules
        Those that apply to the frame's source; they have their own scores.
    tolerance
        Without rules, the share of all objects that may be in one answer only. In a crowd a reader may not mind one of twenty.
    """
    if rules:
        return all(
            (best_match(first, rule.label, rule.min_score, zone) is None) == (best_match(second, rule.label, rule.min_score, zone) is None)
            for rule, zone in rules
        )
    counts = compare(first, second, score=score, second_score=second_score, iou=iou)
    return counts.fp + counts.fn <= tolerance * (counts.tp + counts.fp + counts.fn)
