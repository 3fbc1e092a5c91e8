"""Block bootstrap: what resamples are, and that intervals cover what they say they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.bench.cascade.intervals import Interval, Resamples, Sampled, gap_closed, interval, mean_of_seeds, student


def drawn(frames: int, *, block: int, count: int, seed: int = 0, start: int = 0, stop: int | None = None) -> np.ndarray:
    resamples = Resamples(frames, start=start, stop=stop, block=block, count=count, rng=np.random.default_rng(seed))
    return np.concatenate(list(resamples.weights(at_once=7)))


@settings(deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_a_resample_is_as_long_as_the_part_and_made_of_blocks_that_go_round(
    data: st.DataObject, frames: int, block: int, seed: int
) -> None:
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start + 1, frames))
    weights = drawn(frames, block=block, count=10, seed=seed, start=start, stop=stop)
    span = stop - start
    assert weights.shape == (10, frames)
    assert (weights.sum(axis=1) == span).all()
    assert not weights[:, :start].any()
    assert not weights[:, stop:].any()
    rng = np.random.default_rng(seed)
    block = max(1, min(block, span // 5))
    blocks = math.ceil(span / block)
    for row, starts in zip(weights, rng.integers(0, span, (10, blocks)), strict=True):  # the same, one frame at a time
        taken = [(first + step) % span for first in starts for step in range(block)][:span]
        np.testing.assert_array_equal(row[start:stop], np.bincount(taken, minlength=span))


def test_its_variance_is_that_of_the_circular_block_bootstrap() -> None:
    """Of a mean it is known: the circular autocovariances, with weights that fall from 1 to 0 over a block (Politis and Romano, 1992)."""
    rng = np.random.default_rng(3)
    series = np.convolve(rng.normal(size=260), np.ones(12) / 12, mode="valid")[:240]
    block = 20
    centred = series - series.mean()
    covariances = [float((centred * np.roll(centred, lag)).mean()) for lag in range(block)]
    known = (covariances[0] + 2 * sum((1 - lag / block) * covariances[lag] for lag in range(1, block))) / len(series)
    means = drawn(240, block=block, count=20_000) @ series / 240
    assert means.mean() == pytest.approx(series.mean(), abs=4 * math.sqrt(known / 20_000))
    assert means.var() == pytest.approx(known, rel=0.05)
    single = drawn(240, block=1, count=20_000) @ series / 240
    assert single.var() < known / 5, "frame by frame the chance would be taken for far less than it is"


@pytest.mark.parametrize(("freedom", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_quantile_is_that_of_the_tables(freedom: int, table: float) -> None:
    assert student(0.975, freedom) == pytest.approx(table, rel=0.002)


def test_an_interval_covers_as_often_as_it_states() -> None:
    """A difference of two runs over correlated frames, with a truth that is known: here 300 videos; the module tells of 2,000."""
    rng = np.random.default_rng(11)
    covered, plain, videos, frames = 0, 0, 300, 400
    for video in range(videos):
        noise = np.convolve(rng.normal(size=frames + 9), np.ones(10) / math.sqrt(10), mode="valid")
        difference = 0.3 + noise  # frames are alike for a second; blocks have five
        means = drawn(frames, block=50, count=300, seed=video) @ difference / frames
        found = interval(float(difference.mean()), means, blocks=8)
        assert found is not None
        covered += found.low <= 0.3 <= found.high
        plain += bool(np.quantile(means, 0.025) <= 0.3 <= np.quantile(means, 0.975))
    assert 0.92 <= covered / videos <= 0.98
    assert plain / videos < 0.92, "plain percentiles are too narrow"


def test_a_run_differs_from_itself_by_nothing_whatever_chance_does() -> None:
    run = Sampled(0.5, np.random.default_rng(0).normal(0.5, 0.1, 500))
    difference = run - run
    assert interval(difference.estimate, difference.samples, blocks=15) == Interval(0.0, 0.0, 0.0)


def test_what_both_runs_share_does_not_widen_their_difference() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.1, 1000)
    one, two = (Sampled(mean, mean + shared + rng.normal(0, 0.001, 1000)) for mean in (0.52, 0.5))
    difference = one - two
    found = interval(difference.estimate, difference.samples, blocks=50)
    assert found is not None
    assert found.above_zero
    assert not found.below_zero
    assert found.high - found.low < 0.01


def test_fewer_blocks_are_less_certain() -> None:
    samples = np.random.default_rng(0).normal(size=4000)
    widths = [found.high - found.low for blocks in (5, 15, 1000) if (found := interval(0.0, samples, blocks=blocks))]
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] == pytest.approx(2 * 1.96, rel=0.1)


def test_what_is_not_defined_has_no_interval() -> None:
    samples = np.ones(100)
    assert interval(math.nan, samples, blocks=9) is None
    samples[:2] = np.nan
    assert interval(1.0, samples, blocks=9) is None
    samples[0] = 1.0
    assert interval(1.0, samples, blocks=9) == Interval(1.0, 1.0, 1.0)


def test_the_share_of_a_gap_is_that_of_each_resample_and_none_where_the_gap_may_be_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 2000)
    leaf, region = Sampled(0.8, 0.8 + noise), Sampled(0.9, 0.9 + noise)
    half = Sampled(0.85, 0.85 + noise)
    found = gap_closed(half, leaf, region, blocks=20)
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5)), "what all share cancels"
    assert gap_closed(region, leaf, region, blocks=20) == Interval(1.0, 1.0, 1.0)
    assert gap_closed(leaf, leaf, region, blocks=20) == Interval(0.0, 0.0, 0.0)
    unsure = Sampled(0.81, 0.81 + rng.normal(0, 0.05, 2000))
    assert gap_closed(half, leaf, unsure, blocks=20) is None
    assert gap_closed(half, region, leaf, blocks=20) is None, "the leaf is the better one"
    seldom = Sampled(0.9, np.where(np.arange(2000) < 10, leaf.samples - 0.01, region.samples))
    assert gap_closed(half, leaf, seldom, blocks=1000) is not None
    assert gap_closed(half, leaf, seldom, blocks=5) is None, "with so few blocks, not even ten in two thousand may say otherwise"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_chance_of_seeds_is_in_the_mean_of_runs(values: list[float]) -> None:
    runs = [Sampled(value, np.full(3000, value)) for value in values]
    found = mean_of_seeds(runs, np.random.default_rng(0))
    assert found.estimate == pytest.approx(np.mean(values))
    assert found.samples.mean() == pytest.approx(np.mean(values), abs=0.05)
    assert found.samples.std() == pytest.approx(np.std(values) / math.sqrt(len(values)), abs=0.02)


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (0, 9), (-1, 4)])
def test_only_a_part_of_the_video_is_resampled(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"frames from {start} to {stop} of 8: expected a part of the video"):
        drawn(8, block=2, count=1, start=start, stop=stop)
