"""The way to one site: its topics, its health, and the Kafka clients that are kept ready for it. Who uses them, and when, is elsewhere.

Two clients write: one the records, one what is said about them, so that what is thrown away of the one leaves the other alone. Clients
are never mended: one that was left behind with records in it is emptied and replaced when its site is well again. (librdkafka never finds
the way to a topic that was made anew, waits minutes on a connection that went silent, and a fatal error is for good.)
"""

from __future__ import annotations

import logging
import threading
import time

import msgspec
from confluent_kafka import KafkaException, Producer

from streams.clients import Clients, ClusterInfo
from streams.routing.health import Health
from streams.topology import Role, Topic, Topology

log = logging.getLogger("headwater.routing")

EMPTY_S = 2.0  # for a client to report on what was thrown away


class WrongTopics(LookupError):
    """Topics that a producer writes do not exist on the cluster, or not as declared; the message names them and what to do."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """A leaf that may be published to. `bias_s` is added to its measured round trip."""

    clients: Clients
    topology: Topology
    bias_s: float = 0.0

    @property
    def name(self) -> str:
        return self.topology.site


class Way:
    """One site with its clients.

    Parameters
    ----------
    site
        Where it leads.
    stale_s
        An answer older than this is no sign of life.
    """

    def __init__(self, site: Site, *, stale_s: float = 10.0) -> None:
        view = site.topology.role(Role.PRODUCER)
        self.site = site
        self.name = site.name
        self.topics: dict[str, Topic] = {base: view.write(base) for base in ("frames", "drops", "epochs")}
        self.health = Health(site.name, bias_s=site.bias_s, stale_s=stale_s)
        properties = site.clients.kafka.properties
        self.answers = "0" not in (properties.get("acks"), properties.get("request.required.acks"))
        """Its brokers are asked to acknowledge what they take, as they are unless somebody has configured otherwise."""
        self.records: Producer | None = None
        self.control: Producer | None = None
        self.uuids: dict[str, str] = {}
        self.warmed = False
        """The present clients have a connection."""
        self.renewed = False
        """The clients that it has are no longer good: topics were made anew, or the site was away."""
        self.suspect = False
        """Something is odd with it: its topics are to be looked at again."""
        self._undertakers: list[threading.Thread] = []

    def check(self, timeout_s: float) -> None:
        """See whether the topics are there and as declared. Blocks.

        Raises
        ------
        BrokerUnavailable
            If no broker answers in time.
        WrongTopics
            If topics that are written here are not there, or have another number of partitions.
        """
        info = self.site.clients.cluster([topic.name for topic in self.topics.values()], timeout_s=timeout_s)
        self._check(info)
        uuids = {name: uuid for name, (uuid, _) in info.topics.items()}
        if self.uuids and uuids != self.uuids:
            log.warning("%s: topics were made anew: connecting anew", self.name, extra={"site": self.name})
            self.renewed = True
        self.uuids = uuids

    def _check(self, info: ClusterInfo) -> None:
        missing = [topic.name for topic in self.topics.values() if topic.name not in info.topics]
        if missing:
            raise WrongTopics(
                f"the cluster at {self.site.clients.kafka.bootstrap_servers} has no topic {', '.join(missing)}: "
                "`headwater topology create` makes them"
            )
        wrong = [topic for topic in self.topics.values() if info.topics[topic.name][1] != topic.partitions]
        if wrong:
            raise WrongTopics(
                f"topic {wrong[0].name} has {info.topics[wrong[0].name][1]} partitions, and topics.partitions says {wrong[0].partitions}: "
                "set it to what is there (`headwater topology check` tells more); partition counts never change in place"
            )

    def connect(self) -> tuple[Producer, Producer]:
        """Take new clients; those that there were are emptied, each record in them reported as purged."""
        self.retire()
        self.renewed = self.warmed = False
        self.records = self.site.clients.producer(linger_ms=0)
        self.control = self.site.clients.producer(linger_ms=5)
        return self.records, self.control

    def warm(self, timeout_s: float) -> None:
        """Keep the standing connection of the records' client open, and what it knows of the topic fresh. Blocks."""
        client = self.records
        if client is not None:
            try:
                client.list_topics(self.topics["frames"].name, timeout=timeout_s)
                self.warmed = client is self.records
            except KafkaException as error:
                log.debug("%s: not warm: %s", self.name, error.args[0], extra={"site": self.name})

    def retire(self) -> None:
        """Give the clients up. Never waits: emptying them is a thread's work, since a client of a dead site could take its time."""
        self._undertakers = [thread for thread in self._undertakers if thread.is_alive()]
        for client in (self.records, self.control):
            if client is not None:
                thread = threading.Thread(target=_empty, args=(client,), name=f"{self.name}.undertaker", daemon=True)
                thread.start()
                self._undertakers.append(thread)
        self.records = self.control = None

    def join(self, deadline_s: float) -> None:
        """Wait for clients that were given up to be gone, until a moment of monotonic time."""
        for thread in self._undertakers:
            thread.join(max(0.0, deadline_s - time.monotonic()))


def _empty(client: Producer) -> None:
    client.purge()
    client.flush(EMPTY_S)
