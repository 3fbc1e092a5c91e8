"""How a failed record becomes a dead letter: its own bytes, its own headers, and headers that say what failed and where it came from.

The error's headers are named as Kafka Connect names them, so that its tools read our dead letters too; ours are named `headwater.…`.
`streams/dead_letters.py` reads them.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import PurePath

from schemas.envelope import MAX_HEADER_BYTES, MAX_HEADERS
from schemas.identity import InvalidIdentity, RecordId, foreign_id
from schemas.replays import APPENDED, ORIGIN, REPLAYS
from streams.message import KafkaRecord, Pairs
from streams.sink import NotDelivered, Output, Sink, SinkBroken
from streams.topology import Topic

ERRORS = "__connect.errors."
DIGEST, RECORD = "headwater.stack.digest", "headwater.record"
VALUE_OMITTED, HEADERS_OMITTED = "headwater.value.omitted", "headwater.headers.omitted"
OF_THE_ERROR = frozenset({DIGEST, RECORD, VALUE_OMITTED, HEADERS_OMITTED})  # with all that begins with `ERRORS`
_OF_THE_RECORD = (ORIGIN, APPENDED, REPLAYS)
_STACK_BYTES = 4000
_TEXT_BYTES = 1000

Places = Mapping[str, tuple[str, str]]  # by topic: the cluster's id and the topic's uuid


async def bury(
    sink: Sink, target: Topic, message: KafkaRecord, error: BaseException, agent: str, record: str | None, places: Places | None = None
) -> None:
    """Write a dead letter; one that is too large for its topic goes without its value, so that it cannot block what comes after it.

    Parameters
    ----------
    record
        The record's id, if it is known; else what the record says of itself counts, and for one that says nothing its place.
    places
        Cluster id and topic uuid of the topics, from which the id of such a record is made.

    Raises
    ------
    SinkBroken
        If dead letters cannot be written; then the record must not be acknowledged.
    """
    headers, key, value = letter_headers(message, error, agent, record or name_of(message, places)), message.key(), message.value() or b""
    try:
        await sink.write([Output(target, "", key, message.value(), headers)])
    except NotDelivered:
        omitted = f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}".encode()
        small_key = key if key is None or len(key) <= MAX_HEADER_BYTES else None
        try:
            await sink.write([Output(target, "", small_key, None, [*headers, (VALUE_OMITTED, omitted)])])
        except NotDelivered as refused:
            raise SinkBroken(f"{target.name} takes not even a dead letter without its value: {refused}") from None


def name_of(message: KafkaRecord, places: Places | None) -> str | None:
    """A record's id: by its envelope, by the place that it had before it was replayed, else by where it is; None if neither is known."""
    found = {name.lower(): value or b"" for name, value in message.headers() or ()}
    for header in ("ce_id", ORIGIN):
        if header in found:
            text = found[header].decode(errors="replace")
            try:
                RecordId.parse(text)
            except InvalidIdentity:
                return None
            return text
    place = (places or {}).get(message.topic())
    return None if place is None else str(foreign_id(*place, message.partition(), message.offset()))


def error_headers(message: KafkaRecord, error: BaseException, agent: str, record: str | None) -> list[tuple[str, bytes]]:
    """Headers of a dead letter, as Kafka Connect names them, with a digest of the stack to group by and the record's id if known.
    They are UTF-8 and bounded, whatever the error says of itself. An error may bring a stack of its own (`stack`)."""
    stack = getattr(error, "stack", "") or "".join(traceback.format_exception(error))
    headers = {
        "topic": message.topic(),
        "partition": str(message.partition()),
        "offset": str(message.offset()),
        "connector.name": agent,
        "stage": "VALUE_CONVERTER" if isinstance(error, ValueError) else "TASK_PUT",
        "exception.class.name": f"{type(error).__module__}.{type(error).__qualname__}",
        "exception.message": say(error),
    }
    return [
        *((ERRORS + name, bounded(value)) for name, value in headers.items()),
        (ERRORS + "exception.stacktrace", bounded(stack, -_STACK_BYTES)),
        (DIGEST, stack_digest(error).encode()),
        *([(RECORD, bounded(record))] if record else []),
    ]


_PLACE = re.compile(r'File "([^"\n]+)", line \d+,? in (\S+)')


def stack_digest(error: BaseException) -> str:
    """What errors of one kind have in common: the class, and the functions that it went through. Neither the machine nor line numbers
    change it, so that it is the same at every site."""
    if told := getattr(error, "stack", ""):
        places = _PLACE.findall(told)
    else:
        places = [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    text = "\n".join([type(error).__qualname__, *("/".join(PurePath(file).parts[-2:]) + f":{name}" for file, name in places)])
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def letter_headers(message: KafkaRecord, error: BaseException, agent: str, record: str | None) -> Pairs:
    """The record's own headers and those of the error, together within the bounds of `schemas.envelope`.

    Headers of an earlier failure are replaced; when the broker first took the record, and how often it was replayed, is kept. Where the
    record's own are too many, what names it is kept before the others, and a header says how many are missing.
    """
    ours: Pairs = list(error_headers(message, error, agent, record))
    own = [(name, value) for name, value in message.headers() or () if not of_the_error(name)]
    kind, appended_ms = message.timestamp()
    if kind and not any(name == APPENDED for name, _ in own):
        ours.append((APPENDED, str(appended_ms).encode()))
    count, size = MAX_HEADERS - len(ours) - 2, MAX_HEADER_BYTES - 200 - sum(len(name) + len(value or b"") for name, value in ours)
    kept = set()
    for index in sorted(range(len(own)), key=lambda index: not own[index][0].lower().startswith(("ce_", "content-type", *_OF_THE_RECORD))):
        name, value = own[index]
        weight = len(name.encode()) + len(value or b"")
        if count > 0 and weight <= size:
            kept.add(index)
            count, size = count - 1, size - weight
    if omitted := len(own) - len(kept):
        ours.append((HEADERS_OMITTED, str(omitted).encode()))
    return [own[index] for index in sorted(kept)] + ours


def of_the_error(name: str) -> bool:
    """Whether a header was put there by a failure, and goes when the record is replayed."""
    return name.startswith(ERRORS) or name in OF_THE_ERROR


def say(error: BaseException) -> str:
    """What an error says of itself; some cannot even do that."""
    try:
        return str(error)[:_TEXT_BYTES]
    except Exception as worse:  # noqa: BLE001 - any code can stand in __str__
        return f"(an error that cannot be shown: {type(worse).__name__})"


def bounded(text: str, limit: int = _TEXT_BYTES) -> bytes:
    """Text as UTF-8 of so many bytes at most: its start, or its end if the limit is negative."""
    data = text.encode(errors="backslashreplace")
    cut = data[:limit] if limit > 0 else data[limit:]
    return cut.decode(errors="ignore").encode()


Find = Callable[[Topic], Topic]  # the dead-letter topic of an input topic
