"""The audit sample: the same for all, nested, as large as it says, and never more than half a budget."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.audit import Demand, audited, audited_rows, rates_in_force

IDS = [f"gate/0190a/{number}" for number in range(20_000)]
SALT = "fleet"


@given(st.text(min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1), st.text(max_size=8))
@settings(deadline=None)
def test_a_higher_rate_holds_the_sample_of_a_lower_one(record: str, one: float, other: float, salt: str) -> None:
    assert audited(record, max(one, other), salt) or not audited(record, min(one, other), salt)
    assert audited(record, 1.0, salt)
    assert not audited(record, 0.0, salt)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_the_sample_is_as_large_as_its_rate(rate: float) -> None:
    count = sum(audited(each, rate, SALT) for each in IDS)
    assert abs(count - rate * len(IDS)) < 4 * math.sqrt(rate * (1 - rate) * len(IDS))


def test_whether_a_frame_is_taken_tells_nothing_of_the_next_ones() -> None:
    """Gaps between the frames of the sample are those of independent draws."""
    taken = [index for index, each in enumerate(IDS) if audited(each, 0.05, SALT)]
    gaps = [later - earlier for earlier, later in pairwise(taken)]
    for limit in (1, 5, 20, 60):
        expected = 1 - 0.95**limit
        share = sum(gap <= limit for gap in gaps) / len(gaps)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(gaps))


def test_salts_draw_samples_of_their_own() -> None:
    first, second = ({each for each in IDS if audited(each, 0.1, salt)} for salt in ("a", "b"))
    assert abs(len(first & second) - 0.01 * len(IDS)) < 4 * math.sqrt(0.01 * len(IDS))


def test_every_tier_and_every_version_draws_alike() -> None:
    """The rule written down a second time: keyed BLAKE2b of the id, as a share of 2**64."""
    key = hashlib.blake2b(SALT.encode(), digest_size=32).digest()
    for each in IDS[:3000]:
        drawn = int(hashlib.blake2b(each.encode(), key=key, digest_size=8).hexdigest(), 16)
        assert audited(each, 0.02, SALT) == (drawn * 50 < 1 << 64)
    assert [number for number, each in enumerate(IDS) if audited(each, 0.001, SALT)][:4] == [31, 3586, 3913, 4284]


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="audit rate"):
        audited("gate/0190a/1", rate, SALT)


# ---- rows


def test_rows_are_drawn_one_by_one() -> None:
    few, more = (set(audited_rows("shop/0190a/7", 50_000, rate, SALT).tolist()) for rate in (0.01, 0.03))
    assert few < more
    assert abs(len(more) - 1500) < 4 * math.sqrt(1500)
    neighbours = sum(row + 1 in more for row in more)
    assert abs(neighbours - 45) < 4 * math.sqrt(45)
    other = set(audited_rows("shop/0190a/8", 50_000, 0.03, SALT).tolist())
    assert abs(len(more & other) - 45) < 4 * math.sqrt(45)


def test_all_rows_and_none() -> None:
    assert audited_rows("shop/0190a/7", 5, 1.0, SALT).tolist() == [0, 1, 2, 3, 4]
    assert audited_rows("shop/0190a/7", 5, 0.0, SALT).tolist() == []
    assert audited_rows("shop/0190a/7", 0, 1.0, SALT).tolist() == []


# ---- the rate in force

demand = st.builds(Demand, st.floats(0, 1000), st.floats(0, 1e6), st.floats(0, 1))


@given(st.dictionaries(st.text(max_size=3), demand, max_size=5), st.floats(0, 1e7), st.floats(0, 1000))
@settings(deadline=None)
def test_audits_never_pass_half_a_budget(demands: dict[str, Demand], budget_bytes_per_s: float, inferences_per_s: float) -> None:
    rates = rates_in_force(demands, budget_bytes_per_s=budget_bytes_per_s, inferences_per_s=inferences_per_s)
    assert rates.keys() == demands.keys()
    assert all(0 <= rates[name] <= demands[name].rate + 1e-9 for name in demands)
    looks = sum(rates[name] * each.records_per_s for name, each in demands.items())
    sent = sum(rates[name] * each.records_per_s * each.bytes_per_look for name, each in demands.items())
    assert looks <= 0.5 * inferences_per_s * (1 + 1e-6) + 1e-6
    assert sent <= 0.5 * budget_bytes_per_s * (1 + 1e-6) + 1


def test_rates_are_what_was_wanted_where_there_is_enough() -> None:
    demands = {"gate": Demand(30, 10_000), "dock": Demand(30, 10_000, 0.05)}
    assert rates_in_force(demands, budget_bytes_per_s=1e9, inferences_per_s=100) == {"gate": 0.01, "dock": 0.05}


def test_all_rates_fall_by_the_same_factor() -> None:
    demands = {"gate": Demand(30, 10_000), "dock": Demand(30, 10_000, 0.05)}
    assert rates_in_force(demands, budget_bytes_per_s=1e9, inferences_per_s=1.8) == {"gate": 0.005, "dock": 0.025}
    assert rates_in_force(demands, budget_bytes_per_s=3600, inferences_per_s=1e9) == {"gate": 0.001, "dock": 0.005}


def test_without_a_budget_nothing_is_audited() -> None:
    assert rates_in_force({"gate": Demand(30, 10_000)}, budget_bytes_per_s=0, inferences_per_s=9) == {"gate": 0.0}
    assert rates_in_force({}, budget_bytes_per_s=0, inferences_per_s=0) == {}
