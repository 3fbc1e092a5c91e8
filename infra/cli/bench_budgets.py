"""`headwater bench budgets`: both budgets of a site, obeyed and used, measured from outside for minutes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table

from infra import logs
from infra.cli.common import CommandFailed, err, json_option, out, print_json
from infra.processes import ended_by_signals
from schemas.errors import Fault

if TYPE_CHECKING:
    from infra.bench.budgets import Figures
    from infra.bench.report import Machine

_SAY_EVERY_S = 30.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All runs, the machine that they ran on, and the goals that were missed."""

    machine: Machine
    runs: tuple[Figures, ...]
    missed: tuple[str, ...]


@click.command("budgets")
@click.option(
    "--seconds", type=click.FloatRange(120, 86_400), default=600.0, show_default=True, help="How long the cameras run, each time."
)
@click.option("--cameras", type=click.IntRange(1, 64), default=2, show_default=True, help="Cameras at 30 frames/s.")
@click.option(
    "--bind",
    "binding",
    type=click.Choice(["bytes", "looks"]),
    multiple=True,
    default=("bytes", "looks"),
    show_default=True,
    help="Which budget is the scarce one; a run each.",
)
@click.option(
    "--link",
    "link_bytes_per_s",
    type=click.IntRange(8_000, 10**9),
    default=48_000,
    show_default=True,
    help="Bytes a second, where they bind.",
)
@click.option(
    "--looks", "looks_per_s", type=click.FloatRange(0.1, 1000), default=1.5, show_default=True, help="Looks a second, where they bind."
)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Keep logs, configuration and topics in DIR.")
@json_option
def budgets(
    seconds: float,
    cameras: int,
    binding: tuple[str, ...],
    link_bytes_per_s: int,
    looks_per_s: float,
    keep: Path | None,
    as_json: bool,
) -> int:
    """Show that both budgets are obeyed and used.

    Two sites with real cameras, models and brokers run for minutes; what crosses the link is counted between them, and the region's looks
    by its answers. In one run the bytes are scarce, in the other the looks. Halfway the first camera's picture turns noisy, so that its
    stream needs more of both. Exits with 1 if more than 2 % above a budget was spent in any minute, or less than 98 % of the scarce one.

    \b
    Examples:
      headwater bench budgets
      headwater bench budgets --bind looks --looks 2 --seconds 300
    """
    from infra.bench.budgets import Case, run
    from infra.bench.report import machine
    from infra.demo.prepare import prepare

    logs.setup(level="ERROR")
    found = machine()
    ready = prepare(None, say=_say)
    roomy = {"link_bytes_per_s": 400_000, "looks_per_s": ready.measured.inferences_per_s}
    scarce: dict[str, dict[str, float]] = {"bytes": {"link_bytes_per_s": link_bytes_per_s}, "looks": {"looks_per_s": looks_per_s}}
    runs = []
    with ended_by_signals():
        for name in dict.fromkeys(binding):
            fields = {**roomy, **scarce[name]}
            case = Case(
                name=name,
                seconds=seconds,
                cameras=cameras,
                link_bytes_per_s=int(fields["link_bytes_per_s"]),
                looks_per_s=fields["looks_per_s"],
                spoiled_s=seconds / 2,
            )
            said = 0.0

            def told(elapsed: float, name: str = name) -> None:
                nonlocal said
                if elapsed - said >= _SAY_EVERY_S:
                    said = elapsed
                    _say(f"{name}: {elapsed:.0f} of {seconds:.0f} s")

            try:
                with tempfile.TemporaryDirectory(prefix="headwater-budgets-", ignore_cleanup_errors=True) as folder:
                    runs.append(run(case, ready, keep / name if keep is not None else Path(folder), _say, told))
            except Fault as fault:
                raise CommandFailed(str(fault)) from None
    report = Report(machine=found, runs=tuple(runs), missed=tuple(f"{each.case.name}: {why}" for each in runs for why in each.failures))
    print_json(report) if as_json else _show(report)
    return 1 if report.missed else 0


def _say(text: str) -> None:
    err.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")


def _show(report: Report) -> None:
    table = Table(title="what was spent of each budget")
    for name in ("scarce", "budget", "per second", "each minute", "fullest minute", "used"):
        table.add_column(name, justify="right" if name not in ("scarce", "budget") else "left", overflow="fold")
    for each in report.runs:
        for name, of in (("bytes", each.bytes), ("looks", each.looks)):
            minutes = " ".join(f"{share:.0%}" for share in of.minutes)
            table.add_row(each.case.name, name, f"{of.budget_per_s:g}", minutes, f"{of.fullest:.1%}", f"{of.used:.1%}")
    out.print(table)
    for each in report.runs:
        out.print(f"{each.case.name} scarce: {each.asked} looks asked for, answers {each.waiting_s_p95} s after the frame (p95)")
        if each.share_before is not None and each.share_after is not None:
            out.print(
                f"  the first camera had {each.share_before:.0%} of the looks, and {each.share_after:.0%} in the two minutes after its "
                "picture turned noisy"
            )
    out.print(f"[dim]{report.machine.processor}, {report.machine.cores} cores, {report.machine.system}, Python {report.machine.python}[/]")
    for missed in report.missed:
        out.print(f"[red]missed[/] {missed}")
