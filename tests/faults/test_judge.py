"""The judge sees what is wrong: each thing that the fault tests promise is broken here in a book of a few records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.faults.book import Book
from infra.faults.judge import Judge

FRAME = b"\xff\xd8\xff frame"
SHA = hashlib.sha256(FRAME).hexdigest()
SEEN = '[["red",0.9,0.0,0.0,0.5,0.5,null]]'
SEEN_DIGEST = hashlib.sha256(SEEN.encode()).hexdigest()[:32]
LATER = 100.0


def book(evidence: dict[str, str] | None = None) -> Book:
    known = {} if evidence is None else evidence
    uuids = {"frames": "uuid-frames", "verdicts": "uuid-verdicts"}
    kept = Book({SHA: SEEN}.get, lambda digest, _: known.get(digest), lambda digest, _: digest in known, uuids)
    kept.promise("cam/e/0", SHA, 1.0)
    kept.promise("cam/e/1", SHA, 2.0)
    return kept


def answer(record: str, *, order: str = "1", **fields: Any) -> bytes:
    base = {"id": record, "source": "cam", "tier": "leaf", "status": "final", "detections": SEEN, "order": order, "seen": SEEN_DIGEST}
    return json.dumps({**base, **fields}).encode()


def drop(ranges: str, **fields: Any) -> bytes:
    return json.dumps({"source": "cam", "epoch": "e", "stage": "leaf", "reason": "stale", "ranges": ranges, **fields}).encode()


def test_a_record_without_an_end_is_named() -> None:
    kept = book()
    kept.result("leaf", answer("cam/e/0"))
    assert kept.unaccounted(LATER, lambda _: False) == ["cam/e/1"]
    assert kept.unaccounted(1.5, lambda _: False) == [], "it was published after the time that is asked about"


@pytest.mark.parametrize("end", ["result", "drop", "letter", "offsets"])
def test_each_kind_of_end_counts(end: str) -> None:
    kept = book()
    kept.result("leaf", answer("cam/e/0"))
    match end:
        case "result":
            kept.result("leaf", answer("cam/e/1"))
        case "drop":
            kept.drop(drop("[[1,1]]"))
        case "letter":
            kept.letter("frames.dlq", "cam/e/1")
        case "offsets":
            kept.frame("cam/e/1", FRAME, 3, 17)
            kept.drop(drop("[[17,17]]", source="kafka", epoch="cluster/uuid-frames/3", reason="retention"))
    assert kept.unaccounted(LATER, lambda _: False) == []


def test_what_a_killed_producer_never_sent_is_lost_with_it_and_nothing_else() -> None:
    kept = book()
    kept.promise("cam/e/2", SHA, 3.0)
    kept.epoch(json.dumps({"source": "cam", "epoch": "e", "state": "mark", "acknowledged": 1}).encode())
    kept.frame("cam/e/1", FRAME, 0, 5)
    assert kept.unaccounted(LATER, lambda stream: stream == "cam/e") == ["cam/e/0", "cam/e/1"], "acknowledged, and on the broker"
    assert kept.unaccounted(LATER, lambda _: False) == ["cam/e/0", "cam/e/1", "cam/e/2"]


def test_a_result_that_does_not_climb_is_a_repetition() -> None:
    kept = book()
    kept.result("leaf", answer("cam/e/0", order="1"))
    kept.result("leaf", answer("cam/e/0", order="2"))
    assert kept.tally.repeated_results == 0
    kept.result("leaf", answer("cam/e/0", order="2"))
    kept.result("leaf", answer("cam/e/0", order="1"))
    assert kept.tally.repeated_results == 2
    kept.result("region", answer("cam/e/0", order="2"))
    assert kept.tally.repeated_results == 2, "the region's results are its own"


def test_results_of_both_sites_must_agree() -> None:
    kept = book()
    kept.result("leaf", answer("cam/e/0", order="2"))
    kept.result("region", answer("cam/e/0", order="1"))
    assert kept.disagreeing(LATER) == ["cam/e/0"]
    kept.result("region", answer("cam/e/0", order="2"))
    assert kept.disagreeing(LATER) == []


def test_verdicts_that_come_twice_are_counted_and_those_that_never_come_are_named() -> None:
    kept = book()
    kept.verdict("leaf", "verdicts", answer("cam/e/0"), 0, 0, 10)
    kept.verdict("leaf", "verdicts", answer("cam/e/0"), 0, 1, 11)
    kept.verdict("leaf", "verdicts", answer("cam/e/1"), 0, 2, 12)
    kept.verdict("region", "up.verdicts", answer("cam/e/0"), 0, 0, 13)
    assert kept.tally.repeated_verdicts == 1
    assert [each.about for each in kept.uncarried("verdicts", 1000)] == ["cam/e/1"]
    kept.drop(drop("[[2,2]]", source="kafka", epoch="cluster/uuid-verdicts/0", stage="link", reason="retention"))
    assert kept.uncarried("verdicts", 1000) == []
    assert [each.offset for each in kept.lost("verdicts")] == [2]


def test_other_detections_other_bytes_and_unknown_records_are_seen() -> None:
    kept = book()
    kept.verdict("leaf", "verdicts", answer("cam/e/0", seen="0" * 32), 0, 0, 10)
    kept.frame("cam/e/1", FRAME + b"!", 0, 1)
    kept.result("leaf", answer("cam/e/99"))
    assert (kept.tally.wrong_detections, kept.tally.wrong_bytes, kept.tally.unknown_records) == (1, 1, 1)


def test_the_regions_detections_are_held_against_its_evidence() -> None:
    evidence: dict[str, str] = {}
    kept = book(evidence)
    kept.verdict("region", "down.verdicts", answer("cam/e/0", tier="region", detections="[]", evidence="abc"), 0, 0, 10)
    kept.check_evidence()
    assert kept.tally.wrong_detections == 0, "the evidence has not been read yet"
    evidence["abc"] = SEEN
    kept.check_evidence()
    assert kept.tally.wrong_detections == 1


def test_the_longest_pause_is_of_each_source_by_itself() -> None:
    kept = book()
    for offset, (source, at_ms) in enumerate([("a", 0), ("b", 1_000), ("a", 4_000), ("b", 9_500), ("a", 5_000)]):
        kept.verdict("leaf", "verdicts", answer(f"{source}/e/{offset}", source=source), 0, offset, at_ms)
    assert kept.tally.pauses == {"a": 4.0, "b": 8.5}


def test_an_alert_that_stays_raised_or_differs_is_undecided() -> None:
    kept = book()

    def alert(version: int) -> bytes:
        return json.dumps({"id": "a", "record": "cam/e/0", "source": "cam", "state": "x", "version": version}).encode()

    kept.alert("leaf", "alerts", alert(0), 0, 0, 10)
    kept.alert("region", "alerts", alert(0), 0, 0, 11)
    assert kept.undecided(1000) == ["a"]
    kept.alert("leaf", "alerts", alert(3), 0, 1, 12)
    assert kept.undecided(1000) == ["a"], "the region does not know yet"
    kept.alert("region", "alerts", alert(3), 0, 1, 13)
    assert kept.undecided(1000) == []


def test_who_is_slow_is_waited_for_and_who_stands_still_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Any = SimpleNamespace(knows=None)
    judge = Judge("127.0.0.1:1", "127.0.0.1:1", "leaf-1", tmp_path, oracle, oracle)
    left = 10

    def one_fewer(before: float, lost_with: object) -> list[str]:  # it is asked every .2 s
        nonlocal left
        left -= 1
        return ["record"] * left

    monkeypatch.setattr(judge.book, "check_evidence", lambda: None)
    monkeypatch.setattr(judge.book, "unaccounted", one_fewer)
    try:
        slow = judge.settle(0.0, 1.0)
        assert slow.clean
        assert slow.seconds > 1.0
        monkeypatch.setattr(judge.book, "unaccounted", lambda before, lost_with: ["record"] * 3)
        assert judge.settle(0.0, 1.0).open == 3
    finally:
        for reader in judge.readers.values():
            reader.close()
