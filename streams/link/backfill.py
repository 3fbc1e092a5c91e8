"""Backfill: reads the gaps behind the end of a log, a chunk of one partition at a time. Which gap comes next is the lane's to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from streams.clients import Clients
from streams.message import KafkaRecord, readable

_SETTINGS = {"enable.partition.eof": True, "queued.max.messages.kbytes": 4096, "fetch.message.max.bytes": 1 << 20}


class Chunk(NamedTuple):
    """What is still to be read of a gap: the next and the last offset of it."""

    partition: int
    at: int
    last: int


class Portion(NamedTuple):
    """What was read of a chunk: offsets from `first` to `last`, of which `records` are all that exist."""

    partition: int
    first: int
    last: int
    records: list[KafkaRecord]


class Gone(Exception):
    """What was to be read is no longer in the log."""


class Backfill:
    """Reads one chunk after the other, with a consumer of its own that is made when the first is there.

    Parameters
    ----------
    check
        Called for a message that is an error; may raise.
    """

    def __init__(
        self, clients: Clients, topic: str, settings: dict[str, Any], check: Callable[[Consumer, Message, KafkaError], None]
    ) -> None:
        self._clients, self._topic, self._settings, self._check = clients, topic, {**_SETTINGS, **settings}, check
        self._consumer: Consumer | None = None
        self.chunk: Chunk | None = None

    @property
    def consumer(self) -> Consumer:
        """The consumer, for what else must be asked of the log."""
        if self._consumer is None:
            self._consumer = self._clients.consumer(None, **self._settings)
        return self._consumer

    def begin(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.consumer.assign([TopicPartition(self._topic, chunk.partition, chunk.at)])

    def read(self, count: int, timeout_s: float) -> Portion | None:
        """Read at most `count` records of the chunk, and count them as read; None if none has come in time.

        Raises
        ------
        Gone
            If retention was faster; the chunk is as it was.
        """
        assert self.chunk is not None
        partition, at, last = self.chunk
        records: list[KafkaRecord] = []
        ended = False
        for message in self.consumer.consume(min(count, last - at + 1), timeout_s):
            error = message.error()
            if message.partition() not in (partition, None, -1) or (error is None and cast(int, message.offset()) < at):
                continue
            if error is None:
                if cast(int, message.offset()) > last:
                    ended = True
                    break
                records.append(readable(cast(KafkaRecord, message)))
            elif error.code() == KafkaError._PARTITION_EOF:
                ended = True
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise Gone
            else:
                self._check(self.consumer, message, error)
        if not records and not ended:
            return None
        end = last if ended else records[-1].offset()
        self.chunk = Chunk(partition, end + 1, last) if end < last else None
        return Portion(partition, at, end, records)

    def close(self) -> None:
        self.chunk = None
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
