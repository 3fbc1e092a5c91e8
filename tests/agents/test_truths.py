"""Labels: what they say of both tiers is computed by hand, and where the leaf is shown to be the better one its answers hold."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.audits import Audits
from agents.cascade.budgets import Budgets
from agents.ledgers import Kept
from schemas.accuracy import Accuracy
from schemas.config import Audit, Evidence, Policy
from schemas.detections import Detection, Detections
from schemas.labels import Label
from schemas.messages import LEAF_PREFERRED_RANK, RANK, Alert, Status, Tier, Verdict
from schemas.rules import Rule

Make = Callable[..., Any]
NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
DIGEST = "a" * 64
PERSON = Detection("person", 0.9, 0.1, 0.1, 0.2, 0.4)
DOG = Detection("dog", 0.8, 0.6, 0.6, 0.8, 0.8)
CAT = Detection("cat", 0.8, 0.6, 0.1, 0.8, 0.3)


def verdict(number: int, *seen: Detection, tier: Tier = Tier.LEAF, source: str = "cam", confidence: float = 0.8) -> Verdict:
    return Verdict(
        id=f"{source}/e1/{number}",
        source=source,
        captured_at=NOON + dt.timedelta(seconds=number / 10),
        status=Status.FINAL,
        detections=Detections(seen),
        confidence=confidence,
        tier=tier,
        site="leaf-1",
        rank=RANK[tier],
        generation=0,
        model="small",
        model_digest=DIGEST,
    )


def label(number: int, *objects: Detection, source: str = "cam", classes: tuple[str, ...] = ()) -> Label:
    truly = Detections(msgspec.structs.replace(each, score=1.0) for each in objects)
    return Label(id=f"{source}/e1/{number}", source=source, objects=truly, by="anna", at=NOON, classes=classes)


def audits() -> Audits:
    return Audits(Audit(rate=1.0), Budgets(bytes_per_s=1e9, inferences_per_s=1e9, burst_s=5, clock=lambda: 0.0), clock=lambda: 0.0)


def play(ours: Audits, frames: range, *, better: Tier, source: str = "cam", labelled: bool = True) -> Accuracy:
    """Frames with a person. The better tier sees it alone; the other sees a dog on all frames, and the person on every second."""
    for number in frames:
        worse = [DOG] if number % 2 else [PERSON, DOG]
        leaf, region = ([PERSON], worse) if better is Tier.LEAF else (worse, [PERSON])
        ours.asked(verdict(number, *leaf, source=source), 0.5, otherwise=False)
        ours.heard(verdict(number, *region, tier=Tier.REGION, source=source))
        if labelled:
            assert ours.label(label(number, PERSON, source=source))
    (told,) = (each for each in ours.news() if each.source == source)
    return told


def test_the_accuracy_is_against_labels_as_soon_as_they_are_enough() -> None:
    """By hand: the region sees half of the persons, and invents a dog on each frame; the leaf is always right."""
    ours = audits()
    told = play(ours, range(200), better=Tier.LEAF, labelled=False)
    assert told.against == "region"
    assert told.leaf_precision == pytest.approx(0.5)
    told = play(ours, range(200, 400), better=Tier.LEAF)
    assert (told.against, told.frames, told.leaf_f1, told.calibration_error) == ("labels", 200, 1.0, pytest.approx(0.1, abs=0.02))
    assert told.sure_from == 0.8, "of what is sure the labels say something else in no frame"
    assert ours.sure("cam", DIGEST, 0.8)


def test_where_the_leaf_is_better_it_is_preferred_until_labels_say_the_opposite() -> None:
    ours = audits()
    play(ours, range(20), better=Tier.LEAF)
    assert not ours.truths.prefers_leaf("cam"), "a few labels show nothing"
    play(ours, range(20, 300), better=Tier.LEAF)
    assert ours.truths.prefers_leaf("cam")
    assert not ours.truths.prefers_leaf("dock")
    play(ours, range(1000), better=Tier.REGION, source="dock")
    assert not ours.truths.prefers_leaf("dock")
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(ours.dump("cam")), type=list[Kept])
    after = audits()
    after.load("cam", kept)
    assert after.truths.prefers_leaf("cam"), "also after a restart"
    assert after.sure("cam", DIGEST, 0.8)
    play(after, range(300, 2000), better=Tier.REGION)
    assert not after.truths.prefers_leaf("cam"), "the leaf has become the worse one"
    ours.begin_again("cam")
    assert not ours.truths.prefers_leaf("cam"), "another picture"
    assert ours.dump("cam") == []


def test_only_the_classes_that_were_looked_for_count() -> None:
    ours = audits()
    for number in range(200):
        ours.asked(verdict(number, PERSON, DOG), 1.0, otherwise=False)
        ours.heard(verdict(number, CAT, tier=Tier.REGION))
        ours.label(label(number, PERSON, classes=("person",)))
    (told,) = ours.news()
    assert (told.leaf_precision, told.leaf_recall) == (1.0, 1.0), "nobody said that there is no dog"


def test_a_frame_that_is_not_of_the_sample_says_nothing() -> None:
    ours = audits()
    assert not ours.label(label(0, PERSON))
    ours.asked(verdict(1, PERSON), 1.0, otherwise=False)
    assert ours.label(label(1, PERSON))
    assert ours.truths.dump("cam") == [], "it waits for the region's answer, so that both are judged on the same frames"
    ours.heard(verdict(1, PERSON, tier=Tier.REGION))
    assert len(ours.truths.dump("cam")[0].frames) == 1


@settings(deadline=None, max_examples=30)
@given(st.permutations([(kind, number) for kind in ("heard", "label", "label") for number in range(4)]))
def test_labels_and_answers_may_come_in_any_order_and_twice(events: list[tuple[str, int]]) -> None:
    def played(order: list[tuple[str, int]]) -> list[Kept]:
        ours = audits()
        for number in range(4):
            ours.asked(verdict(number, PERSON, DOG), 1.0, otherwise=False)
        for kind, number in order:
            if kind == "heard":
                ours.heard(verdict(number, PERSON, tier=Tier.REGION))
            else:
                ours.label(label(number, PERSON))
        return ours.truths.dump("cam")

    (one,), (other,) = played(events), played(sorted(events))
    assert (one.frames, one.doubts) == (other.frames, other.doubts)


# ---- what the leaf makes of it


def test_a_preferred_leaf_has_the_last_word_and_pays_for_the_audit_alone(tools: ModuleType, bench: Make) -> None:
    watch = Rule(name="watch", min_score=0.7, cooldown_s=0.0)
    desk = bench(
        rules=(watch,),
        audit=Audit(rate=1e-9),
        policy=Policy(mode="everything", inferences_per_s=1000),
        evidence=Evidence(form="frame"),
        teach=True,
    )

    def ask(number: int, score: float) -> tuple[Verdict, int, list[Alert]]:
        frame = tools.frame("cam", number)
        desk.detector.seen[frame.jpeg] = Detections([tools.person(score)])
        (items,) = desk.run([desk.record(frame)])
        (found,) = tools.values(items, "verdicts", Verdict)
        asked = sum(o.topic.base.startswith("escalations") for o in tools.outputs_of(items) if o.topic.base != "alerts.evidence")
        return found, asked, tools.values(items, "alerts", Alert)

    found, asked, _ = ask(0, 0.4)
    assert (found.status, found.rank, asked) == (Status.PROVISIONAL, RANK[Tier.LEAF], 1)
    desk.leaf.audits.truths._preferred.add("cam")
    found, asked, _ = ask(1, 0.4)
    assert (found.status, found.rank, asked) == (Status.FINAL, LEAF_PREFERRED_RANK, 0)
    found, asked, alerts = ask(2, 0.9)
    assert (found.status, found.rank, asked, len(alerts)) == (Status.FINAL, LEAF_PREFERRED_RANK, 0, 1)
    taught = desk.cascade.lesson("cam").verdicts
    answer = msgspec.structs.replace(found, id="cam/e1/0", tier=Tier.REGION, rank=RANK[Tier.REGION], seen=None)
    desk.leaf.hear(answer)
    assert desk.cascade.lesson("cam").verdicts == taught, "who is worse does not teach"
    desk.leaf.audits.truths._preferred.clear()
    desk.leaf.hear(answer)
    assert desk.cascade.lesson("cam").verdicts == taught + 1
    desk.leaf.audits.settings, desk.seconds = Audit(rate=1.0), 60.0
    desk.leaf.audits.truths._preferred.add("cam")
    found, asked, _ = ask(3, 0.4)
    assert (found.status, asked) == (Status.FINAL, 1), "the audit goes on, by which it is seen whether that stays so"
