"""Delivery of a hot agent, in numbered steps. `streams/batches.py` holds steps 1, 4 (commits) and 8.

1. One thread owns the consumer; it hands over batches, each of one partition, a bounded number in flight.
2. Each record is checked before it is parsed. A bad one is `Rejected` and becomes a dead letter; the rest go on.
3. The work yields outputs as they are ready and sends nothing itself; delivery produces each at once.
4. Outputs are produced idempotently; a batch is done when the last delivery report is in. Then, and only then, its offsets count.
5. What failed is tried again with backoff if the cause may pass; otherwise the unfinished records are split until the culprit stands
   alone, and it becomes a dead letter after `ATTEMPTS`, with its error, a digest of the stack, its origin and its original headers
   (`streams/burial.py`). A cause that may pass is waited for without limit while nothing is finished: then it is the broker or the engine.
   Where others are finished meanwhile, for `PATIENCE_S` in all, it is the record.
6. What is in work is marked in a journal. A record in whose work the process died is suspected, and worked on with nothing else in work;
   one whose guilt is proven becomes a dead letter without being worked on again (`streams/quarantine.py`, `streams/suspects.py`).
7. Dead letters of unexpected failures have a limit, a share of recent records (`streams/limits.py`): beyond it the agent stops and says
   why, since then the code or the model is at fault, not the records. It is kept over restarts. Rejected records do not count: they are
   their producer's fault.
8. Revoked partitions drain, commit synchronously, and are forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, cast

import msgspec
from confluent_kafka import KafkaError, KafkaException

from streams import telemetry
from streams.batches import Batch
from streams.burial import Places, bury, say
from streams.limits import DeadLetterLimit
from streams.message import KafkaRecord
from streams.quarantine import Quarantine
from streams.sink import NotDelivered, Output, Sink, SinkBroken
from streams.topology import Topic

log = logging.getLogger("headwater.delivery")

ATTEMPTS = 3
BACKOFF_S = (0.05, 5.0)  # first and longest wait between attempts
PATIENCE_S = 900.0  # for a cause that may pass, while other records are finished


class MayPass(Exception):
    """A failure whose cause may pass without anybody's doing (engine busy, broker away): it is tried again without limit."""


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


class Marks(Protocol):
    """What delivery tells of a pass."""

    sending_since: float | None

    def done(self, index: int) -> None: ...


class _NoMarks:
    """Where there is no journal."""

    sending_since: float | None = None

    def done(self, index: int) -> None:
        """Nobody asks."""


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
    limit
        Of dead letters; by default one that the quarantine's journal keeps over restarts.
    quarantine
        Finds records that kill the process (step 6); without one they are not found.
    places
        Cluster id and topic uuid of the input topics: what dead letters without an id of their own are named after.
    """

    def __init__(
        self,
        sink: Sink,
        work: Work,
        dead_letters: Callable[[Topic], Topic],
        agent: str,
        *,
        limit: DeadLetterLimit | None = None,
        quarantine: Quarantine | None = None,
        places: Places | None = None,
    ) -> None:
        self.sink, self.work, self.dead_letters, self.agent = sink, work, dead_letters, agent
        self.quarantine, self.places = quarantine, places
        self.limit = limit or DeadLetterLimit(memory=None if quarantine is None else quarantine.window)
        self._finished = 0  # records, of all batches: whether anything goes on while something waits

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
            await self._deliver(batch.topic, batch.partition, batch.records)
        except asyncio.CancelledError:
            batch.release()
            raise
        except BaseException:
            batch.fail()
            raise
        batch.done()

    async def _deliver(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> None:
        """Step 6: suspects stand apart, the guilty are buried, and the rest is worked on."""
        if self.quarantine is None:
            await self._process(topic, partition, records)
            return
        async with aclosing(self.quarantine.portions(topic.name, partition, records)) as portions:
            async for portion, alone in portions:
                if alone and (guilt := self.quarantine.guilt(portion[0])) is not None:
                    if not self.quarantine.is_buried(portion[0]):
                        await self._bury(topic, portion[0], guilt, None, expected=False)
                        self.quarantine.buried(portion[0])
                else:
                    await self._process(topic, partition, portion, alone=alone)

    async def _process(self, topic: Topic, partition: int, records: Sequence[KafkaRecord], *, alone: bool = False) -> None:
        """Step 5, over records of which none is in work elsewhere."""
        attempt, overtaken_s = 0, 0.0
        tried_at, finished = time.monotonic(), self._finished
        while records:
            left, failure = await self._attempt(topic, partition, records, alone)
            if failure is None or not left:
                return
            telemetry.RETRIES.labels(type(failure).__name__).inc()
            now = time.monotonic()
            if attempt and self._finished > finished:  # since our last attempt others were finished: for them the cause has passed
                overtaken_s += now - tried_at
            tried_at, finished = now, self._finished
            if may_pass(failure) and overtaken_s < PATIENCE_S:
                if not attempt:
                    log.warning("work failed and is tried again: %s", say(failure), extra={"topic": topic.name, "records": len(left)})
                await asyncio.sleep(backoff_s(attempt))
                attempt, records = attempt + 1, left
            elif len(left) > 1:
                middle = len(left) // 2
                await self._process(topic, partition, left[:middle], alone=alone)
                await self._process(topic, partition, left[middle:], alone=alone)
                return
            elif attempt + 1 < ATTEMPTS:
                await asyncio.sleep(backoff_s(attempt))
                attempt, records = attempt + 1, left
            else:
                await self._bury(topic, left[0], failure, None, expected=False)
                return

    async def _attempt(
        self, topic: Topic, partition: int, records: Sequence[KafkaRecord], alone: bool
    ) -> tuple[list[KafkaRecord], BaseException | None]:
        """One pass over some records: those that are not finished, and what failed."""
        receipt = self.sink.open()
        finished: set[int] = set()
        buried: set[int] = set()
        failure: BaseException | None = None
        async with self._in_work(topic, partition, records, alone) as marks:
            try:
                # Closed here and now, whatever happens: what the work has started must not go on beside the next attempt.
                async with aclosing(cast(AsyncGenerator[Emitted | Rejected], self.work(topic, partition, records))) as items:
                    async for item in items:
                        if isinstance(item, Rejected) or item.finished:
                            marks.done(item.index)
                        marks.sending_since = time.monotonic()
                        if isinstance(item, Rejected):
                            await self._bury(topic, records[item.index], item.error, item.record, expected=True)
                            buried.add(item.index)
                        else:
                            await self.sink.send(item.outputs, receipt)
                            if item.finished:
                                finished.add(item.index)
                        marks.sending_since = None
            except (SinkBroken, KeyboardInterrupt, SystemExit):
                raise
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                failure = RuntimeError("the work was cancelled from within")  # nobody cancelled us: the work failed
            except BaseException as error:  # noqa: BLE001 - whatever the work raises (a Rust library panics past Exception): see step 5
                failure = error
        try:
            await receipt.wait()
        except NotDelivered as error:  # which output it was is not known: none that this pass wrote counts as finished
            return [record for index, record in enumerate(records) if index not in buried], failure or error
        self._finished += len(finished) + len(buried)
        for _ in finished:
            self.limit.count(False)
        telemetry.RECORDS.labels(topic.base, "done").inc(len(finished))
        left = [record for index, record in enumerate(records) if index not in finished | buried]
        if left and failure is None:
            failure = RuntimeError("the work ended without an answer to every record")
        return left, failure

    def _in_work(
        self, topic: Topic, partition: int, records: Sequence[KafkaRecord], alone: bool
    ) -> contextlib.AbstractAsyncContextManager[Marks]:
        if self.quarantine is None:
            return contextlib.nullcontext(_NoMarks())
        return self.quarantine.work(topic.name, partition, records, alone=alone)

    async def _bury(self, topic: Topic, message: KafkaRecord, error: BaseException, record: str | None, *, expected: bool) -> None:
        await bury(self.sink, self.dead_letters(topic), message, error, self.agent, record, self.places)
        telemetry.RECORDS.labels(topic.base, "rejected" if expected else "dead").inc()
        log.log(
            logging.INFO if expected else logging.ERROR,
            "dead letter: %s",
            say(error),
            extra={"topic": topic.name, "partition": message.partition(), "offset": message.offset(), "error": type(error).__name__},
        )
        if not expected:
            self.limit.count(True)


def may_pass(error: BaseException) -> bool:
    """Whether the cause of a failure may pass by itself; of several, whether each may."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(may_pass, error.exceptions))
    if isinstance(error, KafkaException):
        inner = error.args[0] if error.args else None
        return isinstance(inner, KafkaError) and inner.retriable()
    return isinstance(error, (MayPass, ConnectionError, TimeoutError))


def backoff_s(attempt: int) -> float:
    """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015)."""
    first, longest = BACKOFF_S
    highest = first * 2 ** min(attempt, 16)  # bounded: what is tried for days must not overflow
    return random.uniform(first / 2, min(longest, highest))  # noqa: S311 - spreads load, guards nothing
