"""What is sent to the region: the frame as a small JPEG at the region's input size, since the codec wins most of the bytes."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from schemas.detections import Detections
from schemas.envelope import JPEG
from schemas.frames import Frame
from schemas.identity import content_digest, escalation_id
from schemas.messages import Asked, Escalation, Reason, Verdict

_ASKED_DETECTIONS = 50  # what the leaf thought travels in a header, which is bounded


def encode_frame(jpeg: bytes, *, side: int, quality: int) -> bytes:
    """A JPEG of `side` x `side` pixels, squeezed as the detectors' own input is; its boxes are the frame's in shares of the image.

    A frame that is no larger is not enlarged.
    """
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    image = simplejpeg.decode_jpeg(jpeg, colorspace="BGR", min_height=min(side, height), min_width=min(side, width), fastdct=True)
    size = (min(side, width), min(side, height))
    if (image.shape[1], image.shape[0]) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="BGR", colorsubsampling="420", fastdct=True
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
        alerts=alerts,
    )
