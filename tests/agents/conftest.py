"""What the agents' tests share: records as Kafka gives them, frames, a detector whose faults and delays a test decides, and sites."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import simplejpeg

from agents.cascade.budgets import Budgets
from agents.cascade.policy import make_policy
from agents.inference.detector import Detector, Look, Stages, load
from agents.leaf import Leaf
from infra import assets
from infra.assets.models import ready_models, video_frames
from schemas.config import Detector as DetectorConfig
from schemas.config import Engine, Link, SiteConfig
from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.identity import RecordId
from streams.delivery import Emitted, Rejected
from streams.sink import BrokerClock
from streams.topology import Role, Topic, Topology

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
LIMIT_S = 30.0  # longest wait for anything in these tests


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record with the accessors of a librdkafka message."""

    in_topic: str
    data: bytes | None
    pairs: list[tuple[str, bytes | None]] | None = None
    name: bytes | None = None
    at: int = 0
    offs: int = 0
    part: int = 0

    def topic(self) -> str:
        return self.in_topic

    def partition(self) -> int:
        return self.part

    def offset(self) -> int:
        return self.offs

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.data

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.pairs

    def timestamp(self) -> tuple[int, int]:
        return 2, self.at


class Clock(BrokerClock):
    """The broker's clock, standing still until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = 1_000_000.0

    def now_ms(self) -> float:
        return self.ms


class ScriptedDetector:
    """Sees what it is told to see; fails or waits where it is told to."""

    name = "scripted"
    digest = "d" * 64

    def __init__(self) -> None:
        self.seen: dict[bytes, Detections] = {}
        self.faults: dict[bytes, list[Exception]] = {}
        self.gates: dict[bytes, threading.Event] = {}
        self.looks: Counter[bytes] = Counter()

    def look(self, jpeg: bytes) -> Look:
        self.looks[jpeg] += 1
        gate = self.gates.get(jpeg)
        if gate is not None and not gate.wait(LIMIT_S):
            raise AssertionError("nobody opened the gate")
        faults = self.faults.get(jpeg)
        if faults:
            raise faults.pop(0)
        return Look(self.seen.get(jpeg, Detections()), 64, 48, Stages(0.0, 0.0, 0.0, 0.0))

    def hold(self, jpeg: bytes) -> threading.Event:
        """Looks at these bytes wait until the event is set."""
        return self.gates.setdefault(jpeg, threading.Event())


class Bench:
    """A leaf and what it needs, driven by hand."""

    def __init__(self, detector: Any = None, **site: Any) -> None:
        self.detector = detector or ScriptedDetector()
        self.clock = Clock()
        self.seconds = 0.0
        self.config = leaf_site(**site)
        self.role = Topology(self.config).role(Role.LEAF)
        self.topic: Topic = self.role.read("frames")
        self.budgets = Budgets(
            bytes_per_s=self.config.policy.budget_bytes_per_s,
            inferences_per_s=self.config.policy.inferences_per_s,
            burst_s=self.config.policy.burst_s,
            clock=lambda: self.seconds,
        )
        self.leaf = Leaf(
            self.config,
            self.role,
            self.detector,
            make_policy(self.config.policy),
            self.budgets,
            cluster="cluster-1",
            frames_uuid="topic-1",
            clock=self.clock,
            now=lambda: NOON,
        )

    def record(self, frame: Frame, *, age_ms: int = 0, offset: int | None = None) -> Record:
        """A frame as our own producers publish it."""
        return Record(
            in_topic=self.topic.name,
            data=frame.jpeg,
            pairs=list(frame.to_headers()),
            name=frame.source.encode(),
            at=int(self.clock.ms) - age_ms,
            offs=frame.id.sequence if offset is None else offset,
        )

    def foreign(self, jpeg: bytes, key: bytes | None, offset: int, *, age_ms: int = 0) -> Record:
        """A JPEG with a key and no headers."""
        return Record(in_topic=self.topic.name, data=jpeg, name=key, at=int(self.clock.ms) - age_ms, offs=offset)

    def run(self, *batches: Sequence[Record]) -> list[list[Emitted | Rejected]]:
        """Answer batches one after the other."""

        async def drive() -> list[list[Emitted | Rejected]]:
            return [await collect(self.leaf.work(self.topic, 0, batch)) for batch in batches]

        return asyncio.run(asyncio.wait_for(drive(), LIMIT_S))


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads
            await asyncio.sleep(0.001)


def leaf_site(**fields: Any) -> SiteConfig:
    """A leaf with a region, unless `link=None` is given."""
    return SiteConfig(**{"name": "leaf-1", "tier": "leaf", "link": Link(region_name="region-1"), **fields})


def picture(number: int, width: int = 64, height: int = 48) -> bytes:
    """A JPEG that no other number has."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for bit in range(16):
        pixels[:, bit * width // 16 : (bit + 1) * width // 16] = 255 if number >> bit & 1 else 0
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90))


def frame(source: str, sequence: int, *, epoch: str = "e1", jpeg: bytes | None = None, at_s: float | None = None) -> Frame:
    """A frame; at 10 frames a second unless a time is given."""
    at_s = sequence / 10 if at_s is None else at_s
    return Frame(
        id=RecordId(source, epoch, sequence),
        source=source,
        captured_at=NOON + dt.timedelta(seconds=at_s),
        jpeg=jpeg or picture(sequence),
    )


def person(score: float = 0.9, x: float = 0.5, foot: float = 0.8, label: str = "person") -> Detection:
    return Detection(label, score, x - 0.05, foot - 0.3, x + 0.05, foot)


def outputs_of(items: Sequence[Emitted | Rejected]) -> list[Any]:
    return [output for item in items if isinstance(item, Emitted) for output in item.outputs]


def values(items: Sequence[Emitted | Rejected], base: str, kind: Any) -> list[Any]:
    """The values of one topic among some outputs, read back from their bytes."""
    return [kind.from_bytes(output.value) for output in outputs_of(items) if output.topic.base == base]


@pytest.fixture(scope="session")
def tools() -> ModuleType:
    """The helpers of this file, which tests cannot import by name."""
    return sys.modules[__name__]


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches, and closes their leaves."""
    made: list[Bench] = []

    def make(detector: Any = None, **site: Any) -> Bench:
        made.append(Bench(detector, **site))
        return made[-1]

    yield make
    for each in made:
        for gate in getattr(each.detector, "gates", {}).values():
            gate.set()
        each.leaf.close()


@pytest.fixture(scope="session")
def nanodet() -> Detector:
    """The leaf's real detector."""
    settings = DetectorConfig()
    return load(settings, Engine(), ready_models([settings]))


@pytest.fixture(scope="session")
def street() -> list[bytes]:
    """A few frames of the demo's video as JPEGs of 768 x 576; people are in all of them."""
    (video,) = assets.fetch(assets.VIDEO)
    return [bytes(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]) for frame in video_frames(Path(video), 8)]
