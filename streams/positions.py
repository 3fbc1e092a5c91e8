"""How far a link has come, kept at the destination: one record a (topic, partition), bound to the source's cluster id and topic uuid, so
that a replaced cluster or a recreated topic is never taken for the old one."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping

from schemas import envelope
from schemas.envelope import Envelope, Headers
from schemas.messages import Position
from schemas.records import InvalidRecord
from streams import truncation
from streams.clients import Clients, ClusterInfo
from streams.restore import to_end
from streams.topology import Topic

log = logging.getLogger("headwater.link")


def read_positions(clients: Clients, topic: Topic) -> dict[tuple[str, str, int], Position]:
    """The latest position of every (source cluster, topic, partition); raises `BrokerUnavailable`."""
    positions: dict[tuple[str, str, int], Position] = {}
    for message in to_end(clients, [(topic.name, partition) for partition in range(topic.partitions)]):
        value = message.value()
        if value is None:
            continue
        try:
            position = Position.from_bytes(value)
        except InvalidRecord as error:
            log.error("a position cannot be read and is passed over: %s", error, extra={"topic": topic.name, "offset": message.offset()})
            continue
        positions[position.cluster, position.topic, position.partition] = position
    return positions


def position_of(
    positions: Mapping[tuple[str, str, int], Position], source: Topic, partition: int, info: ClusterInfo, *, several: bool = False
) -> Position | None:
    """The position that holds for a partition as it is now: None (start at the beginning) if there is none, or if it belongs to another
    cluster or to a topic of the name that has been replaced, which is said. `several`: there are clusters that the link turns between."""
    uuid = info.topics[source.name][0]
    position = positions.get((info.id, source.name, partition))
    if position is not None and position.topic_uuid == uuid:
        return position
    elsewhere = not several and any((topic, each) == (source.name, partition) for _, topic, each in positions)
    if position is not None or elsewhere:
        log.warning(
            "the source was replaced; the link starts at its beginning",
            extra={"topic": source.name, "partition": partition, "replaced": "cluster" if position is None else "topic"},
        )
    return None


def go_on(position: Position, low: int, high: int, epoch_at: Callable[[int], int | None]) -> int:
    """The offset to go on at in a log that now reaches from `low` to `high` and that may have been cut: see `streams.truncation`."""
    return truncation.go_on(position.next_offset, position.leader_epoch, low, high, epoch_at)


def headers_of(position: Position, link: str, now: dt.datetime) -> Headers:
    return Envelope(
        id=f"{position.topic}/{position.partition}/{position.next_offset}", source=link, type=envelope.POSITION, time=now
    ).to_headers()


def key_of(position: Position) -> bytes:
    """The key of a position: a link that turns to another region and back keeps one for each."""
    return f"{position.cluster}/{position.topic}/{position.partition}".encode()
