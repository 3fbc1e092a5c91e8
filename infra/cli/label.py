"""`headwater label`: say what frames truly show, so that accuracy is measured against it, and the better tier has the last word."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

import click
import msgspec

from infra.cli.clusters import clients_of, counted, explained
from infra.cli.common import CommandFailed, config_option, err, json_option, load_config, me, out, print_json
from infra.cli.lines import clean
from schemas.config import SiteConfig
from schemas.detections import Detection, Detections
from schemas.identity import FOREIGN, InvalidIdentity, RecordId
from schemas.labels import Label
from schemas.messages import Tier
from schemas.records import InvalidRecord
from streams.topology import Role, Topology

_CHUNK = 500
MAX_LINE_BYTES = 1 << 20


class _Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    label: str
    box: tuple[float, float, float, float]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    objects: list[_Object] = []
    classes: list[str] | None = None
    source: str | None = None


_line = msgspec.json.Decoder(_Line)


class Size(click.ParamType):
    """`WIDTHxHEIGHT` in pixels."""

    name = "WxH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        width, _, height = str(value).partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
            self.fail(f"{value!r}: expected width and height in pixels, such as 1920x1080", param, ctx)
        return float(width), float(height)


@click.group(no_args_is_help=True)
def label() -> None:
    """Say what is true: accuracy is then measured against it, and the better tier has the last word.

    \b
    Examples:
      headwater label frames labels.jsonl --classes person
      headwater label alert last wrong --by anna
    """


@label.command()
@click.argument("alert")
@click.argument("verdict", type=click.Choice(["right", "wrong", "seen"]))
@click.option("--by", metavar="NAME", help="Who judged; without it, you.")
@config_option
@json_option
def alert(alert: str, verdict: str, by: str | None, config_path: str, as_json: bool) -> int:
    """Judge an alert: it was right, wrong, or has been seen.

    ALERT is its id, a beginning of it that is unique, or `last`. What a person says stands above any tier's answer, and of two judgements
    the later one holds. An incident whose alerts are all wrong is retracted.

    \b
    Examples:
      headwater label alert last right
      headwater label alert alert-c3fd wrong --by anna
    """
    from schemas.alerts import judged_by
    from streams import outputs
    from streams.sink import Sink
    from streams.story import find_alert, tell

    config, topology = _leaf(config_path, "alerts are judged")
    clients = clients_of(config.kafka, "label")
    right = {"right": True, "wrong": False, "seen": None}[verdict]
    with explained():
        known = tell(topology, clients, find_alert(topology, clients, alert)).alert
        judged = judged_by(known, by or me(), dt.datetime.now(dt.UTC), right)
        sink = Sink(clients)
        try:
            sink.write_blocking([outputs.alert(topology.role(Role.OPERATOR).write("alerts"), judged)])
        finally:
            sink.close()
    if as_json:
        print_json({"alert": judged.id, "was": known.state, "right": right, "note": judged.note})
    else:
        out.print(f"{judged.id} of {clean(judged.source)} was {known.state}: {clean(judged.note or '')}")
    return 0


@label.command()
@click.argument("file", type=click.File("rb"))
@click.option("--classes", multiple=True, metavar="NAME", help="Classes that were looked for; without it, all. May be repeated.")
@click.option("--size", type=Size(), help="Boxes are in pixels of pictures of this size; without it, in shares of width and height.")
@click.option("--by", metavar="NAME", help="Who labelled; without it, you.")
@config_option
@json_option
def frames(
    file: IO[bytes], classes: tuple[str, ...], size: tuple[float, float] | None, by: str | None, config_path: str, as_json: bool
) -> int:
    """Publish true labels of frames, from FILE or standard input (-): one JSON object a line.

    \b
    {"id": "cam-1/0190…/42", "objects": [{"label": "person", "box": [0.1, 0.2, 0.3, 0.8]}]}

    A line without objects says that the frame shows none. Labels of frames of the audit sample (`headwater tail escalations` shows them,
    with the reason `audit`) are what accuracy, calibration and the threshold for `final` are then measured against, as soon as a hundred
    are known; where they show that the leaf is better than its region, the leaf's answers hold and the region is asked no more.

    \b
    Examples:
      headwater label frames labels.jsonl
      headwater label frames labels.jsonl --classes person --size 1920x1080
      my-annotator --export | headwater label frames - --by anna
    """
    from streams import outputs
    from streams.sink import Sink

    config, topology = _leaf(config_path, "frames are labelled")
    topic = topology.role(Role.OPERATOR).write("labels")
    written = 0
    labels = read(file, classes, size, by or me())
    with explained():
        sink = Sink(clients_of(config.kafka, "label"))
        try:
            while chunk := list(islice(labels, _CHUNK)):
                sink.write_blocking([outputs.label(topic, each) for each in chunk])
                written += len(chunk)
                err.print(f"[dim]{counted(written, 'label')}[/]") if written > _CHUNK else None
        finally:
            sink.close()
    print_json({"labels": written}) if as_json else out.print(f"{counted(written, 'label')} published to {topic.name}")
    return 0


def _leaf(path: str, what: str) -> tuple[SiteConfig, Topology]:
    config = load_config(path)
    if config.tier_name is not Tier.LEAF:
        raise CommandFailed(f"{config.name} is a {config.tier}: {what} at their leaf, name its file with --config")
    return config, Topology(config)


def read(lines: Iterable[bytes], classes: tuple[str, ...], size: tuple[float, float] | None, by: str) -> Iterator[Label]:
    """The labels of JSON lines; raises `CommandFailed` with the line's number for what is none."""
    width, height = size or (1.0, 1.0)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise InvalidRecord(f"it has {len(line)} bytes: expected at most {MAX_LINE_BYTES}")
            told = _line.decode(line)
            yield Label(
                id=told.id,
                source=told.source or _source(told.id),
                objects=Detections(
                    Detection(each.label, 1.0, each.box[0] / width, each.box[1] / height, each.box[2] / width, each.box[3] / height)
                    for each in told.objects
                ),
                classes=classes if told.classes is None else tuple(told.classes),
                by=by,
                at=dt.datetime.now(dt.UTC),
            )
        except (msgspec.MsgspecError, InvalidRecord, InvalidIdentity) as error:
            raise CommandFailed(f"line {number}: {error}") from None


def _source(record: str) -> str:
    name = RecordId.parse(record)
    if name.source == FOREIGN:
        raise InvalidRecord(f"id {record!r:.80} is of a record without our headers: expected its 'source' (the key) beside it")
    return name.source
