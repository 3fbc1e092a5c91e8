"""A decoded record as one line for a person: when, from whom, which, what. Colours say how it stands. What comes from outside is cleaned
of control characters, so that a topic cannot steer a terminal."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.text import Text

from schemas.accounts import AccountSet
from schemas.detections import Detection
from schemas.incidents import Incident
from schemas.labels import Label
from schemas.messages import Alert, Answer, Control, Drop, EpochMark, Escalation, Position, Tier
from streams.laws import size_text, time_text
from streams.views import View

MAX_TEXT = 160

STATES = {
    "final": "green",
    "provisional": "yellow",
    "unanswered": "magenta",
    "failed": "bold red",
    "raised": "bold red",
    "unreviewed": "magenta",
    "retracted": "cyan",
    "confirmed": "bold green",
    "judged": "bold green",
}


def line(view: View, *, topic: str = "") -> Text:
    """One line about a record. `topic` is shown where records of several topics are mixed."""
    stored = view.stored
    text = Text(no_wrap=True, overflow="ignore")
    text.append(clock(stored.appended_at), style="dim")
    if topic:
        text.append(f"  {clean(topic)}", style="dim")
    text.append(f"  {clean(view.source or '-'):<10}", style="bold")
    sequence = f"#{view.sequence}" if view.sequence is not None else f"@{stored.partition}:{stored.offset}"
    text.append(f"  {sequence:<8}", style="dim")
    text.append("  ")
    text.append_text(summary(view))
    if view.latency_ms is not None and view.kind in {"picture", "verdict", "result", "alert", "incident", "escalation"}:
        text.append(f"  {latency(view.latency_ms)}", style="dim")
    if view.failure is not None:
        text.append(f"  {clean(view.failure.topic)}@{view.failure.partition}:{view.failure.offset}", style="dim")
        text.append(f"  {clean(view.failure.message)}", style="red")
    elif view.error is not None:
        text.append(f"  {clean(view.error)}", style="red")
    return text


def summary(view: View) -> Text:
    """What a record says, in a few words."""
    value, text = view.value, Text()
    if isinstance(value, Answer):
        text.append(f"{value.status:<11}", style=STATES[value.status])
        text.append(f"  {detections(value.detections)}")
        text.append(f"  {value.tier} {clean(value.model)}", style="dim")
        if value.note:
            text.append(f"  {clean(value.note)}", style="dim")
    elif isinstance(value, Alert):
        text.append(f"{value.state:<11}", style="dim" if view.late else STATES[value.state])
        text.append(f"  {clean(value.rule)}: {clean(value.label)} {score(value.score)}")
        text.append(f"  {clean(value.id)}", style="dim")
        if value.decided_by is not None or value.raised_by is not Tier.LEAF:
            text.append(f"  by the {value.decided_by or value.raised_by}", style="dim")
        text.append(late(view), style="magenta")
    elif isinstance(value, Incident):
        text.append(f"{value.state:<11}", style="dim" if view.late or value.merged_into else STATES[value.state])
        text.append(f"  {clean(value.rule)}: {clean(value.label)} {score(value.score)}")
        text.append(f"  {value.alerts} alert{'' if value.alerts == 1 else 's'} by {names(value.sources)}")
        text.append(f" within {time_text((value.ended_at - value.started_at).total_seconds())}" if value.alerts > 1 else "")
        text.append(f"  {clean(value.id)}", style="dim")
        if value.merged_into is not None:
            text.append(f"  is now a part of {clean(value.merged_into)}", style="cyan")
        text.append(late(view), style="magenta")
    elif isinstance(value, Escalation):
        text.append(f"{value.reason:<11}", style="yellow")
        asked = value.records[0] if len(value.records) == 1 else None
        text.append(f"  {clean(asked.id)}" if asked else f"  {len(value.records)} records")
        text.append(f"  {picture(view)}", style="dim")
    elif isinstance(value, Drop):
        count = sum(last - first + 1 for first, last in value.ranges.pairs)
        ranges = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in value.ranges.pairs[:6])
        text.append(f"{clean(value.reason):<11}", style="yellow")
        text.append(f"  {count} records not processed by {clean(value.stage)}: {ranges}{', ...' if len(value.ranges.pairs) > 6 else ''}")
    elif isinstance(value, EpochMark):
        text.append(f"{value.state:<11}", style="cyan")
        text.append(f"  {value.acknowledged} of {value.assigned} records acknowledged")
        if value.width:
            text.append(f"  {value.width}x{value.height} at {value.fps:g} fps", style="dim")
    elif isinstance(value, AccountSet):
        count = sum(last - first + 1 for first, last in value.ranges.pairs)
        text.append(f"{value.outcome:<11}", style="cyan").append(f"  {count} records in {len(value.ranges.pairs)} ranges")
        text.append(f", {clean(value.reason)}" if value.reason else "")
    elif isinstance(value, Control):
        text.append(f"{value.site}: {value.inferences_per_s:g} looks a second at {value.input_side} px, says {value.region}")
    elif isinstance(value, Label):
        text.append(f"{clean(value.id)} shows {detections(value.objects)}")
        text.append(f", of {', '.join(map(clean, value.classes))}" if value.classes else "").append(f"  by {clean(value.by)}", style="dim")
    elif isinstance(value, Position):
        text.append(f"{clean(value.topic)}/{value.partition} -> {value.next_offset}  by {clean(value.writer)}")
    else:
        text.append(_other(view), style="red" if view.kind == "unreadable" else "")
    return text


def _other(view: View) -> str:
    size = len(view.stored.value or b"")
    match view.kind:
        case "picture":
            return picture(view)
        case "tombstone":
            return f"tombstone of {clean((view.stored.key or b'').decode(errors='replace'))}"
        case "json":
            return clean(msgspec.json.encode(view.value).decode())
        case "text":
            return clean(view.value)
        case _:
            return f"{view.kind} of {size_text(size)}"


def picture(view: View) -> str:
    """`768x576 JPEG, 87 KiB`."""
    found = view.picture
    if found is None:
        return ""
    side = f"{found.width}x{found.height} JPEG" if found.width else "unreadable JPEG"
    return f"{side}, {size_text(found.size_bytes)}"


def late(view: View) -> str:
    """`  late by 2 hours` for what is old news, `  replayed` for what comes again from its dead letter; else nothing."""
    if not view.late:
        return ""
    by = f"  late by {time_text(view.value.late_by_s)}" if view.value.late else ""
    return by + ("  replayed" if view.replayed else "")


def names(found: Iterable[str]) -> str:
    """`cam-1, cam-2 and 3 more`."""
    every = [clean(name) for name in found]
    return ", ".join(every[:4]) + (f" and {len(every) - 4} more" if len(every) > 4 else "")


def detections(found: Iterable[Detection]) -> str:
    """`3 person .91 .80 .44, 1 car .55`: by class, best first."""
    by_label: dict[str, list[float]] = {}
    for one in found:
        by_label.setdefault(one.label, []).append(one.score)
    parts = []
    for label, scores in sorted(by_label.items(), key=lambda item: -max(item[1])):
        best = " ".join(score(one) for one in sorted(scores, reverse=True)[:4])
        parts.append(f"{len(scores)} {clean(label)} {best}{' ...' if len(scores) > 4 else ''}")
    return ", ".join(parts[:6]) + (f" and {len(parts) - 6} classes more" if len(parts) > 6 else "") or "nothing"


def score(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 1 else "1.0"


def clock(time: dt.datetime | None) -> str:
    """Time of day by this machine's zone, with the date if it is another day."""
    if time is None:
        return "-" * 12
    local = time.astimezone()
    day = "" if local.date() == dt.datetime.now().astimezone().date() else f"{local:%Y-%m-%d} "
    return f"{day}{local:%H:%M:%S}.{local.microsecond // 1000:03d}"


def latency(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if abs(milliseconds) < 10_000 else time_text(milliseconds / 1000)


def clean(text: Any) -> str:
    """Text from outside, fit for a terminal: no control characters, cut short."""
    cut = str(text)[: MAX_TEXT + 1]
    safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return safe if len(cut) <= MAX_TEXT else safe[: MAX_TEXT - 3] + "..."
