"""Which detections find which truths, decided once for each frame and each overlap, so that scores of any frames are sums afterwards.

The rules are COCO's [1]_: within a frame and label, detections choose in the order of their scores (100 at most); each takes the free
truth that it overlaps most, an ignored one only if there is no other; what takes an ignored truth is itself left out; a crowd can be taken
by many, and overlap with it is the share of the detection that lies within.

References
----------
.. [1] T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; `evaluateImg` of cocodataset/cocoapi.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.bench.cascade.truths import Truths
from schemas.detections import Detections

IOUS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
MAX_PER_LABEL = 100  # detections in a frame
_CELLS = 4_000_000  # frames x overlaps x truths that are matched at a time

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indexes = NDArray[np.intp]


class LabelMatches(NamedTuple):
    """The detections of one label in all frames that are known, best score first, and what became of each at every overlap of `IOUS`."""

    scores: Floats  # [n]
    frames: Indexes  # [n]
    found: Flags  # [10, n]: it found a truth
    counted: Flags  # [10, n]: it is right or wrong; False: left out, as it took an ignored truth
    truths: Floats  # [frames]: how many must be found in each


class Matches:
    """The matches of one run.

    Attributes
    ----------
    frames
        Frames of the video; weights of frames are this long.
    by_label
        For each label that was seen or must be found.
    """

    def __init__(self, frames: int, by_label: dict[str, LabelMatches]) -> None:
        self.frames = frames
        self.by_label = by_label

    def labels(self, chosen: Collection[str] | None = None) -> list[str]:
        """Those that were chosen; None: those that have truths."""
        if chosen is not None:
            return [label for label in sorted(set(chosen)) if label in self.by_label]
        return [label for label in sorted(self.by_label) if self.by_label[label].truths.any()]


def match(truths: Truths, detections: Sequence[Detections]) -> Matches:
    """Match a run's detections, one entry for each frame of the video. Frames about which nothing is known leave no trace.

    Raises
    ------
    ValueError
        If there are not as many entries as the video has frames.
    """
    total = len(truths.frames)
    if len(detections) != total:
        raise ValueError(f"detections of {len(detections)} frames against truths of {total}: expected one entry for each frame")
    seen: dict[str, list[tuple[float, ...]]] = {}
    wanted: dict[str, list[tuple[float, ...]]] = {}
    for frame, boxes in enumerate(truths.frames):
        if boxes is None:
            continue
        for each in detections[frame]:
            seen.setdefault(each.label, []).append((frame, each.score, each.x0, each.y0, each.x1, each.y1))
        for box in boxes:
            wanted.setdefault(box.label, []).append((frame, box.ignored or box.crowd, box.crowd, box.x0, box.y0, box.x1, box.y1))
    return Matches(total, {label: _label(seen.get(label, []), wanted.get(label, []), total) for label in sorted({*seen, *wanted})})


def stacked(first: Matches, second: Matches) -> Matches:
    """Two runs over one video as one of twice as many frames: weights `[1 - m, m]` score a run that takes the answers of `second` in the
    frames of the mask `m` and those of `first` elsewhere, without matching again. It serves an oracle that chooses frames."""
    if first.frames != second.frames:
        raise ValueError(f"runs of {first.frames} and of {second.frames} frames: expected the same video")
    by_label = {}
    for label in sorted({*first.by_label, *second.by_label}):
        one, two = (each.by_label.get(label) or _nothing(each.frames) for each in (first, second))
        scores = np.concatenate([one.scores, two.scores])
        order = np.argsort(-scores, kind="stable")
        by_label[label] = LabelMatches(
            scores=scores[order],
            frames=np.concatenate([one.frames, two.frames + first.frames])[order],
            found=np.concatenate([one.found, two.found], axis=1)[:, order],
            counted=np.concatenate([one.counted, two.counted], axis=1)[:, order],
            truths=np.concatenate([one.truths, two.truths]),
        )
    return Matches(2 * first.frames, by_label)


def _nothing(frames: int) -> LabelMatches:
    return _label([], [], frames)


def _label(seen: Iterable[tuple[float, ...]], wanted: Iterable[tuple[float, ...]], total: int) -> LabelMatches:
    rows = np.array(list(seen), np.float64).reshape(-1, 6)
    goals = np.array(list(wanted), np.float64).reshape(-1, 7)
    rows = rows[np.lexsort((-rows[:, 1], rows[:, 0]))]  # by frame, best first; a stable sort, so equal scores keep their order
    ranks = _ranks(rows[:, 0])
    rows, ranks = rows[ranks < MAX_PER_LABEL], ranks[ranks < MAX_PER_LABEL]
    goals = goals[np.lexsort((goals[:, 1], goals[:, 0]))]  # by frame, the ignored last
    found, ignored = np.zeros((len(IOUS), len(rows)), np.bool_), np.zeros((len(IOUS), len(rows)), np.bool_)
    for part, aims in _chunks(rows, goals):
        found[:, part], ignored[:, part] = _match(rows[part], ranks[part], goals[aims])
    order = np.argsort(-rows[:, 1], kind="stable")
    real = goals[goals[:, 1] == 0, 0].astype(np.intp)
    return LabelMatches(
        scores=rows[order, 1],
        frames=rows[order, 0].astype(np.intp),
        found=found[:, order],
        counted=~ignored[:, order],
        truths=np.bincount(real, minlength=total).astype(np.float64),
    )


def _ranks(frames: Floats) -> Indexes:
    """The place of each row among the rows of its frame; rows are sorted by frame."""
    starts = np.searchsorted(frames, frames, side="left")
    return np.arange(len(frames)) - starts


def _chunks(rows: Floats, goals: Floats) -> Iterator[tuple[slice, slice]]:
    """Rows and truths of so many frames that their table is not too large. Frames that have only one of the two need no matching."""
    frames = np.intersect1d(rows[:, 0], goals[:, 0])
    if not len(frames):
        return
    most = int(_ranks(goals[:, 0]).max()) + 1
    step = max(1, _CELLS // (len(IOUS) * most))
    for at in range(0, len(frames), step):
        low, high = frames[at], frames[min(at + step, len(frames)) - 1]
        yield _between(rows[:, 0], low, high), _between(goals[:, 0], low, high)


def _between(frames: Floats, low: float, high: float) -> slice:
    return slice(int(np.searchsorted(frames, low, side="left")), int(np.searchsorted(frames, high, side="right")))


def _match(rows: Floats, ranks: Indexes, goals: Floats) -> tuple[Flags, Flags]:
    """What the detections of some frames find, and which of them are left out: [overlaps, rows] each. All frames take their detection of
    one rank at a time."""
    numbers, places = np.unique(goals[:, 0], return_inverse=True)
    places_of_goals = _ranks(goals[:, 0])
    shape = (len(numbers), int(places_of_goals.max()) + 1)
    boxes = np.zeros((*shape, 4))
    boxes[places, places_of_goals] = goals[:, 3:]
    free = np.zeros((shape[0], len(IOUS), shape[1]), np.bool_)
    free[places, :, places_of_goals] = True
    optional, crowds = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    optional[places, places_of_goals] = goals[:, 1] > 0
    crowds[places, places_of_goals] = goals[:, 2] > 0
    found, ignored = (np.zeros((len(IOUS), len(rows)), np.bool_) for _ in range(2))
    at = np.minimum(np.searchsorted(numbers, rows[:, 0]), len(numbers) - 1)
    has_goals = numbers[at] == rows[:, 0]
    for rank in range(int(ranks.max()) + 1):
        turn = np.flatnonzero((ranks == rank) & has_goals)
        if not len(turn):
            continue
        here = at[turn]
        overlap = _overlap(rows[turn, 2:], boxes[here], crowds[here])
        fits = free[here] & (overlap[:, None, :] >= IOUS[None, :, None])
        best, some = _best(fits & ~optional[here][:, None, :], overlap)
        if optional.any():
            spare, spares = _best(fits & optional[here][:, None, :], overlap)
            spares &= ~some
            ignored[:, turn] = spares.T
        else:
            spare, spares = best, np.zeros_like(some)
        found[:, turn] = some.T
        which, overlaps = np.nonzero(some | spares)
        taken = np.where(some, best, spare)[which, overlaps]
        free[here[which], overlaps, taken] = crowds[here[which], taken]
    return found, ignored


def _best(fits: Flags, overlap: Floats) -> tuple[Indexes, Flags]:
    """The truth that fits best for each detection and overlap, of equals the last; and whether there is one."""
    values = np.where(fits, overlap[:, None, :], -1.0)[..., ::-1]
    last = np.argmax(values, axis=-1)
    return values.shape[-1] - 1 - last, np.take_along_axis(values, last[..., None], axis=-1)[..., 0] >= 0


def _overlap(boxes: Floats, truths: Floats, crowds: Flags) -> Floats:
    """Intersection over union of each box with the truths of its frame, [n, truths]; with a crowd, over the box alone."""
    width = np.minimum(boxes[:, None, 2], truths[..., 2]) - np.maximum(boxes[:, None, 0], truths[..., 0])
    height = np.minimum(boxes[:, None, 3], truths[..., 3]) - np.maximum(boxes[:, None, 1], truths[..., 1])
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    own = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[:, None]
    others = (truths[..., 2] - truths[..., 0]) * (truths[..., 3] - truths[..., 1])
    whole = np.where(crowds, own, own + others - shared)
    overlap: Floats = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return overlap
