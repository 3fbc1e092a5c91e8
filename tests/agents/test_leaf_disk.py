"""A leaf on a low disk: what it does without, and what never."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from schemas.config import Policy
from schemas.detections import Detections
from schemas.messages import Drop, Status, Verdict
from schemas.rules import Rule
from streams.disk import SHED

Make = Callable[..., Any]
WATCH = Rule(name="watch", min_score=0.7, cooldown_s=0.0)


class Without:
    """A disk that has no room for some lanes."""

    def __init__(self, *lanes: str) -> None:
        self.lanes = lanes

    def allows(self, lane: str) -> bool:
        return lane not in self.lanes


@pytest.mark.parametrize(
    ("without", "left"),
    [
        ((), ["alerts", "verdicts", "alerts.evidence", "escalations.alerts"]),
        (("escalations",), ["alerts", "verdicts", "alerts.evidence", "escalations.alerts"]),
        (("escalations", "alerts.evidence"), ["alerts", "verdicts", "escalations.alerts"]),
        (("escalations", "alerts.evidence", "escalations.alerts"), ["alerts", "verdicts"]),
    ],
)
def test_alerts_and_verdicts_go_on_whatever_is_shed(tools: ModuleType, bench: Make, without: tuple[str, ...], left: list[str]) -> None:
    desk = bench(rules=(WATCH,))
    desk.questions.shedding = Without(*without)
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    (items,) = desk.run([desk.record(frame)])
    assert [output.topic.base for item in items for output in item.outputs] == left
    (verdict,) = tools.values(items, "verdicts", Verdict)
    shed = "escalations.alerts" in without
    assert verdict.status is Status.PROVISIONAL, "a deadline shows that nobody has reviewed the alert"
    assert (verdict.note == SHED) == shed, "the verdict says why nobody is asked"
    assert sum(item.finished for item in items) == 1


def test_an_unsure_frame_is_answered_finally_and_says_why(tools: ModuleType, bench: Make) -> None:
    desk = bench(policy=Policy(mode="everything"))
    frames = [tools.frame("cam", n) for n in range(2)]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person(0.5)])
    spent = desk.budgets.bytes.level if hasattr(desk.budgets.bytes, "level") else None
    desk.questions.shedding = Without("escalations")
    (items,) = desk.run([desk.record(frames[0])])
    assert [output.topic.base for item in items for output in item.outputs] == ["verdicts"]
    (verdict,) = tools.values(items, "verdicts", Verdict)
    assert (verdict.status, verdict.note) == (Status.FINAL, SHED)
    assert spent is None or desk.budgets.bytes.level == spent, "what is not asked costs no budget"
    desk.questions.shedding = Without()
    (items,) = desk.run([desk.record(frames[1])])
    assert [output.topic.base for item in items for output in item.outputs] == ["verdicts", "escalations"]


def test_frames_that_the_disk_has_no_room_for_are_dropped_and_explained(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    desk.questions.shedding = Without("escalations", "alerts.evidence", "escalations.alerts", "frames")
    (items,) = desk.run([desk.record(tools.frame("cam", n), offset=n) for n in range(3)])
    (drop,) = tools.values(items, "drops", Drop)
    assert (drop.stage, drop.reason, drop.ranges.pairs) == ("leaf", "disk", ((0, 2),))
    assert sum(desk.detector.looks.values()) == 0
    assert sum(item.finished for item in items) == 3
