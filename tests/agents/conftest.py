"""What the agents' tests share: records as Kafka gives them, frames, a detector whose faults and delays a test decides, and sites."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
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
import tomli_w
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from agents.cascade.budgets import Budgets
from agents.cascade.cascade import Cascade
from agents.cascade.stream import Heard, View
from agents.inference.detector import Detector, Look, Stages, load
from agents.leaf import Leaf
from agents.questions import Questions
from agents.reach import Reach
from agents.sight import Sight
from agents.steps import Rung
from infra import assets
from infra.assets.models import ready_models, video_frames
from schemas.config import Audit, Engine, Kafka, Link, SiteConfig, parse
from schemas.config import Detector as DetectorConfig
from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.identity import RecordId
from streams.clients import Clients
from streams.cluster import create_topics
from streams.delivery import Emitted, Rejected
from streams.partition import partition_of
from streams.sink import BrokerClock
from streams.topology import Role, Topic, Topology

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
LIMIT_S = 30.0  # longest wait for anything in these tests
WORKER_LIMIT_S = 60.0  # and for what processes do
PARTITIONS = 2


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
    got = "cpu"

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


class Unsure:
    """A look is worth everything where a score lies in a band, and else nothing: so that a test says what is asked."""

    def __init__(self, low: float = 0.3, high: float = 0.55) -> None:
        self.low, self.high = low, high

    def worth(self, view: View, since_s: float) -> float:
        return math.inf if any(self.low <= score <= self.high for score in view.raw.scores) else 0.0

    def learn(self, view: View, since_s: float, heard: Heard) -> None:
        pass

    def dump(self) -> list[list[float]]:
        return []

    def load(self, known: list[list[float]]) -> None:
        pass


def cascade_of(config: SiteConfig, budgets: Budgets, value: Any = None, *, teach: bool = False) -> Cascade:
    """A leaf's cascade, which asks about frames that are unsure unless a value says otherwise."""
    return Cascade(
        mode=config.policy.mode,
        value=value or Unsure(),
        budgets=budgets,
        choices=[config.detector.sizes],
        publish_from=config.detector.min_score,
        teach=teach,
    )


class Bench:
    """A leaf and what it needs, driven by hand."""

    def __init__(self, detector: Any = None, *, value: Any = None, teach: bool = False, **site: Any) -> None:
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
        self.reach = Reach(lambda: self.seconds)
        self.sight = Sight([Rung("scripted", 0, lambda: self.detector)], slow_s=60.0, workers=self.config.engine.workers)
        self.cascade = cascade_of(self.config, self.budgets, value, teach=teach)
        self.questions = Questions(self.config, self.role, self.cascade, self.reach, clock=lambda: self.seconds)
        self.leaf = Leaf(
            self.config,
            self.role,
            self.sight,
            self.questions,
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
    """A leaf with a region, unless `link=None` is given; nothing is audited by chance."""
    return SiteConfig(**{"name": "leaf-1", "tier": "leaf", "link": Link(region_name="region-1"), "audit": Audit(rate=0.0), **fields})


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


def seen_in(detections: str) -> list[Any]:
    """Detections as JSON, without their tracks: what the model saw, where nobody has taught the leaf anything."""
    return [row[:6] for row in json.loads(detections)]


def outputs_of(items: Sequence[Emitted | Rejected]) -> list[Any]:
    return [output for item in items if isinstance(item, Emitted) for output in item.outputs]


def values(items: Sequence[Emitted | Rejected], base: str, kind: Any) -> list[Any]:
    """The values of one topic among some outputs, read back from their bytes."""
    return [kind.from_bytes(output.value) for output in outputs_of(items) if output.topic.base == base]


# ---- workers: processes of their own on a real Kafka, and what a test sees of them


class Site:
    """A site's file, its topics, and the processes that a test started for it."""

    def __init__(self, folder: Path, kafka: Kafka, prefix: str, *, create: bool = True, **fields: Any) -> None:
        self.folder = folder
        self.path = folder / "site.toml"
        site = {
            "name": "leaf-1",
            "tier": "leaf",
            "data_dir": str(folder / "data"),
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
            "topics": {"prefix": prefix, "partitions": PARTITIONS},
            **fields,
        }
        self.path.write_text(tomli_w.dumps(site), encoding="utf-8")
        self.config: SiteConfig = parse(self.path.read_text(encoding="utf-8"), os.environ)
        self.prefix, self.kafka = prefix, kafka
        if create:
            create_topics(Topology(self.config), Clients(kafka, "test"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.expected: dict[int, set[int | None]] = {}
        self._logs: dict[int, Path] = {}

    def start(self, role: str, *more: str, expected: int | None = None) -> subprocess.Popen[bytes]:
        """Start a worker. `expected` is an exit code that `Reader.until` does not take for a failure."""
        log = self.folder / f"{role}-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "infra.cli", "run", self.config.tier, "-c", str(self.path), "--role", role, *more],
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)
        self._logs[process.pid] = log
        self.expected[process.pid] = {None, 0, -signal.SIGKILL, expected}
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a worker has said so far."""
        return self._logs[process.pid].read_text(errors="replace")

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(WORKER_LIMIT_S)


class Reader:
    """Everything on some topics of a site, from the beginning, read without any of the product's code."""

    def __init__(self, site: Site, *bases: str) -> None:
        self.site = site
        self.records: dict[str, list[Message]] = {base: [] for base in bases}
        self._decoded: dict[str, list[dict[str, Any]]] = {}
        self._consumer = Consumer({"bootstrap.servers": site.kafka.bootstrap_servers, "group.id": f"{site.prefix}test"})
        topics = self._consumer.list_topics(timeout=WORKER_LIMIT_S).topics
        self._consumer.assign(
            [
                TopicPartition(site.prefix + base, number, OFFSET_BEGINNING)
                for base in bases
                for number in topics[site.prefix + base].partitions
            ]
        )

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WORKER_LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {WORKER_LIMIT_S:g} s\n{self.site.logs()}"
            assert all(process.poll() in self.site.expected[process.pid] for process in self.site.processes), self.site.logs()
            message = self._consumer.poll(0.2)
            if message is not None and message.error() is None:
                self.records[(message.topic() or "").removeprefix(self.site.prefix)].append(message)

    def values(self, base: str) -> list[dict[str, Any]]:
        known = self._decoded.setdefault(base, [])
        known += [json.loads(message.value() or b"") for message in self.records[base][len(known) :]]
        return known

    def ids(self, base: str) -> set[str]:
        return {value["id"] for value in self.values(base)}

    def latest(self, base: str) -> list[Any]:
        """The value that was written last for each key; bytes where it is no JSON."""
        found = {message.key(): message.value() or b"" for message in self.records[base]}
        return [json.loads(value) if value.startswith(b"{") else value for value in found.values()]

    def dropped(self) -> set[str]:
        return {
            f"{drop['source']}/{drop['epoch']}/{number}"
            for drop in self.values("drops")
            for first, last in json.loads(drop["ranges"])
            for number in range(first, last + 1)
        }

    def close(self) -> None:
        self._consumer.close()


class Camera:
    """Publishes frames, and keeps a list of what the broker took."""

    def __init__(self, site: Site, pictures: list[bytes], *sources: str) -> None:
        self.site, self.pictures = site, pictures
        self.manifest: list[str] = []
        self._next = dict.fromkeys(sources or ("cam-1", "cam-2"), 0)
        self._producer = Producer({"bootstrap.servers": site.kafka.bootstrap_servers, "linger.ms": 0})

    def shoot(self, rounds: int) -> list[str]:
        """That many frames of each source; returns their ids when the broker has them all."""
        frames: list[Frame] = []
        for _ in range(rounds):
            for source, number in list(self._next.items()):
                frames.append(frame(source, number, jpeg=self.pictures[number % len(self.pictures)]))
                self._next[source] = number + 1
        for each in frames:
            self.put(each.source, each.jpeg, list(each.to_headers()))
        self.flush()
        self.manifest += [str(each.id) for each in frames]
        return [str(each.id) for each in frames]

    def put(self, source: str, value: bytes | None, headers: Any = None) -> None:
        self._producer.produce(
            f"{self.site.prefix}frames", value=value, key=source, headers=headers, partition=partition_of(source, PARTITIONS)
        )

    def flush(self) -> None:
        assert self._producer.flush(WORKER_LIMIT_S) == 0


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


@pytest.fixture
def site(tmp_path: Path, kafka: Kafka, prefix: str) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**fields: Any) -> Site:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Site(folder, fields.pop("kafka", kafka), prefix, **fields))
        return made[-1]

    yield make
    for each in made:
        each.end()
