"""The question that goes with evidence: which records it holds, in its order, and what the leaf thought of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.detections import Detections
from schemas.envelope import JPEG
from schemas.frames import Frame
from schemas.identity import content_digest, escalation_id
from schemas.messages import MAX_ESCALATION_BYTES, Asked, Escalation, Reason, Verdict

# What travels in a header is bounded.
_DETECTIONS = 50  # of one record
_ALERTS = 64
_BESIDE = 8 << 10  # bytes for all that is not about one record: ids of alerts most of all


def escalate(
    frame: Frame, evidence: bytes, verdict: Verdict, *, reason: Reason, deadline_ms: int, ttl_s: float, alerts: tuple[str, ...] = ()
) -> Escalation:
    """The question that goes with one frame's evidence."""
    return ask(
        frame.source,
        [asked(frame, verdict)],
        evidence,
        JPEG,
        site=verdict.site,
        reason=reason,
        deadline_ms=deadline_ms,
        ttl_s=ttl_s,
        alerts=alerts,
    )


def asked(frame: Frame, verdict: Verdict, among: int = 1) -> Asked:
    """One record and the best of what the leaf saw on it: as much as a question about so many records (`among`) has room for."""
    room = (MAX_ESCALATION_BYTES - _BESIDE) // among
    best = list(verdict.detections)[:_DETECTIONS]
    while True:
        found = Asked(id=str(frame.id), captured_at=frame.captured_at, detections=Detections(best).to_json())
        if not best or len(found.to_bytes()) < room:
            return found
        best = best[: len(best) * 3 // 4]


def ask(
    source: str,
    records: Sequence[Asked],
    evidence: bytes,
    content_type: str,
    *,
    site: str,
    reason: Reason,
    deadline_ms: int,
    ttl_s: float,
    alerts: Iterable[str] = (),
    audit_rate: float | None = None,
) -> Escalation:
    """The question that goes with evidence of one or several records of a source, in the order that they have in it."""
    digest = content_digest(evidence)
    return Escalation(
        id=escalation_id(tuple(each.id for each in records), digest),
        source=source,
        site=site,
        reason=reason,
        records=tuple(records),
        evidence=digest,
        content_type=content_type,
        deadline_ms=deadline_ms,
        ttl_s=ttl_s,
        alerts=tuple(alerts)[:_ALERTS],
        audit_rate=audit_rate,
    )
