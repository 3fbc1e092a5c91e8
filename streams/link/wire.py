"""What the clients of a region count themselves: bytes on the wire, and whether the region answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from schemas.links import Breaker
from streams import telemetry

SILENT_S = 3.0  # requests without an answer for so long: the region is away, though the socket still stands
STATISTICS_MS = 500
BULK = "bulk"  # the client that carries most


class Wire:
    """Adds up the statistics of all clients of one region.

    `on_count` is called after each new count of the client that carries most. The breaker follows what another one sees, the producer of
    what is urgent: no connection, or requests that nobody answers, open it. The clients themselves try to connect again, with a jittered
    backoff; a connection makes it half-open, and an answer closes it: the first acknowledgement, since statistics come only now and then.
    """

    def __init__(self, on_count: Callable[[], None] = lambda: None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._on_count = clock, on_count
        self._unsent: dict[str, float] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._total = {"up": 0, "down": 0}
        self._answers, self._answered_at = 0, clock()
        self._connected = False
        self._lock = threading.Lock()
        self.breaker = Breaker.OPEN

    def watch(self, client: str, *, judge: bool = False) -> Any:
        """A statistics callback for one client; the breaker follows the one with `judge`."""

        def report(text: str) -> None:
            stats = json.loads(text)
            brokers = stats["brokers"].values()
            with self._lock:
                for direction, field in (("up", "txbytes"), ("down", "rxbytes")):
                    total = stats.get(field, sum(broker.get(field, 0) for broker in brokers))
                    before = self._seen.get((client, direction), 0)
                    more = total - before if total >= before else total  # a new client under the name counts anew
                    self._seen[client, direction] = total
                    self._total[direction] += more
                    telemetry.LINK_WIRE.labels(direction).inc(more)
                if stats["type"] == "producer":
                    waiting = sum(broker["waitresp_msg_cnt"] for broker in brokers)
                    self._unsent[client] = 1 - min(1.0, waiting / stats["msg_cnt"]) if stats["msg_cnt"] else 1.0
                if judge:
                    self._judge(list(brokers))
            if client == BULK:  # only then is what it has sent known as of now: an older count would give back what is spent
                self._on_count()

        return report

    def acknowledged(self) -> None:
        """The region has acknowledged something."""
        if self.breaker is not Breaker.CLOSED:
            with self._lock:
                self._answered_at = self._clock()
                self.breaker = Breaker.CLOSED

    def unsent(self, client: str) -> float:
        """The share of a producer's records under way that it has not written to the wire yet."""
        with self._lock:
            return self._unsent.get(client, 1.0)

    def _judge(self, brokers: list[Any]) -> None:
        answers = sum(broker["rx"] for broker in brokers)
        waiting = sum(broker["waitresp_cnt"] + broker["outbuf_cnt"] for broker in brokers)
        connected = any(broker["state"] == "UP" for broker in brokers)
        now = self._clock()
        answered = answers != self._answers
        if answered or not waiting:
            self._answers, self._answered_at = answers, now
        if not connected or now - self._answered_at >= SILENT_S:
            self.breaker = Breaker.OPEN
        elif self.breaker is Breaker.OPEN and not answered:
            self.breaker = Breaker.HALF_OPEN
        elif answered or self.breaker is Breaker.CLOSED:
            self.breaker = Breaker.CLOSED
        self._connected = connected

    @property
    def bytes(self) -> int:
        """Bytes sent and received so far."""
        with self._lock:
            return sum(self._total.values())
