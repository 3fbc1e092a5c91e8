"""Two long runs over a real, bad network, for the long form of the fault suite: a thin link, and one that comes and goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from infra.faults.network.sites import Seen, TwoSites
from infra.faults.network.wire import Counters, Wire

Say = Callable[[str], None]
THIN, FLAPPING = "network: delay, loss, thin", "network: interface down and up"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run: what a raw reader saw at the end, what the wire did to packets (the proof that the fault was there), and how
    often the interface went down."""

    fault: str
    seconds: float
    seen: Seen
    wire: Counters
    times_down: int = 0

    @property
    def good(self) -> bool:
        """Nothing is missing, nothing is believed twice."""
        return not self.seen.unaccounted and not self.seen.missing and not self.seen.repeated_results


class Scenario(msgspec.Struct, frozen=True):
    """A run by name; `play` takes a folder and the minutes that the cameras run."""

    name: str
    play: Callable[[Path, float], Outcome]


def thin_link(
    folder: Path,
    *,
    minutes: float,
    delay_ms: float = 100.0,
    loss: float = 0.02,
    rate_bytes_per_s: int = 64_000,
    fps: float = 5.0,
    settle_s: float = 240.0,
    say: Say = lambda _: None,
) -> Outcome:
    """A leaf behind a link of 100 ms each way, 2 % loss and 512 kbit/s. The leaf's budget of evidence is a third of the rate.

    Parameters
    ----------
    folder
        Logs, data and manifests of the run.
    fps
        Frames a second of each of two cameras.
    settle_s
        How long what is left may take after the cameras have stopped; the link stays as bad as it was.

    Raises
    ------
    NetworkUnavailable
        Where networks cannot be made, or if a process ended.
    """
    with Wire() as wire, TwoSites(folder, wire, policy={"budget_bytes_per_s": rate_bytes_per_s // 3}) as sites:
        wire.set(delay_ms=delay_ms, loss=loss, rate_bytes_per_s=rate_bytes_per_s)
        started = time.monotonic()
        sites.play(fps=fps)
        while (elapsed := time.monotonic() - started) < minutes * 60:
            time.sleep(min(1.0, max(0.0, minutes * 60 - elapsed)))
            sites.alive()
        return _end(f"{delay_ms:g} ms, {loss:.0%} loss, {rate_bytes_per_s * 8 // 1000} kbit/s", sites, wire, started, settle_s, say)


def flapping_link(
    folder: Path,
    *,
    minutes: float,
    down_s: float = 3.0,
    up_s: float = 7.0,
    fps: float = 5.0,
    settle_s: float = 120.0,
    say: Say = lambda _: None,
) -> Outcome:
    """A leaf whose interface to the region is taken down and up again every few seconds (10 ms each way while it is up); raises as
    `thin_link` does."""
    with Wire() as wire, TwoSites(folder, wire) as sites:
        wire.set(delay_ms=10.0)
        started = time.monotonic()
        sites.play(fps=fps)
        times = wire.flap(down_s=down_s, up_s=up_s, for_s=minutes * 60, meanwhile=sites.alive)
        return _end(f"interface down {down_s:g} s, up {up_s:g} s", sites, wire, started, settle_s, say, times)


def _end(fault: str, sites: TwoSites, wire: Wire, started: float, settle_s: float, say: Say, times_down: int = 0) -> Outcome:
    sites.end_play()
    seconds = time.monotonic() - started
    say("the cameras have stopped: waiting for what is still on its way")
    return Outcome(fault=fault, seconds=seconds, seen=sites.settle(settle_s, say), wire=wire.counters(), times_down=times_down)


SCENARIOS = (
    Scenario(THIN, lambda folder, minutes: thin_link(folder, minutes=minutes)),
    Scenario(FLAPPING, lambda folder, minutes: flapping_link(folder, minutes=minutes)),
)
