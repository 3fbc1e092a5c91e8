"""A record as Kafka gave it: the accessors of a librdkafka message that the rooms above rely on, without the client library's own type."""

from __future__ import annotations

from typing import Protocol

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
