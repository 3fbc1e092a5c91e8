"""What an open alarm asks of the cascade: more looks for a while, more audits, and a calibration that is not that of another time."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import msgspec

from schemas.drift import Cause

WIDEN_S = 120.0  # after that a stream that stays moved has no claim over the others


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What one cause asks for. A frozen or silent camera asks for nothing: there is nothing to look at."""

    budget: float = 1.0  # factor on the stream's share of the budgets, for `WIDEN_S`
    audits: float = 1.0  # factor on the rate of audits, as long as the alarm is open
    recalibrate: bool = False  # what was learnt before it opened does not hold


_ALL = Ask(budget=2.0, audits=4.0, recalibrate=True)
ASKS = MappingProxyType(
    {
        Cause.BLUR: _ALL,
        Cause.BRIGHTNESS: _ALL,
        Cause.NOISE: _ALL,
        Cause.VIEW: _ALL,
        Cause.FROZEN: Ask(),
        Cause.SILENT: Ask(),
        Cause.CONFIDENCE: _ALL,
        Cause.COUNT: Ask(budget=2.0, audits=2.0),  # more people are no other kind of people
        Cause.CLASSES: _ALL,
        Cause.AGREEMENT: _ALL,
    }
)


class Asks(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream asks of the cascade now. Nothing that was learnt or audited before `calibration_since` holds; None: all holds."""

    budget: float = 1.0
    audits: float = 1.0
    calibration_since: float | None = None


def asks(opened: Iterable[tuple[Cause, float]], now: float, calibration_since: float | None) -> Asks:
    """What open alarms, given with the times when they were opened, ask for together: the most that any of them does.

    Parameters
    ----------
    calibration_since
        The time of the last alarm that closed at a new level: the old calibration does not come back.
    """
    budget = audits = 1.0
    since = calibration_since
    for cause, opened_at in opened:
        ask = ASKS[cause]
        audits = max(audits, ask.audits)
        if now - opened_at < WIDEN_S:
            budget = max(budget, ask.budget)
        if ask.recalibrate:
            since = opened_at if since is None else max(since, opened_at)
    return Asks(budget=budget, audits=audits, calibration_since=since)
