"""Harnesses on clips: H.264 from anybody, as it comes, and with what is inside of its units changed while they stay whole."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from agents.cascade.evidence.annexb import InvalidClip, outline, units
from agents.cascade.evidence.clip import ClipEncoder
from agents.cascade.evidence.playback import pictures
from infra.faults.fuzz.harness import harness, must, refusing
from infra.faults.fuzz.images import jpegs
from infra.faults.fuzz.sites import videos
from schemas.config_cascade import MAX_CLIP_FRAMES, MAX_CLIP_SIDE

VALID = 5  # clips that are whole


def _scene(number: int, width: int, height: int) -> Any:
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([across * 2 + number * 5, down * 3, across ^ down], axis=2).astype(np.uint8)
    pixels[number * 3 : number * 3 + 8, :16] = 255
    return pixels


@functools.cache
def clips() -> list[bytes]:
    """Clips of several sizes; the first `VALID` of them are whole."""
    found = []
    for count, width, height, crf in ((1, 16, 16, 40), (4, 64, 48, 28), (3, 98, 34, 18), (8, 32, 32, 33), (2, 160, 160, 23)):
        encoder = ClipEncoder(width, height, crf)
        for number in range(count):
            encoder.add(_scene(number, width, height))
        found.append(encoder.finish())
    whole = found[1]
    parts = outline(whole, max_frames=4, max_side=64).frames
    return [
        *found,
        whole + found[2],
        parts[0] + parts[2] + parts[1],
        parts[0][: len(parts[0]) // 2] + parts[1],
        b"\0\0\1\x65\x88\x84" * 3,
        *videos()[:3],
        jpegs()[0],
        b"\0\0\1",
        b"",
    ]


def law(data: bytes) -> None:
    """What is read has as many frames as were seen from outside, within the bounds, and is the same when it is read again; else it is
    refused, before any of it is given."""
    given = 0
    try:
        with refusing(InvalidClip):
            found = outline(data, max_frames=MAX_CLIP_FRAMES, max_side=MAX_CLIP_SIDE)
            must(1 <= len(found.frames) <= MAX_CLIP_FRAMES, f"{len(found.frames)} frames")
            must(0 < found.width <= MAX_CLIP_SIDE and 0 < found.height <= MAX_CLIP_SIDE, f"{found.width} x {found.height} pixels")
            again = pictures(data, len(found.frames))
            for pixels in pictures(data, len(found.frames)):
                given += 1
                must(pixels.shape == (found.height, found.width, 3) and pixels.dtype == np.uint8, f"pixels of shape {pixels.shape}")
                must((next(again) == pixels).all(), "read again it differs")
            must(given == len(found.frames), f"{given} frames were given of {len(found.frames)}")
            given = 0
    finally:
        must(not given, "a part of a clip was given")


@harness("clip", clips, cost=2.0)
def clip(data: bytes) -> None:
    law(data)


@functools.cache
def _units(number: int) -> tuple[bytes, ...]:
    data = clips()[number % VALID]
    return tuple(data[unit.body : unit.end] for unit in units(data))


def _bodies() -> Iterable[bytes]:
    yield from (bytes([number, place]) + body for number in range(VALID) for place, body in enumerate(_units(number)[:4]))


@harness("clip-unit", _bodies, cost=4.0)
def clip_unit(data: bytes) -> None:
    """The content of one unit changed, such as a header that says how large the pictures are, in a clip whose units are where they were."""
    number, place = (data + b"\0\0")[:2]
    parts = list(_units(number))
    parts[place % len(parts)] = data[2:].replace(b"\0\0\1", b"\0\0\3\1")
    law(b"".join(b"\0\0\1" + part for part in parts))
