"""One round: a fault is done to a running fleet, everything is waited for, and the judge says what it broke."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import msgspec

from infra.faults.fleet import Fleet
from infra.faults.service import FaultDidNotHappen

SETTLE_S = 120.0


class Broken(AssertionError):
    """A promise that did not hold under a fault."""


class Setting(msgspec.Struct, frozen=True):
    """How a fault is to be done: with this chance, for about so long (s)."""

    chance: random.Random
    length_s: float

    def moment(self, longest_s: float = 2.0) -> None:
        """Wait for a random moment: nothing in the product may know when it comes."""
        time.sleep(self.chance.uniform(0.1, longest_s))


# Does the fault and yields what shows that it happened; goes on, once everything has settled, with what else must hold.
Act = Callable[[Fleet, Setting], Iterator[str]]


class Fault(msgspec.Struct, frozen=True):
    """A fault by name. `outage`: the region is away for its length, and alerts must go on."""

    name: str
    act: Act
    outage: bool = False
    length_s: float = 8.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What rounds of one fault came to."""

    fault: str
    rounds: int = 1
    records: int = 0
    real_frames: int = 0
    unaccounted: int = 0
    repeated_verdicts: int = 0
    repeated_results: int = 0
    wrong: int = 0
    longest_pause_s: float = 0.0
    settled_s: float = 0.0
    evidence: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def __add__(self, other: Row) -> Row:
        return Row(
            fault=self.fault,
            rounds=self.rounds + other.rounds,
            records=self.records + other.records,
            real_frames=self.real_frames + other.real_frames,
            unaccounted=self.unaccounted + other.unaccounted,
            repeated_verdicts=self.repeated_verdicts + other.repeated_verdicts,
            repeated_results=self.repeated_results + other.repeated_results,
            wrong=self.wrong + other.wrong,
            longest_pause_s=max(self.longest_pause_s, other.longest_pause_s),
            settled_s=max(self.settled_s, other.settled_s),
            evidence=(*self.evidence, *other.evidence)[-8:],
            failures=self.failures + other.failures,
        )


def play(fleet: Fleet, fault: Fault, seed: int, *, length_s: float | None = None, settle_s: float = SETTLE_S) -> Row:
    """Do a fault once; what did not hold is in the row's `failures`. Whatever happens, the network is whole again afterwards."""
    setting = Setting(random.Random(seed), fault.length_s if length_s is None else length_s)  # noqa: S311
    failures: list[str] = []
    evidence: list[str] = []
    with fleet.judge.lock:
        fleet.judge.book.begin()
        letters = dict(fleet.judge.book.letters)
    start = time.monotonic()
    act = fault.act(fleet, setting)
    try:
        evidence.append(next(act))
    except (FaultDidNotHappen, Broken) as error:
        failures.append(str(error))
    finally:
        fleet.proxy.restore()
    end = time.monotonic()
    settled = fleet.settle(end, settle_s)
    if not settled.clean:
        failures.append(f"after {settled.seconds:.0f} s: {settled}")
    with fleet.judge.lock:
        book, tally = fleet.judge.book, fleet.judge.book.tally
        records = book.records_between(fleet.judged_until, end)  # those between the rounds too
        fleet.judged_until = end
        first_ms, last_ms = fleet.judge.leaf_ms(start), fleet.judge.leaf_ms(end)
        if fault.outage and not any(first_ms <= at < last_ms for at in book.alert_times):
            failures.append("no alert was raised while the region was away")
        for topic, count in sorted(book.letters.items()):
            # frames can be at fault; what our own processes wrote to each other cannot
            if topic != "frames.dlq" and (new := count - letters.get(topic, 0)):
                failures.append(f"{new} dead letters in {topic}")
        for kind in ("repeated_results", "wrong_detections", "wrong_bytes", "unknown_records"):
            if count := getattr(tally, kind):
                failures.append(f"{count} {kind.replace('_', ' ')}: {'; '.join(e for e in tally.examples if e.startswith(kind))[:600]}")
        row = Row(
            fault=fault.name,
            records=records,
            real_frames=records if fleet.workload.real else 0,
            unaccounted=len(settled.unaccounted),
            repeated_verdicts=tally.repeated_verdicts,
            repeated_results=tally.repeated_results,
            wrong=tally.wrong_detections + tally.wrong_bytes,
            longest_pause_s=max(tally.pauses.values(), default=0.0),
            settled_s=settled.seconds,
        )
    if not records:
        failures.append("nothing was published")
    try:
        next(act, None)
    except Broken as error:
        failures.append(str(error))
    return msgspec.structs.replace(row, evidence=tuple(evidence), failures=tuple(failures))
