"""`headwater bench coverage`: whether intervals of live accuracy hold the truth as often as they say, and stated risks are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table
from rich.text import Text

from infra.cli.common import err, json_option, out, print_json
from infra.processes import ended_by_signals

if TYPE_CHECKING:
    from infra.bench.coverage import Cell, Report
    from infra.bench.decisions import RiskCell

_WIDTH = 130
_BESIDE = ("blocks", "independent")


@click.command("coverage")
@click.option("--replays", type=click.IntRange(20, 1_000_000), default=1000, show_default=True, help="Simulated runs of each stream.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Where chance begins.")
@json_option
def coverage(replays: int, seed: int, as_json: bool) -> int:
    """Hold the statistics of live accuracy and risk against streams whose truth is known.

    Streams with errors that last from a frame to minutes are simulated and audited at 1 % (and at rates that differ, and at 10 %). The
    share of 95 % intervals that hold the truth should be 93 to 97 % wherever the window holds at least 10 independent episodes of errors;
    for shorter ones the share is shown too. A stated risk may be passed in the share of choices that was stated. Exits with 1 if something
    does not hold by more than chance.

    \b
    Examples:
      headwater bench coverage
      headwater bench coverage --replays 100
      headwater bench coverage --json > coverage.json
    """
    from infra.bench.coverage import prove

    with ended_by_signals(), err.status("simulating") as status:
        found = prove(replays, seed=seed, say=lambda what: status.update(what))
    if as_json:
        print_json({**msgspec.to_builtins(found), "holds": found.holds})
    else:
        _print(found)
    return 0 if found.holds else 1


def _print(found: Report) -> None:
    width = None if out.is_terminal else _WIDTH
    for of, title in (("stream", "the stream"), ("window", "exactly the frames of the window")):
        cells = [each for each in found.accuracy if each.of == of]
        beside = "; beside: percentile block bootstrap, frames as independent" if of == "stream" else ""
        out.print(_accuracy(f"95 % intervals that hold the accuracy of {title}{beside}", cells, beside=bool(beside)), "", width=width)
    out.print(_risk(found.risk), "", width=width)
    table = _table("The leaf's rank, from labels (F1)")
    for name in ("leaf better by", "labelled", "intervals hold", "preferred in the end", f"changes in {_looks(found)} looks"):
        table.add_column(name, justify="right")
    for row in found.preference:
        table.add_row(f"{row.better:+.3f}", str(row.frames), f"{row.covered:.1%}", f"{row.preferred:.1%}", f"{row.changes:.2f}")
    out.print(table, "", width=width)
    table = _table("Calibration error: the mean of what is measured", "scores", "pairs")
    for name in ("true", "measured", "plain", "true after fitting"):
        table.add_column(name, justify="right")
    for one in found.calibration:
        table.add_row(one.scores, str(one.pairs), *(f"{value:.3f}" for value in (one.true, one.measured, one.plain, one.after)))
    out.print(table, "", width=width)
    promised = [cell.within for cell in found.accuracy if cell.promised]
    out.print(f"{sum(promised)} of {len(promised)} promised shares are 93 to 97 %")
    text, colour = ("everything promised holds", "green") if found.holds else ("not everything promised holds", "bold red")
    out.print(Text(f"{text}; {found.replays} replays from seed {found.seed}", style=colour))


def _accuracy(title: str, cells: Iterable[Cell], *, beside: bool) -> Table:
    table = _table(title, "stream", "rates")
    for name in ("frames", "audited", "episodes", "precision", "recall", "F1", *(_BESIDE if beside else ())):
        table.add_column(name, justify="right")
    rows: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.scene, cell.rates, cell.frames), []).append(cell)
    for (scene, rates, frames), row in rows.items():
        length = (f"{frames:,}", f"{row[0].audited:,.0f}", f"{row[0].episodes:,.1f}")
        others = (_mean(cell.blocks for cell in row), _mean(cell.singles for cell in row)) if beside else ()
        table.add_row(scene, rates, *length, *(_share(cell) for cell in row), *others)
    return table


def _share(cell: Cell) -> Text:
    judged = "green" if cell.within else "yellow" if cell.holds else "bold red"
    return Text(f"{cell.covered:.1%}", style=judged if cell.promised else "dim")


def _mean(shares: Iterable[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{sum(known) / len(known):.0%}" if known else ""


def _risk(cells: Iterable[RiskCell]) -> Table:
    table = _table("Risk: choices whose true risk is above the stated one", "stream")
    for name in ("records", "memory", "passed", "allowed", "chosen", "final", "could be", "sample's own"):
        table.add_column(name, justify="right")
    for cell in cells:
        shares = [f"{value:.1%}" for value in (cell.passed, cell.delta, cell.chosen, cell.final, cell.possible, cell.naive)]
        table.add_row(cell.stream, str(cell.records), f"{cell.memory:g}", *shares, style=None if cell.holds else "bold red")
    return table


def _looks(found: Report) -> int:
    return found.preference[0].looks if found.preference else 0


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table
