"""Which records a lost offset range of `verdicts` leaves without an end: a resolver that retention has overtaken names them as drops.

A record has ended if it has a result, a drop or a dead letter. Of those that have not, it may still come where the verdict lies behind the
range, or where the leaf has yet to answer the frame. Nothing else can end the others.
"""

from __future__ import annotations

import logging
import time

from schemas.identity import InvalidIdentity, RecordId
from schemas.intervals import Intervals
from schemas.messages import Drop
from streams.account_read import settled_offsets
from streams.clients import Clients
from streams.lost_frames import LIMIT_S, REASON, Before, Stream, records_behind, remember
from streams.starts import Lost
from streams.topology import Role, Topic, Topology

log = logging.getLogger("headwater.lost")

STAGE = "resolver"


def never_resolved(before: Before, to_come: Intervals, *, complete: bool) -> Intervals:
    """The sequences of an epoch that nothing will end.

    Parameters
    ----------
    to_come
        The sequences that were found where they can still be ended.
    complete
        Whether all of them were found: then what the producer knows to be on the broker, and is not among them, is lost. Otherwise only
        what lies below the first one found, since a source's records are answered in their order.
    """
    end = max(to_come.pairs()[0][0] if to_come else 0, before.marked if complete else 0)
    if not end:
        return Intervals()
    return Intervals([(0, end - 1)]) - before.ended - to_come - before.not_sent - before.elsewhere


def drops_of(topology: Topology, clients: Clients, lost: Lost, *, limit_s: float = LIMIT_S) -> list[Drop]:
    """The drops that explain a lost range of `verdicts`, by epoch. Foreign records have none: nothing tells which of them were there.

    Raises
    ------
    BrokerUnavailable
        If the cluster does not answer; then the range must not be passed over.
    """
    memory = remember(topology, clients, lost)
    # In this order: what the leaf answers meanwhile is found in `verdicts`, which is read last.
    frames, partition, until = topology.topic("frames"), lost.partition, time.monotonic() + limit_s
    answered = settled_offsets(clients, topology.group(Role.LEAF)).get((frames.name, partition))
    found: dict[Stream, Intervals] = {}
    complete = _names(clients, frames, partition, 0 if answered is None else answered.offset, until, found)
    complete &= _names(clients, lost.topic, partition, lost.last + 1, until, found)
    drops = []
    for (source, epoch), before in sorted(memory.streams.items()):
        sequences = never_resolved(before, found.get((source, epoch), Intervals()), complete=complete)
        if sequences:
            drops.append(Drop(source=source, epoch=epoch, site=topology.site, stage=STAGE, reason=REASON, ranges=sequences.to_ranges()))
    log.error(
        "records whose verdicts are lost are explained as drops",
        extra={
            "topic": lost.topic.name,
            "partition": partition,
            "offsets": lost.last - lost.first + 1,
            "sequences": sum(Intervals(drop.ranges.pairs).count() for drop in drops),
            "complete": complete,
        },
    )
    return drops


def _names(clients: Clients, topic: Topic, partition: int, first: int, until: float, found: dict[Stream, Intervals]) -> bool:
    """Add the sequences that a partition holds from an offset on; returns whether all of it was read in time."""
    for record in records_behind(clients, topic, partition, first, max(0.0, until - time.monotonic())):
        if record is None:
            return False
        named = dict(record.headers() or ()).get("ce_id") or b""
        try:
            name = RecordId.parse(named.decode(errors="replace"))
        except InvalidIdentity:
            continue
        found.setdefault((name.source, name.epoch), Intervals()).add(name.sequence)
    return True
