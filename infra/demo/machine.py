"""What this machine can carry: how long a look takes here, on frames of the very video, and how many cameras that allows."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import msgspec

from agents.inference.detector import load
from schemas.config import Detector, Engine
from streams.production.capture import VideoFile
from streams.production.pictures import Look

FPS = 30.0
MAX_CAMERAS = 4
QUALITY = 85
_FRAMES = 12
_SHARE = 0.15  # of the cores that looks may take: brokers, cameras, resolvers, the region and the page need the rest
_REGION_SHARE = 0.25  # of one core


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over a few frames of the video, before anything else runs."""

    leaf_ms: float
    region_ms: float
    cameras: int
    inferences_per_s: float
    engine: str
    cores: int


def measure(video: Path, leaf: Detector, region: Detector, models: Path) -> Measured:
    """Time both detectors here; raises what `agents.inference.detector.load` and `VideoFile` raise."""
    frames = _frames(video)
    small, large = load(leaf, Engine(), models), load(region, Engine(), models)
    leaf_s, region_s = _median_s(small.look, frames), _median_s(large.look, frames[: _FRAMES // 2])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Measured(
        leaf_ms=round(leaf_s * 1000, 2),
        region_ms=round(region_s * 1000, 1),
        cameras=max(1, min(MAX_CAMERAS, int(_SHARE * cores / (FPS * leaf_s)))),
        inferences_per_s=round(max(0.5, min(4.0, _REGION_SHARE / region_s)), 2),
        engine=small.got,
        cores=cores,
    )


def _frames(video: Path) -> list[bytes]:
    pictures = []
    for number, picture in enumerate(VideoFile(video, Look(None, QUALITY), None).pictures()):
        if number % 5 == 0:
            pictures.append(picture.jpeg)
        if len(pictures) == _FRAMES:
            break
    return pictures


def _median_s(look: object, frames: list[bytes]) -> float:
    assert callable(look)
    look(frames[0])
    times = []
    for frame in frames:
        started = time.perf_counter()
        look(frame)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
