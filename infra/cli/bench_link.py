"""`headwater bench link`: the link beside MirrorMaker 2 and a plain copying loop, on the same outage, on this machine."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from infra import logs
from infra.cli.common import CommandFailed, err, json_option, load_config, out, print_json
from infra.processes import ended_by_signals
from schemas.errors import Fault

if TYPE_CHECKING:
    from infra.bench.contenders import Contender
    from infra.bench.course import Case
    from infra.bench.judge import Figures
    from infra.bench.report import Variant

_WIDTH = 130
_NAMES = ("headwater", "mirrormaker", "raw")


@click.command("link")
@click.option("--records", type=click.IntRange(100, 10_000_000), default=100_000, show_default=True, help="Written during the outage.")
@click.option("--outage", "outage_s", type=click.FloatRange(1, 3600), default=20.0, show_default=True, help="Seconds that the link is cut.")
@click.option(
    "--limit",
    "limit_bytes_per_s",
    type=click.IntRange(1_000, 10**9),
    default=500_000,
    show_default=True,
    help="Bytes a second that the link lets pass after the outage, in each direction.",
)
@click.option(
    "--steady", "steady_s", type=click.FloatRange(0.5, 600), default=8.0, show_default=True, help="Seconds of work before the outage."
)
@click.option(
    "--variant",
    "variants",
    type=click.Choice(["limited", "unlimited"]),
    multiple=True,
    default=("limited", "unlimited"),
    show_default=True,
    help="With the limit, without it, or both.",
)
@click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs of each contender, in turn.")
@click.option("--with", "names", type=click.Choice(_NAMES), multiple=True, default=_NAMES, show_default=True, help="Who takes part.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Keep logs, settings and topics in DIR.")
@click.option(
    "--settings-for",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Print what MirrorMaker 2 is told to stand in for the link of the leaf that FILE describes, and end.",
)
@json_option
def link(
    records: int,
    outage_s: float,
    limit_bytes_per_s: int,
    steady_s: float,
    variants: tuple[str, ...],
    repeats: int,
    names: tuple[str, ...],
    keep: Path | None,
    settings_for: Path | None,
    as_json: bool,
) -> int:
    """Compare the link with MirrorMaker 2 and a plain copying loop.

    Two Kafka brokers run on this machine with a thin link between them. It is cut while a leaf writes records, then it comes back, with a
    limit of bytes a second or without one, and alerts go on being raised. Measured from outside: when the first new alert is at the region,
    how fast the backlog drains, what is there twice, memory and CPU. Exits with 1 if a goal was not met.

    \b
    Examples:
      headwater bench link
      headwater bench link --with headwater --with raw --variant unlimited --repeats 1
      headwater bench link --settings-for headwater.toml > mm2.properties
      headwater bench link --json > link.json
    """
    logs.setup(level="ERROR")
    if settings_for is not None:
        return _print_settings(settings_for)
    with ended_by_signals(), _folder(keep) as folder:
        return _compare(records, outage_s, limit_bytes_per_s, steady_s, variants, repeats, names, folder, as_json)


def _compare(
    records: int,
    outage_s: float,
    limit_bytes_per_s: int,
    steady_s: float,
    variants: tuple[str, ...],
    repeats: int,
    names: tuple[str, ...],
    folder: Path,
    as_json: bool,
) -> int:
    from infra.bench.contenders import contenders
    from infra.bench.course import Case
    from infra.bench.report import machine, report, tables

    found = machine()
    taking_part = contenders(names, err)
    cases = {}
    for variant in variants:
        limit = limit_bytes_per_s if variant == "limited" else None
        cases[variant] = Case(
            records=records,
            outage_s=outage_s,
            steady_s=steady_s,
            limit_bytes_per_s=limit,
            drain_limit_s=max(600.0, 5 * records * 1000 / limit if limit else 0.0),
        )
    all_runs = [_variant(name, case, taking_part, repeats, folder) for name, case in cases.items()]
    whole = report(found, {each.name: each.version for each in taking_part}, all_runs)
    if as_json:
        print_json(msgspec.to_builtins(whole))
    else:
        labels = {each.name: each.label for each in taking_part}
        out.print(tables(whole, labels), width=None if out.is_terminal else _WIDTH)
    return 0 if all(goal.met for goal in whole.goals) and not any(each.failures for each in all_runs) else 1


def _variant(name: str, case: Case, taking_part: list[Contender], repeats: int, folder: Path) -> Variant:
    """Every run of one variant. One that fails is said, and the others go on."""
    from infra.bench.course import orders, run
    from infra.bench.judge import judge
    from infra.bench.report import Variant

    runs: dict[str, list[Figures]] = {each.name: [] for each in taking_part}
    failures: list[str] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        for repeat, contender in orders(taking_part, repeats):
            title = f"{name} {repeat + 1}/{repeats}: {contender.label}"
            task = progress.add_task(title, total=1.0, what="")

            def say(what: str, share: float, task: TaskID = task) -> None:
                progress.update(task, completed=share, what=what)

            where = folder / f"{name}-{repeat + 1}-{contender.name}"
            where.mkdir(parents=True)
            try:
                figures = judge(case, run(contender, case, where, say))
            except Fault as fault:
                failures.append(f"{title}: {fault}")
                err.print(f"[bold red]FAILED[/] {failures[-1]}")
            else:
                runs[contender.name].append(figures)
                _say(title, figures)
            progress.remove_task(task)
    return Variant(name=name, case=case, runs=runs, failures=failures)


def _say(title: str, figures: Figures) -> None:
    err.print(
        f"[dim]{time.strftime('%H:%M:%S')}[/] {title}: first alert {figures.first_alert_s:.2f} s, backlog through in "
        f"{figures.drain_s:.1f} s ({figures.records_per_s:,.0f} records/s), {figures.duplicates} duplicates"
    )


def _print_settings(file: Path) -> int:
    from infra.kafka.mirror_maker import properties, settings

    click.echo(properties(settings(load_config(str(file)))), nl=False)
    return 0


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="headwater-bench-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise CommandFailed(f"--keep {keep} is not empty: name a new folder")
    yield keep.resolve()
