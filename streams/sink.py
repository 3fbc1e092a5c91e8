"""The sink: an idempotent producer whose delivery reports come back to the event loop, one future for each group of outputs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from streams import telemetry
from streams.clients import Clients, only_inferred
from streams.message import Pairs
from streams.partition import partition_of
from streams.topology import Topic

log = logging.getLogger("headwater.sink")


class Output(msgspec.Struct, frozen=True):
    """One record to be written. `source` decides the partition, unless it is given `at` one; topics that are not divided by source have
    one."""

    topic: Topic
    source: str
    key: str | bytes | None
    value: bytes | None
    headers: Pairs | list[tuple[str, bytes]]
    at: int | None = None

    @property
    def partition(self) -> int:
        if self.at is not None:
            return self.at
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
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self._last.done():
            return
        if self._error is None:
            self._last.set_result(None)
        else:
            self._last.set_exception(_refusal(self._error))

    async def wait(self) -> None:
        """Return when every output is on the broker; raises `NotDelivered` or `SinkBroken` for the first that was refused."""
        self.report(None)
        await self._last


_DRIFT_MS_PER_S = 0.2  # clocks run apart by 200 parts in a million at most, so an estimate grows worse with its age


class BrokerClock:
    """The broker's clock as seen from here, learned from the append times in delivery reports: the age of a record is measured by the
    clock that stamped it, so that a wrong clock at the edge makes no record old or new.

    An append happened between our send and the report, so the report with the shortest way bounds the difference best. Here time is
    counted by the monotonic clock, which nobody sets; a report that contradicts the estimate means that the broker's clock was set.
    """

    def __init__(self) -> None:
        self._difference_ms = (time.time() - time.monotonic()) * 1000  # until the first report: this machine's own clock
        self._error_ms = float("inf")
        self._at = 0.0

    def observe(self, sent_s: float, reported_s: float, appended_ms: int) -> None:
        """Take in one report: when it was sent and reported (seconds of the monotonic clock), and the broker's append time."""
        error = (reported_s - sent_s) * 500 + 1  # append times are whole milliseconds
        difference = appended_ms + 0.5 - (sent_s + reported_s) * 500
        known = self._error_ms + _DRIFT_MS_PER_S * (reported_s - self._at)
        if error <= known or abs(difference - self._difference_ms) > error + known:
            self._difference_ms, self._error_ms, self._at = difference, error, reported_s

    @property
    def known(self) -> bool:
        """Whether a report has told of the broker's clock; until then this machine's own stands in."""
        return self._error_ms < float("inf")

    def now_ms(self) -> float:
        """The broker's time, in milliseconds since 1970."""
        return time.monotonic() * 1000 + self._difference_ms

    def age_s(self, appended_ms: int) -> float:
        """Seconds since the broker took a record."""
        return max(0.0, (self.now_ms() - appended_ms) / 1000)


# A broker handles the requests of one connection one after the other, so more of them under way gain little near it; and of a producer that
# it has just read back from the log it knows no more than the last batch. A batch before it, sent again since its acknowledgement was lost
# with the broker, cannot be told from one that is missing, and sent once more it would stand behind what was to replace it.
_ONE_BY_ONE = {"max.in.flight": 1}


class Sink:
    """Writes outputs idempotently (`acks=all`); one thread serves the delivery reports.

    `message.timeout.ms` is without limit: while the broker is away outputs wait, and so do those who wait for them.
    """

    def __init__(self, clients: Clients, *, linger_ms: float = 0.0) -> None:
        self._producer = clients.producer(linger_ms=linger_ms, **_ONE_BY_ONE)
        self.clock = BrokerClock()
        self._unsure: deque[tuple[Output, _Report]] = deque()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="sink", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._halt.is_set():
            try:
                self._send_again()
                self._producer.poll(0.1)
            except Exception:  # a report that failed must not end the thread: all that waits for reports would wait for ever
                log.exception("a delivery report could not be handled")

    def _send_again(self) -> None:
        """What the client only inferred to be on the broker is sent again: nothing may count as written that was never stored."""
        while self._unsure:
            output, report = self._unsure[0]
            try:
                self._produce(output, report)
            except BufferError:
                return  # there is room soon
            except KafkaException as error:
                report.refused(error.args[0])
            self._unsure.popleft()

    def unsure(self, output: Output, report: _Report) -> None:
        """Send an output again, soon; called in the thread that serves the reports."""
        self._unsure.append((output, report))

    def open(self) -> Receipt:
        """A receipt for a group of outputs, on the running event loop."""
        return Receipt(asyncio.get_running_loop())

    async def send(self, outputs: Iterable[Output], receipt: Receipt) -> None:
        """Hand outputs to the producer at once; waits only while its queue is full."""
        for output in outputs:
            receipt.expect()
            try:
                await self._hand_over(output, _Report(self, receipt, output))
            except KafkaException as error:  # refused before it was queued, such as larger than message.max.bytes
                receipt.report(error.args[0])
            except BaseException:  # not under way, and no report will come: whoever waits for the others must not wait for it
                receipt.report(None)
                raise
        telemetry.SEND_QUEUE.set(len(self._producer))

    async def _hand_over(self, output: Output, report: _Report) -> None:
        while True:
            try:
                self._produce(output, report)
                return
            except BufferError:
                await asyncio.sleep(0.005)

    async def write(self, outputs: Iterable[Output]) -> None:
        """Send and wait until all are on the broker; raises `NotDelivered` or `SinkBroken`."""
        receipt = self.open()
        await self.send(outputs, receipt)
        await receipt.wait()

    def post(self, outputs: Iterable[Output]) -> None:
        """Send without waiting, from any thread; refusals are logged. For what explains, not for what is owed."""
        for output in outputs:
            try:
                self._produce(output, _logged)
            except (BufferError, KafkaException) as error:
                log.error("an explanation could not be written: %s", error, extra={"topic": output.topic.name})

    def write_blocking(self, outputs: Sequence[Output], timeout_s: float = 30.0) -> None:
        """Send and wait until all are on the broker, from a thread that is not the event loop's.

        Raises
        ------
        NotDelivered, SinkBroken
            As `write` does; `SinkBroken` too if it takes longer than `timeout_s`.
        """
        reports: queue.SimpleQueue[tuple[Output, KafkaError | None, bool]] = queue.SimpleQueue()
        until = time.monotonic() + timeout_s
        late = f"the broker did not take {len(outputs)} outputs within {timeout_s:g} s"

        def send(output: Output) -> None:
            def report(error: KafkaError | None, message: Message) -> None:
                reports.put((output, error, only_inferred(error, message)))

            while True:
                try:
                    self._produce(output, report)
                    return
                except BufferError:
                    if time.monotonic() > until:
                        raise SinkBroken(late) from None
                    time.sleep(0.01)
                except KafkaException as error:
                    raise _refusal(error.args[0]) from None

        for output in outputs:
            send(output)
        left = len(outputs)
        while left:
            try:
                output, error, inferred = reports.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise SinkBroken(late) from None
            if error is not None:
                raise _refusal(error)
            if inferred:
                send(output)
            else:
                left -= 1

    def _produce(self, output: Output, report: Callable[[KafkaError | None, Message], None]) -> None:
        self._producer.produce(
            output.topic.name,
            value=output.value,
            key=output.key,
            partition=output.partition,
            headers=list(output.headers),
            on_delivery=report,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait for what is queued, for a time; says how much was left."""
        left = self._producer.flush(timeout_s)
        self._halt.set()
        self._thread.join(2)
        if left:
            log.error("outputs were not acknowledged before the end; their records will be read again", extra={"records": left})
            self._producer.purge()


def _refusal(error: KafkaError) -> NotDelivered | SinkBroken:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return NotDelivered(f"an output is too large for its topic: {error.str()}")
    return SinkBroken(f"the broker refused an output: {error.str()} ({error.name()})")


class _Report:
    __slots__ = ("output", "receipt", "sent_s", "sink")

    def __init__(self, sink: Sink, receipt: Receipt, output: Output) -> None:
        self.sink, self.receipt, self.output, self.sent_s = sink, receipt, output, time.monotonic()

    def refused(self, error: KafkaError) -> None:
        self.receipt.report(error)

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if only_inferred(error, message):
            self.sink.unsure(self.output, self)
            return
        if error is None:
            kind, appended_ms = message.timestamp()
            if kind == 2:  # LogAppendTime
                self.sink.clock.observe(self.sent_s, time.monotonic(), appended_ms)
        self.receipt.report(error)


def _logged(error: KafkaError | None, message: Message) -> None:
    if error is not None:
        log.error("an explanation could not be written: %s", error.str(), extra={"topic": message.topic()})
