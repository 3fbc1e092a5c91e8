"""How far a link has come, kept at the destination: one record a (topic, partition), bound to the source's cluster id and topic uuid, so
that a replaced cluster or a recreated topic is never taken for the old one."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable

from schemas import envelope
from schemas.envelope import Envelope, Headers
from schemas.messages import Position
from schemas.records import InvalidRecord
from streams.clients import Clients, ClusterInfo
from streams.restore import to_end
from streams.topology import Topic

log = logging.getLogger("headwater.link")


def read_positions(clients: Clients, topic: Topic) -> dict[tuple[str, int], Position]:
    """The latest position of every (source topic, partition); raises `BrokerUnavailable`."""
    positions: dict[tuple[str, int], Position] = {}
    for message in to_end(clients, [(topic.name, partition) for partition in range(topic.partitions)]):
        value = message.value()
        if value is None:
            continue
        try:
            position = Position.from_bytes(value)
        except InvalidRecord as error:
            log.error("a position cannot be read and is passed over: %s", error, extra={"topic": topic.name, "offset": message.offset()})
            continue
        positions[position.topic, position.partition] = position
    return positions


def start_of(position: Position | None, source: Topic, partition: int, info: ClusterInfo) -> int:
    """The offset to go on at: the position's, or 0 (the beginning) if there is none or it belongs to another cluster or topic."""
    uuid = info.topics[source.name][0]
    if position is None:
        return 0
    if position.cluster != info.id or position.topic_uuid != uuid:
        what = "cluster" if position.cluster != info.id else "topic"
        log.warning(
            "the source was replaced; the link starts at its beginning",
            extra={"topic": source.name, "partition": partition, "replaced": what},
        )
        return 0
    return position.next_offset


def go_on(position: Position, low: int, high: int, epoch_at: Callable[[int], int | None]) -> int:
    """The offset to go on at in a log that now reaches from `low` to `high`, and that may have been cut (a power cut takes what was not
    written to the disk) and written on since.

    Leader epochs only grow along a log, and a broker that starts again takes a higher one. So what was written after a cut is told by an
    epoch above that of the last record that was carried, and where it begins is found by bisection. Without an epoch in the position a log
    that ends before it is read again from `low`, and so is one whose epochs cannot be read.

    Parameters
    ----------
    epoch_at
        The leader epoch of the first record at or after an offset; None if none was read.
    """
    offset, epoch = position.next_offset, position.leader_epoch
    if epoch < 0:
        return low if offset > high else offset
    if offset <= low:
        return offset
    if offset <= high and ((last := epoch_at(offset - 1)) is None or last <= epoch):
        return offset
    first, end = low, high
    while first < end:
        middle = (first + end) // 2
        found = epoch_at(middle)
        if found is None:
            return low
        if found > epoch:
            end = middle
        else:
            first = middle + 1
    return first


def headers_of(position: Position, link: str, now: dt.datetime) -> Headers:
    return Envelope(
        id=f"{position.topic}/{position.partition}/{position.next_offset}", source=link, type=envelope.POSITION, time=now
    ).to_headers()
