"""The story of one alert, gathered from the topics of one cluster: its states, the verdicts on its frame, what was asked, and its picture.

Only the partition of its source is read, and only around the times when something happened to it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from schemas.alerts import latest
from schemas.errors import Fault
from schemas.messages import Alert, AlertState, Escalation, Result, Verdict
from schemas.records import InvalidRecord
from streams.clients import Clients
from streams.merging import TopicMissing
from streams.outputs import ESCALATION_HEADER
from streams.reader import Last, Stored, read
from streams.topology import Topic, Topology
from streams.views import View, decode

MARGIN = dt.timedelta(minutes=5)  # around each state of the alert: the verdict comes before it, the escalation after it
MAX_NAMED = 5


class AlertUnknown(Fault, LookupError):
    """No alert, or more than one, is called that; the message says what there is."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to an alert or its frame, when the broker took it, and its value."""

    at: dt.datetime | None
    what: str
    topic: Topic
    value: Alert | Verdict | Result | Escalation


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """An alert in its latest state, what happened in order, and its picture: the kept frame, else the evidence, else None."""

    alert: Alert
    events: tuple[Event, ...]
    picture: bytes | None
    picture_from: Topic | None


def find_alert(topology: Topology, clients: Clients, wanted: str) -> str:
    """The id of an alert by its id, a unique beginning of it (with or without `alert-`), or `last` for the latest that was raised; one that
    came late only if there is no other.

    Raises
    ------
    AlertUnknown, BrokerUnavailable, TopicMissing, ReadRefused
    """
    topics = [topology.topic("alerts")]
    if wanted == "last":
        for condition in (_news, _raised, None):
            for stored in read(clients, topics, start=Last(1), where=condition):
                return _key(stored)
        raise AlertUnknown(f"there is no alert in {topics[0].name} yet")
    prefix = wanted if wanted.startswith("alert-") else f"alert-{wanted}"
    found = {_key(stored) for stored in read(clients, topics, start="beginning", where=lambda stored: _key(stored).startswith(prefix))}
    if wanted in found or len(found) == 1:
        return wanted if wanted in found else found.pop()
    if not found:
        raise AlertUnknown(
            f"no alert in {topics[0].name} begins with {wanted!r:.80}: `headwater tail alerts` lists the latest, and `last` names the last"
        )
    named = ", ".join(sorted(found)[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
    raise AlertUnknown(f"{len(found)} alerts begin with {wanted!r:.80}: {named}: give more of the id")


def tell(topology: Topology, clients: Clients, alert_id: str) -> Story:
    """Gather the story of an alert; raises as `find_alert` does."""
    key = alert_id.encode()
    states = [
        _event("state", view)
        for view in _views(clients, [topology.topic("alerts")], [(None, None)], lambda stored: stored.key == key)
        if isinstance(view.value, Alert)
    ]
    if not states:
        raise AlertUnknown(f"alert {alert_id!r:.80} has no state that can be read")
    alert = latest(*(event.value for event in states if isinstance(event.value, Alert)))
    spans = _spans([event.at for event in states if event.at is not None])
    record, source = alert.record.encode(), alert.source

    answers = [topic for topic in topology if topic.value in {"Verdict", "Result"}]
    events = states + [
        _event("result" if isinstance(view.value, Result) else "verdict", view)
        for view in _views(clients, answers, spans, lambda stored: stored.key == record, source)
        if isinstance(view.value, Verdict | Result)
    ]
    asked = [topic for topic in topology if topic.base in {"escalations", "escalations.alerts", "up.escalations", "up.escalations.alerts"}]
    evidence = None
    for view in _views(clients, asked, spans, lambda stored: _asks_about(stored, alert), source):
        if isinstance(view.value, Escalation):
            events.append(_event("escalation", view))
            evidence = evidence or view.stored
    pictures = [topic for topic in topology if topic.base == "alerts.evidence"]
    kept = next(iter(_views(clients, pictures, spans, lambda stored: stored.key == key and bool(stored.value), source)), None)
    shown = kept.stored if kept is not None else evidence
    return Story(
        alert=alert,
        events=tuple(sorted(_once(events), key=_order)),
        picture=None if shown is None else shown.value,
        picture_from=None if shown is None else shown.topic,
    )


def _views(
    clients: Clients,
    topics: list[Topic],
    spans: Iterable[tuple[dt.datetime | None, dt.datetime | None]],
    where: Callable[[Stored], bool],
    source: str | None = None,
) -> Iterator[View]:
    for topic in topics:
        for since, until in spans:
            try:
                for stored in read(clients, [topic], start=since or "beginning", until=until, source=source, where=where):
                    yield decode(stored)
            except TopicMissing:
                if topic.base == "alerts":
                    raise
                break  # the story is told without it


def _spans(times: list[dt.datetime]) -> list[tuple[dt.datetime, dt.datetime]]:
    """The times around some moments, joined where they overlap."""
    spans: list[tuple[dt.datetime, dt.datetime]] = []
    for time in sorted(times):
        if spans and time - MARGIN <= spans[-1][1]:
            spans[-1] = (spans[-1][0], time + MARGIN)
        else:
            spans.append((time - MARGIN, time + MARGIN))
    return spans


def _event(what: str, view: View) -> Event:
    return Event(at=view.stored.appended_at, what=what, topic=view.stored.topic, value=view.value)


def _order(event: Event) -> tuple[dt.datetime, int]:
    """By time; within the broker's millisecond by cause: raised, then what was asked and answered, then what became of the alert."""
    cause = (0 if event.value.state is AlertState.RAISED else 2) if isinstance(event.value, Alert) else 1
    return event.at or dt.datetime.min.replace(tzinfo=dt.UTC), cause


def _once(events: Iterable[Event]) -> Iterator[Event]:
    """Without what was delivered twice."""
    seen: set[Any] = set()
    for event in sorted(events, key=lambda event: (event.at is None, event.at)):
        same = (event.what, event.topic.name, event.value.to_bytes())
        if same not in seen:
            seen.add(same)
            yield event


def _asks_about(stored: Stored, alert: Alert) -> bool:
    header = dict(stored.headers).get(ESCALATION_HEADER)
    if header is None or (alert.id.encode() not in header and alert.record.encode() not in header):
        return False
    try:
        asked = Escalation.from_bytes(header)
    except InvalidRecord:
        return False
    return alert.id in asked.alerts or any(one.id == alert.record for one in asked.records)


def _news(stored: Stored) -> bool:
    view = decode(stored)
    return isinstance(view.value, Alert) and view.value.version == 0 and not view.late


def _raised(stored: Stored) -> bool:
    value = decode(stored).value
    return isinstance(value, Alert) and value.version == 0


def _key(stored: Stored) -> str:
    return (stored.key or b"").decode(errors="replace")
