"""What is known of one site's health: answers to probes, acknowledgements, failures, and whether it is trusted. Pure; time comes in.

A site's probe and its user write it from their threads, and anybody reads it: each field is written whole and read once.
"""

from __future__ import annotations

import statistics
from collections import deque

import msgspec

SAMPLES = 9  # round trips whose median is the site's: one slow answer changes nothing
DISTRUST_S = 60.0


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One site as it is seen at one moment.

    Parameters
    ----------
    ok
        It answers, has the topics, and is not distrusted.
    cost_s
        Its median round trip and its bias; infinite before the first answer.
    asked_s
        When the last question that it answered was asked: it was alive after that.
    failed_s
        When the first question of those that it now fails to answer was asked, or what else went wrong began.
    why
        What is wrong with it; empty if nothing is.
    """

    name: str
    ok: bool
    cost_s: float
    asked_s: float = float("-inf")
    failed_s: float = float("-inf")
    reason: str = ""
    why: str = ""


class Health:
    """Takes in what happens with one site and gives a `Sight` of it.

    A site that answers probes and yet does not take records (its disk is full, too few replicas, a broken partition) is *distrusted*: it
    counts as broken until it has taken a record (`proved`), or `DISTRUST_S` have passed.

    Parameters
    ----------
    bias_s
        Added to its round trip.
    stale_s
        An answer older than this is no sign of life.

    >>> health = Health("gate", stale_s=5); health.answered(asked_s=10.0, now_s=10.002); health.sight(10.1).ok
    True
    >>> health.failed(asked_s=11.0, now_s=12.0, reason="unreachable", why="no answer for 1 s"); health.sight(12.0).why
    'no answer for 1 s'
    """

    def __init__(self, name: str, *, bias_s: float = 0.0, stale_s: float = 10.0) -> None:
        self.name = name
        self._bias_s = bias_s
        self._stale_s = stale_s
        self._round_trips: deque[float] = deque(maxlen=SAMPLES)
        self._asked_s = self._heard_s = self._failed_s = float("-inf")
        self._failing = ("", "")  # reason and why
        self._distrusted_s: float | None = None
        self._distrust = ("", "")

    @property
    def rtt_s(self) -> float | None:
        """The median of the last round trips; None before the first."""
        return statistics.median(tuple(self._round_trips)) if self._round_trips else None

    @property
    def failing(self) -> bool:
        """The last question was not answered as it should be."""
        return bool(self._failing[0])

    @property
    def distrusted(self) -> bool:
        """It has to prove that it takes records."""
        return self._distrusted_s is not None

    @property
    def reachable(self) -> bool:
        """It answers (and has answered since it was distrusted, if it is)."""
        distrusted_s = self._distrusted_s
        return bool(self._round_trips) and not self._failing[0] and (distrusted_s is None or self._asked_s > distrusted_s)

    def answered(self, *, asked_s: float, now_s: float) -> None:
        """A probe was answered, and all is as it should be."""
        self._round_trips.append(now_s - asked_s)
        self._asked_s = asked_s
        self._heard_s = max(self._heard_s, now_s)
        self._failing = ("", "")

    def heard(self, *, asked_s: float, now_s: float) -> None:
        """A record was acknowledged: as good a sign of life as an answer."""
        self._heard_s = max(self._heard_s, now_s)
        self._asked_s = max(self._asked_s, asked_s)

    def failed(self, *, asked_s: float, now_s: float, reason: str, why: str, certain: bool = False) -> None:
        """A probe was not answered, or (`certain`) answered with what makes the site of no use. Without an answer, but with records
        acknowledged since it was asked, nothing is held against the site."""
        if not certain and self._heard_s > asked_s:
            return
        if not self.failing:
            self._failed_s = asked_s
        self._failing = (reason, why)

    def broke(self, *, since_s: float, now_s: float, reason: str, why: str) -> None:
        """It did not take records, whatever it answers."""
        self._failed_s = since_s
        self._distrust = (reason, why)
        self._distrusted_s = now_s

    def proved(self) -> None:
        """It has taken a record."""
        self._distrusted_s = None

    def sight(self, now_s: float) -> Sight:
        rtt_s, distrusted_s = self.rtt_s, self._distrusted_s
        reason, why = self._failing
        if not reason and distrusted_s is not None and now_s - distrusted_s <= DISTRUST_S:
            reason, why = self._distrust
        if not reason and (rtt_s is None or now_s - self._heard_s > self._stale_s):
            reason, why = (
                "unreachable",
                "it has not answered yet" if rtt_s is None else f"nothing was heard for {now_s - self._heard_s:.0f} s",
            )
        return Sight(
            name=self.name,
            ok=not reason,
            cost_s=float("inf") if rtt_s is None else rtt_s + self._bias_s,
            asked_s=self._asked_s,
            failed_s=self._failed_s if reason else float("-inf"),
            reason=reason,
            why=why,
        )
