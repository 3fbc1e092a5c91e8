"""How right a run is, from its matches: average precision as COCO has it, and precision, recall and F1 at an operating score.

Frames have weights: 1 and 0 score a part of the video, whole numbers a resample of it, and nothing is matched again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from infra.bench.cascade.matching import IOUS, Floats, LabelMatches, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
AP50 = (0,)  # places in `IOUS`
ALL_IOUS = tuple(range(len(IOUS)))
_CELLS = 1 << 20  # frames' weights x detections that are summed at a time


class LabelScores(msgspec.Struct, frozen=True, kw_only=True):
    """Of one label. A figure is None where it is not defined: recall and average precision without a truth, precision without a box."""

    truths: int
    ap50: float | None
    ap50_95: float | None
    precision: float | None
    recall: float | None
    f1: float | None


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Of a run. Average precision is the mean over labels that have truths; precision, recall and F1 count the boxes of all labels."""

    ap50: float | None
    ap50_95: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    truths: int
    by_label: dict[str, LabelScores]


def score(
    matches: Matches, *, operating_score: float, labels: Collection[str] | None = None, weights: Sequence[float] | Floats | None = None
) -> Scores:
    """Score a run.

    Parameters
    ----------
    operating_score
        Detections with this score or more are what is answered; precision, recall and F1 are of these, at an overlap of .5.
    labels
        Only these; None: those that have truths in the video.
    weights
        Of each frame of the video; None: all the same.
    """
    chosen = matches.labels(labels)
    row = _rows(matches, weights)
    parts: dict[str, tuple[LabelScores, float, Floats]] = {}
    for label in chosen:
        each = matches.by_label[label]
        aps = np.array([_average_precision(each, at, row)[0] for at in ALL_IOUS])
        found, wrong, truths = (float((row[0] * counts).sum()) for counts in operating_counts(matches, operating_score, [label]))
        precision, recall, f1 = _rates(found, wrong, truths)
        mean = float(aps.mean())
        parts[label] = (
            LabelScores(
                truths=round(truths), ap50=_defined(float(aps[0])), ap50_95=_defined(mean), precision=precision, recall=recall, f1=f1
            ),
            mean,
            np.array([found, wrong, truths]),
        )
    by_label = {label: part[0] for label, part in parts.items()}
    found, wrong, truths = np.sum([part[2] for part in parts.values()], axis=0).tolist() if parts else (0.0, 0.0, 0.0)
    precision, recall, f1 = _rates(found, wrong, truths)
    return Scores(
        ap50=_mean([each.ap50 for each in by_label.values()]),
        ap50_95=_mean([each.ap50_95 for each in by_label.values()]),
        precision=precision,
        recall=recall,
        f1=f1,
        truths=round(truths),
        by_label=by_label,
    )


def average_precision(
    matches: Matches, weights: Floats | None = None, *, ious: Sequence[int] = AP50, labels: Collection[str] | None = None
) -> Floats:
    """Average precision for each row of weights ([rows, frames]; None: one row of ones), NaN where no label has a truth.

    Parameters
    ----------
    ious
        Places in `matching.IOUS` whose mean is wanted: `AP50` or `ALL_IOUS`.
    labels
        Only these; None: those that have truths. The mean is over the labels that have a truth in the row.
    """
    rows = _rows(matches, weights)
    chosen = [matches.by_label[label] for label in matches.labels(labels)]
    if not chosen:
        return np.full(len(rows), np.nan)
    values = np.array([[_average_precision(each, at, rows) for at in ious] for each in chosen]).mean(axis=1)
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    mean: Floats = np.divide(np.where(defined, values, 0.0).sum(axis=0), count, out=np.full(len(rows), np.nan), where=count > 0)
    return mean


def operating_counts(
    matches: Matches, operating_score: float, labels: Collection[str] | None = None, *, iou: int = 0
) -> tuple[Floats, Floats, Floats]:
    """For each frame: boxes at the operating score that are right, those that are wrong, and truths. Weighted sums of them give F1."""
    found, wrong, truths = (np.zeros(matches.frames) for _ in range(3))
    for label in matches.labels(labels):
        each = matches.by_label[label]
        answered = int(np.searchsorted(-each.scores, -operating_score, side="right"))
        frames, right, counted = each.frames[:answered], each.found[iou, :answered], each.counted[iou, :answered]
        found += np.bincount(frames[right], minlength=matches.frames)
        wrong += np.bincount(frames[counted & ~right], minlength=matches.frames)
        truths += each.truths
    return found, wrong, truths


def f1_scores(matches: Matches, weights: Floats | None = None, *, operating_score: float, labels: Collection[str] | None = None) -> Floats:
    """F1 at the operating score for each row of weights, NaN where there is neither a truth nor a box."""
    rows = _rows(matches, weights)
    found, wrong, truths = (rows @ counts for counts in operating_counts(matches, operating_score, labels))
    total = found + wrong + truths
    result: Floats = np.divide(2 * found, total, out=np.full(len(rows), np.nan), where=total > 0)
    return result


def _rows(matches: Matches, weights: Sequence[float] | Floats | None) -> Floats:
    rows = np.ones((1, matches.frames)) if weights is None else np.atleast_2d(np.asarray(weights, np.float64))
    if rows.shape[1] != matches.frames:
        raise ValueError(f"weights of {rows.shape[1]} frames for a run of {matches.frames}: expected one for each frame")
    return rows


def _average_precision(each: LabelMatches, iou: int, rows: Floats) -> Floats:
    """Of one label at one overlap, for each row of weights: the mean, over 101 recalls, of the best precision at that recall or more.

    Only places where a truth is found need be looked at: between two of them precision falls and recall stays.
    """
    positives = rows @ each.truths
    result = np.where(positives > 0, 0.0, np.nan)
    counted = each.counted[iou]
    frames, hits = each.frames[counted], np.flatnonzero(each.found[iou][counted])
    if not len(hits):
        return result
    step = max(1, _CELLS // len(frames))
    for at in range(0, len(rows), step):
        weights = rows[at : at + step].take(frames, axis=1)
        right = np.cumsum(weights.take(hits, axis=1), axis=1)
        answered = np.cumsum(weights, axis=1, out=weights).take(hits, axis=1)
        precision = np.divide(right, answered, out=np.zeros_like(right), where=answered > 0)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for row, (found, envelope) in enumerate(zip(right, best, strict=True), at):
            if positives[row] > 0:
                places = np.searchsorted(found / positives[row], RECALLS, side="left")
                result[row] = envelope[places[places < len(hits)]].sum() / len(RECALLS)
    return result


def _rates(found: float, wrong: float, truths: float) -> tuple[float | None, float | None, float | None]:
    """Precision, recall and F1."""
    return (
        found / (found + wrong) if found + wrong else None,
        found / truths if truths else None,
        2 * found / (found + wrong + truths) if found + wrong + truths else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
