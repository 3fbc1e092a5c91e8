"""Nothing from outside steers a terminal or a log: control characters are shown, not obeyed."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from infra.cli.common import CommandFailed, Screen
from infra.logs import JsonLines, TextLines
from infra.text import shown, shown_json

NASTY = "a\x1b[2J\x9b31m\r\x07\u202eb\ud800"


def test_a_console_shows_control_characters_in_text_markup_and_tables() -> None:
    file = io.StringIO()
    screen = Screen(file=file, color_system="truecolor", force_terminal=True, width=200)
    table = Table(NASTY)
    table.add_row(NASTY)
    screen.print(f"[bold]{NASTY}[/]")
    screen.print(table)
    told = file.getvalue()
    assert "\x1b[1m" in told  # its own colours
    for sign in ("\x1b[2J", "\x9b", "\r", "\x07", "\u202e", "\ud800"):
        assert sign not in told
    assert "\\x1b" in told


def test_an_error_shows_control_characters_and_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    CommandFailed(f"first {NASTY}\nsecond").show()
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert told.splitlines()[1] == "second"


def test_an_event_in_the_log_stays_one_line() -> None:
    record = logging.LogRecord("headwater.x", logging.WARNING, __file__, 1, "it said %s", (f"{NASTY}\nforged",), None)
    record.source = f"{NASTY}\nforged"
    text = TextLines({"site": "leaf-1"}).format(record)
    assert text.isprintable()
    line = JsonLines({"site": "leaf-1"}).format(record)
    assert line.isprintable()
    assert json.loads(line)["source"] == f"{NASTY}\nforged"


@given(st.text())
def test_what_prints_is_left_alone_and_the_rest_is_escaped(text: str) -> None:
    assert shown(text).isprintable()
    if text.isprintable():
        assert shown(text) == text


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_escaped_json_says_the_same(value: object) -> None:
    document = json.dumps(value, ensure_ascii=False)
    assert json.loads(shown_json(document)) == value
    assert shown_json(document).isprintable()
