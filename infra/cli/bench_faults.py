"""`headwater bench faults`: every fault on real clusters and processes, judged record by record from outside."""

from __future__ import annotations

import secrets
import shlex
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infra import logs
from infra.cli.common import CommandFailed, err, out
from infra.processes import ended_by_signals

if TYPE_CHECKING:
    from infra.faults.long import Plan
    from infra.faults.long import Progress as Doing

LONG_MINUTES, SHORT_MINUTES, LONG_RECORDS = 75.0, 8.0, 1_000_000


@click.command()
@click.option("--long", "is_long", is_flag=True, help=f"The full form: {LONG_MINUTES:g} minutes unless --minutes says otherwise.")
@click.option("--minutes", type=click.FloatRange(1, 10_000), help=f"How long at least.  [default: {SHORT_MINUTES:g}]")
@click.option(
    "--records", type=click.IntRange(0), help=f"Go on until so many records were judged.  [default: {LONG_RECORDS:,} with --long]"
)
@click.option("--rate", type=click.FloatRange(1, 100_000), default=400.0, show_default=True, help="Synthetic frames a second at most.")
@click.option("--seed", type=int, help="Of the moments and the order; without it, another one each time (it is printed).")
@click.option("--only", multiple=True, metavar="FAULT", help="Only faults whose name contains this; may be given several times.")
@click.option("--skip", multiple=True, metavar="FAULT", help="Not the faults whose name contains this; may be given several times.")
@click.option("--list", "listed", is_flag=True, help="List the faults and end.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the rows to FILE.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the table to FILE."
)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Keep logs and manifests in DIR.")
def faults(
    is_long: bool,
    minutes: float | None,
    records: int | None,
    rate: float,
    seed: int | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    listed: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    keep: Path | None,
) -> int:
    """Kill, cut, fill and confuse two real sites, and judge from outside what was lost.

    Two Kafka brokers, every process of a leaf and its region, producers, a proxy between the sites. After each fault every record of the
    test's own manifest must be found, by a reader that shares nothing with Headwater, as a result, a drop or a dead letter; detections must
    be those of a run without faults; no result may be repeated. It needs about 4 GB of memory and 16 GB of disk, and root for the small
    disks and the networks. Ctrl-C ends it and prints what it has.

    \b
    Examples:
      headwater bench faults
      headwater bench faults --only 'kill -9' --minutes 5 --seed 7
      headwater bench faults --long --json faults.json --markdown faults.md
    """
    from infra.faults.catalogue import NETWORKS, OWN, SHARED
    from infra.faults.long import Plan
    from infra.faults.long import Progress as Doing

    if listed:
        for name in (each.name for faults in (SHARED, OWN, NETWORKS) for each in faults):
            click.echo(name)
        return 0
    seed = secrets.randbelow(1 << 16) if seed is None else seed
    minutes = minutes or (LONG_MINUTES if is_long else SHORT_MINUTES)
    logs.setup(level="ERROR")
    doing = Doing()
    with ended_by_signals(), ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-faults-", ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        wanted = LONG_RECORDS if records is None and is_long else records or 0
        plan = Plan(minutes=minutes, records=wanted, seed=seed, rate=rate, only=only, skip=skip, folder=folder.absolute())
        if not any([bool(plan.wanted(SHARED)), bool(plan.wanted(OWN)), bool(plan.wanted(NETWORKS))]):
            raise CommandFailed(f"no fault is named {' or '.join(map(repr, only))}: `headwater bench faults --list` names them")
        err.print(f"seed {seed}, {minutes:g} minutes, files in {folder}")
        try:
            _run(plan, doing, json_file)
        finally:
            _report(plan, doing, json_file, markdown_file)
    return 1 if any(row.failures for row in doing.rows.values()) or not doing.rows else 0


def _run(plan: Plan, doing: Doing, json_file: Path | None) -> None:
    from infra.faults.long import run_long
    from infra.faults.table import table

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[records]:,} records"), TimeElapsedColumn(), console=err
    )
    task = bar.add_task("preparing", total=plan.minutes * 60, records=0)
    halt = threading.Event()
    with Live(Group(bar), console=err, refresh_per_second=2, transient=True) as live:

        def say(now: Doing) -> None:
            if not err.is_terminal:
                err.print(f"{time.strftime('%H:%M:%S')} {now.rounds} rounds, {now.records:,} records; {now.doing}")
            bar.update(task, description=now.doing, completed=time.monotonic() - now.began, records=now.records)
            live.update(Group(table(list(now.rows.values())), bar))
            _write_json(plan, now, json_file)  # an hour's work must not hang on a clean end

        def tick() -> None:
            while not halt.wait(1.0):
                if doing.began:
                    bar.update(task, completed=time.monotonic() - doing.began)

        threading.Thread(target=tick, name="tick", daemon=True).start()
        try:
            run_long(plan, doing, say)
        finally:
            halt.set()


def _report(plan: Plan, doing: Doing, json_file: Path | None, markdown_file: Path | None) -> None:
    from infra.faults.long import machine
    from infra.faults.table import markdown, table

    rows = sorted(doing.rows.values(), key=lambda row: row.fault)
    if not rows:
        return
    on, minutes = machine(), (time.monotonic() - doing.began) / 60
    command = "headwater " + shlex.join(sys.argv[1:])
    (out if out.is_terminal else Console(width=200)).print(table(rows))
    for row in rows:
        for failure in row.failures:
            out.print(f"[red]{row.fault}[/]: {failure}", markup=True)
    _write_json(plan, doing, json_file)
    if markdown_file is not None:
        markdown_file.write_text(markdown(rows, on, command, minutes), encoding="utf-8")


def _write_json(plan: Plan, doing: Doing, path: Path | None) -> None:
    from infra.faults.long import machine
    from infra.faults.table import total

    if path is None or not doing.rows:
        return
    rows = list(doing.rows.values())
    report = {
        "machine": machine(),
        "command": "headwater " + shlex.join(sys.argv[1:]),
        "seed": plan.seed,
        "minutes": (time.monotonic() - doing.began) / 60,
        "total": total(rows),
        "rows": rows,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
