"""Incidents: the alerts of one event, joined. Two alerts belong together if they are of one rule and one place, and their times overlap or
lie no further apart than a gap; an incident is all that hangs together so, however it came to be known.

An incident is a pure function of the set of its alerts, so order and repetition change nothing, and an alert that bridges two incidents
makes them one. It is called after its earliest alert: the later ones, which are most, leave its name alone. Where an earlier one, or a
bridge, comes late, the incident with the later name says into which one it was merged.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from schemas.alerts import join_alerts
from schemas.identity import RecordIdText, Site, Source
from schemas.messages import LATE_S, Alert, AlertState, Confidence, Name, Utc
from schemas.records import InvalidRecord, Json, Record, shown

MAX_WITNESSES = 100  # that an incident shows; it counts them all
MAX_NAMES = 1000

# What an incident is by what its alerts are, the first that any of them is: one retracted alert ends no event that another still shows,
# and one that a person found wrong counts as retracted.
_BY_WEIGHT = (AlertState.JUDGED, AlertState.CONFIRMED, AlertState.RAISED, AlertState.UNREVIEWED, AlertState.RETRACTED)


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """What one alert adds to its incident: who saw it, where, on which record, when (capture time), and what became of the alert."""

    alert: str
    source: Source
    site: Site
    record: RecordIdText
    captured_at: Utc
    state: AlertState
    score: Confidence
    late_by_s: Annotated[float, Meta(ge=0)] = 0.0
    right: bool | None = None


class Witnesses(Json):
    """Witnesses in the order of their times. On the wire: a JSON string."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Witness] = ()) -> None:
        self._items = tuple(items)
        if len(self._items) > MAX_WITNESSES:
            raise InvalidRecord(f"{len(self._items)} witnesses: at most {MAX_WITNESSES} travel")
        for item in self._items:
            if not isinstance(item, Witness):
                raise InvalidRecord(f"witnesses hold {shown(item)}: expected a Witness")

    def __iter__(self) -> Iterator[Witness]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Witnesses) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Witnesses({list(self._items)!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self._items).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            items = _witnesses.decode(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"witnesses are not a JSON array of witnesses: {error}") from None
        return cls(items)


class Names(Json):
    """A sorted set of names. On the wire: a JSON string of an array of strings."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[str] = ()) -> None:
        self._items = tuple(sorted(set(items)))[:MAX_NAMES]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Names({list(self._items)!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self._items).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return cls(_names.decode(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"names are not a JSON array of strings: {error}") from None


_witnesses = msgspec.json.Decoder(tuple[Witness, ...])
_names = msgspec.json.Decoder(tuple[Annotated[str, Meta(min_length=1, max_length=192)], ...])


class Incident(Record, frozen=True, kw_only=True):
    """The alerts of one event, as people are shown them; of two records of one incident the later in the log holds.

    `place` is the source, or `zone:` and the name of the zone that its sources share; `source` is its first witness's. `started_at` and
    `ended_at` are capture times, `alerts` counts all witnesses, of which the first `MAX_WITNESSES` are told. `late_by_s` is the lateness of
    the least late: an incident is old news only if nobody told of it in time. `merged_into` names the incident that this one has become a
    part of; it then says nothing more.
    """

    id: Name
    rule: Name
    place: Name
    label: Annotated[str, Meta(min_length=1, max_length=64)]
    source: Source
    state: AlertState
    version: Annotated[int, Meta(ge=0, le=4)]
    started_at: Utc
    ended_at: Utc
    score: Confidence
    alerts: Annotated[int, Meta(ge=1, le=1 << 40)]
    sources: Names
    sites: Names
    witnesses: Witnesses
    late_by_s: Annotated[float, Meta(ge=0)] = 0.0
    merged_into: Name | None = None

    @property
    def late(self) -> bool:
        return self.late_by_s >= LATE_S

    def check(self) -> None:
        if self.version != self.state.height:
            raise InvalidRecord(f"Incident.version is {self.version}: expected {self.state.height}, the height of state '{self.state}'")
        if self.ended_at < self.started_at:
            raise InvalidRecord(f"Incident.ended_at is before its start: {self.ended_at.isoformat()}")


def incident_id(first: str) -> str:
    """The id of the incident whose earliest alert is that.

    >>> incident_id("alert-3f")
    'incident-3f'
    """
    return f"incident-{first.removeprefix('alert-')}"


def gather(known: Mapping[str, Alert], new: Iterable[Alert]) -> dict[str, Alert]:
    """The join of two sets of alerts, alert by alert (`schemas.alerts.join_alerts`)."""
    joined = dict(known)
    for alert in new:
        joined[alert.id] = join_alerts(joined.get(alert.id), alert)
    return joined


def events(alerts: Iterable[Alert], gap_s: float) -> list[list[Alert]]:
    """The alerts of one rule and place, parted into events, each in the order of its alerts' times."""
    found: list[list[Alert]] = []
    ends = float("-inf")
    for alert in sorted(alerts, key=lambda alert: (_begun(alert), alert.id)):
        if not found or _begun(alert) > ends + gap_s:
            found.append([])
            ends = float("-inf")
        found[-1].append(alert)
        ends = max(ends, alert.captured_at.timestamp())
    return [sorted(event, key=_place_in_time) for event in found]


def incident_of(event: Sequence[Alert], place: str) -> Incident:
    """What one event is told as; its alerts come in the order of their times, at least one."""
    first = event[0]
    states = {AlertState.RETRACTED if alert.right is False else alert.state for alert in event}
    state = next(state for state in _BY_WEIGHT if state in states)
    return Incident(
        id=incident_id(first.id),
        rule=first.rule,
        place=place,
        label=first.label,
        source=first.source,
        state=state,
        version=state.height,
        started_at=_started(event),
        ended_at=event[-1].captured_at,
        score=max(alert.score for alert in event),
        alerts=len(event),
        sources=Names(alert.source for alert in event),
        sites=Names(alert.site for alert in event),
        witnesses=Witnesses(
            Witness(
                alert=alert.id,
                source=alert.source,
                site=alert.site,
                record=alert.record,
                captured_at=alert.captured_at,
                state=alert.state,
                score=alert.score,
                late_by_s=alert.late_by_s,
                right=alert.right,
            )
            for alert in event[:MAX_WITNESSES]
        ),
        late_by_s=min(alert.late_by_s for alert in event),
    )


def merged(incident: Incident, into: str) -> Incident:
    """What an incident says once it is a part of another one."""
    return msgspec.structs.replace(incident, merged_into=into)


def _place_in_time(alert: Alert) -> tuple[dt.datetime, str]:
    return alert.captured_at, alert.id


def _begun(alert: Alert) -> float:
    """When what raised an alert began, in seconds since 1970."""
    return alert.captured_at.timestamp() - alert.held_s


def _started(event: Sequence[Alert]) -> dt.datetime:
    first = min(event, key=_begun)
    try:
        return first.captured_at - dt.timedelta(seconds=first.held_s)
    except OverflowError:  # nobody's clock, and no rule, reaches so far
        return event[0].captured_at
