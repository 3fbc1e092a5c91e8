"""The account's laws: random histories of a fleet, told in topics, against a naive oracle that keeps every sequence's fate in a dict."""

from __future__ import annotations

import datetime as dt
import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.accounts import AccountPast, AccountSet, parts, read_entry
from schemas.identity import RecordId
from schemas.intervals import Intervals
from schemas.messages import Drop, EpochMark, EpochState, Ranges, RangesBySite
from streams.account import Account, Ledger
from streams.accounts import Sets

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
LENGTH = 48

# ---- a history: what truly became of every sequence, and what the topics of two sites say of it

Epochs = [("cam-1", "e1"), ("cam-1", "e2"), ("cam-2", "e1")]
FOREIGN = ("kafka", "cluster/uuid/0")
DROPS = ["stale", "producer", "retention", "dropped-twice", "dropped-letter", "discarded-letter"]
FATES = ["result", "dead", "open", "replayed-drop", "replayed-letter", *DROPS]
Fate = st.sampled_from(FATES)
SITES = ("leaf-1", "leaf-2")


@st.composite
def histories(draw: Any) -> dict[str, Any]:
    """For each epoch its length, the site that each sequence went to, and its fate; and for a foreign partition some offsets."""
    return {
        "fates": {epoch: draw(st.lists(Fate, max_size=LENGTH)) for epoch in Epochs},
        "moves": {epoch: draw(st.integers(0, LENGTH)) for epoch in Epochs},
        "states": {epoch: draw(st.sampled_from([EpochState.MARK, EpochState.ENDED])) for epoch in Epochs},
        "foreign": draw(st.dictionaries(st.integers(0, 200), st.sampled_from(["result", "dead", "stale"]), max_size=20)),
        "seed": draw(st.integers(0, 1 << 32)),
    }


def told(history: dict[str, Any]) -> list[tuple[str, Any]]:
    """The records that the topics of both sites hold of a history, some of them twice, in any order. Each with its site."""
    chance = random.Random(history["seed"])
    records: list[tuple[str, Any]] = []
    for (source, epoch), fates in history["fates"].items():
        move = history["moves"][source, epoch]
        drops: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        for sequence, fate in enumerate(fates):
            site, record = SITES[sequence >= move], RecordId(source, epoch, sequence)
            if fate in ("result", "replayed-drop", "replayed-letter"):
                records.append((site, ("result", record)))
            if fate in ("dead", "replayed-letter", "dropped-letter", "discarded-letter"):
                records.append((site, ("letter", record)))
            if fate in ("stale", "replayed-drop", "dropped-letter"):
                drops[site, "leaf", "stale"].add(sequence)
            if fate == "discarded-letter":
                drops[site, "dlq", "discarded"].add(sequence)
            if fate == "dropped-twice":  # stale at the leaf, and told again as lost
                drops[site, "leaf", "stale"].add(sequence)
                drops[site, "leaf", "retention"].add(sequence)
            if fate in ("producer", "retention"):
                drops[site, "leaf" if fate == "retention" else "producer", fate].add(sequence)
        for (site, stage, reason), sequences in drops.items():
            many = sorted(sequences)
            cut = chance.randint(0, len(many))
            for some in (many[:cut], many[cut:], many[cut // 2 :]):  # the same sequences in several records
                if some:
                    ranges = Intervals((n, n) for n in some).to_ranges()
                    records.append((site, ("drop", Drop(source=source, epoch=epoch, site=site, stage=stage, reason=reason, ranges=ranges))))
        for site, here in ((SITES[0], range(min(move, len(fates)))), (SITES[1], range(min(move, len(fates)), len(fates)))):
            if not here and site == SITES[1]:
                continue
            other = set(range(len(fates))) - set(here)
            elsewhere = RangesBySite(
                {next(each for each in SITES if each != site): Intervals((n, n) for n in other).to_ranges()} if other else {}
            )
            for state in {EpochState.STARTED, history["states"][source, epoch]}:
                count = 0 if state is EpochState.STARTED else len(fates)
                mark = EpochMark(
                    source=source,
                    epoch=epoch,
                    site=site,
                    state=state,
                    assigned=count,
                    acknowledged=count,
                    started_at=NOW,
                    elsewhere=elsewhere if count else RangesBySite(),
                )
                records.append((site, ("mark", mark)))
    for offset, fate in history["foreign"].items():
        record = RecordId(*FOREIGN, offset)
        ranges = Ranges([(offset, offset)])
        drop = Drop(source=FOREIGN[0], epoch=FOREIGN[1], site=SITES[0], stage="leaf", reason="stale", ranges=ranges)
        records.append((SITES[0], {"result": ("result", record), "dead": ("letter", record), "stale": ("drop", drop)}[fate]))
    copies = Drop(source="kafka", epoch="cluster/outbox/0", site=SITES[0], stage="link", reason="retention", ranges=Ranges([(0, 99)]))
    records.append((SITES[0], ("drop", copies)))
    records += chance.sample(records, len(records) // 2)
    chance.shuffle(records)
    return records


def feed(facts: Any, record: tuple[str, Any], at_ms: int = NOW_MS) -> None:
    kind, value = record
    {"result": facts.result, "letter": facts.dead_letter, "drop": facts.drop, "mark": facts.epoch}[kind](value, at_ms)


def expected(history: dict[str, Any], sites: set[str]) -> dict[tuple[str, str], dict[str, set[int]]]:
    """The oracle: what an account of some sites must say of each epoch, sequence by sequence."""
    found: dict[tuple[str, str], dict[str, set[int]]] = {}
    for epoch, fates in history["fates"].items():
        sets: dict[str, set[int]] = defaultdict(set)
        move = history["moves"][epoch]
        for sequence, fate in enumerate(fates):
            if SITES[sequence >= move] not in sites:
                sets["elsewhere"].add(sequence)
                continue
            if fate in ("result", "replayed-drop", "replayed-letter"):
                sets["results"].add(sequence)
            elif fate in ("dead", "dropped-letter"):
                sets["dead"].add(sequence)
            elif fate == "open":
                sets["open"].add(sequence)
            else:
                sets["dropped"].add(sequence)
        found[epoch] = sets
    return found


def check(account: Account, history: dict[str, Any], sites: set[str]) -> None:
    lines = {(line.source, line.epoch): line for line in account.lines}
    for epoch, sets in expected(history, sites).items():
        line = lines.pop(epoch, None)
        if line is None:
            assert not (len(history["fates"][epoch]) - len(sets["elsewhere"]))
            continue
        assert {n for first, last in line.open for n in range(first, last + 1)} == sets["open"]
        assert (line.results, line.dead, line.dropped) == (len(sets["results"]), len(sets["dead"]), len(sets["dropped"]))
        assert sum(line.elsewhere.values()) == len(sets["elsewhere"])
        assert line.produced == line.results + line.dead + line.dropped + line.missing + line.in_work
        assert line.produced == len(history["fates"][epoch]) - len(sets["elsewhere"])
    if history["foreign"] and SITES[0] in sites:
        line = lines.pop(FOREIGN)
        fates = list(history["foreign"].values())
        assert (line.results, line.dead, line.dropped, line.missing) == (
            fates.count("result"),
            fates.count("dead"),
            fates.count("stale"),
            0,
        )
    assert not lines, "an epoch that nobody produced"
    assert account.adds_up == all(not line.open for line in account.lines)


@settings(deadline=None)
@given(history=histories())
def test_a_region_adds_up_what_moved_between_its_sites(history: dict[str, Any]) -> None:
    ledger = Ledger(SITES)
    for _, record in told(history):
        feed(ledger, record)
    check(ledger.account(), history, set(SITES))


@settings(deadline=None)
@given(history=histories(), site=st.sampled_from(SITES))
def test_a_leaf_leaves_to_others_what_they_have(history: dict[str, Any], site: str) -> None:
    ledger = Ledger([site])
    for where, record in told(history):
        if where == site:
            feed(ledger, record)
    check(ledger.account(), history, {site})


# ---- the accountant's sets


class Store:
    """The topic `accounts`: records by key, compacted at any moment, with a writer that may die between two of them."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes | None]] = []

    def write(self, key: str, value: AccountSet | AccountPast | None) -> None:
        self.log.append((key, None if value is None else value.to_bytes()))

    def compact(self) -> None:
        self.log = [(key, value) for at, (key, value) in enumerate(self.log) if key not in {later for later, _ in self.log[at + 1 :]}]

    def entries(self) -> list[AccountSet | AccountPast]:
        latest = dict(self.log)
        return [read_entry(value) for value in latest.values() if value is not None]


@settings(deadline=None)
@given(history=histories(), crashes=st.lists(st.integers(0, 40), max_size=6), max_live=st.sampled_from([2, 5, 50_000]))
def test_sets_outlive_the_records_and_never_lead(history: dict[str, Any], crashes: list[int], max_live: int) -> None:
    """An accountant that writes at random moments, dies in the middle of it, and comes back; the topic is compacted meanwhile. At every
    moment the sets and the records beyond its commit make the whole account, and the sets alone claim nothing that is not there."""
    records = told(history)
    chance = random.Random(history["seed"])
    store, committed, position = Store(), 0, 0
    sets = Sets("leaf-1", max_live=max_live)
    deaths = list(crashes)
    while committed < len(records):
        for _, record in records[position : position + 7]:
            feed(sets, record)
        position = min(position + 7, len(records))
        changes = list(sets.changes())
        changes = [change for change in changes if change[2] is not None] + [change for change in changes if change[2] is None]
        dies = deaths.pop() if deaths else len(changes) + 1
        for number, (key, _, value, done) in enumerate(changes):
            if number == dies:
                break
            store.write(key, value)
            done()
        if chance.random() < 0.3:
            store.compact()
        if dies < len(changes):  # it comes back with what it had written, and reads again from its commit
            sets, position = Sets("leaf-1", max_live=max_live), committed
            for entry in store.entries():
                sets.learn(entry)
        else:
            sets.written()
            committed = position
        whole, kept, truth = Ledger(SITES), Ledger(SITES), Ledger(SITES)
        for entry in store.entries():
            whole.known(entry)
            kept.known(entry)
        for _, record in records[committed:]:
            feed(whole, record)
        for _, record in records[:position]:
            feed(truth, record)
        check(whole.account(), history, set(SITES))
        true = {(line.source, line.epoch): line for line in truth.account().lines}
        for line in kept.account().lines:
            if dies >= len(changes):
                assert line.results <= true[line.source, line.epoch].results
                assert line.results + line.dead <= true[line.source, line.epoch].results + true[line.source, line.epoch].dead


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1000)), max_size=80), limit=st.integers(1, 8))
def test_parts_are_the_set_in_small_pieces(pairs: list[tuple[int, int]], limit: int) -> None:
    whole = Intervals((first, first + more) for first, more in pairs)
    pieces = list(parts(whole.pairs(), limit))
    assert Intervals(pair for _, piece in pieces for pair in piece) == whole
    assert all(len(piece) <= limit for _, piece in pieces)
    assert len({name for name, _ in pieces}) == len(pieces)
    assert sum(last - first + 1 for _, piece in pieces for first, last in piece) == whole.count(), "no sequence is in two pieces"


def test_a_ragged_epoch_is_written_in_small_records_and_a_change_writes_one_of_them() -> None:
    """Every second frame of a day dropped, as on a leaf at half its capacity: one change must not send megabytes up the link."""
    sets = Sets("leaf-1", max_live=20_000)
    store = Store()
    for sequence in range(0, 100_000, 2):
        sets.result(RecordId("cam-1", "e1", sequence), NOW_MS)
        if sequence % 10_000 == 0:
            for key, _, value, done in list(sets.changes()):
                store.write(key, value)
                done()
            sets.written()
    for key, _, value, done in list(sets.changes()):
        store.write(key, value)
        done()
    sets.written()
    assert all(len(value) < 32_000 for _, value in store.log if value is not None)
    sets.result(RecordId("cam-1", "e1", 100_000), NOW_MS)
    assert len([key for key, _, _, _ in sets.changes()]) <= 2
    ledger = Ledger(["leaf-1"])
    for entry in store.entries():
        ledger.known(entry)
    assert ledger.account().lines[0].results == 50_000
    again = Sets("leaf-1", max_live=20_000)
    for entry in reversed(store.entries()):
        again.learn(entry)
    assert sum(len(kept.live.pairs()) for kept in again._sets.values()) <= 20_000, "what is sealed is not taken into memory again"


def test_old_epochs_become_numbers_and_are_added_once() -> None:
    sets = Sets("leaf-1")
    for epoch, at_ms in (("old", 1_000), ("older", 500), ("new", 90_000)):
        sets.result(RecordId("cam-1", epoch, 4), at_ms)
    assert {source: sorted(epochs) for source, epochs in sets.old(50_000).items()} == {"cam-1": ["old", "older"]}

    def line(epoch: str) -> Any:
        ledger = Ledger()
        ledger.result(RecordId("cam-1", epoch, 4), 1_000)
        return ledger.account().lines[0]

    past = sets.fold("cam-1", [line("old"), line("older")])
    assert (past.epochs, past.produced, past.results, past.missing) == (2, 10, 2, 8)
    crashed = Sets("leaf-1")  # it died before the sets were gone
    crashed.learn(past)
    assert crashed.fold("cam-1", [line("old"), line("older")]).epochs == 2
    sets.forget(past)
    assert sets.old(1 << 40) == {"cam-1": ["new"]}
    assert sets.fold("cam-1", [line("new")]).epochs == 3


# ---- what is in work


def test_what_is_young_is_in_flight_and_what_is_old_is_missing() -> None:
    """Marks of a live source: what was on the broker half a minute ago and has not ended is missing, what came since may be in work."""
    ledger = Ledger(["leaf-1"], young_ms=NOW_MS - 30_000)
    for age_s, acknowledged in ((60, 10), (31, 20), (1, 50)):
        mark = EpochMark(
            source="cam-1", epoch="e1", site="leaf-1", state=EpochState.MARK, assigned=52, acknowledged=acknowledged, started_at=NOW
        )
        ledger.epoch(mark, NOW_MS - age_s * 1000)
    for sequence in [*range(15), 17, 30]:
        ledger.result(RecordId("cam-1", "e1", sequence), NOW_MS - 500)
    line = ledger.account().lines[0]
    assert line.open == ((15, 16), (18, 19))
    assert line.in_flight == ((20, 29), (31, 49))
    assert line.unsent == 2
    assert not ledger.account().adds_up
    for sequence in (15, 16, 18, 19):
        ledger.result(RecordId("cam-1", "e1", sequence), NOW_MS)
    assert ledger.account().adds_up
    assert not ledger.account().settled


def test_lines_are_chosen_by_source_and_by_when_they_were_heard_of() -> None:
    ledger = Ledger()
    ledger.result(RecordId("cam-1", "e1", 0), NOW_MS - 10_000)
    ledger.result(RecordId("cam-2", "e1", 0), NOW_MS)
    account = ledger.account()
    assert [line.source for line in account.of(["cam-1"]).lines] == ["cam-1"]
    assert [line.source for line in account.of([], NOW - dt.timedelta(seconds=5)).lines] == ["cam-2"]


@pytest.mark.parametrize("wrong", [{"outcome": "dropped", "reason": None}, {"outcome": "result", "reason": "stale"}])
def test_a_set_says_why_only_where_something_was_dropped(wrong: dict[str, Any]) -> None:
    from schemas.accounts import Outcome
    from schemas.records import InvalidRecord

    with pytest.raises(InvalidRecord, match="expected one with"):
        AccountSet(
            source="cam-1",
            epoch="e1",
            site="leaf-1",
            stage="leaf",
            ranges=Ranges([(0, 1)]),
            seen_at=NOW,
            outcome=Outcome(wrong["outcome"]),
            reason=wrong["reason"],
        )
