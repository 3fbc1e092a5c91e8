"""Interval sets of sequences: the algebra of the account (union, difference, intersection), on sorted disjoint inclusive pairs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from schemas.messages import Ranges

Pair = tuple[int, int]


class Intervals:
    """A mutable set of whole numbers, kept as sorted, disjoint, inclusive ranges.

    Finding and adding a number or a range take the logarithm of the number of ranges (and a move of memory), in any order of arrival.

    Raises
    ------
    ValueError
        For a range that ends before it starts.

    >>> s = Intervals([(0, 4)]); s.add(6); s.add(5); s.pairs()
    [(0, 6)]
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._firsts: list[int] = []  # apart from the last numbers, so that bisect compares plain numbers
        self._lasts: list[int] = []
        for first, last in sorted(pairs):
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Add one number, or an inclusive range."""
        last = first if last is None else last
        if last < first:
            raise ValueError(f"range {first}..{last} ends before it starts")
        if self._firsts and first >= self._firsts[-1]:  # most come in order
            if first > self._lasts[-1] + 1:
                self._append(first, last)
            elif last > self._lasts[-1]:
                self._lasts[-1] = last
            return
        start = bisect_left(self._lasts, first - 1)  # the first range that reaches it, or touches it
        end = bisect_right(self._firsts, last + 1)  # the first range beyond it
        if start < end:
            first, last = min(first, self._firsts[start]), max(last, self._lasts[end - 1])
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]

    def __or__(self, other: Intervals) -> Intervals:
        return Intervals([*self._pairs(), *other._pairs()])

    def __sub__(self, other: Intervals) -> Intervals:
        left = Intervals()
        for first, last in self._pairs():
            start = first
            for at in range(bisect_left(other._lasts, first), bisect_right(other._firsts, last)):
                if other._firsts[at] > start:
                    left._append(start, other._firsts[at] - 1)
                start = other._lasts[at] + 1
            if start <= last:
                left._append(start, last)
        return left

    def __and__(self, other: Intervals) -> Intervals:
        return self - (self - other)

    def _append(self, first: int, last: int) -> None:
        """Add a range beyond all others."""
        self._firsts.append(first)
        self._lasts.append(last)

    def _pairs(self) -> Iterator[Pair]:
        return zip(self._firsts, self._lasts, strict=True)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        return at < len(self._firsts) and self._firsts[at] <= number

    def __iter__(self) -> Iterator[int]:
        for first, last in self._pairs():
            yield from range(first, last + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __repr__(self) -> str:
        return f"Intervals({self.pairs()!r})"

    def count(self) -> int:
        """How many numbers are in the set."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def first(self) -> Pair:
        """The lowest range; raises `IndexError` if the set is empty."""
        return self._firsts[0], self._lasts[0]

    def last(self) -> Pair:
        """The highest range; raises `IndexError` if the set is empty."""
        return self._firsts[-1], self._lasts[-1]

    def pairs(self) -> list[Pair]:
        return list(self._pairs())

    def to_ranges(self) -> Ranges:
        """The set as it travels; raises `InvalidRecord` if it holds a negative number, which no sequence is."""
        return Ranges(tuple(self._pairs()))
