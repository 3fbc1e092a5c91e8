"""Whether scores mean what they say: the expected calibration error of detections against truths, in bins of equal mass."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from infra.bench.cascade.matching import Floats, Matches

BINS = 15


class Bin(msgspec.Struct, frozen=True):
    """Detections with scores from `low` to `high`: how many, their mean score, and the share of them that is right."""

    low: float
    high: float
    weight: float
    score: float
    right: float


class Calibration(msgspec.Struct, frozen=True):
    """The expected calibration error, and the bins it was added up from; None without a detection."""

    error: float | None
    bins: tuple[Bin, ...]


def calibration(
    matches: Matches,
    *,
    bins: int = BINS,
    labels: Collection[str] | None = None,
    weights: Sequence[float] | Floats | None = None,
    iou: int = 0,
) -> Calibration:
    """The mean distance between what scores say and what is right, over detections.

    A detection is right if it found a truth (at an overlap of .5 for `iou` 0); those that took an ignored truth are left out. Detections
    are sorted by score and cut into `bins` of about equal mass [2]_, rather than of equal width [1]_, because most scores of a detector are
    low; equal scores are never cut apart. The error of a bin counts by its mass. With few detections it is too high by chance: a perfectly
    calibrated detector with n detections in each of the bins shows about sqrt(p(1-p)/n).

    Parameters
    ----------
    labels
        Only these; None: those that have truths.
    weights
        Of each frame of the video; None: all the same.

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    .. [2] K. Nguyen, B. O'Connor, "Posterior calibration and exploratory analysis for natural language processing models", EMNLP 2015.
    """
    mass = np.ones(matches.frames) if weights is None else np.asarray(weights, np.float64)
    chosen = [matches.by_label[label] for label in matches.labels(labels)]
    if not chosen:
        return Calibration(None, ())
    scores = np.concatenate([each.scores[each.counted[iou]] for each in chosen])
    right = np.concatenate([each.found[iou][each.counted[iou]] for each in chosen])
    weight = np.concatenate([mass[each.frames[each.counted[iou]]] for each in chosen])
    scores, right, weight = (values[weight > 0] for values in (scores, right, weight))
    if not len(scores):
        return Calibration(None, ())
    values, place = np.unique(scores, return_inverse=True)
    mass_of = np.bincount(place, weight)
    # the bin of a score is that of the middle of its mass
    middle = (np.cumsum(mass_of) - mass_of / 2) / mass_of.sum()
    bin_of = np.minimum((middle * bins).astype(np.intp), bins - 1)
    total, said, true = (np.bincount(bin_of[place], weight * each, bins) for each in (np.ones_like(scores), scores, right))
    found = []
    for number in np.flatnonzero(total):
        inside = values[bin_of == number]
        mass_in = float(total[number])
        found.append(Bin(float(inside[0]), float(inside[-1]), mass_in, float(said[number]) / mass_in, float(true[number]) / mass_in))
    return Calibration(float(np.abs(said - true).sum() / total.sum()), tuple(found))
