"""Logs: one event a line with its fields, as text for people or JSON for programs, on standard error."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from infra.text import shown, shown_json

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_NUMBERS = re.compile(r"\d+")
_NOISY = {"faust": "WARNING", "mode": "WARNING", "aiokafka": "WARNING", "asyncio": "WARNING", "headwater.librdkafka": "ERROR"}


def setup(*, as_json: bool = False, level: str = "INFO", **fixed: str) -> None:
    """Send the logs of this process to standard error. `fixed` fields (site, role) stand on every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(fixed) if as_json else TextLines(fixed))
    handler.addFilter(NoRepeats())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(least)


class NoRepeats(logging.Filter):
    """Passes what a client library says again and again, but for its numbers, once a while: while a broker is away they try it many times
    a second, and say so each time. What Headwater says of it, once, would be lost among them."""

    AGAIN_S = 60.0
    KINDS = 500

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in ("aiokafka", "faust", "mode") and record.name != "headwater.librdkafka":
            return True
        kind, now = (record.name, _NUMBERS.sub("#", record.getMessage())), self._clock()
        if now - self._said.get(kind, float("-inf")) < self.AGAIN_S:
            return False
        self._said[kind] = now
        self._said.move_to_end(kind)
        if len(self._said) > self.KINDS:
            self._said.popitem(last=False)
        return True


def _fields(record: logging.LogRecord, fixed: dict[str, str]) -> dict[str, Any]:
    return {**fixed, **{name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}}


def _time(record: logging.LogRecord) -> str:
    return dt.datetime.fromtimestamp(record.created, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class TextLines(logging.Formatter):
    """`time LEVEL logger: message  field=value ...`"""

    def __init__(self, fixed: dict[str, str]) -> None:
        super().__init__()
        self.fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record, self.fixed).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {shown(record.getMessage())}" + (f"  {fields}" if fields else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else "")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, fixed: dict[str, str]) -> None:
        super().__init__()
        self.fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname, "logger": record.name, "event": record.getMessage()}
        line |= _fields(record, self.fixed)
        if record.exc_info and record.exc_info[0]:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return shown_json(msgspec.json.encode(line, enc_hook=str).decode())
        except UnicodeEncodeError:  # halves of surrogate pairs, in what an error says of foreign bytes
            return shown_json(json.dumps(line, default=str))


def _plain(value: Any) -> str:
    text = shown(str(value))  # it may come from outside: one event stays one line, and cannot steer a terminal
    return f'"{text}"' if " " in text or not text else text
