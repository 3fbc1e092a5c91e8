"""Shifts of a level, on streams whose memory and shifts are known. The full size of what is shown here is `infra.bench.drift`'s."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river.drift import ADWIN

from agents.drift.answers import KINDS
from agents.drift.rhythm import Rhythm
from agents.drift.shifts import CAPACITY, SETTLE, Kind, Shift, Shifts, ShiftsState
from infra.bench import drift as bench
from infra.bench.drift_streams import bootstrap, crowd, fading, independent
from schemas.drift import Cause

CONFIDENCE = KINDS[Cause.CONFIDENCE]
QUICK = Kind(base=1, grain=0.005, least=0.05, horizon=2)  # known after 48 * 2**2 values


def noisy(level: float, count: int, seed: int = 0, deviation: float = 0.1) -> list[float]:
    return [float(value) for value in level + deviation * np.random.default_rng(seed).standard_normal(count)]


def told(shifts: Shifts, values: list[float]) -> list[tuple[int, Shift]]:
    return [(index, shift) for index, value in enumerate(values) if (shift := shifts.add(value)) is not None]


# ---- rhythm


@given(st.integers(0, 1000), st.sampled_from([1e-4, 1.0, 300.0]))
@settings(max_examples=20, deadline=None)
def test_the_variance_of_independent_batches_is_measured(seed: int, deviation: float) -> None:
    values, rhythm = deviation * np.random.default_rng(seed).standard_normal(16 * 600), Rhythm()
    for value in values.tolist():
        rhythm.add(value)
    for length in range(5):
        batches = values.reshape(-1, 1 << length).mean(1)
        assert rhythm.levels[length].variance == pytest.approx(float(np.var(batches)), rel=0.25)


def test_batches_that_a_value_completes() -> None:
    rhythm = Rhythm()
    assert [rhythm.add(float(value)) for value in range(1, 9)] == [
        [1],
        [2, 1.5],
        [3],
        [4, 3.5, 2.5],
        [5],
        [6, 5.5],
        [7],
        [8, 7.5, 6.5, 4.5],
    ]


def batch_of(stream: Iterator[NDArray[np.float64]], kind: Kind, frames: int) -> Shifts:
    shifts = Shifts(kind)
    for mean in islice(bench.means(stream, kind.base), frames // kind.base):
        assert shifts.add_mean(mean) is None
    return shifts


def test_independent_values_need_no_batches() -> None:
    assert batch_of(independent(np.random.default_rng(1)), CONFIDENCE, 400_000).batch == CONFIDENCE.base


@pytest.mark.parametrize("frames", [20, 80, 320])
def test_batches_are_as_long_as_the_memory(frames: int) -> None:
    shifts = batch_of(fading(np.random.default_rng(2), frames=frames), CONFIDENCE, 4000 * frames)
    assert frames <= shifts.batch <= 8 * frames
    means = np.array(shifts.state().means)
    assert np.corrcoef(means[1:], means[:-1])[0, 1] < 0.5


def test_a_loop_is_a_memory_too() -> None:
    period = 0.7 + 0.1 * np.sin(np.linspace(0, 2 * np.pi, 800, endpoint=False))
    shifts = Shifts(CONFIDENCE)
    for index in range(200_000):
        assert shifts.add(float(period[index % 800])) is None
    assert shifts.batch >= 256
    assert shifts.armed


def test_nothing_is_judged_before_the_rhythm_is_known() -> None:
    shifts = Shifts(QUICK)
    assert told(shifts, noisy(0.8, 120) + noisy(0.3, 70, 1)) == []
    assert not shifts.armed
    assert told(shifts, noisy(0.3, 400, 2)) == []
    assert shifts.armed


# ---- shifts


def test_adwin_alone_takes_a_memory_for_drift() -> None:
    """The reason for all this: the same stream, frame by frame and in batches."""
    stream = fading(np.random.default_rng(3), frames=60)
    values = np.concatenate([next(stream), next(stream)])
    alone, alarms = ADWIN(), 0
    for value in values[:200_000].tolist():
        alone.update(value)
        alarms += alone.drift_detected
    assert alarms > 100
    shifts = Shifts(CONFIDENCE)
    assert [shifts.add_mean(mean) for mean in values.reshape(-1, CONFIDENCE.base).mean(1).tolist()].count(None) == len(values) // 8
    assert shifts.judged > 1000


SERIES = 0.7 + 0.03 * np.sin(np.arange(800) / 47) + 0.02 * np.random.default_rng(9).standard_normal(800)
STREAMS = {
    "independent": independent,
    "fading": partial(fading, frames=40),
    "crowd": partial(crowd, stay_s=6, people=4),
    "pieces": partial(bootstrap, series=SERIES, block=100),
}


@pytest.mark.parametrize("name", STREAMS)
def test_no_false_alarm_in_some_thousand_batches(name: str) -> None:
    found = bench.false_alarms(name, STREAMS[name], batches=8000, seed=4)
    assert found.batches >= 8000
    assert found.alarms == 0
    assert found.correlation < 0.4


@pytest.mark.parametrize(("shift", "most"), [(0.175, 100), (0.1, 250)])
def test_a_lower_confidence_is_noticed_in_time(shift: float, most: int) -> None:
    for name, stream in STREAMS.items():
        delay = bench.delays(name, stream, shift=shift, trials=2, seed=5)
        assert delay.found == 2
        assert delay.most <= most
    delay = bench.delays_of_batches(shift, trials=10, seed=6)
    assert delay.found == 10
    assert delay.p50 <= most


@pytest.mark.parametrize("step", [0.3, -0.3])
def test_what_moved_and_by_how_much_and_that_it_is_over(step: float) -> None:
    shifts = Shifts(QUICK)
    assert told(shifts, noisy(0.5, 600)) == []
    found = told(shifts, noisy(0.5 + step, 200, 1))
    assert [shift.opened for _, shift in found] == [True, False]
    (opened_at, opened), (closed_at, closed) = found
    assert opened.before == pytest.approx(0.5, abs=0.02)
    assert opened.after - opened.before == pytest.approx(step, rel=0.4)
    assert closed.after == pytest.approx(0.5 + step, abs=0.05)
    assert closed_at - opened_at >= SETTLE
    assert not closed.recovered


def test_a_level_that_comes_back_has_recovered() -> None:
    shifts = Shifts(QUICK)
    found = told(shifts, noisy(0.5, 600) + noisy(0.9, 25, 1) + noisy(0.5, 300, 2))
    assert [(shift.opened, shift.recovered) for _, shift in found] == [(True, False), (False, True)]
    assert told(shifts, noisy(0.5, 600, 3)) == []


def test_a_shift_is_found_whenever_it_comes() -> None:
    """Also when the memory is full just then."""
    for age in range(600, 2400, 97):
        shifts = Shifts(QUICK)
        assert told(shifts, noisy(0.5, age, age)) == []
        assert told(shifts, noisy(0.58, 250, age + 1)), age


def test_a_shift_that_does_not_matter_is_not_told() -> None:
    shifts = Shifts(QUICK)
    assert told(shifts, noisy(0.5, 600, deviation=0.02) + noisy(0.53, 600, 1, deviation=0.02)) == []


def test_a_creeping_change_does_not_escape_by_small_steps() -> None:
    shifts, values = Shifts(QUICK), noisy(0.5, 600, deviation=0.02)
    for step in range(1, 9):
        values += noisy(0.5 - 0.02 * step, 300, step, deviation=0.02)
    found = told(shifts, values)
    assert found[0][1].opened
    assert found[0][1].after - found[0][1].before <= -0.05


def test_a_shift_does_not_itself_lengthen_the_batches() -> None:
    shifts = Shifts(QUICK)
    for part, level in enumerate((0.5, 0.9, 0.3, 0.5)):
        told(shifts, noisy(level, 3000, part))
        assert shifts.batch == 1


def test_batches_grow_with_the_memory_and_are_short_again_after_an_alarm() -> None:
    shifts = Shifts(QUICK)
    told(shifts, np.repeat(noisy(0.5, 600), 16).tolist())
    assert shifts.batch >= 16
    assert told(shifts, noisy(0.5, 60_000, 1)) == []
    assert shifts.batch >= 16
    assert [shift.opened for _, shift in told(shifts, noisy(0.9, 30_000, 2))] == [True, False]
    assert shifts.batch == 1
    assert [shift.opened for _, shift in told(shifts, noisy(0.5, 400, 3))] == [True, False]


def test_a_level_without_any_spread() -> None:
    shifts = Shifts(QUICK)
    assert told(shifts, [1.0] * 1000) == []
    assert [shift.opened for _, shift in told(shifts, [0.5] * 200)] == [True, False]


def test_what_matters_may_be_a_share_of_the_level() -> None:
    kind = Kind(base=1, grain=0.05, least=0.5, horizon=3, least_share=0.3)
    assert not kind.matters(10, 12.9)
    assert kind.matters(10, 13)
    assert not kind.matters(0, 0.4)


# ---- restart

PARTS = st.lists(
    st.tuples(st.sampled_from([0.2, 0.5, 0.52, 0.8]), st.sampled_from([1, 1, 1, 4, 9]), st.integers(1, 500), st.integers(0, 9)),
    min_size=1,
    max_size=6,
)


@given(PARTS, st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_restart_changes_nothing(parts: list[tuple[float, int, int, int]], cut: int) -> None:
    values = noisy(0.5, 400, 99)
    for level, repeated, count, seed in parts:
        values += np.repeat(noisy(level, count, seed), repeated).tolist()[:1000]

    def run(restart: int | None) -> tuple[list[Shift | None], bytes]:
        shifts, found = Shifts(QUICK), []
        for index, value in enumerate(values):
            if index == restart:
                shifts = Shifts(QUICK, msgspec.json.decode(msgspec.json.encode(shifts.state()), type=ShiftsState))
            found.append(shifts.add(value))
        return found, msgspec.json.encode(shifts.state())

    assert run(None) == run(cut % len(values))


def inside(shifts: Shifts) -> tuple[float, ...]:
    """What the library's detector holds."""
    adwin = shifts._adwin
    return () if adwin is None else (adwin.width, adwin.total, adwin.variance, adwin.n_detections)


def test_a_restart_at_every_moment_of_a_whole_life() -> None:
    """Growth of the batches, shifts, a full memory, alarms: all are in this stream."""
    values = noisy(0.5, 900) + np.repeat(noisy(0.5, 200, 1), 8).tolist() + noisy(0.8, 2000, 2) + noisy(0.5, 600, 3)
    whole, restarted, opened, full, lengths = Shifts(QUICK), Shifts(QUICK), 0, 0, [1]
    for value in values:
        restarted = Shifts(QUICK, restarted.state())
        expected = whole.add(value)
        assert restarted.add(value) == expected
        assert inside(restarted) == inside(whole)
        opened += expected is not None and expected.opened
        full = max(full, len(whole.state().means))
        lengths += [whole.batch] * (whole.batch != lengths[-1])
    assert opened >= 2
    assert full >= CAPACITY - 1
    assert max(lengths) > lengths[-1] > 0, lengths
    assert restarted.state() == whole.state()


def test_what_is_remembered_is_bounded() -> None:
    shifts = Shifts(QUICK)
    told(shifts, noisy(0.5, 5000))
    assert len(shifts.state().means) < CAPACITY
    assert len(msgspec.json.encode(shifts.state())) < 12_000
