"""The bytes that each frame causes on each lane of the link: the records that travel, built as the product builds them.

Verdicts travel in batches that are compressed together; what a batch takes is shared among its frames. Evidence is compressed already.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence

import cramjam

from agents.cascade.evidence.question import ask
from agents.leaf import confidence
from schemas import envelope
from schemas.detections import Detections
from schemas.envelope import JPEG, Envelope, Headers
from schemas.identity import RecordId
from schemas.messages import RANK, Asked, Reason, Status, Tier, Verdict

SOURCE = "camera"
BATCH_S = 0.5  # verdicts that travel together
LEVEL = 3  # of zstd, librdkafka's own default
_EPOCH = "0190f3a2-7c1e-7a44-9d2b-3f6c5e8a1b20"
_START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_DIGEST = "5f2c9ad1" * 8
_FRAMING = 40  # bytes of a record beside its key, value and headers: lengths, deltas, its share of a batch's header


def verdicts(answers: Sequence[Detections | None], fps: float, *, tier: Tier, model: str) -> list[int]:
    """For each frame, the bytes of the verdict on it; 0 where there is none."""
    records = [None if answer is None else _verdict(frame, answer, fps, tier, model) for frame, answer in enumerate(answers)]
    length = max(1, round(BATCH_S * fps))
    sizes: list[int] = []
    for first in range(0, len(records), length):
        batch = records[first : first + length]
        there = [record for record in batch if record is not None]
        packed = len(bytes(cramjam.zstd.compress(b"".join(there), level=LEVEL))) if there else 0
        sizes += [0 if record is None else -(-packed // len(there)) for record in batch]
    return sizes


def escalation(frame: int, answer: Detections, evidence_bytes: int, fps: float, *, reason: Reason = Reason.UNCERTAIN) -> int:
    """The bytes of the question about one frame: its picture, what the leaf thought, and the headers."""
    asked = Asked(id=_id(frame), captured_at=_at(frame, fps), detections=Detections(list(answer)[:50]).to_json())
    question = ask(SOURCE, [asked], b"", JPEG, site="leaf", reason=reason, deadline_ms=10_000, ttl_s=86_400.0)
    head = Envelope(id=question.id, source=SOURCE, type=envelope.ESCALATION, time=_at(frame, fps), content_type=JPEG).to_headers()
    return evidence_bytes + len(question.to_bytes()) + len(SOURCE) + _size(head) + _FRAMING


def _verdict(frame: int, answer: Detections, fps: float, tier: Tier, model: str) -> bytes:
    value = Verdict(
        id=_id(frame),
        source=SOURCE,
        captured_at=_at(frame, fps),
        status=Status.FINAL,
        detections=answer,
        confidence=confidence(answer),
        tier=tier,
        site=tier.value,
        rank=RANK[tier],
        generation=0,
        model=model,
        model_digest=_DIGEST,
        evidence=_DIGEST if tier is not Tier.LEAF else None,
        seen=hashlib.sha256(answer.to_json().encode()).hexdigest()[:32] if tier is Tier.LEAF else None,
    )
    head = Envelope(id=value.id, source=SOURCE, type=envelope.VERDICT, time=value.captured_at, sequence=frame).to_headers()
    return value.id.encode() + value.to_bytes() + b"".join(name.encode() + (text or b"") for name, text in head) + bytes(_FRAMING)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(text or b"") for name, text in headers)


def _id(frame: int) -> str:
    return str(RecordId(SOURCE, _EPOCH, frame))


def _at(frame: int, fps: float) -> dt.datetime:
    return _START + dt.timedelta(seconds=frame / fps)
