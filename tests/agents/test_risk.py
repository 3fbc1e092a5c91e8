"""The threshold for final answers: its stated risk is kept as often as it says, in streams whose true risks are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.cascade.risk import Risk, choose, records_needed

Floats = NDArray[np.float64]

ALPHA, DELTA = 0.05, 0.1


def binomial_tail(count: int, at_most: int, share: float) -> float:
    """The probability of at most so many of `count`."""
    return math.fsum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(at_most + 1))


# Confidence is even from 0 to 1, and the region disagrees in the mean with 2 * wrong * (1 - confidence): above a threshold t with
# wrong * (1 - t). Times are good and bad in turn, each with a memory of so many records: in bad ones all risks are 1.9-fold, in good ones
# a tenth.
def stream(count: int, memory: float, wrong: float, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    keep = math.exp(-1 / memory) if memory else 0.0
    bad, column = bool(rng.random() < 0.5), []
    for turn, anew in zip(rng.random(count), rng.random(count), strict=True):
        bad = bad if turn < keep else bool(anew < 0.5)
        column.append(1.9 if bad else 0.1)
    sure = rng.random(count)
    return sure, (rng.random(count) < 2 * wrong * (1 - sure) * np.array(column)).astype(np.float64)


def true_risk(threshold: float, wrong: float) -> float:
    return wrong * (1 - threshold)


@pytest.mark.parametrize(("count", "memory"), [(300, 0.0), (1000, 0.0), (1000, 10.0), (1000, 40.0)])
@pytest.mark.parametrize("wrong", [0.07, 0.15])
def test_the_risk_is_kept_as_often_as_it_says(count: int, memory: float, wrong: float) -> None:
    """200 choices: up to a tenth may be wrong, and two standard errors more by chance."""
    passed = 0
    for seed in range(200):
        found = choose(*stream(count, memory, wrong, seed), alpha=ALPHA, delta=DELTA)
        passed += math.isfinite(found.threshold) and true_risk(found.threshold, wrong) > ALPHA
    assert passed / 200 <= DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / 200)


@pytest.mark.parametrize("memory", [0.0, 10.0])
def test_where_no_threshold_is_safe_it_seldom_names_one(memory: float) -> None:
    """Confidence says nothing, and the region disagrees with 5.2 %."""
    named = 0
    for seed in range(200):
        _, wrong = stream(1000, memory, 0.25, seed)
        rng = np.random.default_rng(seed + 1000)
        found = choose(rng.random(1000), wrong * (rng.random(1000) < 0.052 / 0.25), alpha=ALPHA, delta=DELTA)
        named += math.isfinite(found.threshold)
    assert named / 200 <= DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / 200)


def test_a_threshold_that_the_sample_seems_to_allow_would_pass_it_half_of_the_time() -> None:
    """What the bound is there for: the same streams with the lowest threshold at which the sample itself has the risk."""
    passed = 0
    for seed in range(200):
        sure, wrong = stream(1000, 10.0, 0.15, seed)
        order = np.argsort(-sure)
        fine = np.flatnonzero(np.cumsum(wrong[order]) <= ALPHA * np.arange(1, 1001))
        passed += bool(len(fine)) and true_risk(float(sure[order][fine[-1]]), 0.15) > ALPHA
    assert passed > 80


def test_it_uses_what_there_is() -> None:
    """Risks of .02 and less above every threshold: all answers are final; .07 in all: most of the 71 % that may be."""
    found = [choose(*stream(3000, 0.0, 0.02, seed), alpha=ALPHA, delta=DELTA) for seed in range(20)]
    assert sum(each.share > 0.99 for each in found) >= 19
    found = [choose(*stream(3000, 0.0, 0.07, seed), alpha=ALPHA, delta=DELTA) for seed in range(20)]
    assert 0.45 < float(np.mean([each.share for each in found])) < 0.71


# ---- the bound of one threshold


@pytest.mark.parametrize("wrong", [0, 1, 5, 9])
def test_it_is_never_below_the_exact_bound_for_independent_records(wrong: int) -> None:
    """All are equally sure, so that there is one threshold. The exact bound is the share at which so few have the probability delta."""
    disagreed = np.zeros(400)
    disagreed[np.linspace(10, 390, wrong).astype(int)] = 1
    found = choose(np.full(400, 0.7), disagreed, alpha=0.5, delta=DELTA)
    assert found.bound is not None
    assert (found.least, found.share, found.disagreed) == (0.7, 1.0, pytest.approx(wrong / 400))
    assert binomial_tail(400, wrong, found.bound) <= DELTA + 1e-6
    assert binomial_tail(400, wrong, found.bound / 1.6) > DELTA, "and not far above"


def test_disagreements_that_came_together_tell_less() -> None:
    sure = np.full(1000, 0.7)
    apart, together = np.zeros(1000), np.zeros(1000)
    apart[::100] = 1
    together[400:410] = 1
    bounds = [choose(sure, each, alpha=0.5, delta=DELTA).bound for each in (apart, together)]
    assert bounds[0] is not None
    assert bounds[1] is not None
    assert bounds[1] > 1.5 * bounds[0]


def test_frames_that_were_audited_more_often_do_not_count_more() -> None:
    """Sure frames are audited at .9, unsure ones at .3, and the latter twice as often wrong."""
    rng = np.random.default_rng(1)
    sure = rng.random(9000)
    wrong = (rng.random(9000) < np.where(sure > 0.5, 0.02, 0.04)).astype(float)
    rate = np.where(sure > 0.5, 0.9, 0.3)
    taken = rng.random(9000) < rate
    found = choose(sure[taken], wrong[taken], 1 / rate[taken], alpha=ALPHA, delta=DELTA)
    assert found.least is not None
    assert found.least < 0.01
    assert found.disagreed == pytest.approx(0.03, abs=0.006)
    assert choose(sure[taken], wrong[taken], alpha=ALPHA, delta=DELTA).disagreed == pytest.approx(0.025, abs=0.004)


# ---- what it says


def test_too_few_records_allow_nothing() -> None:
    needed = records_needed(ALPHA, DELTA)
    assert needed == math.ceil(3 * math.log(DELTA) / math.log(1 - ALPHA))
    for count in (0, needed - 1):
        found = choose(np.ones(count), np.zeros(count), alpha=ALPHA, delta=DELTA)
        assert (found.threshold, found.least) == (math.inf, None)
        assert found.unknown == f"{count} audited records: expected at least {needed}"
        assert not found.final(1.0)
    assert choose(np.ones(needed), np.zeros(needed), alpha=ALPHA, delta=DELTA).final(1.0)


def test_it_says_why_nothing_is_final() -> None:
    found = choose(np.linspace(0, 1, 500), np.ones(500), alpha=ALPHA, delta=DELTA)
    assert math.isinf(found.threshold)
    assert "the region disagreed with 100.0%" in found.unknown
    one = choose(np.linspace(0, 1, 200), np.zeros(200), np.r_[np.ones(100), np.full(100, 40.0)], alpha=ALPHA, delta=DELTA)
    assert "at different rates are worth 105" in one.unknown


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0)])
def test_a_risk_and_a_probability_are_shares(alpha: float, delta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose([], [], alpha=alpha, delta=delta)


@given(st.integers(0, 1 << 32), st.integers(0, 600), st.floats(0, 1), st.integers(1, 9), st.floats(0.02, 0.5), st.floats(0.01, 0.4))
@settings(deadline=None)
def test_what_it_says_fits_together(seed: int, count: int, wrong: float, steps: int, alpha: float, delta: float) -> None:
    """With many equal confidences, too."""
    rng = np.random.default_rng(seed)
    sure, disagreed = rng.integers(0, steps, count) / steps, (rng.random(count) < wrong).astype(float)
    found: Risk = choose(sure, disagreed, alpha=alpha, delta=delta)
    final = sure >= found.threshold
    assert found.records == count
    assert [found.final(float(each)) for each in sure] == final.tolist()
    assert found.share == pytest.approx(final.mean() if count else 0.0)
    assert bool(found.unknown) == (found.least is None)
    if found.least is not None:
        assert found.disagreed is not None
        assert found.bound is not None
        assert found.disagreed == pytest.approx(disagreed[final].mean())
        assert found.disagreed <= found.bound <= alpha
