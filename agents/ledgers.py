"""What was judged of one model's answers to one source, against the region's answers or against labels, and what can be said from it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
import numpy as np

from agents.cascade.accuracy import KEEP, LEVEL, Estimate, Judged, Window
from agents.cascade.accuracy import Accuracy as Estimates
from agents.cascade.agreement import agree, judged_scores
from agents.cascade.calibration import calibration_error
from agents.cascade.risk import Risk, choose
from schemas.accuracy import Accuracy
from schemas.detections import Detections
from schemas.rules import Rule, Zone

Against = Literal["region", "labels"]
_PAIRS = 40  # detections of a frame that a calibration error rests on


class Doubt(msgspec.Struct, frozen=True):
    """How sure the leaf was of a judged frame, whether it was another answer, and of its detections the scores and which were right."""

    confidence: float
    disagreed: bool
    scores: list[float]
    right: list[bool]

    @classmethod
    def of(
        cls, confidence: float, ours: Detections, theirs: Detections, rules: Sequence[tuple[Rule, Zone]], *, labels: bool = False
    ) -> Doubt:
        """An answer against the region's, or against labels, of which every object counts."""
        if labels:
            pairs = judged_scores(list(ours)[:_PAIRS], theirs, second_score=0.0)
            return cls(confidence, not agree(ours, theirs, rules, second_score=0.0), *_split(pairs))
        pairs = judged_scores(list(ours)[:_PAIRS], theirs)
        return cls(confidence, not agree(ours, theirs, rules), *_split(pairs))


def _split(pairs: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [score for score, _ in pairs], [right for _, right in pairs]


class Kept(msgspec.Struct, frozen=True):
    """The judged frames of one source and model, as they are written down. `preferred`: by these labels the leaf is the better one."""

    model: str
    digest: str
    site: str
    frames: list[Judged]
    doubts: dict[str, Doubt]
    against: Against = "region"
    preferred: bool = False


class Ledger:
    """The judged frames of one model's answers to one source."""

    def __init__(
        self,
        model: str,
        digest: str,
        site: str,
        frames: Iterable[Judged] = (),
        doubts: dict[str, Doubt] | None = None,
        against: Against = "region",
    ) -> None:
        self.model, self.digest, self.site = model, digest, site
        self.window = Window(against, frames=frames)
        self.doubts = dict(doubts or {})
        self.fresh = False
        self._risk: Risk | None = None

    @classmethod
    def load(cls, kept: Kept) -> Ledger:
        return cls(kept.model, kept.digest, kept.site, kept.frames, kept.doubts, kept.against)

    def dump(self, *, preferred: bool = False) -> Kept:
        frames = self.window.frames()
        doubts = {each.id: self.doubts[each.id] for each in frames if each.id in self.doubts}
        return Kept(self.model, self.digest, self.site, frames, doubts, self.window.against, preferred)

    def add(self, judged: Judged, doubt: Doubt | None = None) -> None:
        self.window.add(judged)
        if doubt is not None:
            self.doubts[judged.id] = doubt
            self.fresh = True
        if len(self.doubts) > 2 * KEEP:
            kept = {each.id for each in self.window.frames()}
            self.doubts = {name: each for name, each in self.doubts.items() if name in kept}

    def risk(self, alpha: float) -> Risk:
        """The threshold that these frames allowed when it was last told (`accuracy`), so that what is in force can be read."""
        if self._risk is None:
            doubts = [(frame.rate, self.doubts[frame.id]) for frame in self.window.frames() if frame.id in self.doubts]
            self._risk = choose(
                [doubt.confidence for _, doubt in doubts],
                [doubt.disagreed for _, doubt in doubts],
                [1 / rate for rate, _ in doubts],
                alpha=alpha,
            )
        return self._risk

    def accuracy(self, source: str, alpha: float) -> Accuracy:
        """What the frames say, as it is published; `risk` is told anew."""
        self.fresh, self._risk = False, None
        frames, live, risk = self.window.frames(), self.window.live(), self.risk(alpha)
        doubts = [(frame, self.doubts[frame.id]) for frame in frames if frame.id in self.doubts]
        scores = [score for _, doubt in doubts for score in doubt.scores]
        error = calibration_error(
            scores,
            [right for _, doubt in doubts for right in doubt.right],
            [1 / frame.rate for frame, doubt in doubts for _ in doubt.scores],
            groups=np.repeat(np.arange(len(doubts)), [len(doubt.scores) for _, doubt in doubts]),
        )
        return Accuracy(
            source=source,
            site=self.site,
            model=self.model,
            model_digest=self.digest,
            against=self.window.against,
            since=_time(frames[0].at),
            until=_time(frames[-1].at),
            frames=live.frames,
            missing=live.missing,
            level=LEVEL,
            unknown=live.leaf.f1.unknown or None,
            calibration_error=None if error is None else round(min(error.value, 1.0), 4),
            calibration_pairs=len(scores),
            risk=alpha,
            sure_from=risk.least,
            sure_share=round(risk.share, 4) if risk.least is not None else None,
            **{**_shares("leaf", live.leaf), **_shares("results", live.results)},
        )


def _shares(of: str, estimates: Estimates) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("precision", "recall", "f1"):
        estimate: Estimate = getattr(estimates, name)
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            found[f"{of}_{name}{end}"] = None if value is None else round(min(max(value, 0.0), 1.0), 4)
    return found


def _time(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
