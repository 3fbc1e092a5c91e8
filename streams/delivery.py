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
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from confluent_kafka import KafkaError, KafkaException

from streams import telemetry
from streams.batches import Batch
from streams.message import KafkaRecord
from streams.sink import NotDelivered, Output, Sink
from streams.topology import Topic

log = logging.getLogger("headwater.delivery")

ATTEMPTS = 3
BACKOFF_S = (0.05, 5.0)  # first and longest wait between attempts
_ERRORS = "__connect.errors."  # Kafka Connect's names, so that its tools read our dead letters too
_STACK_BYTES = 4000


class MayPass(Exception):
    """A failure whose cause may pass without anybody's doing (engine busy, broker away): it is tried again without limit."""


class TooManyDeadLetters(RuntimeError):
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
        """Process one batch to its end (steps 2 to 7); returns at once if somebody else took it."""
        if not batch.take():
            return
        await self._process(batch.topic, batch.partition, batch.records)
        batch.done()

    async def _process(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> None:
        attempt = 0
        while records:
            left, failure = await self._attempt(topic, partition, records)
            if failure is None:
                return
            telemetry.RETRIES.labels(type(failure).__name__).inc()
            if may_pass(failure):
                if not attempt:
                    log.warning("work failed and is tried again: %s", failure, extra={"topic": topic.name, "records": len(left)})
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
        failure: Exception | None = None
        try:
            async for item in self.work(topic, partition, records):
                if isinstance(item, Rejected):
                    await self._bury(topic, records[item.index], item.error, item.record, expected=True)
                    finished.add(item.index)
                    continue
                await self.sink.send(item.outputs, receipt)
                if item.finished:
                    finished.add(item.index)
                    self.limit.count(False)
                    telemetry.RECORDS.labels(topic.base, "done").inc()
        except (TooManyDeadLetters, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the work raises is classed, counted and buried: see step 5
            failure = error
        try:
            await receipt.wait()
        except NotDelivered as error:  # which output it was is not known: none of this pass counts as finished
            return list(records), failure or error
        left = [record for index, record in enumerate(records) if index not in finished]
        if left and failure is None:
            failure = RuntimeError("the work ended without an answer to every record")
        return left, failure

    async def _bury(self, topic: Topic, message: KafkaRecord, error: Exception, record: str | None, *, expected: bool) -> None:
        target = self.dead_letters(topic)
        headers = [*(message.headers() or []), *error_headers(message, error, self.agent, record)]
        await self.sink.write([Output(target, "", message.key(), message.value(), headers)])
        telemetry.RECORDS.labels(topic.base, "rejected" if expected else "dead").inc()
        log.log(
            logging.INFO if expected else logging.ERROR,
            "dead letter: %s",
            error,
            extra={"topic": topic.name, "partition": message.partition(), "offset": message.offset(), "error": type(error).__name__},
        )
        if not expected:
            self.limit.count(True)


def error_headers(message: KafkaRecord, error: Exception, agent: str, record: str | None) -> list[tuple[str, bytes]]:
    """Headers of a dead letter, as Kafka Connect names them, with a digest of the stack to group by and the record's id if known."""
    stack = "".join(traceback.format_exception(error))
    places = "".join(f"{frame.filename}:{frame.name}" for frame in traceback.extract_tb(error.__traceback__))
    headers = {
        "topic": message.topic(),
        "partition": str(message.partition()),
        "offset": str(message.offset()),
        "connector.name": agent,
        "stage": "VALUE_CONVERTER" if isinstance(error, ValueError) else "TASK_PUT",
        "exception.class.name": f"{type(error).__module__}.{type(error).__qualname__}",
        "exception.message": str(error)[:1000],
        "exception.stacktrace": stack[-_STACK_BYTES:],
    }
    ours = {"headwater.stack.digest": hashlib.sha256(places.encode()).hexdigest()[:16], **({"headwater.record": record} if record else {})}
    return [(_ERRORS + name, value.encode()) for name, value in headers.items()] + [(name, value.encode()) for name, value in ours.items()]


def may_pass(error: BaseException) -> bool:
    """Whether the cause of a failure may pass by itself."""
    if isinstance(error, KafkaException):
        inner = error.args[0]
        return isinstance(inner, KafkaError) and inner.retriable()
    return isinstance(error, (MayPass, ConnectionError, TimeoutError))


def backoff_s(attempt: int) -> float:
    """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015)."""
    first, longest = BACKOFF_S
    return random.uniform(first / 2, min(longest, first * 2**attempt))  # noqa: S311 - spreads load, guards nothing
