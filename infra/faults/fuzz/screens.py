"""Harnesses on what people and programs are shown of foreign records: nothing that is stored in a topic may steer a terminal."""

from __future__ import annotations

import datetime as dt
import functools
import io
import logging
from collections.abc import Iterable

import msgspec
from rich.markup import escape

from infra.cli.common import CommandFailed, Screen
from infra.cli.lines import line
from infra.faults.fuzz.envelopes import HEADERS
from infra.faults.fuzz.harness import GAP, Broken, harness, headers_of, must, parts, text_of
from infra.faults.fuzz.images import jpegs
from infra.faults.fuzz.records import kinds, valid
from infra.logs import JsonLines, TextLines
from infra.text import shown_json
from schemas.config import Link, Region, SiteConfig
from streams.reader import Stored, undeclared
from streams.topology import Topic, Topology
from streams.views import decode, to_json

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


@functools.cache
def _topics() -> list[Topic]:
    leaf = Topology(SiteConfig(name="leaf-1", tier="leaf", link=Link(region_name="region-1")))
    region = Topology(SiteConfig(name="region-1", tier="region", region=Region(sites=("leaf-1",))))
    found = [*leaf.topics.values(), *region.topics.values()]
    return [*found, undeclared("foreign", leaf.tier)]


def steers(text: str) -> bool:
    """Whether text does more in a terminal than show characters on lines."""
    return not text.isprintable() and not all(char.isprintable() or char == "\n" for char in text)


def _screen() -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    return Screen(file=file, color_system=None, width=200, soft_wrap=True, highlight=False), file


def _stored() -> Iterable[bytes]:
    values = [data for kind in kinds() for data in valid(kind)]
    for number in range(len(_topics())):
        yield GAP.join((bytes([number]), values[number % len(values)], b"cam-1", HEADERS))
    for value in (*values, jpegs()[0], b"text", b"\x1b[2J", b'{"a":"\\u001b[2J"}'):
        yield GAP.join((bytes([len(_topics()) - 1]), value, b"\x1b]0;x\x07", HEADERS))
    letter = (
        HEADERS
        + b"\x01__connect.errors.topic\x02\x1b[2J\x01__connect.errors.exception.message\x02\x1b[2J\x01__connect.errors.partition\x020"
    )
    yield GAP.join((b"\0", b"\xff\xd8\xff", b"k", letter))


@harness("shown-record", _stored, cost=0.5)
def shown_record(data: bytes) -> None:
    which, value, key, pairs = parts(data, 4)
    topic = _topics()[(which[0] if which else 0) % len(_topics())]
    stored = Stored(topic=topic, partition=0, offset=7, appended_at=NOON, key=key, value=value or None, headers=headers_of(pairs))
    view = decode(stored)
    screen, file = _screen()
    screen.print(line(view, topic=text_of(key[:50])))
    must(not steers(file.getvalue()), f"a record steers the terminal: {file.getvalue()!r:.300}")
    written = msgspec.json.encode(to_json(view)).decode()
    printed = shown_json(written)
    must(not steers(printed), f"a record's JSON steers the terminal: {printed!r:.300}")
    must(msgspec.json.decode(printed) == msgspec.json.decode(written), "JSON that is printed says something else")


@harness("shown-text", [b"group \x1b[2J", b"[bold]x", b"\x9b31m", b"a\nb\r\tc", "\u202e\ufeff".encode(), b"\xff\xfe"])
def shown_text(data: bytes) -> None:
    """Foreign text (names of groups, errors of brokers and cameras) as commands print it, and as it is logged."""
    text = text_of(data)[:5000]
    screen, file = _screen()
    screen.print(f"[bold]{escape(text)}[/]")
    must(not steers(file.getvalue()), f"text steers the terminal: {file.getvalue()!r:.300}")
    record = logging.LogRecord("headwater.x", logging.WARNING, __file__, 1, "dead letter: %s", (text,), None)
    record.topic = text
    for formatter in (TextLines({"site": "leaf-1"}), JsonLines({"site": "leaf-1"})):
        told = formatter.format(record)
        if "\n" in told or steers(told):
            raise Broken(f"text steers the log: {told!r:.300}")
    must(not steers(CommandFailed(text).shown()), "text steers the terminal through an error")
