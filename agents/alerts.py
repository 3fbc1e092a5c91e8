"""Raising alerts: rules judged on a leaf's detections, frame by frame in order of their source. What becomes of an alert afterwards is
the resolver's work (`schemas.resolution.judge`)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import msgspec

from schemas.detections import Detections
from schemas.frames import Frame
from schemas.identity import alert_id
from schemas.messages import Alert, AlertState
from schemas.rules import Rule, Zone, best_match

GAP_S = 1.0  # an object that is not seen for longer has gone: `min_duration_s` starts again


class _Hold(msgspec.Struct):
    """How long a rule has held on one source, and when it last fired there; times are capture times."""

    since: dt.datetime | None = None
    seen: dt.datetime | None = None
    fired: dt.datetime | None = None


class AlertRules:
    """Judges frames by a site's rules.

    All times are capture times, so that a delay or a retry changes nothing. Frames of a source that are not newer than its last are
    ignored, but for the last frame itself, which is answered as before.

    Parameters
    ----------
    deadline_ms
        How long a higher tier's opinion of an alert is waited for.
    """

    def __init__(self, rules: Sequence[Rule], *, site: str, model_digest: str, deadline_ms: int) -> None:
        self.rules = [(rule, Zone(rule.zone)) for rule in rules]
        self.site, self.model_digest, self.deadline_ms = site, model_digest, deadline_ms
        self._holds: dict[tuple[str, str], _Hold] = {}
        self._last: dict[str, tuple[str, int, list[Alert]]] = {}

    def judge(self, frame: Frame, detections: Detections) -> list[Alert]:
        """The alerts that a frame raises."""
        epoch, sequence = frame.id.epoch, frame.id.sequence
        last = self._last.get(frame.source)
        if last is not None and last[0] == epoch and sequence <= last[1]:
            return last[2] if sequence == last[1] else []
        alerts = [alert for rule, zone in self.rules if (alert := self._judge(rule, zone, frame, detections)) is not None]
        self._last[frame.source] = (epoch, sequence, alerts)
        return alerts

    def _judge(self, rule: Rule, zone: Zone, frame: Frame, detections: Detections) -> Alert | None:
        if rule.sources and frame.source not in rule.sources:
            return None
        seen = best_match(detections, rule.label, rule.min_score, zone)
        if seen is None:
            return None
        now = frame.captured_at
        hold = self._holds.setdefault((rule.name, frame.source), _Hold())
        if hold.since is None or hold.seen is None or not 0 <= (now - hold.seen).total_seconds() <= GAP_S:
            hold.since = now
        hold.seen = now
        held_s = (now - hold.since).total_seconds()
        if held_s < rule.min_duration_s:
            return None
        if hold.fired is not None and 0 <= (now - hold.fired).total_seconds() < rule.cooldown_s:
            return None
        hold.fired = now
        return Alert(
            id=alert_id(rule.name, str(frame.id)),
            rule=rule.name,
            source=frame.source,
            site=self.site,
            record=str(frame.id),
            captured_at=now,
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
