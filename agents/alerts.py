"""Raising alerts: rules judged on a leaf's detections, frame by frame in order of their source, and on what only a region sees. What
becomes of an alert afterwards is the resolver's work (`schemas.alerts.judge`)."""

from __future__ import annotations

import datetime as dt
import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from agents.paths import GAP_S, Paths
from schemas.alerts import lateness_s
from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.identity import alert_id
from schemas.messages import Alert, AlertState, Tier
from schemas.rules import Rule, Zone, best_match

STREAMS = 10_000  # epochs, and pairs of rule and source, that are remembered; the ones not heard of for longest are forgotten
RAISED = 2_000  # alerts that are answered the same again
FIRED_AWAY = 64  # the same, where frames come in no order
FIRED = 2_000  # times of firing that a cool-down is measured from; the earliest are forgotten

K = TypeVar("K")
V = TypeVar("V")


class _Hold(msgspec.Struct):
    """How long a rule has held on one source, and when it last fired there; times are capture times. Where the rule is judged object by
    object, `paths` knows the former."""

    since: dt.datetime | None = None
    seen: dt.datetime | None = None
    fired: list[dt.datetime] = []  # sorted
    paths: Paths | None = None


class AlertRules:
    """Judges frames by a site's rules.

    All times are capture times, so that a delay or a retry changes nothing. A frame that is not newer than the last of its epoch is not
    judged again: it is answered with the alerts that it raised.

    Parameters
    ----------
    deadline_ms
        How long a higher tier's opinion of an alert is waited for.
    """

    def __init__(self, rules: Sequence[Rule], *, site: str, model_digest: str, deadline_ms: int) -> None:
        self.rules = [(rule, Zone(rule.zone)) for rule in rules]
        self.site, self.model_digest, self.deadline_ms = site, model_digest, deadline_ms
        self._lock = threading.Lock()
        self._holds: OrderedDict[tuple[str, str], _Hold] = OrderedDict()
        self._last: OrderedDict[tuple[str, str], int] = OrderedDict()  # by source and epoch
        self._raised: OrderedDict[str, Alert] = OrderedDict()

    def of(self, source: str) -> list[tuple[Rule, Zone]]:
        """The rules that apply to a source."""
        return [(rule, zone) for rule, zone in self.rules if not rule.sources or source in rule.sources]

    def recall(self, alerts: Iterable[Alert]) -> None:
        """Take in alerts that were raised before this process began, in any of their states and in the order of their topic: what is judged
        again after a restart raises the same ones, and no others. May be called from any thread."""
        for alert in alerts:
            with self._lock:
                if alert.id not in self._raised:
                    raised = msgspec.structs.replace(
                        alert,
                        state=AlertState.RAISED,
                        version=AlertState.RAISED.height,
                        decided_by=None,
                        note=None,
                        order="",
                        right=None,
                    )
                    self._remember(raised, _kept(self._holds, (alert.rule, alert.source), _Hold, STREAMS))

    def judge(self, frame: Frame, detections: Detections, model_digest: str | None = None, *, age_s: float = 0.0) -> list[Alert]:
        """The alerts that a frame raises. `model_digest` is that of the model which looked, where it is not the one in use by default.
        `age_s` is how long ago the broker took the frame, by the broker's clock: with what the frame had waited before a replay it says how
        late the alerts are."""
        if not self.rules:
            return []
        record, sequence = str(frame.id), frame.id.sequence
        stream = (frame.source, frame.id.epoch)
        with self._lock:
            old = sequence <= _kept(self._last, stream, lambda: -1, STREAMS)
            if not old:
                self._last[stream] = sequence
            digest = model_digest or self.model_digest
            found = (self._judge(rule, zone, frame, record, detections, old, digest) for rule, zone in self.rules)
            late_by_s = lateness_s(age_s + frame.waited_s, replayed=frame.replays > 0)
            return [msgspec.structs.replace(alert, late_by_s=late_by_s) for alert in found if alert is not None]

    def _judge(
        self, rule: Rule, zone: Zone, frame: Frame, record: str, detections: Detections, old: bool, model_digest: str
    ) -> Alert | None:
        if rule.sources and frame.source not in rule.sources:
            return None
        if rule.needs_past:
            return self._judge_objects(rule, zone, frame, record, detections, old, model_digest)
        seen = best_match(detections, rule.label, rule.min_score, zone)
        if seen is None:
            return None
        known = self._raised.get(alert_id(rule.name, record))
        if old:
            return known
        now = frame.captured_at
        hold = _kept(self._holds, (rule.name, frame.source), _Hold, STREAMS)
        if hold.since is None or hold.seen is None or not 0 <= (now - hold.seen).total_seconds() <= GAP_S:
            hold.since = now
        hold.seen = now
        if known is not None:
            return known
        return self._raise(rule, zone, frame, record, seen, (now - hold.since).total_seconds(), model_digest, hold)

    def _judge_objects(
        self, rule: Rule, zone: Zone, frame: Frame, record: str, detections: Detections, old: bool, model_digest: str
    ) -> Alert | None:
        # What was raised before a restart is answered whatever the detections: its object has another track now, or came in unseen.
        known = self._raised.get(alert_id(rule.name, record))
        if old:
            return known
        hold = _kept(self._holds, (rule.name, frame.source), _Hold, STREAMS)
        if hold.paths is None:
            hold.paths = Paths(rule, zone)
        found = hold.paths.follow(frame, detections)
        if known is not None or found is None:
            return known
        return self._raise(rule, zone, frame, record, *found, model_digest, hold)

    def _raise(
        self, rule: Rule, zone: Zone, frame: Frame, record: str, seen: Detection, held_s: float, model_digest: str, hold: _Hold
    ) -> Alert | None:
        # Both ways in time: what is captured before an alert and judged after it (a replay, a clock set back) is the same event too.
        if _near(hold.fired, frame.captured_at, rule.cooldown_s):
            return None
        alert = self._alert(rule, zone, frame, record, seen, held_s, model_digest)
        self._remember(alert, hold)
        return alert

    def _remember(self, alert: Alert, hold: _Hold) -> None:
        insort(hold.fired, alert.captured_at)
        del hold.fired[:-FIRED]
        self._raised[alert.id] = alert
        if len(self._raised) > RAISED:
            self._raised.popitem(last=False)

    def _alert(self, rule: Rule, zone: Zone, frame: Frame, record: str, seen: Detection, held_s: float, model_digest: str) -> Alert:
        return Alert(
            id=alert_id(rule.name, record),
            rule=rule.name,
            source=frame.source,
            site=self.site,
            record=record,
            captured_at=frame.captured_at,
            state=AlertState.RAISED,
            version=AlertState.RAISED.height,
            label=rule.label,
            min_score=rule.min_score,
            zone=Zone() if rule.on == "exit" else zone,  # who has left is judged again where it is: anywhere
            seen=Detections([seen]),
            score=seen.score,
            held_s=held_s,
            model_digest=model_digest,
            deadline_ms=self.deadline_ms,
        )


class OnlySeen:
    """What only a higher tier sees raises an alert there: a rule fires on its detections of a frame and did not on the leaf's.

    Frames come one by one and in any order (the link sends the newest first), so rules that need an object's past (its duration,
    crossing or heading) are not judged, and a cool-down counts both ways in capture time. A frame that is judged again raises the same
    alerts again. After a restart a cool-down begins anew; what is then raised twice is one incident.
    """

    def __init__(self, rules: Sequence[Rule], *, tier: Tier, model_digest: str) -> None:
        self.rules = [(rule, Zone(rule.zone)) for rule in rules if not rule.needs_past]
        self.tier, self.model_digest = tier, model_digest
        self._lock = threading.Lock()
        self._fired: OrderedDict[tuple[str, str], list[dt.datetime]] = OrderedDict()
        self._raised: OrderedDict[str, None] = OrderedDict()

    def judge(
        self, record: str, source: str, site: str, captured_at: dt.datetime, *, leaf: Detections, seen: Detections, late_by_s: float
    ) -> list[Alert]:
        """The alerts that a frame raises, by what the leaf of `site` saw on it and what was seen here."""
        found = []
        for rule, zone in self.rules:
            if rule.sources and source not in rule.sources:
                continue
            best = best_match(seen, rule.label, rule.min_score, zone)
            if best is None or best_match(leaf, rule.label, rule.min_score, zone) is not None:
                continue
            if self._fires(rule, alert_id(rule.name, record), source, captured_at):
                found.append(
                    Alert(
                        id=alert_id(rule.name, record),
                        rule=rule.name,
                        source=source,
                        site=site,
                        record=record,
                        captured_at=captured_at,
                        state=AlertState.RAISED,
                        version=AlertState.RAISED.height,
                        label=rule.label,
                        min_score=rule.min_score,
                        zone=zone,
                        seen=Detections([best]),
                        score=best.score,
                        held_s=0.0,
                        model_digest=self.model_digest,
                        deadline_ms=0,
                        raised_by=self.tier,
                        late_by_s=late_by_s,
                    )
                )
        return found

    def _fires(self, rule: Rule, alert: str, source: str, at: dt.datetime) -> bool:
        with self._lock:
            if alert in self._raised:
                return True
            fired = _kept(self._fired, (rule.name, source), list, STREAMS)
            if any(abs((at - other).total_seconds()) < rule.cooldown_s for other in fired):
                return False
            fired.append(at)
            del fired[:-FIRED_AWAY]
            self._raised[alert] = None
            if len(self._raised) > RAISED:
                self._raised.popitem(last=False)
            return True


def _near(fired: Sequence[dt.datetime], at: dt.datetime, cooldown_s: float) -> bool:
    """Whether one of these times (sorted) lies within a cool-down of `at`, before or after it."""
    place = bisect_left(fired, at)
    return any(abs((at - other).total_seconds()) < cooldown_s for other in fired[max(0, place - 1) : place + 1])


def _kept(kept: OrderedDict[K, V], key: K, make: Callable[[], V], limit: int) -> V:
    """The value of a key, made if it is new; the keys that were not asked for for longest make room."""
    value = kept.get(key)
    if value is None:
        value = kept[key] = make()
        if len(kept) > limit:
            kept.popitem(last=False)
    else:
        kept.move_to_end(key)
    return value
