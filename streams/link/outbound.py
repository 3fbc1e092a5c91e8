"""The link's producers and their delivery reports."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.clients import only_inferred

log = logging.getLogger("headwater.link")

SEEK_S, SEEK_LIMIT_S = 0.2, 2.0

Report = Callable[[KafkaError | None, Message | None], None]


class LinkFailed(RuntimeError):
    """A lane cannot go on as it is; it starts again from its position."""


class Outbound:
    """A producer that lanes share, and the thread that serves its delivery reports. A producer that has failed for good (a replaced
    cluster may do that to an idempotent one) is replaced by a new one."""

    def __init__(self, make: Callable[[], Producer], name: str) -> None:
        self._make = make
        self.producer = make()
        self._broken = threading.Event()
        self._replacing = threading.Lock()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"link-{name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._halt.is_set():
            try:
                self.producer.poll(0.2)
            except Exception:  # a report that failed must not end the thread: every lane would wait for ever
                log.exception("a report of the link's producer could not be handled")

    def seek(self, topics: Sequence[str], away: Callable[[], bool]) -> None:
        """Ask for the leaders of some topics, the most urgent first, for as long as the region is away. A client that has lost all brokers
        (librdkafka 2.16) forgets what it knew of them, and asks only once a second; asked by us, it does so as soon as one is there."""

        def ask() -> None:
            pause_s = SEEK_S
            while not self._halt.wait(pause_s):
                pause_s = SEEK_S
                try:
                    for topic in topics if away() else ():
                        self.producer.list_topics(topic, timeout=SEEK_LIMIT_S)
                        pause_s = SEEK_LIMIT_S  # found: if it counts as away still, asking more often does not change that
                except KafkaException:
                    continue  # it is away still

        threading.Thread(target=ask, name=f"{self._thread.name}-seek", daemon=True).start()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        partition: int,
        report: Report,
    ) -> None:
        """Hand a record to the producer; `report` is called once, from another thread or, if it is refused at once, from this one. Raises
        `LinkFailed` if the producer is closed while it is full."""
        if self._broken.is_set():
            self._replace()
        while True:
            try:
                self.producer.produce(
                    topic,
                    value=value,
                    key=key,
                    headers=headers if isinstance(headers, list) else list(headers),
                    partition=partition,
                    on_delivery=report,
                )
                return
            except BufferError:
                if self._halt.wait(0.01):
                    raise LinkFailed("the link is stopping") from None
            except KafkaException as error:  # refused before it was queued
                self._seen(error.args[0])
                report(error.args[0], None)
                return

    def _seen(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._broken.set()

    def failed(self, error: KafkaError) -> None:
        """A report that somebody else got: a fatal error means a new producer for whoever sends next."""
        self._seen(error)

    def _replace(self) -> None:
        with self._replacing:
            if not self._broken.is_set():
                return
            log.warning("the link's producer has failed for good and is replaced")
            self.producer.purge()
            while self.producer.flush(1.0) and not self._halt.is_set():
                log.warning("the producer that has failed still holds %d records", len(self.producer))  # each is reported as refused
            self.producer = self._make()
            self._broken.clear()

    def open(self, halt: threading.Event) -> Acks:
        """A group of records whose acknowledgements are waited for."""
        return Acks(self, halt)

    def flush(self, timeout_s: float) -> None:
        self.producer.flush(timeout_s)

    def close(self) -> None:
        self.producer.purge()
        self.producer.poll(0)
        self._halt.set()
        self._thread.join(2)


class Acks:
    """The acknowledgements of one group of records."""

    def __init__(self, outbound: Outbound, halt: threading.Event) -> None:
        self._outbound, self._halt = outbound, halt
        self._open = 0
        self._error: KafkaError | None = None
        self._too_large: list[int] = []
        self._changed = threading.Condition()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        partition: int,
        index: int = 0,
    ) -> None:
        """Hand a record to the producer; `index` is what `wait` calls it. Raises `LinkFailed`."""
        with self._changed:
            self._open += 1
        self._outbound.send(topic, key, value, headers, partition, partial(self._report, index))

    def _report(self, index: int, error: KafkaError | None, message: Message | None) -> None:
        error = certain(error, message)
        if error is not None:
            self._outbound.failed(error)
        with self._changed:
            self._open -= 1
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._too_large.append(index)
            elif error is not None:
                self._error = self._error or error
            self._changed.notify_all()

    def wait(self) -> list[int]:
        """Wait for all; an outage waits here. Returns the indices of what was too large for the destination's topic. Raises `LinkFailed`
        if something else was refused, or if the link is stopped meanwhile."""
        with self._changed:
            while self._open:
                self._changed.wait(0.5)
                if self._halt.is_set() and self._open:
                    raise LinkFailed("the link is stopping")
        if self._error is not None:
            raise LinkFailed(refusal(self._error))
        return self._too_large


def certain(error: KafkaError | None, message: Message | None) -> KafkaError | None:
    """The error of a report; one that says "delivered" though no broker has said so is one too: the record is carried again."""
    if message is not None and only_inferred(error, message):
        return KafkaError(KafkaError._INCONSISTENT, "the client only inferred that the record is stored")
    return error


def refusal(error: KafkaError) -> str:
    return f"the destination refused a record: {error.str()} ({error.name()})"
