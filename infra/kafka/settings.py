"""What a one-node broker is told: its settings, and the files of properties that Kafka reads, made from them.

The defaults are those of a small machine: a bounded heap, few threads, retention looked after twice a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.config import Kafka

Port = Annotated[int, Meta(ge=0, le=65_535)]
MIN_FREE_BYTES = 200 << 20
HEAP_MB = 192


class Wan(msgspec.Struct, frozen=True, kw_only=True):
    """A second listener for clients that come through a proxy: where it listens, and the address that it tells them to use."""

    host: str = "127.0.0.1"
    port: Port = 0
    advertised_host: str = "127.0.0.1"
    advertised_port: Port


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One broker.

    Parameters
    ----------
    name
        For messages and logs.
    folder
        All its files: data, logs, properties. One broker uses it at a time.
    host
        Where it listens and what it tells clients to dial: one address of this machine, so not 0.0.0.0.
    port, controller_port
        0 takes a free one. The controller serves only the broker itself.
    heap_mb
        Java heap. With the default the whole process has about 160 MB resident at rest and stays below 400 MB under load.
    wan
        A further listener, advertised elsewhere.
    properties
        Further server properties; they override ours.
    min_free_bytes
        Disk space without which it does not start.
    """

    name: str = "local"
    folder: Path
    host: str = "127.0.0.1"
    port: Port = 9092
    controller_port: Port = 0
    heap_mb: Annotated[int, Meta(ge=96)] = HEAP_MB
    wan: Wan | None = None
    properties: dict[str, str] = {}
    min_free_bytes: int = MIN_FREE_BYTES

    def __post_init__(self) -> None:
        if self.host in ("", "0.0.0.0", "::"):  # noqa: S104 - refused, not bound
            raise ValueError(f"host {self.host!r} is no address that clients could dial: name one of this machine, such as 127.0.0.1")

    def client(self) -> Kafka:
        """The configuration of a client of it; the port must be known."""
        return Kafka(bootstrap_servers=address(self.host, self.port))


def server_properties(settings: BrokerSettings) -> str:
    """The text of `server.properties`; ports must be known."""
    own, controller = address(settings.host, settings.port), address("127.0.0.1", settings.controller_port)
    listeners, advertised = [f"PLAINTEXT://{own}", f"CONTROLLER://{controller}"], [f"PLAINTEXT://{own}"]
    if settings.wan is not None:
        listeners.append(f"WAN://{address(settings.wan.host, settings.wan.port)}")
        advertised.append(f"WAN://{address(settings.wan.advertised_host, settings.wan.advertised_port)}")
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "listeners": ",".join(listeners),
        "advertised.listeners": ",".join(advertised),
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,WAN:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(settings.folder / "data"),
        # one node: one copy of everything, and few partitions of Kafka's own topics (each costs files and memory)
        **{f"{topic}.replication.factor": "1" for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")},
        **{f"{topic}.min.isr": "1" for topic in ("transaction.state.log", "share.coordinator.state.topic")},
        "offsets.topic.num.partitions": "5",
        "transaction.state.log.num.partitions": "5",
        "share.coordinator.state.topic.num.partitions": "1",
        "auto.create.topics.enable": "false",  # a misspelt topic is an error, not a new topic
        "group.initial.rebalance.delay.ms": "0",
        # after `kill -9` it waits out its own former session: 3 s instead of 9 (4.4 s to an answer instead of 11.4)
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # memory: bounded whatever clients send; the largest message is 16 MB, and one may pass the bound of the queue
        "socket.request.max.bytes": str(24 << 20),
        "queued.max.request.bytes": str(24 << 20),
        "log.cleaner.dedupe.buffer.size": str(8 << 20),
        "num.network.threads": "2",
        "num.io.threads": "3",
        "background.threads": "4",
        # disk: bounds hold within half a minute, not five
        "log.retention.check.interval.ms": "30000",
        "log.segment.delete.delay.ms": "1000",
        **settings.properties,
    }
    return "".join(f"{name}={_escaped(value)}\n" for name, value in properties.items())


def address(host: str, port: int) -> str:
    """host:port as Kafka writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
