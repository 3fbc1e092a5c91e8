"""Faults of a camera's picture, on a camera that the test draws: what happens in front of it is known, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.drift.change import Change
from agents.drift.pictures import HOLD, SETTLE, WARM, Pictures, PicturesState
from agents.drift.traits import traits
from infra.degrade import KINDS, Degradation, Degrader
from schemas.drift import Cause

Picture = NDArray[np.uint8]
WIDTH, HEIGHT, FPS = 200, 150, 4.0
NAMED = {"blur": Cause.BLUR, "darkness": Cause.BRIGHTNESS, "noise": Cause.NOISE, "moved": Cause.VIEW, "frozen": Cause.FROZEN}


@cache
def place(seed: int) -> NDArray[np.float32]:
    """What stands before a camera: detail of all sizes."""
    random = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH), 120, np.float32)
    for size in (3, 8, 25, 60):
        coarse = random.standard_normal((HEIGHT // size + 2, WIDTH // size + 2)).astype(np.float32)
        picture += 20 * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255)


def camera(seconds: float, *, seed: int = 1, fps: float = FPS, people: int = 4, begin_s: float = 0.0) -> Iterator[tuple[float, Picture]]:
    """Frames with people who walk about, and the noise of a sensor."""
    random = np.random.default_rng(round(begin_s * 7) + 1)
    for index in range(round(seconds * fps)):
        at = begin_s + index / fps
        picture = place(seed).copy()
        for person in range(people):
            x, y = int((at * (7 + 3 * person) + 53 * person) % (WIDTH - 16)), 25 * person % (HEIGHT - 40)
            picture[y : y + 36, x : x + 14] = 40 + 40 * person
        picture += 1.5 * random.standard_normal(picture.shape, np.float32)
        yield at, cv2.cvtColor(np.clip(picture, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)


def watch(
    pictures: Pictures, frames: Iterator[tuple[float, Picture]], change: Callable[[Picture, float], Picture] | None = None
) -> list[Change]:
    return [told for at, picture in frames for told in pictures.feed(at, traits(picture if change is None else change(picture, at)))]


def degraded(text: str, seconds: float, **how: float) -> list[Change]:
    return watch(Pictures(), camera(seconds, **how), Degrader(Degradation.parse(text)))


def causes(told: list[Change]) -> list[tuple[Cause, bool]]:
    return [(change.cause, change.opened) for change in told]


# ---- each fault


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fps", [FPS, 12.0])
def test_each_fault_is_named_within_10_s_and_over_when_it_is(name: str, fps: float) -> None:
    told = degraded(f"{name}@20-35", 42, fps=fps)
    assert causes(told) == [(NAMED[name], True), (NAMED[name], False)]
    assert told[0].at - 20 <= 10
    assert told[1].recovered
    assert told[1].at - 35 <= 5
    assert told[0].before == told[1].before or name == "frozen"


@pytest.mark.parametrize(
    "text", ["blur=0.03@20-35", "darkness=0.5@20-35", "darkness=0.95@20-35", "noise=60@20-35", "moved=0.05@20-35", "moved=0.4@20-35"]
)
def test_faults_of_other_strengths(text: str) -> None:
    told = degraded(text, 42)
    name = text.partition("=")[0]
    assert causes(told) == [(NAMED[name], True), (NAMED[name], False)]


def test_by_how_much_is_told() -> None:
    (dark, _) = degraded("darkness=0.6@20-35", 42)
    assert dark.after / dark.before == pytest.approx(0.4, abs=0.03)
    (moved, _) = degraded("moved=0.1@20-35", 42)
    assert (moved.evidence["shift_right"], moved.evidence["shift_down"]) == (pytest.approx(-0.1, abs=0.03), pytest.approx(-0.067, abs=0.03))
    assert moved.before > 0.8 > 0.5 > moved.after
    (noisy, _) = degraded("noise=30@20-35", 42)
    assert noisy.after > 2 * noisy.before


def test_a_covered_camera_is_dark_and_not_frozen_and_stays_so() -> None:
    told = degraded("darkness=1@20", 20 + SETTLE + 40)
    assert causes(told) == [(Cause.BRIGHTNESS, True)]


def test_a_stronger_fault_is_told_of_while_a_weaker_one_is_open() -> None:
    pictures, blurred = Pictures(), Degrader(Degradation.parse("blur@20"))
    dark = Degrader(Degradation.parse("darkness@40"))
    told = watch(pictures, camera(60), lambda picture, at: dark(blurred(picture, at), at))
    assert causes(told) == [(Cause.BLUR, True), (Cause.BRIGHTNESS, True)]


# ---- what is no fault


def test_nothing_is_told_of_people_and_noise() -> None:
    assert watch(Pictures(), camera(120, people=7)) == []


@pytest.mark.parametrize(("share", "seconds"), [(0.4, 30), (0.9, 4)])
def test_a_lorry_in_front_of_the_camera(share: float, seconds: int) -> None:
    def lorry(picture: Picture, at: float) -> Picture:
        if 30 <= at < 30 + seconds:
            picture[:, : int(share * WIDTH)] = (60, 90, 200)
        return picture

    assert watch(Pictures(), camera(80), lorry) == []


def test_dusk_is_no_alarm() -> None:
    def dusk(picture: Picture, at: float) -> Picture:
        return np.asarray(cv2.convertScaleAbs(picture, alpha=1 - 0.7 * min(1, at / 1800)), np.uint8)

    assert watch(Pictures(), camera(2000, fps=1), dusk) == []


def test_a_camera_that_is_always_turning_has_no_view_to_lose() -> None:
    def turning() -> Iterator[tuple[float, Picture]]:
        for turn in range(20):
            yield from camera(4, seed=turn % 3, begin_s=4.0 * turn)

    assert Cause.VIEW not in {change.cause for change in watch(Pictures(), turning())}


def test_a_fault_that_is_short_is_none() -> None:
    assert degraded(f"darkness@20-{20 + HOLD - 2}", 40) == []


def test_a_clock_that_is_set_back_hurts_nothing() -> None:
    pictures = Pictures()
    assert watch(pictures, camera(20, begin_s=5000)) == []
    assert watch(pictures, camera(20)) == []


# ---- a new level


def test_a_camera_that_stays_where_it_was_moved_to_has_a_new_usual_view() -> None:
    pictures, moved = Pictures(), Degrader(Degradation.parse("moved@20-400"))
    told = watch(pictures, camera(20 + SETTLE + 30, fps=2), moved)
    assert causes(told) == [(Cause.VIEW, True), (Cause.VIEW, False)]
    assert not told[1].recovered
    assert SETTLE <= told[1].at - told[0].at <= SETTLE + 10
    assert watch(pictures, camera(60, fps=2, begin_s=300), moved) == []
    back = watch(pictures, camera(30, fps=2, begin_s=400), moved)
    assert causes(back) == [(Cause.VIEW, True)]


def test_before_anything_is_usual_nothing_is_told() -> None:
    assert degraded("blur@3", 40) == []
    assert WARM > 3


# ---- restart


@given(
    st.lists(st.tuples(st.sampled_from([None, "blur", "darkness", "noise", "moved", "frozen"]), st.integers(1, 30)), max_size=6),
    st.integers(0, 200),
)
@settings(max_examples=25, deadline=None)
def test_a_restart_changes_nothing(parts: list[tuple[str | None, int]], cut: int) -> None:
    frames: list[tuple[float, Picture]] = []
    for name, seconds in [(None, 12), *parts, (None, 10)]:
        begin_s = float(len(frames))
        change = None if name is None else Degrader(Degradation(name=name, strength=KINDS[name].default))
        frames += [(at, picture if change is None else change(picture, at)) for at, picture in camera(seconds, fps=1, begin_s=begin_s)]

    def run(restart: int | None) -> tuple[list[list[Change]], bytes]:
        pictures, told = Pictures(), []
        for index, (at, picture) in enumerate(frames):
            if index == restart:
                pictures = Pictures(msgspec.json.decode(msgspec.json.encode(pictures.state()), type=PicturesState))
            told.append(pictures.feed(at, traits(picture)))
        return told, msgspec.json.encode(pictures.state())

    assert run(None) == run(cut % len(frames))


def test_a_restart_every_few_seconds_of_a_camera_that_was_moved() -> None:
    def run(every: int) -> list[Change]:
        pictures, told = Pictures(), []
        for at, picture in camera(20 + SETTLE + 40, fps=1):
            if at % every == 0:
                pictures = Pictures(pictures.state())
            told += pictures.feed(at, traits(moved(picture, at)))
        return told

    moved = Degrader(Degradation.parse("moved@20"))
    assert run(7) == run(1000)
    assert len(run(7)) == 2


def test_what_is_remembered_is_bounded_and_a_copy() -> None:
    pictures = Pictures()
    watch(pictures, camera(20))
    state = pictures.state()
    kept = msgspec.json.encode(state)
    assert len(kept) < 50_000
    watch(pictures, camera(100, begin_s=20), Degrader(Degradation.parse("moved@30")))
    assert msgspec.json.encode(state) == kept
    assert len(msgspec.json.encode(pictures.state())) < 50_000
