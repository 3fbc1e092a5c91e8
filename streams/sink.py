"""The sink: an idempotent producer whose delivery reports come back to the event loop, one future for each group of outputs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from streams import telemetry
from streams.clients import Clients
from streams.message import Pairs
from streams.partition import partition_of
from streams.topology import Topic

log = logging.getLogger("headwater.sink")


class Output(msgspec.Struct, frozen=True):
    """One record to be written. `source` decides the partition; topics that are not divided by source have one."""

    topic: Topic
    source: str
    key: str | bytes | None
    value: bytes | None
    headers: Pairs | list[tuple[str, bytes]]

    @property
    def partition(self) -> int:
        return partition_of(self.source, self.topic.partitions) if self.topic.by_source else 0


class NotDelivered(RuntimeError):
    """An output that is too large for its topic; what it came from cannot be processed."""


class SinkBroken(RuntimeError):
    """The broker refuses our outputs, whatever they are (no such topic, not authorised): the worker must stop, and nothing is committed."""


class Receipt:
    """Counts the delivery reports of a group of outputs; await `wait()` for the last of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._open = 1  # the group itself, until `wait`
        self._error: KafkaError | None = None
        self._last: asyncio.Future[None] = loop.create_future()

    def expect(self) -> None:
        with self._lock:
            self._open += 1

    def report(self, error: KafkaError | None) -> None:
        with self._lock:
            self._open -= 1
            self._error = self._error or error
            last = not self._open
        if last:
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self._last.done():
            return
        if self._error is None:
            self._last.set_result(None)
        elif self._error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._last.set_exception(NotDelivered(f"an output is too large for its topic: {self._error.str()}"))
        else:
            self._last.set_exception(SinkBroken(f"the broker refused an output: {self._error.str()} ({self._error.name()})"))

    async def wait(self) -> None:
        """Return when every output is on the broker; raises `NotDelivered` or `SinkBroken` for the first that was refused."""
        self.report(None)
        await self._last


class BrokerClock:
    """The broker's clock as seen from here, learned from the append times in delivery reports: the age of a record is measured by the
    clock that stamped it, so that a wrong clock at the edge makes no record old or new.

    An append happened between our send and the report, so the report with the shortest way bounds the difference best.
    """

    def __init__(self) -> None:
        self._difference_ms = 0.0
        self._error_ms = float("inf")
        self._at = 0.0

    def observe(self, sent_s: float, reported_s: float, appended_ms: int) -> None:
        """Take in one report: local times (seconds since 1970) of sending and reporting, and the broker's append time."""
        error = (reported_s - sent_s) * 500
        if error <= self._error_ms or reported_s - self._at > 60:  # clocks drift: an estimate of a minute ago is replaced by a newer one
            self._difference_ms = appended_ms - (sent_s + reported_s) * 500
            self._error_ms, self._at = error, reported_s

    def now_ms(self) -> float:
        """The broker's time, in milliseconds since 1970."""
        return time.time() * 1000 + self._difference_ms

    def age_s(self, appended_ms: int) -> float:
        """Seconds since the broker took a record."""
        return max(0.0, (self.now_ms() - appended_ms) / 1000)


class Sink:
    """Writes outputs idempotently (`acks=all`); one thread serves the delivery reports.

    `message.timeout.ms` is without limit: while the broker is away outputs wait, and so do those who wait for them.
    """

    def __init__(self, clients: Clients, *, linger_ms: float = 0.5) -> None:
        self._producer = clients.producer(linger_ms=linger_ms)
        self.clock = BrokerClock()
        self._halt = threading.Event()
        self._fatal: str | None = None
        self._thread = threading.Thread(target=self._serve, name="sink", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._halt.is_set():
            self._producer.poll(0.1)

    def open(self) -> Receipt:
        """A receipt for a group of outputs, on the running event loop."""
        return Receipt(asyncio.get_running_loop())

    async def send(self, outputs: Iterable[Output], receipt: Receipt) -> None:
        """Hand outputs to the producer at once; waits only while its queue is full."""
        for output in outputs:
            receipt.expect()
            report = _Report(self, receipt)
            while True:
                try:
                    self._producer.produce(
                        output.topic.name,
                        value=output.value,
                        key=output.key,
                        partition=output.partition,
                        headers=list(output.headers),
                        on_delivery=report,
                    )
                    break
                except BufferError:
                    await asyncio.sleep(0.005)
                except KafkaException as error:  # refused before it was queued, such as larger than message.max.bytes
                    receipt.report(error.args[0])
                    break
        telemetry.SEND_QUEUE.set(len(self._producer))

    async def write(self, outputs: Iterable[Output]) -> None:
        """Send and wait until all are on the broker; raises `NotDelivered` or `SinkBroken`."""
        receipt = self.open()
        await self.send(outputs, receipt)
        await receipt.wait()

    def post(self, outputs: Iterable[Output]) -> None:
        """Send without waiting, from any thread; refusals are logged. For what explains, not for what is owed."""
        for output in outputs:
            self._producer.produce(
                output.topic.name,
                value=output.value,
                key=output.key,
                partition=output.partition,
                headers=list(output.headers),
                on_delivery=_logged,
            )

    def close(self, timeout_s: float = 10.0) -> None:
        """Wait for what is queued, for a time; says how much was left."""
        left = self._producer.flush(timeout_s)
        self._halt.set()
        self._thread.join(2)
        if left:
            log.error("outputs were not acknowledged before the end; their records will be read again", extra={"records": left})
            self._producer.purge()


class _Report:
    __slots__ = ("receipt", "sent_s", "sink")

    def __init__(self, sink: Sink, receipt: Receipt) -> None:
        self.sink, self.receipt, self.sent_s = sink, receipt, time.time()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            kind, appended_ms = message.timestamp()
            if kind == 2:  # LogAppendTime
                self.sink.clock.observe(self.sent_s, time.time(), appended_ms)
        self.receipt.report(error)


def _logged(error: KafkaError | None, message: Message) -> None:
    if error is not None:
        log.error("an explanation could not be written: %s", error.str(), extra={"topic": message.topic()})
