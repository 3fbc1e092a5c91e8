"""The demo's reader: a process of its own that reads the leaf's topics as any reader would, and says what it saw, a JSON line at a time.

Latency is measured here: from a frame's capture to the moment this process has read the record. It runs as
`python -m infra.demo.observer CONFIG` and ends with its standard output.
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from schemas.config import parse
from schemas.detections import Detections
from schemas.drift import Drift
from schemas.messages import Alert, Result, Tier, Verdict
from schemas.records import InvalidRecord
from streams.clients import Clients
from streams.reader import Stored, read
from streams.topology import Role, Topology

_SCORE = 0.5  # what counts as seen when the answers of two tiers are compared
_IOU = 0.5
_KEPT = 20_000  # frames whose leaf answer is remembered


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One thing that was read: `read_at` is when (seconds since 1970), `latency_ms` how long after its frame was taken."""

    read_at: float
    latency_ms: float
    source: str
    record: str


class SeenVerdict(Seen, frozen=True, kw_only=True, tag="verdict"):
    """A leaf's verdict."""

    status: str


class SeenAlert(Seen, frozen=True, kw_only=True, tag="alert"):
    """An alert in one of its states."""

    alert: str
    rule: str
    state: str
    score: float
    late: bool = False


class SeenAnswer(Seen, frozen=True, kw_only=True, tag="answer"):
    """A result in which the region's verdict holds, and what it changed: objects that it added to the leaf's and took away."""

    added: int
    removed: int


class SeenDrift(Seen, frozen=True, kw_only=True, tag="drift"):
    """A drift alarm in one of its states: what moved, from which level to which. `record` is the alarm's id."""

    cause: str
    state: str
    before: float
    after: float


class Trouble(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="trouble"):
    """A record that could not be read."""

    topic: str
    reason: str


Line = SeenVerdict | SeenAlert | SeenAnswer | SeenDrift | Trouble


class Observer:
    """Turns records into lines; remembers the leaf's answers to compare the region's with."""

    def __init__(self) -> None:
        self._leaf: OrderedDict[str, Detections] = OrderedDict()

    def see(self, stored: Stored, now: float) -> Line | None:
        """What one record says, or None if it is none of our concern."""
        value = stored.value or b""
        try:
            match stored.topic.base:
                case "verdicts":
                    return self._verdict(Verdict.from_bytes(value), now)
                case "alerts":
                    alert = Alert.from_bytes(value)
                    return SeenAlert(
                        read_at=now,
                        latency_ms=(now - alert.captured_at.timestamp()) * 1000,
                        source=alert.source,
                        record=alert.record,
                        alert=alert.id,
                        rule=alert.rule,
                        state=alert.state,
                        score=alert.score,
                        late=alert.late,
                    )
                case "drift":
                    drift = Drift.from_bytes(value)
                    return SeenDrift(
                        read_at=now,
                        latency_ms=(now - drift.at.timestamp()) * 1000,
                        source=drift.source,
                        record=drift.id,
                        cause=drift.cause,
                        state=drift.state,
                        before=drift.before,
                        after=drift.after,
                    )
                case _:
                    return self._result(Result.from_bytes(value), now)
        except InvalidRecord as error:
            return Trouble(topic=stored.topic.name, reason=str(error))

    def _verdict(self, verdict: Verdict, now: float) -> Line | None:
        if verdict.tier is not Tier.LEAF or verdict.id in self._leaf:  # a passed deadline, or a repetition
            return None
        self._leaf[verdict.id] = verdict.detections
        if len(self._leaf) > _KEPT:
            self._leaf.popitem(last=False)
        return SeenVerdict(
            read_at=now,
            latency_ms=(now - verdict.captured_at.timestamp()) * 1000,
            source=verdict.source,
            record=verdict.id,
            status=verdict.status,
        )

    def _result(self, result: Result, now: float) -> Line | None:
        if result.tier is not Tier.REGION:
            return None
        added, removed = difference(self._leaf.get(result.id, Detections()), result.detections)
        return SeenAnswer(
            read_at=now,
            latency_ms=(now - result.captured_at.timestamp()) * 1000,
            source=result.source,
            record=result.id,
            added=added,
            removed=removed,
        )


def difference(leaf: Detections, region: Detections) -> tuple[int, int]:
    """Objects that the region saw and the leaf did not, and the other way round; the same object overlaps by half."""
    ours = [d for d in leaf if d.score >= _SCORE]
    theirs = [d for d in region if d.score >= _SCORE]
    removed = 0
    for mine in ours:
        match = max((d for d in theirs if d.label == mine.label), key=mine.iou, default=None)
        if match is not None and mine.iou(match) >= _IOU:
            theirs.remove(match)
        else:
            removed += 1
    return len(theirs), removed


def main(config_path: str) -> None:
    config = parse(Path(config_path).read_text(encoding="utf-8"), os.environ, where=config_path)
    role = Topology(config).role(Role.READER)
    topics = [role.read(base) for base in ("verdicts", "alerts", "results", "drift")]
    observer, encoder = Observer(), msgspec.json.Encoder()
    for stored in read(Clients(config.kafka, "demo.observer"), topics, start="beginning", follow=True):
        line = observer.see(stored, time.time())
        if line is not None:
            sys.stdout.buffer.write(encoder.encode(line) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(0)
