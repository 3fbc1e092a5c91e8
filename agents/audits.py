"""The audit of one leaf process: which frames the region judges whatever the leaf thinks, and what that says of the leaf's answers.

A frame is drawn by its id (`agents.cascade.audit`). When it is asked about it is noted with what the leaf answered; the region's answer
completes it, however late. What is noted and never completed counts as missing. What is known of it is in `agents.ledgers`, what labels
say of it in `agents.truths`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from agents.cascade.accuracy import KEEP, Judged, Live, Window
from agents.cascade.agreement import Counts, compare
from agents.cascade.audit import Demand, audited, rates_in_force
from agents.cascade.budgets import Budgets
from agents.ledgers import Doubt, Kept, Ledger
from agents.pace import Pace
from agents.truths import Truths
from schemas.accuracy import Accuracy
from schemas.config import Audit
from schemas.labels import Label
from schemas.messages import Verdict
from schemas.rules import Rule, Zone
from streams import telemetry

RATES_S = 5.0  # how often the rates are set anew
MODELS = 1000  # windows, one for each source and model
WAITING = 2000  # frames whose answers are waited for


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
        self._ledgers: OrderedDict[tuple[str, str], Ledger] = OrderedDict()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self.truths = Truths(rules)

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
        self.truths.begin_again(source)

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
            self.truths.asked(verdict, judged)
            if len(self._waiting) > WAITING:
                self._waiting.popitem(last=False)

    def heard(self, verdict: Verdict) -> Counts | None:
        """A region's answer, to whatever frame; what the leaf's answer has in common with it if the frame is of the sample."""
        self.truths.heard(verdict)
        waiting = self._waiting.pop(verdict.id, None)
        if waiting is None:
            return None
        ours, rules = waiting.verdict, self.rules(verdict.source)
        doubt = Doubt.of(ours.confidence, ours.detections, verdict.detections, rules)
        counts = compare(ours.detections, verdict.detections)
        self._ledger(ours).add(msgspec.structs.replace(waiting.judged, leaf=counts), doubt)
        telemetry.AUDITS.labels("judged").inc()
        return counts

    def _ledger(self, verdict: Verdict) -> Ledger:
        key = (verdict.source, verdict.model_digest)
        found = self._ledgers.get(key)
        if found is None:
            found = self._ledgers[key] = Ledger(verdict.model, verdict.model_digest, verdict.site)
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
        ledger = self.truths.ledger(source, digest) or self._ledgers.get((source, digest))
        return ledger is not None and ledger.risk(self.settings.risk).final(confidence)

    def label(self, label: Label) -> bool:
        """A label came; whether it is of use."""
        useful = self.truths.label(label)
        telemetry.LABELS.labels("used" if useful else "unknown").inc()
        return useful

    def news(self) -> list[Accuracy]:
        """The accuracy of every source and model of which a frame was judged since the last call; against labels where they are enough."""
        self.truths.look()
        found = []
        for (source, digest), ledger in self._ledgers.items():
            labelled = self.truths.ledger(source, digest)
            if ledger.fresh or (labelled is not None and labelled.fresh):
                ledger.fresh = False
                found.append((labelled or ledger).accuracy(source, self.settings.risk))
        return found

    def live(self) -> Live:
        """The accuracy of all sources together, each with the model that answered it last."""
        latest: dict[str, Ledger] = {source: ledger for (source, _), ledger in self._ledgers.items()}
        together = [frame for ledger in latest.values() for frame in ledger.window.frames()]
        return Window(frames=together, keep=max(KEEP, len(together))).live()

    # ---- what outlives the process

    def dump(self, source: str) -> list[Kept]:
        """The judged frames of a source, by model, the last one last."""
        return [ledger.dump() for (name, _), ledger in self._ledgers.items() if name == source] + self.truths.dump(source)

    def load(self, source: str, kept: Iterable[Kept]) -> None:
        """Take up what `dump` gave, unless more is known already."""
        kept = list(kept)
        for each in kept:
            known = self._ledgers.get((source, each.digest))
            if each.against == "region" and (known is None or len(known.window) < len(each.frames)):
                self._ledgers[source, each.digest] = Ledger.load(each)
        self.truths.load(source, (each for each in kept if each.against == "labels"))
