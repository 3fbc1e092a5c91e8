"""What a leaf calls final: what the audit shows that the region would hardly disagree with, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from agents.cascade.accuracy import Judged
from agents.cascade.agreement import Counts
from agents.ledgers import Doubt, Kept
from agents.reach import AWAY
from schemas.config import Audit, Evidence, Policy
from schemas.detections import Detections
from schemas.links import Breaker, LinkState
from schemas.messages import Status, Verdict

Make = Callable[..., Any]
Answer = Callable[[float], tuple[Status, int, str | None]]
SURE, UNSURE = 0.9, 0.4  # scores, whose confidences are .8 and .2


def audited(digest: str, *, frames: int = 600) -> Kept:
    """Answers with a confidence of .8 were all agreed with, of those with .2 every second one was not."""
    doubts = {f"cam/e0/{n}": Doubt(0.8 if n % 2 else 0.2, n % 4 == 0, [], []) for n in range(frames)}
    judged = [Judged(name, float(n), 0.01, Counts(1, 0, 0)) for n, name in enumerate(doubts)]
    return Kept("small", digest, "leaf-1", judged, doubts)


@pytest.fixture
def desk(bench: Make) -> Any:
    return bench(audit=Audit(rate=1e-9), policy=Policy(inferences_per_s=1000, deadline_ms=7000), evidence=Evidence(form="frame"))


def answers(desk: Any, tools: ModuleType) -> Answer:
    """Answers one frame after the other, each with one object of a score; gives the verdict's status, how many questions, and its note."""
    numbers: Iterator[int] = iter(range(1000))

    def answer(score: float) -> tuple[Status, int, str | None]:
        frame = tools.frame("cam", next(numbers))
        desk.detector.seen[frame.jpeg] = Detections([tools.person(score)])
        (items,) = desk.run([desk.record(frame)])
        (verdict,) = tools.values(items, "verdicts", Verdict)
        assert (verdict.deadline_ms is None) == (verdict.status is not Status.PROVISIONAL)
        return verdict.status, sum(o.topic.base.startswith("escalations") for o in tools.outputs_of(items)), verdict.note

    return answer


def test_nothing_is_final_before_the_audit_has_shown_it(desk: Any, tools: ModuleType) -> None:
    answer = answers(desk, tools)
    desk.budgets.inferences.rate = 0.0
    desk.budgets.inferences.spend(1e6)
    assert answer(SURE) == (Status.UNANSWERED, 0, None)
    assert answer(UNSURE) == (Status.UNANSWERED, 0, None)


def test_what_the_audit_allows_is_final_asked_or_not(desk: Any, tools: ModuleType) -> None:
    answer = answers(desk, tools)
    _, asked, _ = answer(UNSURE)
    assert asked == 1
    digest = desk.leaf.sight.rungs[0].load().digest
    desk.leaf.audits.load("cam", [audited(digest)])
    assert answer(UNSURE)[:2] == (Status.PROVISIONAL, 1)
    assert answer(SURE)[0] is Status.FINAL
    desk.budgets.inferences.rate = 0.0
    desk.budgets.inferences.spend(1e6)
    assert answer(SURE) == (Status.FINAL, 0, None)
    assert answer(UNSURE) == (Status.UNANSWERED, 0, None)
    desk.leaf.audits.begin_again("cam")  # the camera was moved: what was audited was another picture
    assert answer(SURE) == (Status.UNANSWERED, 0, None)


def test_a_sure_answer_is_final_although_it_is_asked_about(bench: Make, tools: ModuleType) -> None:
    desk = bench(audit=Audit(rate=1e-9), policy=Policy(mode="everything", inferences_per_s=1000), evidence=Evidence(form="frame"))
    answer = answers(desk, tools)
    desk.leaf.audits.load("cam", [audited(desk.leaf.sight.rungs[0].load().digest)])
    assert answer(SURE)[:2] == (Status.FINAL, 1)
    assert answer(UNSURE)[:2] == (Status.PROVISIONAL, 1)


def test_what_was_audited_of_another_model_or_source_says_nothing(desk: Any, tools: ModuleType) -> None:
    answer = answers(desk, tools)
    desk.leaf.audits.load("cam", [audited("b" * 64)])
    desk.leaf.audits.load("dock", [audited(desk.leaf.sight.rungs[0].load().digest)])
    assert answer(SURE)[0] is not Status.FINAL


def test_while_the_region_is_away_only_what_is_unsure_is_final_by_policy(desk: Any, tools: ModuleType) -> None:
    answer = answers(desk, tools)
    desk.leaf.audits.load("cam", [audited(desk.leaf.sight.rungs[0].load().digest)])
    desk.reach.heed(LinkState(site="leaf-1", region="region-1", breaker=Breaker.OPEN, since=tools.NOON, writer="w", generation=1))
    status, _, note = answer(UNSURE)
    assert (status, note) == (Status.FINAL, AWAY)
    status, _, note = answer(SURE)
    assert (status, note) == (Status.FINAL, None)


def test_without_an_audit_what_is_not_worth_asking_is_final(bench: Make, tools: ModuleType) -> None:
    desk = bench(audit=Audit(rate=0), policy=Policy(inferences_per_s=1000), evidence=Evidence(form="frame"))
    answer = answers(desk, tools)
    assert answer(UNSURE)[:2] == (Status.PROVISIONAL, 1)
    assert answer(0.1)[:2] == (Status.FINAL, 0)
