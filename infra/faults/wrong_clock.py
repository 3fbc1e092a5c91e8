"""A site whose clock is hours wrong: its broker (the JVM), its processes and its cameras. The region's is right."""

from __future__ import annotations

import time
from collections.abc import Iterator

from infra.faults.fleet import Fleet
from infra.faults.rounds import Broken, Fault, Setting
from infra.faults.service import FaultDidNotHappen

WRONG_S = 7_200.0


def wrong_clock(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Work for a while, with an outage in it. The clock was wrong since the site began."""
    start_ms = time.time() * 1000
    time.sleep(setting.length_s / 2)
    fleet.proxy.cut()
    time.sleep(setting.length_s / 2)
    fleet.proxy.restore()
    off_s = [(at - start_ms) / 1000 for at in fleet.judge.book.alert_times[-3:]]
    if not off_s or any(abs(off - fleet.clock_s) > 600 for off in off_s):
        raise FaultDidNotHappen(f"the leaf's broker stamps alerts {off_s} s from the true time, not {fleet.clock_s:+.0f} s")
    yield f"the leaf's broker stamps its records {off_s[-1]:+.0f} s from the true time"
    with fleet.judge.lock:
        stale = {reason: count for reason, count in fleet.judge.book.reasons.items() if "stale" in reason or "ttl" in reason}
    if stale:
        raise Broken(f"a wrong clock made records look old: {stale}")


CLOCK = Fault("clock two hours off", wrong_clock, outage=True, length_s=10.0)
