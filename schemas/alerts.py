"""What becomes of an alert: its state follows the joined result of its own frame, and messages of one alert form a semilattice.

Alerts are read by maximum: of two messages of one alert the one with the greater `order` holds. A result that decides gives the alert an
order that begins with its own, so what decides last is what the join of verdicts prefers, in whatever order answers come. The results of
one alert climb: an alert is raised until a passed deadline makes it unreviewed, then a higher tier's answer retracts or confirms it, then
a person judges it. Between answers of equal preference the state that is higher in that chain holds. Pure.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from functools import reduce

import msgspec

from schemas.messages import LATE_S, RANK, Alert, AlertState, Result, Status, Tier
from schemas.rules import best_match

# Where a state without an order stands (an older version's message, a person's judgement): above all raised ones, a person's above all.
_PLACES = {AlertState.RAISED: "", AlertState.UNREVIEWED: "0.1", AlertState.RETRACTED: "0.2", AlertState.CONFIRMED: "0.3"}
_BY_A_PERSON = "2"


def state_of(alert: Alert, result: Result) -> AlertState:
    """The state that the result of an alert's own frame calls for, by its rule's class, score and zone. Duration, crossing and heading
    are not judged: they take more than one frame. Who has left a zone stands outside on the alert's frame: such an alert carries no zone.

    A result of the leaf's ordinary rank decides nothing. One of the region's rank or more does, whoever gave it: a higher tier, or a leaf
    that labels have shown to be the better one on the stream.

    Raises
    ------
    ValueError
        If the result is not one of the alert's own record.
    """
    if result.id != alert.record:
        raise ValueError(f"alert {alert.id} is about {alert.record}, not {result.id}")
    if result.rank < RANK[Tier.REGION] or result.status is Status.FAILED:
        return AlertState.RAISED
    if result.status is Status.UNANSWERED:
        return AlertState.UNREVIEWED
    seen = best_match(result.detections, alert.label, alert.min_score, alert.zone)
    return AlertState.RETRACTED if seen is None else AlertState.CONFIRMED


def judge(alert: Alert, result: Result) -> Alert | None:
    """The alert as a result of its own frame decides it, or None if that decides nothing, or nothing new. Raises as `state_of` does."""
    state = state_of(alert, result)
    if state is AlertState.RAISED:
        return None
    order = f"{result.order}/{_raise_of(alert)}"
    if order <= _order(alert):
        return None
    decided_by = None if state is AlertState.UNREVIEWED else result.tier
    return msgspec.structs.replace(alert, state=state, version=state.height, decided_by=decided_by, order=order)


def judged_by(alert: Alert, person: str, at: dt.datetime, right: bool | None) -> Alert:
    """The alert as a person judges it: `right`, wrong, or only seen (None). It stands above whatever any tier says, and of two judgements
    the later one holds."""
    state = AlertState.JUDGED
    what = {True: "right", False: "wrong", None: "seen"}[right]
    order = f"{_BY_A_PERSON}/{at.astimezone(dt.UTC).isoformat(timespec='milliseconds')}"
    return msgspec.structs.replace(
        alert, state=state, version=state.height, decided_by=None, order=order, right=right, note=f"{what}, says {person}"
    )


def unasked(alert: Alert) -> Alert:
    """An alert on a record whose result is the leaf's, and final (a replay after results were final): nobody is asked and no deadline
    runs, so it is unreviewed; an answer that comes all the same still decides."""
    state = AlertState.UNREVIEWED
    return msgspec.structs.replace(
        alert, state=state, version=state.height, order=_PLACES[state], note="its frame was final: nobody was asked"
    )


def join_alerts(known: Alert | None, new: Alert) -> Alert:
    """The join of two messages of one alert: the decision with the greater order, the raise that is preferred, and the lesser lateness,
    which marks how a copy travelled and decides nothing.

    Copies that were raised twice (two leaves that process one source, or a region that saw what a leaf saw too) may differ in site, model
    or score: the leaf's holds before the region's, then that of the greater site's name. A decision on the other copy holds until the one
    that is preferred is judged: `judge` finds it to be new.

    Raises
    ------
    ValueError
        If they are messages of different alerts.
    """
    if known is None or known == new:
        return new
    if known.id != new.id:
        raise ValueError(f"messages of different alerts cannot be joined: {known.id} and {new.id}")
    decided, raised = max(known, new, key=_decision), max(known, new, key=_raise_of)
    late_by_s = min(known.late_by_s, new.late_by_s)
    if decided is raised and raised.late_by_s == late_by_s:
        return raised
    return msgspec.structs.replace(
        raised,
        state=decided.state,
        version=decided.version,
        decided_by=decided.decided_by,
        note=decided.note,
        order=decided.order,
        right=decided.right,
        late_by_s=late_by_s,
    )


def latest(*alerts: Alert) -> Alert:
    """The join of any number of messages of one alert, at least one."""
    return reduce(join_alerts, alerts)


def lateness_s(waited_s: float, *, replayed: bool = False) -> float:
    """How late an alert is that waited so long, in whole milliseconds. What was replayed from a dead letter is old news in any case."""
    return round(max(waited_s, LATE_S if replayed else 0.0), 3)


def _order(alert: Alert) -> str:
    return alert.order or _PLACES.get(alert.state, _BY_A_PERSON)


def _decision(alert: Alert) -> tuple[str, int, str, str, str]:
    return _order(alert), alert.version, alert.decided_by or "", alert.note or "", str(alert.right)


def _raise_of(alert: Alert) -> str:
    """Names one raise among several of one alert; compares as text as they are preferred."""
    raised = msgspec.structs.replace(
        alert, state=AlertState.RAISED, version=AlertState.RAISED.height, decided_by=None, note=None, order="", late_by_s=0.0, right=None
    )
    return f"{int(alert.raised_by is Tier.LEAF)}.{alert.site}.{hashlib.sha256(raised.to_bytes()).hexdigest()[:16]}"
