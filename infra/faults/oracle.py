"""What a run without faults would have answered: detectors asked once and directly, for the bytes of a frame and for those of evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import av
import cv2
import msgspec
import numpy as np

from agents.inference.detector import Detector
from agents.inference.images import UndecodableImage
from agents.inference.tensors import Pixels


class Oracle:
    """What a detector answers to the bytes of a frame."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._answers: dict[str, str | None] = {}
        self._waiting: dict[str, bytes] = {}

    def learn(self, data: bytes) -> str:
        """Keep bytes until they are asked for; returns their digest."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._answers:
            self._waiting[digest] = data
        return digest

    def forbid(self, data: bytes) -> None:
        """These bytes are fatal to look at: they have no answer."""
        digest = self.learn(data)
        self._waiting.pop(digest, None)
        self._answers[digest] = None

    def knows(self, digest: str) -> bool:
        return digest in self._waiting or digest in self._answers

    def __call__(self, digest: str) -> str | None:
        """The detections as JSON; None if the bytes are no picture, or were never learned."""
        if (data := self._waiting.pop(digest, None)) is not None:
            try:
                self._answers[digest] = self._detector.look(data).detections.to_json()
            except UndecodableImage:
                self._answers[digest] = None
        return self._answers.get(digest)


class _Asked(msgspec.Struct):
    id: str


class _Question(msgspec.Struct):
    content_type: str = ""
    records: list[_Asked] = []


class EvidenceOracle:
    """What a detector answers to evidence: of one record a picture, of several a clip, whose frames are theirs in this order.

    The question that travels beside the evidence says which records it holds. Clips are decoded here by libavcodec alone.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._waiting: dict[str, tuple[bytes, str]] = {}
        self._answers: dict[str, list[str]] = {}
        self._places: dict[tuple[str, str], int] = {}  # of records in evidence: two sources may send the same bytes

    def learn(self, data: bytes, question: str) -> None:
        """Keep evidence until it is asked for, with its question (JSON)."""
        digest, asked = hashlib.sha256(data).hexdigest(), msgspec.json.decode(question, type=_Question)
        self._places |= {(digest, each.id): place for place, each in enumerate(asked.records)}
        if digest not in self._answers:
            self._waiting[digest] = (data, asked.content_type)

    def knows(self, digest: str, record: str) -> bool:
        """Whether the evidence was read together with a question about the record."""
        return (digest, record) in self._places

    def __call__(self, digest: str, record: str) -> str | None:
        """The detections on a record as JSON; None if the evidence cannot be decoded, or does not hold it."""
        if (kept := self._waiting.pop(digest, None)) is not None:
            self._answers[digest] = self._judge(*kept)
        answers, place = self._answers.get(digest, []), self._places.get((digest, record))
        return answers[place] if place is not None and place < len(answers) else None

    def _judge(self, data: bytes, content_type: str) -> list[str]:
        try:
            if content_type == "image/jpeg":
                return [self._detector.look(data).detections.to_json()]
            return [self._detector.look_at(pixels).detections.to_json() for pixels in _frames(data)]
        except (UndecodableImage, av.FFmpegError):
            return []


def _frames(data: bytes) -> Iterator[Pixels]:
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    for packet in (*decoder.parse(data), *decoder.parse(None), None):
        for frame in decoder.decode(packet):
            yield np.asarray(cv2.cvtColor(frame.to_ndarray(format="yuv420p"), cv2.COLOR_YUV2BGR_I420), np.uint8)
