"""What evidence may cost: with the link's own rules played by hand, its budget is used, and nothing piles up before it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.allowance import LEAST, START, WAITING_S, Allowance
from schemas.links import Breaker, Lanes, LaneState, LinkState

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
EVERY_S = 5  # how often a link says how it stands
BUDGET = 100_000


def state(wire: float, evidence: float, waiting: float, *, budget: int = BUDGET, breaker: Breaker = Breaker.CLOSED) -> LinkState:
    return LinkState(
        site="leaf-1",
        region="region-1",
        breaker=breaker,
        since=NOON,
        writer="w",
        generation=1,
        budget_bytes_per_s=budget,
        wire_bytes_per_s=wire,
        evidence_bytes_per_s=evidence,
        lanes=Lanes(
            (
                LaneState(topic="verdicts", direction="up", waiting=1, drain_s=0.0),
                LaneState(topic="escalations", direction="up", waiting=1, drain_s=waiting / BUDGET),
                LaneState(topic="region.verdicts", direction="down", waiting=1, drain_s=1e6),
                LaneState(topic="control", direction="down"),
            )
        ),
    )


def play(others: list[float], waiting: float = 0.0) -> Iterator[tuple[float, float]]:
    """A link that gives what else crosses it its way first, second by second; yields what was on the wire and what evidence waits."""
    allowance, wire, evidence = Allowance(BUDGET), 0.0, 0.0
    for second, other in enumerate(others):
        waiting += allowance.bytes_per_s
        carried = min(waiting, BUDGET - other)
        waiting -= carried
        wire, evidence = wire + other + carried, evidence + carried
        if second % EVERY_S == EVERY_S - 1:
            allowance.heed(state(wire / EVERY_S, evidence / EVERY_S, waiting), float(second))
            wire = evidence = 0.0
        yield other + carried, waiting


@settings(deadline=None)
@given(st.floats(0, 0.9), st.floats(0, 60))
def test_the_budget_is_used_and_what_waits_stays_short(other: float, waiting_s: float) -> None:
    """From a full queue on, too: what is left of the budget works it off first."""
    settled_s = 120 + math.ceil(waiting_s / (1 - other - 2 * LEAST))
    played = list(play([other * BUDGET] * (settled_s + 60), waiting_s * BUDGET))[settled_s:]
    assert sum(wire for wire, _ in played) >= 0.98 * 60 * BUDGET
    assert max(waiting for _, waiting in played) <= 2 * BUDGET


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.7), min_size=12, max_size=12))
def test_what_else_crosses_the_link_may_change(shares: list[float]) -> None:
    """By up to a tenth of the budget each quarter of a minute, as the number of answers does."""
    level, others = shares[0], []
    for share in shares:
        level += max(-0.1, min(0.1, share - level))
        others += [level * BUDGET] * 15
    played = list(play([others[0]] * 60 + others))[60:]
    for start in range(0, 121, 15):
        minute = played[start : start + 60]
        assert sum(wire for wire, _ in minute) >= 0.93 * 60 * BUDGET
        assert max(waiting for _, waiting in minute) <= 4 * BUDGET


def test_an_outage_teaches_nothing_and_without_a_budget_nothing_is_bounded() -> None:
    allowance = Allowance(BUDGET)
    assert allowance.bytes_per_s == START * BUDGET
    before = allowance.heed(state(60_000, 20_000, WAITING_S * BUDGET), 0.0)
    assert before == pytest.approx(60_000)
    assert allowance.heed(state(0, 0, 1e9, breaker=Breaker.OPEN), 100.0) == before
    assert allowance.heed(state(BUDGET, 0, 1e9), 200.0) == LEAST * BUDGET, "what has piled up is carried first"
    assert allowance.heed(state(BUDGET, 0, 0, budget=0), 300.0) == math.inf
    assert Allowance(0).bytes_per_s == math.inf
