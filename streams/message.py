"""A record as Kafka gave it: the accessors of a librdkafka message that the rooms above rely on, without the client library's own type."""

from __future__ import annotations

from operator import methodcaller
from typing import Any, Protocol, cast

Pairs = list[tuple[str, bytes | None]]


class KafkaRecord(Protocol):
    """A record that was read: none of its place is missing."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Pairs | None: ...
    def timestamp(self) -> tuple[int, int]:
        """Kind (2: the broker's append time) and milliseconds since 1970."""


UNREADABLE = "headwater.headers.unreadable"
_headers = methodcaller("headers")  # an ordinary call may be so optimised (Python 3.11) that the failure shows later, anywhere


def readable(message: KafkaRecord) -> KafkaRecord:
    """The record, once its headers are known to be readable; to be called first of all, in the thread that polled it.

    A header's name that is not UTF-8 makes confluent-kafka 2.16 fail at the first look at the headers and hand out a broken list at the
    second, which ends the process. Such headers are replaced by one that says so: what they said cannot be known.
    """
    try:
        _headers(message)
    except (SystemError, UnicodeDecodeError):
        cast(Any, message).set_headers([(UNREADABLE, b"a name is not UTF-8")])
    return message
