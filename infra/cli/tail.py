"""`headwater tail`: any topic, decoded for people or as JSON lines, as it comes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import msgspec

from infra.cli.clusters import clients_of, explained, region_of, topics_named
from infra.cli.common import Screen, config_option, load_config
from infra.text import shown_json

if TYPE_CHECKING:
    from streams.reader import Start

MAX_LINES = 100_000


class _Start(click.ParamType):
    name = "start"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Start:
        from streams.reader import parse_start

        try:
            return parse_start(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


START = _Start()


@click.command()
@click.argument("topic")
@config_option
@click.option("-n", "--lines", type=click.IntRange(0, MAX_LINES), metavar="N", help="Begin with the last N records; 10 by default.")
@click.option("--from", "start", type=START, metavar="WHERE", help="Begin at: beginning, end, an age (5m, 2h), a time, or an offset.")
@click.option("-f/-F", "--follow/--no-follow", default=True, help="Go on with what comes, which is the default, or stop at the end.")
@click.option("--source", metavar="NAME", help="Only records of this source.")
@click.option("--region", is_flag=True, help="Read at the region, through the leaf's [link].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line: where, envelope, value.")
def tail(
    topic: str,
    config_path: str,
    lines: int | None,
    start: Start | None,
    follow: bool,
    source: str | None,
    region: bool,
    as_json: bool,
) -> int:
    """Watch a topic, decoded: one line a record.

    TOPIC is a name as `headwater topology describe` lists it (alerts, results, frames.dlq, up.leaf-1.alerts), or any topic of the cluster.
    A line says when the broker took the record, its source and sequence, what it says, and how long it took from capture to there.
    Nothing is committed: watching leaves no trace. Ctrl-C ends it.

    \b
    Examples:
      headwater tail alerts
      headwater tail results -n 100 --source cam-1
      headwater tail drops --from beginning --no-follow
      headwater tail alerts --json | jq -c 'select(.value.state == "confirmed") | .value.id'
    """
    from streams.reader import Last, Stored, read
    from streams.topology import Topology
    from streams.views import View, decode, to_json

    if lines is not None and start is not None:
        raise click.UsageError("-n and --from both say where to begin: give one")
    config = load_config(config_path)
    topology, kafka = region_of(config, config_path) if region else (Topology(config), config.kafka)
    clients = clients_of(kafka, "tail")
    topics = topics_named(topology, topic, clients)
    begin = start if start is not None else Last(10 if lines is None else lines)
    screen = _Screen(highlight=False, soft_wrap=True)

    def wanted(stored: Stored) -> bool:
        return decode(stored).source == source

    def show(view: View) -> None:
        from infra.cli.lines import line
        from streams.describe import label

        if as_json:
            sys.stdout.write(shown_json(msgspec.json.encode(to_json(view)).decode()) + "\n")
            sys.stdout.flush()
        else:
            screen.print(line(view, topic=label(view.stored.topic) if len(topics) > 1 else ""))

    with explained(), _until_interrupted(follow), _until_reader_leaves():
        for stored in read(clients, topics, start=begin, follow=follow, where=None if source is None else wanted):
            show(decode(stored))
    return 0


class _Screen(Screen):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextlib.contextmanager
def _until_reader_leaves() -> Iterator[None]:
    """`| head` closes the pipe when it has enough: that is a good end."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it at exit does not complain


@contextlib.contextmanager
def _until_interrupted(follow: bool) -> Iterator[None]:
    """Ctrl-C is how following ends."""
    try:
        yield
    except KeyboardInterrupt:
        if not follow:
            raise
