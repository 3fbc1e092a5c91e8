"""The long form: rounds of every fault for an hour and more, on synthetic frames for volume and on real ones, and the rows they gave."""

from __future__ import annotations

import contextlib
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import psutil

from infra.faults.catalogue import NETWORKS, OWN, REAL, SHARED, rounds
from infra.faults.disk import DISK, LOW, LOW_DISK, small_disk
from infra.faults.fleet import Fleet, FleetFailed
from infra.faults.network.scenarios import Outcome, Scenario
from infra.faults.records import HANGING_LIMIT, POISON
from infra.faults.rounds import Fault, Row, play
from infra.faults.sites import Workload, spots_workload, street_workload
from infra.faults.wrong_clock import CLOCK, WRONG_S

SHARE_OF_REAL = 0.2  # of the time, for real frames
REAL_SOURCES, REAL_FPS = 2, 10.0
MAX_BYTES = 16 << 30  # of one pair of sites: beyond it they are replaced by new ones
DISK_TOO_FULL_BYTES = 4 << 30
PATIENCE = 3.0  # times the minutes: longer than that nothing is waited for
EASY_S, HARD_S = 4.0, 15.0  # a round that settles so soon leaves room for more records; one that takes so long for fewer
LEAST_RATE = 20.0

NETWORK_MINUTES = 3.0  # of each bad wire, and no more than a twentieth of the whole
Say = Callable[["Progress"], None]


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


_Named = TypeVar("_Named", bound=_HasName)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: how long at least, and how many records; synthetic frames a second at most, and which faults (all that are not
    skipped if none is named). What a machine does not bear at that rate it gets at a lower one."""

    minutes: float
    records: int = 0
    seed: int
    rate: float = 400.0
    sources: int = 8
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    folder: Path

    def wanted(self, faults: tuple[_Named, ...]) -> tuple[_Named, ...]:
        def named(fault: _Named, names: tuple[str, ...]) -> bool:
            return any(name.lower() in fault.name.lower() for name in names)

        return tuple(fault for fault in faults if (not self.only or named(fault, self.only)) and not named(fault, self.skip))


class Progress(msgspec.Struct):
    """How far it is: what is being done, and the rows so far, by fault."""

    doing: str = ""
    began: float = 0.0
    rows: dict[str, Row] = {}
    rounds: int = 0

    @property
    def records(self) -> int:
        return sum(row.records for row in self.rows.values())

    def take(self, row: Row) -> None:
        self.rows[row.fault] = self.rows[row.fault] + row if row.fault in self.rows else row
        self.rounds += 1


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What it ran on."""

    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]


def machine() -> Machine:
    from importlib.metadata import version

    names = ("headwater", "confluent-kafka", "faust-streaming", "aiokafka", "onnxruntime")
    return Machine(
        cores=psutil.cpu_count() or 0,
        memory_gib=round(psutil.virtual_memory().total / (1 << 30), 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={name: version(name) for name in names},
    )


def run_long(plan: Plan, progress: Progress, say: Say) -> None:
    """Run until the time is over; rows are in `progress` as they come, so that nothing is lost when it is interrupted."""
    progress.began = time.monotonic()
    end = progress.began + plan.minutes * 60
    chance = random.Random(plan.seed)  # noqa: S311
    spots = spots_workload(plan.folder / "workload")
    for fault in plan.wanted(OWN):
        for fleet, what in _own(plan, spots, fault):
            _round(plan, fleet, what, chance, progress, say)
    for scenario in plan.wanted(NETWORKS):
        _wire(plan, scenario, progress, say)
    if (real := plan.wanted(REAL)) and (left := end - time.monotonic()) > 0:
        street = street_workload(plan.folder / "workload")
        _phase(plan, street, real, time.monotonic() + SHARE_OF_REAL * left, chance, progress, say, REAL_SOURCES, REAL_FPS)
    if shared := plan.wanted(SHARED):
        while time.monotonic() < end or progress.records < plan.records:
            if time.monotonic() > progress.began + PATIENCE * plan.minutes * 60:
                return
            until = max(end, time.monotonic() + 120)
            _phase(plan, spots, shared, until, chance, progress, say, plan.sources, plan.rate / plan.sources)


def _wire(plan: Plan, scenario: Scenario, progress: Progress, say: Say) -> None:
    """A run over a bad wire between two network namespaces."""
    progress.doing = scenario.name
    say(progress)
    folder = plan.folder / f"network-{int(time.monotonic())}"
    try:
        row = _row(scenario.name, scenario.play(folder, min(NETWORK_MINUTES, plan.minutes / 20)))
    except Exception as error:  # noqa: BLE001 - as in `_round`
        row = Row(fault=scenario.name, failures=(f"{type(error).__name__}: {error}",))
    finally:
        for data in folder.glob("kafka-*"):
            shutil.rmtree(data, ignore_errors=True)
    progress.take(row)
    say(progress)


def _row(name: str, outcome: Outcome) -> Row:
    seen, wire = outcome.seen, outcome.wire
    failures = []
    if seen.missing:
        failures.append(f"{seen.missing} records are not at the region, and nothing explains them")
    if seen.unaccounted:
        failures.append(f"unaccounted: {', '.join(seen.unaccounted[:5])}")
    if seen.repeated_results:
        failures.append(f"{seen.repeated_results} repeated results")
    downs = f"; the interface was down {outcome.times_down} times" if outcome.times_down else ""
    return Row(
        fault=name,
        records=seen.produced,
        unaccounted=len(seen.unaccounted),
        repeated_verdicts=sum(each.repeated for each in seen.carried.values()),
        repeated_results=seen.repeated_results,
        longest_pause_s=seen.leaf_pause_s,
        evidence=(f"{outcome.fault}: of the leaf's packets {wire.up.lost:,} were lost and {wire.up.cut:,} cut off{downs}",),
        failures=tuple(failures),
    )


def _phase(
    plan: Plan,
    workload: Workload,
    faults: tuple[Fault, ...],
    end: float,
    chance: random.Random,
    progress: Progress,
    say: Say,
    sources: int,
    fps: float,
) -> None:
    """Rounds on one pair of sites; one that is broken, or has grown too large, is replaced."""
    todo = rounds(faults, chance)
    while time.monotonic() < end:
        folder = plan.folder / f"{workload.name}-{int(time.monotonic())}"
        progress.doing = f"starting two sites ({workload.name})"
        say(progress)
        try:
            with Fleet(folder, workload, sources=sources, fps=fps, seed=plan.seed) as fleet:
                while time.monotonic() < end and _bytes(folder) < MAX_BYTES:
                    row = _round(plan, fleet, next(todo), chance, progress, say)
                    if row.failures:
                        break
                    _adapt(fleet, row.settled_s, fps)
        except FleetFailed as error:
            progress.take(Row(fault="(sites did not come up)", failures=(str(error),)))
        finally:
            for data in folder.glob("kafka-*"):
                shutil.rmtree(data, ignore_errors=True)


def _round(plan: Plan, fleet: Fleet, fault: Fault, chance: random.Random, progress: Progress, say: Say) -> Row:
    progress.doing = f"{fault.name} ({fleet.workload.name})"
    say(progress)
    seed = chance.randrange(1 << 30)
    try:
        row = play(fleet, fault, seed)
    except Exception as error:  # noqa: BLE001 - one round that went wrong must not end the hour; it is in the table
        row = Row(fault=fault.name, failures=(f"{type(error).__name__}: {error} (seed {seed})",))
    progress.take(row)
    say(progress)
    return row


def _adapt(fleet: Fleet, settled_s: float, most: float) -> None:
    """Less when the last round took long to settle, more when it did not: what this machine bears beside whatever else it does."""
    least = LEAST_RATE / len(fleet.names)
    if settled_s > HARD_S and fleet.fps > least:
        fleet.set_rate(max(least, 0.6 * fleet.fps))
    elif settled_s < EASY_S and fleet.fps < 0.8 * most:
        fleet.set_rate(min(most, 1.3 * fleet.fps))


def _own(plan: Plan, spots: Workload, fault: Fault) -> Iterator[tuple[Fleet, Fault]]:
    """Sites that one fault has for itself."""
    clocks = (WRONG_S, -WRONG_S) if fault is CLOCK else (0.0,)
    for wrong_s in clocks:
        folder = plan.folder / f"own-{int(time.monotonic())}"
        with contextlib.ExitStack() as stack:
            how: dict[str, Any] = {"leaf_clock_s": wrong_s}
            if fault is DISK:
                how["region_folder"] = stack.enter_context(small_disk(folder / "disk")) / "kafka-region"
            if fault is LOW_DISK:
                how |= {"leaf_folder": stack.enter_context(small_disk(folder / "disk")) / "kafka-leaf", "leaf_disk": LOW}
            if fault in POISON:
                how["engine"] = HANGING_LIMIT
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield stack.enter_context(Fleet(folder, spots, sources=4, fps=20.0, **how)), fault


def _bytes(folder: Path) -> int:
    """Bytes of the brokers' logs; the whole bound if the disk itself runs full."""
    if shutil.disk_usage(folder).free < DISK_TOO_FULL_BYTES:
        return MAX_BYTES
    total = 0
    for path in folder.glob("kafka-*/data/*/*"):
        with contextlib.suppress(OSError):  # deleted by retention a moment ago
            total += path.stat().st_size
    return total
