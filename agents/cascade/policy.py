"""What is worth asking the region: a policy names a reason for a frame, or none. Whether it is affordable is the budgets' business."""

from __future__ import annotations

from typing import Protocol

from schemas.config import Policy as PolicyConfig
from schemas.detections import Detections
from schemas.messages import Alert, Reason


class Policy(Protocol):
    """Ranks frames by the value of a look at the next tier."""

    def reason(self, source: str, detections: Detections, alerts: list[Alert]) -> Reason | None:
        """Why the frame is worth a look, or None if it is not."""


class Uncertainty:
    """A look at each alert's frame, and at frames with a detection whose score lies within a band.

    Facts about a small detector (NanoDet-g on a pedestrian scene): scores within the band are right about half of the time, so a look
    there changes most.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.low, self.high = config.unsure_from, config.unsure_to

    def reason(self, source: str, detections: Detections, alerts: list[Alert]) -> Reason | None:
        if alerts:
            return Reason.ALERT
        return Reason.UNCERTAIN if any(self.low <= d.score <= self.high for d in detections) else None


class Never:
    """The leaf decides everything alone."""

    def reason(self, source: str, detections: Detections, alerts: list[Alert]) -> Reason | None:
        return None


def make_policy(config: PolicyConfig) -> Policy:
    """The policy that a site's file asks for."""
    return Uncertainty(config) if config.mode == "budgeted" else Never()
