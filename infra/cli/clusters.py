"""What the commands that look at a cluster share: its clients, and its errors as messages for people."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infra.cli.common import CommandFailed
from schemas.config import Kafka, SiteConfig
from schemas.errors import Fault

if TYPE_CHECKING:
    from streams.clients import Clients
    from streams.topology import Topic, Topology

# What a client says while it tries to connect: the command itself says it once, in its own words.
_CONNECTING = {"_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "_TIMED_OUT", None}


def clients_of(kafka: Kafka, command: str) -> Clients:
    """Clients of a cluster for one command; of their logs only what the command cannot say itself is shown (a failed login)."""
    from streams.clients import Clients

    logging.getLogger("headwater.librdkafka").setLevel(logging.CRITICAL)
    logging.getLogger("headwater.kafka").addFilter(_worth_telling)
    return Clients(kafka, f"headwater.{command}")


def _worth_telling(record: logging.LogRecord) -> bool:
    return getattr(record, "code", None) not in _CONNECTING


def region_of(config: SiteConfig, path: str) -> tuple[Topology, Kafka]:
    """The region's side of a leaf's link; raises `CommandFailed` if there is none."""
    from streams.topology import region_view

    if config.link is None:
        raise CommandFailed(f"{path} has no [link]: this site has no region")
    return region_view(config), config.link.region


@contextmanager
def explained() -> Iterator[None]:
    """Errors of a cluster become `CommandFailed`."""
    from streams.clients import BrokerUnavailable
    from streams.merging import TopicMissing

    try:
        yield
    except TopicMissing as error:
        raise CommandFailed(f"{error}: `headwater topology check` says what else is missing") from None
    except (BrokerUnavailable, Fault) as error:
        raise CommandFailed(str(error)) from None


def topics_named(topology: Topology, name: str, clients: Clients | None = None) -> list[Topic]:
    """The topics of a name: as code calls it (`alerts`, on a region `up.alerts` for all sites), or in full; with `clients` also one that
    is not declared but on the cluster.

    Raises `CommandFailed` with the nearest names if there is none.
    """
    from streams.describe import label
    from streams.reader import names, undeclared

    found = [topic for topic in topology if name in {topic.name, topic.base}] or [topic for topic in topology if label(topic) == name]
    if found:
        return found
    known = {*(topic.base for topic in topology), *(label(topic) for topic in topology)}
    if clients is not None:
        with explained():
            existing = names(clients)
        if name in existing:
            return [undeclared(name, topology.tier)]
        known |= set(existing)
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted({label(topic) for topic in topology}))}"
    raise CommandFailed(f"{topology.tier} {topology.site} has no topic {name!r}: {advice}")


def counted(number: int, noun: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
