"""`headwater dlq`: dead letters looked at, brought back, given up."""

from __future__ import annotations

import datetime as dt
import getpass
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from infra.cli.clusters import clients_of, counted, explained, region_of
from infra.cli.common import CommandFailed, config_option, err, json_option, load_config, out, print_json

if TYPE_CHECKING:
    from streams.clients import Clients
    from streams.dead_letters import Letter, Wanted
    from streams.settling import Settled
    from streams.topology import Topic, Topology

RATE_PER_S = 50.0


class _When(click.ParamType):
    name = "when"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        from streams.reader import parse_start

        if isinstance(value, dt.datetime):
            return value
        try:
            found = parse_start(str(value))
        except ValueError:
            found = "end"
        if isinstance(found, dt.datetime):
            return found
        if not isinstance(found, dt.timedelta):
            expected = "expected an age such as 90s, 5m, 2h or 7d, or a time such as 2026-01-31T12:00:00Z"
            self.fail(f"{str(value)!r:.60}: {expected}", param, ctx)
        return dt.datetime.now(dt.UTC) - found


def _filters(command: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option("--region", is_flag=True, help="At the region, through the leaf's [link]."),
        click.option("--all", "settled", is_flag=True, help="Also letters that were replayed or discarded."),
        click.option("--until", type=_When(), metavar="WHEN", help="Only letters written before: an age, or a time."),
        click.option("--since", type=_When(), metavar="WHEN", help="Only letters written since: an age (5m, 2h, 7d), or a time."),
        click.option("--source", metavar="NAME", help="Only letters of this source."),
        click.option("--digest", metavar="HEX", help="Only letters whose stack has this digest, or one that begins so."),
        click.option("--error", metavar="CLASS", help="Only letters whose error's class has this in its name."),
        click.option("--topic", "names", multiple=True, metavar="TOPIC", help="Only letters of this topic (frames, up.escalations, ...)."),
    ):
        command = option(command)
    return config_option(command)


@click.group(no_args_is_help=True)
def dlq() -> None:
    """Look at dead letters, bring their records back, or give them up.

    A record that failed for good is a dead letter in TOPIC.dlq: its own bytes, with headers that say what failed. Letters that were
    replayed or discarded are settled: they are passed over unless --all is given.

    \b
    Examples:
      headwater dlq list
      headwater dlq show frames.dlq@0:12
      headwater dlq replay --error RuntimeError --since 2h --dry-run
      headwater dlq discard --topic frames --digest 3f9a --note "a broken camera"
    """


@dlq.command("list")
@_filters
@click.option("--each", is_flag=True, help="One line a letter, instead of one a kind.")
@json_option
def list_letters(config_path: str, each: bool, as_json: bool, **filters: Any) -> int:
    """List dead letters by kind: topic, error and stack; how many, from when to when.

    \b
    Examples:
      headwater dlq list
      headwater dlq list --topic frames --since 1h --each
      headwater dlq list --error Crashed --json | jq '.[].count'
    """
    from infra.cli.dlq_lines import nothing, plain, print_each
    from infra.cli.lines import clean, clock
    from streams.dead_letters import grouped, letters

    place = _Place(config_path, filters)
    with explained(), _reading(place) as seen:
        found = letters(place.clients, place.topology, place.wanted, seen=seen)
        if each:
            rows = [plain(letter) for letter in found]
        else:
            groups = grouped(found)
    if each:
        if as_json:
            print_json(rows)
        else:
            print_each(rows, settled_too=place.wanted.settled)
        return 0
    if as_json:
        print_json([msgspec.to_builtins(group) for group in groups])
        return 0
    if not groups:
        nothing(settled_too=place.wanted.settled)
        return 0
    for group in groups:
        line = Text(f"{group.count:>7}  ", no_wrap=True, overflow="ignore")
        line.append(f"{clean(group.topic)}  ", style="bold")
        line.append(clean(group.error.rpartition(".")[2]), style="red").append(f" {group.digest[:8]}", style="dim")
        line.append(f"  {clock(group.first)} to {clock(group.last)}, {counted(group.sources, 'source')}")
        if group.replays:
            line.append(f"  replayed {counted(group.replays, 'time')} before", style="yellow")
        out.print(line)
        out.print(Text(f"         {clean(group.message)}", style="dim"))
    total = counted(sum(group.count for group in groups), "letter")
    told = f"{total} of {counted(len(groups), 'kind')}; `headwater dlq list --each` lists them one by one"
    err.print(Text(told, style="dim"))
    return 0


@dlq.command()
@click.argument("letter")
@config_option
@click.option("--region", is_flag=True, help="At the region, through the leaf's [link].")
@click.option("--save", "path", type=click.Path(dir_okay=False), metavar="FILE", help="Save the record's bytes, as they came.")
@json_option
def show(letter: str, config_path: str, region: bool, path: str | None, as_json: bool) -> int:
    """Show a dead letter: what failed and where, its headers, and a preview of its bytes.

    LETTER is its place (frames.dlq@0:12, as `list --each` prints it; 0:12 where there is one dead-letter topic of that place), or the id
    of the record that failed.

    \b
    Examples:
      headwater dlq show frames.dlq@0:12
      headwater dlq show cam-1/0198c1f2-7a3e/1042 --save frame.jpg
    """
    from infra.cli.dlq_lines import headers_of, plain, told

    place = _Place(config_path, {"region": region, "settled": True})
    with explained():
        found = _find(place, letter)
    if path is not None:
        if found.stored.value is None:
            raise CommandFailed(f"{found.place} does not hold its record's bytes: they were too many for its topic")
        try:
            Path(path).write_bytes(found.stored.value)
        except OSError as error:
            raise CommandFailed(f"{path} cannot be written: {error.strerror or error}") from None
    if as_json:
        print_json({**plain(found), "stack": found.stack, "headers": headers_of(found), "saved": path})
        return 0
    for line in told(found):
        out.print(line)
    if path is not None:
        err.print(f"{len(found.stored.value or b'')} bytes written to {path}", markup=False)
    return 0


@dlq.command()
@_filters
@click.option("--record", metavar="ID", help="Only the letter of this record.")
@click.option(
    "--rate", type=click.FloatRange(min=0), default=RATE_PER_S, show_default=True, metavar="N", help="Records a second; 0: no limit."
)
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def replay(config_path: str, rate: float, dry_run: bool, yes: bool, as_json: bool, **filters: Any) -> int:
    """Write the records of dead letters back to their topics, to be processed again.

    They keep their ids, bytes and headers, and go to the partition of their source; a header counts how often they were replayed. A
    record that fails again becomes a new letter that says so. Letters that were replayed are settled: running this again replays those
    that are left. A replayed frame is processed however old it is, and its alerts are marked late.

    \b
    Examples:
      headwater dlq replay --error RuntimeError --since 2h --dry-run
      headwater dlq replay --digest 3f9a --rate 200 --yes
      headwater dlq replay --record cam-1/0198c1f2-7a3e/1042
    """
    from streams import settling

    place = _Place(config_path, filters)
    found = _chosen(place)
    if dry_run or not found:
        return _report(place, found, "would be replayed", as_json)
    if not yes:
        _ask(found, f"replay {counted(len(found), 'record')} at {rate:g} a second" if rate else f"replay {counted(len(found), 'record')}")
    stop = threading.Event()
    with explained(), _bar("replaying", len(found)) as step:
        try:
            settled = settling.replay(
                place.clients, place.topology, _again(place, found), by=_person(), rate_per_s=rate, done=lambda *_: step(), stop=stop
            )
        except KeyboardInterrupt:
            stop.set()
            raise
    return _done(settled, "replayed", as_json)


@dlq.command()
@_filters
@click.option("--record", metavar="ID", help="Only the letter of this record.")
@click.option("--note", metavar="TEXT", help="Why; it is kept with the decision.")
@click.option("--dry-run", is_flag=True, help="Say what would be discarded, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def discard(config_path: str, note: str | None, dry_run: bool, yes: bool, as_json: bool, **filters: Any) -> int:
    """Give up the records of dead letters.

    It is a decision that is recorded: who took it, when, about which record, and why (--note). The letters stay in their topic until its
    retention takes them, since Kafka cannot take out single records; from now on they are passed over. Records of a leaf's own inputs are
    written to `drops` with the reason 'discarded', so that the account says what became of them.

    \b
    Examples:
      headwater dlq discard --topic frames --error InvalidFrame --until 7d --dry-run
      headwater dlq discard --record cam-1/0198c1f2-7a3e/1042 --note "lens cap on" --yes
    """
    from streams import settling

    place = _Place(config_path, filters)
    found = _chosen(place)
    if dry_run or not found:
        return _report(place, found, "would be discarded", as_json)
    if not yes:
        _ask(found, f"give up {counted(len(found), 'record')}")
    with explained(), _bar("discarding", len(found)) as step:
        settled = settling.discard(place.clients, place.topology, found, by=_person(), note=note, done=lambda *_: step())
    return _done(settled, "discarded", as_json)


# ---- what they share


class _Place:
    """Where letters are looked for, and which."""

    def __init__(self, config_path: str, filters: dict[str, Any]) -> None:
        from streams.dead_letters import Wanted, letter_topics
        from streams.topology import Topology

        config = load_config(config_path)
        self.topology: Topology
        self.topology, kafka = region_of(config, config_path) if filters.get("region") else (Topology(config), config.kafka)
        self.clients: Clients = clients_of(kafka, "dlq")
        known = letter_topics(self.topology)
        names = filters.get("names") or ()
        self.wanted: Wanted = Wanted(
            topics=tuple({topic.name: topic for name in names for topic in _named(name, known)}.values()) if names else tuple(known),
            error=filters.get("error"),
            digest=filters.get("digest"),
            source=filters.get("source"),
            record=filters.get("record"),
            since=filters.get("since"),
            until=filters.get("until"),
            settled=bool(filters.get("settled")),
        )


def _named(name: str, known: list[Topic]) -> list[Topic]:
    base = name.removesuffix(".dlq")
    found = [topic for topic in known if base in {topic.name.removesuffix(".dlq"), topic.base.removesuffix(".dlq")}]
    if not found:
        there = ", ".join(sorted({topic.name.removesuffix(".dlq") for topic in known}))
        raise CommandFailed(f"there are no dead letters of a topic {name!r:.80}: there are those of {there}")
    return found


def _find(place: _Place, text: str) -> Letter:
    from streams.dead_letters import letter_at, letters

    head, _, offset = text.rpartition(":")
    name, at, partition = head.rpartition("@")
    if offset.isdigit() and partition.isdigit():
        topics = _named(name, list(place.wanted.topics)) if at else place.wanted.topics
        found = [
            letter
            for topic in topics
            if (letter := letter_at(place.clients, place.topology, topic, int(partition), int(offset))) is not None
        ]
        if len(found) > 1:
            raise CommandFailed(f"{text} is the place of {len(found)} letters: {', '.join(letter.place for letter in found)}")
    else:
        wanted = msgspec.structs.replace(place.wanted, record=text)
        found = list(letters(place.clients, place.topology, wanted))[-1:]  # the latest, if it failed again after a replay
    if not found:
        raise CommandFailed(f"there is no dead letter {text!r:.200} (any more): `headwater dlq list --each` lists what there is")
    return found[0]


def _chosen(place: _Place) -> list[Letter]:
    """The letters that are wanted, without their bytes, which may be more than fits into memory."""
    from streams.dead_letters import letters

    with explained(), _reading(place) as seen:
        return [_without_bytes(letter) for letter in letters(place.clients, place.topology, place.wanted, seen=seen)]


def _without_bytes(letter: Letter) -> Letter:
    return msgspec.structs.replace(letter, stored=msgspec.structs.replace(letter.stored, value=None, headers=[]))


def _again(place: _Place, chosen: list[Letter]) -> Iterator[Letter]:
    """The same letters once more, with their bytes, one at a time."""
    from streams.dead_letters import letters

    places = {letter.place for letter in chosen}
    for letter in letters(place.clients, place.topology, place.wanted):
        if letter.place in places:
            yield letter


def _report(place: _Place, found: list[Letter], what: str, as_json: bool) -> int:
    from infra.cli.dlq_lines import nothing, plain, print_each

    rows = [{name: value for name, value in plain(letter).items() if name != "size_bytes"} for letter in found]
    if as_json:
        print_json({"done": 0, "letters": rows})
    elif not found:
        nothing(settled_too=place.wanted.settled)
    else:
        print_each(rows, settled_too=place.wanted.settled)
        err.print(f"{counted(len(found), 'record')} {what}")
    return 0


def _ask(found: list[Letter], what: str) -> None:
    topics = sorted({letter.topic for letter in found})
    if not click.confirm(f"{what} of {', '.join(topics)}?", err=True):
        raise click.Abort


def _done(settled: Settled, what: str, as_json: bool) -> int:
    from infra.cli.lines import clean

    if as_json:
        print_json({"done": settled.done, "refused": dict(settled.refused)})
    else:
        err.print(f"{counted(settled.done, 'record')} {what}")
        for reason, count in settled.refused.items():
            err.print(Text(f"{counted(count, 'record')} cannot be: {clean(reason)}", style="yellow"))
    return 1 if settled.refused else 0


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user's name
        return "unknown"


@contextmanager
def _reading(place: _Place) -> Iterator[Callable[[], None]]:
    """A bar while letters are read, which takes long where they are many and large."""
    from streams.reader import bounds

    limits = bounds(place.clients, list(place.wanted.topics))
    with _bar("reading", sum(high - low for low, high in limits.values()), transient=True) as step:
        yield step


@contextmanager
def _bar(what: str, total: int, *, transient: bool = False) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=transient, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
