"""What a policy finds worth asking, and why."""

from __future__ import annotations

from types import ModuleType

import pytest

from agents.alerts import AlertRules
from agents.cascade.policy import Never, Uncertainty, make_policy
from schemas.config import Policy
from schemas.detections import Detections
from schemas.messages import Reason
from schemas.rules import Rule

CONFIG = Policy(unsure_from=0.3, unsure_to=0.55)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], None),
        ([0.29], None),
        ([0.3], Reason.UNCERTAIN),
        ([0.55], Reason.UNCERTAIN),
        ([0.56], None),
        ([0.9, 0.1], None),
        ([0.9, 0.1, 0.4], Reason.UNCERTAIN),
    ],
)
def test_a_score_within_the_band_makes_a_frame_uncertain(tools: ModuleType, scores: list[float], expected: Reason | None) -> None:
    seen = Detections([tools.person(score) for score in scores])
    assert make_policy(CONFIG).reason("cam", seen, []) is expected


@pytest.mark.parametrize("score", [0.4, 0.9])
def test_an_alert_is_the_reason_whatever_else_is(tools: ModuleType, score: float) -> None:
    seen = Detections([tools.person(score)])
    rules = AlertRules([Rule(name="r", min_score=0.1)], site="leaf-1", model_digest="d" * 64, deadline_ms=1000)
    alerts = rules.judge(tools.frame("cam", 0), seen)
    assert make_policy(CONFIG).reason("cam", seen, alerts) is Reason.ALERT


def test_the_mode_decides_which_policy_it_is(tools: ModuleType) -> None:
    assert isinstance(make_policy(CONFIG), Uncertainty)
    off = make_policy(Policy(mode="off"))
    assert isinstance(off, Never)
    rules = AlertRules([Rule(name="r", min_score=0.1)], site="leaf-1", model_digest="d" * 64, deadline_ms=1000)
    seen = Detections([tools.person(0.4)])
    assert off.reason("cam", seen, rules.judge(tools.frame("cam", 0), seen)) is None
