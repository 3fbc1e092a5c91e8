"""Faults of the network between a leaf and its region, made in the proxy. The leaf must go on as if nothing were."""

from __future__ import annotations

import time
from collections.abc import Iterator

from infra.faults.fleet import Fleet
from infra.faults.rounds import Act, Fault, Setting
from infra.faults.service import FaultDidNotHappen
from infra.proxy import Direction


def _still(fleet: Fleet, seconds: float) -> int:
    """Wait so long; raises `FaultDidNotHappen` if the region took verdicts meanwhile. Returns what the leaf wrote."""
    region, leaf = f"up.{fleet.leaf_name}.verdicts", "verdicts"
    time.sleep(1.0)  # what was under way
    before, ours = fleet.region.end(region, fleet.partitions), fleet.leaf.end(leaf, fleet.partitions)
    time.sleep(max(0.5, seconds - 1.0))
    after, ours_after = fleet.region.end(region, fleet.partitions), fleet.leaf.end(leaf, fleet.partitions)
    if after != before:
        raise FaultDidNotHappen(f"{region} grew by {after - before} while the link was cut")
    return ours_after - ours


def cut(*directions: Direction) -> Act:
    """A black hole, in both directions or one: nothing passes, nothing is closed, nothing is refused."""

    def act(fleet: Fleet, setting: Setting) -> Iterator[str]:
        setting.moment()
        held = fleet.proxy.held + fleet.proxy.waiting
        fleet.proxy.cut(*directions)
        # with one direction open, what is sent may still arrive, only the answer does not
        if directions == ("down",):
            time.sleep(setting.length_s)
            written = -1
        else:
            written = _still(fleet, setting.length_s)
        met = fleet.proxy.held + fleet.proxy.waiting - held
        fleet.proxy.restore()
        if not met:
            raise FaultDidNotHappen("no connection met the cut")
        said = f"; the leaf wrote {written} verdicts, the region's offsets stood still" if written >= 0 else ""
        yield f"{' and '.join(directions) or 'both ways'} cut for {setting.length_s:.0f} s, {met} connections and chunks met it{said}"

    return act


def flapping(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Cut and restored every second or so."""
    end, cuts = time.monotonic() + setting.length_s, 0
    while time.monotonic() < end:
        fleet.proxy.cut()
        time.sleep(setting.chance.uniform(0.3, 1.5))
        fleet.proxy.restore()
        cuts += 1
        time.sleep(setting.chance.uniform(0.1, 1.0))
    yield f"{cuts} cuts, {fleet.proxy.held} chunks met them"


def slow(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """A rate far below what the leaf wants to send."""
    rate = 24_000
    sent, start = fleet.proxy.sent, time.monotonic()
    fleet.proxy.slow(rate)
    time.sleep(setting.length_s)
    took = fleet.proxy.sent - sent
    seconds = time.monotonic() - start
    if took > 1.2 * rate * seconds + 64_000:
        raise FaultDidNotHappen(f"{took} bytes passed in {seconds:.1f} s: the rate was not limited")
    yield f"{took} bytes passed upwards in {seconds:.1f} s at a limit of {rate} bytes/s"


def late(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Half a second each way, and one chunk in twenty held back as a lost packet is."""
    stalls = sum(way.stalls for way in fleet.proxy.ways.values())
    fleet.proxy.delay(0.5)
    fleet.proxy.stall(0.05, 0.8)
    time.sleep(setting.length_s)
    met = sum(way.stalls for way in fleet.proxy.ways.values()) - stalls
    if not met:
        raise FaultDidNotHappen("no chunk was held back")
    yield f"0.5 s each way for {setting.length_s:.0f} s, {met} chunks held back 0.8 s"


def refused(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Connections are torn down and new ones turned away."""
    setting.moment()
    before = fleet.proxy.refused
    fleet.proxy.refuse()
    written = _still(fleet, setting.length_s)
    met = fleet.proxy.refused - before
    fleet.proxy.restore()
    if not met:
        raise FaultDidNotHappen("nobody tried to connect")
    yield f"{met} connections turned away in {setting.length_s:.0f} s; the leaf wrote {written} verdicts, the region's offsets stood still"


def resets(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Every connection torn down, again and again."""
    end, before = time.monotonic() + setting.length_s, fleet.proxy.reset_count
    while time.monotonic() < end:
        fleet.proxy.reset()
        time.sleep(setting.chance.uniform(0.2, 1.5))
    met = fleet.proxy.reset_count - before
    if not met:
        raise FaultDidNotHappen("no connection was torn down")
    yield f"{met} connections torn down"


LINKS = (
    Fault("link cut (black hole)", cut(), outage=True, length_s=20.0),
    Fault("link one-way: nothing goes up", cut("up"), outage=True, length_s=15.0),
    Fault("link one-way: nothing comes down", cut("down"), outage=True, length_s=15.0),
    Fault("link refused", refused, outage=True, length_s=12.0),
    Fault("link reset again and again", resets, length_s=10.0),
    Fault("link flapping", flapping, length_s=15.0),
    Fault("link slow (24 kB/s)", slow, length_s=15.0),
    Fault("link late and lossy", late, length_s=12.0),
)
