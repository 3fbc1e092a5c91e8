"""One stream's monitor: feeds the fast path and the slow one, and tells of alarms as they open and close.

It is a pure function of what it is told: every time is an argument, on one clock for all (seconds since 1970), and no randomness is in it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import msgspec

from agents.drift.answers import Answers, AnswersState
from agents.drift.asks import ASKS, Asks, asks
from agents.drift.change import Change
from agents.drift.pictures import Pictures, PicturesState
from agents.drift.silence import Silence, SilenceState
from agents.drift.traits import Traits
from schemas.detections import Detections
from schemas.drift import Cause, Drift, DriftState, Evidence, drift_id


class MonitorState(msgspec.Struct):
    """All that is remembered of a stream, as plain values: `msgspec.json` writes and reads it, and nothing is lost. It is bounded."""

    pictures: PicturesState = msgspec.field(default_factory=PicturesState)
    silence: SilenceState = msgspec.field(default_factory=SilenceState)
    answers: AnswersState = msgspec.field(default_factory=AnswersState)
    opened: dict[Cause, float] = msgspec.field(default_factory=dict)
    calibration_since: float | None = None


class StreamMonitor:
    """Watches one source at one site.

    Tell it of every frame in the order of the source's sequence, the old ones left out; whose clock the times are by is the caller's
    choice, so long as it is one. Every method returns what is to be published, which is nearly always nothing.
    """

    def __init__(self, source: str, site: str, state: MonitorState | None = None) -> None:
        state = state or MonitorState()
        self.source, self.site = source, site
        self._pictures, self._answers = Pictures(state.pictures), Answers(state.answers)
        self._silence = Silence(msgspec.structs.replace(state.silence))
        self._opened, self._calibration_since = dict(state.opened), state.calibration_since

    def state(self) -> MonitorState:
        """All that it remembers: a monitor made of it goes on as this one would."""
        return MonitorState(
            pictures=self._pictures.state(),
            silence=msgspec.structs.replace(self._silence.state),
            answers=self._answers.state(),
            opened=dict(self._opened),
            calibration_since=self._calibration_since,
        )

    @property
    def open(self) -> tuple[Cause, ...]:
        """The causes of the alarms that are open, the oldest first."""
        return tuple(sorted(self._opened, key=lambda cause: (self._opened[cause], cause)))

    def asks(self, now: float) -> Asks:
        """What the open alarms ask of the cascade."""
        return asks(self._opened.items(), now, self._calibration_since)

    def frame(self, at: float, seen: Traits | None) -> list[Drift]:
        """A frame came, and is like this; None if nobody looked at it."""
        heard = self._silence.arrived(at)
        changes = [] if heard is None else [heard]
        if seen is not None:
            changes += self._pictures.feed(at, seen)
        return self._tell(changes)

    def answer(self, at: float, detections: Detections) -> list[Drift]:
        """A frame was answered."""
        return self._tell(self._answers.answered(at, detections))

    def audit(self, at: float, agreement: float) -> list[Drift]:
        """A higher tier judged an audited answer: `agreement` is 1 where it saw the same, 0 where nothing of it."""
        return self._tell(self._answers.audited(at, agreement))

    def tick(self, now: float) -> list[Drift]:
        """Time passed; to be called about once a second, or nobody notices silence. Not while frames wait to be read: what has not been
        told of yet would be taken for silence."""
        fallen = self._silence.tick(now)
        return self._tell([] if fallen is None else [fallen])

    def ended(self, at: float) -> list[Drift]:
        """The source said that it ends."""
        closed = self._silence.ended(at)
        return self._tell([] if closed is None else [closed])

    def _tell(self, changes: Iterable[Change]) -> list[Drift]:
        return [self._record(change) for change in changes]

    def _record(self, change: Change) -> Drift:
        if change.opened:
            self._opened[change.cause] = change.at
            opened_at, evidence = change.at, dict(change.evidence)
        else:
            opened_at = self._opened.pop(change.cause)
            evidence = {**change.evidence, "recovered": float(change.recovered)}
            if ASKS[change.cause].recalibrate and not change.recovered:
                self._calibration_since = opened_at if self._calibration_since is None else max(self._calibration_since, opened_at)
        state = DriftState.OPENED if change.opened else DriftState.CLOSED
        return Drift(
            id=drift_id(self.source, change.cause, _time(opened_at)),
            source=self.source,
            site=self.site,
            cause=change.cause,
            state=state,
            version=state.height,
            opened_at=_time(opened_at),
            at=_time(change.at),
            before=change.before,
            after=change.after,
            evidence=Evidence(evidence),
        )


def _time(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
