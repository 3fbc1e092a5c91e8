"""What the region is asked: the cascade's wish or an alert, both budgets, the way there, and the evidence that goes with the question.

Whether a frame is asked about is decided here; what it is worth is `agents.cascade`'s, how its evidence is made
`agents.cascade.evidence`'s, and what its verdict says of that the leaf's.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from agents.cascade.allowance import Allowance
from agents.cascade.cascade import Cascade
from agents.cascade.evidence.writing import Question as Question
from agents.cascade.evidence.writing import Writing
from agents.cascade.stream import View
from agents.reach import Reach
from schemas.config import SiteConfig
from schemas.detections import Detection
from schemas.frames import Frame
from schemas.links import LinkState
from schemas.messages import Alert, Control, Reason
from streams import telemetry
from streams.disk import Shedding, Unguarded
from streams.sink import Output
from streams.topology import RoleView


class Wish(msgspec.Struct, frozen=True):
    """What is made of a frame: whether a look is wanted, the reason if it is asked for, and whether the region is away, so that what is
    decided here holds. `shed`: it is not asked for since the disk is low. `otherwise`: an audited frame would have been asked about in any
    case."""

    wanted: bool
    reason: Reason | None
    away: bool
    reserved_bytes: float
    shed: bool = False
    otherwise: bool = False


class Questions:
    """A leaf's questions to its region. A site without a region asks nothing, whatever its policy.

    Parameters
    ----------
    clock
        Seconds by which the cascade's budgets fill.
    """

    def __init__(
        self,
        config: SiteConfig,
        role: RoleView,
        cascade: Cascade,
        reach: Reach,
        shedding: Shedding | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shedding = shedding or Unguarded()
        self.asks = config.link is not None and config.policy.mode != "off"
        self.settings, self.cascade, self.budgets, self.reach = config.policy, cascade, cascade.budgets, reach
        self.clock = clock
        self.evidence_bytes = 16_000.0  # expected size of one look's evidence; follows what is measured
        self.evidence = Writing(config, role.write("escalations"), role.write("escalations.alerts"))
        self._share = 1.0  # of the site's frames that this process serves, and so of its budgets
        self._announced = self.budgets.inferences.rate
        self._allowance = Allowance(config.link.budget_bytes_per_s if config.link is not None else 0)
        self._divide()

    def close(self) -> None:
        self.evidence.close()

    @property
    def held_batches(self) -> int:
        """Batches that may be in flight beyond those in work: each open clip holds the one that its first frame came with."""
        return self.evidence.settings.open_clips if self.evidence.forms.may_clip else 0

    # ---- budgets

    def heed(self, control: Control) -> bool:
        """What the region announced: how many looks a second it can afford for the site, and at which size. True if that is news."""
        news = control.inferences_per_s != self._announced
        self.evidence.heed(control)
        self._announced = control.inferences_per_s
        self._divide()
        return news

    def hear_link(self, state: LinkState, age_s: float = 0.0, now: dt.datetime | None = None) -> None:
        """What the link says of itself (`Reach.heed`): whether the region can be asked, and what its budget leaves for evidence."""
        self.reach.heed(state, age_s, now)
        self._allowance.heed(state, self.clock())
        self._divide()

    def share(self, share: float) -> None:
        """This process serves so much of the site's frames (0 to 1): it may spend so much of the budgets."""
        self._share = share
        self._divide()

    def _divide(self) -> None:
        self.budgets.bytes.rate = min(self.settings.budget_bytes_per_s, self._allowance.bytes_per_s) * self._share
        self.budgets.inferences.rate = self._announced * self._share

    # ---- whether to ask

    def about(
        self,
        source: str,
        view: View | None,
        alerts: list[Alert],
        *,
        again: bool = False,
        audited: bool = False,
        worthless: bool = False,
    ) -> Wish:
        """Whether the region is to be asked about a frame; charges the budgets if so.

        While the region is away frames of alerts and of the audit sample are kept for it all the same, and for `policy.away_backlog_s` what
        is unsure too.

        Parameters
        ----------
        view
            What the cascade makes of the frame; None: it was not shown to it.
        again
            It was asked about before, and comes again.
        worthless
            The region's answers are worth nothing on this source: only the audit goes on, by which it is seen whether that stays so.
        """
        size = self.evidence_bytes
        reason = self._reason(source, view, alerts, size, again) if self.asks and not worthless else None
        otherwise = reason is not None
        if audited and self.asks and reason is not Reason.ALERT:
            if not otherwise:
                self.cascade.must(self.clock(), size)
            reason = Reason.AUDIT
        away_s = self.reach.away_s() if self.asks and self.settings.region_away == "final" else None
        wanted = reason is not None
        if away_s is not None and reason is Reason.UNCERTAIN and away_s > self.settings.away_backlog_s:
            telemetry.DECLINED.labels("away").inc()
            reason = None
        shed = reason is not None and not self.shedding.allows("escalations.alerts" if reason is Reason.ALERT else "escalations")
        if shed:
            telemetry.DECLINED.labels("disk").inc()
            reason = None
        return Wish(wanted, self._afforded(reason, size), away_s is not None, size, shed, otherwise)

    def _reason(self, source: str, view: View | None, alerts: list[Alert], size: float, again: bool) -> Reason | None:
        if alerts:
            self.cascade.must(self.clock(), size)
            return Reason.ALERT
        if view is not None:
            again = self.cascade.wants(source, view, self.clock(), size)
        return Reason.UNCERTAIN if again or self.settings.mode == "everything" else None

    def unjudged(self, source: str) -> float | None:
        """The bytes set aside if the region is to be asked about a frame that nobody here could judge; None if it cannot be: where objects
        are to be covered, nobody knows where they are."""
        size = self.evidence_bytes
        may = self.asks and not self.evidence.redaction.needs_look(source) and self.shedding.allows("escalations")
        return size if may and self._afforded(Reason.UNJUDGED, size) else None

    def _afforded(self, reason: Reason | None, size: float) -> Reason | None:
        if reason is None:
            return None
        forbidding = self.budgets.take(reason, size)
        if forbidding is not None:
            telemetry.DECLINED.labels(forbidding).inc()
            return None
        return reason

    # ---- asking

    async def write(self, question: Question) -> Output | None:
        """Make the evidence of a frame and the escalation of it; None if it is in a clip that another one's caller writes. The bytes that
        were set aside become those that it takes; if it fails, they are given back.

        Raises
        ------
        UndecodableImage
            If the frame is not a whole JPEG.
        """
        known = False

        def spent(size: int) -> None:
            nonlocal known
            known = True
            if not size:  # the frame is in a clip already, and was paid for
                self.drop(question)
                return
            self.budgets.bytes.spend(size - question.reserved_bytes)
            self.evidence_bytes += 0.1 * (size - self.evidence_bytes)

        try:
            return await self.evidence.write(question, self._look_bytes(), spent)
        except BaseException:
            if not known:
                self.drop(question)
            raise

    def drop(self, question: Question) -> None:
        """A question that is not asked after all: what was set aside for it is given back."""
        self.budgets.refund(question.reserved_bytes)

    async def shown(self, frame: Frame, watched: Sequence[Detection] | None) -> Frame | None:
        """The frame as it may be shown elsewhere: covered where the site's file says so; None if it may not be shown at all."""
        return await self.evidence.shown(frame, watched)

    def _look_bytes(self) -> float:
        """What a look may cost where both budgets are used up: bytes a second for each look a second."""
        return self.budgets.bytes.rate / max(self.budgets.inferences.rate, 1e-3)


def ids(alerts: Iterable[Alert]) -> tuple[str, ...]:
    return tuple(alert.id for alert in alerts)
