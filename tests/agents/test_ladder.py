"""The ladder's laws, for any course of outcomes and time; and its rules one by one. Nothing here looks at a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ladder import MARGIN, SETTLED_S, TRIALS, Change, Ladder, Limits
from schemas.links import Breaker

CLOSED, HALF_OPEN, OPEN = Breaker.CLOSED, Breaker.HALF_OPEN, Breaker.OPEN
SLOW_S = 0.1
FIRST_S, LONGEST_S = 1.0, 60.0


def ladder(steps: int = 3, jitter: float = 1.0) -> Ladder:
    return Ladder(steps, Limits(slow_s=SLOW_S, backoff_s=(FIRST_S, LONGEST_S)), lambda: jitter)


def states(one: Ladder) -> list[Breaker]:
    return [step.state for step in one.steps]


def climb(one: Ladder, number: int, now: float, seconds: float = 0.01) -> None:
    for _ in range(TRIALS):
        one.took(number, seconds, now)


# ---- laws

events = st.lists(
    st.tuples(
        st.sampled_from(["took", "slow", "failed", "hung", "broken", "due", "mended"]),
        st.integers(0, 3),
        st.floats(0, 40, allow_nan=False),
    ),
    max_size=250,
)


@given(st.integers(1, 4), events, st.floats(0, 1))
def test_whatever_happens(steps: int, course: Sequence[tuple[str, int, float]], jitter: float) -> None:
    one, now, seen = ladder(steps, jitter), 0.0, [CLOSED] * steps
    opened_at, good = [0.0] * steps, [0] * steps
    mended: set[int] = set()
    for what, where, passes in course:
        now, number = now + passes / 10, where % steps
        before = states(one)
        match what:
            case "took" | "slow":
                one.took(number, 0.01 if what == "took" else 1.0, now)
                if before[number] is HALF_OPEN:
                    good[number] += 1
            case "failed":
                one.failed(number, "no", now)
            case "hung":
                one.hung(number, "no", now)
            case "broken":
                one.broken(number, "no", now)
            case "mended":
                one.mended(number, now)
                mended.add(number)
            case "due":
                trial = one.due(now)
                if trial is not None and before[trial] is OPEN:
                    waited = now - opened_at[trial]
                    assert waited >= FIRST_S / 2 - 1e-6 or trial in mended  # never at once, unless something was mended
                    assert trial != one.choose()
                    good[trial] = 0
                if trial is None:  # what is open is not put off for longer than the longest wait
                    assert all(now - at < LONGEST_S + 1e-6 for at, state in zip(opened_at, states(one), strict=True) if state is OPEN)
        for change in one.changes():  # each change is told once, in order
            assert change.was is seen[change.step] is not change.now
            seen[change.step] = change.now
            if change.now is OPEN:
                assert change.cause
                opened_at[change.step] = now
                mended.discard(change.step)
            if change.now is CLOSED:
                assert good[change.step] >= TRIALS  # it was tried, and it was good
        after = states(one)
        assert seen == after
        assert one.choose() == next((n for n, state in enumerate(after) if state is CLOSED), None)
        assert after.count(HALF_OPEN) <= 1  # one trial at a time
        assert (OPEN, CLOSED) not in zip(before, after, strict=True)  # nothing closes that was not tried
        if what == "slow" and before.count(CLOSED) == 1:
            assert CLOSED in after  # slowness alone never takes the last one


@given(st.integers(1, 4), events)
def test_when_all_is_well_again_it_climbs_to_the_top(steps: int, course: Sequence[tuple[str, int, float]]) -> None:
    one, now = ladder(steps), 0.0
    for what, where, passes in course:
        now += passes
        number = where % steps
        if what in ("failed", "hung", "broken"):
            getattr(one, what)(number, "no", now)
        elif what == "due":
            one.due(now)
    for _ in range(20 * steps):
        now += LONGEST_S
        if (number := one.due(now)) is not None:
            one.took(number, 0.01, now)
    assert states(one) == [CLOSED] * steps


@given(st.lists(st.sampled_from(["good", "bad"]), max_size=60))
def test_three_failures_in_a_row_or_a_share_of_them(outcomes: list[str]) -> None:
    one, row, recent = ladder(2), 0, []
    for n, outcome in enumerate(outcomes):
        now = n / 100
        if outcome == "good":
            one.took(0, 0.01, now)
        else:
            one.failed(0, "no", now)
        recent.append(outcome == "bad")
        row = row + 1 if outcome == "bad" else 0
        expected = outcome == "bad" and (row >= 3 or (len(recent) >= 20 and sum(recent) > 0.3 * len(recent)))
        assert (one.steps[0].state is OPEN) == expected
        if expected:
            break


# ---- rules


def test_a_hang_opens_at_once_and_the_next_step_judges() -> None:
    one = ladder()
    one.hung(0, "did not come back", 0.0)
    assert (states(one), one.choose()) == ([OPEN, CLOSED, CLOSED], 1)
    assert one.changes() == [Change(step=0, was=CLOSED, now=OPEN, cause="hung", reason="did not come back")]
    assert one.changes() == []


def test_one_look_in_twenty_is_too_slow() -> None:
    one = ladder()
    for n in range(19):
        one.took(0, 0.09, n / 100)
    one.took(0, 0.3, 0.19)  # one in twenty may
    assert states(one)[0] is CLOSED
    one.took(0, 0.3, 0.2)
    one.took(0, 0.3, 0.21)
    assert states(one)[0] is OPEN
    assert one.steps[0].cause == "slow"


def test_old_looks_do_not_count() -> None:
    one = ladder()
    for n in range(19):
        one.took(0, 0.3, n / 100)
    one.took(0, 0.3, 30.0)
    assert states(one)[0] is CLOSED


def test_what_is_tried_must_be_fast_by_a_margin() -> None:
    one = ladder()
    one.hung(0, "", 0.0)
    assert one.due(FIRST_S) == 0
    climb(one, 0, FIRST_S, SLOW_S * (MARGIN + 0.01))
    assert states(one)[0] is OPEN


def test_the_nearest_step_above_comes_first_then_those_further_up_then_those_below() -> None:
    one, order = ladder(4), []
    for number in (0, 1, 3):
        one.hung(number, "", 0.0)
    for _ in range(3):
        number = one.due(1.0)
        assert number is not None
        assert one.due(1.0) == number  # until it has failed or closed
        order.append(number)
        one.failed(number, "", 1.0)
    assert order == [1, 0, 3]
    assert one.due(1.0) is None


def test_it_climbs_step_by_step() -> None:
    one = ladder(3)
    for number in range(3):
        one.hung(number, "", 0.0)
    assert one.choose() is None
    course = []
    for _ in range(3):
        number = one.due(5.0)
        assert number is not None
        climb(one, number, 5.0)
        course.append(one.choose())
    assert course == [2, 1, 0]


def test_a_step_that_hangs_still_is_not_tried() -> None:
    one = ladder()
    one.hung(0, "", 0.0)
    assert one.due(1000.0, stuck={0}) is None
    assert one.due(1000.0) == 0


def test_each_wait_is_twice_the_last_until_the_step_has_settled() -> None:
    one, now, waits = ladder(2), 0.0, []
    for _ in range(9):
        one.hung(0, "", now)
        waits.append(one.steps[0].next_try_at - now)
        now = one.steps[0].next_try_at
        assert one.due(now) == 0
        climb(one, 0, now)
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert all(later >= earlier for earlier, later in pairwise(waits))
    now += SETTLED_S
    one.took(0, 0.01, now)
    one.hung(0, "", now)
    assert one.steps[0].next_try_at - now == pytest.approx(FIRST_S)


def test_a_mended_file_is_tried_at_once() -> None:
    one, now = ladder(1), 0.0
    for _ in range(8):
        one.broken(0, "damaged", now)
        now = one.steps[0].next_try_at
        one.due(now)
    one.broken(0, "damaged", now)
    assert one.due(now + 0.5) is None
    one.mended(0, now + 0.5)
    assert one.due(now + 0.5) == 0


def test_the_last_step_may_be_slow() -> None:
    one = ladder(2)
    one.hung(0, "", 0.0)
    for n in range(40):
        one.took(1, 1.0, n / 100)
    assert states(one)[1] is CLOSED


def test_a_look_that_was_begun_before_its_step_opened_changes_nothing() -> None:
    one = ladder()
    one.hung(0, "", 0.0)
    one.changes()
    again_at = one.steps[0].next_try_at
    for _ in range(30):
        one.took(0, 10.0, 0.1)
        one.failed(0, "", 0.1)
    one.hung(0, "", 0.1)
    assert (states(one)[0], one.steps[0].next_try_at, one.changes()) == (OPEN, again_at, [])
