"""What fuzzing found in production, kept found: texts and pictures that are odd but must only be refused, and quickly."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from streams.production.address import default_name, kind_of, redact
from streams.production.images import ImageFolder
from streams.production.pictures import MAX_SIDE, CaptureFailed, Look, decode, encode


@pytest.mark.parametrize("text", ["A" * 500_000, "a://" * 100_000, "a://b@" * 100_000 + "?", "://" * 200_000, "9" * 500_000])
def test_hiding_secrets_takes_time_in_proportion_to_the_text(text: str) -> None:
    started = time.process_time()
    redact(text)
    redact(f"rtsp://joe:{text}@cam/1", f"rtsp://joe:{text}@cam/1")
    assert time.process_time() - started < 5.0  # by patterns that went back and forth it took hours


def test_secrets_are_hidden_in_every_word_of_a_text() -> None:
    assert (
        redact("from rtsp://joe:a@b/c@cam/1?k=v, to 'http://u:p@h/x#f'; done") == "from rtsp://***@cam/1?***, to 'http://***@h/x#***'; done"
    )
    assert redact("see https://example.org/docs.") == "see https://example.org/docs."


def test_a_long_number_is_the_name_of_a_file() -> None:
    assert kind_of("0") == "camera"
    assert kind_of("20260131") == "file"
    assert default_name("9" * 5000) == "9" * 64


def test_a_picture_that_no_jpeg_can_hold_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(CaptureFailed, match="at most 65500"):
        encode(np.zeros((60_000, 1, 3), np.uint8), Look(width=4096), "BGR")
    with pytest.raises(CaptureFailed, match="at most 65500"):
        encode(np.zeros((1, MAX_SIDE + 1, 3), np.uint8), Look(), "BGR")


def test_a_folder_passes_over_such_a_picture_and_sends_the_others(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60_000, 1, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((48, 64, 3), np.uint8))
    folder = ImageFolder(tmp_path, Look(width=1280))
    assert [(picture.width, picture.height) for picture in folder.pictures()] == [(1280, 960)]
    assert folder.unreadable == {tmp_path / "a.png"}


def test_a_small_jpeg_that_claims_to_be_huge_is_not_decoded() -> None:
    jpeg = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (30_000).to_bytes(2, "big") * 2
    assert decode(bytes(jpeg)) is None
