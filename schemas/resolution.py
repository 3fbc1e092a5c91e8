"""The join: how verdicts on one record become one result. Verdicts form a semilattice (commutative, associative, idempotent), so that
duplicates, delays and disorder change nothing. Pure: everything that decides travels in the verdict.

Order of preference: not failed; rank; status (final, provisional, unanswered); model generation; confidence; digest of the content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from schemas.messages import MAX_RANK, RANK, Alert, AlertState, Answer, Result, Status, Tier, Verdict
from schemas.rules import best_match

_STATUS_HEIGHT = {Status.FINAL: 3, Status.PROVISIONAL: 2, Status.UNANSWERED: 1, Status.FAILED: 0}
_COMMON = Answer.__struct_fields__


def order_of(verdict: Verdict) -> str:
    """A verdict's place in the order of preference, as text that compares the same way."""
    digest = hashlib.sha256(verdict.to_bytes()).hexdigest()[:32]
    return (
        f"{int(verdict.status is not Status.FAILED)}.{verdict.rank:02d}.{_STATUS_HEIGHT[verdict.status]}"
        f".{verdict.generation:010d}.{round(verdict.confidence * 10_000):05d}.{digest}"
    )


def result_of(verdict: Verdict) -> Result:
    """The result if this verdict were the only one."""
    return Result(order=order_of(verdict), **{name: getattr(verdict, name) for name in _COMMON})


def join(known: Result | None, new: Result) -> Result:
    """The greater of two results of one record; raises `ValueError` if they are of different records."""
    if known is None:
        return new
    if known.id != new.id:
        raise ValueError(f"results of different records cannot be joined: {known.id} and {new.id}")
    return max(known, new, key=lambda result: result.order)


def resolve(verdicts: Iterable[Verdict]) -> Result | None:
    """The join of any number of verdicts on one record."""
    result: Result | None = None
    for verdict in verdicts:
        result = join(result, result_of(verdict))
    return result


def clamp(verdict: Verdict, tier: Tier, site: str | None = None) -> Verdict:
    """A verdict as its topic allows it: tier (and site) are the topic's, and the rank is at most what that tier may claim."""
    rank = min(verdict.rank, MAX_RANK[tier])
    if verdict.tier is tier and verdict.rank == rank and site in (None, verdict.site):
        return verdict
    return msgspec.structs.replace(verdict, tier=tier, rank=rank, site=site or verdict.site)


def unanswered(provisional: Verdict) -> Verdict:
    """The verdict that a passed deadline is: the leaf's own detections, at the region's rank but the lowest status, so that it stands
    above the provisional answer and below any answer that still comes.

    On a stream whose leaf is preferred, a provisional answer outranks the region's, and so this too: nothing changes there.

    Raises
    ------
    ValueError
        If the verdict waits for nothing.
    """
    if provisional.status is not Status.PROVISIONAL:
        raise ValueError(f"verdict on {provisional.id} is {provisional.status}: only a provisional one has a deadline that can pass")
    return msgspec.structs.replace(
        provisional, status=Status.UNANSWERED, deadline_ms=None, rank=RANK[Tier.REGION], note="no answer before the deadline"
    )


def judge(alert: Alert, result: Result) -> Alert | None:
    """The alert in the state that a result of its own frame calls for, or None where that state is not a later one.

    A higher tier's answer confirms or retracts it, by the rule's class, score and zone; a deadline that passed leaves it unreviewed.
    States only climb, so that alerts can be read by maximum: what a higher tier has once confirmed stays confirmed, even if a better
    answer that comes later does not see it.

    Raises
    ------
    ValueError
        If the result is not one of the alert's own record.
    """
    if result.id != alert.record:
        raise ValueError(f"alert {alert.id} is about {alert.record}, not {result.id}")
    if result.status is Status.UNANSWERED:
        state = AlertState.UNREVIEWED
    elif result.status is Status.FINAL and result.rank >= RANK[Tier.REGION] and result.tier is not Tier.LEAF:
        seen = best_match(result.detections, alert.label, alert.min_score, alert.zone)
        state = AlertState.RETRACTED if seen is None else AlertState.CONFIRMED
    else:
        return None
    if state.height <= alert.version:
        return None
    decided_by = None if state is AlertState.UNREVIEWED else result.tier
    return msgspec.structs.replace(alert, state=state, version=state.height, decided_by=decided_by)
