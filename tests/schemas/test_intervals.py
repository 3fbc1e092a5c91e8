"""Interval sets against Python's own sets, and how few comparisons they need."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.intervals import Intervals, Pair
from schemas.messages import Ranges
from schemas.records import InvalidRecord

pair = st.tuples(st.integers(-40, 40), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1]))
pairs = st.lists(pair, max_size=12)


def plain(ranges: list[Pair]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def checked(intervals: Intervals) -> set[int]:
    """The numbers of an interval set, whose ranges must be sorted, and apart from each other."""
    found = intervals.pairs()
    assert all(first <= last for first, last in found)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(found))
    assert intervals.count() == len(plain(found))
    assert list(intervals) == sorted(plain(found))
    assert bool(intervals) == bool(found)
    return plain(found)


@given(pairs)
def test_it_holds_what_was_put_in(a: list[Pair]) -> None:
    intervals = Intervals(a)
    assert checked(intervals) == plain(a)
    for number in range(-45, 55):
        assert (number in intervals) == (number in plain(a))


@given(pairs, pairs)
def test_the_algebra_is_that_of_sets(a: list[Pair], b: list[Pair]) -> None:
    one, two = Intervals(a), Intervals(b)
    assert checked(one | two) == plain(a) | plain(b)
    assert checked(one - two) == plain(a) - plain(b)
    assert checked(one & two) == plain(a) & plain(b)
    assert (one == two) == (plain(a) == plain(b))
    assert (checked(one), checked(two)) == (plain(a), plain(b)), "operands stay as they were"


@given(pairs, st.lists(pair | st.integers(-40, 40), max_size=30))
def test_adding_in_any_order(a: list[Pair], more: list[Pair | int]) -> None:
    intervals, expected = Intervals(a), plain(a)
    for item in more:
        if isinstance(item, int):
            intervals.add(item)
            expected.add(item)
        else:
            intervals.add(*item)
            expected |= plain([item])
        assert checked(intervals) == expected
    assert intervals == Intervals((number, number) for number in expected)


@given(st.lists(st.tuples(st.integers(0, (1 << 63) - 1), st.integers(0, 1 << 20)), max_size=8))
def test_ranges_travel_and_come_back(starts: list[Pair]) -> None:
    intervals = Intervals((first, min(first + length, (1 << 63) - 1)) for first, length in starts)
    ranges = intervals.to_ranges()
    assert Intervals(ranges.pairs) == intervals
    assert Ranges.from_json(ranges.to_json()) == ranges
    assert hash(Ranges.from_json(ranges.to_json())) == hash(ranges)


def test_what_is_no_range_is_refused() -> None:
    intervals = Intervals([(0, 4)])
    with pytest.raises(ValueError, match=r"range 5\.\.3 ends before it starts"):
        intervals.add(5, 3)
    with pytest.raises(ValueError, match=r"range 2\.\.1"):
        Intervals([(2, 1)])
    assert intervals.pairs() == [(0, 4)]
    with pytest.raises(InvalidRecord, match="-1, 3"):
        Intervals([(-1, 3)]).to_ranges()


@pytest.mark.parametrize(
    "wrong",
    [
        *([(3, 2)], [(-1, 2)], [(0, 1 << 63)], [(0, 1), (1, 2)], [(0, 1), (2, 3)], [(5, 6), (0, 1)], [(0, 1), (0, 1)]),
        *([(0, 1.0)], [("0", "1")], [(0,)], [(0, 1, 2)], [5], [None], [(0, 10**5000)]),
    ],
    ids=range(14),
)
def test_ranges_that_are_not_sorted_and_apart_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRecord, match="expected"):
        Ranges(wrong)


@given(st.text() | st.lists(st.lists(st.integers() | st.floats() | st.none(), max_size=3), max_size=3).map(str))
def test_any_text_is_ranges_or_refused(text: str) -> None:
    try:
        ranges = Ranges.from_json(text)
    except InvalidRecord:
        return
    assert Ranges.from_json(ranges.to_json()) == ranges


comparisons: Counter[str] = Counter()


class Counted(int):
    """A number that counts what it is compared with."""

    def __lt__(self, other: int) -> bool:
        comparisons["<"] += 1
        return int(self) < other

    def __le__(self, other: int) -> bool:
        comparisons["<="] += 1
        return int(self) <= other

    def __gt__(self, other: int) -> bool:
        comparisons[">"] += 1
        return int(self) > other

    def __ge__(self, other: int) -> bool:
        comparisons[">="] += 1
        return int(self) >= other

    def __add__(self, other: int) -> Counted:
        return Counted(int(self) + other)

    def __sub__(self, other: int) -> Counted:
        return Counted(int(self) - other)


@pytest.mark.parametrize("number", [0, 3, 99_998, 100_001, 123_457, 199_998, 200_000])
def test_one_number_among_many_ranges_takes_few_comparisons(number: int) -> None:
    many = Intervals((first, first) for first in range(0, 200_000, 2))
    few = 3 * math.ceil(math.log2(100_000)) + 6
    comparisons.clear()
    assert (Counted(number) in many) == (number % 2 == 0 and number < 200_000)
    assert 0 < comparisons.total() <= few
    comparisons.clear()
    many.add(Counted(number))
    assert 0 < comparisons.total() <= few
    assert number in many
    assert many.count() == 100_000 + (number % 2 == 1 or number == 200_000)
