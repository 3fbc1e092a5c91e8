"""The join: how verdicts on one record become one result. Verdicts form a semilattice (commutative, associative, idempotent), so that
duplicates, delays and disorder change nothing. Pure: everything that decides travels in the verdict.

Order of preference: not failed; rank; status (final, provisional, unanswered); model generation; confidence; digest of the content. The
note is no part of it: it says how things stood (the region was away), and a frame that is looked at again, in other circumstances, has the
same answer. Of two verdicts that differ in nothing else the first holds.

What a leaf believes of a frame (a verdict with `seen`) depends on the frames before it and on what it has learned, so a frame that is
looked at again may be believed to hold something else, and to be sure of it or not. Such verdicts are of one height whatever they hold,
`final` or `unanswered`, and the first holds: else a memory that has settled the record, and knows its height alone, would keep another one
than a memory that has not.

What becomes of alerts, which follow the result of their own frame, is in `schemas/alerts.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from schemas.messages import MAX_RANK, RANK, Answer, Result, Status, Tier, Verdict

_STATUS_HEIGHT = {Status.FINAL: 3, Status.PROVISIONAL: 2, Status.UNANSWERED: 1, Status.FAILED: 0}
_COMMON = Answer.__struct_fields__
_BELIEFS = {Status.UNANSWERED: Status.FINAL}  # for the order, of what a leaf believes


def order_of(verdict: Verdict) -> str:
    """A verdict's place in the order of preference, as text that compares the same way."""
    status = verdict.status if verdict.seen is None else _BELIEFS.get(verdict.status, verdict.status)
    height = f"{int(status is not Status.FAILED)}.{verdict.rank:02d}.{_STATUS_HEIGHT[status]}.{verdict.generation:010d}"
    if verdict.seen is not None:
        return f"{height}.{0:05d}.{0:032x}"
    digest = hashlib.sha256(msgspec.structs.replace(verdict, note=None).to_bytes()).hexdigest()[:32]
    return f"{height}.{round(verdict.confidence * 10_000):05d}.{digest}"


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
    """A verdict as its topic allows it: tier (and site) are the topic's, and the rank is at most what that tier may claim.

    Who waits for a higher tier cannot outrank it: a provisional verdict has at most its tier's own rank, a passed deadline at most the
    region's, also on streams whose leaf is preferred. So the answer that is waited for always holds when it comes.
    """
    limits = {Status.PROVISIONAL: RANK[tier], Status.UNANSWERED: RANK[Tier.REGION]}
    rank = min(verdict.rank, MAX_RANK[tier], limits.get(verdict.status, MAX_RANK[tier]))
    if verdict.tier is tier and verdict.rank == rank and site in (None, verdict.site):
        return verdict
    return msgspec.structs.replace(verdict, tier=tier, rank=rank, site=site or verdict.site)


def unanswered(provisional: Verdict) -> Verdict:
    """The verdict that a passed deadline is: the leaf's own detections, at the region's rank but the lowest status, so that it stands
    above the provisional answer and below any answer that still comes.

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
