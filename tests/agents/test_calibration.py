"""Confidence that means probability: fits against a general optimiser, errors against what they are known to be."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from agents.cascade.calibration import IDENTITY, LEAST_SLOPE, PRIOR_PAIRS, Calibration, calibration_error, fit

Floats = NDArray[np.float64]
pairs = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0.1, 100)), max_size=60)


def drawn(count: int, seed: int, slope: float = 1.0, shift: float = 0.0) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores that are right with probability sigmoid(slope * logit + shift)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, 1.3, count)
    return 1 / (1 + np.exp(-logits)), rng.random(count) < 1 / (1 + np.exp(-slope * logits - shift))


# ---- fitting


def test_what_scores_mean_is_found() -> None:
    found = fit(*drawn(100_000, 1, slope=0.6, shift=-0.8))
    assert found.slope == pytest.approx(0.6, abs=0.02)
    assert found.shift == pytest.approx(-0.8, abs=0.02)
    assert found(0.5) == pytest.approx(1 / (1 + math.exp(0.8)), abs=0.01)
    cooled = fit(*drawn(100_000, 2, slope=0.5), kind="temperature")
    assert (cooled.slope, cooled.shift) == (pytest.approx(0.5, abs=0.02), 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_optimum_of_what_it_says(seed: int) -> None:
    """The penalised likelihood, written down again and given to a general optimiser."""
    scores, right = drawn(40, seed, slope=2.0, shift=1.0)
    weights = np.random.default_rng(seed).uniform(0.2, 5, 40)
    mass = weights * weights.sum() / (weights**2).sum()
    logits = np.clip(np.log(scores / (1 - scores)), -4.6, 4.6)

    def loss(x: Floats) -> float:
        p = 1 / (1 + np.exp(-x[0] * logits - x[1]))
        likelihood = np.where(right, np.log(p), np.log(1 - p))
        return float(-(mass * likelihood).sum() + PRIOR_PAIRS / 8 * (4 * (x[0] - 1) ** 2 + x[1] ** 2))

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000}).x
    found = fit(scores, right, weights)
    assert (found.slope, found.shift) == (pytest.approx(best[0], abs=1e-4), pytest.approx(best[1], abs=1e-4))


def test_few_pairs_change_little_and_none_nothing() -> None:
    assert fit([], []) == IDENTITY
    for score, change in ((0.0, 0.3), (0.1, 0.14), (0.5, 0.07), (0.9, 0.14), (1.0, 0.3)):
        for right in (True, False):
            found = fit([score] * 3, [right] * 3)
            assert abs(found(0.5) - 0.5) < change
            assert abs(found(0.9) - 0.9) < change
    assert abs(fit([0.9] * 300, [False] * 300)(0.9)) < 0.1, "many do"


def test_pairs_of_one_frame_count_as_one() -> None:
    """Eight boxes in each of ten frames are ten observations, not eighty."""
    scores, right = drawn(10, 3, shift=-2.0)
    alone = fit(scores, right)
    together = fit(np.repeat(scores, 8), np.repeat(right, 8), groups=np.repeat(np.arange(10), 8))
    assert together.pairs == pytest.approx(10)
    assert (together.slope, together.shift) == (pytest.approx(alone.slope, abs=1e-5), pytest.approx(alone.shift, abs=1e-5))


def test_frames_that_were_audited_more_often_do_not_count_more() -> None:
    """Wrong ones are audited four times as often: weighted, the fit is that of all."""
    scores, right = drawn(200_000, 4, slope=0.8, shift=0.5)
    rate = np.where(right, 0.1, 0.4)
    taken = np.random.default_rng(4).random(len(scores)) < rate
    weighted = fit(scores[taken], right[taken], 1 / rate[taken])
    assert (weighted.slope, weighted.shift) == (pytest.approx(0.8, abs=0.05), pytest.approx(0.5, abs=0.05))
    assert fit(scores[taken], right[taken]).shift < -0.5, "unweighted it is not"


@given(pairs, st.sampled_from(["platt", "temperature"]))
@settings(deadline=None)
def test_ranking_is_kept_whatever_was_judged(judged: list[tuple[float, bool, float]], kind: str) -> None:
    scores, right, weights = ([each[column] for each in judged] for column in range(3))
    found = fit(scores, right, weights, kind="platt" if kind == "platt" else "temperature")
    assert found.slope >= LEAST_SLOPE
    assert math.isfinite(found.shift)
    grid = np.arange(1, 1000) / 1000
    p = found.of(grid)
    assert (np.diff(p) > 0).all() or p.min() > 1 - 1e-9 or p.max() < 1e-9
    assert [found(float(each)) for each in grid[::100]] == pytest.approx(p[::100].tolist())
    assert 0 < found(0.0) <= found(1.0) < 1


def test_scores_that_rank_the_wrong_way_are_flattened_and_not_turned() -> None:
    scores, right = drawn(5000, 5, slope=-1.0)
    found = fit(scores, right)
    assert found.slope == LEAST_SLOPE
    assert float(np.mean(found.of(scores))) == pytest.approx(float(np.mean(right)), abs=0.01)


def test_it_survives_as_json() -> None:
    found = fit(*drawn(500, 6, shift=0.3))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Calibration) == found


# ---- the calibration error


@pytest.mark.parametrize(("slope", "shift", "true", "near"), [(1.0, 0.0, 0.0, 0.03), (1.0, 0.4, 0.0709, 0.025), (0.5, -0.8, 0.2189, 0.02)])
def test_its_bias_is_small_where_that_of_the_plain_error_is_not(slope: float, shift: float, true: float, near: float) -> None:
    """The means over 300 samples of 200 pairs; true errors by a sample of millions."""
    found = [calibration_error(*drawn(200, seed, slope, shift)) for seed in range(300)]
    means = np.mean([(each.value, each.plain, each.noise) for each in found if each is not None], axis=0)
    assert abs(means[0] - true) < near
    assert means[1] > means[0]
    if not true:
        assert means[1] == pytest.approx(means[2], abs=0.005), "all that a perfect calibration shows is noise"
        assert means[1] > 0.06


def test_fitting_on_half_lowers_the_error_of_the_other_half() -> None:
    scores, right = drawn(4000, 7, slope=0.5, shift=-0.8)
    before = calibration_error(scores[2000:], right[2000:])
    after = calibration_error(fit(scores[:2000], right[:2000]).of(scores[2000:]), right[2000:])
    assert before is not None
    assert after is not None
    assert before.value > 0.2
    assert after.value < 0.03


def test_pairs_that_are_wrong_together_make_for_more_noise() -> None:
    scores, right = drawn(100, 8)
    alone = calibration_error(scores, right, bins=5)
    tenfold = calibration_error(np.repeat(scores, 10), np.repeat(right, 10), groups=np.repeat(np.arange(100), 10), bins=5)
    naive = calibration_error(np.repeat(scores, 10), np.repeat(right, 10), bins=5)
    assert alone is not None
    assert tenfold is not None
    assert naive is not None
    assert tenfold.noise == pytest.approx(alone.noise, rel=0.05)
    assert naive.noise == pytest.approx(alone.noise / math.sqrt(10), rel=0.05)


def test_weights_stand_for_what_was_not_sampled() -> None:
    plain = calibration_error([0.9] * 10 + [0.1] * 10, [False] * 10 + [False] * 10, [1.0] * 10 + [9.0] * 10, bins=2)
    assert plain is not None
    assert plain.plain == pytest.approx(0.1 * 0.9 + 0.9 * 0.1)
    assert calibration_error([], []) is None
