"""Whether what is decided from audits and labels is right as often as it should be: thresholds for final answers, the leaf's rank, and
calibration. For `headwater bench coverage`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from agents.cascade import calibration, risk
from agents.cascade.accuracy import Sample, difference, prefers_leaf
from infra.bench.scenes import Floats, Frames, Scene, drift


class RiskCell(msgspec.Struct, frozen=True, kw_only=True):
    """How often the risk that was stated was passed, which may be in a share `delta` of the choices."""

    stream: str
    memory: float
    records: int
    replays: int
    alpha: float
    delta: float
    passed: float
    chosen: float
    final: float
    possible: float
    naive: float

    @property
    def holds(self) -> bool:
        return self.passed <= self.delta + 2 * math.sqrt(self.delta * (1 - self.delta) / self.replays)


class PreferenceCell(msgspec.Struct, frozen=True, kw_only=True):
    """How the leaf's rank follows labels: `covered` of the difference's intervals, and how often it was preferred after `looks` looks."""

    scene: str
    better: float
    frames: int
    replays: int
    covered: float
    preferred: float
    changes: float
    looks: int


class CalibrationCell(msgspec.Struct, frozen=True, kw_only=True):
    """The calibration error that is measured, and the true one, before and after fitting on as many other pairs."""

    scores: str
    pairs: int
    replays: int
    true: float
    measured: float
    plain: float
    after: float


def sampled(played: Frames, chosen: NDArray[np.intp], rate: Floats) -> Sample:
    """The frames that were audited, and with which rate."""
    tp, fp, fn = (each[chosen].astype(np.float64) for each in played)
    return Sample(tp, fp, fn, 1 / rate[chosen])


# ---- risk


class Stream(msgspec.Struct, frozen=True):
    """Records with a confidence and a disagreement. The logit of disagreeing is `base`, less `slope` times the confidence, plus `hidden`
    times something that the leaf does not see."""

    name: str
    base: float
    slope: float
    hidden: float


STREAMS = (
    Stream("confidence tells much", -2.8, 1.2, 1.0),
    Stream("confidence tells little", -3.2, 0.8, 1.5),
    Stream("seldom wrong", -4.2, 1.2, 1.0),
    Stream("no threshold is safe", -4.03, 0.0, 1.8),
)
MEMORIES = (0.0, 5.0, 20.0)  # audited records over which difficulty turns over


def kept_risk(
    stream: Stream,
    replays: int,
    *,
    seed: int,
    records: Sequence[int] = (300, 1000, 3000),
    memories: Sequence[float] = MEMORIES,
    alpha: float = risk.ALPHA,
    delta: float = risk.DELTA,
) -> Iterator[RiskCell]:
    """How often the true risk at the chosen threshold is above what was stated."""
    levels, risks = _true_risks(stream)
    possible = float((risks <= alpha).mean())  # the share that could be final if all were known; risks are at even shares
    for count in records:
        for memory in memories:
            rows = []
            for replay in range(replays):
                rng = np.random.default_rng([seed, replay, count, int(memory), *stream.name.encode()])
                sure, wrong = _records(stream, count, memory, rng)
                rows.append(
                    (
                        *_risk_tally(risk.choose(sure, wrong, alpha=alpha, delta=delta).threshold, sure, levels, risks, alpha),
                        _risk_tally(_naive(sure, wrong, alpha), sure, levels, risks, alpha)[0],
                    )
                )
            passed, chosen, final, naive = np.array(rows).mean(0)
            yield RiskCell(
                stream=stream.name,
                memory=memory,
                records=count,
                replays=replays,
                alpha=alpha,
                delta=delta,
                passed=float(passed),
                chosen=float(chosen),
                final=float(final),
                possible=possible,
                naive=float(naive),
            )


def _records(stream: Stream, count: int, memory: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    sure = 0.7 * drift(count, memory, rng) + 0.7 * rng.standard_normal(count)
    wrong = rng.random(count) < expit(stream.base - stream.slope * sure + stream.hidden * drift(count, memory, rng))
    return sure, wrong.astype(np.float64)


def _true_risks(stream: Stream, count: int = 1_000_000) -> tuple[Floats, Floats]:
    """Thresholds at even shares of records, ascending, and the risk above each."""
    rng = np.random.default_rng(0)
    sure = 0.7 * math.sqrt(2) * rng.standard_normal(count)
    nodes, masses = np.polynomial.hermite_e.hermegauss(32)
    order = np.argsort(-sure)
    seen = stream.base - stream.slope * sure[order]
    wrong = np.sum([mass * expit(seen + stream.hidden * node) for node, mass in zip(nodes, masses, strict=True)], axis=0)
    above = np.cumsum(wrong / masses.sum()) / np.arange(1, count + 1)
    kept = slice(count // 1000 - 1, None, count // 1000)
    return sure[order][kept][::-1].copy(), above[kept][::-1].copy()


def _risk_tally(threshold: float, sure: Floats, levels: Floats, risks: Floats, alpha: float) -> tuple[float, float, float]:
    if math.isinf(threshold):
        return 0.0, 0.0, 0.0
    return float(np.interp(threshold, levels, risks) > alpha), 1.0, float((sure >= threshold).mean())


def _naive(sure: Floats, wrong: Floats, alpha: float) -> float:
    """The lowest threshold at which the sample itself has the risk: a guess that many take. Here only for comparison."""
    order = np.argsort(-sure)
    fine = np.flatnonzero(np.cumsum(wrong[order]) <= alpha * np.arange(1, len(sure) + 1))
    return float(sure[order][fine[-1]]) if len(fine) else math.inf


# ---- which tier is preferred


def preference(
    scene: Scene, better: float, replays: int, *, seed: int, frames: int = 300_000, every: int = 100, looks: int = 40
) -> PreferenceCell:
    """How often the leaf is preferred in the end, and how often that changed, if it is better than the region by `better` (on the scale of
    the logit), one frame in so many has a label, and the latest third of them is looked at again and again."""
    true = scene.truth(max(-better, 0.0)).f1 - scene.truth(max(better, 0.0)).f1
    covered, preferred, changes = 0, 0, 0
    for replay in range(replays):
        rng = np.random.default_rng([seed, replay, *f"{better}".encode()])
        pair = scene.play_pair(frames, rng, abs(better))
        leaf, region = pair if better >= 0 else pair[::-1]
        labelled, before = np.arange(0, frames, every), False
        for stop in np.linspace(len(labelled) // 3, len(labelled), looks).astype(int):
            taken = labelled[stop - len(labelled) // 3 : stop]
            samples = [sampled(played, taken, np.ones(frames)) for played in (leaf, region)]
            after = prefers_leaf(before, difference(*samples))
            changes += after != before
            before = after
        preferred += before
        found = difference(*samples, level=0.95)
        if found.low is not None and found.high is not None:
            covered += found.low <= true <= found.high
    return PreferenceCell(
        scene=scene.name,
        better=true,
        frames=frames // 3 // every,
        replays=replays,
        covered=covered / replays,
        preferred=preferred / replays,
        changes=changes / replays,
        looks=looks,
    )


# ---- calibration

SCORES = (("calibrated", 1.0, 0.0), ("too low", 1.0, 0.4), ("too sure", 0.6, 0.0), ("much too sure", 0.5, -0.8))


def errors(name: str, slope: float, shift: float, pairs: int, replays: int, *, seed: int) -> CalibrationCell:
    """The expected calibration error of scores that are right with probability sigmoid(slope logit(score) + shift)."""
    rng = np.random.default_rng([seed, pairs, *name.encode()])
    many = rng.normal(0.5, 1.3, 400_000)
    true = float(np.abs(expit(slope * many + shift) - expit(many)).mean())
    rows = []
    for _ in range(replays):
        logits = rng.normal(0.5, 1.3, (2, pairs))
        scores, right = expit(logits), rng.random((2, pairs)) < expit(slope * logits + shift)
        before = calibration.calibration_error(scores[1], right[1])
        fitted = calibration.fit(scores[0], right[0])
        after = float(np.abs(fitted.of(scores[1]) - expit(slope * logits[1] + shift)).mean())
        assert before is not None
        rows.append((before.value, before.plain, after))
    measured, plain, after_all = np.mean(rows, axis=0)
    return CalibrationCell(
        scores=name, pairs=pairs, replays=replays, true=true, measured=float(measured), plain=float(plain), after=float(after_all)
    )
