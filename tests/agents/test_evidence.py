"""What is sent to the region: a picture of its input size in which everything keeps its place, and the question that goes with it."""

from __future__ import annotations

import hashlib
import json
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from agents.cascade.evidence import encode_frame, escalate, question
from agents.inference.images import UndecodableImage
from schemas.config_cascade import MAX_CLIP_FRAMES
from schemas.detections import Detection, Detections
from schemas.messages import CLIP, MAX_ESCALATION_BYTES, RANK, Escalation, Reason, Status, Tier, Verdict

BLOCK = (0.25, 0.5, 0.5, 0.75)  # shares of the image: x0, y0, x1, y1


def scene(width: int, height: int) -> bytes:
    """A white block on black, as a JPEG of OpenCV's making."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = BLOCK
    pixels[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)] = 255
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def shape(jpeg: bytes) -> tuple[int, int]:
    height, width, _ = decoded(jpeg).shape
    return width, height


def decoded(jpeg: bytes) -> Any:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


@pytest.mark.parametrize("size", [(768, 576), (1920, 1080), (320, 1280), (3001, 777), (321, 321)])
def test_a_larger_frame_becomes_side_by_side_and_boxes_keep_their_place(size: tuple[int, int]) -> None:
    evidence = encode_frame(scene(*size), side=320, quality=60)
    assert shape(evidence) == (320, 320)
    bright = decoded(evidence)[:, :, 1] > 128
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    found = columns[0] / 320, rows[0] / 320, (columns[-1] + 1) / 320, (rows[-1] + 1) / 320
    assert np.allclose(found, BLOCK, atol=2 / 320)
    assert not bright[: rows[0]].any()


@pytest.mark.parametrize(("size", "expected"), [((200, 150), (200, 150)), ((100, 640), (100, 320)), ((640, 100), (320, 100))])
def test_a_frame_that_is_no_larger_is_not_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shape(encode_frame(scene(*size), side=320, quality=60)) == expected


def test_quality_buys_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    jpeg = bytes(cv2.imencode(".jpg", noise)[1])
    assert len(encode_frame(jpeg, side=320, quality=20)) < len(encode_frame(jpeg, side=320, quality=80))


@pytest.mark.parametrize("cut", [4, 200, 1000, -40])
def test_a_truncated_picture_is_no_evidence(street: list[bytes], cut: int) -> None:
    with pytest.raises(UndecodableImage):
        encode_frame(street[0][:cut], side=320, quality=40)


# ---- the question


def verdict(tools: ModuleType, seen: list[Detection]) -> Verdict:
    frame = tools.frame("cam", 3)
    return Verdict(
        id=str(frame.id),
        source="cam",
        captured_at=frame.captured_at,
        status=Status.PROVISIONAL,
        detections=Detections(seen),
        confidence=0.5,
        tier=Tier.LEAF,
        site="leaf-1",
        rank=RANK[Tier.LEAF],
        generation=0,
        model="m",
        model_digest="d" * 64,
        deadline_ms=5000,
    )


def ask(tools: ModuleType, evidence: bytes = b"evidence", seen: list[Detection] | None = None, **changes: Any) -> Escalation:
    return escalate(
        tools.frame("cam", 3),
        evidence,
        verdict(tools, [tools.person(0.4)] if seen is None else seen),
        **{"reason": Reason.UNCERTAIN, "deadline_ms": 5000, "ttl_s": 60.0, **changes},
    )


def test_the_question_names_its_frame_and_what_the_leaf_thought(tools: ModuleType) -> None:
    asked = ask(tools, alerts=("alert-1",))
    (record,) = asked.records
    assert (record.id, record.captured_at) == ("cam/e1/3", tools.frame("cam", 3).captured_at)
    assert json.loads(record.detections) == [["person", 0.4, 0.45, 0.5, 0.55, 0.8, None]]
    assert asked.evidence == hashlib.sha256(b"evidence").hexdigest()
    assert (asked.site, asked.reason, asked.deadline_ms, asked.ttl_s, asked.alerts) == ("leaf-1", "uncertain", 5000, 60.0, ("alert-1",))
    assert Escalation.from_bytes(asked.to_bytes()) == asked


def test_digest_and_id_follow_from_the_bytes(tools: ModuleType, street: list[bytes]) -> None:
    first, again = (encode_frame(street[0], side=320, quality=40) for _ in range(2))
    assert first == again
    assert ask(tools, first) == ask(tools, again)
    assert ask(tools, first, reason=Reason.ALERT).id == ask(tools, first).id
    other = encode_frame(street[0], side=320, quality=41)
    assert ask(tools, other).id != ask(tools, first).id


def test_the_question_fits_its_header_however_much_was_seen(tools: ModuleType) -> None:
    crowd = [tools.person(0.4, label="\x01" * 64) for _ in range(300)]
    asked = ask(tools, seen=crowd, alerts=tuple(f"alert-{n:032d}" for n in range(500)))
    assert len(asked.to_bytes()) < MAX_ESCALATION_BYTES
    assert 0 < len(json.loads(asked.records[0].detections)) < 300
    assert asked.alerts[0] == f"alert-{0:032d}"


@pytest.mark.parametrize("seen", [0, 3, 20, 300])
@pytest.mark.parametrize("count", [1, 10, MAX_CLIP_FRAMES])
def test_the_question_about_a_clip_fits_its_header_with_the_best_of_what_was_seen_on_each_frame(
    tools: ModuleType, count: int, seen: int
) -> None:
    crowd = [tools.person(round(0.9 - 0.001 * n, 4)) for n in range(seen)]
    frames = [tools.frame("cam", n) for n in range(count)]
    records = [question.asked(frame, verdict(tools, crowd), among=count) for frame in frames]
    made = question.ask("cam", records, b"a clip", CLIP, site="leaf-1", reason=Reason.AUDIT, deadline_ms=1, ttl_s=1.0)
    assert Escalation.from_bytes(made.to_bytes()) == made
    assert len(made.to_bytes()) < MAX_ESCALATION_BYTES
    for record in made.records:
        told = json.loads(record.detections)
        assert [each[1] for each in told] == [each.score for each in crowd[: len(told)]]
        assert len(told) >= min(seen, 8)


def test_the_id_of_a_question_is_that_of_its_records_in_their_order(tools: ModuleType) -> None:
    one, other = (question.asked(tools.frame("cam", n), verdict(tools, [])) for n in (1, 2))
    ids = {
        question.ask("cam", records, evidence, CLIP, site="leaf-1", reason=Reason.AUDIT, deadline_ms=1, ttl_s=1.0).id
        for records in ([one], [one, other], [other, one])
        for evidence in (b"a", b"b")
    }
    assert len(ids) == 6
