"""What labels say of the answers: the accuracy of the leaf and of the region against what is truly there, and which of the two is to be
believed on a source.

Labels are held against the frames of the audit sample, which both tiers have answered whatever the leaf thought: those that it was unsure
of, or that raised an alert, are not like the others. A label may come before the region's answer or long after it, as long as the frame is
remembered. Where labels are enough for an estimate they stand instead of the region's answers, which are not the truth.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from agents.cascade.accuracy import Judged, prefers_leaf
from agents.cascade.agreement import compare
from agents.ledgers import Doubt, Kept, Ledger
from schemas.detections import Detections
from schemas.labels import Label
from schemas.messages import Verdict
from schemas.rules import Rule, Zone

log = logging.getLogger("headwater.audit")

PAIRS = 2000  # audited frames that may still be labelled, of some ten kilobytes each
SOURCES = 1000


class _Pair(msgspec.Struct):
    """What both tiers answered to a frame of the sample, and its label, as far as they are known."""

    leaf: Verdict
    judged: Judged
    region: Detections | None = None
    label: Label | None = None


class Truths:
    """All is called on the event loop.

    Parameters
    ----------
    rules
        Of a source: those that its readers act by.
    """

    def __init__(self, rules: Callable[[str], list[tuple[Rule, Zone]]]) -> None:
        self._rules = rules
        self._pairs: OrderedDict[str, _Pair] = OrderedDict()
        self._ledgers: OrderedDict[tuple[str, str], Ledger] = OrderedDict()
        self._changed: set[tuple[str, str]] = set()  # of these, since `look`
        self._enough: set[tuple[str, str]] = set()
        self._preferred: set[str] = set()

    # ---- what comes

    def asked(self, verdict: Verdict, judged: Judged) -> None:
        """A frame of the sample was answered so by the leaf."""
        self._pairs[verdict.id] = _Pair(verdict, judged)
        if len(self._pairs) > PAIRS:
            self._pairs.popitem(last=False)

    def heard(self, verdict: Verdict) -> None:
        """A region's answer, to whatever frame."""
        pair = self._pairs.get(verdict.id)
        if pair is not None and pair.region is None:
            pair.region = verdict.detections
            self._judge(pair)

    def label(self, label: Label) -> bool:
        """A label came, of whatever frame; whether it is of use: of a frame of the sample that is remembered."""
        pair = self._pairs.get(label.id)
        if pair is None:
            return False
        pair.label = label
        self._judge(pair)
        return True

    def _judge(self, pair: _Pair) -> None:
        """Both answers at once: a comparison of the two must not rest on those frames alone that the region has answered already."""
        label = pair.label
        if label is None or pair.region is None:
            return
        ours, theirs = label.of(pair.leaf.detections), label.of(pair.region)
        judged = msgspec.structs.replace(
            pair.judged, leaf=compare(ours, label.objects, second_score=0.0), region=compare(theirs, label.objects, second_score=0.0)
        )
        rules = self._rules(pair.leaf.source)
        self._ledger(pair.leaf).add(judged, Doubt.of(pair.leaf.confidence, ours, label.objects, rules, labels=True))
        self._changed.add((pair.leaf.source, pair.leaf.model_digest))

    def _ledger(self, verdict: Verdict) -> Ledger:
        key = (verdict.source, verdict.model_digest)
        found = self._ledgers.get(key)
        if found is None:
            found = self._ledgers[key] = Ledger(verdict.model, verdict.model_digest, verdict.site, against="labels")
            if len(self._ledgers) > SOURCES:
                self._ledgers.popitem(last=False)
        self._ledgers.move_to_end(key)
        return found

    def look(self) -> None:
        """See what the labels that came since the last call say; it takes milliseconds for each source of which some came."""
        for key in self._changed & self._ledgers.keys():
            source, window = key[0], self._ledgers[key].window
            self._enough.discard(key)
            if window.live().leaf.f1.value is not None:
                self._enough.add(key)
            before = source in self._preferred
            after = prefers_leaf(before, window.comparison())
            if after != before:
                log.warning(
                    "labels show that the leaf is better than the region: its answers hold there"
                    if after
                    else "labels no longer show that the leaf is better than the region",
                    extra={"record": source, "labels": len(window)},
                )
            (self._preferred.add if after else self._preferred.discard)(source)
        self._changed.clear()

    # ---- what it says

    def prefers_leaf(self, source: str) -> bool:
        """Whether labels have shown that the leaf is the better one on a source."""
        return source in self._preferred

    def ledger(self, source: str, digest: str) -> Ledger | None:
        """What is known of a model's answers to a source; None if that is too little for an estimate."""
        return self._ledgers.get((source, digest)) if (source, digest) in self._enough else None

    def begin_again(self, source: str) -> None:
        """What was labelled of a source does not hold any more: it was another picture."""
        for key in [key for key in self._ledgers if key[0] == source]:
            del self._ledgers[key]
            self._enough.discard(key)
        self._pairs = OrderedDict((name, each) for name, each in self._pairs.items() if each.leaf.source != source)
        self._preferred.discard(source)

    # ---- what outlives the process

    def dump(self, source: str) -> list[Kept]:
        preferred = source in self._preferred
        return [ledger.dump(preferred=preferred) for (name, _), ledger in self._ledgers.items() if name == source]

    def load(self, source: str, kept: Iterable[Kept]) -> None:
        """Take up what `dump` gave, unless more is known already."""
        for each in kept:
            known = self._ledgers.get((source, each.digest))
            if known is None or len(known.window) < len(each.frames):
                self._ledgers[source, each.digest] = Ledger.load(each)
                self._changed.add((source, each.digest))
                if each.preferred:
                    self._preferred.add(source)
        self.look()
