"""Whether the region can be asked now, as the link says on `link.state`. What a leaf does while it cannot is its policy's."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable

from schemas.links import Breaker, LinkState

log = logging.getLogger("headwater.reach")

SILENT_S = 30.0  # the link says every few seconds how it stands: one that does not carries nothing
AWAY = "final by policy: the region is away"
LATER = "the region is away: it is asked when it is back"


class Reach:
    """What is known of the way to the region. Before the link has said anything, the region counts as reachable.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard_at: float | None = None
        self._away_at: float | None = None
        self._said_away = False

    def heed(self, state: LinkState, age_s: float = 0.0, now: dt.datetime | None = None) -> None:
        """Take in what the link says of itself.

        Parameters
        ----------
        age_s
            How long ago it was written, by the broker's clock.
        now
            The time by the clock that `state.since` was read from: an absence that began before this process did is as old as it is.
        """
        self._heard_at = self._clock() - age_s
        if state.breaker is Breaker.CLOSED and not state.paused:
            self._away_at = None
        elif self._away_at is None:
            before_s = 0.0 if now is None else max(0.0, (now - state.since).total_seconds())
            self._away_at = self._clock() - max(age_s, before_s)
        self.away_s()

    def away_s(self) -> float | None:
        """For how long the region has been away, in seconds; None while it can be asked."""
        now = self._clock()
        since = self._away_at
        if since is None and self._heard_at is not None and now - self._heard_at > SILENT_S:
            since = self._heard_at
        if (since is not None) != self._said_away:
            self._said_away = since is not None
            log.log(
                logging.WARNING if self._said_away else logging.INFO,
                "the region is away: alerts go on, what is unsure is answered by policy" if self._said_away else "the region can be asked",
            )
        return None if since is None else now - since
