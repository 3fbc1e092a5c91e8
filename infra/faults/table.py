"""What the rounds came to, as a table for people and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from infra.faults.long import Machine
from infra.faults.rounds import Row

COLUMNS = (
    "fault",
    "rounds",
    "records",
    "unaccounted",
    "duplicates downstream",
    "duplicates in results",
    "wrong detections",
    "longest pause",
)


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.fault,
        str(row.rounds),
        f"{row.records:,}",
        str(row.unaccounted),
        f"{row.repeated_verdicts:,}",
        str(row.repeated_results),
        str(row.wrong),
        f"{row.longest_pause_s:.1f} s",
    )


def total(rows: Sequence[Row]) -> Row:
    """All rows together."""
    if not rows:
        return Row(fault="all", rounds=0)
    summed = rows[0]
    for row in rows[1:]:
        summed = summed + row
    return Row(**{**{name: getattr(summed, name) for name in Row.__struct_fields__}, "fault": "all", "evidence": ()})


def table(rows: Sequence[Row]) -> Table:
    """For a terminal; a fault that broke something is red."""
    shown = Table(show_edge=False, pad_edge=False)
    for index, name in enumerate(COLUMNS):
        shown.add_column(name, justify="left" if index == 0 else "right", min_width=24 if index == 0 else 6)
    for row in rows:
        shown.add_row(*cells(row), style="red" if row.failures else None)
    if len(rows) > 1:
        shown.add_section()
        shown.add_row(*cells(total(rows)), style="bold")
    return shown


def markdown(rows: Sequence[Row], on: Machine, command: str, minutes: float) -> str:
    """For tests/faults/README.md: the machine, the command, the table, and what was seen of each fault."""
    everything = total(rows)
    versions = ", ".join(f"{name} {version}" for name, version in on.versions.items())
    lines = [
        f"{on.cores} cores, {on.memory_gib} GiB, {on.system}, Python {on.python}, {versions}; {minutes:.0f} minutes, "
        f"{everything.records:,} records, of which {everything.real_frames:,} are frames of a real video through the real detectors.",
        "",
        f"    {command}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * (len(COLUMNS) - 1),
        *("| " + " | ".join(cells(row)) + " |" for row in [*rows, everything]),
        "",
        "What the last round of each showed:",
        "",
        *(f"- {row.fault}: {row.evidence[-1]}" for row in rows if row.evidence),
    ]
    if broken := [row for row in rows if row.failures]:
        lines += ["", "What did not hold:", "", *(f"- {row.fault}: {failure}" for row in broken for failure in row.failures)]
    return "\n".join(lines) + "\n"
