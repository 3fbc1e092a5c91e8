"""What may be spent, under a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.budgets import Budgets
from schemas.messages import Reason
from streams.bucket import TokenBucket

SLACK = 1e-6


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(*, bytes_per_s: float = 1000.0, inferences_per_s: float = 2.0, burst_s: float = 5.0) -> tuple[Budgets, Clock]:
    clock = Clock()
    return Budgets(bytes_per_s=bytes_per_s, inferences_per_s=inferences_per_s, burst_s=burst_s, clock=clock), clock


# ---- one bucket


def test_a_bucket_saves_up_to_its_burst_and_repays_debt_first() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10, burst_s=2, clock=clock)
    assert bucket.level() == 20
    bucket.spend(50)
    assert bucket.level() == -30
    clock.now = 3.0
    assert bucket.level() == 0
    clock.now = 100.0
    assert bucket.level() == 20


def test_a_new_rate_holds_from_then_on() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10, burst_s=2, clock=clock)
    bucket.spend(20)
    clock.now = 1.0
    bucket.rate = 1  # the second before was earned at the old rate, but no more is saved than the new one allows
    assert bucket.level() == 2
    bucket.spend(2)
    clock.now = 2.0
    assert bucket.level() == 1
    bucket.rate = 100
    clock.now = 2.5
    assert bucket.level() == 51
    bucket.rate = 0
    clock.now = 50.0
    assert bucket.level() == 0


@given(
    st.floats(0.1, 100),
    st.floats(0.1, 10),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)), max_size=30),
)
@settings(deadline=None)
def test_what_a_bucket_gives_is_its_burst_and_its_rate(rate: float, burst_s: float, steps: list[tuple[float, float]]) -> None:
    """Whoever spends only what is there never gets more than was saved up and earned since."""
    clock = Clock()
    bucket = TokenBucket(rate=rate, burst_s=burst_s, clock=clock)
    spent = 0.0
    for wait_s, tokens in steps:
        clock.now += wait_s
        if bucket.level() >= tokens:
            bucket.spend(tokens)
            spent += tokens
        assert spent <= rate * burst_s + rate * clock.now + SLACK


# ---- both budgets of a site

looks = st.lists(st.tuples(st.floats(0, 4), st.sampled_from(Reason), st.floats(100, 20_000)), max_size=60)
rates = st.tuples(st.floats(10, 10_000), st.floats(0.05, 20), st.floats(0.1, 20))


@given(rates, looks)
@settings(deadline=None, max_examples=300)
def test_the_budgets_hold_whatever_is_asked(rate: tuple[float, float, float], asked: Any) -> None:
    bytes_per_s, inferences_per_s, burst_s = rate
    budgets, clock = make(bytes_per_s=bytes_per_s, inferences_per_s=inferences_per_s, burst_s=burst_s)
    ordinary, everything, largest = [0.0, 0.0], [0.0, 0.0], 0.0
    for wait_s, reason, size in asked:
        clock.now += wait_s
        largest = max(largest, size)
        if budgets.forbids(reason, size) is None:
            budgets.spend(size)
            for kind, cost in enumerate((size, 1.0)):
                everything[kind] += cost
                ordinary[kind] += cost if reason is not Reason.ALERT else 0
        for kind, (per_s, cost) in enumerate(((bytes_per_s, largest), (inferences_per_s, 1.0))):
            earned, saved = per_s * clock.now, per_s * burst_s
            # one look is always allowed from a full bucket, however small the bucket
            assert ordinary[kind] <= earned + max(saved, cost) + SLACK
            assert everything[kind] <= earned + max(2 * saved, cost) + SLACK


@given(rates, looks)
@settings(deadline=None, max_examples=200)
def test_an_alert_may_do_whatever_another_look_may(rate: tuple[float, float, float], asked: Any) -> None:
    budgets, clock = make(bytes_per_s=rate[0], inferences_per_s=rate[1], burst_s=rate[2])
    for wait_s, reason, size in asked:
        clock.now += wait_s
        if budgets.forbids(Reason.UNCERTAIN, size) is None:
            assert budgets.forbids(Reason.ALERT, size) is None
        if budgets.forbids(reason, size) is None:
            budgets.spend(size)


@pytest.mark.parametrize("reason", [Reason.UNCERTAIN, Reason.UNJUDGED])
def test_others_leave_a_quarter_in_hand_for_audits_and_alerts(reason: Reason) -> None:
    budgets, _ = make(bytes_per_s=1000, inferences_per_s=2, burst_s=5)  # room for 5000 bytes and 10 looks

    def taken(by: Reason) -> int:
        count = 0
        while budgets.take(by, 100) is None:
            count += 1
        return count

    assert taken(reason) == 7  # 7.5 looks are three quarters
    assert budgets.forbids(reason, 100) == "inferences"
    assert taken(Reason.AUDIT) == 3, "an audit may have what is left, and no credit"
    assert taken(Reason.ALERT) == 10, "an alert has credit"


def test_debt_is_repaid_before_anything_else_is_bought() -> None:
    budgets, clock = make(bytes_per_s=1000, inferences_per_s=100, burst_s=5)
    while budgets.forbids(Reason.ALERT, 1000) is None:
        budgets.spend(1000)
    assert budgets.bytes.level() == -5000
    clock.now = 5.0
    assert budgets.forbids(Reason.UNCERTAIN, 1) == "bytes"
    clock.now = 6.25
    assert budgets.forbids(Reason.UNCERTAIN, 1) == "bytes"  # the reserve comes before it
    clock.now = 6.26
    assert budgets.forbids(Reason.UNCERTAIN, 1) is None


def test_a_look_that_costs_more_than_can_be_saved_up_waits_for_a_full_bucket() -> None:
    budgets, clock = make(bytes_per_s=100, inferences_per_s=0.1, burst_s=1)
    for reason in (Reason.UNCERTAIN, Reason.ALERT):
        clock.now += 1000
        assert budgets.forbids(reason, 5000) is None
        budgets.spend(5000)
        assert budgets.forbids(reason, 5000) == "bytes"
        clock.now += 45
        assert budgets.forbids(reason, 5000) == "bytes"


def test_a_region_that_affords_nothing_is_asked_nothing_not_even_for_an_alert() -> None:
    budgets, clock = make()
    budgets.inferences.rate = 0
    clock.now = 100.0
    assert {reason: budgets.forbids(reason, 1) for reason in Reason} == dict.fromkeys(Reason, "inferences")


def test_what_was_not_sent_is_given_back() -> None:
    budgets, _ = make()
    before = budgets.bytes.level(), budgets.inferences.level()
    budgets.spend(700)
    assert (budgets.bytes.level(), budgets.inferences.level()) == (before[0] - 700, before[1] - 1)
    budgets.refund(700)
    assert (budgets.bytes.level(), budgets.inferences.level()) == before
