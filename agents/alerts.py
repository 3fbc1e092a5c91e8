"""Raising alerts: rules judged on a leaf's detections, frame by frame in order of their source. What becomes of an alert afterwards is
the resolver's work (`schemas.resolution.judge`)."""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.identity import alert_id
from schemas.messages import Alert, AlertState
from schemas.rules import Rule, Zone, best_match

GAP_S = 1.0  # an object that is not seen for longer has gone: `min_duration_s` starts again
STREAMS = 10_000  # epochs, and pairs of rule and source, that are remembered; the ones not heard of for longest are forgotten
RAISED = 2_000  # alerts that are answered the same again
FIRED = 4  # latest times of firing that a cool-down is measured from

K = TypeVar("K")
V = TypeVar("V")


class _Hold(msgspec.Struct):
    """How long a rule has held on one source, and when it last fired there; times are capture times."""

    since: dt.datetime | None = None
    seen: dt.datetime | None = None
    fired: list[dt.datetime] = []


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

    def recall(self, alerts: Iterable[Alert]) -> None:
        """Take in alerts that were raised before this process began, in any of their states and in the order of their topic: what is judged
        again after a restart raises the same ones, and no others. May be called from any thread."""
        for alert in alerts:
            with self._lock:
                if alert.id not in self._raised:
                    raised = msgspec.structs.replace(alert, state=AlertState.RAISED, version=AlertState.RAISED.height, decided_by=None)
                    self._remember(raised, _kept(self._holds, (alert.rule, alert.source), _Hold, STREAMS))

    def judge(self, frame: Frame, detections: Detections) -> list[Alert]:
        """The alerts that a frame raises."""
        if not self.rules:
            return []
        record, sequence = str(frame.id), frame.id.sequence
        stream = (frame.source, frame.id.epoch)
        with self._lock:
            old = sequence <= _kept(self._last, stream, lambda: -1, STREAMS)
            if not old:
                self._last[stream] = sequence
            found = (self._judge(rule, zone, frame, record, detections, old) for rule, zone in self.rules)
            return [alert for alert in found if alert is not None]

    def _judge(self, rule: Rule, zone: Zone, frame: Frame, record: str, detections: Detections, old: bool) -> Alert | None:
        if rule.sources and frame.source not in rule.sources:
            return None
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
        held_s = (now - hold.since).total_seconds()
        # Both ways in time: what is captured before an alert and judged after it (a replay, a clock set back) is the same event too.
        if held_s < rule.min_duration_s or any(abs((now - fired).total_seconds()) < rule.cooldown_s for fired in hold.fired):
            return None
        alert = self._alert(rule, zone, frame, record, seen, held_s)
        self._remember(alert, hold)
        return alert

    def _remember(self, alert: Alert, hold: _Hold) -> None:
        hold.fired = [*hold.fired[1 - FIRED :], alert.captured_at]
        self._raised[alert.id] = alert
        if len(self._raised) > RAISED:
            self._raised.popitem(last=False)

    def _alert(self, rule: Rule, zone: Zone, frame: Frame, record: str, seen: Detection, held_s: float) -> Alert:
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
            zone=zone,
            seen=Detections([seen]),
            score=seen.score,
            held_s=held_s,
            model_digest=self.model_digest,
            deadline_ms=self.deadline_ms,
        )


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
