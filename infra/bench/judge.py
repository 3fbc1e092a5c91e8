"""What one run amounts to, and what several runs amount to: pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from infra.bench.course import Case, Course, Sample


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one contender.

    Attributes
    ----------
    start_s
        From the start of its process to the first alert at the region.
    first_alert_s
        From the end of the outage to the first alert at the region that was raised after it.
    alert_p50_ms, alert_p99_ms, alert_max_ms
        From an alert's raising to the region, of the alerts raised after the outage while the backlog drained.
    steady_alert_p50_ms
        The same before the outage.
    drain_s
        From the end of the outage until every record written before it was at the region.
    budget_share
        Bytes on the wire while it drained, both directions together as a site's budget counts them, of the limit; None without one.
    duplicates
        Records at the region beyond one for each id.
    resident_bytes
        The largest memory of its process in the run.
    cpu_s
        CPU time of its process while it drained.
    """

    start_s: float
    first_alert_s: float
    alert_p50_ms: float
    alert_p99_ms: float
    alert_max_ms: float
    alerts: int
    steady_alert_p50_ms: float
    backlog: int
    drain_s: float
    records_per_s: float
    payload_bytes_per_s: float
    wire_bytes: int
    wire_bytes_per_s: float
    wire_down_bytes: int
    budget_share: float | None
    duplicates: int
    resident_bytes: int
    cpu_s: float
    outage_s: float


def judge(case: Case, course: Course) -> Figures:
    """The figures of one run."""
    first: dict[str, float] = {}
    for name, at in course.arrivals:
        first[name] = min(at, first.get(name, at))
    since = course.restored_at
    waited = [each for each in course.written if each.at < since and first[each.id] >= course.cut_at]
    drained = max(first[each.id] for each in waited)
    drain_s = drained - since
    alerts = [each for each in course.written if each.alert and since <= each.at <= drained]
    late_ms = [(first[each.id] - each.at) * 1000 for each in alerts]
    steady_ms = [
        (first[each.id] - each.at) * 1000 for each in course.written if each.alert and course.ready_at <= each.at < course.cut_at - 1
    ]
    begin, end = interpolated(course.samples, since), interpolated(course.samples, drained)
    sent, received = end.sent - begin.sent, end.received - begin.received
    return Figures(
        start_s=course.ready_at - course.started_at,
        first_alert_s=min(first[each.id] for each in alerts) - since,
        alert_p50_ms=float(np.percentile(late_ms, 50)),
        alert_p99_ms=float(np.percentile(late_ms, 99)),
        alert_max_ms=max(late_ms),
        alerts=len(alerts),
        steady_alert_p50_ms=float(np.percentile(steady_ms, 50)) if steady_ms else 0.0,
        backlog=len(waited),
        drain_s=drain_s,
        records_per_s=len(waited) / drain_s,
        payload_bytes_per_s=sum(each.size for each in waited) / drain_s,
        wire_bytes=sent,
        wire_bytes_per_s=sent / drain_s,
        wire_down_bytes=received,
        budget_share=(sent + received) / drain_s / case.limit_bytes_per_s if case.limit_bytes_per_s else None,
        duplicates=len(course.arrivals) - len(first),
        resident_bytes=max(each.resident_bytes for each in course.samples),
        cpu_s=end.cpu_s - begin.cpu_s,
        outage_s=course.restored_at - course.cut_at,
    )


def interpolated(samples: Sequence[Sample], moment: float) -> Sample:
    """What a look at a moment would have shown: between two looks, in proportion."""
    times = [each.at for each in samples]

    def between(values: Iterable[float]) -> float:
        return float(np.interp(moment, times, list(values)))

    return Sample(
        moment,
        round(between(each.sent for each in samples)),
        round(between(each.received for each in samples)),
        round(between(each.resident_bytes for each in samples)),
        between(each.cpu_s for each in samples),
    )


class Spread(msgspec.Struct, frozen=True):
    """The median of several runs, and the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.median(values)), min(values), max(values))


def spreads(runs: Sequence[Figures]) -> dict[str, Spread | None]:
    """Each figure over several runs; None where a figure is."""
    found: dict[str, Spread | None] = {}
    for name in Figures.__struct_fields__:
        values = [value for each in runs if (value := getattr(each, name)) is not None]
        found[name] = Spread.of(values) if values else None
    return found
