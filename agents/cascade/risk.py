"""From which confidence on a leaf may call its answer final, so that the region would disagree with few of them.

The risk is stated, not guessed: of what the leaf called final, the region disagrees with a share of at most `alpha`, and the threshold that
is chosen keeps that with a probability of at least 1 - `delta`. It is chosen on the audit sample, where the region's answer is known
whatever the confidence was. Frames and rows of requests are the same here.

What is assumed: the window's records tell what the next ones are like. Video does not promise that; so the window moves and is short, it is
emptied when a drift is found, and neighbouring records count for what they are worth: as many independent ones as their disagreements
resemble (`agents.cascade.spread`). The guarantee is for each choice; a site that chooses anew each minute will be wrong in up to `delta` of
the choices.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, stdtrit

from agents.cascade.spread import Floats, share

ALPHA, DELTA = 0.05, 0.1
_FIRST_SHARE = 0.1  # of the records: the strictest threshold that is tried is passed by these
_FIRST_TIMES = 3.0  # or by so many times the records that would do without any disagreement: a few may be there by chance
_THRESHOLDS = 32
_NORMAL = 1e6  # degrees of freedom


class Risk(msgspec.Struct, frozen=True, kw_only=True):
    """The threshold for `final` that a window of audited records allows.

    `least` is the lowest confidence that is final; None if nothing is, and `unknown` says why. `share` is the share of all records that is
    final then, `disagreed` the share of these that the region disagreed with, and `bound` what it is below in truth, with a probability of
    1 - `delta`. `records` is how many audited records it rests on.
    """

    alpha: float
    delta: float
    records: int
    least: float | None = None
    share: float = 0.0
    disagreed: float | None = None
    bound: float | None = None
    unknown: str = ""

    @property
    def threshold(self) -> float:
        """The lowest confidence that is final; infinite if nothing is."""
        return math.inf if self.least is None else self.least

    def final(self, confidence: float) -> bool:
        return confidence >= self.threshold


def records_needed(alpha: float, delta: float) -> int:
    """How many audited records a choice needs at least."""
    return math.ceil(_FIRST_TIMES * math.log(delta) / math.log1p(-alpha))


def choose(
    confidences: ArrayLike, disagreed: ArrayLike, weights: ArrayLike | None = None, *, alpha: float = ALPHA, delta: float = DELTA
) -> Risk:
    """The lowest threshold for which the risk is shown to be at most `alpha`.

    Learn then Test [1]_: each threshold is a hypothesis "its risk is above `alpha`", rejected if an upper bound of the risk, exact for
    binomial numbers, is not above `alpha`. They are tested in a fixed order, from the strictest on, until one is not rejected: then the
    probability that any was rejected wrongly is at most `delta`, however many were tested (fixed sequence testing; with a risk that falls
    with the threshold this is also RCPS [2]_). The first is fixed by the number of records alone.

    The bound is Clopper and Pearson's, for the effective number of records, and widened by Student's quantile since that number is
    estimated (Korn and Graubard [3]_).

    Parameters
    ----------
    confidences, disagreed
        Of each audited record in the order of time: how sure the leaf was, and whether the region's answer was another one
        (`agents.cascade.agreement.agree`).
    weights
        Of each record: one over the rate that it was audited with; None: all the same.

    References
    ----------
    .. [1] A. N. Angelopoulos, S. Bates, E. J. Candès, M. I. Jordan, L. Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve
       Risk Control", Annals of Applied Statistics 19(2), 2025.
    .. [2] S. Bates, A. Angelopoulos, L. Lei, J. Malik, M. Jordan, "Distribution-Free, Risk-Controlling Prediction Sets", JACM 68(6), 2021.
    .. [3] E. L. Korn, B. I. Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts Estimated from
       Survey Data", Survey Methodology 24, 1998.
    """
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise ValueError(f"a risk of {alpha} that may be passed with probability {delta}: expected both between 0 and 1")
    sure, wrong = np.asarray(confidences, np.float64), np.asarray(disagreed, np.float64)
    mass = np.ones(len(sure)) if weights is None else np.asarray(weights, np.float64)
    records, needed = len(sure), records_needed(alpha, delta)
    if records < needed:
        return Risk(alpha=alpha, delta=delta, records=records, unknown=f"{records} audited records: expected at least {needed}")
    alike = float(mass.sum() ** 2 / (mass**2).sum())
    first = max(_FIRST_SHARE, needed / alike)
    if first > 1:
        text = f"{records} audited records at different rates are worth {alike:.0f}: expected at least {needed}"
        return Risk(alpha=alpha, delta=delta, records=records, unknown=text)
    thresholds = _thresholds(sure, mass, first)
    final = (sure >= thresholds[:, None]).astype(np.float64)
    seen, bounds = _bounds(final, wrong, mass, alpha, delta)
    passed = int(np.cumprod(bounds <= alpha).sum())
    if not passed:
        text = (
            f"of the {final[0].mean():.0%} of records that the leaf was surest of, the region disagreed with {seen[0]:.1%} "
            f"(below {bounds[0]:.1%} with probability {1 - delta:g}): expected at most {alpha:g}"
        )
        return Risk(alpha=alpha, delta=delta, records=records, unknown=text)
    last = passed - 1
    return Risk(
        alpha=alpha,
        delta=delta,
        records=records,
        least=float(thresholds[last]),
        share=float(mass @ final[last] / mass.sum()),
        disagreed=float(seen[last]),
        bound=float(bounds[last]),
    )


def _thresholds(sure: Floats, mass: Floats, first: float) -> Floats:
    """Confidences, from high to low, that at least the share `first` of records reach, then more and more, then all."""
    order = np.argsort(-sure, kind="stable")
    reach = np.cumsum(mass[order]) / mass.sum()
    places = np.minimum(np.searchsorted(reach, np.linspace(first, 1, _THRESHOLDS) - 1e-9), len(sure) - 1)
    return np.unique(sure[order][places])[::-1]


def _bounds(final: Floats, wrong: Floats, mass: Floats, alpha: float, delta: float) -> tuple[Floats, Floats]:
    """For each row of `final`: the share of final records that are wrong, and its upper bound.

    Where few are wrong they show little of how they come together, so what all records show of it is believed of the final ones too: the
    worth of a record falls with the number of those that resemble it, and so in proportion to how many are final and how many of them may
    be wrong.
    """
    found = share(final * wrong, final, mass)
    every = share(wrong, np.ones_like(wrong), mass)
    count = mass.sum() ** 2 / (mass**2).sum()
    together = (count / every.independent - 1) * min(1.0, alpha / max(float(every.value), alpha))
    shares = final @ mass / mass.sum()
    worth = np.minimum(found.independent, shares * count / (1 + shares * together))  # never more than there are
    worth = worth * (stdtrit(_NORMAL, 1 - delta) / stdtrit(found.freedom, 1 - delta)) ** 2
    wrongs = found.value * worth
    return found.value, np.where(found.value < 1, betaincinv(wrongs + 1, np.maximum(worth - wrongs, 1e-9), 1 - delta), 1.0)
