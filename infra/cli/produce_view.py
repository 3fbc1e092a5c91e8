"""What `headwater produce` shows: one live line for people, or JSON lines for programs, and a summary at the end."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import msgspec
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.cli.common import err, out
from infra.text import shown_json
from streams.production.feed import Feed, LiveFeed
from streams.production.publisher import Unaccounted
from streams.routing.router import Event, Moved, Router

PLAIN_EVERY_S = 5.0  # between lines where there is no terminal


class Tally:
    """The counters of all feeds, their rate over the last second or so, and where they are published to."""

    def __init__(self, feeds: list[Feed], router: Router, events: deque[Event]) -> None:
        self.feeds = feeds
        self.router = router
        self.events = events
        self.begin()

    def begin(self) -> None:
        """The feeds start now."""
        self._began_s = time.monotonic()
        self._last = (self._began_s, 0)

    def take(self) -> dict[str, Any]:
        """The counters now: sums, and by source."""
        now_s = time.monotonic()
        by_source = {feed.name: self.of(feed) for feed in self.feeds}
        sums = {name: sum(source[name] for source in by_source.values()) for name in ("frames", "acknowledged", "dropped", "open", "bytes")}
        then_s, frames = self._last
        self._last = (now_s, sums["frames"])
        rate = (sums["frames"] - frames) / max(1e-3, now_s - then_s)
        sites = {
            state.site: {
                "in_use": state.in_use,
                "ok": state.ok,
                "rtt_ms": None if state.rtt_s is None else round(state.rtt_s * 1e3, 2),
                "why": state.why,
            }
            for state in self.router.states()
        }
        moves = dict(sorted(self.router.moves.items()))
        return {
            "seconds": round(now_s - self._began_s, 3),
            "fps": round(rate, 2),
            **sums,
            "sources": by_source,
            "site": next((name for name, site in sites.items() if site["in_use"]), None),
            "sites": sites,
            "moves": moves,
        }

    @staticmethod
    def of(feed: Feed) -> dict[str, Any]:
        counters = feed.producer.counters()
        found: dict[str, Any] = {
            "frames": counters.assigned,
            "acknowledged": counters.acknowledged,
            "dropped": counters.dropped,
            "open": counters.open,
            "bytes": counters.bytes,
            "epoch": counters.epoch,
            "epochs": counters.epochs,
            "skipped": feed.skipped,
            "late": feed.late,
            "slipped_s": round(feed.slipped_s, 3),
        }
        if isinstance(feed, LiveFeed):
            found["connected"] = feed.connected
        return found


class View:
    """Shows a tally while it runs (as a context), and at the end."""

    def __init__(self, tally: Tally, *, as_json: bool) -> None:
        self._tally = tally
        self._json = as_json
        self._live = Live(console=err, transient=True, auto_refresh=False) if err.is_terminal and not as_json else None
        self._next_plain_s = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self) -> None:
        """Once a second."""
        taken = self._tally.take()
        if self._json:
            _line({"type": "counters", **taken})
        elif self._live is not None:
            self._live.update(Text(_sentence(taken)), refresh=True)
        elif taken["seconds"] >= self._next_plain_s:
            self._next_plain_s = taken["seconds"] + PLAIN_EVERY_S - 0.5
            out.print(_sentence(taken))

    def events(self) -> None:
        """What has happened with the sites since the last look, for programs; people are told by the log."""
        while self._tally.events:
            event = self._tally.events.popleft()
            if self._json:
                kind = "moved" if isinstance(event, Moved) else "site"
                _line({"type": kind, **msgspec.structs.asdict(event)})

    def summary(self, left: list[Unaccounted]) -> None:
        """At the end: what became of every frame, by source."""
        taken = self._tally.take()
        if self._json:
            del taken["fps"]
            _line({"type": "summary", **taken, "unaccounted": [_unaccounted(rest) for rest in left]})
            return
        if not taken["frames"]:
            return
        table = Table(box=None, pad_edge=False)
        for name in ("source", "frames", "acknowledged", "dropped", "open", "MB", "epochs"):
            table.add_column(name, justify="left" if name == "source" else "right")
        for name, source in taken["sources"].items():
            megabytes = f"{source['bytes'] / 1e6:.1f}"
            figures = (source["frames"], source["acknowledged"], source["dropped"], source["open"], megabytes, source["epochs"])
            table.add_row(name, *map(str, figures))
        out.print(table)
        if taken["moves"]:
            count = sum(taken["moves"].values())
            told = ", ".join(f"{reason} {number}" for reason, number in taken["moves"].items())
            out.print(f"moved between sites {count} time{'' if count == 1 else 's'} ({told}); at the end: {taken['site']}")
        for name, source in taken["sources"].items():
            if source["slipped_s"]:
                out.print(f"{name}: {source['late']} frames were late and the schedule slipped by {source['slipped_s']:.1f} s")
            if source["skipped"]:
                out.print(f"{name}: {source['skipped']} frames of the camera were not taken (newer ones came first, or --fps)")


def _unaccounted(rest: Unaccounted) -> dict[str, Any]:
    return {"source": rest.source, "epoch": rest.epoch, "sequences": rest.sequences.pairs, "ended": rest.ended}


def _sentence(taken: dict[str, Any]) -> str:
    waiting = [name for name, source in taken["sources"].items() if source.get("connected") is False]
    text = (
        f"{taken['seconds']:.0f} s  {taken['frames']} frames  {taken['fps']:.1f}/s  {taken['acknowledged']} acknowledged  "
        f"{taken['dropped']} dropped  {taken['bytes'] / 1e6:.1f} MB"
    )
    text += _where(taken)
    return text + (f"  not connected: {', '.join(waiting)}" if waiting else "")


def _where(taken: dict[str, Any]) -> str:
    """The site in use and its round trip; of several, the others too."""
    sites = taken["sites"]
    if len(sites) < 2:
        return ""
    near = sorted(sites.items(), key=lambda item: not item[1]["in_use"])
    told = ", ".join(
        f"{name} {'away' if not site['ok'] or site['rtt_ms'] is None else format(site['rtt_ms'], '.1f') + ' ms'}" for name, site in near
    )
    moves = sum(taken["moves"].values())
    return f"  to {told}" + (f"  {moves} move{'' if moves == 1 else 's'}" if moves else "")


def _line(value: dict[str, Any]) -> None:
    sys.stdout.write(shown_json(msgspec.json.encode(value).decode()) + "\n")
    sys.stdout.flush()
