"""What the judge expects of evidence: a picture is one record's, a clip's frames are its records' in their order."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

import numpy as np
import simplejpeg

from agents.cascade.evidence.clip import ClipEncoder
from agents.inference.detector import Detector, Look, Stages
from agents.inference.images import decode
from infra.faults.oracle import EvidenceOracle
from schemas.detections import Detection, Detections

LEVELS = (40, 120, 200)


class Brightness:
    """Answers with the mean level of a picture as a score."""

    def look_at(self, pixels: np.ndarray) -> Look:
        score = float(pixels.mean()) / 255
        return Look(Detections([Detection("level", score, 0, 0, 1, 1)]), 64, 64, Stages(0, 0, 0, 0))

    def look(self, jpeg: bytes) -> Look:
        return self.look_at(decode(jpeg, 64).pixels)


def oracle() -> EvidenceOracle:
    return EvidenceOracle(cast(Detector, Brightness()))


def question(content_type: str, *ids: str) -> str:
    return json.dumps({"content_type": content_type, "records": [{"id": each, "captured_at": "now"} for each in ids], "more": 1})


def level(answer: str | None) -> float:
    assert answer is not None
    found: Any = json.loads(answer)
    return float(found[0][1]) * 255


def grey(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


def test_each_record_of_a_clip_has_its_own_frame() -> None:
    encoder = ClipEncoder(64, 64, 23)
    for value in LEVELS:
        encoder.add(grey(value))
    clip, kept = encoder.finish(), oracle()
    digest = hashlib.sha256(clip).hexdigest()
    assert not kept.knows(digest, "cam/e/3")
    kept.learn(clip, question("video/h264", "cam/e/3", "cam/e/5", "cam/e/9"))
    assert kept.knows(digest, "cam/e/3")
    assert not kept.knows(digest, "cam/e/4")
    found = [level(kept(digest, name)) for name in ("cam/e/3", "cam/e/5", "cam/e/9")]
    assert all(abs(value - wanted) < 8 for value, wanted in zip(found, LEVELS, strict=True))
    assert kept(digest, "cam/e/4") is None


def test_a_picture_is_its_records() -> None:
    jpeg, kept = bytes(simplejpeg.encode_jpeg(grey(120), quality=90, colorspace="BGR")), oracle()
    kept.learn(jpeg, question("image/jpeg", "cam/e/1"))
    assert abs(level(kept(hashlib.sha256(jpeg).hexdigest(), "cam/e/1")) - 120) < 4


def test_what_cannot_be_decoded_has_no_answer() -> None:
    kept = oracle()
    for data, kind in ((b"\xff\xd8 no picture", "image/jpeg"), (b"no clip", "video/h264")):
        kept.learn(data, question(kind, "cam/e/1"))
        assert kept(hashlib.sha256(data).hexdigest(), "cam/e/1") is None


def test_two_records_may_have_the_same_evidence() -> None:
    jpeg, kept = bytes(simplejpeg.encode_jpeg(grey(120), quality=90, colorspace="BGR")), oracle()
    digest = hashlib.sha256(jpeg).hexdigest()
    for name in ("cam/e/1", "gate/f/7"):
        kept.learn(jpeg, question("image/jpeg", name))
    assert kept(digest, "cam/e/1") == kept(digest, "gate/f/7") is not None
    kept.learn(jpeg, question("image/jpeg", "dock/g/2"))
    assert kept(digest, "dock/g/2") == kept(digest, "cam/e/1")
