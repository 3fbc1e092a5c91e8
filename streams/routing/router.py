"""Several sites, one of them in use: the router starts at the nearest, watches all, and says when and where to move.

It moves no records: whoever uses it does (`streams.production.publisher`), when `step` returns a `Moved`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from schemas.routing import Routing
from streams.clients import BrokerUnavailable
from streams.routing.choice import Broken, Choice, Chooser, Reason
from streams.routing.health import Sight
from streams.routing.probe import Probe
from streams.routing.way import EMPTY_S, Site, Way, WrongTopics

log = logging.getLogger("headwater.routing")

ALONE_PROBE_S = 5.0  # between questions to a site that has no other beside it
CHOOSE_S = 1.5  # for other sites to answer at the start, after the first has
POLL_S = 0.01


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """The producer has moved. `old` is None at the start; `resent` records were not acknowledged by the old site and go to the new."""

    old: str | None
    new: str
    reason: Reason
    why: str
    resent: int = 0


class SiteChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A site became well (`ok`), or is no longer."""

    site: str
    ok: bool
    reason: str
    why: str


class SiteState(msgspec.Struct, frozen=True, kw_only=True):
    """One site now; `rtt_s` is the median round trip of a small request, None before the first answer."""

    site: str
    in_use: bool
    ok: bool
    rtt_s: float | None
    why: str


Event = Moved | SiteChanged
OnEvent = Callable[[Event], None]


class Router:
    """Chooses among sites. All but `start`, `states` and `moves` is for one thread.

    Parameters
    ----------
    sites
        At least one; their names differ.
    routing
        The thresholds.
    on_event
        Called with what happens, from the thread that calls `step`; it must be quick.
    clock, random
        For tests.

    Raises
    ------
    ValueError
        For no site, or two of one name.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        routing: Routing | None = None,
        *,
        on_event: OnEvent | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        names = [site.name for site in sites]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"sites {names}: expected at least one, and each name once")
        self.routing = routing or Routing()
        stale_s = 4 * (self.routing.probe_s + self.routing.probe_timeout_s)
        self.alone = len(sites) == 1
        self.ways = [Way(site, stale_s=float("inf") if self.alone else stale_s) for site in sites]
        self._by_name = {way.name: way for way in self.ways}
        every_s = max(ALONE_PROBE_S, self.routing.probe_s) if self.alone else self.routing.probe_s
        self._probes = {way.name: Probe(way, self.routing, every_s, alone=self.alone) for way in self.ways}
        self._chooser = Chooser(self.routing, random)
        self._on_event = on_event
        self._clock = clock
        self._was: dict[str, bool] = {}
        self._poked_s = float("-inf")
        self.moves: Counter[str] = Counter()
        """Moves by reason."""

    @property
    def current(self) -> Way:
        """The site in use."""
        assert self._chooser.current is not None, "the router has not started"
        return self._by_name[self._chooser.current]

    def way(self, name: str) -> Way | None:
        return self._by_name.get(name)

    def start(self, *, timeout_s: float = 10.0) -> Way:
        """Ask all sites at once, and take the nearest of those that answered in time. Waits for slower ones only a moment.

        Raises
        ------
        BrokerUnavailable, WrongTopics
            If none can be used; the message says for each site why. With one site, also what else was wrong with it.
        """
        for probe in self._probes.values():
            probe.start(timeout_s)
        deadline_s = time.monotonic() + timeout_s + 5
        while not all(probe.ready.is_set() for probe in self._probes.values()) and time.monotonic() < deadline_s:
            if any(probe.ready.is_set() and probe.error is None for probe in self._probes.values()):
                deadline_s = min(deadline_s, time.monotonic() + CHOOSE_S)
            threading.Event().wait(POLL_S)
        choice = self._chooser.decide(self._clock(), [way.health.sight(self._clock()) for way in self.ways])
        if choice is None:
            self.stop()
            self._raise(timeout_s)
        self._announce()
        return self.current

    def _raise(self, timeout_s: float) -> None:
        errors = {name: probe.error for name, probe in self._probes.items()}
        if self.alone:
            [error] = errors.values()
            raise error or BrokerUnavailable(f"{self.ways[0].name}: no answer within {timeout_s:g} s")
        told = "; ".join(f"{name}: {error or f'no answer within {timeout_s:g} s'}" for name, error in errors.items())
        kind = WrongTopics if all(isinstance(error, WrongTopics) for error in errors.values()) else BrokerUnavailable
        raise kind(f"none of the {len(errors)} sites can be used: {told}")

    def step(self, broken: Broken | None = None) -> Choice | None:
        """Say where to move now, if anywhere; it is then the current site. To be called many times a second.

        Parameters
        ----------
        broken
            The site in use takes no records, as its user sees it.
        """
        if self.alone:
            return None
        now_s = self._clock()
        old = self.current
        sights = [way.health.sight(now_s) for way in self.ways]
        self._tell(sights)
        choice = self._chooser.decide(now_s, sights, broken)
        if choice is None:
            if broken is not None:
                self.hurry()
        elif broken is not None:
            old.health.broke(since_s=broken.since_s, now_s=now_s, reason=broken.reason, why=broken.why)
        return choice

    def hurry(self) -> None:
        """Ask all sites again at once, since something is odd: whether others are well is to be known when it is needed."""
        now_s = self._clock()
        if now_s - self._poked_s >= self.routing.probe_s / 2:
            self._poked_s = now_s
            for probe in self._probes.values():
                probe.poke()

    def moved(self, event: Moved) -> None:
        """Tell that the records have been moved."""
        self.moves[event.reason] += 1
        log.warning(
            "moved from %s to %s (%s%s); %d records are sent again",
            event.old,
            event.new,
            event.reason,
            f": {event.why}" if event.why else "",
            event.resent,
            extra={"old": event.old, "site": event.new, "reason": event.reason, "resent": event.resent},
        )
        self._emit(event)

    def states(self) -> list[SiteState]:
        """Every site as it is seen now."""
        now_s = self._clock()
        found = []
        for way in self.ways:
            sight = way.health.sight(now_s)
            in_use = way.name == self._chooser.current
            found.append(SiteState(site=way.name, in_use=in_use, ok=sight.ok, rtt_s=way.health.rtt_s, why=sight.why))
        return found

    def stop(self) -> None:
        """End the probes; does not wait for them."""
        for probe in self._probes.values():
            probe.stop()

    def close(self, timeout_s: float = EMPTY_S) -> None:
        """End the probes and give all clients up; waits a little for them to be gone."""
        self.stop()
        for way in self.ways:
            way.retire()
        deadline_s = time.monotonic() + timeout_s
        for way in self.ways:
            way.join(deadline_s)

    def _announce(self) -> None:
        if not self.alone:
            self._emit(Moved(old=None, new=self.current.name, reason=Reason.START, why=""))
            for probe in self._probes.values():  # said now, once; later only changes are
                if probe.ready.is_set() and probe.error is None:
                    continue
                log.warning(
                    "site %s cannot be used yet: %s", probe.name, probe.error or "it has not answered yet", extra={"site": probe.name}
                )
            self._was = {way.name: way.health.sight(self._clock()).ok for way in self.ways}

    def _tell(self, sights: Sequence[Sight]) -> None:
        for sight in sights:
            if self._was.get(sight.name) != sight.ok:
                self._was[sight.name] = sight.ok
                if sight.ok:
                    log.warning("site %s is well again", sight.name, extra={"site": sight.name})
                else:
                    log.warning(
                        "site %s is not to be used (%s): %s",
                        sight.name,
                        sight.reason,
                        sight.why,
                        extra={"site": sight.name, "reason": sight.reason},
                    )
                self._emit(SiteChanged(site=sight.name, ok=sight.ok, reason=sight.reason, why=sight.why))

    def _emit(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # whoever only looks on must not end the frames
            log.exception("a callback for an event of the routing failed")
