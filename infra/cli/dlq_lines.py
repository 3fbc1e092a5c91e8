"""How dead letters look: a line each, one in full, and as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from rich.text import Text

from infra.cli.clusters import counted
from infra.cli.common import err, out
from infra.cli.lines import clean, clock, summary
from streams.burial import of_the_error
from streams.dead_letters import Letter
from streams.laws import size_text
from streams.views import decode


def nothing(*, settled_too: bool) -> None:
    """Say that there is no letter."""
    hint = "" if settled_too else " (--all shows those that were replayed or discarded)"
    err.print(f"no dead letters{hint}", markup=False)


def print_each(rows: list[dict[str, Any]], *, settled_too: bool) -> None:
    """One line a letter (`plain`)."""
    if not rows:
        nothing(settled_too=settled_too)
    for row in rows:
        line = Text(no_wrap=True, overflow="ignore")
        line.append(clock(row["written_at"]), style="dim").append(f"  {row['letter']:<24}")
        line.append(f"  {clean(row['source']):<10}", style="bold")
        line.append(f"  {clean(row['error'].rpartition('.')[2])}", style="red").append(f" {row['digest'][:8]}", style="dim")
        line.append(f"  {clean(row['message'])}")
        if row["replays"]:
            line.append(f"  replayed {counted(row['replays'], 'time')}", style="yellow")
        if row["settled"] is not None:
            line.append(f"  {row['settled']['settlement']} by {clean(row['settled']['by'])}", style="cyan")
        out.print(line)


def plain(letter: Letter) -> dict[str, Any]:
    """A letter for programs, without its bytes."""
    return {
        "letter": letter.place,
        "written_at": letter.stored.appended_at,
        "record": letter.record,
        "source": letter.source,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "appended_at": letter.appended_at,
        "error": letter.error,
        "message": letter.message,
        "digest": letter.digest,
        "agent": letter.agent,
        "replays": letter.replays,
        "size_bytes": None if letter.stored.value is None else len(letter.stored.value),
        "settled": None if letter.settled is None else msgspec.to_builtins(letter.settled),
    }


def headers_of(letter: Letter) -> list[list[str | None]]:
    """A letter's headers as text."""
    return [[name, None if value is None else value.decode(errors="backslashreplace")] for name, value in letter.stored.headers]


def told(letter: Letter) -> Iterator[Text]:
    """A whole letter for people, line by line."""
    yield Text(letter.record or letter.place, style="bold").append(f"  {clean(letter.error)}", style="red")
    yield Text(f"  {clean(letter.message)}")
    yield Text(f"  letter {letter.place}, written {clock(letter.stored.appended_at)} by {clean(letter.agent)}", style="dim")
    yield Text(
        f"  record {clean(letter.topic)}@{letter.partition}:{letter.offset} of {clean(letter.source)}, taken {clock(letter.appended_at)}"
        + (f", replayed {counted(letter.replays, 'time')} before" if letter.replays else ""),
        style="dim",
    )
    if (settled := letter.settled) is not None:
        note = f": {clean(settled.note)}" if settled.note else ""
        yield Text(f"  {settled.settlement} by {clean(settled.by)}{note}", style="cyan")
    value = letter.stored.value
    if value is None:
        yield Text("  its bytes are not in the letter: they were too many for its topic", style="yellow")
    else:
        size = "" if value.startswith(b"\xff\xd8\xff") else f"{size_text(len(value))}: "  # a picture's summary says it
        yield Text(f"  {size}").append_text(summary(decode(letter.stored)))
        yield Text(f"  {value[:32].hex(' ')}{' ...' if len(value) > 32 else ''}", style="dim")
    yield Text("headers", style="bold")
    for name, shown in headers_of(letter):
        if not of_the_error(name or ""):
            yield Text(f"  {clean(name)}: ", style="dim").append(clean("" if shown is None else shown))
    if letter.stack:
        yield Text(f"stack {letter.digest}", style="bold")
        for line in letter.stack.splitlines():
            yield Text(f"  {clean(line)}", style="dim")
