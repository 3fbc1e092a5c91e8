"""What a leaf has learned: packed and unpacked, and taken up by the next process, on a real Kafka with real frames."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import signal
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.accuracy import Judged
from agents.cascade.agreement import Counts
from agents.cascade.budgets import Budgets
from agents.cascade.cascade import Cascade, Lesson
from agents.cascade.values import ExpectedGain
from agents.drift.monitor import StreamMonitor
from agents.drift.traits import traits
from agents.ledgers import Doubt, Kept
from agents.lessons import LAYOUT, pack, unpack
from schemas.detections import Detection, Detections
from schemas.messages import RANK, Status, Tier, Verdict
from streams import outputs
from streams.clients import Clients
from streams.partition import partition_of
from streams.sink import Sink
from streams.topology import Role, Topology

AWAY = {"region": {"bootstrap_servers": "127.0.0.1:9"}, "region_name": "region-1"}
EVERYTHING = {"inferences_per_s": 10_000.0, "budget_bytes_per_s": 100 << 20, "mode": "everything"}


def lesson() -> Lesson:
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=1e9, burst_s=1, clock=lambda: 0.0)
    cascade = Cascade(mode="everything", value=ExpectedGain(), budgets=budgets, choices=[(224,)], publish_from=0.3)
    for frame in range(30):
        seen = Detections([Detection("person", 0.4 + frame / 100, 0.1, 0.1, 0.2, 0.4)])
        cascade.ask("cam", str(frame), cascade.see("cam", frame / 10, seen, "m"), frame / 10)
        cascade.hear("cam", str(frame), seen)
    return cascade.lessons()["cam"]


def test_a_lesson_comes_back_as_it_was() -> None:
    known = lesson()
    kept = [Kept("m", "d", "leaf-1", [Judged("cam/e/0", 1.0, 0.5, Counts(1, 2, 3))], {"cam/e/0": Doubt(0.5, True, [0.5], [False])})]
    monitor = StreamMonitor("cam", "leaf-1")
    for number in range(100):
        monitor.frame(number / 10, traits(np.full((160, 160), number, np.uint8)))
    assert unpack(pack(known, kept, monitor.state())) == (known, kept, monitor.state())


@given(st.binary(max_size=200))
def test_what_is_no_lesson_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(data)


@settings(deadline=None)
@given(st.data())
def test_a_lesson_that_was_damaged_is_refused_or_the_same(data: st.DataObject) -> None:
    known = lesson()
    packed = bytearray(pack(known, []))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ValueError):
        assert unpack(bytes(packed)) == (known, [], None)


def test_another_layout_and_what_unpacks_to_too_much_are_refused() -> None:
    with pytest.raises(ValueError, match="layout"):
        unpack(zlib.compress(msgspec.msgpack.encode({"layout": LAYOUT + 1, "lesson": 3})))
    with pytest.raises(ValueError, match="larger than"):
        unpack(zlib.compress(bytes(32 << 20)))


class Region:
    """Answers every frame that a leaf has answered, as the region would, with nothing: the leaf is to learn that nothing is there."""

    def __init__(self, leaf: Any) -> None:
        self.topic = Topology(leaf.config).role(Role.LINK).write("region.verdicts")
        self.sink = Sink(Clients(leaf.config.kafka, "test"))
        self.answered: set[str] = set()

    def answer(self, verdicts: list[dict[str, Any]]) -> None:
        new = [each for each in verdicts if each["id"] not in self.answered]
        self.answered |= {each["id"] for each in new}
        self.sink.write_blocking([outputs.answer(self.topic, self._verdict(each)) for each in new])

    @staticmethod
    def _verdict(leaf: dict[str, Any]) -> Verdict:
        return Verdict(
            id=leaf["id"],
            source=leaf["source"],
            captured_at=dt.datetime.fromisoformat(leaf["captured_at"]),
            status=Status.FINAL,
            detections=Detections(),
            confidence=1.0,
            tier=Tier.REGION,
            site="region-1",
            rank=RANK[Tier.REGION],
            generation=0,
            model="large",
            model_digest="a" * 64,
            evidence="b" * 64,
        )


def test_what_was_learned_survives_a_restart_and_a_rebalance(
    tools: ModuleType, site: Callable[..., Any], nanodet: Any, street: list[bytes]
) -> None:
    assert all(nanodet.look(jpeg).detections for jpeg in street), "the model sees people in each of them"
    leaf = site(link=AWAY, policy=EVERYTHING, ingress={"max_age_ms": 60_000}, evidence={"form": "frame", "side": 128, "quality": 20})
    reader = tools.Reader(leaf, "verdicts", "escalations")
    both = [next(name for n in range(50) if partition_of(name := f"cam-{n}", 2) == partition) for partition in range(2)]
    camera, region = tools.Camera(leaf, street, *both), Region(leaf)
    first = leaf.start("agent")

    def shoot(rounds: int) -> list[list[Any]]:
        """What the leaf says of some new frames of both cameras."""
        taken = camera.shoot(rounds)
        reader.until(lambda: set(taken) <= reader.ids("verdicts"), "they are answered")
        said = {verdict["id"]: verdict for verdict in reader.values("verdicts")}
        return [json.loads(said[each]["detections"]) for each in taken]

    assert all(shoot(1)), "nobody has taught it anything"
    quiet = 0
    for _ in range(60):
        said = shoot(len(street))
        reader.until(lambda: set(camera.manifest) <= {_asked(each) for each in reader.records["escalations"]}, "they are asked about")
        region.answer(reader.values("verdicts"))
        quiet = 0 if any(said) else quiet + 1
        if quiet == 2:  # whichever of the pictures it is shown
            break
    assert quiet == 2, "it has learned that nothing is there"

    second = leaf.start("agent")
    reader.until(lambda: _partitions(leaf.log(first)) == _partitions(leaf.log(second)) == 1, "two workers share the partitions")
    assert not any(shoot(1)), "whoever has a camera now knows what was learned of it"
    assert "what was learned is taken up" in leaf.log(second)
    for agent in (first, second):
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(tools.WORKER_LIMIT_S) == 0, leaf.logs()

    third = leaf.start("agent")
    assert not any(shoot(1)), "a process that starts knows what was learned before it"
    assert "what was learned is taken up" in leaf.log(third)
    for verdict in reader.values("verdicts"):
        assert verdict["seen"], "what the model sees is told all the same"
    reader.close()


def _asked(message: Any) -> str:
    return str(json.loads(dict(message.headers() or [])["escalation"])["records"][0]["id"])


def _partitions(log: str) -> int:
    found = [line for line in log.splitlines() if "headwater.batches: partitions assigned" in line]
    return int(found[-1].rsplit("partitions=", 1)[1]) if found else 0
