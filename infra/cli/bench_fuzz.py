"""`headwater bench fuzz`: every decoder of bytes from outside under a fuzzer guided by coverage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from infra.cli.common import CommandFailed, err, json_option, out, print_json

if TYPE_CHECKING:
    from infra.faults.fuzz.campaign import Outcome


@click.command()
@click.option(
    "--minutes", type=click.FloatRange(0.1, 24 * 60), default=15.0, show_default=True, help="Time in all, shared by the harnesses."
)
@click.option("--harness", "wanted", multiple=True, metavar="NAME", help="Only this one (again for several); --list names them.")
@click.option("--list", "listing", is_flag=True, help="Name the harnesses and end.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), default=Path("fuzz"), show_default=True, help="Corpus and findings."
)
@click.option(
    "--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Try a saved input again (with one --harness)."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Where chance begins.")
@json_option
def fuzz(minutes: float, wanted: tuple[str, ...], listing: bool, folder: Path, replay: Path | None, seed: int, as_json: bool) -> int:
    """Fuzz every decoder of bytes from outside.

    Records, headers, frames, JPEG, video, camera streams, the site's file, and what is shown of them. Each may read what it is given or
    refuse it with its own error, within a second and bounded memory; all else is a finding, and its input is kept. A later run with the
    same --folder goes on from the corpus of the last. Exit code 1 if there are findings.

    \b
    Examples:
      headwater bench fuzz --minutes 15
      headwater bench fuzz --harness jpeg --harness video --minutes 60
      headwater bench fuzz --harness jpeg --replay fuzz/findings/jpeg-1a2b3c4d.bin
    """
    from infra.faults.fuzz import campaign
    from infra.faults.fuzz.all import harnesses
    from infra.processes import ended_by_signals

    known = [each.name for each in harnesses()]
    if unknown := [name for name in wanted if name not in known]:
        raise click.UsageError(f"there is no harness {unknown[0]}: `headwater bench fuzz --list` names them")
    if listing:
        print_json(known) if as_json else click.echo("\n".join(known))
        return 0
    if replay is not None:
        if len(wanted) != 1:
            raise click.UsageError("--replay needs the one --harness that the input is for")
        found = campaign.replay(wanted[0], replay)
        if as_json:
            print_json(found)
        else:
            out.print(Text(f"{found.error}  at {found.place}", style="red") if found else Text("it holds", style="green"))
        return 1 if found else 0
    names, outcomes = list(wanted) or known, []
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True)
    try:
        with ended_by_signals(), bar:
            task = bar.add_task("fuzzing", total=minutes * 60)
            done_s = 0.0

            def tick(name: str, seconds: float) -> None:
                bar.update(task, completed=done_s + seconds, description=f"fuzzing {name}")

            for outcome in campaign.run(names, minutes * 60, folder, seed=seed, tick=tick):
                done_s += outcome.seconds
                outcomes.append(outcome)
    except campaign.CannotFuzz as error:
        raise CommandFailed(str(error)) from None
    if as_json:
        print_json(outcomes)
    else:
        _print(outcomes, folder)
    return 1 if any(outcome.findings for outcome in outcomes) else 0


def _print(outcomes: Sequence[Outcome], folder: Path) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("harness", no_wrap=True)
    for name in ("executions", "execs/s", "peak MB", "findings"):
        table.add_column(name, justify="right")
    for each in outcomes:
        count = Text(str(len(each.findings)), style="bold red" if each.findings else "green")
        table.add_row(each.harness, f"{each.executions:,}", f"{each.executions_per_s:,.0f}", f"{each.peak_rss_bytes >> 20}", count)
    out.print(table)
    for each in outcomes:
        for finding in each.findings:
            out.print(Text(f"{each.harness} at {finding.place}: {finding.error}", style="red"))
            if finding.file:
                out.print(Text(f"  headwater bench fuzz --harness {each.harness} --replay {finding.file}", style="dim"))
    total = sum(outcome.executions for outcome in outcomes)
    findings = sum(len(outcome.findings) for outcome in outcomes)
    colour, told = ("red", f"{findings} findings") if findings else ("green", "no findings")
    out.print(f"[bold {colour}]{total:,} executions, {told}[/]; corpus in {escape(str(folder))}")
