"""Who may send next, and how much: the gate, the purse and the window, under clocks that the test turns."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.link.gate import Gate, Purse, Stopping
from streams.link.window import LEAST, MOST, TARGET_S, Window


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# ---- the purse


@given(
    rate=st.floats(1000, 1e6),
    burst_s=st.floats(0.1, 5),
    ratios=st.lists(st.floats(0.05, 1.4), min_size=1, max_size=5),
    payloads=st.lists(st.integers(1, 20_000), min_size=50, max_size=200),
)
def test_over_time_no_more_goes_over_the_wire_than_the_budget_and_one_slice(
    rate: float, burst_s: float, ratios: list[float], payloads: list[int]
) -> None:
    """Whatever the payload turns out to cost: the wire's own counters put the estimate right."""
    clock = Clock()
    purse = Purse(rate, burst_s, clock)
    wire, largest = 0.0, 0.0
    for index, payload in enumerate(payloads):
        while (wait_s := purse.wait_s(urgent=False)) > 0:
            clock.now += wait_s
        cost = payload * ratios[index % len(ratios)]
        purse.charge(payload)
        wire += cost
        purse.acked(payload)
        purse.correct(wire, 0)
        largest = max(largest, cost)
        assert wire <= rate * (clock.now + burst_s) + largest + 1


def test_nearly_all_of_the_budget_is_used_when_there_is_enough_to_send() -> None:
    clock = Clock()
    purse = Purse(10_000, 1.0, clock)
    wire = 0.0
    while clock.now < 100:
        while (wait_s := purse.wait_s(urgent=False)) > 0:
            clock.now += wait_s
        purse.charge(1000)
        wire += 300
        purse.acked(1000)
        purse.correct(wire, 0)
    assert wire >= 0.98 * 10_000 * 100


def test_what_is_urgent_may_run_into_debt_and_is_repaid_by_the_others() -> None:
    clock = Clock()
    purse = Purse(1000, 2.0, clock)
    purse.charge(2500)
    assert purse.wait_s(urgent=False) == pytest.approx(0.5)
    assert purse.wait_s(urgent=True) == 0
    purse.charge(2000)
    assert purse.wait_s(urgent=True) == pytest.approx(0.5)
    clock.now += 1
    assert purse.wait_s(urgent=True) == 0
    assert purse.wait_s(urgent=False) == pytest.approx(1.5)


def test_without_a_budget_nothing_is_refused() -> None:
    purse = Purse(0, 1.0, Clock())
    purse.charge(1 << 40)
    purse.correct(1 << 40, 0)
    assert purse.wait_s(urgent=False) == 0


def test_what_is_paid_for_and_on_its_way_is_not_paid_twice() -> None:
    clock = Clock()
    purse = Purse(1000, 1.0, clock)
    purse.charge(800)
    purse.correct(0, 800)  # none of it is on the wire yet
    assert purse.wait_s(urgent=False) == 0
    purse.acked(800)
    purse.correct(800, 0)
    assert purse.wait_s(urgent=False) == 0


# ---- the window


@given(steps=st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0.001, 30)), max_size=200))
def test_the_window_stays_within_its_bounds_and_counts_to_nothing(steps: list[tuple[int, float]]) -> None:
    window, now = Window(), 0.0
    for size, delay_s in steps:
        window.room(size)
        window.sent(size)
        now += delay_s
        window.acked(size, delay_s, now)
        assert LEAST <= window.limit <= MOST
        assert window.in_flight == 0


@pytest.mark.parametrize("rate", [20_000.0, 200_000.0, 5e6])
@pytest.mark.parametrize("way_s", [0.002, 0.05, 0.3])
def test_the_window_fills_the_link_and_keeps_the_queue_on_it_short(rate: float, way_s: float) -> None:
    """A model of a link: `rate` bytes a second, `way_s` there and back, and a queue before it that never drops."""
    window, now, free_at, size = Window(), 0.0, 0.0, 4096
    flight: list[tuple[float, float, int]] = []
    sent = 0
    queue_s: list[float] = []
    while now < 60:
        while window.room(size):
            window.sent(size)
            free_at = max(free_at, now) + size / rate
            flight.append((free_at + way_s, now, size))
            if now > 30:
                queue_s.append(free_at - now)
                sent += size
        arrival, begun, size_there = flight.pop(0)
        now = max(now, arrival)
        window.acked(size_there, arrival - begun, now)
    assert sent / 30 > 0.9 * min(rate, (MOST - size) / way_s)
    queue_s.sort()
    assert queue_s[len(queue_s) // 2] < TARGET_S + 2 * max(size, LEAST) / rate


# ---- the gate


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError


def test_the_most_urgent_of_those_who_wait_goes_first_whoever_came_first() -> None:
    gate = Gate(Purse(0, 1.0), "up", threading.Event())
    gate.open(True)
    gate.window.sent(1 << 30)  # nobody fits
    order: list[int] = []

    def enter(priority: int) -> None:
        gate.enter(priority, 10, urgent=False)
        order.append(priority)
        gate.acked(10, 0.01)

    threads = [threading.Thread(target=enter, args=(priority,)) for priority in (3, 1, 2, 0)]
    for count, thread in enumerate(threads, 1):
        thread.start()
        wait_for(lambda count=count: len(gate._waiting) == count)  # type: ignore[misc]
    gate.left(1 << 30)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]


def test_while_the_region_is_away_only_what_is_urgent_passes_and_the_end_of_the_link_frees_the_others() -> None:
    halt = threading.Event()
    gate = Gate(Purse(0, 1.0), "up", halt)
    gate.enter(0, 10, urgent=True)
    ended: list[str] = []

    def enter() -> None:
        try:
            gate.enter(1, 10, urgent=False)
        except Stopping:
            ended.append("stopped")

    thread = threading.Thread(target=enter)
    thread.start()
    wait_for(lambda: bool(gate._waiting))
    halt.set()
    gate.wake()
    thread.join(10)
    assert ended == ["stopped"]
    assert gate.window.in_flight == 10


def test_a_record_larger_than_the_window_goes_alone() -> None:
    gate = Gate(Purse(0, 1.0), "up", threading.Event())
    gate.open(True)
    gate.enter(1, 1 << 30, urgent=False)
    assert not gate.window.room(1)
    gate.acked(1 << 30, 1.0)
    assert gate.window.room(1)
