"""A thread that asks one site again and again whether it is there: one real Kafka request (the metadata of `frames`), timed.

It has a client of its own, so that neither the records wait for its questions nor the questions for the records.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any

from confluent_kafka import KafkaException, Producer

from schemas.routing import Routing
from streams.clients import BrokerUnavailable
from streams.routing.choice import Reason
from streams.routing.way import Way, WrongTopics

log = logging.getLogger("headwater.routing")

FIRST_SAMPLES = 5  # round trips before the first choice
WARM_S = 10.0  # between requests that keep a standing connection open
SPREAD = 0.1  # intervals differ by this share, so that a fleet's questions do not come in step


class Probe:
    """Keeps a way's health up to date. `ready` is set after the first answers, or the first failure."""

    def __init__(self, way: Way, routing: Routing, every_s: float, *, alone: bool) -> None:
        self._way = way
        self._routing = routing
        self._every_s = every_s
        self._alone = alone
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.ready = threading.Event()
        self.error: Exception | None = None
        """What the first look at the site ended with."""
        self._checked = False
        self._warm_s = 0.0
        self._client: Producer | None = None
        self._first_timeout_s = 10.0
        self._thread = threading.Thread(target=self._run, name=f"{way.name}.probe", daemon=True)

    @property
    def name(self) -> str:
        return self._way.name

    def start(self, timeout_s: float) -> None:
        """Begin; the first look at the site takes `timeout_s` at most."""
        self._first_timeout_s = timeout_s
        self._thread.start()

    def poke(self) -> None:
        """Ask at once. Never waits."""
        self._wake.set()

    def stop(self) -> None:
        """Ask it to end. Never waits."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._way.check(self._first_timeout_s)
            self._checked = True
            for _ in range(FIRST_SAMPLES):
                self._ask()
        except Exception as error:  # noqa: BLE001 - such as a property that no Kafka client knows: for whoever starts us
            self.error = error
            self._failed(time.monotonic(), error)
        self.ready.set()
        while not self._stop.is_set():
            self._wake.wait(self._every_s * random.uniform(1 - SPREAD, 1 + SPREAD))  # noqa: S311
            self._wake.clear()
            if not self._stop.is_set():
                self._once()

    def _once(self) -> None:
        """Ask; look at the topics if the site was away or is suspect; keep its clients warm."""
        way = self._way
        began_s = time.monotonic()
        try:
            if not self._checked or way.suspect or way.health.failing:
                self._ask(sample=False)
                way.check(self._routing.probe_timeout_s)
                # what its clients hold may be stuck in connections that went silent; with another site beside it, it can be sent again
                way.renewed = way.renewed or (way.health.failing and not self._alone)
                self._checked, way.suspect = True, False
            self._ask()
        except (BrokerUnavailable, WrongTopics) as error:
            self._failed(began_s, error)
            return
        except Exception as error:
            if not isinstance(error, type(self.error)):  # else it is known
                log.exception("%s: a question to it could not be asked", self.name, extra={"site": self.name})
            self.error = error
            self._failed(began_s, error)
            return
        if began_s - self._warm_s > WARM_S or not way.warmed:
            self._warm_s = began_s
            way.warm(self._routing.probe_timeout_s)

    def _failed(self, asked_s: float, error: Exception) -> None:
        certain = isinstance(error, WrongTopics)
        reason = Reason.TOPICS if certain else Reason.UNREACHABLE
        self._way.health.failed(asked_s=asked_s, now_s=time.monotonic(), reason=reason, why=str(error), certain=certain)

    def _ask(self, *, sample: bool = True) -> None:
        """One request and its answer."""
        limit_s = self._routing.probe_timeout_s
        if self._client is None:
            self._client = self._way.site.clients.producer(**_settings(limit_s))
        name = self._way.topics["frames"].name
        asked_s = time.monotonic()
        try:
            topic = self._client.list_topics(name, timeout=limit_s).topics[name]
        except KafkaException:
            raise BrokerUnavailable(f"no answer for {time.monotonic() - asked_s:.1f} s") from None
        if topic.error is not None:
            raise WrongTopics(f"topic {name}: {topic.error.str()}")
        leaderless = [number for number, partition in topic.partitions.items() if partition.leader < 0]
        if leaderless:
            raise WrongTopics(f"topic {name}: partition {leaderless[0]} has no leader")
        if sample:
            self._way.health.answered(asked_s=asked_s, now_s=time.monotonic())


def _settings(limit_s: float) -> dict[str, Any]:
    """A client that gives up soon, so that questions do not pile up on a silent connection, and a new one is tried when the way is back."""
    soon_ms = max(1000, round(2 * limit_s * 1000))
    return {
        "enable.idempotence": False,
        "socket.timeout.ms": soon_ms,
        "socket.connection.setup.timeout.ms": soon_ms,
        "api.version.request.timeout.ms": soon_ms,
        "reconnect.backoff.max.ms": 500,
    }
