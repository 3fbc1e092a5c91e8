"""The audit of a leaf: which frames are asked about whatever the leaf thinks, and that the live accuracy is what the answers say."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import pytest

from agents.audits import Audits
from agents.cascade.budgets import Budgets
from agents.ledgers import Kept
from schemas.accuracy import Accuracy
from schemas.config import Audit, Evidence, Policy
from schemas.detections import Detection, Detections
from schemas.messages import MAX_TTL_S, RANK, Escalation, Reason, Status, Tier, Verdict
from streams.outputs import escalation_of

Make = Callable[..., Any]
NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
PERSON = Detection("person", 0.9, 0.1, 0.1, 0.2, 0.4)
DOG = Detection("dog", 0.8, 0.6, 0.6, 0.8, 0.8)


class Now:
    at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


def verdict(number: int, detections: Detections, tier: Tier = Tier.LEAF, source: str = "cam") -> Verdict:
    return Verdict(
        id=f"{source}/e1/{number}",
        source=source,
        captured_at=NOON + dt.timedelta(seconds=number / 10),
        status=Status.FINAL,
        detections=detections,
        confidence=0.8,
        tier=tier,
        site="leaf-1",
        rank=RANK[tier],
        generation=0,
        model="small",
        model_digest="a" * 64,
    )


def audits(rate: float = 1.0, inferences_per_s: float = 1e6) -> tuple[Audits, Now]:
    now = Now()
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=inferences_per_s, burst_s=5, clock=now)
    return Audits(Audit(rate=rate), budgets, clock=now), now


def play(ours: Audits, frames: int, *, wrong_every: int = 4, source: str = "cam", unheard: int = 0) -> None:
    """Frames with two objects of which the region sees one, and each `wrong_every`th time another one besides; some are never answered."""
    for number in range(frames):
        ours.asked(verdict(number, Detections([PERSON, DOG]), source=source), 0.5, otherwise=number % 2 == 0)
    for number in reversed(range(unheard, frames)):  # answers come in any order
        seen = [PERSON] if number % wrong_every else [PERSON, Detection("cat", 0.9, 0.3, 0.3, 0.5, 0.5)]
        answer = verdict(number, Detections(seen), Tier.REGION, source)
        ours.heard(answer)
        ours.heard(answer)  # and may come twice


def test_the_live_accuracy_is_what_the_answers_say() -> None:
    """By hand: of two objects one is right, so precision is .5; of 500 objects that the region saw 400 were found, so recall is .8."""
    ours, _ = audits()
    play(ours, 400)
    (told,) = ours.news()
    assert (told.frames, told.missing, told.unknown) == (400, 0, None)
    assert told.leaf_precision == pytest.approx(0.5, abs=1e-3)
    assert told.leaf_recall == pytest.approx(0.8, abs=1e-3)
    assert told.leaf_recall_low is not None
    assert told.leaf_recall_high is not None
    assert told.leaf_recall_low < 0.8 < told.leaf_recall_high
    # every second frame is the region's own in the results: half of the wrong dogs are gone, and all cats there are found (numbers of 4)
    assert told.results_precision == pytest.approx((200 + 100 + 200) / (200 + 100 + 400), abs=1e-3)
    assert told.results_recall == pytest.approx(1.0, abs=1e-3)
    assert told.calibration_pairs == 800
    assert told.sure_from is None, "every answer is wrong somewhere"
    assert (told.since, told.until) == (NOON, NOON + dt.timedelta(seconds=39.9))
    assert Accuracy.from_bytes(told.to_bytes()) == told
    assert not ours.news(), "it is told once"
    assert ours.live().frames == 400


def test_what_is_never_answered_is_missing_and_too_much_of_it_says_nothing() -> None:
    ours, _ = audits()
    play(ours, 400, unheard=40)
    (told,) = ours.news()
    assert (told.frames, told.missing) == (360, 40)
    assert told.leaf_f1 is not None
    play(ours, 400, source="dock", unheard=200)
    (told,) = ours.news()
    assert (told.frames, told.missing, told.leaf_f1) == (200, 200, None)
    assert told.unknown is not None
    assert "were not judged" in told.unknown


def test_what_was_judged_outlives_the_process() -> None:
    before, _ = audits()
    play(before, 300)
    (told,) = before.news()
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(before.dump("cam")), type=list[Kept])
    after, _ = audits()
    after.load("cam", kept)
    assert after.live() == before.live()
    after.asked(verdict(300, Detections([PERSON])), 0.5, otherwise=False)
    after.heard(verdict(300, Detections([PERSON]), Tier.REGION))
    (again,) = after.news()
    assert again.frames == told.frames + 1


def test_what_is_sure_is_what_was_told_also_after_a_restart() -> None:
    ours, _ = audits()
    for number in range(600):  # of what it is less sure of, every second answer is wrong
        seen = verdict(number, Detections([PERSON]))
        ours.asked(msgspec.structs.replace(seen, confidence=0.8 if number % 2 else 0.2), 0.5, otherwise=False)
        ours.heard(verdict(number, Detections([PERSON] if number % 4 else [DOG]), Tier.REGION))
    (told,) = ours.news()
    assert told.sure_from == 0.8
    assert [ours.sure("cam", "a" * 64, confidence) for confidence in (0.81, 0.8, 0.79)] == [True, True, False]
    assert not ours.sure("dock", "a" * 64, 1.0)
    assert not ours.sure("cam", "b" * 64, 1.0)
    after, _ = audits()
    after.load("cam", ours.dump("cam"))
    assert after.sure("cam", "a" * 64, 0.8)
    ours.begin_again("cam")
    assert not ours.sure("cam", "a" * 64, 1.0)
    assert audits(rate=0.0)[0].sure("cam", "a" * 64, 1.0) is None, "without an audit nobody can say"


def test_a_rate_that_would_take_more_than_half_of_a_budget_falls() -> None:
    ours, now = audits(rate=0.2, inferences_per_s=1.0)
    drawn = []
    for number in range(3000):  # ten a second, of which a fifth would be two a second
        now.at_s = number / 10
        drawn.append(ours.draw("cam", f"cam/e1/{number}", 10_000.0))
    late = [rate for rate in drawn[1000:] if rate is not None]
    assert 70 <= len(late) <= 130, "half a look a second"
    assert all(rate == pytest.approx(0.05, rel=0.2) for rate in late), "the rate in force travels with the record"


def test_an_audited_frame_is_asked_about_whatever_the_leaf_thinks(tools: ModuleType, bench: Make) -> None:
    desk = bench(audit=Audit(rate=1.0), policy=Policy(inferences_per_s=1000.0), evidence=Evidence(form="frame"))
    frames = [tools.frame("cam", number) for number in range(3)]
    desk.detector.seen[frames[0].jpeg] = Detections([tools.person(0.9)])  # sure
    desk.detector.seen[frames[1].jpeg] = Detections([tools.person(0.4)])  # unsure: it would have been asked about in any case
    (items,) = desk.run([desk.record(frame) for frame in frames])
    questions: list[Escalation] = [
        escalation_of(list(output.headers)) for output in tools.outputs_of(items) if output.topic.base == "escalations"
    ]
    assert [question.reason for question in questions] == [Reason.AUDIT] * 3
    assert {(question.audit_rate, question.ttl_s) for question in questions} == {(1.0, MAX_TTL_S)}
    waiting = [each.judged.asked for each in desk.leaf.audits._waiting.values()]
    assert waiting == [False, True, False]


def test_an_audit_that_no_budget_allows_is_missing(tools: ModuleType, bench: Make) -> None:
    desk = bench(audit=Audit(rate=1.0), policy=Policy(inferences_per_s=1000.0))
    desk.budgets.inferences.spend(desk.budgets.inferences.level())
    frame = tools.frame("cam", 0)
    (items,) = desk.run([desk.record(frame)])
    assert [output.topic.base for output in tools.outputs_of(items)] == ["verdicts"]
    (verdict_,) = tools.values(items, "verdicts", Verdict)
    assert verdict_.status is Status.UNANSWERED
    assert desk.leaf.audits.live().missing == 1


def test_alerts_are_asked_about_as_alerts(tools: ModuleType, bench: Make) -> None:
    from schemas.rules import Rule

    desk = bench(audit=Audit(rate=1.0), policy=Policy(inferences_per_s=1000.0), rules=(Rule(name="watch", cooldown_s=0.0),))
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person(0.9)])
    (items,) = desk.run([desk.record(frame)])
    assert "escalations.alerts" in [output.topic.base for output in tools.outputs_of(items)]
    assert desk.leaf.audits._waiting, "its answer counts all the same"
