"""What a leaf's link has still to carry, in both directions: the positions that it keeps at each destination against what is there."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from schemas.messages import Position
from streams.clients import Clients, ClusterInfo
from streams.positions import read_positions
from streams.reader import bounds
from streams.topology import Mirror, Topology, mirrors


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one topic that wait for the link. `by_partition` are their numbers; `lost` were removed before they were carried;
    `carried_before` is False if the link has no position for it yet."""

    source: str
    target: str
    direction: str
    waiting: int
    lost: int
    by_partition: tuple[int, ...]
    carried_before: bool


def backlog(leaf: Topology, region: Topology, at_leaf: Clients, at_region: Clients, *, timeout_s: float = 10.0) -> list[Waiting]:
    """How much waits in each topic that the link carries, the most urgent first.

    Raises
    ------
    BrokerUnavailable, TopicMissing, ReadRefused
    """
    carried = mirrors(leaf, region)
    positions = {
        "up": read_positions(at_region, region.topic("up.positions", leaf.site)),
        "down": read_positions(at_leaf, leaf.topic("positions")),
    }
    found = []
    for direction, clients in (("up", at_leaf), ("down", at_region)):
        sources = [mirror.source for mirror in carried if mirror.direction == direction]
        info = clients.cluster([topic.name for topic in sources], timeout_s=timeout_s)
        ends = bounds(clients, sources, timeout_s=timeout_s)
        found += [_waiting(mirror, ends, positions[direction], info) for mirror in carried if mirror.direction == direction]
    return found


def _waiting(
    mirror: Mirror, ends: Mapping[tuple[str, int], tuple[int, int]], positions: Mapping[tuple[str, str, int], Position], info: ClusterInfo
) -> Waiting:
    name, waits, lost, known = mirror.source.name, [], 0, False
    for (topic, partition), (low, high) in sorted(ends.items()):
        if topic != name:
            continue
        position = positions.get((info.id, name, partition))
        valid = position is not None and (position.cluster, position.topic_uuid) == (info.id, info.topics[name][0])
        known = known or valid
        next_offset = position.next_offset if position is not None and valid else 0  # a replaced source is carried from its beginning
        lost += max(0, low - next_offset) if valid else 0
        gaps = sum(max(0, last - max(low, first) + 1) for first, last in position.backfill.pairs) if position is not None and valid else 0
        waits.append(max(0, high - max(low, next_offset)) + gaps)
    return Waiting(
        source=name,
        target=mirror.target.name,
        direction=mirror.direction,
        waiting=sum(waits),
        lost=lost,
        by_partition=tuple(waits),
        carried_before=known,
    )
