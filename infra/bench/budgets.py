"""Whether both budgets are obeyed and used: the demo's sites with cameras for minutes, measured from outside.

Bytes are counted by the proxy between the sites, all lanes and both ways. Looks are counted by the region's answers as its broker stored
them, read by a foreign client: an answer is an inference.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from infra.demo.prepare import Ready
from infra.demo.scenario import Demo, Plan
from infra.demo.sites import LEAF
from infra.faults.raw import Reader

MINUTE_S = 60
SETTLE_S = 60.0  # from the first frame: what a look costs, and what else crosses the link, is being learned
MOST_OVER, LEAST_USED = 1.02, 0.98
_PARTITIONS = 4
_LAST_S = 5.0  # to read what is there


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: the budget of the link in bytes a second, the region's capacity in looks a second, and for how long. The first
    camera's picture is spoiled from `spoiled_s` on, so that its stream turns difficult; 0: never."""

    name: str
    seconds: float
    cameras: int
    link_bytes_per_s: int
    looks_per_s: float
    spoiled_s: float = 0.0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent of one budget: as a share of it in each minute from the first frame on, in the fullest of all minutes that begin with
    a second, and over the whole but the first minute."""

    budget_per_s: float
    minutes: tuple[float, ...]
    fullest: float
    used: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `share_before` and `share_after` are the first camera's share of the looks before and after its picture was spoiled."""

    case: Case
    bytes: Spent
    looks: Spent
    asked: int
    waiting_s_p95: float | None
    share_before: float | None = None
    share_after: float | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """The goals that were missed."""
        found = [
            f"{name}: {spent.fullest:.1%} of the budget in one minute, expected at most {MOST_OVER:.0%}"
            for name, spent in (("bytes", self.bytes), ("looks", self.looks))
            if spent.fullest > MOST_OVER
        ]
        if max(self.bytes.used, self.looks.used) < LEAST_USED:
            found.append(
                f"{self.bytes.used:.1%} of the bytes and {self.looks.used:.1%} of the looks used: expected {LEAST_USED:.0%} of one"
            )
        return tuple(found)


def run(case: Case, ready: Ready, folder: Path, say: Callable[[str], None], told: Callable[[float], None]) -> Figures:
    """Play one case; `told` is called with the seconds since the first frame. Raises what `infra.demo.scenario` raises."""
    plan = Plan(
        video=ready.video,
        seconds=case.seconds,
        cameras=case.cameras,
        outage=None,
        folder=folder,
        measured=ready.measured,
        degrade=f"noise@{case.spoiled_s:g}" if case.spoiled_s else None,
        budget_bytes_per_s=case.link_bytes_per_s,
        link_bytes_per_s=case.link_bytes_per_s,
        looks_per_s=case.looks_per_s,
    )
    demo = Demo(plan, say)
    try:
        demo.prepare()
        wire: list[tuple[float, float]] = []
        for elapsed in demo.play():
            wire.append((elapsed, float(demo.proxy.sent + demo.proxy.received)))
            told(elapsed)
        began_s = demo.began_at
        looks = _looks(demo.region_kafka, began_s)
        demo.refresh()
        agent = demo.scrapes["leaf agent"]
        asked = int(agent.total("headwater_escalations_total"))
    finally:
        demo.close()
    base = wire[0][1]
    sent = [(at, total - base) for at, total in wire]
    counted = [(at, float(number)) for number, (at, _, _) in enumerate(looks, 1)]
    waits = sorted(wait for _, _, wait in looks)
    before, after = _share(looks, case.spoiled_s) if case.spoiled_s else (None, None)
    return Figures(
        case=case,
        bytes=spent(sent, case.link_bytes_per_s, case.seconds),
        looks=spent(counted, case.looks_per_s, case.seconds),
        asked=asked,
        waiting_s_p95=round(waits[int(0.95 * len(waits))], 2) if waits else None,
        share_before=before,
        share_after=after,
    )


def spent(totals: Sequence[tuple[float, float]], budget_per_s: float, seconds: float) -> Spent:
    """What was spent of a budget, by running totals: (seconds since the first frame, spent so far), in the order of time."""
    by_second = [0.0] * (int(seconds) + 1)
    at = 0
    for second in range(len(by_second)):
        while at < len(totals) and totals[at][0] <= second:
            at += 1
        by_second[second] = totals[at - 1][1] if at else 0.0

    def share(first: int, last: int) -> float:
        return (by_second[last] - by_second[first]) / (budget_per_s * (last - first))

    whole = len(by_second) - 1
    length = min(MINUTE_S, whole)
    settled = min(int(SETTLE_S), whole - 1)
    return Spent(
        budget_per_s=budget_per_s,
        minutes=tuple(round(share(start, start + length), 4) for start in range(0, whole - length + 1, length)),
        fullest=round(max(share(start, start + length) for start in range(whole - length + 1)), 4),
        used=round(share(settled, whole), 4),
    )


def _looks(kafka: str, began_s: float) -> list[tuple[float, str, float]]:
    """The region's answers in the order of time: (seconds since the first frame, source, seconds since the frame was taken)."""
    reader = Reader(kafka)
    try:
        reader.follow((f"down.{LEAF}.verdicts", partition) for partition in range(_PARTITIONS))
        found, until = [], time.monotonic() + _LAST_S
        while time.monotonic() < until:
            for message in reader.read(0.5):
                value = json.loads(message.value() or b"{}")
                at_s = message.timestamp()[1] / 1000
                taken_s = msgspec.convert(value["captured_at"], dt.datetime).timestamp()
                found.append((at_s - began_s, str(value["source"]), at_s - taken_s))
                until = time.monotonic() + _LAST_S
        return sorted(found)
    finally:
        reader.close()


def _share(looks: Sequence[tuple[float, str, float]], spoiled_s: float) -> tuple[float | None, float | None]:
    """The first camera's share of the looks before and in the two minutes after a moment; the first minute is left out."""
    shares = []
    for first, last in ((SETTLE_S, spoiled_s), (spoiled_s, spoiled_s + 120)):
        names = [source for at, source, _ in looks if first <= at < last]
        shares.append(round(sum(name == "cam-1" for name in names) / len(names), 3) if names else None)
    return shares[0], shares[1]
