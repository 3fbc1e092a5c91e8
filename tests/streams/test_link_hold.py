"""Who carries for a site: any number of links that hear each other late, in any order, end with one that holds."""

from __future__ import annotations

import datetime as dt

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.links import LinkHold
from streams.link.hold import BEAT_S, STALE_S, Hold

BEGUN = dt.datetime(2026, 1, 31, tzinfo=dt.UTC)


def link(name: str, gone: bool = False) -> Hold:
    me = LinkHold(site="leaf-1", writer=name, generation=0, host="h", pid=1, since=BEGUN)
    return Hold(me, lambda _: gone)


class Log:
    """The topic, and how far each link has read it."""

    def __init__(self, holds: list[Hold]) -> None:
        self.records: list[LinkHold] = []
        self.read = {id(hold): 0 for hold in holds}

    def write(self, record: LinkHold | None) -> None:
        if record is not None:
            self.records.append(record)

    def deliver(self, hold: Hold, now: float) -> None:
        for record in self.records[self.read[id(hold)] :]:
            hold.heard(record, now)
        self.read[id(hold)] = len(self.records)


@settings(max_examples=300)
@given(count=st.integers(2, 4), late=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2)), max_size=60))
def test_in_the_end_one_holds_and_the_others_stay_out(count: int, late: list[tuple[int, float]]) -> None:
    holds = [link(f"link-{n}") for n in range(count)]
    log, now = Log(holds), 0.0
    for which, passed in late:  # some are heard late, some write before they have heard of the others
        now += passed
        hold = holds[which % count]
        log.write(hold.due(now, listening=True))
        log.deliver(hold, now)
    for _ in range(40):  # then all of them hear everything
        now += 0.5
        for hold in holds:
            log.deliver(hold, now)
            log.write(hold.due(now, listening=True))
    mine = [hold for hold in holds if hold.mine]
    assert len(mine) == 1
    generation = mine[0].holder.generation  # type: ignore[union-attr]
    for _ in range(100):  # and nobody takes it away any more
        now += 0.5
        for hold in holds:
            log.deliver(hold, now)
            log.write(hold.due(now, listening=True))
    assert [hold for hold in holds if hold.mine] == mine
    assert {hold.holder.generation for hold in holds if hold.holder} == {generation}


def settle(hold: Hold, log: Log, now: float) -> None:
    log.write(hold.due(now, listening=True))
    log.deliver(hold, now)


def test_a_holder_that_falls_silent_is_replaced_and_does_not_come_back_by_itself() -> None:
    first, second = link("a"), link("b")
    log = Log([first, second])
    settle(first, log, 0.0)
    assert first.mine
    log.deliver(second, 0.0)
    assert second.due(STALE_S - 1, listening=True) is None
    settle(second, log, STALE_S + 1)
    assert second.mine
    log.deliver(first, STALE_S + 2)  # it comes back from a long pause, and hears of it
    assert not first.mine
    assert first.due(STALE_S + 3, listening=True) is None


def test_silence_counts_only_while_one_listens() -> None:
    first, second = link("a"), link("b")
    log = Log([first, second])
    settle(first, log, 0.0)
    log.deliver(second, 0.0)
    assert second.due(1000.0, listening=False) is None
    assert second.due(1000.0 + 1, listening=True) is None  # it has only begun to listen
    assert second.due(1000.0 + STALE_S, listening=True) is not None


def test_a_released_link_and_one_whose_process_is_gone_are_taken_up_at_once() -> None:
    for gone, released in ((True, False), (False, True)):
        first, second = link("a"), link("b", gone)
        log = Log([first, second])
        settle(first, log, 0.0)
        if released:
            log.write(first.release())
        log.deliver(second, 0.1)
        settle(second, log, 0.2)
        assert second.mine
        assert second.holder is not None
        assert second.holder.generation == 2


def test_beats_are_regular_and_the_same_but_for_nothing() -> None:
    hold = link("a")
    log = Log([hold])
    settle(hold, log, 0.0)
    assert hold.due(BEAT_S / 2, listening=True) is None
    beat = hold.due(BEAT_S + 0.1, listening=False)  # also while the region is away: it waits in the client
    assert beat == msgspec.structs.replace(log.records[0], released=False)
