"""`headwater account`: what became of every record of a source, and which are missing."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from infra.cli.clusters import clients_of, counted, explained
from infra.cli.common import CommandFailed, Screen, config_option, err, json_option, load_config, out, print_json
from infra.cli.lines import clean, clock
from schemas.intervals import Pair

if TYPE_CHECKING:
    from streams.account import Account, Line
    from streams.account_read import Around
    from streams.clients import Clients
    from streams.topology import Topology

GRACE_S = 30.0
LOOK_S = 1.0
MAX_RANGES = 8  # of one line, named for a person; --json names all
MAX_AROUND = 20
_NUMBERS = {"produced", "results", "dead", "in flight", "missing"}
_WIDTH = 160


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--all", "every", is_flag=True, help="All sources, and foreign records by partition.")
@click.option("--since", metavar="AGE|TIME", help="Only epochs that were heard of since then: 90s, 5m, 2h, 7d, or 2026-01-31T12:00:00Z.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0),
    default=GRACE_S,
    show_default=True,
    metavar="SECONDS",
    help="What has not ended and is no older than this is told as in flight; what is older is missing.",
)
@click.option("--wait", "wait_s", type=click.FloatRange(0), metavar="SECONDS", help="Look again until it adds up, for so long at most.")
@click.option("--recount", is_flag=True, help="Count everything that is still stored again, beside what the accountant has kept.")
@config_option
@json_option
def account(
    sources: tuple[str, ...],
    every: bool,
    since: str | None,
    grace_s: float,
    wait_s: float | None,
    recount: bool,
    config_path: str,
    as_json: bool,
) -> int:
    """Account for every record: produced = results + dead letters + drops + in flight + missing.

    Counts sets of sequences, epoch by epoch: a record that was written twice counts once, and one that was dropped or became a dead
    letter and was processed later is a result. Foreign records are counted by partition (source `kafka`, offsets). Missing ones are
    named, with the time and the offsets where to look for them. On a region the account is of all its sites together, so that a source
    that moved between them adds up.

    Exit code 1 if records are missing. Live sources always have some in flight; these do not count as missing.

    \b
    Examples:
      headwater account cam-1
      headwater account --all --since 1h
      headwater account --all --wait 60 --json | jq '.lines[] | select(.missing > 0) | {source, epoch, open}'
    """
    from streams.reader import parse_start
    from streams.topology import Topology

    if bool(sources) == every:
        raise click.UsageError("name sources, or say --all")
    begin: dt.datetime | None = None
    if since is not None:
        try:
            found = parse_start(since)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--since") from None
        if not isinstance(found, dt.timedelta | dt.datetime):
            raise click.BadParameter(f"{since!r}: expected an age such as 2h or a time such as 2026-01-31T12:00:00Z", param_hint="--since")
        begin = found if isinstance(found, dt.datetime) else dt.datetime.now(dt.UTC) - found
    config = load_config(config_path)
    topology, clients = Topology(config), clients_of(config.kafka, "account")
    deadline = time.monotonic() + (wait_s or 0.0)
    with explained():
        while True:
            whole = _read(topology, clients, grace_s, recount)
            account = whole.of(sources, begin)
            if _done(account) or time.monotonic() >= deadline:
                break
            time.sleep(min(LOOK_S, max(0.0, deadline - time.monotonic())))
        _check_known(sources, whole)
        around = _around(topology, clients, account)
    if as_json:
        print_json(plain(account, around))
    else:
        _print(account, around)
    return 0 if account.adds_up else 1


def _done(account: Account) -> bool:
    """Nothing is missing, and nothing of an epoch that has ended is in work."""
    return account.adds_up and not any(line.in_flight for line in account.lines if line.state == "ended")


def _read(topology: Topology, clients: Clients, grace_s: float, recount: bool) -> Account:
    from streams.account_read import read_account

    columns = (TextColumn("reading the account"), BarColumn(), MofNCompleteColumn(), TextColumn("records"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("read", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return read_account(topology, clients, young_s=grace_s, progress=progress, trust_accountant=not recount)


def _check_known(sources: Sequence[str], account: Account) -> None:
    known = sorted({line.source for line in account.lines} | {past.source for past in account.past})
    if strange := [source for source in sources if source not in known]:
        some = ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
        raise CommandFailed(
            f"nothing is known here of {', '.join(strange)}: {f'known are {some}' if known else 'no source has produced yet'}"
        )


def _around(topology: Topology, clients: Clients, account: Account) -> list[Around]:
    from streams.account_read import look_around

    with err.status("looking around what is missing"):
        return look_around(topology, clients, account, limit=MAX_AROUND)


# ---- for people


def _print(account: Account, around: Sequence[Around]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("source", "epoch", "state", "produced", "results", "dead", "drops", "in flight", "missing"):
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name != "drops")
    for line in account.lines:
        table.add_row(*_row(line))
    for past in account.past:
        numbers = (str(past.produced), str(past.results), str(past.dead), str(past.dropped or ""), "", _missing(past.missing))
        table.add_row(Text(clean(past.source), style="bold"), Text(f"{counted(past.epochs, 'earlier epoch')}", style="dim"), "", *numbers)
    if account.lines or account.past:
        page = out if out.is_terminal else Screen(width=_WIDTH, highlight=False)  # a pipe has no width: rich would take 80 and cut
        page.print(table, soft_wrap=False)
    for line in account.lines:
        _print_missing(line, around)
    out.print(_verdict(account))


def _row(line: Line) -> list[Text | str]:
    drops = ", ".join(f"{count} {clean(reason)}" for reason, count in line.drops.items())
    notes = [f"{line.unsent} not sent"] if line.unsent else []
    notes += [f"{count} at {clean(site)}" for site, count in line.elsewhere.items()]
    state = Text("by partition" if line.foreign else line.state, style="dim" if line.foreign else "cyan")
    if notes:
        state.append(f" ({', '.join(notes)})", style="dim")
    return [
        Text(clean(line.source), style="bold"),
        Text(epoch_text(line), style="dim"),
        state,
        str(line.produced),
        str(line.results),
        str(line.dead),
        Text(drops, style="yellow"),
        str(line.in_work or ""),
        _missing(line.missing),
    ]


def epoch_text(line: Line) -> str:
    """An epoch, short enough for a table: a UUID by its ends, a foreign one by its partition."""
    if line.foreign:
        return f"partition {line.epoch.rpartition('/')[2]}"
    return clean(line.epoch) if len(line.epoch) <= 16 else f"{clean(line.epoch[:8])}..{clean(line.epoch[-6:])}"


def _missing(count: int) -> Text:
    return Text(str(count), style="bold red" if count else "green")


def _print_missing(line: Line, around: Sequence[Around]) -> None:
    if not line.open:
        return
    head = Text(f"missing of {clean(line.source)} {clean(line.epoch)}: ", style="bold")
    out.print(head.append(ranges_text(line.open), style="red"))
    for each in around:
        if (each.source, each.epoch) == (line.source, line.epoch) and (each.first, each.last) in line.open[:MAX_RANGES]:
            out.print(Text(f"  {ranges_text([(each.first, each.last)])}  ").append(where(each), style="dim"))


def ranges_text(pairs: Sequence[Pair]) -> str:
    """`3, 7-9 and 12 ranges more`."""
    told = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs[:MAX_RANGES])
    return told + (f" and {counted(len(pairs) - MAX_RANGES, 'range')} more" if len(pairs) > MAX_RANGES else "")


def where(each: Around) -> str:
    """What is known around missing records, in a sentence."""
    if each.before is None:
        said = f"no mark tells when the broker of {each.site} took them"
    elif each.after is None:
        said = f"on the broker of {each.site} by {clock(each.before)}"
    else:
        said = f"taken by the broker of {each.site} between {clock(each.after)} and {clock(each.before)}"
    if each.offsets is not None:
        first, last = each.offsets
        return f"{said}; if still stored: frames partition {each.partition}, offsets {first}-{last}"
    return f"{said}; partition {each.partition} of frames, which holds nothing of that time any more"


def _verdict(account: Account) -> Text:
    if not account.lines and not account.past:
        return Text("nothing was produced yet", style="dim")
    if account.missing:
        return Text(
            f"{counted(account.missing, 'record')} of {account.produced} missing: nothing tells what became of them", style="bold red"
        )
    text = Text(f"adds up: all {account.produced} records are accounted for", style="bold green")
    return text.append(f", {account.in_work} of them in flight", style="dim") if account.in_work else text


# ---- for programs


def plain(account: Account, around: Sequence[Around]) -> dict[str, Any]:
    """The account as JSON: every line with its sums, all ranges, and what is known around the missing ones."""
    import msgspec

    lines = []
    for line in account.lines:
        sums = {"dropped": line.dropped, "missing": line.missing, "in_work": line.in_work}
        lines.append({**msgspec.structs.asdict(line), **sums})
    totals = {name: getattr(account, name) for name in ("produced", "results", "dead", "dropped", "in_work", "missing", "adds_up")}
    return {**totals, "lines": lines, "past": account.past, "around": around}
