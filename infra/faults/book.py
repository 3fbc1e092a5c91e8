"""The judge's arithmetic: what the manifest promised, what the topics hold, and what is wrong between them. Pure; nothing of the product is
called here, values are read as plain JSON.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

ExpectedUp = Callable[[str, str], str | None]  # the SHA-256 of evidence and a record's id: its detections as JSON
Expected = Callable[[str], str | None]  # the SHA-256 of a frame's bytes: its detections as JSON; None if it cannot be decoded

SENT, RESULT, DROP, DEAD = 1, 2, 4, 8
ENDED = RESULT | DROP | DEAD


class _Answer(msgspec.Struct):
    id: str
    source: str
    tier: str
    status: str
    detections: str
    evidence: str | None = None
    order: str = ""
    seen: str | None = None


class _Drop(msgspec.Struct):
    source: str
    epoch: str
    stage: str
    reason: str
    ranges: str


class _Mark(msgspec.Struct):
    source: str
    epoch: str
    state: str
    acknowledged: int


class _Alert(msgspec.Struct):
    id: str
    record: str
    source: str
    state: str
    version: int


class Promise(msgspec.Struct, gc=False):
    """A record of the manifest, and what became of it."""

    sha256: str
    at: float
    flags: int = 0
    order: str = ""  # of its latest result at the leaf
    order_up: str = ""  # and at the region


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A record of the leaf that the region has not (yet): where it stands, when it was appended (ms), and what it is about."""

    topic_uuid: str
    partition: int
    offset: int
    at_ms: int
    about: str


class AlertStory(msgspec.Struct, gc=False):
    """One alert: when its first message was appended at the leaf (ms; 0: not read yet), how far it came there, and at the region."""

    source: str
    raised_ms: int = 0
    version: int = -1
    version_up: int = -1


_answer, _drop = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Drop)
_mark, _alert = msgspec.json.Decoder(_Mark), msgspec.json.Decoder(_Alert)
_ranges = msgspec.json.Decoder(list[tuple[int, int]])


class Tally(msgspec.Struct):
    """What went wrong, or was repeated, since the last `Book.begin`."""

    repeated_verdicts: int = 0
    repeated_results: int = 0
    wrong_detections: int = 0
    wrong_bytes: int = 0
    unknown_records: int = 0
    examples: list[str] = msgspec.field(default_factory=list)
    pauses: dict[str, float] = msgspec.field(default_factory=dict)  # longest time between two answers, by source (s)
    outputs: Counter[str] = msgspec.field(default_factory=Counter)  # records seen, by side and topic

    def note(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < 40:
            self.examples.append(f"{kind}: {what}")


class Book:
    """Takes in the manifest and every record of both sites, in the order of their partitions, and says what is missing or wrong.

    Parameters
    ----------
    expected, expected_up
        Detections of a frame at the leaf by the digest of its bytes, and of a record at the region by that of the evidence and its id.
    has_evidence
        Whether the evidence of a digest has been read, with a question about the record.
    uuids
        Topic uuids of the leaf by topic, for drops that name offsets.
    """

    def __init__(
        self, expected: Expected, expected_up: ExpectedUp, has_evidence: Callable[[str, str], bool], uuids: dict[str, str]
    ) -> None:
        self.expected, self.expected_up, self.has_evidence, self.uuids = expected, expected_up, has_evidence, uuids
        self.promises: dict[str, Promise] = {}
        self.open: dict[str, Promise] = {}  # those that nothing is known of
        self.alerts: dict[str, AlertStory] = {}
        self.alert_times: list[int] = []
        self.marks: dict[str, int] = {}  # acknowledged, by source/epoch
        self.letters: Counter[str] = Counter()
        self.losses: list[tuple[str, int, int, int]] = []  # topic uuid, partition, first, last: what the link explains
        self.reasons: Counter[str] = Counter()
        self.tally = Tally()
        self._frames: dict[tuple[int, int], str] = {}  # partition and offset to id: drops may name offsets
        self._seen: dict[str, set[int]] = {}
        self._carry: dict[str, dict[int, Waiting]] = {"verdicts": {}, "alerts": {}}  # by the hash of the value
        self._disagree: set[str] = set()
        self._last_ms: dict[str, int] = {}
        self._unchecked: list[_Answer] = []  # of the region: their evidence may be read later than they are
        self._early: dict[str, int] = {}  # flags of records that the manifest does not tell of (yet)

    def begin(self) -> None:
        """Start a round: what is counted, and the pauses, begin anew."""
        self.tally = Tally()
        self._last_ms.clear()

    # ---- the manifest

    def promise(self, record: str, sha256: str, at: float) -> None:
        known = self.promises.get(record)
        if known is not None:
            known.at = min(known.at, at)
            return
        promise = self.promises[record] = Promise(sha256, at, self._early.pop(record, 0))
        if not promise.flags & ENDED:
            self.open[record] = promise

    # ---- the leaf's topics

    def frame(self, record: str | None, value: bytes, partition: int, offset: int) -> None:
        if record is None:
            return
        self._frames[partition, offset] = record
        promise = self._mark_flag(record, SENT)
        if promise is not None and hashlib.sha256(value).hexdigest() != promise.sha256:
            self.tally.note("wrong_bytes", record)

    def verdict(self, side: str, topic: str, value: bytes, partition: int, offset: int, at_ms: int) -> None:
        """A verdict of `verdicts`, `up.verdicts`, `region.verdicts` or `down.verdicts`."""
        answer, mark = _answer.decode(value), hash(value)
        first = self._first(topic, mark)
        if not first:
            self.tally.note("repeated_verdicts", f"{topic} {answer.id} {answer.status}")
        if topic == "verdicts":
            if answer.status != "unanswered" or answer.seen is not None:  # else a deadline's
                self._pause(answer.source, at_ms)
            if first:
                if mark not in self._seen.setdefault("up.verdicts", set()):
                    self._carry["verdicts"][mark] = Waiting(self.uuids.get("verdicts", ""), partition, offset, at_ms, answer.id)
                self._check(answer)
        elif topic == "up.verdicts":
            self._carry["verdicts"].pop(mark, None)
        elif first and topic == "down.verdicts":
            self._unchecked.append(answer)

    def result(self, side: str, value: bytes) -> None:
        answer = _answer.decode(value)
        promise = self._mark_flag(answer.id, RESULT) if side == "leaf" else self.promises.get(answer.id)
        if promise is None:
            self.tally.note("unknown_records", f"result {answer.id}")
            return
        before = promise.order if side == "leaf" else promise.order_up
        if answer.order <= before:
            self.tally.note("repeated_results", f"{side} {answer.id} {answer.order} after {before}")
        if side == "leaf":
            promise.order = max(before, answer.order)
        else:
            promise.order_up = max(before, answer.order)
        if promise.order == promise.order_up:
            self._disagree.discard(answer.id)
        else:
            self._disagree.add(answer.id)

    def alert(self, side: str, topic: str, value: bytes, partition: int, offset: int, at_ms: int) -> None:
        alert, mark = _alert.decode(value), hash(value)
        first = self._first(f"{side} {topic}", mark)
        if topic == "up.alerts":
            self._carry["alerts"].pop(mark, None)
            return
        story = self.alerts.setdefault(alert.id, AlertStory(alert.source))
        if side == "region":
            story.version_up = max(story.version_up, alert.version)
            return
        if first and mark not in self._seen.setdefault("region up.alerts", set()):
            self._carry["alerts"][mark] = Waiting(self.uuids.get("alerts", ""), partition, offset, at_ms, alert.id)
        if not story.raised_ms:
            story.raised_ms = at_ms
            self.alert_times.append(at_ms)
        story.version = max(story.version, alert.version)

    def drop(self, value: bytes) -> None:
        drop = _drop.decode(value)
        for first, last in _ranges.decode(drop.ranges.encode()):
            if drop.source == "kafka":
                uuid, _, partition = drop.epoch.partition("/")[2].rpartition("/")
                if uuid != self.uuids.get("frames"):
                    self.losses.append((uuid, int(partition), first, last))
                    continue
                self.reasons[f"{drop.stage}: {drop.reason}"] += last - first + 1
                for offset in range(first, last + 1):
                    if (record := self._frames.get((int(partition), offset))) is not None:
                        self._mark_flag(record, DROP)
            else:
                self.reasons[f"{drop.stage}: {drop.reason}"] += last - first + 1
                for sequence in range(first, last + 1):
                    self._mark_flag(f"{drop.source}/{drop.epoch}/{sequence}", DROP)

    def epoch(self, value: bytes) -> None:
        mark = _mark.decode(value)
        stream = f"{mark.source}/{mark.epoch}"
        self.marks[stream] = max(self.marks.get(stream, 0), mark.acknowledged)

    def letter(self, topic: str, record: str | None) -> None:
        self.letters[topic] += 1
        if record is not None and topic in ("frames.dlq", "verdicts.dlq"):
            self._mark_flag(record, DEAD)

    # ---- what is said

    def unaccounted(self, before: float, lost_with: Callable[[str], bool]) -> list[str]:
        """Records of the manifest, published before a time, that ended as nothing. `lost_with` says whether a record's producer was killed:
        what it had neither sent nor had acknowledged is lost with it."""
        return [record for record, promise in self.open.items() if promise.at < before and not self.excused(record, promise, lost_with)]

    def excused(self, record: str, promise: Promise, lost_with: Callable[[str], bool]) -> bool:
        stream, _, sequence = record.rpartition("/")
        return not promise.flags & SENT and int(sequence) >= self.marks.get(stream, 0) and lost_with(stream)

    def uncarried(self, kind: str, before_ms: float) -> list[Waiting]:
        """Verdicts or alerts that were appended at the leaf before a time, that the region has not, and that the link does not explain."""
        return [each for each in self._carry[kind].values() if each.at_ms < before_ms and not self._explained(each)]

    def lost(self, kind: str) -> list[Waiting]:
        """Those that the region will never have, as the link says."""
        return [each for each in self._carry[kind].values() if self._explained(each)]

    def _explained(self, each: Waiting) -> bool:
        return any(
            uuid == each.topic_uuid and partition == each.partition and first <= each.offset <= last
            for uuid, partition, first, last in self.losses
        )

    def undecided(self, before_ms: float) -> list[str]:
        """Alerts that were raised before a time and still stand as raised, or otherwise at the region than at the leaf."""
        return [
            name
            for name, story in self.alerts.items()
            if story.raised_ms < before_ms and (story.version < 1 or story.version_up != story.version)
        ]

    def disagreeing(self, before: float) -> list[str]:
        """Records, published before a time, whose latest results differ between the two sites without an explanation."""
        lost = {each.about for each in self.lost("verdicts")} if self.losses else set()
        return [
            name
            for name in self._disagree - lost
            if (known := self.promises.get(name)) is None or (known.at < before and not (known.flags & DROP and not known.order))
        ]  # what the leaf says to have lost with its verdict, the region may know

    def records_between(self, start: float, end: float) -> int:
        return sum(start <= promise.at < end for promise in self.promises.values())

    # ---- inside

    def _mark_flag(self, record: str, flag: int) -> Promise | None:
        promise = self.promises.get(record)
        if promise is None:
            self._early[record] = self._early.get(record, 0) | flag
            return None
        promise.flags |= flag
        if flag & ENDED:
            self.open.pop(record, None)
        return promise

    def _first(self, topic: str, mark: int) -> bool:
        seen = self._seen.setdefault(topic, set())
        if mark in seen:
            return False
        seen.add(mark)
        return True

    def _pause(self, source: str, at_ms: int) -> None:
        last = self._last_ms.get(source)
        self._last_ms[source] = at_ms
        if last is not None:
            self.tally.pauses[source] = max(self.tally.pauses.get(source, 0.0), (at_ms - last) / 1000)

    def _check(self, answer: _Answer) -> None:
        """What a leaf's verdict says to have seen against the frame's bytes: what it makes of that depends on the frames before."""
        promise = self.promises.get(answer.id)
        if promise is None:
            self.tally.note("unknown_records", f"verdict {answer.id}")
        elif answer.status not in ("failed", "unanswered") or answer.seen is not None:
            wanted = self.expected(promise.sha256)
            if wanted is None or answer.seen != hashlib.sha256(wanted.encode()).hexdigest()[:32]:
                self.tally.note(
                    "wrong_detections", f"{answer.tier} {answer.id}: {answer.detections:.80}, expected to have seen {wanted!s:.80}"
                )

    def check_evidence(self) -> None:
        """Detections of the region's verdicts against the evidence that they name, as far as it has been read."""
        waiting, self._unchecked = self._unchecked, []
        for answer in waiting:
            if answer.evidence is not None and not self.has_evidence(answer.evidence, answer.id):
                self._unchecked.append(answer)
            else:
                self._compare(answer, self.expected_up(answer.evidence or "", answer.id))

    def _compare(self, answer: _Answer, wanted: str | None) -> None:
        if answer.status != "failed" and wanted != answer.detections:
            self.tally.note("wrong_detections", f"{answer.tier} {answer.id}: {answer.detections:.80}, expected {wanted!s:.80}")

    def strangers(self) -> Iterable[str]:
        """Records on the topics that the manifest never told of."""
        return self._early
