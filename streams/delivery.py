"""Delivery of a hot agent, in numbered steps. `streams/batches.py` holds steps 1, 4 (commits) and 8.

1. One thread owns the consumer; it hands over batches, each of one partition, a bounded number in flight.
2. Each record is checked before it is parsed. A bad one is `Rejected` and becomes a dead letter; the rest go on.
3. The work yields outputs as they are ready and sends nothing itself; delivery produces each at once.
4. Outputs are produced idempotently; a batch is done when the last delivery report is in. Then, and only then, its offsets count.
5. What failed is tried again with backoff if the cause may pass; otherwise the unfinished records are split until the culprit stands
   alone, and it becomes a dead letter after `ATTEMPTS`, with its error, a digest of the stack, its origin and its original headers.
6. (A record that kills the process natively is not found yet.)
7. Dead letters of unexpected failures have a limit, a share of recent records: beyond it the agent stops and says why, since then the
   code or the model is at fault, not the records. Rejected records do not count: they are their producer's fault.
8. Revoked partitions drain, commit synchronously, and are forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import cast

import msgspec
from confluent_kafka import KafkaError, KafkaException

from schemas.envelope import MAX_HEADER_BYTES, MAX_HEADERS
from schemas.errors import Fault
from streams import telemetry
from streams.batches import Batch
from streams.message import KafkaRecord, Pairs
from streams.sink import NotDelivered, Output, Sink, SinkBroken
from streams.topology import Topic

log = logging.getLogger("headwater.delivery")

ATTEMPTS = 3
BACKOFF_S = (0.05, 5.0)  # first and longest wait between attempts
_ERRORS = "__connect.errors."  # Kafka Connect's names, so that its tools read our dead letters too
_OURS = "headwater."
_STACK_BYTES = 4000
_TEXT_BYTES = 1000


class MayPass(Exception):
    """A failure whose cause may pass without anybody's doing (engine busy, broker away): it is tried again without limit."""


class TooManyDeadLetters(Fault, RuntimeError):
    """The share of failed records shows that the code or the model is at fault; the agent stops."""


class Emitted(msgspec.Struct, frozen=True):
    """What the work yields: outputs of one record of the batch, and whether that record is finished with them."""

    index: int
    outputs: tuple[Output, ...] = ()
    finished: bool = True


class Rejected(msgspec.Struct, frozen=True):
    """What the work yields for a record that cannot be processed, whoever tries and however often. `record` is its id, if known."""

    index: int
    error: Exception
    record: str | None = None


Work = Callable[[Topic, int, Sequence[KafkaRecord]], AsyncIterator[Emitted | Rejected]]


class DeadLetterLimit:
    """Step 7: at most `share` of the last `window` records, once at least `least` of them failed."""

    def __init__(self, *, share: float = 0.5, window: int = 1000, least: int = 50) -> None:
        self.share, self.least = share, least
        self._recent: deque[bool] = deque(maxlen=window)

    def count(self, failed: bool) -> None:
        """Count one record; raises `TooManyDeadLetters`."""
        self._recent.append(failed)
        if failed and (bad := sum(self._recent)) >= self.least and bad > self.share * len(self._recent):
            raise TooManyDeadLetters(
                f"{bad} of the last {len(self._recent)} records failed: the code or the model is at fault, not the records. "
                "See the dead letters' error headers (`headwater tail frames.dlq`), mend it and start again: nothing is lost"
            )


class Delivery:
    """Runs the work of one hot agent over batches.

    Parameters
    ----------
    work
        Async generator over (topic, partition, records): yields `Emitted` and `Rejected`, in any order of records.
    dead_letters
        The dead-letter topic of an input topic.
    agent
        Name in error headers, such as `leaf-1.leaf`.
    """

    def __init__(
        self, sink: Sink, work: Work, dead_letters: Callable[[Topic], Topic], agent: str, *, limit: DeadLetterLimit | None = None
    ) -> None:
        self.sink, self.work, self.dead_letters, self.agent = sink, work, dead_letters, agent
        self.limit = limit or DeadLetterLimit()

    async def run(self, batch: Batch) -> None:
        """Process one batch to its end (steps 2 to 7); returns at once if somebody else took it.

        Raises
        ------
        TooManyDeadLetters, SinkBroken
            The worker must stop; nothing beyond the batch is committed.
        """
        if not batch.take():
            return
        try:
            await self._process(batch.topic, batch.partition, batch.records)
        except asyncio.CancelledError:
            batch.release()
            raise
        except BaseException:
            batch.fail()
            raise
        batch.done()

    async def _process(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> None:
        attempt = 0
        while records:
            left, failure = await self._attempt(topic, partition, records)
            if failure is None or not left:
                return
            telemetry.RETRIES.labels(type(failure).__name__).inc()
            if may_pass(failure):
                if not attempt:
                    log.warning("work failed and is tried again: %s", _say(failure), extra={"topic": topic.name, "records": len(left)})
                await asyncio.sleep(backoff_s(attempt))
                attempt, records = attempt + 1, left
            elif len(left) > 1:
                middle = len(left) // 2
                await self._process(topic, partition, left[:middle])
                await self._process(topic, partition, left[middle:])
                return
            elif attempt + 1 < ATTEMPTS:
                await asyncio.sleep(backoff_s(attempt))
                attempt, records = attempt + 1, left
            else:
                await self._bury(topic, left[0], failure, None, expected=False)
                return

    async def _attempt(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> tuple[list[KafkaRecord], Exception | None]:
        """One pass over some records: those that are not finished, and what failed."""
        receipt = self.sink.open()
        finished: set[int] = set()
        buried: set[int] = set()
        failure: Exception | None = None
        try:
            # Closed here and now, whatever happens: what the work has started must not go on beside the next attempt.
            async with aclosing(cast(AsyncGenerator[Emitted | Rejected], self.work(topic, partition, records))) as items:
                async for item in items:
                    if isinstance(item, Rejected):
                        await self._bury(topic, records[item.index], item.error, item.record, expected=True)
                        buried.add(item.index)
                        continue
                    await self.sink.send(item.outputs, receipt)
                    if item.finished:
                        finished.add(item.index)
        except SinkBroken:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the work raises is classed, counted and buried: see step 5
            failure = error
        try:
            await receipt.wait()
        except NotDelivered as error:  # which output it was is not known: none that this pass wrote counts as finished
            return [record for index, record in enumerate(records) if index not in buried], failure or error
        for _ in finished:
            self.limit.count(False)
        telemetry.RECORDS.labels(topic.base, "done").inc(len(finished))
        left = [record for index, record in enumerate(records) if index not in finished | buried]
        if left and failure is None:
            failure = RuntimeError("the work ended without an answer to every record")
        return left, failure

    async def _bury(self, topic: Topic, message: KafkaRecord, error: Exception, record: str | None, *, expected: bool) -> None:
        await bury(self.sink, self.dead_letters(topic), message, error, self.agent, record)
        telemetry.RECORDS.labels(topic.base, "rejected" if expected else "dead").inc()
        log.log(
            logging.INFO if expected else logging.ERROR,
            "dead letter: %s",
            _say(error),
            extra={"topic": topic.name, "partition": message.partition(), "offset": message.offset(), "error": type(error).__name__},
        )
        if not expected:
            self.limit.count(True)


async def bury(sink: Sink, target: Topic, message: KafkaRecord, error: Exception, agent: str, record: str | None) -> None:
    """Write a dead letter; one that is too large for its topic goes without its value, so that it cannot block what comes after it.

    Raises
    ------
    SinkBroken
        If dead letters cannot be written; then the record must not be acknowledged.
    """
    headers, key, value = letter_headers(message, error, agent, record), message.key(), message.value() or b""
    try:
        await sink.write([Output(target, "", key, message.value(), headers)])
    except NotDelivered:
        omitted = f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}".encode()
        small_key = key if key is None or len(key) <= MAX_HEADER_BYTES else None
        try:
            await sink.write([Output(target, "", small_key, None, [*headers, (_OURS + "value.omitted", omitted)])])
        except NotDelivered as refused:
            raise SinkBroken(f"{target.name} takes not even a dead letter without its value: {refused}") from None


def error_headers(message: KafkaRecord, error: Exception, agent: str, record: str | None) -> list[tuple[str, bytes]]:
    """Headers of a dead letter, as Kafka Connect names them, with a digest of the stack to group by and the record's id if known.
    They are UTF-8 and bounded, whatever the error says of itself."""
    stack = "".join(traceback.format_exception(error))
    places = "".join(f"{frame.filename}:{frame.name}" for frame in traceback.extract_tb(error.__traceback__))
    headers = {
        "topic": message.topic(),
        "partition": str(message.partition()),
        "offset": str(message.offset()),
        "connector.name": agent,
        "stage": "VALUE_CONVERTER" if isinstance(error, ValueError) else "TASK_PUT",
        "exception.class.name": f"{type(error).__module__}.{type(error).__qualname__}",
        "exception.message": _say(error),
    }
    digest = hashlib.sha256(places.encode(errors="backslashreplace")).hexdigest()[:16]
    return [
        *((_ERRORS + name, _bounded(value)) for name, value in headers.items()),
        (_ERRORS + "exception.stacktrace", _bounded(stack, -_STACK_BYTES)),
        (_OURS + "stack.digest", digest.encode()),
        *([(_OURS + "record", _bounded(record))] if record else []),
    ]


def letter_headers(message: KafkaRecord, error: Exception, agent: str, record: str | None) -> Pairs:
    """The record's own headers and those of the error, together within the bounds of `schemas.envelope`.

    Headers of an earlier failure are replaced. Where the record's own are too many, its envelope is kept before the others, and a header
    says how many are missing.
    """
    ours: Pairs = list(error_headers(message, error, agent, record))
    names = {name for name, _ in ours}
    own = [(name, value) for name, value in message.headers() or () if name not in names]
    count, size = MAX_HEADERS - len(ours) - 2, MAX_HEADER_BYTES - 200 - sum(len(name) + len(value or b"") for name, value in ours)
    kept = set()
    for index in sorted(range(len(own)), key=lambda index: not own[index][0].lower().startswith(("ce_", "content-type"))):
        name, value = own[index]
        weight = len(name.encode()) + len(value or b"")
        if count > 0 and weight <= size:
            kept.add(index)
            count, size = count - 1, size - weight
    if omitted := len(own) - len(kept):
        ours.append((_OURS + "headers.omitted", str(omitted).encode()))
    return [own[index] for index in sorted(kept)] + ours


def _say(error: BaseException) -> str:
    """What an error says of itself; some cannot even do that."""
    try:
        return str(error)[:_TEXT_BYTES]
    except Exception as worse:  # noqa: BLE001 - any code can stand in __str__
        return f"(an error that cannot be shown: {type(worse).__name__})"


def _bounded(text: str, limit: int = _TEXT_BYTES) -> bytes:
    """Text as UTF-8 of so many bytes at most: its start, or its end if the limit is negative."""
    data = text.encode(errors="backslashreplace")
    cut = data[:limit] if limit > 0 else data[limit:]
    return cut.decode(errors="ignore").encode()


def may_pass(error: BaseException) -> bool:
    """Whether the cause of a failure may pass by itself."""
    if isinstance(error, KafkaException):
        inner = error.args[0] if error.args else None
        return isinstance(inner, KafkaError) and inner.retriable()
    return isinstance(error, (MayPass, ConnectionError, TimeoutError))


def backoff_s(attempt: int) -> float:
    """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015)."""
    first, longest = BACKOFF_S
    highest = first * 2 ** min(attempt, 16)  # bounded: what is tried for days must not overflow
    return random.uniform(first / 2, min(longest, highest))  # noqa: S311 - spreads load, guards nothing
