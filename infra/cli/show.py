"""`headwater show`: the story of an alert, and its picture."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from infra.cli.clusters import clients_of, explained, region_of
from infra.cli.common import CommandFailed, config_option, err, json_option, load_config, out, print_json
from infra.cli.lines import STATES, clean, clock, detections, latency, names, score
from schemas.detections import Detection
from schemas.incidents import Incident
from schemas.messages import LATE_S, Alert, Answer, Escalation, Result, Tier, Verdict
from streams.laws import time_text

if TYPE_CHECKING:
    from streams.clients import Clients
    from streams.story import Event, Story
    from streams.topology import Topology

MAX_COLUMNS = 100


@click.command()
@click.argument("alert")
@config_option
@click.option("--picture", metavar="FILE", type=click.Path(dir_okay=False), help="Save its picture, boxes drawn (.jpg, .png, .webp).")
@click.option("--draw/--no-draw", default=None, help="Draw it in the terminal; by default where that shows colours.")
@click.option("--region", is_flag=True, help="Read at the region, through the leaf's [link].")
@json_option
def show(alert: str, config_path: str, picture: str | None, draw: bool | None, region: bool, as_json: bool) -> None:
    """Show an alert: what happened to it, who decided, and its picture; or an incident with its witnesses.

    ALERT is its id, a beginning of it that is unique, or `last`; one that begins with `incident-` is an incident. The picture is kept
    beyond the retention of frames; on it, the leaf's boxes are orange, a higher tier's green, the rule's zone blue.

    \b
    Examples:
      headwater show last
      headwater show alert-c3fd --picture alert.jpg
      headwater show last --json | jq .state
      headwater show incident-c3fd
    """
    from streams.story import find_alert, tell
    from streams.topology import Topology

    config = load_config(config_path)
    topology, kafka = region_of(config, config_path) if region else (Topology(config), config.kafka)
    clients = clients_of(kafka, "show")
    if alert.startswith("incident-"):
        if picture is not None or draw:
            raise click.UsageError("an incident has no picture of its own: ask for one of its alerts")
        _show_incident(topology, clients, alert, as_json)
        return
    with explained(), err.status("reading the alert's story"):
        story = tell(topology, clients, find_alert(topology, clients, alert))
    if picture is not None:
        _save(story, picture)
    if as_json:
        print_json(_plain(story, picture))
        return
    for line in _told(story):
        out.print(line)
    if draw or (draw is None and out.is_terminal and out.color_system in {"256", "truecolor"}):
        _draw(story)
    elif story.picture is not None and picture is None:
        out.print(Text("  its picture is kept: --picture FILE saves it", style="dim"))
    if picture is not None:
        err.print(f"picture written to {picture}", markup=False)


def _show_incident(topology: Topology, clients: Clients, wanted: str, as_json: bool) -> None:
    from streams.events import find_incident
    from streams.views import plain

    with explained(), err.status("reading the incidents"):
        incident = find_incident(topology, clients, wanted)
    if as_json:
        print_json({**plain(incident), "late": incident.late})
        return
    for line in _told_incident(incident):
        out.print(line)


def _told_incident(incident: Incident) -> list[Text]:
    head = Text(incident.id, style="bold")
    head.append("  ").append(incident.state, style=STATES[incident.state]).append(_late(incident.late_by_s), style="magenta")
    took = (incident.ended_at - incident.started_at).total_seconds()
    lines = [
        head,
        Text(f"  rule {clean(incident.rule)}: {clean(incident.label)} at {clean(incident.place)}, seen by {names(incident.sources)}"),
        Text(f"  began {clock(incident.started_at)}{f', went on for {time_text(took)}' if took else ''}", style="dim"),
    ]
    for witness in incident.witnesses:
        text = Text("  ").append(clock(witness.captured_at), style="dim")
        text.append(f"  {clean(witness.source):<10} ").append(f"{witness.state:<11}", style=STATES[witness.state])
        text.append(f" {score(witness.score)}").append(f"  {clean(witness.alert)} of site {witness.site}", style="dim")
        lines.append(text.append(_late(witness.late_by_s), style="magenta"))
    if (more := incident.alerts - len(incident.witnesses)) > 0:
        lines.append(Text(f"  and {more} more", style="dim"))
    return lines


def _late(late_by_s: float) -> str:
    return f"  late by {time_text(late_by_s)}" if late_by_s >= LATE_S else ""


def _told(story: Story) -> list[Text]:
    alert = story.alert
    head = Text(alert.id, style="bold")
    head.append("  ").append(alert.state, style=STATES[alert.state]).append(_late(alert.late_by_s), style="magenta")
    lines = [
        head,
        Text(f"  rule {clean(alert.rule)}: {clean(alert.label)} with a score of {score(alert.min_score)} or more")
        .append(" in a zone" if alert.zone.points else "")
        .append(f", seen with {score(alert.score)} at {clean(alert.source)} of site {alert.site}"),
        Text(f"  frame {clean(alert.record)}, taken {clock(alert.captured_at)}", style="dim"),
    ]
    return lines + [_event_line(event, alert.captured_at) for event in story.events]


def _event_line(event: Event, taken: dt.datetime) -> Text:
    text = Text("  ").append(clock(event.at), style="dim")
    text.append(f"  {'' if event.at is None else '+' + latency((event.at - taken).total_seconds() * 1000):>9}  ", style="dim")
    value = event.value
    if isinstance(value, Alert):
        text.append(f"{value.state:<15}", style=STATES[value.state])
        by = f"by the {value.decided_by}" if value.decided_by else f"by the {value.raised_by}" if value.version == 0 else ""
        text.append(f" {by}{f', after {value.held_s:.1f} s' if value.version == 0 and value.held_s else ''}")
        text.append(_late(value.late_by_s), style="magenta")
        text.append(f"  {clean(value.note)}" if value.note else "", style="dim")
    elif isinstance(value, Escalation):
        text.append(f"{'escalated':<15}", style="yellow").append(
            f" because of {value.reason}, asking about {len(value.records)} record{'' if len(value.records) == 1 else 's'}"
        )
    else:
        text.append(f"{_who(value):<15} ")
        text.append(value.status, style=STATES[value.status]).append(f"  {detections(value.detections)}")
        text.append(f"  {clean(value.model)}", style="dim")
        text.append(f"  {clean(value.note)}" if value.note else "", style="dim")
    return text


def _who(answer: Answer) -> str:
    return "result" if isinstance(answer, Result) else f"{answer.tier} verdict"


# ---- the picture


def _boxes(story: Story) -> list[tuple[Detection, tuple[int, int, int]]]:
    """The boxes that the alert is about: what the leaf saw, and those by which a higher tier judges the rule."""
    from infra.cli.pictures import HIGHER_COLOUR, LEAF_COLOUR

    higher: Verdict | None = None
    for event in story.events:
        if isinstance(event.value, Verdict) and event.value.tier is not Tier.LEAF:
            higher = event.value
    found = [(box, LEAF_COLOUR) for box in story.alert.seen]
    alert, seen = story.alert, higher.detections if higher else ()
    judged = [box for box in seen if box.label == alert.label and box.score >= alert.min_score and box.foot in alert.zone]
    return found + [(box, HIGHER_COLOUR) for box in judged]


def _save(story: Story, path: str) -> None:
    from infra.cli.pictures import annotated, decoded, save

    if story.picture is None:
        raise CommandFailed(f"{story.alert.id} has no picture (any more): it is kept twice as long as topics.outbox_retention_s")
    save(annotated(decoded(story.picture), _boxes(story), story.alert.zone), path)


def _draw(story: Story) -> None:
    from infra.cli.pictures import annotated, decoded, half_blocks

    if story.picture is None:
        out.print(Text("  its picture is not kept any more", style="dim"))
        return
    image = annotated(decoded(story.picture), _boxes(story), story.alert.zone)
    out.print(half_blocks(image, min(out.width, MAX_COLUMNS), max(10, out.height - len(story.events) - 6)))


# ---- for programs


def _plain(story: Story, saved: str | None) -> dict[str, Any]:
    from streams.views import plain

    alert = story.alert
    picture = None
    if story.picture is not None:
        picture = {
            "topic": story.picture_from.name if story.picture_from else None,
            "size_bytes": len(story.picture),
            "saved": saved,
        }
    return {
        "id": alert.id,
        "state": alert.state,
        "decided_by": alert.decided_by,
        "late": alert.late,
        "alert": plain(alert),
        "events": [
            {
                "at": event.at,
                "after_ms": None if event.at is None else round((event.at - alert.captured_at).total_seconds() * 1000, 3),
                "what": event.what,
                "topic": event.topic.name,
                "value": plain(event.value),
            }
            for event in story.events
        ],
        "picture": picture,
    }
