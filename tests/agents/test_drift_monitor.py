"""One stream's monitor: answers over hours, alarms as records, and what they ask of the cascade."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.drift.answers import Answers, AnswersState
from agents.drift.asks import ASKS, WIDEN_S, Asks, asks
from agents.drift.change import Change
from agents.drift.monitor import MonitorState, StreamMonitor
from agents.drift.traits import traits
from schemas.detections import Detection, Detections
from schemas.drift import Cause, Drift, DriftState

DAY = 1_769_860_800.0  # 2026-01-31 12:00 UTC
HOUR = 36_000  # frames


def answers(seed: int, frames: int, *, score: float = 0.7, people: float = 4.0, cars: float = 0.3) -> Iterator[Detections]:
    """Answers to frames: some people, and now and then a car."""
    random = np.random.default_rng(seed)
    numbers, others = random.poisson(people, frames), random.poisson(people * cars / (1 - cars), frames)
    scores = np.clip(score + 0.1 * random.standard_normal((frames, 24)), 0, 1)
    for row, number, other in zip(scores, numbers, others, strict=True):
        labels = ["person"] * int(number) + ["car"] * int(other)
        yield Detections(Detection(label, float(value), 0, 0, 1, 1) for label, value in zip(labels[:24], row, strict=False))


def told(watch: Answers, given: Iterator[Detections]) -> list[Change]:
    return [change for detections in given for change in watch.answered(0.0, detections)]


# ---- answers


@pytest.fixture(scope="module")
def known() -> AnswersState:
    """A stream that is known."""
    watch = Answers()
    assert told(watch, answers(1, HOUR)) == []
    assert watch.armed == (Cause.CONFIDENCE, Cause.COUNT, Cause.CLASSES)
    return watch.state()


@pytest.mark.parametrize(
    ("how", "cause", "before", "after"),
    [
        ({"score": 0.55}, Cause.CONFIDENCE, 0.7, 0.55),
        ({"people": 8.0}, Cause.COUNT, 5.7, 11.4),
        ({"people": 1.0, "cars": 0.3}, Cause.COUNT, 5.7, 1.43),
        ({"people": 2.0, "cars": 0.65}, Cause.CLASSES, 0.3, 0.65),
    ],
)
def test_what_moved_is_named(known: AnswersState, how: dict[str, float], cause: Cause, before: float, after: float) -> None:
    found = told(Answers(known), answers(2, 6000, **how))
    opened = [change for change in found if change.opened]
    assert [change.cause for change in opened] == [cause]
    share = 1.0 if cause is not Cause.CLASSES or "share of car before" in opened[0].evidence else -1.0  # whichever share moved first
    assert opened[0].before == pytest.approx(before if share > 0 else 1 - before, rel=0.1)
    assert opened[0].after == pytest.approx(after if share > 0 else 1 - after, rel=0.3)
    assert opened[0].evidence["batches"] >= 1


def test_it_closes_at_the_new_level_and_opens_again_on_the_way_back(known: AnswersState) -> None:
    watch = Answers(known)
    found = told(watch, answers(3, 12_000, score=0.5))
    assert [(change.cause, change.opened, change.recovered) for change in found] == [
        (Cause.CONFIDENCE, True, False),
        (Cause.CONFIDENCE, False, False),
    ]
    assert found[1].after == pytest.approx(0.5, abs=0.02)
    assert [change.opened for change in told(watch, answers(4, 12_000, score=0.7))] == [True, False]


def test_a_mix_that_is_as_it_was_has_recovered(known: AnswersState) -> None:
    watch = Answers(known)
    moved = [change for change in told(watch, answers(8, 200, people=2.0, cars=0.65)) if change.cause is Cause.CLASSES]
    watch = Answers(watch.state())
    back = [change for change in told(watch, answers(9, 12_000)) if change.cause is Cause.CLASSES]
    assert [(change.opened, change.recovered) for change in (*moved, *back)] == [(True, False), (False, True)]
    watch = Answers(known)
    stays = [change for change in told(watch, answers(10, 6000, people=2.0, cars=0.65)) if change.cause is Cause.CLASSES]
    again = [change for change in told(Answers(watch.state()), answers(11, 12_000)) if change.cause is Cause.CLASSES]
    assert [(change.opened, change.recovered) for change in (*stays, *again)] == [(True, False), (False, False)] * 2


def test_a_new_class_is_a_new_mix(known: AnswersState) -> None:
    watch = Answers(known)
    dogs = (Detections([*each][:12] + [Detection("dog", 0.7, 0, 0, 1, 1)] * 5) for each in answers(5, 12_000))
    found = [change for change in told(watch, dogs) if change.cause is Cause.CLASSES]
    assert [change.opened for change in found] == [True, False]
    assert not found[1].recovered
    assert "dog" in watch.state().shares


def test_audits_that_agree_less() -> None:
    random, watch = np.random.default_rng(6), Answers()
    agreed = random.beta(9, 1, 1500).tolist() + random.beta(6, 3, 400).tolist()
    found = [change for agreement in agreed for change in watch.audited(0.0, agreement)]
    assert (found[0].cause, found[0].opened) == (Cause.AGREEMENT, True)
    assert found[0].before == pytest.approx(0.9, abs=0.03)


def test_frames_without_detections_have_a_count_and_no_confidence() -> None:
    watch = Answers()
    assert told(watch, iter([Detections()] * 30_000)) == []
    assert watch.armed == (Cause.COUNT,)


def test_however_many_classes_there_are_three_are_watched_and_a_few_are_counted() -> None:
    watch = Answers()
    names = (Detections([Detection(f"class {index % 500}", 0.5, 0, 0, 1, 1), Detection("car", 0.5, 0, 0, 1, 1)]) for index in range(40_000))
    told(watch, names)
    state = watch.state()
    assert len(state.shares) == 3
    assert len(state.labels) <= 64
    assert "car" in state.shares


# ---- the monitor


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def test_an_alarm_is_two_records_with_one_id() -> None:
    monitor = StreamMonitor("cam-1", "leaf-1")
    for index in range(100):
        assert monitor.frame(DAY + index / 10, None) == []
    assert monitor.tick(DAY + 11) == []
    (opened,) = monitor.tick(DAY + 15)
    assert monitor.open == (Cause.SILENT,)
    (closed,) = monitor.frame(DAY + 30, None)
    assert monitor.open == ()
    assert (opened.id, opened.source, opened.site, opened.cause) == (closed.id, "cam-1", "leaf-1", Cause.SILENT)
    assert (opened.state, closed.state) == (DriftState.OPENED, DriftState.CLOSED)
    assert opened.opened_at == closed.opened_at == opened.at == dt.datetime(2026, 1, 31, 12, 0, 15, tzinfo=dt.UTC)
    assert closed.at == dt.datetime(2026, 1, 31, 12, 0, 30, tzinfo=dt.UTC)
    assert closed.evidence["recovered"] == 1
    for record in (opened, closed):
        assert Drift.from_bytes(record.to_bytes()) == record


def test_the_end_of_a_source_ends_its_silence() -> None:
    monitor = StreamMonitor("cam-1", "leaf-1")
    for index in range(100):
        monitor.frame(DAY + index / 10, None)
    monitor.tick(DAY + 60)
    (closed,) = monitor.ended(DAY + 70)
    assert closed.state is DriftState.CLOSED
    assert monitor.tick(DAY + 900) == []


def frozen(monitor: StreamMonitor, begin_s: float) -> list[Drift]:
    found = []
    for index in range(100):
        found += monitor.frame(begin_s + index / 10, traits(picture(index)))
    for index in range(80):
        found += monitor.frame(begin_s + 10 + index / 10, traits(picture(7)))
    return found


def test_a_frozen_or_silent_camera_asks_for_nothing() -> None:
    monitor = StreamMonitor("cam-1", "leaf-1")
    (opened,) = frozen(monitor, DAY)
    assert opened.cause is Cause.FROZEN
    assert monitor.asks(DAY + 20) == Asks()


def test_what_a_moved_camera_asks_for_and_for_how_long() -> None:
    monitor = StreamMonitor("cam-1", "leaf-1")
    assert monitor.asks(DAY) == Asks()
    one, other = picture(1), picture(2)
    found = []
    for second in range(200):
        scene = one if second < 30 else other
        dot = scene.copy()
        dot[0, 0] = second
        found += monitor.frame(DAY + second, traits(dot))
    assert [(drift.cause, drift.state) for drift in found] == [(Cause.VIEW, DriftState.OPENED), (Cause.VIEW, DriftState.CLOSED)]
    opened_at, closed_at = (drift.at.timestamp() for drift in found)
    ask = ASKS[Cause.VIEW]
    state = StreamMonitor("cam-1", "leaf-1")
    for second in range(200):
        scene = one if second < 30 else other
        dot = scene.copy()
        dot[0, 0] = second
        state.frame(DAY + second, traits(dot))
        now = DAY + second
        asked = state.asks(now)
        if now < opened_at:
            assert asked == Asks()
        elif now < closed_at:
            assert asked.audits == ask.audits > 1
            assert asked.budget == (ask.budget if now < opened_at + WIDEN_S else 1.0)
            assert asked.calibration_since == opened_at
        else:
            assert asked == Asks(calibration_since=opened_at)  # it is stable at another level: the old calibration does not come back


def test_more_looks_are_asked_for_only_for_a_while() -> None:
    opened = [(Cause.CONFIDENCE, DAY), (Cause.COUNT, DAY + 50)]
    assert asks(opened, DAY + 100, None) == Asks(budget=2, audits=4, calibration_since=DAY)
    assert asks(opened, DAY + 50 + WIDEN_S, None) == Asks(audits=4, calibration_since=DAY)
    assert asks(opened[1:], DAY + 60, DAY - 9) == Asks(budget=2, audits=2, calibration_since=DAY - 9)
    assert asks([], DAY, DAY - 9) == Asks(calibration_since=DAY - 9)


def test_a_camera_that_is_as_it_was_has_its_calibration_back() -> None:
    monitor = StreamMonitor("cam-1", "leaf-1")
    one, dark = picture(1), picture(1) // 4
    for second in range(60):
        dot = (dark if 30 <= second < 45 else one).copy()
        dot[0, 0] = second
        monitor.frame(DAY + second, traits(dot))
        if second == 40:
            assert monitor.asks(DAY + second).calibration_since is not None
    assert monitor.open == ()
    assert monitor.asks(DAY + 60) == Asks()


# ---- restart

EVENTS = st.lists(
    st.tuples(st.sampled_from(["frame", "same", "blind", "answer", "audit", "tick", "ended"]), st.floats(0.05, 9.0), st.integers(0, 50)),
    max_size=80,
)


@given(EVENTS, st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_a_restart_changes_nothing(events: list[tuple[str, float, int]], cut: int) -> None:
    script = [("frame", 1.0, number) for number in range(20)] + events

    def step(monitor: StreamMonitor, what: str, at: float, number: int) -> list[Drift]:
        match what:
            case "frame":
                return monitor.frame(at, traits(picture(number)))
            case "same":
                return monitor.frame(at, traits(picture(7)))
            case "blind":
                return monitor.frame(at, None)
            case "answer":
                return monitor.answer(at, Detections([Detection("person", number / 50, 0, 0, 1, 1)] * (number % 4)))
            case "audit":
                return monitor.audit(at, number / 50)
            case "tick":
                return monitor.tick(at)
        return monitor.ended(at)

    def run(restart: int | None) -> tuple[list[list[Drift]], list[Asks], bytes]:
        monitor, at, found, asked = StreamMonitor("cam-1", "leaf-1"), DAY, [], []
        for index, (what, gap_s, number) in enumerate(script):
            if index == restart:
                kept = msgspec.json.encode(monitor.state())
                monitor = StreamMonitor("cam-1", "leaf-1", msgspec.json.decode(kept, type=MonitorState))
            at += gap_s
            found.append(step(monitor, what, at, number))
            asked.append(monitor.asks(at))
        return found, asked, msgspec.json.encode(monitor.state())

    assert run(None) == run(cut % len(script))


def test_answers_go_on_after_a_restart(known: AnswersState) -> None:
    one, other = Answers(known), Answers(msgspec.json.decode(msgspec.json.encode(known), type=AnswersState))
    given = list(answers(7, 8000, score=0.55, people=2.0))
    found = told(one, iter(given))
    half = told(other, iter(given[:3000]))
    other = Answers(msgspec.json.decode(msgspec.json.encode(other.state()), type=AnswersState))
    assert found == half + told(other, iter(given[3000:]))
    assert len(found) >= 3


def test_what_is_remembered_is_bounded(known: AnswersState) -> None:
    assert len(msgspec.json.encode(known)) < 60_000
