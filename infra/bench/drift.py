"""How good the noticing of drift is: false alarms and delays on streams with a memory, delays and causes on real video.

The code that is measured is the one that runs: `agents.drift`. Pictures go through JPEG and the leaf's own decoder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import msgspec
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from agents.drift.answers import KINDS
from agents.drift.monitor import StreamMonitor
from agents.drift.pictures import Pictures
from agents.drift.shifts import Kind, Shifts
from agents.drift.traits import traits
from agents.inference.detector import Detector
from agents.inference.images import decode
from infra.bench.drift_streams import Floats, Stream
from infra.degrade import KINDS as FAULTS
from infra.degrade import Degradation, Degrader
from schemas.drift import Cause, Drift, DriftState

CONFIDENCE = KINDS[Cause.CONFIDENCE]
CAMERAS = 8  # of each stream, each from a cold start
READY = 128  # batches that are judged before a shift is put in
GIVE_UP = 1000
NAMED = {"blur": Cause.BLUR, "darkness": Cause.BRIGHTNESS, "noise": Cause.NOISE, "moved": Cause.VIEW, "frozen": Cause.FROZEN}
_MIN_SIDE = 224
Given = TypeVar("Given")


class FalseAlarms(msgspec.Struct, frozen=True, kw_only=True):
    """Alarms on streams in which nothing drifts. `at_most` is the upper end of the 95 % interval of the rate."""

    stream: str
    batches: int
    alarms: int
    per_100k: float
    at_most_per_100k: float
    batch_frames: float  # mean over the cameras
    correlation: float  # of neighbouring batches
    armed_after_frames: float


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """Batches from a shift of the level to the alarm."""

    stream: str
    shift: float
    trials: int
    found: int
    p50: float
    p95: float
    most: float
    p95_frames: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Time for one value, in microseconds, and the size of what is remembered."""

    frame_value_p50_us: float
    batch_mean_p50_us: float
    batch_mean_p99_us: float
    picture_p50_us: float
    picture_p95_us: float
    state_bytes: int


class VideoFault(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of one fault that was put into a video."""

    fault: str
    causes: tuple[str, ...]  # of the alarms that opened, in their order
    named: bool  # the first was the right one, and the only one
    delay_s: float | None
    recovered_after_s: float | None


def kind_of(stream: str) -> Kind:
    """What the numbers of a stream are."""
    return KINDS[Cause.COUNT] if stream.startswith("count") else CONFIDENCE


def means(stream: Iterator[Floats], base: int) -> Iterator[float]:
    """The means of so many values each, as `Shifts.add` forms them."""
    for chunk in stream:
        yield from chunk.reshape(-1, base).mean(axis=1).tolist()


def false_alarms(name: str, stream: Stream, *, batches: int, seed: int) -> FalseAlarms:
    """Count alarms until so many batches were judged, on several cameras."""
    kind, alarms, judged = kind_of(name), 0, 0
    armed, lengths, correlations = [], [], []
    for camera in range(CAMERAS):
        shifts, armed_at = Shifts(kind), 0
        for seen, mean in enumerate(means(stream(np.random.default_rng((seed, camera))), kind.base), 1):
            told = shifts.add_mean(mean)
            if told is not None and told.opened:
                alarms += 1
            if not armed_at and shifts.armed:
                armed_at = seen * kind.base
            if shifts.judged >= batches / CAMERAS:
                break
        judged += shifts.judged
        last = np.array(shifts.state().means)
        armed.append(armed_at)
        lengths.append(shifts.batch)
        if np.std(last) > 0:
            correlations.append(float(np.corrcoef(last[1:], last[:-1])[0, 1]))
    return FalseAlarms(
        stream=name,
        batches=judged,
        alarms=alarms,
        per_100k=1e5 * alarms / judged,
        at_most_per_100k=1e5 * poisson_upper(alarms) / judged,
        batch_frames=float(np.mean(lengths)),
        correlation=float(np.mean(correlations)) if correlations else 0.0,
        armed_after_frames=float(np.mean(armed)),
    )


def poisson_upper(count: int) -> float:
    """The mean of which so few are seen in one case of 20: the upper end of a one-sided 95 % interval.

    >>> round(poisson_upper(0), 2), round(poisson_upper(3), 2)
    (3.0, 7.75)
    """
    low, high = float(count), count + 10.0 * math.sqrt(count + 1)
    for _ in range(60):
        middle = (low + high) / 2
        term = total = math.exp(-middle)
        for k in range(1, count + 1):
            term *= middle / k
            total += term
        low, high = (middle, high) if total > 0.05 else (low, middle)
    return high


def delays(name: str, stream: Stream, *, shift: float, trials: int, seed: int) -> Delays:
    """Let the level fall by `shift` once a stream is known, and count the batches until the alarm."""
    kind = kind_of(name)
    found = [
        _delay(kind, means(stream(np.random.default_rng((seed, trial, 1))), kind.base), lambda mean: mean - shift)
        for trial in range(trials)
    ]
    return _delays(name, shift, found)


def delays_of_batches(shift: float, *, trials: int, seed: int) -> Delays:
    """The same for batches that are independent as they are: Beta(8, 2), then Beta(5, 3) or Beta(7, 3), as single confidences."""
    alpha, beta = {0.175: (5.0, 3.0), 0.1: (7.0, 3.0)}[shift]
    found = []
    for trial in range(trials):
        random = np.random.default_rng((seed, trial, 2))
        found.append(_delay(CONFIDENCE, _drawn(random, 8.0, 2.0), partial(_instead, _drawn(random, alpha, beta))))
    return _delays("Beta(8, 2), each value a batch", shift, found)


def _drawn(random: np.random.Generator, alpha: float, beta: float) -> Iterator[float]:
    while True:
        yield float(random.beta(alpha, beta))


def _instead(values: Iterator[float], _: float) -> float:
    return next(values)


def _delay(kind: Kind, values: Iterator[float], moved: Callable[[float], float]) -> tuple[int, int]:
    """Batches and frames from the beginning of a shift to the alarm."""
    shifts, frames = Shifts(kind), 0
    for value in values:
        shifts.add_mean(value)
        if shifts.judged >= READY:
            break
    begun = shifts.judged
    for value in values:
        told = shifts.add_mean(moved(value))
        frames += kind.base
        if (told is not None and told.opened) or shifts.judged - begun >= GIVE_UP:
            break
    return shifts.judged - begun, frames


def _delays(name: str, shift: float, found: list[tuple[int, int]]) -> Delays:
    batches, frames = [each[0] for each in found], [each[1] for each in found]
    return Delays(
        stream=name,
        shift=shift,
        trials=len(found),
        found=sum(each < GIVE_UP for each in batches),
        p50=float(np.percentile(batches, 50)),
        p95=float(np.percentile(batches, 95)),
        most=float(max(batches)),
        p95_frames=float(np.percentile(frames, 95)),
    )


def cost(pictures: list[NDArray[np.uint8]], *, values: int = 20_000) -> Cost:
    """Measure it on this machine."""
    random = np.random.default_rng(7)
    confidences = random.beta(8, 2, values + 8 * 4096).tolist()
    shifts = Shifts(CONFIDENCE)
    for value in confidences[: 8 * 4096]:
        shifts.add(value)
    one = _timed(shifts.add, confidences[8 * 4096 :])
    batch = _timed(shifts.add_mean, confidences[:values])
    watch, at = Pictures(), iter(range(1 << 30))
    picture = _timed(lambda index: watch.feed(next(at) / 10, traits(pictures[index % len(pictures)])), list(range(600)))
    monitor = StreamMonitor("cam-1", "site-1")
    for index, pixels in enumerate(pictures):
        monitor.frame(index / 10, traits(pixels))
    return Cost(
        frame_value_p50_us=float(np.percentile(one, 50)),
        batch_mean_p50_us=float(np.percentile(batch, 50)),
        batch_mean_p99_us=float(np.percentile(batch, 99)),
        picture_p50_us=float(np.percentile(picture, 50)),
        picture_p95_us=float(np.percentile(picture, 95)),
        state_bytes=len(msgspec.json.encode(monitor.state())) + 3 * len(msgspec.json.encode(shifts.state())),
    )


def _timed(work: Callable[[Given], object], given: list[Given]) -> list[float]:
    took = []
    for each in given:
        begun = time.perf_counter()
        work(each)
        took.append((time.perf_counter() - begun) * 1e6)
    return took


def played(video: Path, frames: int) -> Iterator[NDArray[np.uint8]]:
    """So many frames of a video, BGR; it is played in a loop."""
    left = frames
    while left > 0:
        capture, before = cv2.VideoCapture(str(video)), left
        try:
            while left > 0 and (read := capture.read())[0]:
                yield np.asarray(read[1], np.uint8)
                left -= 1
        finally:
            capture.release()
        if left == before:
            raise ValueError(f"{video} cannot be read as a video")


def decoded(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame as the leaf gets it: through JPEG, and decoded at the scale that its detector needs."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=85, colorspace="BGR", colorsubsampling="420")
    return decode(jpeg, _MIN_SIDE).pixels


def watch_video(video: Path, fps: float, seconds: float, degradation: Degradation | None) -> list[Drift]:
    """What a monitor says of a video that is played in a loop."""
    monitor, degrader = StreamMonitor("cam-1", "site-1"), None if degradation is None else Degrader(degradation)
    told = []
    for index, frame in enumerate(played(video, round(seconds * fps))):
        at = index / fps
        told += monitor.frame(at, traits(decoded(frame if degrader is None else degrader(frame, at))))
    return told


def video_fault(video: Path, fps: float, name: str, *, begins_s: float = 20.0, ends_s: float = 40.0) -> VideoFault:
    """Put one fault into the video for a while."""
    degradation = Degradation(name=name, strength=FAULTS[name].default, from_s=begins_s, to_s=ends_s)
    told = watch_video(video, fps, ends_s + 12, degradation)
    opened = [drift for drift in told if drift.state is DriftState.OPENED]
    closed = [drift for drift in told if drift.state is DriftState.CLOSED and drift.evidence["recovered"] == 1]
    return VideoFault(
        fault=str(degradation),
        causes=tuple(drift.cause for drift in opened),
        named=[drift.cause for drift in opened] == [NAMED[name]],
        delay_s=opened[0].at.timestamp() - begins_s if opened else None,
        recovered_after_s=closed[0].at.timestamp() - ends_s if closed else None,
    )


def mean_confidences(detector: Detector, frames: Iterable[NDArray[np.uint8]]) -> Floats:
    """The mean confidence of each frame of a video in which something is seen."""
    found = []
    for frame in frames:
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=85, colorspace="BGR", colorsubsampling="420")
        scores = [detection.score for detection in detector.look(jpeg).detections]
        if scores:
            found.append(float(np.mean(scores)))
    return np.array(found)
