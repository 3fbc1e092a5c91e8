"""Faults of a camera put into the demo's real video: noticed within 10 s, named, asked about, and over when they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.drift.asks import Asks
from agents.drift.monitor import StreamMonitor
from agents.drift.traits import traits
from infra import assets
from infra.bench.drift import NAMED, decoded, played, watch_video
from infra.degrade import Degradation, Degrader
from schemas.drift import DriftState

FPS = 10.0
FRAMES = 795
BEGINS_S, ENDS_S = 15.0, 27.0


@pytest.fixture(scope="module")
def video() -> Path:
    (video,) = assets.fetch(assets.VIDEO)
    return video


@pytest.mark.parametrize("fps", [FPS, 30.0])
def test_the_video_as_it_is_raises_no_alarm(video: Path, fps: float) -> None:
    assert watch_video(video, fps, 2 * FRAMES / fps, None) == []


@pytest.mark.parametrize("name", NAMED)
def test_a_fault_is_noticed_named_and_over(video: Path, name: str) -> None:
    monitor, degrader = StreamMonitor("cam-1", "leaf-1"), Degrader(Degradation.parse(f"{name}@{BEGINS_S}-{ENDS_S}"))
    told, asked = [], {}
    for index, frame in enumerate(played(video, 350)):
        at = index / FPS
        told += monitor.frame(at, traits(decoded(degrader(frame, at))))
        told += monitor.tick(at)
        asked[index] = monitor.asks(at)
    opened, closed = told
    assert opened.cause is closed.cause is NAMED[name]
    assert (opened.state, closed.state, opened.id) == (DriftState.OPENED, DriftState.CLOSED, closed.id)
    assert BEGINS_S <= opened.at.timestamp() <= BEGINS_S + 10
    assert ENDS_S <= closed.at.timestamp() <= ENDS_S + 5
    assert closed.evidence["recovered"] == 1
    assert asked[140] == asked[349] == Asks()
    during = asked[int(ENDS_S * FPS) - 10]
    assert during == Asks() if name == "frozen" else (during.budget > 1 and during.audits > 1 and during.calibration_since is not None)


def test_a_camera_that_stops_is_silent(video: Path) -> None:
    monitor = StreamMonitor("cam-1", "leaf-1")
    for index, frame in enumerate(played(video, 100)):
        assert monitor.frame(index / FPS, traits(decoded(frame))) == []
    told = [drift for tenth in range(100, 200) for drift in monitor.tick(tenth / FPS)]
    assert [drift.cause for drift in told] == ["silent"]
    assert told[0].at.timestamp() <= 20
