"""The audit of one leaf process: which frames the region judges whatever the leaf thinks, and what that says of the leaf's answers.

A frame is drawn by its id (`agents.cascade.audit`). When it is asked about it is noted with what the leaf answered; the region's answer
completes it, however late. What is noted and never completed counts as missing. The estimates are `agents.cascade.accuracy`'s.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from agents.cascade.accuracy import KEEP, LEVEL, Estimate, Judged, Live, Window
from agents.cascade.accuracy import Accuracy as Estimates
from agents.cascade.agreement import Counts, agree, compare, judged_scores
from agents.cascade.audit import Demand, audited, rates_in_force
from agents.cascade.budgets import Budgets
from agents.cascade.calibration import calibration_error
from agents.cascade.risk import Risk, choose
from agents.pace import Pace
from schemas.accuracy import Accuracy
from schemas.config import Audit
from schemas.messages import Verdict
from schemas.rules import Rule, Zone
from streams import telemetry

RATES_S = 5.0  # how often the rates are set anew
MODELS = 1000  # windows, one for each source and model
WAITING = 2000  # frames whose answers are waited for
_PAIRS = 40  # detections of a frame that a calibration error rests on


class Doubt(msgspec.Struct, frozen=True):
    """How sure the leaf was of an audited frame, whether the region disagreed, and of its detections the scores and which were right."""

    confidence: float
    disagreed: bool
    scores: list[float]
    right: list[bool]


class Kept(msgspec.Struct, frozen=True):
    """The audited frames of one source and model, as they are written down."""

    model: str
    digest: str
    site: str
    frames: list[Judged]
    doubts: dict[str, Doubt]


class _Ledger:
    """What is known of the answers of one model to one source."""

    def __init__(self, model: str, digest: str, site: str, frames: Iterable[Judged] = (), doubts: dict[str, Doubt] | None = None) -> None:
        self.model, self.digest, self.site = model, digest, site
        self.window = Window(frames=frames)
        self.doubts = dict(doubts or {})
        self.fresh = False
        self.risk: Risk | None = None  # as it was last told

    def add(self, judged: Judged, doubt: Doubt | None = None) -> None:
        self.window.add(judged)
        if doubt is not None:
            self.doubts[judged.id] = doubt
            self.fresh = True
        if len(self.doubts) > 2 * KEEP:
            kept = {each.id for each in self.window.frames()}
            self.doubts = {name: each for name, each in self.doubts.items() if name in kept}

    def dump(self) -> Kept:
        frames = self.window.frames()
        return Kept(
            self.model, self.digest, self.site, frames, {each.id: self.doubts[each.id] for each in frames if each.id in self.doubts}
        )


class _Waiting(msgspec.Struct, frozen=True):
    verdict: Verdict
    judged: Judged


class Audits:
    """All is called on the event loop.

    Parameters
    ----------
    rules
        Of a source: those that its readers act by.
    clock
        Seconds, for how many frames there are.
    """

    def __init__(
        self,
        settings: Audit,
        budgets: Budgets,
        rules: Callable[[str], list[tuple[Rule, Zone]]] = lambda source: [],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.budgets, self.rules, self._clock = settings, budgets, rules, clock
        self._paces: OrderedDict[str, Pace] = OrderedDict()
        self._raised: dict[str, float] = {}  # factors on the rate, by source
        self._rates: dict[str, float] = {}
        self._rates_at_s = float("-inf")
        self._ledgers: OrderedDict[tuple[str, str], _Ledger] = OrderedDict()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    # ---- the sample

    def draw(self, source: str, record: str, look_bytes: float) -> float | None:
        """The rate by which a frame is in the sample, or None if it is not."""
        if not self.settings.rate:
            return None
        now_s = self._clock()
        pace = self._paces.get(source)
        if pace is None:
            pace = self._paces[source] = Pace()
            if len(self._paces) > MODELS:
                self._paces.popitem(last=False)
        pace.add(now_s)
        if now_s - self._rates_at_s > RATES_S:
            self._rates_at_s = now_s
            self._rates = rates_in_force(
                {
                    name: Demand(each.rate(now_s), look_bytes, min(1.0, self.settings.rate * self._raised.get(name, 1.0)))
                    for name, each in self._paces.items()
                },
                budget_bytes_per_s=self.budgets.bytes.rate,
                inferences_per_s=self.budgets.inferences.rate,
            )
        rate = self._rates.get(source, self.settings.rate)
        return rate if rate and audited(record, rate, self.settings.salt) else None

    def raise_rate(self, source: str, factor: float) -> None:
        """So many times the usual share of a source's frames is drawn, until this is called again."""
        if self._raised.get(source, 1.0) != factor:
            self._raised[source] = factor
            self._rates_at_s = float("-inf")
        if factor == 1.0:
            self._raised.pop(source, None)

    def begin_again(self, source: str) -> None:
        """What was judged of a source does not hold any more: it was about another picture."""
        for key in [key for key in self._ledgers if key[0] == source]:
            del self._ledgers[key]
        self._waiting = OrderedDict((name, each) for name, each in self._waiting.items() if each.verdict.source != source)

    def asked(self, verdict: Verdict, rate: float, *, otherwise: bool, sent: bool = True) -> None:
        """A frame of the sample was answered so by the leaf, and the region is asked about it.

        Parameters
        ----------
        otherwise
            Whether the region would have been asked in any case.
        sent
            False if it could not be: the frame is missing.
        """
        judged = Judged(verdict.id, verdict.captured_at.timestamp(), rate, asked=otherwise)
        self._ledger(verdict).add(judged)
        telemetry.AUDITS.labels("asked" if sent else "missing").inc()
        if sent:
            self._waiting[verdict.id] = _Waiting(verdict, judged)
            if len(self._waiting) > WAITING:
                self._waiting.popitem(last=False)

    def heard(self, verdict: Verdict) -> Counts | None:
        """A region's answer, to whatever frame; what the leaf's answer has in common with it if the frame is of the sample."""
        waiting = self._waiting.pop(verdict.id, None)
        if waiting is None:
            return None
        ours, rules = waiting.verdict, self.rules(verdict.source)
        pairs = judged_scores(list(ours.detections)[:_PAIRS], verdict.detections)
        doubt = Doubt(
            ours.confidence,
            not agree(ours.detections, verdict.detections, rules),
            [score for score, _ in pairs],
            [right for _, right in pairs],
        )
        counts = compare(ours.detections, verdict.detections)
        self._ledger(ours).add(msgspec.structs.replace(waiting.judged, leaf=counts), doubt)
        telemetry.AUDITS.labels("judged").inc()
        return counts

    def _ledger(self, verdict: Verdict) -> _Ledger:
        key = (verdict.source, verdict.model_digest)
        found = self._ledgers.get(key)
        if found is None:
            found = self._ledgers[key] = _Ledger(verdict.model, verdict.model_digest, verdict.site)
            if len(self._ledgers) > MODELS:
                self._ledgers.popitem(last=False)
        self._ledgers.move_to_end(key)
        return found

    # ---- what it says

    def sure(self, source: str, digest: str, confidence: float) -> bool | None:
        """Whether an answer of a model to a source may be called final: of those with that confidence the region disagrees with no more
        than the stated share, by what was audited. None where nothing is audited: then nobody can say."""
        if not self.settings.rate:
            return None
        ledger = self._ledgers.get((source, digest))
        return ledger is not None and self._risk(ledger).final(confidence)

    def _risk(self, ledger: _Ledger, *, anew: bool = False) -> Risk:
        """The threshold that a ledger's frames allow: that which was told last, so that what is in force can be read."""
        if ledger.risk is None or anew:
            doubts = [(frame.rate, ledger.doubts[frame.id]) for frame in ledger.window.frames() if frame.id in ledger.doubts]
            ledger.risk = choose(
                [doubt.confidence for _, doubt in doubts],
                [doubt.disagreed for _, doubt in doubts],
                [1 / rate for rate, _ in doubts],
                alpha=self.settings.risk,
            )
        return ledger.risk

    def news(self) -> list[Accuracy]:
        """The accuracy of every source and model of which a frame was judged since the last call."""
        found = []
        for (source, _), ledger in self._ledgers.items():
            if ledger.fresh:
                ledger.fresh = False
                found.append(self._accuracy(source, ledger))
        return found

    def live(self) -> Live:
        """The accuracy of all sources together, each with the model that answered it last."""
        latest: dict[str, _Ledger] = {source: ledger for (source, _), ledger in self._ledgers.items()}
        together = [frame for ledger in latest.values() for frame in ledger.window.frames()]
        return Window(frames=together, keep=max(KEEP, len(together))).live()

    def _accuracy(self, source: str, ledger: _Ledger) -> Accuracy:
        frames, live = ledger.window.frames(), ledger.window.live()
        doubts = [(frame, ledger.doubts[frame.id]) for frame in frames if frame.id in ledger.doubts]
        scores = [score for _, doubt in doubts for score in doubt.scores]
        error = calibration_error(
            scores,
            [right for _, doubt in doubts for right in doubt.right],
            [1 / frame.rate for frame, doubt in doubts for _ in doubt.scores],
            groups=np.repeat(np.arange(len(doubts)), [len(doubt.scores) for _, doubt in doubts]),
        )
        risk = self._risk(ledger, anew=True)
        shares = {**_shares("leaf", live.leaf), **_shares("results", live.results)}
        return Accuracy(
            source=source,
            site=ledger.site,
            model=ledger.model,
            model_digest=ledger.digest,
            against="region",
            since=_time(frames[0].at),
            until=_time(frames[-1].at),
            frames=live.frames,
            missing=live.missing,
            level=LEVEL,
            unknown=live.leaf.f1.unknown or None,
            calibration_error=None if error is None else round(min(error.value, 1.0), 4),
            calibration_pairs=len(scores),
            risk=self.settings.risk,
            sure_from=risk.least,
            sure_share=round(risk.share, 4) if risk.least is not None else None,
            **shares,
        )

    # ---- what outlives the process

    def dump(self, source: str) -> list[Kept]:
        """The audited frames of a source, by model, the last one last."""
        return [ledger.dump() for (name, _), ledger in self._ledgers.items() if name == source]

    def load(self, source: str, kept: Iterable[Kept]) -> None:
        """Take up what `dump` gave, unless more is known already."""
        for each in kept:
            known = self._ledgers.get((source, each.digest))
            if known is None or len(known.window) < len(each.frames):
                self._ledgers[source, each.digest] = _Ledger(each.model, each.digest, each.site, each.frames, each.doubts)


def _shares(of: str, estimates: Estimates) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("precision", "recall", "f1"):
        estimate: Estimate = getattr(estimates, name)
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            found[f"{of}_{name}{end}"] = None if value is None else round(min(max(value, 0.0), 1.0), 4)
    return found


def _time(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
