"""The comparison for people (tables) and for programs (one document), and which goals were met."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

import msgspec
import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.bench.course import Case
from infra.bench.judge import Figures, Spread, spreads

FIRST_ALERT_S, BUDGET_SHARE, TIMES_MIRROR_MAKER = 1.0, 0.98, 1.5


class Goal(msgspec.Struct, frozen=True):
    """What the link promises, and what was measured."""

    promise: str
    measured: str
    met: bool


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    load_before: float


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """All runs with one limit, by contender; `failures` are those that were not brought to their end."""

    name: str
    case: Case
    runs: dict[str, list[Figures]]
    failures: list[str] = []


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole comparison."""

    machine: Machine
    versions: dict[str, str]
    variants: list[Variant]
    medians: dict[str, dict[str, dict[str, Spread | None]]]
    goals: list[Goal]


def machine() -> Machine:
    """This machine; to be asked before the runs, for its load."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=round(os.getloadavg()[0], 2),
    )


def report(found: Machine, versions: Mapping[str, str], variants: Sequence[Variant]) -> Report:
    """Add the runs up."""
    medians = {each.name: {name: spreads(runs) for name, runs in each.runs.items() if runs} for each in variants}
    goals = [goal for each in variants for goal in _goals(each)]
    return Report(machine=found, versions=dict(versions), variants=list(variants), medians=medians, goals=goals)


def _goals(variant: Variant) -> list[Goal]:
    ours, theirs = variant.runs.get("headwater"), variant.runs.get("mirrormaker")
    if not ours:
        return []
    mine = spreads(ours)
    goals = [
        _goal(
            f"{variant.name}: the first alert raised after the outage is at the region within {FIRST_ALERT_S:g} s",
            f"{_median(mine, 'first_alert_s'):.2f} s, the slowest {_greatest(mine, 'first_alert_s'):.2f} s",
            _greatest(mine, "first_alert_s") < FIRST_ALERT_S,
        )
    ]
    if variant.case.limit_bytes_per_s:
        share = _median(mine, "budget_share")
        goals.append(
            _goal(f"{variant.name}: the backlog drains at {BUDGET_SHARE:.0%} of the budget", f"{share:.1%}", share >= BUDGET_SHARE)
        )
    elif theirs:
        times = _median(mine, "records_per_s") / _median(spreads(theirs), "records_per_s")
        goals.append(
            _goal(
                f"{variant.name}: the backlog drains {TIMES_MIRROR_MAKER:g} times as fast as by MirrorMaker 2",
                f"{times:.2f} times",
                times >= TIMES_MIRROR_MAKER,
            )
        )
    return goals


def _goal(promise: str, measured: str, met: bool) -> Goal:
    return Goal(promise, measured, met)


def tables(found: Report, labels: Mapping[str, str]) -> RenderableType:
    """The comparison as a person reads it: medians, and the range of the runs where there are several."""
    parts: list[RenderableType] = []
    for variant in found.variants:
        case = variant.case
        limit = f"{case.limit_bytes_per_s / 1e6:g} MB/s each way" if case.limit_bytes_per_s else "no limit"
        repeats = max((len(runs) for runs in variant.runs.values()), default=0)
        title = (
            f"{variant.name}: {case.records} records in an outage of {case.outage_s:g} s, then {limit}; {repeats} runs each, median (range)"
        )
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2), header_style="dim")
        table.add_column("")
        names = [name for name, runs in variant.runs.items() if runs]
        for name in names:
            table.add_column(labels.get(name, name), justify="right")
        for row, field, scale, form in _ROWS:
            cells = [_cell(found.medians[variant.name][name][field], scale, form) for name in names]
            if any(cells):
                table.add_row(row, *cells)
        parts += [table, *(Text(f"FAILED  {failure}", style="bold red") for failure in variant.failures), Text()]
    where = found.machine
    for goal in found.goals:
        mark = Text("met     ", style="green") if goal.met else Text("NOT MET ", style="bold red")
        parts.append(Text.assemble(mark, goal.promise, ": ", (goal.measured, "bold")))
    versions = "; ".join(f"{labels.get(name, name)} {version}" for name, version in found.versions.items())
    parts.append(
        Text(
            f"{where.processor}, {where.cores} cores, {where.memory_bytes / 2**30:.0f} GiB, {where.system}, Python {where.python}, "
            f"load before {where.load_before:g}; {versions}",
            style="dim",
        )
    )
    return Group(*parts)


_ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("first new alert after the outage, s", "first_alert_s", 1, ".2f"),
    ("new alerts while draining, p50 ms", "alert_p50_ms", 1, ",.0f"),
    ("new alerts while draining, p99 ms", "alert_p99_ms", 1, ",.0f"),
    ("alerts before the outage, p50 ms", "steady_alert_p50_ms", 1, ",.0f"),
    ("backlog through, s", "drain_s", 1, ".1f"),
    ("records/s", "records_per_s", 1, ",.0f"),
    ("payload, MB/s", "payload_bytes_per_s", 1e6, ".2f"),
    ("on the wire upwards, MB", "wire_bytes", 1e6, ".1f"),
    ("on the wire upwards, MB/s", "wire_bytes_per_s", 1e6, ".2f"),
    ("of the limit, both ways together, %", "budget_share", 0.01, ".1f"),
    ("duplicates at the region", "duplicates", 1, ",.0f"),
    ("memory at most, MB", "resident_bytes", 1e6, ",.0f"),
    ("CPU while draining, s", "cpu_s", 1, ".1f"),
    ("start to first alert, s", "start_s", 1, ".1f"),
)


def _cell(found: Spread | None, scale: float, form: str) -> str:
    if found is None:
        return ""
    median, least, greatest = (format(value / scale, form) for value in (found.median, found.least, found.greatest))
    return median if least == greatest else f"{median} ({least}–{greatest})"


def _median(found: Mapping[str, Spread | None], name: str) -> float:
    value = found[name]
    assert value is not None
    return value.median


def _greatest(found: Mapping[str, Spread | None], name: str) -> float:
    value = found[name]
    assert value is not None
    return value.greatest


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
