"""Live accuracy: its intervals hold the truth of simulated streams as often as they say, and windows do not care how frames come in.

Streams here remember for a number of audited frames; truths are known from how they are made. The long form is `headwater bench coverage`.
"""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.cascade.accuracy import Estimate, Judged, Sample, Window, difference, estimate, leaf_rank, prefers_leaf
from agents.cascade.agreement import Counts
from agents.cascade.spread import places, share, share_of_window
from schemas.messages import MAX_RANK, RANK, Tier

Floats = NDArray[np.float64]

STREAMS = 1000
SEEN = 0.85


def chains(frames: int, memory: float, share_right: float, seed: int, streams: int = STREAMS) -> Floats:
    """Streams of one object a frame that is seen or not: two-state chains, whose errors last longer the more memory they have."""
    rng = np.random.default_rng(seed)
    keep = math.exp(-1 / memory) if memory else 0.0
    state = rng.random(streams) < share_right
    columns = []
    for _ in range(frames):
        state = np.where(rng.random(streams) < keep, state, rng.random(streams) < share_right)
        columns.append(state)
    return np.array(columns, np.float64).T


def held(found: tuple[Floats, Floats], truth: Floats | float) -> float:
    low, high = found
    return float(((low <= truth) & (truth <= high)).mean())


def interval(hits: Floats, trials: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    found = share(hits, trials, weights)
    return found.low(0.975), found.high(0.975)


# ---- what is true lies within


@pytest.mark.parametrize(
    ("frames", "memory", "right"),
    [(100, 0.0, 0.7), (300, 0.0, 0.95), (300, 5.0, SEEN), (1000, 0.0, SEEN), (1000, 20.0, 0.7), (1000, 3.0, 0.97), (3000, 0.0, 0.99)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(frames: int, memory: float, right: float) -> None:
    """Windows that hold eight episodes of errors or more. 1,000 streams: chance alone moves the share by .007."""
    hits = chains(frames, memory, right, seed=frames)
    assert 0.93 <= held(interval(hits, np.ones_like(hits)), right) <= 0.98


def weather(frames: int, memory: float, seed: int, streams: int = STREAMS) -> tuple[Floats, float]:
    """Streams of three objects a frame, how easy they are to see changing slowly; and the share that is seen in the long run."""
    rng = np.random.default_rng(seed)
    keep = math.exp(-1 / memory)
    ease, columns = rng.standard_normal(streams), []
    for _ in range(frames):
        ease = keep * ease + math.sqrt(1 - keep * keep) * rng.standard_normal(streams)
        columns.append(rng.binomial(3, 1 / (1 + np.exp(-1.5 - ease))))
    true = float(np.mean(1 / (1 + np.exp(-1.5 - np.random.default_rng(0).standard_normal(1_000_000)))))
    return np.array(columns, np.float64).T, true


def test_a_window_of_few_episodes_is_seen_to_be_one() -> None:
    """300 frames of which 18 go together: eight cosines alone would hold the truth in 88 %."""
    hits, true = weather(300, 18.0, seed=12)
    assert 0.925 <= held(interval(hits, np.full_like(hits, 3)), true) <= 0.97


def test_frames_stand_where_those_that_were_not_sampled_put_them() -> None:
    assert places([1.0, 1.0, 2.0]).tolist() == [0.125, 0.375, 0.75]


def test_the_plain_ways_hold_it_less_often() -> None:
    """What the intervals are there for: one that takes frames to be independent, and one with eight blocks and normal quantiles."""
    hits = chains(1000, 10.0, SEEN, seed=11)
    value = hits.mean(-1)
    alone = 1.96 * np.sqrt(value * (1 - value) / 1000)
    assert held((value - alone, value + alone), SEEN) < 0.7
    blocks = hits.reshape(STREAMS, 8, 125).mean(-1)
    reach = 1.96 * blocks.std(-1, ddof=1) / math.sqrt(8)
    assert held((value - reach, value + reach), SEEN) < 0.925
    assert held(interval(hits, np.ones_like(hits)), SEEN) > 0.93


def test_they_are_not_wide_without_need() -> None:
    """Where frames are independent, they are on average by a third wider than those of one who knows that."""
    hits = chains(1000, 0.0, SEEN, seed=1)
    low, high = interval(hits, np.ones_like(hits))
    known = 2 * 1.96 * math.sqrt(SEEN * (1 - SEEN) / 1000)
    assert 1.0 < float((high - low).mean()) / known < 1.4


def test_each_side_is_missed_alike() -> None:
    hits = chains(300, 5.0, SEEN, seed=2)
    low, high = interval(hits, np.ones_like(hits))
    assert 0.01 < float((low > SEEN).mean()) < 0.045
    assert 0.01 < float((high < SEEN).mean()) < 0.045


def varied(hits: Floats, seed: int) -> list[tuple[Floats, Floats]]:
    """Of each stream the frames that are audited, and their rates: three times as often where errors are."""
    rng = np.random.default_rng(seed)
    rates = np.where(hits > 0, 0.2, 0.6)
    taken = rng.random(hits.shape) < rates
    return [(row[mask], rate[mask]) for row, mask, rate in zip(hits, taken, rates, strict=True)]


def test_audits_where_it_is_difficult_do_not_make_it_look_worse() -> None:
    """Rates that follow the content: weighted, intervals hold as often as ever; unweighted, few do."""
    streams = varied(chains(1500, 10.0, SEEN, seed=3, streams=400), seed=4)
    weighted = [held(interval(row, np.ones_like(row), 1 / rate), SEEN) for row, rate in streams]
    plain = [held(interval(row, np.ones_like(row)), SEEN) for row, _ in streams]
    assert 0.92 <= float(np.mean(weighted)) <= 0.985
    assert float(np.mean(plain)) < 0.5


def test_what_passed_in_the_window_is_held_too() -> None:
    """The share over all frames of each window, most of which were not sampled; of the streams' own truth that interval says nothing."""
    hits = chains(2000, 100.0, SEEN, seed=5, streams=600)
    streams = varied(hits, seed=6)
    found = [share_of_window(row, np.ones_like(row), rate) for row, rate in streams]
    bounds = np.array([each.low(0.975) for each in found]), np.array([each.high(0.975) for each in found])
    assert 0.925 <= held(bounds, hits.mean(-1)) <= 0.98
    assert held(bounds, SEEN) < 0.7


def test_what_was_seen_whole_is_known() -> None:
    hits = chains(200, 5.0, SEEN, seed=7, streams=1)[0]
    found = share_of_window(hits, np.ones(200), np.ones(200))
    assert found.low(0.975) == pytest.approx(hits.mean(), abs=1e-9)
    assert found.high(0.975) == pytest.approx(hits.mean(), abs=1e-9)


# ---- laws


@st.composite
def counted(draw: st.DrawFn) -> list[tuple[int, int, int, float]]:
    """Counts and rates of frames, in a number that can be cut into even parts, so that time has no direction."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    means = [draw(st.sampled_from([0.0, 0.01, 0.5, 3.0])) for _ in range(3)]
    count, rates = 24 * draw(st.integers(5, 16)), draw(st.lists(st.sampled_from([0.01, 0.05, 0.3, 1.0]), min_size=1, max_size=3))
    columns = [rng.poisson(mean, count).tolist() for mean in means]
    return list(zip(*columns, rng.choice(rates, count).tolist(), strict=True))


def as_sample(rows: list[tuple[int, int, int, float]]) -> Sample:
    tp, fp, fn, rate = np.array(rows, np.float64).T
    return Sample(tp, fp, fn, 1 / rate)


@given(counted(), st.sampled_from(["precision", "recall", "f1"]), st.sampled_from(["stream", "window"]))
@settings(deadline=None)
def test_an_estimate_lies_within_its_interval_and_in_its_range(rows: list[tuple[int, int, int, float]], measure: str, of: str) -> None:
    found = estimate(as_sample(rows), measure, of=of)  # type: ignore[arg-type]
    assert found.frames == len(rows)
    if found.unknown:
        assert (found.value, found.low, found.high) == (None, None, None)
    else:
        assert found.low is not None
        assert found.value is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert msgspec.json.decode(msgspec.json.encode(found), type=Estimate) == found


@given(counted())
@settings(deadline=None)
def test_time_may_run_backwards_and_rates_may_all_be_lower(rows: list[tuple[int, int, int, float]]) -> None:
    forwards, backwards = estimate(as_sample(rows), "f1"), estimate(as_sample(rows[::-1]), "f1")
    sparser = estimate(as_sample([(tp, fp, fn, rate / 2) for tp, fp, fn, rate in rows]), "f1")
    for other in (backwards, sparser):
        assert (forwards.value is None) == (other.value is None)
        if forwards.value is not None:
            assert [other.value, other.low, other.high] == pytest.approx([forwards.value, forwards.low, forwards.high], abs=1e-6)


def test_no_error_was_seen_and_yet_nobody_is_perfect() -> None:
    found = estimate(as_sample([(2, 0, 0, 0.01)] * 1000), "precision")
    assert found.value == found.high == 1.0
    assert found.low is not None
    assert 0.98 < found.low < 0.9995


def test_too_few_is_said_plainly() -> None:
    assert estimate(as_sample([(2, 0, 0, 0.01)] * 99), "f1").unknown == "99 judged frames: expected at least 100"
    assert "0 objects in 200 frames" in estimate(as_sample([(0, 0, 1, 0.01)] * 200), "precision").unknown
    assert "50 of 200 audited frames were not judged" in estimate(as_sample([(2, 0, 0, 0.01)] * 150), "f1", missing=50).unknown
    assert not estimate(as_sample([(2, 0, 0, 0.01)] * 150), "f1", missing=20).unknown


# ---- windows


def judged(count: int, seed: int, against: str = "region") -> list[Judged]:
    rng = np.random.default_rng(seed)
    return [
        Judged(
            id=f"gate/0190a/{number}",
            at=float(number),
            rate=0.02 if number % 3 else 0.01,
            leaf=Counts(int(rng.binomial(3, 0.8)), int(rng.poisson(0.3)), int(rng.poisson(0.5))) if number % 11 else None,
            region=Counts(int(rng.binomial(3, 0.9)), 0, 1) if against == "labels" else None,
            asked=bool(rng.random() < 0.2),
        )
        for number in range(count)
    ]


def test_the_order_in_which_frames_come_and_how_often_changes_nothing() -> None:
    frames = judged(300, 1)
    once = Window(frames=frames)
    shuffled = frames * 2
    random.Random(2).shuffle(shuffled)
    twice = Window(frames=shuffled)
    lost = [msgspec.structs.replace(each, leaf=None) for each in frames]
    late = Window(frames=[*lost, *frames, *lost])
    assert once.live() == twice.live() == late.live()
    assert once.live().frames == 300 - 28
    assert once.live().missing == 28


def test_a_window_keeps_the_latest_and_can_be_written_down() -> None:
    frames = judged(500, 3)
    window = Window(keep=200)
    for frame in frames:
        window.add(frame)
    assert window.frames() == frames[-200:]
    written = msgspec.json.decode(msgspec.json.encode(window.frames()), type=list[Judged])
    assert Window(keep=200, frames=written).live() == window.live() == Window(frames=frames[-200:]).live()


def test_results_are_the_regions_where_it_would_have_been_asked() -> None:
    wrong, right = Counts(1, 1, 1), Counts(2, 0, 0)
    frames = [Judged(str(n), n, 0.01, wrong if n % 2 else right, asked=n % 4 == 1) for n in range(400)]
    live = Window(frames=frames).live()
    assert live.against == "region"
    assert live.region is None
    assert live.leaf.recall.value == pytest.approx((200 * 2 + 200) / 800)
    assert live.results.recall.value == pytest.approx((300 * 2 + 100) / 800)
    labelled = [Judged(str(n), n, 1.0, right, region=wrong, asked=n % 4 == 1) for n in range(400)]
    live = Window("labels", frames=labelled).live()
    assert live.leaf.recall.value == 1.0
    assert live.region is not None
    assert live.region.recall.value == 0.5
    assert live.results.recall.value == pytest.approx((300 * 2 + 100) / 800)


def test_an_empty_window_knows_nothing() -> None:
    live = Window("labels").live()
    assert live.leaf.f1.unknown == "0 judged frames: expected at least 100"
    assert live.region is not None
    assert live.region.f1.unknown
    assert Window().comparison().unknown


# ---- which tier is the better one


def paired(streams: int, seed: int) -> list[tuple[Sample, Sample]]:
    """Leaf and region on the same frames, which are hard for both at the same times; the leaf sees .85 of the objects, the region .8."""
    shared = chains(400, 10.0, SEEN, seed, streams)
    rng = np.random.default_rng(seed)
    region = shared * (rng.random(shared.shape) < 0.8 / SEEN)
    zeros, ones = np.zeros(400), np.ones(400)
    return [(Sample(a, zeros, 1 - a, ones), Sample(b, zeros, 1 - b, ones)) for a, b in zip(shared, region, strict=True)]


def test_a_difference_is_held_too_and_pairing_makes_it_narrow() -> None:
    truth = 2 * SEEN / (1 + SEEN) - 2 * 0.8 / 1.8
    found = [difference(leaf, region, level=0.95) for leaf, region in paired(600, 8)]
    low, high = (np.array([getattr(each, side) for each in found]) for side in ("low", "high"))
    assert 0.925 <= held((low, high), truth) <= 0.98
    alone = [estimate(leaf, "f1") for leaf, _ in paired(50, 8)]
    assert np.mean(high - low) < 0.6 * np.mean([each.high - each.low for each in alone if each.high and each.low])


def test_the_leaf_is_preferred_when_that_is_certain_and_until_the_opposite_is_measured() -> None:
    def found(value: float, low: float) -> Estimate:
        return Estimate(frames=500, value=value, low=low, high=1.0)

    certain, likely, opposite, unknown = found(0.1, 0.02), found(0.1, -0.02), found(-0.01, -0.1), Estimate(frames=5, unknown="too few")
    assert [prefers_leaf(False, each) for each in (certain, likely, opposite, unknown)] == [True, False, False, False]
    assert [prefers_leaf(True, each) for each in (certain, likely, opposite, unknown)] == [True, True, False, True]


def test_the_ranks_are_those_that_the_join_knows() -> None:
    assert leaf_rank(False) == RANK[Tier.LEAF] < RANK[Tier.REGION] < leaf_rank(True) == MAX_RANK[Tier.LEAF]


def test_equal_tiers_are_seldom_turned_round() -> None:
    """Looked at forty times over a moving window of labels, as good a leaf is preferred in a few streams, and stays so or not."""
    shared = chains(1200, 10.0, SEEN, 9, streams=120)
    rng = np.random.default_rng(9)
    zeros, ones = np.zeros(400), np.ones(400)
    ever = 0
    for row in shared:
        leaf, region = (row * (rng.random(1200) < 0.9) for _ in range(2))
        preferred, changes = False, 0
        for start in range(0, 800, 20):
            one, other = (each[start : start + 400] for each in (leaf, region))
            after = prefers_leaf(preferred, difference(Sample(one, zeros, 1 - one, ones), Sample(other, zeros, 1 - other, ones)))
            changes += after != preferred
            preferred = after
        ever += changes > 0
        assert changes <= 4
    assert ever <= 0.1 * len(shared)
