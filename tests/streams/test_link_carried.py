"""What was carried of a partition, against a plain set of offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.link.carried import MAX_GAPS, Carried


class Partition(RuleBasedStateMachine):
    """The model: every offset below the end of the log is new, waiting, on its way, or settled."""

    @initialize(start=st.integers(0, 30), gaps=st.sets(st.integers(0, 29)), more=st.integers(0, 40))
    def begin(self, start: int, gaps: set[int], more: int) -> None:
        gaps = {offset for offset in gaps if offset < start}
        self.track = Carried(start, [(offset, offset) for offset in gaps])
        self.waiting, self.settled, self.next = set(gaps), set(range(start)) - gaps, start
        self.high = start + more
        self.way: list[set[int]] = []

    @rule(more=st.integers(0, 20))
    def write(self, more: int) -> None:
        self.high += more

    @rule(data=st.data())
    def jump(self, data: st.DataObject) -> None:
        to = data.draw(st.integers(0, self.high))
        self.track.jump(to)
        self.waiting |= set(range(self.next, to))
        self.next = max(self.next, to)

    @precondition(lambda self: self.next < self.high)
    @rule(data=st.data())
    def hand_out_live(self, data: st.DataObject) -> None:
        last = data.draw(st.integers(self.next, self.high - 1))
        assert self.track.live(last) == (self.next, last)
        self.way.append(set(range(self.next, last + 1)))
        self.next = last + 1

    @rule(limit=st.integers(1, 10), newest=st.booleans())
    def hand_out_backfill(self, limit: int, newest: bool) -> None:
        found = self.track.newest(limit) if newest else self.track.oldest(limit)
        if not self.waiting:
            assert found is None
            return
        assert found is not None
        offsets = set(range(found[0], found[1] + 1))
        assert offsets <= self.waiting
        assert len(offsets) <= limit
        assert (max if newest else min)(self.waiting) == (found[1] if newest else found[0])
        self.waiting -= offsets
        self.way.append(offsets)

    @precondition(lambda self: self.way)
    @rule(data=st.data(), arrives=st.booleans())
    def settle_or_give_back(self, data: st.DataObject, arrives: bool) -> None:
        offsets = self.way.pop(data.draw(st.integers(0, len(self.way) - 1)))
        if arrives:
            self.track.settle(min(offsets), max(offsets), 7)
            self.settled |= offsets
        else:
            self.track.give_back(min(offsets), max(offsets))
            self.waiting |= offsets

    @rule(data=st.data())
    def retention(self, data: st.DataObject) -> None:
        low = data.draw(st.integers(0, self.high))
        lost = {offset for first, last in self.track.drop_below(low) for offset in range(first, last + 1)}
        assert lost == {offset for offset in self.waiting if offset < low} | set(range(self.next, low))
        self.waiting -= lost
        self.settled |= lost
        self.next = max(self.next, low)

    @invariant()
    def the_position_tells_exactly_what_is_not_settled(self) -> None:
        if not hasattr(self, "track"):
            return
        top, gaps = self.track.position()
        told = {offset for first, last in gaps for offset in range(first, last + 1)}
        assert set(range(top)) - told == self.settled
        assert self.track.open(self.high) == self.high - len(self.settled)
        assert self.track.first_open() == min(set(range(self.high + 1)) - self.settled)
        assert self.track.waiting() == bool(self.waiting)
        again = Carried(top, gaps)  # a link that starts here carries the rest, and nothing else
        assert again.position() == (top, gaps)


TestPartition = Partition.TestCase


@given(gaps=st.sets(st.integers(0, 2000), max_size=400))
def test_a_position_names_a_bounded_number_of_gaps_and_never_calls_carried_what_is_not(gaps: set[int]) -> None:
    track = Carried(2001, [(offset, offset) for offset in gaps])
    top, told = track.position()
    assert len(told) <= MAX_GAPS
    assert {offset for offset in gaps if offset < top} <= {offset for first, last in told for offset in range(first, last + 1)}
    assert top == 2001 or 2000 in gaps


@pytest.mark.parametrize(("start", "low", "lost"), [(5, 3, []), (5, 5, []), (5, 9, [(5, 8)]), (0, 4, [(0, 3)])])
def test_what_fell_off_before_it_was_handed_out_is_told_once(start: int, low: int, lost: list[tuple[int, int]]) -> None:
    track = Carried(start)
    assert track.drop_below(low) == lost
    assert track.drop_below(low) == []
