"""The join is a semilattice with the stated order of preference, and what travels decides alone."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from functools import reduce
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.detections import Detection, Detections
from schemas.messages import LEAF_PREFERRED_RANK, MAX_RANK, RANK, Answer, Result, Status, Tier, Verdict
from schemas.resolution import clamp, join, order_of, resolve, result_of, unanswered

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
SEEN = Detections([Detection("person", 0.9, 0.1, 0.1, 0.2, 0.2)])
PLAIN: dict[str, Any] = {
    "id": "cam-1/e/0",
    "source": "cam-1",
    "captured_at": NOON,
    "status": Status.FINAL,
    "detections": Detections(),
    "confidence": 0.5,
    "tier": Tier.LEAF,
    "site": "leaf-1",
    "rank": RANK[Tier.LEAF],
    "generation": 0,
    "model": "m",
    "model_digest": "0" * 64,
}


def verdict(**changes: Any) -> Verdict:
    fields = {**PLAIN, **changes}
    if fields["status"] is Status.PROVISIONAL:
        fields.setdefault("deadline_ms", 1000)
    return Verdict(**fields)


# Few values for each field, so that ties in every one of them are common.
def some(ranks: st.SearchStrategy[int], *statuses: Status) -> st.SearchStrategy[Verdict]:
    return st.builds(
        verdict,
        status=st.sampled_from(statuses),
        detections=st.sampled_from([Detections(), SEEN]),
        confidence=st.sampled_from([0.0, 0.5, 0.50001, 0.5001, 1.0]) | st.floats(0, 1),
        tier=st.sampled_from(Tier),
        rank=ranks,
        generation=st.sampled_from([0, 1, 9, 10, 999_999_999, (1 << 31) - 1]) | st.integers(0, (1 << 31) - 1),
        note=st.sampled_from([None, "a", "b"]),
    )


verdicts = some(st.sampled_from([0, 9, 10, 20, 25, 30, 99]) | st.integers(0, 99), *Status)


def preference(v: Verdict) -> tuple[Any, ...]:
    """The order of preference as the design states it."""
    status = [Status.FAILED, Status.UNANSWERED, Status.PROVISIONAL, Status.FINAL].index(v.status)
    digest = hashlib.sha256(msgspec.structs.replace(v, note=None).to_bytes()).hexdigest()[:32]
    return (v.status is not Status.FAILED, v.rank, status, v.generation, round(v.confidence * 10_000), digest)


def answer(found: Any) -> Any:
    """What a verdict or result says but for its note, which is no part of the answer."""
    return msgspec.structs.replace(found, note=None)


@given(st.lists(verdicts, min_size=1, max_size=5), st.data())
def test_order_and_repetition_change_nothing(given_: list[Verdict], data: st.DataObject) -> None:
    expected = resolve(given_)
    again = data.draw(st.permutations(given_ + data.draw(st.lists(st.sampled_from(given_), max_size=5))))
    assert answer(resolve(again)) == answer(expected)
    assert answer(expected) == answer(result_of(max(given_, key=preference)))


@given(verdicts, verdicts, verdicts)
def test_the_join_is_a_semilattice(a: Verdict, b: Verdict, c: Verdict) -> None:
    x, y, z = map(result_of, (a, b, c))
    assert answer(join(x, y)) == answer(join(y, x))
    assert join(join(x, y), z) == join(x, join(y, z))
    assert join(x, x) == x
    assert join(None, x) == x
    assert join(x, y).order >= max(x.order, y.order)


@given(st.lists(verdicts, min_size=1, max_size=6), st.integers(0, 6))
def test_results_join_as_their_verdicts_do(given_: list[Verdict], at: int) -> None:
    """Two resolvers that saw different verdicts agree once they have seen each other's results."""
    one, two = resolve(given_[:at]), resolve(given_[at:])
    parts = [part for part in (one, two) if part is not None]
    assert reduce(join, parts) == resolve(given_)
    assert Result.from_bytes(reduce(join, parts).to_bytes()) == resolve(given_)


@given(verdicts, verdicts)
def test_the_order_compares_as_text_as_the_preference_does(a: Verdict, b: Verdict) -> None:
    assert (order_of(a) < order_of(b)) == (preference(a) < preference(b))
    assert (order_of(a) == order_of(b)) == (preference(a) == preference(b)) == (answer(a) == answer(b))
    assert order_of(a).isascii()


@given(st.from_type(Verdict))
def test_reading_back_keeps_the_order(v: Verdict) -> None:
    assert order_of(Verdict.from_bytes(v.to_bytes())) == order_of(v)
    result = result_of(v)
    assert result.order == order_of(v)
    assert all(getattr(result, name) == getattr(v, name) for name in Answer.__struct_fields__), "what only verdicts say stays in them"


@given(verdicts, verdicts, st.sampled_from([Status.FINAL, Status.UNANSWERED]), st.sampled_from([Status.FINAL, Status.UNANSWERED]))
def test_what_a_leaf_believes_is_of_one_height_and_the_first_holds(a: Verdict, b: Verdict, first: Status, second: Status) -> None:
    """A frame that is looked at again is believed to hold something else, surely or not: whoever has settled the record must come to the
    same."""
    one, again = (
        msgspec.structs.replace(a, detections=each.detections, confidence=each.confidence, status=status, deadline_ms=None, seen="0" * 32)
        for each, status in ((a, first), (b, second))
    )
    assert order_of(one) == order_of(again)
    assert join(result_of(one), result_of(again)) == result_of(one)
    better = msgspec.structs.replace(one, rank=min(99, one.rank + 1))
    assert (order_of(better) > order_of(again)) == (better.rank > again.rank)


LADDER = [  # each is preferred to those before it
    verdict(status=Status.FAILED, rank=30, tier=Tier.CLOUD, generation=9, confidence=1.0),
    verdict(status=Status.PROVISIONAL),
    verdict(confidence=0.1),
    verdict(confidence=0.9),
    verdict(confidence=0.2, generation=1),
    unanswered(verdict(status=Status.PROVISIONAL)),
    verdict(status=Status.PROVISIONAL, tier=Tier.REGION, rank=20, confidence=0.0),
    verdict(tier=Tier.REGION, rank=20, confidence=0.0),
    verdict(tier=Tier.REGION, rank=20, confidence=0.1),
    verdict(tier=Tier.REGION, rank=20, generation=2, confidence=0.0),
    verdict(tier=Tier.REGION, rank=20, generation=10, confidence=0.0),
    *(verdict(tier=Tier.REGION, rank=20, generation=10, confidence=step / 10_000) for step in range(1, 9)),
    verdict(tier=Tier.REGION, rank=20, generation=999_999_999, confidence=0.0),
    verdict(tier=Tier.REGION, rank=20, generation=1_000_000_000, confidence=0.0),
    verdict(rank=LEAF_PREFERRED_RANK),
    verdict(tier=Tier.CLOUD, rank=30, confidence=0.0),
]


def test_what_is_preferred_to_what() -> None:
    for lower, higher in itertools.combinations(LADDER, 2):
        assert resolve([lower, higher]) == resolve([higher, lower]) == result_of(higher), (lower, higher)


def test_results_of_different_records_do_not_join() -> None:
    with pytest.raises(ValueError, match="cam-1/e/0 and cam-1/e/1"):
        join(result_of(verdict()), result_of(verdict(id="cam-1/e/1")))


def test_nothing_resolves_to_nothing() -> None:
    assert resolve([]) is None


# ---- what a topic allows


@given(verdicts, st.sampled_from(Tier), st.none() | st.just("other"))
def test_a_topic_decides_tier_and_site_and_bounds_the_rank(v: Verdict, tier: Tier, site: str | None) -> None:
    clamped = clamp(v, tier, site)
    assert clamped.tier is tier
    assert clamped.site == (site or v.site)
    waits = {Status.PROVISIONAL: RANK[tier], Status.UNANSWERED: RANK[Tier.REGION]}  # who waits outranks no answer
    assert clamped.rank == min(v.rank, MAX_RANK[tier], waits.get(v.status, 99))
    assert clamp(clamped, tier, site) == clamped
    assert msgspec.structs.replace(clamped, tier=v.tier, site=v.site, rank=v.rank) == v, "and nothing else"


@given(verdicts)
def test_no_leaf_outranks_what_it_may(v: Verdict) -> None:
    forged = result_of(clamp(v, Tier.LEAF))
    cloud = result_of(verdict(tier=Tier.CLOUD, rank=RANK[Tier.CLOUD], confidence=0.0))
    assert join(forged, cloud) == cloud


# ---- deadlines


@given(some(st.integers(0, RANK[Tier.REGION] - 1), Status.PROVISIONAL), verdicts)
def test_unanswered_stands_between_the_provisional_answer_and_any_that_comes(provisional: Verdict, later: Verdict) -> None:
    passed = unanswered(provisional)
    assert order_of(provisional) < order_of(passed)
    assert (passed.detections, passed.confidence, passed.tier) == (provisional.detections, provisional.confidence, provisional.tier)
    assert passed.deadline_ms is None
    if later.rank >= RANK[Tier.REGION] and later.status in {Status.FINAL, Status.PROVISIONAL}:
        assert order_of(passed) < order_of(later)
    if later.status is Status.FAILED:
        assert order_of(later) < order_of(passed)
    assert unanswered(provisional) == passed, "whoever says so, and however often"
    assert clamp(passed, Tier.LEAF) == msgspec.structs.replace(passed, tier=Tier.LEAF), "a leaf may say so"


@given(some(st.integers(0, 99), Status.FINAL, Status.UNANSWERED, Status.FAILED))
def test_only_what_waits_can_be_unanswered(v: Verdict) -> None:
    with pytest.raises(ValueError, match="only a provisional one"):
        unanswered(v)
