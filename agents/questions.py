"""What the region is asked: a reason from the policy, both budgets, the way there, and the evidence that goes with the question.

Evidence is encoded beside the looks, in a thread that lets them go first. When a frame is asked about at all is decided here; what its
verdict says of that is the leaf's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import msgspec

from agents.cascade.budgets import Budgets
from agents.cascade.evidence import encode_frame, escalate
from agents.cascade.policy import Never, Policy
from agents.pools import patient_pool
from agents.reach import Reach
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.frames import Frame
from schemas.messages import Alert, Control, Reason, Verdict
from streams import outputs, telemetry
from streams.disk import Shedding, Unguarded
from streams.sink import Output
from streams.topology import RoleView


class Question(msgspec.Struct, frozen=True):
    """What the region is to be asked about a frame, and what of the byte budget is set aside for it."""

    frame: Frame
    verdict: Verdict
    reason: Reason
    alerts: tuple[str, ...]
    reserved_bytes: float


class Wish(msgspec.Struct, frozen=True):
    """What the policy makes of a frame: whether a look is wanted, the reason if it is asked for, and whether the region is away, so that
    the policy decides at once. `shed`: it is not asked for since the disk is low."""

    wanted: bool
    reason: Reason | None
    away: bool
    reserved_bytes: float
    shed: bool = False


class Questions:
    """A leaf's questions to its region. A site without a region asks nothing, whatever its policy."""

    def __init__(
        self,
        config: SiteConfig,
        role: RoleView,
        policy: Policy,
        budgets: Budgets,
        reach: Reach,
        shedding: Shedding | None = None,
    ) -> None:
        self.shedding = shedding or Unguarded()
        self.asks = config.link is not None and config.policy.mode != "off"
        self.settings, self.budgets, self.reach = config.policy, budgets, reach
        self.side, self.quality = config.evidence.side or 512, config.evidence.quality or 40
        self.policy = policy if self.asks else Never()
        self.evidence_bytes = 16_000.0  # expected size of one look's evidence; follows what is measured
        self._ordinary, self._urgent = role.write("escalations"), role.write("escalations.alerts")
        self._encoder = patient_pool("evidence")
        self._share = 1.0  # of the site's frames that this process serves, and so of its budgets
        self._announced = budgets.inferences.rate

    def close(self) -> None:
        self._encoder.shutdown(wait=True, cancel_futures=True)

    # ---- budgets

    def heed(self, control: Control) -> bool:
        """What the region announced: how many looks a second it can afford for the site. True if that is news."""
        news = control.inferences_per_s != self._announced
        self._announced = control.inferences_per_s
        self._divide()
        return news

    def share(self, share: float) -> None:
        """This process serves so much of the site's frames (0 to 1): it may spend so much of the budgets."""
        self._share = share
        self._divide()

    def _divide(self) -> None:
        self.budgets.bytes.rate = self.settings.budget_bytes_per_s * self._share
        self.budgets.inferences.rate = self._announced * self._share

    # ---- whether to ask

    def about(self, source: str, detections: Detections, alerts: list[Alert]) -> Wish:
        """Whether the region is to be asked about a frame; charges the budgets if so.

        While the region is away frames of alerts are kept for it all the same, and for `policy.away_backlog_s` what is unsure too.
        """
        size = self.evidence_bytes
        reason = self.policy.reason(source, detections, alerts)
        away_s = self.reach.away_s() if self.asks and self.settings.region_away == "final" else None
        wanted = reason is not None
        if away_s is not None and reason not in (None, Reason.ALERT) and away_s > self.settings.away_backlog_s:
            telemetry.DECLINED.labels("away").inc()
            reason = None
        shed = reason is not None and not self.shedding.allows("escalations.alerts" if reason is Reason.ALERT else "escalations")
        if shed:
            telemetry.DECLINED.labels("disk").inc()
            reason = None
        return Wish(wanted, self._afforded(reason, size), away_s is not None, size, shed)

    def unjudged(self) -> float | None:
        """The bytes set aside if the region is to be asked about a frame that nobody here could judge; None if it cannot be."""
        size = self.evidence_bytes
        return size if self.asks and self.shedding.allows("escalations") and self._afforded(Reason.UNJUDGED, size) else None

    def _afforded(self, reason: Reason | None, size: float) -> Reason | None:
        if reason is None:
            return None
        forbidding = self.budgets.forbids(reason, size)
        if forbidding is not None:
            telemetry.DECLINED.labels(forbidding).inc()
            return None
        self.budgets.spend(size)
        return reason

    # ---- asking

    async def write(self, question: Question) -> Output:
        """Encode a frame's evidence and make the escalation of it. If that fails, what was set aside is given back.

        Raises
        ------
        UndecodableImage
            If the frame is not a whole JPEG.
        """
        settings, frame, start = self.settings, question.frame, time.perf_counter()
        try:
            evidence = await asyncio.get_running_loop().run_in_executor(
                self._encoder, lambda: encode_frame(frame.jpeg, side=self.side, quality=self.quality)
            )
            asked = escalate(
                frame,
                evidence,
                question.verdict,
                reason=question.reason,
                deadline_ms=settings.deadline_ms,
                ttl_s=settings.ttl_s,
                alerts=question.alerts,
            )
            topic = self._urgent if question.reason is Reason.ALERT else self._ordinary
            output = outputs.escalation(topic, asked, evidence, frame.traceparent)
        except BaseException:
            self.budgets.refund(question.reserved_bytes)
            raise
        telemetry.STAGE_SECONDS.labels("evidence").observe(time.perf_counter() - start)
        self.budgets.bytes.spend(len(evidence) - question.reserved_bytes)
        self.evidence_bytes += 0.1 * (len(evidence) - self.evidence_bytes)
        telemetry.ESCALATIONS.labels(question.reason).inc()
        telemetry.ESCALATION_BYTES.inc(len(evidence))
        return output


def ids(alerts: Iterable[Alert]) -> tuple[str, ...]:
    return tuple(alert.id for alert in alerts)
