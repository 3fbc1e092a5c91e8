"""Which site to use, given what is seen of all of them over time: away from a broken one at once, to a nearer one with patience. Pure.

1. A site that is broken is left at once, if another one is known to be well: one that has answered what was asked *after* the trouble
   began. If everything is silent, the trouble is on our side, and we stay.
2. A nearer site is gone to (or back to) when it has been well, and clearly nearer, without a break for a hold-down time. Each producer
   draws its own hold-down, so that a fleet does not come back all at once.
3. A site that breaks again soon after we came back has its hold-down doubled, up to a limit; one that serves well gets the usual one back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import msgspec

from schemas.routing import Routing
from streams.routing.health import Sight

SPREAD = 0.5  # hold-downs differ by up to this share
GOOD_AFTER = 5.0  # hold-down times in use, after which a site has earned the usual hold-down again


class Reason(enum.StrEnum):
    """Why a site is used, or left."""

    START = "start"  # the nearest at the start
    SILENT = "silent"  # records were not acknowledged in time
    UNREACHABLE = "unreachable"  # probes were not answered
    REFUSED = "refused"  # it answers and takes no records
    TOPICS = "topics"  # its topics are missing, not as declared, or have no leader
    NEARER = "nearer"  # the other one is well and clearly nearer


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """The site in use does not take records since `since_s`."""

    since_s: float
    reason: Reason
    why: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Use `site` from now on."""

    site: str
    reason: Reason
    why: str


class Chooser:
    """Decides between sites.

    Parameters
    ----------
    routing
        The thresholds.
    random
        Gives numbers from 0 to 1: how much longer this producer waits than the hold-down.
    """

    def __init__(self, routing: Routing, random: Callable[[], float]) -> None:
        self._routing = routing
        self._random = random
        self.current: str | None = None
        self._moved_s = self._came_s = float("-inf")  # when we came to the site in use, and to the one before it
        self._nearer_since_s: dict[str, float] = {}
        self._hold_s: dict[str, float] = {}
        self._wait_s: dict[str, float] = {}

    def decide(self, now_s: float, sights: Sequence[Sight], broken: Broken | None = None) -> Choice | None:
        """The site to move to now, if any; from then on it is the current one. `broken` is about the current one."""
        seen = {sight.name: sight for sight in sights}
        if self.current is None:
            return self._go(now_s, _nearest([sight for sight in sights if sight.ok]), Reason.START, "")
        current = seen[self.current]
        others = [sight for sight in sights if sight.name != self.current]
        if broken is None and not current.ok:
            broken = Broken(since_s=current.failed_s, reason=Reason(current.reason), why=current.why)
        if broken is not None:
            since_s = broken.since_s
            choice = self._go(
                now_s, _nearest([sight for sight in others if sight.ok and sight.asked_s >= since_s]), broken.reason, broken.why
            )
            if choice is not None:
                self._left(current.name, now_s)
            self._nearer_since_s.clear()  # nothing is compared with what is broken: all wait anew
            return choice
        for sight in others:
            if sight.ok and self._nearer(sight, current):
                self._nearer_since_s.setdefault(sight.name, now_s)
            else:
                self._nearer_since_s.pop(sight.name, None)
        ready = [
            sight
            for sight in others
            if sight.name in self._nearer_since_s and now_s - self._nearer_since_s[sight.name] >= self._patience_s(sight.name)
        ]
        best = _nearest(ready)
        why = "" if best is None else f"{best.cost_s * 1e3:.1f} ms against {current.cost_s * 1e3:.1f} ms"
        return self._go(now_s, best, Reason.NEARER, why)

    def _nearer(self, sight: Sight, current: Sight) -> bool:
        routing = self._routing
        return sight.cost_s <= current.cost_s * (1 - routing.nearer_share) and sight.cost_s <= current.cost_s - routing.nearer_ms / 1e3

    def _patience_s(self, name: str) -> float:
        """How long a site must be well and nearer: drawn once for each wait."""
        if name not in self._wait_s:
            self._wait_s[name] = self._hold_s.get(name, self._routing.hold_s) * (1 + SPREAD * self._random())
        return self._wait_s[name]

    def _go(self, now_s: float, sight: Sight | None, reason: Reason, why: str) -> Choice | None:
        if sight is None:
            return None
        self._came_s, self._moved_s = self._moved_s, now_s
        self.current = sight.name
        self._nearer_since_s.clear()
        self._wait_s.clear()
        return Choice(site=sight.name, reason=reason, why=why)

    def _left(self, name: str, now_s: float) -> None:
        """The site broke while it was in use (rule 3)."""
        usual_s = self._routing.hold_s
        hold_s = self._hold_s.get(name)
        soon = hold_s is not None and now_s - self._came_s < GOOD_AFTER * hold_s
        self._hold_s[name] = min(2 * hold_s, self._routing.hold_max_s) if soon and hold_s is not None else usual_s


def _nearest(sights: Sequence[Sight]) -> Sight | None:
    return min(sights, key=lambda sight: sight.cost_s, default=None)
