"""How accurate a stream's answers are, as it is measured while it runs: precision, recall and F1 with the interval that they lie in.

They rest on the audit sample, whose frames the region judges whatever the leaf thought of them, or on true labels where there are some.
Against the region they say how often the region would have said the same; the region is not the truth. Where labels say that the leaf is
the better one on a stream, its verdicts are to be preferred there (`prefers_leaf`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from scipy.special import stdtrit

from agents.cascade.agreement import Counts
from agents.cascade.spread import Floats, Share, places, share, share_of_window, spread
from schemas.messages import LEAF_PREFERRED_RANK, RANK, Tier

Measure = Literal["precision", "recall", "f1"]
MEASURES: tuple[Measure, ...] = ("precision", "recall", "f1")

LEVEL = 0.95
LEAST_FRAMES = 100  # fewer say nothing of a stream, as neighbouring frames resemble each other
LEAST_OBJECTS = 20
MOST_MISSING = 0.2  # of the audited frames; if more were not judged, those that were may be the easy ones
KEEP = 1000  # frames of a window
PREFER_LEVEL = 0.99  # the comparison is looked at again and again


class Judged(msgspec.Struct, frozen=True):
    """What became of one frame of the sample, or of one row of a request: `Counts(1, 0, 0)` if the answers are the same, else
    `Counts(0, 1, 1)`, so that precision and recall are both the share of rows that are.

    `at` orders frames in time (capture time in seconds, or their sequence); `rate` is the one that the frame was sampled with (1 for labels
    that every frame has). `leaf` compares the leaf's answer with the reference, `region` the region's with labels where these are the
    reference. `asked` says whether the region would have been asked about the frame in any case, so that the result would be the region's.
    Without `leaf` the frame was to be judged and was not: its evidence or its answer was lost.
    """

    id: str
    at: float
    rate: float
    leaf: Counts | None = None
    region: Counts | None = None
    asked: bool = False


class Sample(NamedTuple):
    """Counts of the sampled frames in the order of time, and one over the rate of each."""

    tp: Floats
    fp: Floats
    fn: Floats
    weights: Floats

    def hits_and_trials(self, measure: Measure) -> tuple[Floats, Floats]:
        match measure:
            case "precision":
                return self.tp, self.tp + self.fp
            case "recall":
                return self.tp, self.tp + self.fn
            case "f1":
                return 2 * self.tp, 2 * self.tp + self.fp + self.fn


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A measured share: it is `value`, and in truth lies from `low` to `high` with the probability `level`. It rests on `frames`, which are
    worth as much as `independent` objects seen independently. If `unknown` says why, nothing is known and there is no value."""

    frames: int
    level: float = LEVEL
    value: float | None = None
    low: float | None = None
    high: float | None = None
    independent: float | None = None
    unknown: str = ""


class Accuracy(msgspec.Struct, frozen=True):
    precision: Estimate
    recall: Estimate
    f1: Estimate


class Live(msgspec.Struct, frozen=True):
    """The accuracy of a stream's answers over a window of `frames` that were judged, against the region or labels; `missing` more were to
    be judged and were not. `results` are what readers see: the leaf's answers, and the region's where it would have been asked. `region` is
    known against labels only."""

    against: Literal["region", "labels"]
    frames: int
    missing: int
    leaf: Accuracy
    results: Accuracy
    region: Accuracy | None = None


class Window:
    """The latest judged frames of one stream, one model and one reference. A frame that is told again replaces what was known of it, and
    frames may be told in any order: repetitions and late answers change nothing that they should not.

    Parameters
    ----------
    keep
        Frames that are kept, the latest by `at`. More give narrower intervals, and notice later that something has changed.
    """

    def __init__(self, against: Literal["region", "labels"] = "region", *, keep: int = KEEP, frames: Iterable[Judged] = ()) -> None:
        self.against, self.keep = against, keep
        self._frames: dict[str, Judged] = {}
        for frame in frames:
            self.add(frame)

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Judged) -> None:
        """Take in what is known of a frame."""
        if frame.leaf is None and frame.id in self._frames:
            return
        self._frames[frame.id] = frame
        if len(self._frames) > 2 * self.keep:
            self._frames = {each.id: each for each in self.frames()}

    def frames(self) -> list[Judged]:
        """The window as it can be written down, in the order of time; `Window(..., frames=...)` takes it up again."""
        return sorted(self._frames.values(), key=lambda each: (each.at, each.id))[-self.keep :]

    def live(self, *, level: float = LEVEL, of: Literal["stream", "window"] = "stream") -> Live:
        """The accuracy that the window shows; `of` as in `estimate`."""
        frames = self.frames()
        judged = [each for each in frames if each.leaf is not None]
        missing = len(frames) - len(judged)

        def accuracy(sample: Sample) -> Accuracy:
            return Accuracy(*(estimate(sample, measure, level=level, of=of, missing=missing) for measure in MEASURES))

        both = [each for each in judged if each.region is not None]
        return Live(
            self.against,
            len(judged),
            missing,
            leaf=accuracy(_sample(judged, [each.leaf for each in judged])),
            results=accuracy(_sample(*self._results(judged))),
            region=accuracy(_sample(both, [each.region for each in both])) if self.against == "labels" else None,
        )

    def comparison(self, *, level: float = PREFER_LEVEL) -> Estimate:
        """How much better the leaf is than the region: see `difference`."""
        both = [each for each in self.frames() if each.leaf is not None and each.region is not None]
        return difference(_sample(both, [each.leaf for each in both]), _sample(both, [each.region for each in both]), level=level)

    def _results(self, judged: list[Judged]) -> tuple[list[Judged], list[Counts | None]]:
        """What the results would be without the audit."""
        if self.against == "labels":
            known = [each for each in judged if each.region is not None or not each.asked]
            return known, [each.region if each.asked else each.leaf for each in known]
        return judged, [Counts(each.leaf.tp + each.leaf.fn) if each.asked and each.leaf else each.leaf for each in judged]


def _sample(frames: list[Judged], counts: list[Counts | None]) -> Sample:
    columns = np.array([(each.tp, each.fp, each.fn) for each in counts if each is not None], np.float64).reshape(-1, 3)
    return Sample(columns[:, 0], columns[:, 1], columns[:, 2], np.array([1 / each.rate for each in frames]))


def estimate(
    sample: Sample, measure: Measure, *, level: float = LEVEL, of: Literal["stream", "window"] = "stream", missing: int = 0
) -> Estimate:
    """One measure with its interval.

    Parameters
    ----------
    of
        `stream`: of the stream as it is in this window, which may go on so (`agents.cascade.spread`); what decides about the future rests
        on this. `window`: of exactly the frames that passed in this window, those that were not sampled included; narrower, since chance is
        in the sampling alone.
    missing
        Frames that were to be judged and were not.

    Notes
    -----
    The interval for the stream is right if frames resemble each other over times much shorter than the window. Over simulated streams
    (`infra.bench.coverage`) it covers the truth in 93 to 97 % where the window holds ten independent episodes of errors or more, and in 80
    to 99 % where it holds one to nine. From within a window alone nobody can tell how many it holds.
    """
    hits, trials = sample.hits_and_trials(measure)
    frames, objects = len(trials), float(trials.sum())
    if why := _too_few(frames, missing):
        return Estimate(frames=frames, level=level, unknown=why)
    if objects < LEAST_OBJECTS:
        return Estimate(frames=frames, level=level, unknown=f"{objects:.0f} objects in {frames} frames: expected at least {LEAST_OBJECTS}")
    found = share(hits, trials, sample.weights) if of == "stream" else share_of_window(hits, trials, 1 / sample.weights)
    return _stated(found, frames, level)


def _too_few(frames: int, missing: int = 0) -> str:
    if frames < LEAST_FRAMES:
        return f"{frames} judged frames: expected at least {LEAST_FRAMES}"
    if missing > MOST_MISSING * (frames + missing):
        return f"{missing} of {frames + missing} audited frames were not judged: expected at most {MOST_MISSING:.0%}"
    return ""


def _stated(found: Share, frames: int, level: float) -> Estimate:
    side = (1 + level) / 2
    return Estimate(
        frames=frames,
        level=level,
        value=float(found.value),
        low=float(found.low(side)),
        high=float(found.high(side)),
        independent=float(found.independent),
    )


def difference(leaf: Sample, region: Sample, *, level: float = PREFER_LEVEL) -> Estimate:
    """F1 of the leaf less that of the region, both against labels on the same frames, so that what is difficult for both does not blur it.

    The frames must have been chosen by the audit sample or have labels all through. Those that the leaf was unsure of, or that raised an
    alert, are not like the others.
    """
    frames = len(leaf.tp)
    if why := _too_few(frames):
        return Estimate(frames=frames, level=level, unknown=why)
    values, influences = zip(*(_linear(sample) for sample in (leaf, region)), strict=True)
    if any(value is None for value in values):
        return Estimate(frames=frames, level=level, unknown="no object was seen or labelled")
    found = spread(influences[0] - influences[1], places(leaf.weights))
    value = float(values[0] - values[1])
    reach = float(stdtrit(found.freedom, (1 + level) / 2) * np.sqrt(found.variance))
    return Estimate(frames=frames, level=level, value=value, low=max(value - reach, -1.0), high=min(value + reach, 1.0))


def _linear(sample: Sample) -> tuple[float | None, Floats]:
    """F1, and what each frame adds to its error."""
    hits, trials = sample.hits_and_trials("f1")
    whole = float(sample.weights @ trials)
    if whole <= 0:
        return None, np.zeros_like(hits)
    value = float(sample.weights @ hits) / whole
    return value, sample.weights * (hits - value * trials) / whole


def prefers_leaf(before: bool, comparison: Estimate) -> bool:
    """Whether the leaf's verdicts are to be preferred to the region's on a stream.

    They are from when the leaf is certainly the better one until the measured difference says the opposite: between the two nothing
    changes, and without enough labels neither.
    """
    if comparison.value is None or comparison.low is None:
        return before
    return comparison.value >= 0 if before else comparison.low > 0


def leaf_rank(preferred: bool) -> int:
    """The rank of the leaf's verdicts in the join."""
    return LEAF_PREFERRED_RANK if preferred else RANK[Tier.LEAF]
