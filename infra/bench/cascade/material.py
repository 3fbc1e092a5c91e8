"""What a comparison needs from the video and the models: every look that any run may ask for, taken once and kept.

Frames are encoded as a camera would (JPEG, full size, quality 90): what all of them take is B0. The leaf looks at them at every set of
input sides that it may choose; the region looks at the evidence that would be sent; the reference, without labels, at the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
import simplejpeg

from agents.cascade.evidence.clip import LEAST_SIDE, ClipEncoder
from agents.cascade.evidence.frame import encode_frame
from agents.cascade.evidence.pixels import scaled
from agents.cascade.evidence.playback import pictures
from agents.cascade.eyes import Sizes
from agents.inference.detector import Detector
from agents.inference.tensors import Pixels
from infra.bench.cascade.cache import Key, looks
from infra.bench.cascade.simulation import Material
from schemas.detections import Detections
from schemas.errors import Fault

CAMERA_QUALITY = 90
CLIP_FRAMES, CLIP_CRF = 30, 33


class UnusableVideo(Fault, ValueError):
    """A file that no frame can be read from."""


class Footage(msgspec.Struct, frozen=True, kw_only=True):
    """A video as it stands."""

    path: Path
    digest: str
    fps: float
    frames: int
    width: int
    height: int


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """How frames are sent: alone (`clip_frames` 0), or so many in a clip."""

    side: int
    quality: int = 40
    clip_frames: int = 0
    crf: int = 28

    @property
    def name(self) -> str:
        if self.clip_frames:
            return f"H.264 {self.side}x{self.side} crf {self.crf}, {self.clip_frames} frames a clip"
        return f"JPEG {self.side}x{self.side} q{self.quality}"


def footage(path: Path, digest: str, most: int | None) -> Footage:
    """Count what a video has, up to `most` frames; raises `UnusableVideo`."""
    frames, size = 0, (0, 0)
    for picture in _frames(path, most):
        frames, size = frames + 1, (picture.shape[1], picture.shape[0])
    if not frames:
        raise UnusableVideo(f"{path} cannot be read as a video: name a file that OpenCV can decode")
    capture = cv2.VideoCapture(str(path))
    fps = float(capture.get(cv2.CAP_PROP_FPS)) or 25.0
    capture.release()
    return Footage(path=path, digest=digest, fps=fps, frames=frames, width=size[0], height=size[1])


def camera(video: Footage) -> Iterator[bytes]:
    """The frames as a camera sends them."""
    for picture in _frames(video.path, video.frames):
        yield bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=CAMERA_QUALITY, colorspace="BGR"))


def camera_bytes(video: Footage) -> list[int]:
    """B0, frame by frame."""
    return [len(jpeg) for jpeg in camera(video)]


def seen_by(video: Footage, detector: Detector, what: str) -> list[Detections]:
    """What a model sees in the camera's frames."""
    key = _key(video, f"camera q{CAMERA_QUALITY}", detector)
    return looks(key, lambda: camera(video), lambda jpeg: detector.look(jpeg).detections, what=what, count=video.frames)


def judged(video: Footage, detector: Detector, evidence: Evidence) -> tuple[list[Detections], list[int]]:
    """What the region sees in the evidence of every frame, and how many bytes each frame's evidence takes."""
    key, sizes = _key(video, evidence.name, detector), []
    what = f"{detector.name} on {evidence.name}"
    if evidence.clip_frames:
        clips = [*_clips(video, evidence)]
        for count, data in clips:
            sizes += _shared(len(data), count)

        def decoded() -> Iterator[Pixels]:
            for count, data in clips:
                yield from pictures(data, count)

        return looks(key, decoded, lambda pixels: detector.look_at(pixels).detections, what=what, count=video.frames), sizes
    encoded = [encode_frame(jpeg, side=evidence.side, quality=evidence.quality) for jpeg in camera(video)]
    answers = looks(key, lambda: encoded, lambda jpeg: detector.look(jpeg).detections, what=what, count=video.frames)
    return answers, [len(each) for each in encoded]


def material(
    video: Footage,
    leaf: Sequence[Detector],
    region: Detector,
    evidence: Evidence,
    *,
    publish_from: float,
    cost: Callable[[Sizes], float],
) -> Material:
    """All that runs with one form of evidence need.

    Parameters
    ----------
    leaf
        Detectors of the leaf, one for each set of input sides, the configured one first; they tell of
        faint boxes too (`agents.cascade.stream.FAINT_FROM`).
    cost
        What a look at a set of sides costs, in whatever unit the runs' bound has.
    """
    answers, sizes = judged(video, region, evidence)
    return Material(
        fps=video.fps,
        leaf={each.sizes: seen_by(video, each, f"{each.name} on the camera's frames") for each in leaf},
        costs={each.sizes: cost(each.sizes) for each in leaf},
        region=answers,
        evidence_bytes=sizes,
        publish_from=publish_from,
        models=(leaf[0].name, region.name),
    )


def _frames(path: Path, most: int | None) -> Iterator[Pixels]:
    capture = cv2.VideoCapture(str(path))
    try:
        count = 0
        while most is None or count < most:
            read, picture = capture.read()
            if not read:
                return
            count += 1
            yield np.asarray(picture, np.uint8)
    finally:
        capture.release()


def _clips(video: Footage, evidence: Evidence) -> Iterator[tuple[int, bytes]]:
    encoder: ClipEncoder | None = None
    for jpeg in camera(video):
        pixels = scaled(jpeg, evidence.side, block=LEAST_SIDE)
        if encoder is None:
            encoder = ClipEncoder(pixels.shape[1], pixels.shape[0], evidence.crf)
        encoder.add(pixels)
        if len(encoder) == evidence.clip_frames:
            yield len(encoder), encoder.finish()
            encoder = None
    if encoder is not None:
        yield len(encoder), encoder.finish()


def _shared(total: int, count: int) -> list[int]:
    """A clip's bytes shared among its frames; the sum is the clip's."""
    return [total * (index + 1) // count - total * index // count for index in range(count)]


def _key(video: Footage, evidence: str, detector: Detector) -> Key:
    return Key(video=video.digest, frames=f"first {video.frames}", evidence=evidence, model=detector.digest)
