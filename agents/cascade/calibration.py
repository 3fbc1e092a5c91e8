"""A confidence that means a probability: of what is reported with .8, four of five are right.

Per model and stream, two numbers stretch and shift a score's logit; they are fitted again and again on a window of scores that were judged
(the audit sample, or labels). Ranking is kept, so whatever sorts by score sorts by confidence as before.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

Floats = NDArray[np.float64]

LEAST_SLOPE, GREATEST_SLOPE = 0.05, 20.0
PRIOR_PAIRS = 20.0
_EDGE = 5e-5  # half a step of the scores that travel: a score of 0 or 1 is a rounded one
_STEPS = 25
_FAR = 4.6  # logits beyond it (scores beyond .01 and .99) tell a fit no more than those there: one odd pair is not to outweigh twenty
_SPREAD = 2.0  # of scores' logits, by the size of which the belief in a slope of 1 weighs as much as that in a shift of 0


class Calibration(msgspec.Struct, frozen=True):
    """p = sigmoid(slope * logit(score) + shift). As it is when made, it changes nothing. `pairs` is how many independent pairs it was
    fitted on."""

    slope: float = 1.0
    shift: float = 0.0
    pairs: float = 0.0

    def __call__(self, score: float) -> float:
        """The probability that a score stands for."""
        score = min(max(score, _EDGE), 1 - _EDGE)
        return 1 / (1 + math.exp(-(self.slope * math.log(score / (1 - score)) + self.shift)))

    def of(self, scores: ArrayLike) -> Floats:
        """The same of many scores."""
        return np.asarray(expit(self.slope * _logits(scores) + self.shift))


IDENTITY = Calibration()


def fit(
    scores: ArrayLike,
    right: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    kind: Literal["platt", "temperature"] = "platt",
    prior_pairs: float = PRIOR_PAIRS,
) -> Calibration:
    """The calibration that makes the judged scores most likely (Platt [1]_; temperature [2]_ is the case without shift), drawn towards no
    change.

    Newton's method on a convex function of two numbers, halving a step that goes wrong. The slope stays above 0.

    Parameters
    ----------
    scores, right
        What was reported, and whether it was so: `agents.cascade.agreement.judged_scores`.
    weights
        Of each pair: one over the rate at which its frame was audited; None: all the same.
    groups
        Which pairs belong together, such as those of one frame, as whole numbers from 0: a group then counts as one observation, however
        many pairs it holds, against the prior. None: each pair stands alone.
    prior_pairs
        How many pairs of score .5 (or groups of them) weigh as much as the belief that nothing needs to change.

    References
    ----------
    .. [1] J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999. On logits: M. Kull, T. Silva Filho, P. Flach, "Beta
       calibration", AISTATS 2017.
    .. [2] C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    x, y = np.clip(_logits(scores), -_FAR, _FAR), np.asarray(right, np.float64)
    if not len(x):
        return IDENTITY
    mass = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    together = mass if groups is None else np.bincount(np.asarray(groups, np.intp), mass)
    pairs = float(mass.sum() ** 2 / (together**2).sum())
    mass = mass * (pairs / mass.sum())
    fixed = 0.0 if kind == "temperature" else None
    slope, shift = _newton(x, y, mass, prior_pairs / 4, slope=None, shift=fixed)
    if not LEAST_SLOPE <= slope <= GREATEST_SLOPE:
        slope = min(max(slope, LEAST_SLOPE), GREATEST_SLOPE)
        if fixed is None:
            shift = _newton(x, y, mass, prior_pairs / 4, slope=slope, shift=None)[1]
    return Calibration(slope, shift, pairs)


_UNCHANGED = np.array([1.0, 0.0])


def _newton(x: Floats, y: Floats, mass: Floats, prior: float, *, slope: float | None, shift: float | None) -> tuple[float, float]:
    """Slope and shift that minimise the weighted log loss plus `prior` times half their squared distance from (1, 0), where that of the
    slope is scaled; one that is given stays. A pair of score .5 tells 1/4 about the shift: hence the scale of `prior`."""
    held = np.array([prior * _SPREAD**2, prior])
    free = np.array([slope is None, shift is None])
    place = np.array([1.0 if slope is None else slope, 0.0 if shift is None else shift])
    loss = math.inf
    step = np.zeros(2)
    for _ in range(_STEPS):
        z = place[0] * x + place[1]
        now = float(mass @ (np.logaddexp(0, z) - y * z)) + float(held @ (place - _UNCHANGED) ** 2) / 2
        if now > loss + 1e-12 * abs(loss):
            step /= 2
            place = place - step
            continue
        p = expit(z)
        away, curve = mass * (p - y), mass * p * (1 - p)
        gradient = np.array([away @ x, away.sum()]) + held * (place - _UNCHANGED)
        across = float(curve @ x)
        bend = np.array([[float(curve @ (x * x)), across], [across, float(curve.sum())]]) + np.diag(held)
        step = np.zeros(2)
        step[free] = -np.linalg.solve(bend[np.ix_(free, free)], gradient[free])
        loss, place = now, place + step
        if np.abs(step).max() < 1e-7:
            break
    return float(place[0]), float(place[1])


def _logits(scores: ArrayLike) -> Floats:
    clipped = np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(np.log(clipped / (1 - clipped)))


class CalibrationError(msgspec.Struct, frozen=True):
    """How far confidence is from the share that is right, in the mean.

    `plain` is the distance as it is measured; a perfect calibration would show `noise` on as many pairs, by chance alone. `value` is what
    remains: sqrt(plain**2 - noise**2), or 0.
    """

    value: float
    plain: float
    noise: float
    pairs: int


def calibration_error(
    probabilities: ArrayLike,
    right: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    bins: int | None = None,
) -> CalibrationError | None:
    """The expected calibration error [1]_ over bins of equal mass, with what chance adds to it taken out; None without a pair.

    In a bin of few pairs the share that is right differs from the confidence by chance, and distances do not cancel: the plain error is too
    high, at 200 pairs of a perfect calibration .07 (see [2]_). What chance adds is known, the mean of a folded normal distribution in each
    bin, and is taken out as a root of squares. In simulations of 50 to 2,000 pairs with a true error of 0, .07 and .22, the mean of `value`
    then lay within .035 of the truth at 50 pairs, .025 at 200 and .01 at 2,000; that of the plain error up to .07 away.

    Parameters
    ----------
    groups
        Which pairs belong together, such as those of one frame or of ten seconds: pairs that are wrong together make for more chance.
    bins
        How many; None: one for 25 pairs, from 2 to 15.

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    .. [2] R. Roelofs, N. Cain, J. Shlens, M. C. Mozer, "Mitigating Bias in Calibration Error Estimation", AISTATS 2022; A. Kumar, P. Liang,
       T. Ma, "Verified Uncertainty Calibration", NeurIPS 2019, which corrects the squared error.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(right, np.float64)
    if not len(p):
        return None
    mass = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(p, kind="stable")
    p, y, mass = p[order], y[order], mass[order]
    count = bins or int(np.clip(len(p) // 25, 2, 15))
    ends = np.cumsum(mass)
    bin_of = np.minimum(((ends - mass / 2) / ends[-1] * count).astype(np.intp), count - 1)
    total = np.bincount(bin_of, mass, count)
    there = total > 0
    away = np.bincount(bin_of, mass * (y - p), count)[there]
    chance = np.sqrt(np.bincount(bin_of, mass**2 * p * (1 - p), count)[there])  # of a perfect calibration
    if groups is not None:
        chance *= math.sqrt(_together(mass * (y - p - (away / total[there])[(np.cumsum(there) - 1)[bin_of]]), np.asarray(groups)[order]))
    plain, noise = float(np.abs(away).sum() / ends[-1]), float(chance.sum() / ends[-1] * math.sqrt(2 / math.pi))
    return CalibrationError(math.sqrt(max(plain**2 - noise**2, 0.0)), plain, noise, len(p))


def _together(rest: Floats, groups: NDArray[np.intp]) -> float:
    """How many times the variance of a sum is that of independent pairs, as pairs of a group are wrong together; at least 1."""
    alone = float((rest**2).sum())
    return max(1.0, float((np.bincount(groups.astype(np.intp), rest) ** 2).sum()) / alone) if alone > 0 else 1.0
