"""Hearing what concerns every worker of a role, whatever partitions it has: a cold agent would tell one of them only, since a group shares
its partitions out. What is heard is told to a coroutine's world; what becomes of it is the agent's."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from mode import Service

from schemas.errors import Fault
from schemas.records import InvalidRecord
from streams.clients import Clients
from streams.reader import Stored, read
from streams.topology import Topic

log = logging.getLogger("headwater.hearing")

SINCE = dt.timedelta(minutes=2)  # what is said again and again within this time
AGAIN_S = 5.0
STOP_S = 0.5  # how long the end is not noticed


class Hearing(Service):
    """Follows small topics, in no group and without commits.

    Parameters
    ----------
    handlers
        What to call, on the event loop, with each record of a topic. One that cannot be read is logged and passed over.
    """

    def __init__(self, clients: Clients, handlers: Mapping[Topic, Callable[[Stored], None]], **kwargs: Any) -> None:
        self._clients = clients
        self._topics = tuple(handlers)
        self._handlers = {topic.name: handler for topic, handler in handlers.items()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        super().__init__(**kwargs)

    async def on_start(self) -> None:
        self._events = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, name="hearing", daemon=True)
        self._thread.start()

    async def on_stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 5.0)

    def _listen(self) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                for stored in read(self._clients, self._topics, start=SINCE, follow=True, stop=self._stop):
                    said = ""
                    self._hand_over(stored)
            except Fault as error:  # the broker is away, or a topic is not there yet
                if str(error) != said:
                    said = str(error)
                    log.warning("nothing is heard for now: %s", error)
                self._stop.wait(AGAIN_S)
            except RuntimeError:
                if not self._stop.is_set():  # else the event loop has ended
                    raise

    def _hand_over(self, stored: Stored) -> None:
        """Wait until a record was heard. What comes in a burst, such as the answers after an outage, would be heard in one piece otherwise,
        and all else on the event loop would wait for it."""
        heard = Future[None]()
        self._events.call_soon_threadsafe(self._hear, stored, heard)
        while not self._stop.is_set() and not wait([heard], STOP_S).done:
            pass

    def _hear(self, stored: Stored, heard: Future[None]) -> None:
        try:
            self._handlers[stored.topic.name](stored)
        except InvalidRecord as error:
            log.warning("a record is passed over: %s", error, extra={"topic": stored.topic.name, "offset": stored.offset})
        finally:
            heard.set_result(None)
