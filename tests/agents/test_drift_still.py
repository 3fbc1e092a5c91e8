"""Silent and frozen cameras, by the source's own rhythm."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.drift.change import Change
from agents.drift.silence import Silence, SilenceState
from agents.drift.stillness import Stillness, StillnessState
from schemas.drift import Cause


def heard(gap_s: float, frames: int = 100) -> tuple[Silence, float]:
    silence = Silence()
    for index in range(frames):
        assert silence.arrived(index * gap_s) is None
    return silence, (frames - 1) * gap_s


# ---- silent


@pytest.mark.parametrize("fps", [10, 15, 30])
def test_silence_is_told_within_seconds_and_once(fps: int) -> None:
    silence, last = heard(1 / fps)
    told = [(now, change) for now in np.arange(last, last + 20, 0.5) if (change := silence.tick(float(now))) is not None]
    assert len(told) == 1
    now, change = told[0]
    assert now - last <= 3
    assert (change.cause, change.opened, change.before) == (Cause.SILENT, True, pytest.approx(1 / fps, rel=0.01))
    assert change.after == pytest.approx(now - last, abs=0.01)


def test_it_is_over_with_the_next_frame() -> None:
    silence, last = heard(0.1)
    assert silence.tick(last + 5) is not None
    change = silence.arrived(last + 65)
    assert change is not None
    assert (change.opened, change.recovered, change.evidence["silent_s"]) == (False, True, 65)
    assert silence.tick(last + 66) is None
    assert silence.limit_s == 2  # the gap taught it nothing


def test_a_silence_that_no_tick_came_upon_teaches_it_nothing() -> None:
    silence, last = heard(0.1)
    assert silence.arrived(last + 600) is None
    assert silence.limit_s == 2


def test_a_slow_camera_is_not_silent() -> None:
    silence, last = heard(60)
    assert silence.tick(last + 400) is None
    assert silence.tick(last + 500) is not None


def test_a_source_that_stutters_is_not_silent_when_it_does_again() -> None:
    silence, at = Silence(), 0.0
    for _ in range(20):
        for _ in range(20):
            silence.arrived(at)
            at += 0.1
        at += 1.8
        assert silence.tick(at) is None
    assert silence.tick(at + 3) is None
    assert silence.tick(at + 6) is not None


def test_a_source_without_a_rhythm_is_never_silent() -> None:
    silence = Silence()
    assert silence.tick(1e9) is None
    silence.arrived(0)
    silence.arrived(1)
    assert silence.tick(1e9) is None


def test_a_source_that_ends_is_not_silent() -> None:
    silence, last = heard(0.1)
    assert silence.ended(last) is None
    assert silence.tick(last + 1000) is None
    silence, last = heard(0.1)
    assert silence.tick(last + 10) is not None
    change = silence.ended(last + 11)
    assert change is not None
    assert not change.opened


def test_a_clock_that_is_set_back() -> None:
    silence, last = heard(0.1)
    assert silence.arrived(last - 3600) is None
    assert silence.tick(last - 3600 + 1) is None
    assert silence.tick(last - 3600 + 3) is not None


@given(st.lists(st.tuples(st.floats(0.01, 20), st.booleans()), max_size=60), st.integers(0, 60))
@settings(deadline=None)
def test_a_restart_changes_nothing_about_silence(steps: list[tuple[float, bool]], cut: int) -> None:
    def run(restart: int | None) -> list[Change | None]:
        silence, at, told = Silence(), 0.0, []
        for index, (gap, frame) in enumerate([(0.1, True)] * 10 + steps):
            if index == restart:
                silence = Silence(msgspec.json.decode(msgspec.json.encode(silence.state), type=SilenceState))
            at += gap
            told.append(silence.arrived(at) if frame else silence.tick(at))
        return told

    assert run(None) == run(cut)


# ---- frozen


def play(watch: Stillness, numbers: list[int], fps: float = 10.0, begin_s: float = 0.0, flat: bool = False) -> list[Change]:
    told = [watch.feed(begin_s + index / fps, number, flat=flat)[1] for index, number in enumerate(numbers)]
    return [change for change in told if change is not None]


@pytest.mark.parametrize("fps", [10, 15, 30])
def test_a_picture_that_stands_still_is_told_within_10_s(fps: int) -> None:
    watch = Stillness()
    assert play(watch, list(range(20 * fps)), fps) == []
    (change,) = play(watch, [7] * (10 * fps), fps, 20.0)
    assert (change.cause, change.opened, change.before, change.after) == (Cause.FROZEN, True, 1.0, 0.0)
    assert 5 <= change.at - 20 <= 6
    (change,) = play(watch, [8, 9], fps, 30.0)
    assert (change.opened, change.recovered, change.at) == (False, True, 30.0)


def test_a_camera_that_has_never_moved() -> None:
    (change,) = play(Stillness(), [7] * 100)
    assert 8 <= change.at <= 8.2


def test_each_picture_twice_is_not_frozen() -> None:
    watch = Stillness()
    assert play(watch, [index // 2 for index in range(600)]) == []
    assert watch.state.new == pytest.approx(0.5, abs=0.01)


def test_a_scene_that_is_often_still_is_given_more_time() -> None:
    watch = Stillness()
    still = [index // 40 for index in range(400)]  # 4 s each
    assert play(watch, still) == []
    assert watch.limit_s == pytest.approx(12, abs=0.5)
    assert play(watch, [99] * 100, begin_s=40.0) == []


def test_a_few_frames_of_a_slow_camera_are_not_enough() -> None:
    watch = Stillness()
    assert play(watch, list(range(20)), fps=0.1) == []
    assert play(watch, [7] * 4, fps=0.1, begin_s=200) == []


def test_under_a_cap_it_is_still_for_another_cause() -> None:
    watch = Stillness()
    assert play(watch, list(range(100))) == []
    assert play(watch, [7] * 200, begin_s=10, flat=True) == []


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(0, 140))
@settings(deadline=None)
def test_a_restart_changes_nothing_about_stillness(numbers: list[int], cut: int) -> None:
    def run(restart: int | None) -> list[tuple[bool, Change | None]]:
        watch, told = Stillness(), []
        for index, number in enumerate([1, 2, 3, *numbers, *[5] * 20, 6]):
            if index == restart:
                watch = Stillness(msgspec.json.decode(msgspec.json.encode(watch.state), type=StillnessState))
            told.append(watch.feed(index * 0.7, number, flat=False))
        return told

    assert run(None) == run(cut)
