"""Interval sets of sequences: the algebra of the account (union, difference, intersection), on sorted disjoint inclusive pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from schemas.messages import Ranges

Pair = tuple[int, int]


class Intervals:
    """A mutable set of whole numbers, kept as sorted, disjoint, inclusive ranges.

    >>> s = Intervals([(0, 4)]); s.add(6); s.add(5); s.pairs()
    [(0, 6)]
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._pairs: list[Pair] = []
        for first, last in sorted(pairs):
            self._append(first, last)

    def _append(self, first: int, last: int) -> None:
        """Add a range that starts no earlier than any known one."""
        if self._pairs and first <= self._pairs[-1][1] + 1:
            start, end = self._pairs[-1]
            self._pairs[-1] = (start, max(end, last))
        else:
            self._pairs.append((first, last))

    def add(self, first: int, last: int | None = None) -> None:
        """Add one number, or an inclusive range."""
        last = first if last is None else last
        if not self._pairs or first >= self._pairs[-1][0]:
            self._append(first, last)
        else:
            self._pairs = (self | Intervals([(first, last)]))._pairs

    def __or__(self, other: Intervals) -> Intervals:
        return Intervals([*self._pairs, *other._pairs])

    def __sub__(self, other: Intervals) -> Intervals:
        left: list[Pair] = []
        holes = other._pairs
        at = 0
        for first, last in self._pairs:
            while at < len(holes) and holes[at][1] < first:
                at += 1
            start, k = first, at
            while k < len(holes) and holes[k][0] <= last:
                if holes[k][0] > start:
                    left.append((start, holes[k][0] - 1))
                start = max(start, holes[k][1] + 1)
                k += 1
            if start <= last:
                left.append((start, last))
        return Intervals(left)

    def __and__(self, other: Intervals) -> Intervals:
        return self - (self - other)

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self._pairs)

    def __iter__(self) -> Iterator[int]:
        for first, last in self._pairs:
            yield from range(first, last + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._pairs == other._pairs

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def __repr__(self) -> str:
        return f"Intervals({self._pairs!r})"

    def count(self) -> int:
        """How many numbers are in the set."""
        return sum(last - first + 1 for first, last in self._pairs)

    def pairs(self) -> list[Pair]:
        return list(self._pairs)

    def to_ranges(self) -> Ranges:
        return Ranges(tuple(self._pairs))
