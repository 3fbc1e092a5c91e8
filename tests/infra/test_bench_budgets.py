"""What was spent of a budget, from running totals: by hand."""

from __future__ import annotations

import pytest

from infra.bench.budgets import Case, Figures, Spent, spent


def totals(*rates: tuple[int, float]) -> list[tuple[float, float]]:
    """Running totals twice a second, of so many seconds at each rate."""
    found, at, total = [], 0.0, 0.0
    for seconds, rate in rates:
        for _ in range(2 * seconds):
            at, total = at + 0.5, total + rate / 2
            found.append((at, total))
    return found


def test_every_minute_is_looked_at_not_only_those_of_the_clock() -> None:
    """Half a minute without anything, a minute at twice the budget, then at the budget."""
    found = spent(totals((30, 0.0), (60, 200.0), (150, 100.0)), 100.0, 240)
    assert found.minutes == (1.0, 1.5, 1.0, 1.0)
    assert found.fullest == 2.0
    assert found.used == pytest.approx((30 * 200 + 150 * 100) / (180 * 100), abs=1e-4)


def test_the_first_minute_counts_for_what_is_too_much_and_not_for_what_is_too_little() -> None:
    found = spent(totals((60, 300.0), (60, 100.0)), 100.0, 120)
    assert (found.fullest, found.used) == (3.0, 1.0)


def test_a_run_that_spent_too_much_or_too_little_has_failed() -> None:
    case = Case(name="looks", seconds=120, cameras=2, link_bytes_per_s=1000, looks_per_s=2)
    roomy = Spent(budget_per_s=1000, minutes=(0.2, 0.2), fullest=0.2, used=0.2)

    def figures(fullest: float, used: float) -> Figures:
        looks = Spent(budget_per_s=2, minutes=(1.0, 1.0), fullest=fullest, used=used)
        return Figures(case=case, bytes=roomy, looks=looks, asked=240, waiting_s_p95=1.0)

    assert figures(1.02, 0.98).failures == ()
    assert "looks: 103.0% of the budget" in figures(1.03, 0.99).failures[0]
    assert "97.0% of the looks used" in figures(1.0, 0.97).failures[0]
