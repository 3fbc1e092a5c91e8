"""A batch on its way to the destination: records of one partition, made ready, and the reports on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from confluent_kafka import KafkaError, Message

from schemas.envelope import APPENDED_MS
from streams.link.carried import Carried
from streams.link.outbound import certain
from streams.message import KafkaRecord, Pairs

_APPENDED = f"ce_{APPENDED_MS}"
_OVERHEAD = 16  # bytes of a record besides its key, value and headers
SHORT_S = 0.05  # a way on which batches are acknowledged sooner is short
PIPELINE = 4  # batches of a partition that the client has in hand on a short way


class Ready(NamedTuple):
    """A record as it is sent, its payload in bytes, and its source, where its headers name one."""

    record: KafkaRecord
    headers: Pairs
    size: int
    source: bytes | None


def ready(record: KafkaRecord, shift_ms: float) -> Ready:
    """Make a record ready: its headers say when it was appended at its site, in the destination's time, which is `shift_ms` ahead of the
    source's. That is not how long it has waited: it may wait on in the client, or be long on its way. A record that came over another link
    keeps the time of the site where it was made."""
    appended_ms = record.timestamp()[1]
    key, value = record.key(), record.value()
    size = _OVERHEAD + (len(key) if key else 0) + (len(value) if value else 0)
    source: bytes | None = None
    own: Pairs = []
    for pair in record.headers() or ():
        name, content = pair
        if name == _APPENDED:
            if content is not None and content.isdigit() and len(content) < 16:
                appended_ms = min(appended_ms, int(content))
            continue
        if name == "ce_source":
            source = content
        size += len(name) + (len(content) if content else 0)
        own.append(pair)
    own.append((_APPENDED, b"%d" % max(0, appended_ms + shift_ms)))
    return Ready(record, own, size, source)


class Batch:
    """Contiguous offsets of one partition, settled when the last acknowledgement is in.

    Parameters
    ----------
    arrived
        Called once, in the producer's thread, with the batch and the last report's message.

    Attributes
    ----------
    refused
        Why a record of it was refused; None if none was.
    large
        Records that were refused for their size, or for that of the request they were in.
    """

    __slots__ = (
        "_arrived",
        "_failed",
        "_left",
        "_lock",
        "epoch",
        "first",
        "large",
        "last",
        "partition",
        "records",
        "refused",
        "sent_s",
        "size",
        "track",
    )

    def __init__(
        self,
        track: Carried,
        partition: int,
        first: int,
        last: int,
        records: Sequence[Ready],
        arrived: Callable[[Batch, Message | None], None],
        failed: Callable[[KafkaError], None],
    ) -> None:
        self.track, self.partition, self.first, self.last, self.records = track, partition, first, last, records
        self.size = sum(each.size for each in records)
        self.epoch = epoch_of(records[-1].record)
        self.sent_s = time.monotonic()
        self.refused: KafkaError | None = None
        self.large: list[KafkaRecord] = []
        self._arrived, self._failed = arrived, failed
        self._left = len(records)
        self._lock = threading.Lock()

    def report(self, index: int, error: KafkaError | None, message: Message | None) -> None:
        """Take in the report on one record."""
        error = certain(error, message)
        if error is not None:
            self._failed(error)
        with self._lock:
            self._left -= 1
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self.large.append(self.records[index].record)
            elif error is not None:
                self.refused = error
            if self._left:
                return
        self._arrived(self, message)


class UnderWay:
    """Which partitions' batches are on their way.

    librdkafka (2.16) has one request of a partition under way when the producer is idempotent (it holds messages in flight against a
    limit of requests), and while more of that partition waits behind it, its thread spins on a whole core until the answer is there.
    Behind a thin link that would be all the time, so a partition's next batch is handed over when its last is acknowledged; on a short
    way a few at a time keep the client busy.
    """

    def __init__(self) -> None:
        self._batches: dict[int, int] = {}
        self._delay_s = float("inf")
        self._changed = threading.Condition()

    def free(self, partition: int) -> bool:
        """Whether a batch of a partition may be handed over."""
        count = self._batches.get(partition, 0)
        return not count or (self._delay_s < SHORT_S and count < PIPELINE)

    def wait(self, timeout_s: float) -> None:
        """Wait until a batch has arrived."""
        with self._changed:
            self._changed.wait(timeout_s)

    def sent(self, partition: int) -> None:
        with self._changed:
            self._batches[partition] = self._batches.get(partition, 0) + 1

    def done(self, partition: int, delay_s: float) -> None:
        """A batch has its last report, so long after it was sent."""
        with self._changed:
            self._batches[partition] -= 1
            self._delay_s = delay_s
            self._changed.notify_all()


def epoch_of(record: KafkaRecord) -> int:
    """The leader epoch of a record; -1 if it is not known."""
    epoch = cast(Message, record).leader_epoch()
    return -1 if epoch is None else epoch
