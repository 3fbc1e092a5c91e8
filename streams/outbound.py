"""The link's producers: one for each direction, shared by its lanes, and the acknowledgements that a lane waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.message import Pairs

log = logging.getLogger("headwater.link")


class LinkFailed(RuntimeError):
    """A lane cannot go on as it is; it starts again from its position."""


class Outbound:
    """A producer shared by the lanes of one direction, and the thread that serves its delivery reports. A producer that has failed for
    good (a replaced cluster may do that to an idempotent one) is replaced by a new one."""

    def __init__(self, make: Callable[[], Producer], direction: str) -> None:
        self._make = make
        self.producer = make()
        self._broken = threading.Event()
        self._replacing = threading.Lock()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"link-{direction}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._halt.is_set():
            try:
                self.producer.poll(0.2)
            except Exception:  # a report that failed must not end the thread: every lane would wait for ever
                log.exception("a report of the link's producer could not be handled")

    def open(self, halt: threading.Event) -> Acks:
        with self._replacing:
            if self._broken.is_set():
                log.warning("the link's producer has failed for good and is replaced")
                self.producer.purge()
                self.producer.flush(1.0)  # what was with it is reported as refused
                self.producer = self._make()
                self._broken.clear()
        return Acks(self.producer, halt, self._broken)

    def close(self) -> None:
        self._halt.set()
        self._thread.join(2)
        self.producer.purge()


class Acks:
    """The acknowledgements of one batch."""

    def __init__(self, producer: Producer, halt: threading.Event, broken: threading.Event) -> None:
        self._producer, self._halt, self._broken = producer, halt, broken
        self._open = 0
        self._error: KafkaError | None = None
        self._too_large: list[int] = []
        self._changed = threading.Condition()

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Pairs | list[tuple[str, bytes]],
        partition: int,
        index: int = 0,
    ) -> None:
        """Hand a record to the producer; `index` is what `wait` calls it. Raises `LinkFailed`."""
        with self._changed:
            self._open += 1
        report = partial(self._report, index)
        while True:
            try:
                self._producer.produce(topic, value=value, key=key, headers=list(headers), partition=partition, on_delivery=report)
                return
            except BufferError:
                if self._halt.wait(0.01):
                    raise LinkFailed("the link is stopping") from None
            except KafkaException as error:  # refused before it was queued
                self._report(index, error.args[0], None)
                return

    def _report(self, index: int, error: KafkaError | None, message: Message | None) -> None:
        with self._changed:
            self._open -= 1
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._too_large.append(index)
            elif error is not None:
                self._error = self._error or error
                if error.fatal() or error.code() == KafkaError._FATAL:
                    self._broken.set()
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
            raise LinkFailed(f"the destination refused a record: {self._error.str()} ({self._error.name()})")
        return self._too_large
