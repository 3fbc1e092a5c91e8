"""The one factory of Kafka clients: every producer, consumer and admin client gets its settings here, TLS and SASL included.

Our settings are the defaults of their purpose; what the site's file says under `properties` overrides them all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.config import Kafka
from schemas.errors import Fault

log = logging.getLogger("headwater.kafka")

SECRETS = ("password", "secret", "key.pem", "oauth", "jaas")


class BrokerUnavailable(Fault, ConnectionError):
    """No broker of the cluster answered; the message says which and what to try."""


class ClusterInfo(msgspec.Struct, frozen=True):
    """What is known of a cluster: its id, and per topic its uuid and number of partitions."""

    id: str
    topics: dict[str, tuple[str, int]]


class Clients:
    """Makes Kafka clients for one cluster.

    Parameters
    ----------
    kafka
        The cluster, from the site's configuration.
    name
        Who asks, such as `leaf-1.agent`; it becomes the clients' `client.id`.
    """

    def __init__(self, kafka: Kafka, name: str) -> None:
        self.kafka = kafka
        self.name = name

    def settings(self, **defaults: Any) -> dict[str, Any]:
        """librdkafka settings: ours for the purpose, then the site's."""
        base = {
            "bootstrap.servers": self.kafka.bootstrap_servers,
            "client.id": self.name,
            "socket.keepalive.enable": True,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 2_000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "error_cb": _ErrorLog(self.name, self.kafka.bootstrap_servers),
            "logger": logging.getLogger("headwater.librdkafka"),
        }
        return {**base, **{name.replace("__", "."): value for name, value in defaults.items()}, **self.kafka.properties}

    def producer(self, *, linger_ms: float = 0.0, **settings: Any) -> Producer:
        """An idempotent producer that waits for all replicas. It never drops a record by itself: `message.timeout.ms` is without limit."""
        own: dict[str, Any] = {
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": linger_ms,
            "message.timeout.ms": 0,
            "message.max.bytes": 20 << 20,
            "queue.buffering.max.messages": 100_000,
            "queue.buffering.max.kbytes": 64 << 10,
        }
        return Producer(self.settings(**{**own, **settings}))

    def consumer(self, group: str | None, **settings: Any) -> Consumer:
        """A consumer that commits nothing by itself and fails loudly where a position is not known.

        `group=None` makes one for `assign` only: it joins no group and keeps no offsets.
        """
        own: dict[str, Any] = {
            "group.id": group or f"{self.name}.unused",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 50,
            "fetch.min.bytes": 1,
            "fetch.error.backoff.ms": 100,
            "fetch.queue.backoff.ms": 10,
            "fetch.message.max.bytes": 1 << 20,
            "queued.max.messages.kbytes": 64 << 10,
            "isolation.level": "read_uncommitted",
        }
        if group is not None:
            own |= {
                "partition.assignment.strategy": "range",
                "session.timeout.ms": 6_000,  # the least that brokers take by default: so long a killed worker's partitions wait
                "heartbeat.interval.ms": 1_000,
                "max.poll.interval.ms": 120_000,
            }
        return Consumer(self.settings(**{**own, **settings}))

    def admin(self) -> AdminClient:
        return AdminClient(self.settings())

    def cluster(self, topics: list[str], *, timeout_s: float = 10.0, admin: AdminClient | None = None) -> ClusterInfo:
        """The cluster's id and the uuids of some topics; topics that do not exist are left out. Whoever asks often brings a client.

        Raises
        ------
        BrokerUnavailable
            If no broker answers in time.
        """
        admin = admin or self.admin()
        try:
            described = admin.describe_cluster(request_timeout=timeout_s).result(timeout_s + 1)
            found: dict[str, tuple[str, int]] = {}
            if topics:
                for name, future in admin.describe_topics(TopicCollection(topics), request_timeout=timeout_s).items():
                    try:
                        topic = future.result(timeout_s + 1)
                        found[name] = (canonical_uuid(str(topic.topic_id)), len(topic.partitions))
                    except KafkaException as error:
                        if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                            raise
            return ClusterInfo(described.cluster_id, found)
        except (KafkaException, TimeoutError) as error:
            raise BrokerUnavailable(
                f"no Kafka broker answered at {self.kafka.bootstrap_servers} within {timeout_s:g} s ({_reason(error)}): "
                "is it running, and is the address right? `headwater broker up` starts a local one"
            ) from None


def only_inferred(error: KafkaError | None, message: Message) -> bool:
    """Whether a delivery report says "delivered" though no broker has said so; such a record may never have been stored.

    librdkafka (2.16) sends up to five requests at a time. When one fails in a way that may pass and a later one is taken, it infers that
    the earlier one was stored after all, since a broker refuses gaps. But a broker that knows nothing yet of a producer takes its first
    request whatever its sequence (Kafka 4.3, `ProducerAppendInfo.checkSequence`): what came before it is then reported as delivered and is
    lost. A record that a broker has acknowledged has an offset; one of which it is only inferred has none.
    """
    return error is None and message.offset() is None


def canonical_uuid(text: str) -> str:
    """A topic's uuid as Kafka itself writes it, in URL-safe base64: the client library writes `+` and `/`, which ids cannot hold.

    >>> canonical_uuid("m2UvPm+JTreCDP8x/6bZwg")
    'm2UvPm-JTreCDP8x_6bZwg'
    """
    return text.replace("+", "-").replace("/", "_").rstrip("=")


class _ErrorLog:
    """Logs each kind of a client's errors once a while, not once an attempt: a broker that is away raises several kinds in turn."""

    AGAIN_S = 60.0

    def __init__(self, name: str, servers: str) -> None:
        self.name, self.servers = name, servers
        self._said: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._said.get(error.code(), -self.AGAIN_S) >= self.AGAIN_S:
            self._said[error.code()] = now
            log.warning("kafka client: %s", error.str(), extra={"client": self.name, "servers": self.servers, "code": error.name()})


def _reason(error: BaseException) -> str:
    inner = error.args[0] if error.args else error
    return str(inner.str() if isinstance(inner, KafkaError) else inner) or type(error).__name__


def redacted(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings fit to be shown: values that may be secrets are hidden."""
    return {name: "<hidden>" if any(word in name for word in SECRETS) else str(value) for name, value in settings.items()}
