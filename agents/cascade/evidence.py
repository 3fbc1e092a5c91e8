"""What is sent to the region: the frame as a small JPEG at the region's input size, since the codec wins most of the bytes."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from agents.inference.images import decode
from schemas.detections import Detections
from schemas.envelope import JPEG
from schemas.frames import Frame
from schemas.identity import content_digest, escalation_id
from schemas.messages import Asked, Escalation, Reason, Verdict

# What travels in a header is bounded.
_ASKED_DETECTIONS = 50
_ALERTS = 64


def encode_frame(jpeg: bytes, *, side: int, quality: int) -> bytes:
    """A JPEG of `side` x `side` pixels, squeezed as the detectors' own input is; its boxes are the frame's in shares of the image.

    A frame that is no larger is not enlarged.

    Raises
    ------
    UndecodableImage
        As the detectors' own decoder does, for what is not a whole JPEG.
    """
    image = decode(jpeg, side)
    pixels, size = image.pixels, (min(side, image.width), min(side, image.height))
    if (pixels.shape[1], pixels.shape[0]) != size:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="BGR", colorsubsampling="420", fastdct=True
    )
    return encoded


def escalate(
    frame: Frame, evidence: bytes, verdict: Verdict, *, reason: Reason, deadline_ms: int, ttl_s: float, alerts: tuple[str, ...] = ()
) -> Escalation:
    """The question that goes with one frame's evidence."""
    digest = content_digest(evidence)
    thought = Detections(list(verdict.detections)[:_ASKED_DETECTIONS])
    return Escalation(
        id=escalation_id((str(frame.id),), digest),
        source=frame.source,
        site=verdict.site,
        reason=reason,
        records=(Asked(id=str(frame.id), captured_at=frame.captured_at, detections=thought.to_json()),),
        evidence=digest,
        content_type=JPEG,
        deadline_ms=deadline_ms,
        ttl_s=ttl_s,
        alerts=alerts[:_ALERTS],
    )
