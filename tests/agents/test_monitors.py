"""Drift on a leaf: cameras that go bad in the middle of a stream of real frames, what is told of it, and what it changes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from agents.cascade.stream import FAINT_FROM
from agents.inference.detector import Detector, load
from infra.assets.models import ready_models
from infra.degrade import Degradation, Degrader
from schemas.config import Audit, Engine, Evidence, Policy
from schemas.config import Detector as Settings
from schemas.detections import Detections
from schemas.drift import Cause, Drift, DriftState
from schemas.messages import RANK, Status, Tier, Verdict

Make = Callable[..., Any]
FPS = 10


@pytest.fixture(scope="module")
def watching() -> Detector:
    settings = Settings()
    return load(settings, Engine(), ready_models([settings]), faint_from=FAINT_FROM)


class Shift:
    """A leaf's shift: frames of one camera, ten a second by the broker's clock."""

    def __init__(self, tools: ModuleType, desk: Any, street: list[bytes]) -> None:
        self.tools, self.desk, self.number = tools, desk, 0
        self.pictures = [np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8) for jpeg in street]
        self.asked = 0

    def play(self, seconds: float, degrader: Degrader | None = None) -> list[Drift]:
        told: list[Drift] = []
        for _ in range(round(seconds * FPS)):
            picture = self.pictures[self.number % len(self.pictures)]
            if degrader is not None:
                picture = degrader(picture, 1.0)
            frame = self.tools.frame("cam", self.number, jpeg=bytes(cv2.imencode(".jpg", picture)[1]))
            self.desk.clock.ms += 1000 / FPS
            self.desk.seconds += 1 / FPS
            (items,) = self.desk.run([self.desk.record(frame)])
            self.asked += sum(output.topic.base.startswith("escalations") for output in self.tools.outputs_of(items))
            told += self.tools.values(items, "drift", Drift)
            self.number += 1
        return told


@pytest.mark.parametrize("fault", ["blur", "darkness", "noise", "moved"])
def test_a_camera_that_goes_bad_is_told_of_and_closed_when_it_is_well(
    tools: ModuleType, bench: Make, watching: Detector, street: list[bytes], fault: str
) -> None:
    shift = Shift(tools, bench(watching, link=None), street)
    assert shift.play(12) == []
    told = shift.play(10, Degrader(Degradation.parse(f"{fault}@0")))
    cause = {"darkness": "brightness", "moved": "view"}.get(fault, fault)
    assert [(each.cause, each.state) for each in told] == [(cause, DriftState.OPENED)]
    assert told[0].opened_at.timestamp() * 1000 == pytest.approx(shift.desk.clock.ms, abs=10_000), "by the broker's clock"
    after = shift.play(10)
    assert [(each.id, each.state) for each in after] == [(told[0].id, DriftState.CLOSED)]


def test_ten_pictures_a_second_are_measured_of_each_camera(tools: ModuleType, bench: Make, watching: Detector) -> None:
    monitors = bench(watching, link=None).leaf.monitors
    wanted = [(monitors.wants("fast", 100 + number / 30), monitors.wants("slow", 100 + number / 5)) for number in range(90)]
    assert sum(fast for fast, _ in wanted) == 30
    assert all(slow for _, slow in wanted)
    assert monitors.wants("fast", 50.0), "a clock was set back"


def test_a_silent_camera_is_told_of_and_comes_back(tools: ModuleType, bench: Make, watching: Detector, street: list[bytes]) -> None:
    shift = Shift(tools, bench(watching, link=None), street)
    assert shift.play(12) == []
    assert shift.desk.leaf.tick() == []
    shift.desk.clock.ms += 20_000
    (output,) = shift.desk.leaf.tick()
    silent = Drift.from_bytes(output.value)
    assert (silent.cause, silent.state) == (Cause.SILENT, DriftState.OPENED)
    assert shift.desk.leaf.tick() == [], "it is told of once"
    back = shift.play(0.1)
    assert [(each.id, each.state) for each in back] == [(silent.id, DriftState.CLOSED)]


def test_a_stream_that_drifts_is_learned_anew_and_audited_more(
    tools: ModuleType, bench: Make, watching: Detector, street: list[bytes]
) -> None:
    desk = bench(
        watching,
        teach=True,
        audit=Audit(rate=0.05),
        policy=Policy(inferences_per_s=1000.0, budget_bytes_per_s=1 << 30),
        evidence=Evidence(form="frame", side=64),
    )
    shift = Shift(tools, desk, street)
    shift.play(12)
    frame = tools.frame("cam", shift.number - 1)
    desk.leaf.hear(verdict(frame))
    assert desk.cascade.lessons()["cam"].verdicts == 1
    assert desk.leaf.audits.live().missing > 0, "some frames were drawn"
    before = desk.cascade._sources["cam"].stream.calibrator
    told = shift.play(10, Degrader(Degradation.parse("darkness@0")))
    assert [each.cause for each in told] == [Cause.BRIGHTNESS]
    of = desk.cascade._sources["cam"]
    assert of.stream.calibrator is not before, "what it learned was about another picture"
    assert of.claim == 2.0
    shift.play(6, Degrader(Degradation.parse("darkness@0")))  # the rates are set anew every five seconds
    assert desk.leaf.audits._rates["cam"] == pytest.approx(0.2)
    shift.play(16)
    assert of.claim == 1.0
    assert desk.leaf.audits._rates["cam"] == pytest.approx(0.05)


def test_a_stream_is_known_again_after_a_restart(tools: ModuleType, bench: Make, watching: Detector, street: list[bytes]) -> None:
    """Of a camera that went dark while nobody was there the first frames tell, since what is usual is remembered."""
    before, after = bench(watching, link=None), bench(watching, link=None)
    shift = Shift(tools, before, street)
    assert shift.play(12) == []
    state = before.leaf.monitors.dump("cam")
    assert state is not None
    after.leaf.monitors.load("cam", state)
    after.clock.ms = before.clock.ms
    shift.desk = after
    assert [each.cause for each in shift.play(8, Degrader(Degradation.parse("darkness@0")))] == [Cause.BRIGHTNESS]


def verdict(frame: Any) -> Verdict:
    return Verdict(
        id=str(frame.id),
        source=frame.source,
        captured_at=frame.captured_at,
        status=Status.FINAL,
        detections=Detections(),
        confidence=0.9,
        tier=Tier.REGION,
        site="region-1",
        rank=RANK[Tier.REGION],
        generation=0,
        model="large",
        model_digest="a" * 64,
        evidence="b" * 64,
    )
