"""The local Apache Kafka: Java, its jars, one-node brokers. Any other Kafka is used by naming its bootstrap servers."""

from __future__ import annotations

from schemas.errors import Fault


class KafkaFailed(Fault, RuntimeError):
    """The local Kafka cannot be used; the message says what happened and what to do."""
