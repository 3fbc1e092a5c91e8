"""The proof of what Headwater says of its own accuracy: do 95 % intervals hold the truth in 95 % of cases, and is a stated risk kept?

Thousands of simulated streams are audited as a site does it, by a random sample at a small rate, and what is then said of them is compared
with what is true. Two ways that are often taken stand beside: a percentile bootstrap over blocks, and frames taken as independent. What is
decided from audits (thresholds, ranks, calibration) is tried in `infra.bench.decisions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np

from agents.cascade.accuracy import MEASURES, Sample, estimate
from infra.bench.decisions import (
    SCORES,
    STREAMS,
    CalibrationCell,
    PreferenceCell,
    RiskCell,
    errors,
    kept_risk,
    preference,
    sampled,
)
from infra.bench.scenes import SCENES, Floats, Frames, Scene, Truth

LOW, HIGH = 0.93, 0.97
LEVEL = 0.95
LEAST_EPISODES = 10  # of errors that a window must hold for its intervals to be promised; at 8 some hold the truth in 92 % only
FRAMES = (12_000, 20_000, 30_000, 50_000, 100_000, 300_000)
RATE = 0.01
Say = Callable[[str], None]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """How often the intervals of one kind held the truth. `promised` where the window is long enough for the stream's memory."""

    scene: str
    rates: str
    of: str
    measure: str
    frames: int
    audited: float
    episodes: float
    replays: int
    unknown: float
    covered: float
    width: float
    blocks: float | None = None
    singles: float | None = None

    @property
    def promised(self) -> bool:
        return self.of == "window" or self.episodes >= LEAST_EPISODES

    @property
    def within(self) -> bool:
        """Whether it is 93 to 97 %."""
        return LOW <= self.covered <= HIGH

    @property
    def holds(self) -> bool:
        """Whether it is, give or take two standard errors: of hundreds of cells some lie beyond by chance."""
        chance = 2 * math.sqrt(0.05 * 0.95 / max(self.replays, 1))
        return LOW - chance <= self.covered <= HIGH + chance


class Report(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    replays: int
    accuracy: list[Cell]
    risk: list[RiskCell]
    preference: list[PreferenceCell]
    calibration: list[CalibrationCell]

    @property
    def holds(self) -> bool:
        return all(each.holds for each in self.accuracy if each.promised) and all(each.holds for each in self.risk)


def prove(replays: int = 1000, *, seed: int = 1, say: Say = lambda _: None) -> Report:
    """All of it; `say` hears what is being done."""
    found: list[Cell] = []
    for scene in SCENES:
        say(f"accuracy: {scene.name}")
        found += coverage(scene, replays, seed=seed)
    say("accuracy: audits at different rates, and dense ones")
    for scene in SCENES[2:5]:
        found += coverage(scene, replays, seed=seed, rates="varied", frames=(30_000, 100_000))
    for scene in SCENES[1:4]:
        found += coverage(scene, replays, seed=seed, rates="dense", frames=(10_000, 30_000))
    say("risk")
    risks = [cell for stream in STREAMS for cell in kept_risk(stream, replays, seed=seed)]
    say("preference")
    preferences = [preference(SCENES[2], better, max(replays // 5, 1), seed=seed) for better in (-0.5, 0.0, 0.5)]
    say("calibration")
    calibrations = [errors(*scores, pairs, replays, seed=seed) for scores in SCORES for pairs in (50, 200, 2000)]
    return Report(seed=seed, replays=replays, accuracy=found, risk=risks, preference=preferences, calibration=calibrations)


# ---- accuracy


def coverage(
    scene: Scene,
    replays: int,
    *,
    seed: int,
    frames: Sequence[int] = FRAMES,
    rates: Literal["even", "varied", "dense"] = "even",
) -> list[Cell]:
    """How often the intervals of precision, recall and F1 hold the truth of the stream, and of the window."""
    truth = scene.truth()
    tallies: dict[tuple[str, str, int], list[tuple[float, ...]]] = {}
    for replay in range(replays):
        rng = np.random.default_rng([seed, replay, *scene.name.encode()])
        played = scene.play(max(frames), rng)
        rate = _rates(played, rates)
        audited = np.flatnonzero(rng.random(max(frames)) < rate)
        totals = np.cumsum(np.stack(played), axis=1)
        for length in frames:
            sample = sampled(played, audited[: np.searchsorted(audited, length)], rate)
            here = Truth.of(*totals[:, length - 1])
            for index, measure in enumerate(MEASURES):
                for of, true in (("stream", truth[index]), ("window", here[index])):
                    tallies.setdefault((of, measure, length), []).append(_tally(sample, index, of, true, rng))
    return [_cell(scene, rates, of, measure, length, np.array(rows)) for (of, measure, length), rows in tallies.items()]


def _rates(played: Frames, rates: str) -> Floats:
    """The rate that each frame is audited with: all alike, or four times as high where something moves."""
    rate = 0.1 if rates == "dense" else RATE
    busy = played.tp + played.fn >= 3 if rates == "varied" else np.zeros(len(played.tp), bool)
    return np.where(busy, 4 * rate, rate)


def _tally(sample: Sample, index: int, of: str, true: float, rng: np.random.Generator) -> tuple[float, ...]:
    """One interval: how many were audited, whether it is known, whether it holds the truth, its width, and whether the others hold it."""
    found = estimate(sample, MEASURES[index], level=LEVEL, of="window" if of == "window" else "stream")
    if found.low is None or found.high is None:
        return len(sample.tp), 0.0, 0.0, 0.0, 0.0, 0.0
    others = [math.nan, math.nan]
    if of == "stream":
        hits, trials = (sample.weights * each for each in sample.hits_and_trials(MEASURES[index]))
        plain = percentile_bootstrap(hits, trials, rng), as_if_independent(hits, trials)
        others = [float(low <= true <= high) for low, high in plain]
    return len(sample.tp), 1.0, float(found.low <= true <= found.high), found.high - found.low, *others


def _cell(scene: Scene, rates: str, of: str, measure: str, length: int, rows: Floats) -> Cell:
    known = rows[rows[:, 1] > 0]
    means = known.mean(0) if len(known) else np.full(6, math.nan)
    others = [float(each[~np.isnan(each)].mean()) if not np.isnan(each).all() else None for each in known[:, 4:].T]
    return Cell(
        scene=scene.name,
        rates=rates,
        of=of,
        measure=measure,
        frames=length,
        audited=float(rows[:, 0].mean()),
        episodes=length / scene.episode,
        replays=len(known),
        unknown=1 - len(known) / len(rows),
        covered=float(means[2]),
        width=float(means[3]),
        blocks=others[0],
        singles=others[1],
    )


def percentile_bootstrap(
    hits: Floats, trials: Floats, rng: np.random.Generator, *, blocks: int = 20, count: int = 300, level: float = LEVEL
) -> tuple[float, float]:
    """The plain interval: percentiles of the share over resampled blocks of the window. Here only for comparison."""
    block = np.arange(len(hits)) * blocks // len(hits)
    drawn = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=count)
    shares = (drawn @ np.bincount(block, hits)) / np.maximum(drawn @ np.bincount(block, trials), 1e-9)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def as_if_independent(hits: Floats, trials: Floats, *, level: float = LEVEL) -> tuple[float, float]:
    """The interval of one who takes frames to be independent, as a bootstrap over frames does. Here only for comparison."""
    share = hits.sum() / trials.sum()
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(((hits - share * trials) ** 2).sum()) / trials.sum()
    return float(share - reach), float(share + reach)
