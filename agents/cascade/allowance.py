"""What evidence may cost a second so that the link's byte budget holds all that crosses it.

The link carries alerts, verdicts and accounts before evidence, and answers come back over it; what they leave of its budget is what the
leaf may ask with. More would only pile up before the link. The link says every few seconds what crosses it and what waits; from that the
rate is steered so that hardly anything waits: the link is never idle for longer than its own bucket makes good, and since the newest goes
first, what stands in a line that never ends would grow old there. Pure.
"""

from __future__ import annotations

import math

from schemas.links import Breaker, LinkState

START = 0.5  # of the link's budget, until the link has said what else crosses it
WAITING_S = 1.0  # of the link's budget: what should wait for it, of all lanes; verdicts are gathered for half a second in any case
CORRECT_S = 10.0  # in which a line that is too long or too short is to be put right
FOLLOW_S = 8.0  # over which what else crosses the link is averaged
LEAST = 0.02  # of the link's budget: what evidence may always cost, since a leaf that asks nothing learns nothing


class Allowance:
    """Follows what a link says of itself.

    Attributes
    ----------
    bytes_per_s
        What evidence may cost a second, of the whole site; infinite where the link has no budget.
    """

    def __init__(self, link_bytes_per_s: float) -> None:
        self.bytes_per_s = START * link_bytes_per_s or math.inf
        self._others: float | None = None  # bytes a second
        self._heard_s = 0.0

    def heed(self, state: LinkState, now_s: float) -> float:
        """Take in what the link says; returns `bytes_per_s`. While the region does not answer nothing is learned from it."""
        budget = float(state.budget_bytes_per_s)
        if not budget:
            self.bytes_per_s, self._others = math.inf, None
        elif state.breaker is Breaker.CLOSED and not state.paused:
            others = max(0.0, state.wire_bytes_per_s - state.evidence_bytes_per_s)
            share = 1.0 if self._others is None else 1 - math.exp(-max(0.0, now_s - self._heard_s) / FOLLOW_S)
            self._others = others if self._others is None else self._others + share * (others - self._others)
            waiting_s = max((lane.drain_s or 0.0 for lane in state.lanes.lanes if lane.direction == "up"), default=0.0)
            wanted = budget - self._others + (WAITING_S - waiting_s) * budget / CORRECT_S
            self.bytes_per_s = min(max(wanted, LEAST * budget), budget)
        self._heard_s = now_s
        return self.bytes_per_s
